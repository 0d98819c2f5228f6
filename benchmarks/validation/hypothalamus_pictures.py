"""Coronal slices of a head with the network's outline and that of the consensus, for the eye."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from benchmarks.validation.hypothalamus_heads import RealHead, known, whole_on
from hypodask.core.grid import Grid
from hypodask.image.agreement import dice

SLICES = 8

SHOWN_MM = {"x": (-19.0, 19.0), "z": (-22.0, 8.0)}
"""What is shown of each slice."""

OURS, CONSENSUS = "#ff5d5d", "#4dd0ff"


def run_pictures(real: RealHead, out: Path) -> Iterator[dict[str, object]]:
    """Draw one head, and say how well the outlines agree."""
    segmentation = real.network.segment(real.scan, known(real.pose))
    ours, truth = (whole_on(one, real.consensus.grid, real.pose) for one in (segmentation, real.consensus))
    overlap = dice(ours > 0.5, truth > 0.5)
    path = out / f"outlines_{real.folder}_{real.name}.png"
    draw(real.image, {OURS: ours, CONSENSUS: truth}, real.consensus.grid, f"{real.name}: Dice {overlap:.3f}").savefig(
        path, dpi=110
    )
    yield {"dice": round(overlap, 4), "picture": path.name}


def draw(image: ndarray, posteriors: dict[str, ndarray], grid: Grid, title: str) -> Figure:
    """A row of slices from front to back, each colour the outline of a posterior at one half."""
    figure = Figure(figsize=(3 * SLICES, 3.2), layout="constrained", facecolor="black")
    figure.suptitle(f"{title}; red: network, blue: consensus", color="white", fontsize=9)
    brightest = np.percentile(image, 99)
    for axes, row in zip(figure.subplots(1, SLICES), rows_through(sum(posteriors.values())), strict=True):
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"y {y_mm(grid, row):+.1f} mm", color="white", fontsize=7)
        axes.imshow(image[:, row].T, cmap="gray", origin="lower", extent=extent(grid), vmin=0, vmax=brightest)
        for colour, posterior in posteriors.items():
            _outline(axes, posterior[:, row], grid, colour)
        axes.set(xlim=SHOWN_MM["x"], ylim=SHOWN_MM["z"])
    return figure


def rows_through(posterior: ndarray) -> list[int]:
    """Slices spread evenly over those that the outlines touch, from front to back."""
    touched = np.flatnonzero((posterior > 0.5).any(axis=(0, 2)))
    return np.linspace(touched[-1], touched[0], SLICES).round().astype(int).tolist()


def y_mm(grid: Grid, row: int) -> float:
    """How far a coronal slice lies in front of the AC."""
    return float(grid.space_from_vox[1, 3] + row * grid.space_from_vox[1, 1])


def extent(grid: Grid) -> tuple[float, float, float, float]:
    """Outer edges of a coronal slice along x and z, mm."""
    low = grid.centre_mm - np.array(grid.extent_mm) / 2
    high = low + grid.extent_mm
    return low[0], high[0], low[2], high[2]


def _outline(axes: Axes, posterior: ndarray, grid: Grid, colour: str) -> None:
    if posterior.max() <= 0.5:
        return
    x, z = (grid.space_from_vox[axis, 3] + np.arange(grid.shape[axis]) * grid.spacing_mm[axis] for axis in (0, 2))
    axes.contour(x, z, posterior.T, levels=[0.5], colors=[colour], linewidths=0.9)
