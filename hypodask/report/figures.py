"""Groups as boxes and points, with significance brackets: figure 1 (left) of Kassubek et al. 2025."""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from hypodask.core.structures import title_of
from hypodask.stats.samples import done_scans, excluded_scans, group_labels, group_names, values_of

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that people with any colour vision can tell apart (Okabe & Ito 2008)."""

INK = "#222222"

PLAIN_TEXT = rc_context({"text.parse_math": False})
"""For every function that draws text of the user: a group may be called ``$\\frac$``, which is no formula."""

_MOST_POINTS = 400
"""Largest number of points drawn for a group, since more would hide the box. The box is made of all values."""

_MOST_BRACKETS = 6
"""With more pairs than this, only comparisons with the first group are drawn."""

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@PLAIN_TEXT
def group_figure(
    ds: xr.Dataset,
    variable: str,
    structure: str | None,
    comparisons: pd.DataFrame | None = None,
    *,
    by: str | None = "group",
    reference: str | None = None,
) -> Figure:
    """Draw a variable by group, with brackets for the comparisons.

    Parameters
    ----------
    ds
        Results. A scan that is not done has no point; an ``excluded`` one is a cross and does not count in the box.
    variable, structure
        Such as ``normalized_volume_mm3`` of the ``hypothalamus``.
    comparisons
        Table of :func:`hypodask.stats.compare_groups`; brackets show ``p_recommended``.
    by
        Coordinate that holds the group; None for all scans together.
    reference
        Group to draw first.

    Returns
    -------
    Figure
        Box: median and quartiles; whiskers: the furthest values within 1.5 IQR; diamond: mean.

    Raises
    ------
    ResultsError
        If the variable, structure, group column or reference is not there.
    """
    values, labels = values_of(ds, variable, structure), group_labels(ds, by)
    names = group_names(labels, reference)
    kept = done_scans(ds) & ~excluded_scans(ds) & np.isfinite(values)
    crossed = done_scans(ds) & excluded_scans(ds) & np.isfinite(values)
    figure = Figure(figsize=(max(3.6, 1.5 + 1.2 * len(names)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for position, name in enumerate(names):
        colour = COLOURS[position % len(COLOURS)]
        _draw_box(axes, position, values[kept & (labels == name)], colour)
        left_out = _some(values[crossed & (labels == name)])
        axes.scatter(
            position + _jitter(len(left_out)), left_out, s=22, marker="x", color="#666666", linewidths=1, zorder=4
        )
    if comparisons is not None and len(comparisons):
        _draw_brackets(axes, comparisons, names, float(np.nanmax(values[kept | crossed], initial=-np.inf)))
    counts = [int((kept & (labels == name)).sum()) for name in names]
    _label(axes, [f"{name}\nn = {n}" for name, n in zip(names, counts, strict=True)], _title(ds, variable, structure))
    if crossed.any():
        figure.supxlabel("×  excluded as outlier, not in the box", fontsize=8, color="#666666")
    return figure


def _draw_box(axes: Axes, position: int, values: Float[ndarray, " n"], colour: str) -> None:
    if not len(values):
        return
    line = {"color": INK, "linewidth": 1.1}
    axes.boxplot(
        [values],
        positions=[position],
        widths=0.5,
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.25, "edgecolor": INK},
        medianprops={"color": INK, "linewidth": 1.8},
        meanprops={"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": INK},
        whiskerprops=line,
        capprops=line,
        zorder=3,
    )
    shown = _some(values)
    axes.scatter(position + _jitter(len(shown)), shown, s=9, color=colour, alpha=0.55, linewidths=0, zorder=2)


def _some(values: Float[ndarray, " n"]) -> Float[ndarray, " m"]:
    if len(values) <= _MOST_POINTS:
        return values
    return np.random.default_rng(0).choice(values, _MOST_POINTS, replace=False)


def _jitter(n: int) -> Float[ndarray, " n"]:
    """Sideways shifts, the same each time that a figure is drawn."""
    return np.random.default_rng(n).uniform(-0.17, 0.17, n)


def _draw_brackets(axes: Axes, comparisons: pd.DataFrame, names: list[str], top: float) -> None:
    if not np.isfinite(top):
        return
    low, _ = axes.get_ylim()
    step = (top - low) * 0.11
    for left, right, level, p in _bracket_levels(comparisons, names):
        height = top + step * (0.5 + level)
        axes.plot([left, left, right, right], height - step * np.array([0.2, 0, 0, 0.2]), color=INK, linewidth=1)
        axes.text(
            (left + right) / 2, height + step * 0.06, _stars(p), ha="center", va="bottom", fontsize=8.5, color=INK
        )
        axes.set_ylim(top=height + step * 0.9)


def _bracket_levels(comparisons: pd.DataFrame, names: list[str]) -> list[tuple[float, float, int, float]]:
    """Place brackets so that none crosses another: left end, right end, level counted from below, p.

    >>> rows = [("b", "a", 0.01), ("c", "a", 0.2), ("c", "b", 0.9)]
    >>> table = pd.DataFrame(rows, columns=["group_a", "group_b", "p_recommended"])
    >>> [(left, right, level) for left, right, level, p in _bracket_levels(table, ["a", "b", "c"])]
    [(0.04, 0.96, 0), (1.04, 1.96, 0), (0.04, 1.96, 1)]
    """
    tested = comparisons[comparisons["p_recommended"].notna()]
    if len(tested) > _MOST_BRACKETS:
        tested = tested[(tested["group_a"] == names[0]) | (tested["group_b"] == names[0])]
    ends = [sorted((names.index(a), names.index(b))) for a, b in zip(tested["group_a"], tested["group_b"], strict=True)]
    spans = sorted(
        (right - left, left, right, p) for (left, right), p in zip(ends, tested["p_recommended"], strict=True)
    )
    placed: list[tuple[float, float, int, float]] = []
    for _, left, right, p in spans:
        # A small gap at the ends lets two brackets that share a group stand side by side.
        start, end = left + 0.04, right - 0.04
        above = [level for other_start, other_end, level, _ in placed if start < other_end and other_start < end]
        placed.append((start, end, max(above, default=-1) + 1, float(p)))
    return placed


def _stars(p: float) -> str:
    """Significance as journals print it.

    >>> _stars(0.0133), _stars(0.7), _stars(1e-5)
    ('* p = 0.013', 'n.s. p = 0.70', '*** p < 0.001')
    """
    mark = next((mark for level, mark in _STARS if p < level), "n.s.")
    return f"{mark} {format_p(p)}"


def format_p(p: float) -> str:
    """A p-value with the digits that matter.

    >>> format_p(0.0017), format_p(0.0133), format_p(0.7), format_p(float("nan"))
    ('p = 0.0017', 'p = 0.013', 'p = 0.70', '')
    """
    if not np.isfinite(p):
        return ""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.4f}" if p < 0.01 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _title(ds: xr.Dataset, variable: str, structure: str | None) -> str:
    words = variable.removesuffix("_mm3").replace("_", " ").replace("normalized volume", "ICV-normalized volume")
    units = ds[variable].attrs.get("units", "").replace("mm3", "mm³")
    name = f"{title_of(structure)}: {words}" if structure else words
    return f"{name} ({units})" if units else name


def _label(axes: Axes, ticks: list[str], title: str) -> None:
    axes.set_xticks(range(len(ticks)), ticks, fontsize=9)
    axes.set_xlim(-0.6, max(len(ticks), 1) - 0.4)
    axes.set_ylabel(title[:1].upper() + title[1:], fontsize=9)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
