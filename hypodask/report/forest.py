"""The effect of each site and of all together: a forest plot."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hypodask.report.figures import COLOURS, INK, PLAIN_TEXT


@PLAIN_TEXT
def forest_figure(effects: pd.DataFrame, combined: pd.DataFrame, *, label: str = "difference (mm³)") -> Figure:
    """Draw the estimate of each site with its 95 % interval, and the combined one below.

    Parameters
    ----------
    effects
        Table of :func:`hypodask.stats.compare_sites`; sites without an estimate have their name and no point.
    combined
        Table of :func:`hypodask.stats.combine_sites`.
    label
        What the estimate is, with its unit.

    Returns
    -------
    Figure
        Squares: sites; diamond: all sites, as wide as its interval by Hartung and Knapp; thin line: prediction
        interval, where the effect of a new site is expected.
    """
    rows = len(effects)
    figure = Figure(figsize=(6.0, 1.4 + 0.28 * (rows + 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#999999", linewidth=0.8, zorder=1)
    numbers = effects[["estimate", "low", "high"]].to_numpy(dtype=np.float64)
    for position, (estimate, low, high) in zip(range(rows, 0, -1), numbers, strict=True):
        if np.isfinite(estimate):
            axes.plot([low, high], [position, position], color=INK, linewidth=1.1, zorder=2)
            axes.plot(estimate, position, marker="s", markersize=5, color=COLOURS[0], zorder=3)
    overall = combined.iloc[0]
    if np.isfinite(overall["estimate"]):
        axes.plot(overall[["prediction_low", "prediction_high"]].to_numpy(dtype=float), [0, 0], color=INK, linewidth=1)
        middle = overall["estimate"]
        axes.fill([overall["low"], middle, overall["high"], middle], [0, 0.3, 0, -0.3], color=COLOURS[1], zorder=3)
    names = [f"{name}  (n = {n})" for name, n in zip(effects["site"], effects["n"], strict=True)]
    axes.set_yticks(range(rows, -1, -1), [*names, f"all {overall['sites']} sites"], fontsize=8.5)
    axes.set_ylim(-0.8, rows + 0.8)
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
