"""Coronal slices with the outlines of labels, and three planes through the head with the outline of the ICV mask.

Everything is drawn in millimetres of AC-PC space: the AC is at (0, 0), the midsagittal plane at x = 0. Reading and
resampling the arrays is done in :mod:`hypodask.report.pictures`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy import ndarray

from hypodask.core.structures import HEAD_SIZE, MAIN, LabelTable
from hypodask.report.figures import PLAIN_TEXT

Convention = Literal["radiological", "neurological"]
"""Radiological: the subject's right on the left of the picture. Neurological: on the right."""

PlaneName = Literal["axial", "coronal", "sagittal"]

_GUIDE = "#9fb3c8"

_HALO = [withStroke(linewidth=1.1, foreground="black")]
"""Black rim that keeps letters readable on white matter."""

Extent = tuple[float, float, float, float]
"""Outer edges of a picture: low and high horizontally, low and high vertically, mm."""


@dataclass(frozen=True, eq=False)
class Slices:
    """Coronal slices of one scan and the labels on them; the two may have different pixel sizes."""

    image: Shaped[ndarray, "n i k"]
    """Intensities, any unit."""
    label_map: UInt8[ndarray, "n i2 k2"]
    """Numbers of a label table, 0 for background."""
    y_mm: Float[ndarray, " n"]
    """Distance of each slice in front of the AC."""
    image_extent_mm: Extent
    """Edges of ``image`` along x and z."""
    label_extent_mm: Extent
    """Edges of ``label_map`` along x and z."""
    labels: LabelTable = MAIN.label_tables[0]
    """Names and colours of the numbers in the label map, as its store has them."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane through the head, and the ICV mask on it."""

    name: PlaneName
    at_mm: float
    """Where the plane cuts the third axis."""
    image: Shaped[ndarray, "h v"]
    """Intensities; the first axis is horizontal in the picture, the second vertical."""
    mask: UInt8[ndarray, "h v"]
    """1 inside the intracranial volume."""
    extent_mm: Extent


_CUTS = {"axial": ("x", "y", "z"), "coronal": ("x", "z", "y"), "sagittal": ("y", "z", "x")}
"""Horizontal, vertical and cut axis of each plane."""

_ENDS = {"x": ("L", "R"), "y": ("P", "A"), "z": ("I", "S")}
"""Letters at the low and high end of an axis, RAS+."""


@PLAIN_TEXT
def slice_figure(
    slices: Slices,
    labels: LabelTable | None = None,
    *,
    convention: Convention = "radiological",
    field_mm: float = 40.0,
    columns: int = 6,
    title: str = "",
) -> Figure:
    """Draw coronal slices with the outline of every label.

    Parameters
    ----------
    slices
        What to draw, in the order given.
    labels
        Names and colours of the numbers in the label map; by default those of ``slices``.
    convention
        On which side the subject's right is drawn. The picture says which.
    field_mm
        Width and height of the part that is shown, centred on the midline and on the labels.
    columns
        Slices in a row.
    title
        Line above the slices, such as the scan's name.
    """
    labels = labels or slices.labels
    rows = -(-len(slices.y_mm) // columns)
    figure = Figure(
        figsize=(1.75 * columns, 1.75 * rows + (0.5 if title else 0.25)), facecolor="black", layout=_close()
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    view = _view(slices, field_mm)
    window = _window(slices.image)
    for panel in panels:
        panel.set_axis_off()
    for panel, image, label_map, y in zip(panels, slices.image, slices.label_map, slices.y_mm, strict=False):
        _show(panel, image, slices.image_extent_mm, window)
        for label in labels:
            _outline(panel, label_map == label.index, slices.label_extent_mm, label.colour)
        # The midsagittal plane and the AC-PC plane; the AC is where they cross.
        for draw in (panel.axvline, panel.axhline):
            draw(0, color=_GUIDE, linewidth=0.5, alpha=0.6, linestyle=(0, (4, 4)))
        _set_view(panel, view, "x", convention)
        _write(panel, 0.04, 0.96, f"y = {y:+.1f} mm", va="top")
    _draw_ends(panels[0], "x", convention)
    panels[0].text(
        0.97,
        0,
        "AC–PC",
        transform=panels[0].get_yaxis_transform(),
        color=_GUIDE,
        fontsize=6.5,
        ha="right",
        va="bottom",
        path_effects=_HALO,
    )
    _draw_scale_bar(panels[0], view)
    _legend(figure, labels, convention, title)
    return figure


@PLAIN_TEXT
def plane_figure(
    planes: tuple[Plane, ...],
    *,
    convention: Convention = "radiological",
    labels: LabelTable = HEAD_SIZE.label_tables[0],
) -> Figure:
    """Draw planes through the whole head with the outline of the ICV mask.

    Parameters
    ----------
    planes
        Usually one axial, one coronal and one sagittal plane.
    convention
        On which side the subject's right is drawn; anterior is on the left of a sagittal plane.
    labels
        The table whose one label is drawn.
    """
    figure = Figure(figsize=(2.3 * len(planes), 2.95), facecolor="black", layout=_close())
    panels = figure.subplots(1, len(planes), squeeze=False).ravel()
    for panel, plane in zip(panels, planes, strict=True):
        horizontal, _, cut = _CUTS[plane.name]
        panel.set_axis_off()
        _show(panel, plane.image, plane.extent_mm, _window(plane.image))
        _outline(panel, plane.mask > 0, plane.extent_mm, next(iter(labels)).colour)
        _set_view(panel, plane.extent_mm, horizontal, convention)
        panel.set_title(f"{plane.name}, {cut} = {plane.at_mm:+.0f} mm", color="white", fontsize=7.5, pad=2)
        _draw_ends(panel, horizontal, convention)
    _legend(figure, labels, convention, "")
    return figure


def _close() -> ConstrainedLayoutEngine:
    """Panels side by side with hardly a gap."""
    return ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)


def _view(slices: Slices, field_mm: float) -> Extent:
    """A square around the labels, or below the AC where there are none."""
    low, high = slices.label_extent_mm[2:]
    occupied = np.flatnonzero(slices.label_map.any(axis=(0, 1)))
    z_mm = low + (high - low) * (occupied.mean() + 0.5) / slices.label_map.shape[2] if len(occupied) else -6.0
    half = field_mm / 2
    return (-half, half, float(z_mm) - half, float(z_mm) + half)


def _window(image: Shaped[ndarray, "..."]) -> tuple[float, float]:
    """Intensities shown as black and white: robust against a few bright vessels."""
    low, high = np.percentile(image, [1, 99.7]).tolist()
    return (low, high) if high > low else (low, low + 1)


def _show(panel: Axes, image: Shaped[ndarray, "h v"], extent: Extent, window: tuple[float, float]) -> None:
    panel.imshow(
        image.T,
        extent=extent,
        origin="lower",
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        interpolation="bicubic",
    )


def _outline(panel: Axes, mask: ndarray, extent: Extent, colour: str) -> None:
    """Draw the boundary of a mask into a panel; nothing if the mask is empty."""
    if not mask.any():
        return
    across = _centres(extent[0], extent[1], mask.shape[0] + 2, 1)
    up = _centres(extent[2], extent[3], mask.shape[1] + 2, 1)
    # A frame of background closes boundaries that touch the edge of the image.
    framed = np.pad(mask, 1).T.astype(np.float32)
    panel.contour(across, up, framed, levels=[0.5], colors=[colour], linewidths=1.1)


def _centres(low: float, high: float, n: int, frame: int) -> Float[ndarray, " n"]:
    """Pixel centres between two edges, continued by ``frame`` pixels on both sides."""
    pixel = (high - low) / (n - 2 * frame)
    return low + pixel * (np.arange(n) - frame + 0.5)


def _set_view(panel: Axes, view: Extent, horizontal: str, convention: Convention) -> None:
    low, high = view[:2]
    flipped = horizontal == "y" or convention == "radiological"
    panel.set_xlim((high, low) if flipped else (low, high))
    panel.set_ylim(view[2], view[3])
    panel.set_aspect("equal")


def _draw_ends(panel: Axes, horizontal: str, convention: Convention) -> None:
    low, high = _ENDS[horizontal]
    left, right = (high, low) if horizontal == "y" or convention == "radiological" else (low, high)
    _write(panel, 0.03, 0.5, left, va="center", weight="bold")
    _write(panel, 0.97, 0.5, right, va="center", ha="right", weight="bold")


def _write(panel: Axes, x: float, y: float, text: str, **options: Any) -> None:
    panel.text(x, y, text, transform=panel.transAxes, color="white", fontsize=7.5, path_effects=_HALO, **options)


def _draw_scale_bar(panel: Axes, view: Extent, length_mm: float = 10.0) -> None:
    left, right = panel.get_xlim()
    start = right + 0.06 * (left - right)
    end = start + np.sign(left - right) * length_mm
    height = view[2] + 0.06 * (view[3] - view[2])
    panel.plot([start, end], [height, height], color="white", linewidth=1.8, solid_capstyle="butt")
    panel.text(
        (start + end) / 2,
        height + 0.8,
        f"{length_mm:g} mm",
        color="white",
        fontsize=7,
        ha="center",
        va="bottom",
        path_effects=_HALO,
    )


def _legend(figure: Figure, labels: LabelTable, convention: Convention, title: str) -> None:
    keys = []
    for label in labels:
        name = label.abbreviation if label.structure == labels.whole else label.structure.replace("_", " ")
        keys.append(Line2D([], [], color=label.colour, linewidth=1.6, label=name))
    figure.legend(
        handles=keys,
        loc="outside lower left",
        ncols=min(len(keys), 5),
        fontsize=7.5,
        frameon=False,
        labelcolor="white",
    )
    side = "left" if convention == "radiological" else "right"
    said = f"{convention} view: subject's right on the {side}"
    figure.text(0.995, 0.01, said, ha="right", va="bottom", fontsize=7.5, color="#bbbbbb")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="white")
