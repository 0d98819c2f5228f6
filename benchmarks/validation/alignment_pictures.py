"""Contact sheets of aligned heads, for the eye."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy import ndarray

import hypodask
from benchmarks.validation.scoring import Task
from hypodask.core.errors import HypodaskError
from hypodask.core.grid import SLAB_CENTRE_MM, box_grid, slab_grid, transform_points
from hypodask.image.resampling import resample

SCANS_ON_A_SHEET = 6

REACH_MM = {"x": (-90, 90), "y": (-120, 100), "z": (-90, 100)}
"""What the pictures show of AC-PC space."""

PLANES = {"sagittal": ("y", "z"), "axial": ("x", "y"), "coronal": ("x", "z")}
"""Axes along a picture and up; each plane goes through the AC."""


def picture_tasks(names: list[str]) -> list[Task]:
    """One sheet after the other."""
    sheets = [names[first : first + SCANS_ON_A_SHEET] for first in range(0, len(names), SCANS_ON_A_SHEET)]
    return [Task("pictures", ";".join(sheet), number) for number, sheet in enumerate(sheets, start=1)]


def run_pictures(folder: Path, task: Task, out: Path) -> Iterator[dict[str, object]]:
    """Draw one sheet."""
    names = task.head.split(";")
    figure = Figure(figsize=(11, 3.2 * len(names)), layout="constrained", facecolor="black")
    axes = figure.subplots(len(names), 3, squeeze=False)
    for name, row in zip(names, axes, strict=True):
        _draw_scan(folder / name, name, row)
    path = out / f"pictures_{task.number:02}.png"
    figure.savefig(path, dpi=110)
    yield {"picture": path.name}


def _draw_scan(path: Path, name: str, row: ndarray) -> None:
    for axes in row:
        axes.set(facecolor="black", xticks=[], yticks=[])
    scan = hypodask.read_scan(path)
    try:
        alignment = hypodask.align(scan)
    except HypodaskError as err:
        row[0].set_title(f"{name}\n{str(err)[:90]}", color="red", fontsize=7)
        return
    pc = transform_points(alignment.acpc_from_scanner, alignment.pc_mm)
    flag = " ".join(alignment.warnings)[:70] if alignment.flagged else f"score {alignment.score:.2f}"
    title = f"{name}\nPC {-pc[1]:.1f} mm behind, {flag}"
    row[0].set_title(title, color="orange" if alignment.flagged else "white", fontsize=7)
    for axes, plane in zip(row, PLANES, strict=True):
        _draw_plane(axes, plane, resample_plane(scan, alignment.acpc_from_scanner, plane), pc)


def resample_plane(scan: hypodask.Scan, acpc_from_scanner: ndarray, plane: str) -> ndarray:
    """One plane through the AC, pixels of 0.75 mm, cubic."""
    shown = PLANES[plane]
    shape = tuple(int(np.ptp(REACH_MM[axis]) / 0.75) if axis in shown else 1 for axis in "xyz")
    centre = tuple(float(np.mean(REACH_MM[axis])) if axis in shown else 0.0 for axis in "xyz")
    grid = box_grid(shape, (0.75,) * 3, centre)
    return resample(scan.data, scan.grid, grid, onto_from_grid=acpc_from_scanner, order=3).squeeze()


def _draw_plane(axes: Axes, plane: str, image: ndarray, pc: ndarray) -> None:
    along, up = ("xyz".index(axis) for axis in PLANES[plane])
    extent = (*REACH_MM["xyz"[along]], *REACH_MM["xyz"[up]])
    axes.imshow(image.T, cmap="gray", origin="lower", extent=extent, vmin=0, vmax=np.percentile(image, 99.5))
    low = np.array(SLAB_CENTRE_MM) - np.array(slab_grid().extent_mm) / 2
    size = np.array(slab_grid().extent_mm)
    box = Rectangle((low[along], low[up]), size[along], size[up], fill=False, edgecolor="cyan", linewidth=0.6)
    axes.add_patch(box)
    if plane != "sagittal":
        axes.axvline(0, color="yellow", linewidth=0.4)
    if plane != "coronal":
        axes.axline((0, 0), (pc[along], pc[up]), color="yellow", linewidth=0.4)
        axes.plot(pc[along], pc[up], "+", color="red", markersize=5, markeredgewidth=0.6)
    axes.plot(0, 0, "+", color="lime", markersize=5, markeredgewidth=0.6)
    axes.set(xlim=extent[:2], ylim=extent[2:])
