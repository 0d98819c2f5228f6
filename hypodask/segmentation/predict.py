"""From a scan and its pose to the posteriors of a network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from hypodask.alignment.pose import Alignment
from hypodask.errors import ModelError
from hypodask.grid import Grid, box_grid, transform_points
from hypodask.intensity import SCALINGS
from hypodask.labels import HYPOTHALAMUS_SIDES, ICV, LabelTable
from hypodask.network.unet import UNet, predictor
from hypodask.network.weights import (
    KERAS_SUFFIXES,
    InputGeometry,
    ModelCard,
    Task,
    load_weights,
    resolve_model,
    sha256,
)
from hypodask.resample import resample
from hypodask.scan import Scan
from hypodask.segmentation.keras_import import ImportedModel, import_hypothalamus_seg, intensity_window
from hypodask.segmentation.segmentation import Segmentation

TABLES: dict[Task, LabelTable] = {"hypothalamus": HYPOTHALAMUS_SIDES, "icv": ICV}
"""Labels of each task's channels after background."""

IMPORT_BLOCK = 96
"""Voxels along each side that the published network is shown: the hypothalamus and, in any pose, its whole
receptive field, so that it answers as it would on the whole scan."""

IMPORT_PHASE = 4
"""The block starts at a multiple of this, so that pooling falls as it would on the whole scan."""

IMPORT_TOLERANCE = 0.05
"""Voxels this near to 1 mm are shown as they are; others are resampled, as in the published code."""

FINE_MM = 1.0
"""Grids finer than this are reached by cubic B-splines, coarser ones by a low-pass and trilinear."""

HYPOTHALAMUS_CENTRE_MM = (0.0, -5.0, -6.0)
"""Middle of the hypothalamus in AC-PC space."""


class Network(Protocol):
    """A network that is ready to run on any scan."""

    @property
    def task(self) -> Task:
        """What it outlines."""

    @property
    def name(self) -> str:
        """Name and the first 12 hex digits of the sha256 of the weights."""

    @property
    def protocol(self) -> str:
        """Whose outlines it learnt."""

    @property
    def calibrated(self) -> bool:
        """Whether posteriors may be summed to a volume; otherwise labels are counted."""

    @property
    def relative_volume_sd(self) -> float | None:
        """Standard deviation of predicted over true volume on held-out heads; None where nobody measured it."""

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan."""


@dataclass(frozen=True, eq=False)
class ShippedNetwork:
    """A U-Net of ours with its model card."""

    model: UNet
    card: ModelCard
    digest: str
    calibrated: bool = True

    @property
    def task(self) -> Task:
        return self.card.task

    @property
    def name(self) -> str:
        return f"{self.card.name}:{self.digest[:12]}"

    @property
    def protocol(self) -> str:
        return self.card.protocol

    @property
    def relative_volume_sd(self) -> float | None:
        return self.card.relative_volume_sd

    @cached_property
    def _predict(self) -> Callable[[Array], Array]:
        return predictor(self.model)

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Resample once onto the network's grid, scale, and ask the network."""
        grid = input_grid(self.card.geometry)
        fine = max(grid.spacing_mm) < FINE_MM
        image = resample(scan.data, scan.grid, grid, onto_from_grid=alignment.acpc_from_scanner, order=3 if fine else 1)
        return Segmentation(self.posteriors(SCALINGS[self.card.geometry.intensity](image)), grid, TABLES[self.task])

    def posteriors(self, image: Float[ndarray, "x y z"]) -> Float[ndarray, "channel x y z"]:
        """Posteriors of a scaled image on the network's grid, averaged over it and its mirror image."""
        slices = neighbours(jnp.asarray(image), self.card.geometry)
        both = self._predict(slices) + mirrored(self._predict(slices[:, ::-1]), TABLES[self.task])
        return np.asarray(jnp.moveaxis(both / 2, (3, 1, 0, 2), (0, 1, 2, 3)))


@dataclass(frozen=True, eq=False)
class ImportedNetwork:
    """The published subunit network, run as published: near 1 mm voxels, along the scan's own axes."""

    model: ImportedModel
    digest: str
    calibrated: bool = False
    task: Task = "hypothalamus"
    relative_volume_sd: float | None = None

    @property
    def name(self) -> str:
        return f"hypothalamus_seg:{self.digest[:12]}"

    @property
    def protocol(self) -> str:
        return self.model.labels.protocol

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors in a block around the hypothalamus, in scanner space."""
        centre = transform_points(np.linalg.inv(alignment.acpc_from_scanner), np.array(HYPOTHALAMUS_CENTRE_MM))
        grid = import_grid(scan.grid, centre)
        image = _windowed(resample(scan.data, scan.grid, grid), *intensity_window(scan.data))
        return Segmentation(self.model.posteriors(image), grid, self.model.labels)


def _windowed(image: Float[ndarray, "i j k"], low: float, high: float) -> Float[ndarray, "i j k"]:
    """Intensities from ``low`` to ``high`` as 0 to 1; zeros where all tissue has one intensity."""
    return np.clip((image - low) / (high - low), 0, 1) if high > low else np.zeros_like(image)


def load_network(name_or_path: str | PathLike[str]) -> ShippedNetwork | ImportedNetwork:
    """Load a network by the name of a shipped one, or by the path of its weights.

    Loaded once per process: workers treat many scans with one copy.

    Raises
    ------
    ModelError
        If there is no such network or its file is damaged.
    """
    path = resolve_model(name_or_path)
    return _loaded(path, sha256(path))


@lru_cache(maxsize=4)
def _loaded(path: Path, digest: str) -> ShippedNetwork | ImportedNetwork:
    if path.suffix.lower() in KERAS_SUFFIXES:
        return ImportedNetwork(import_hypothalamus_seg(path), digest)
    model, card = load_weights(path)
    _check_geometry(path, card.geometry)
    return ShippedNetwork(model, card, digest)


def _check_geometry(path: Path, geometry: InputGeometry) -> None:
    if geometry.intensity not in SCALINGS:
        raise ModelError(
            f"{path} wants intensities scaled by {geometry.intensity!r}; known are {list(SCALINGS)}: update hypodask"
        )
    if geometry.slice_axis != 1 or geometry.centre_mm[0]:
        raise ModelError(
            f"{path} wants slices across axis {geometry.slice_axis} around x = {geometry.centre_mm[0]:g} mm; needed "
            "are coronal ones (axis 1) around the midline, where a head can be mirrored: train it on such"
        )


def input_grid(geometry: InputGeometry) -> Grid:
    """The grid that a network looks at, in AC-PC space."""
    return box_grid(geometry.shape, geometry.spacing_mm, geometry.centre_mm)


def neighbours(image: Float[Array, "x y z"], geometry: InputGeometry) -> Float[Array, "y x z slice"]:
    """Each coronal slice with its neighbours as channels; beyond the ends the last slice is repeated."""
    reach = geometry.slice_step * (geometry.slices // 2)
    padded = jnp.pad(image, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    slices = [padded[:, s : s + image.shape[1]] for s in range(0, 2 * reach + 1, geometry.slice_step)]
    return jnp.moveaxis(jnp.stack(slices, -1), 1, 0)


def mirrored(posteriors: Float[Array, "y x z class_"], table: LabelTable) -> Float[Array, "y x z class_"]:
    """Posteriors of the mirrored head, carried back: x reversed, left and right exchanged."""
    return posteriors[:, ::-1][..., jnp.array(mirrored_channels(table))]


def mirrored_channels(table: LabelTable) -> list[int]:
    """For each channel, background first, the channel of the same structure on the other side."""
    names = list(table.structures)
    swap = {"left": "right", "right": "left"}
    other = [
        n.replace(f"_{label.hemisphere}", f"_{swap[label.hemisphere]}") if label.hemisphere in swap else n
        for n, label in zip(names, table, strict=True)
    ]
    return [0, *(1 + names.index(n) for n in other)]


def import_grid(grid: Grid, centre_mm: Float[ndarray, "3"]) -> Grid:
    """A block around a point, 1 mm or as near to it as stored, axes right, anterior, superior."""
    ras = closest_ras(grid)
    for axis, spacing in enumerate(ras.spacing_mm):
        if abs(spacing - 1) > IMPORT_TOLERANCE:
            ras = _respaced(ras, axis, 1 / spacing)
    middle = transform_points(np.linalg.inv(ras.space_from_vox), centre_mm)
    start = IMPORT_PHASE * np.round((middle - IMPORT_BLOCK / 2) / IMPORT_PHASE)
    matrix = np.array(ras.space_from_vox)
    matrix[:3, 3] = transform_points(ras.space_from_vox, start)
    return Grid((IMPORT_BLOCK,) * 3, matrix, "scanner")


def closest_ras(grid: Grid) -> Grid:
    """The same voxels with their axes permuted and flipped to point right, anterior and superior."""
    cosines = grid.space_from_vox[:3, :3] / np.linalg.norm(grid.space_from_vox[:3, :3], axis=0)
    world, array = linear_sum_assignment(-np.abs(cosines))
    matrix = np.eye(4)
    matrix[:3, 3] = grid.space_from_vox[:3, 3]
    for to, axis in zip(world, array, strict=True):
        sign = np.sign(cosines[to, axis])
        matrix[:3, to] = sign * grid.space_from_vox[:3, axis]
        if sign < 0:
            matrix[:3, 3] += grid.space_from_vox[:3, axis] * (grid.shape[axis] - 1)
    i, j, k = (grid.shape[axis] for axis in array)
    return Grid((i, j, k), matrix, grid.space)


def _respaced(grid: Grid, axis: int, factor: float) -> Grid:
    """Voxels ``factor`` times as large along one axis, over the same field of view."""
    matrix = np.array(grid.space_from_vox)
    matrix[:3, 3] += matrix[:3, axis] * (factor - 1) / 2
    matrix[:3, axis] *= factor
    shape = list(grid.shape)
    shape[axis] = int(np.ceil(shape[axis] / factor))
    return Grid((shape[0], shape[1], shape[2]), matrix, grid.space)
