"""Pictures of a run: the losses of every network, and measured against manual volumes."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from hypodask.files.location import Location
from hypodask.image.agreement import FEWEST_SCANS, volume_agreement
from hypodask.report.figures import COLOURS, INK
from hypodask.training.course import Note

_DPI = 120


def save_figure(path: Path, figure: Figure) -> None:
    """Write a picture, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, dpi=_DPI, format="png")
    Location(path).write(content.getvalue())


def course_figure(notes: Sequence[Note]) -> Figure:
    """Loss and overlap of every network against steps; the dashed line is the training loss."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    of_loss, of_dice = figure.subplots(1, 2)
    for place, fold in enumerate(sorted({note.fold for note in notes})):
        own = [note for note in notes if note.fold == fold]
        colour, steps = COLOURS[place % len(COLOURS)], [note.step for note in own]
        name = f"fold {fold}" if fold else "all subjects"
        of_loss.plot(steps, [note.training_loss for note in own], "--", color=colour, linewidth=1)
        of_loss.plot(steps, [note.held_out_loss for note in own], color=colour, marker=".", label=name)
        of_dice.plot(steps, [note.held_out_dice for note in own], color=colour, marker=".")
    of_loss.set(xlabel="step", ylabel="loss", title="Loss: training (dashed), held out (solid)")
    of_dice.set(xlabel="step", ylabel="Dice", title="Overlap on held-out subjects", ylim=(0, 1))
    of_loss.legend(frameon=False, fontsize=8)
    _plain(of_loss, of_dice)
    return figure


def volume_figure(whole: pd.DataFrame) -> Figure:
    """Measured against manual volumes of held-out subjects, and their differences (Bland-Altman).

    Parameters
    ----------
    whole
        One row per subject with ``volume_mm3`` and ``manual_mm3``.
    """
    measured, manual = (whole[name].to_numpy(np.float64) for name in ("volume_mm3", "manual_mm3"))
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    scatter, differences = figure.subplots(1, 2)
    _draw_scatter(scatter, measured, manual)
    _draw_differences(differences, measured, manual)
    _plain(scatter, differences)
    return figure


def _draw_scatter(axes: Axes, measured: ndarray, manual: ndarray) -> None:
    ends = [min(measured.min(), manual.min()), max(measured.max(), manual.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8)
    axes.plot(manual, measured, "o", color=COLOURS[0], alpha=0.8)
    axes.set(xlabel="manual (mm³)", ylabel="measured (mm³)", title="Volume of held-out subjects", aspect="equal")


def _draw_differences(axes: Axes, measured: ndarray, manual: ndarray) -> None:
    known = measured > 0
    axes.plot((measured + manual) / 2, measured - manual, "o", color=COLOURS[0], alpha=0.8)
    axes.axhline(0, color=INK, linewidth=0.8)
    title = "Difference"
    if known.sum() >= FEWEST_SCANS:
        agreement = volume_agreement(measured[known], manual[known])
        for level, style in ((agreement.bias_mm3, "-"), (agreement.low_mm3, "--"), (agreement.high_mm3, "--")):
            axes.axhline(level, color=COLOURS[1], linestyle=style, linewidth=1)
        title = f"Bias {agreement.bias_mm3:+.0f} mm³, limits {agreement.low_mm3:+.0f} and {agreement.high_mm3:+.0f} mm³"
    axes.set(xlabel="mean of both (mm³)", ylabel="measured - manual (mm³)", title=title)


def _plain(*axes: Axes) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.title.set_fontsize(10)
