"""From a scan and its pose to the posteriors of a network."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Protocol, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from hypodask.alignment.pose import Alignment
from hypodask.errors import ModelError
from hypodask.grid import Grid, transform_points
from hypodask.intensity import SCALINGS, intensity_window, windowed
from hypodask.labels import Hemisphere, Label, LabelTable
from hypodask.network.architectures import AnyNetwork
from hypodask.network.unet import predictor
from hypodask.network.volume_unet import VolumeUNet, volume_predictor
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
from hypodask.segmentation.border import BorderedNetwork
from hypodask.segmentation.keras_import import ImportedModel, import_hypothalamus_seg
from hypodask.segmentation.protocols import SEED_MODEL, SeedNetwork
from hypodask.segmentation.segmentation import Segmentation

IMPORT_BLOCK = 96
"""Voxels along each side that the published network is shown: the hypothalamus and, in any pose, its whole
receptive field, so that it answers as it would on the whole scan."""

IMPORT_PHASE = 4
"""The block starts at a multiple of this, so that pooling falls as it would on the whole scan."""

IMPORT_TOLERANCE = 0.05
"""Voxels this near to 1 mm are shown as they are; others are resampled, as in the published code."""

FINE_MM = 1.0
"""Grids finer than this are reached by cubic B-splines, coarser ones by a low-pass and trilinear."""

ICV_MODELS: tuple[Task, Task] = ("icv", "icv-border")
"""The network that outlines the cavity, and the one that looks at its border."""

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

    @property
    def volume_heads(self) -> int | None:
        """How many heads that was measured on; None where nobody said."""

    @property
    def part_volume_sd(self) -> Mapping[str, float]:
        """The same standard deviation for sides and subunits, by structure, where measured."""

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan."""


@dataclass(frozen=True, eq=False)
class ShippedNetwork:
    """A U-Net of ours with its model card, or several that answer together.

    Probabilities of the members are averaged, so that a mean posterior is still a probability.
    """

    members: tuple[AnyNetwork, ...]
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

    @property
    def volume_heads(self) -> int | None:
        return self.card.volume_heads

    @property
    def part_volume_sd(self) -> Mapping[str, float]:
        return self.card.part_volume_sd

    @property
    def labels(self) -> LabelTable:
        """What the channels after background are.

        Raises
        ------
        ModelError
            If the network outlines nothing.
        """
        if self.card.labels is None:
            raise ModelError(f"{self.name} is a {self.task} network and outlines nothing; give one that does")
        return self.card.labels

    @cached_property
    def _predictors(self) -> tuple[Callable[[Array], Array], ...]:
        # One compiled program, called once for each member: as fast as a map over stacked weights, of which it would be
        # another copy.
        exchanged = tuple(mirrored_channels(self.labels))
        return tuple(_predictor(member, exchanged=exchanged) for member in self.members)

    @cached_property
    def _sketcher(self) -> Callable[[Array], Array]:
        return _predictor(self.members[0])

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan."""
        return self.outlined(self.image_of(scan, alignment))

    def image_of(self, scan: Scan, alignment: Alignment) -> Float[ndarray, "x y z"]:
        """What the network looks at: the scan resampled once onto the network's grid, and scaled."""
        grid = self.card.geometry.grid
        fine = max(grid.spacing_mm) < FINE_MM
        image = resample(scan.data, scan.grid, grid, onto_from_grid=alignment.acpc_from_scanner, order=3 if fine else 1)
        return SCALINGS[self.card.geometry.intensity](image)

    def outlined(self, image: Float[ndarray, "x y z"], *, sketch: bool = False) -> Segmentation:
        """Outlines in a scaled image on the network's grid.

        A ``sketch`` is by one member that does not see the mirror image: half of the cost, or less.
        """
        if sketch:
            posteriors = self._sketcher(neighbours(jnp.asarray(image), self.card.geometry))
            return Segmentation(_channels_first(posteriors), self.card.geometry.grid, self.labels)
        total, wholes = np.zeros((1 + len(self.labels), *image.shape), np.float32), []
        for of_member in self.member_posteriors(image):
            total += of_member
            wholes.append((1 - of_member[0]).astype(np.float16))
        member_wholes = np.stack(wholes) if len(wholes) > 1 else None
        return Segmentation(total / len(wholes), self.card.geometry.grid, self.labels, member_wholes)

    def posteriors(self, image: Float[ndarray, "x y z"]) -> Float[ndarray, "channel x y z"]:
        """Posteriors of a scaled image on the network's grid, averaged over it, its mirror image and all members."""
        return self.outlined(image).posteriors

    def member_posteriors(self, image: Float[ndarray, "x y z"]) -> Iterator[Float[ndarray, "channel x y z"]]:
        """Posteriors of one member after the other, averaged over the image and its mirror image."""
        slices = neighbours(jnp.asarray(image), self.card.geometry)
        for predict in self._predictors:
            yield _channels_first(predict(slices))


@dataclass(frozen=True, eq=False)
class ImportedNetwork:
    """The published subunit network, run as published: near 1 mm voxels, along the scan's own axes."""

    model: ImportedModel
    digest: str
    calibrated: bool = False
    task: Task = "hypothalamus"
    relative_volume_sd: float | None = None
    volume_heads: int | None = None
    part_volume_sd: Mapping[str, float] = field(default_factory=dict)

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
        image = windowed(resample(scan.data, scan.grid, grid), *intensity_window(scan.data))
        return Segmentation(self.model.posteriors(image), grid, self.model.labels, whole_first=False)


def load_network(name_or_path: str | PathLike[str]) -> Network:
    """Load a network by the name of a shipped one, or by the path of its weights.

    Loaded once per process: workers treat many scans with one copy. ``"hypothalamus-seed"`` is the shipped hypothalamus
    network, its outlines extended to the protocol ``seed``; ``"icv"`` is the shipped network for the cavity, its
    outline moved to the border that is seen. The path of weights gives the network alone.

    Raises
    ------
    ModelError
        If there is no such network, its file is damaged, or it outlines nothing.
    """
    if name_or_path == SEED_MODEL:
        return SeedNetwork(load_network("hypothalamus"))
    if name_or_path == "icv":
        first, border = (cast(ShippedNetwork, _loaded_from(resolve_model(name))) for name in ICV_MODELS)
        return BorderedNetwork(first, border)
    path = resolve_model(name_or_path, others=(SEED_MODEL,))
    network = _loaded_from(path)
    if isinstance(network, ShippedNetwork):
        mirrored_channels(network.labels)
        _check_geometry(path, network.card.geometry)
    return network


def _loaded_from(path: Path) -> ShippedNetwork | ImportedNetwork:
    return _loaded(path, sha256(path))


@lru_cache(maxsize=4)
def _loaded(path: Path, digest: str) -> ShippedNetwork | ImportedNetwork:
    if path.suffix.lower() in KERAS_SUFFIXES:
        return ImportedNetwork(import_hypothalamus_seg(path), digest)
    members, card = load_weights(path)
    return ShippedNetwork(members, card, digest)


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


def neighbours(image: Float[Array, "x y z"], geometry: InputGeometry) -> Float[Array, "y x z slice"]:
    """Each coronal slice with its neighbours as channels; beyond the ends the last slice is repeated."""
    reach = geometry.slice_step * (geometry.slices // 2)
    padded = jnp.pad(image, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    starts = [geometry.slice_step * number for number in range(geometry.slices)]
    slices = [padded[:, start : start + image.shape[1]] for start in starts]
    return jnp.moveaxis(jnp.stack(slices, -1), 1, 0)


def _predictor(member: AnyNetwork, *, exchanged: tuple[int, ...] | None = None) -> Callable[[Array], Array]:
    """From slices to posteriors, by slices; the mean of both sides of the mirror if ``exchanged`` is given."""
    if isinstance(member, VolumeUNet):
        return volume_predictor(member, exchanged=exchanged)
    return predictor(member, exchanged=exchanged)


def _channels_first(posteriors: Float[Array, "y x z class_"]) -> Float[ndarray, "class_ x y z"]:
    return np.asarray(jnp.moveaxis(posteriors, (3, 1, 0, 2), (0, 1, 2, 3)))


def mirrored_channels(table: LabelTable) -> list[int]:
    """For each channel, background first, the channel of the same structure on the other side.

    Raises
    ------
    ModelError
        If a label of one side has no counterpart on the other.
    """
    numbers = {(label.structure, label.hemisphere): number for number, label in enumerate(table, start=1)}
    pairs = {(label.structure, label.hemisphere): _counterpart(label) for label in table}
    if alone := [structure for (structure, _), other in pairs.items() if other not in numbers]:
        raise ModelError(
            f"a head cannot be mirrored where labels have no counterpart: {alone} of protocol {table.protocol!r}; name "
            "the two sides of a structure alike but for left and right, or give labels of both sides at once"
        )
    return [0, *(numbers[other] for other in pairs.values())]


def _counterpart(label: Label) -> tuple[str, Hemisphere]:
    """Name and hemisphere of the same structure on the other side."""
    if label.hemisphere == "left":
        return label.structure.replace("left", "right"), "right"
    if label.hemisphere == "right":
        return label.structure.replace("right", "left"), "left"
    return label.structure, "both"


def import_grid(grid: Grid, centre_mm: Float[ndarray, "3"]) -> Grid:
    """A block around a point, 1 mm or as near to it as stored, axes right, anterior, superior."""
    ras = closest_ras(grid)
    for axis, spacing in enumerate(ras.spacing_mm):
        if abs(spacing - 1) > IMPORT_TOLERANCE:
            ras = _respaced(ras, axis, 1 / spacing)
    middle = transform_points(np.linalg.inv(ras.space_from_vox), centre_mm)
    start = IMPORT_PHASE * np.round((middle - IMPORT_BLOCK / 2) / IMPORT_PHASE)
    return ras.block(start, (IMPORT_BLOCK,) * 3)


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
