"""A second label protocol for the hypothalamus, drawn from the outlines of the first.

Volumes depend on who drew the border. The networks learn the outlines of the published subunit network; the authors of
the paper that hypodask implements (Kassubek et al., Scientific Reports 2025) draw more: the fornix where it passes
through, the wall of the third ventricle up to its fluid, the tissue up to the hypothalamic sulcus, and what joins both
sides under the ventricle's floor. ``seed_outline`` adds these to the first outlines by rules, from the posteriors and
the image alone. No outline of the authors took part.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from scipy import ndimage
from scipy.special import expit

from hypodask.alignment.pose import Alignment
from hypodask.errors import ModelError
from hypodask.grid import Grid
from hypodask.intensity import box_bright
from hypodask.labels import HYPOTHALAMUS_SEED
from hypodask.network.weights import Task
from hypodask.resample import resample
from hypodask.scan import Scan
from hypodask.segmentation.growth import FLUID_LEVEL, FLUID_WIDTH
from hypodask.segmentation.segmentation import Segmentation

if TYPE_CHECKING:
    from hypodask.segmentation.predict import Network

SEED_MODEL = "hypothalamus-seed"
"""Name under which the shipped hypothalamus network answers in protocol ``seed``."""

# The lengths below were chosen by eye on coronal slices of ten heads, so that the fornix is in and the ventricle, the
# anterior commissure and the optic tract are out; nobody measured them against outlines by hand.

FORNIX_MM = 1.5
"""Half the width of the widest hole or notch that is filled; the fornix is 2-3 mm thick."""

DORSAL_MM = 3.5
"""Furthest reach above the first outline; the authors' own outlines reach 1.5-4 mm above it."""

WALL_MM = 3.0
"""Furthest reach towards the midline, through tissue only: to the wall, and under the floor from both sides."""

SULCUS_YZ_MM = ((-13.0, -4.5), (-11.0, -3.0), (-8.0, -1.0), (-6.0, 0.0), (-3.0, 0.0), (-1.5, -2.5))
"""Highest added tissue by distance from the AC, in AC-PC space: the plane of the commissures, about which the
hypothalamic sulcus lies; lower behind, where the sulcus descends to the aqueduct, and in front, under the AC."""

ACROSS_MM = 1.0
"""What is added to a side ends this far beyond the midsagittal plane: third ventricles are not quite straight."""

SLIT_MM, MIDLINE_MM = 3.5, 2.0
"""A dark valley narrower than the first, within the second of the midsagittal plane, is a third ventricle that partial
volumes make look like tissue; its depth is taken off the image once more."""

EDGE_MM = 0.25
"""Softness of limits in space: about that of a posterior's border on a grid of 0.5 mm."""

SHARE_MM, SHARE_WEIGHT, SHARE_POWER = 2.0, 0.05, 8
"""Added tissue goes to the side whose outline, blurred by so much, is stronger there. The weight leaves the first
outlines to their sides; the power keeps the border between the sides under the floor narrow."""

Step = tuple[int, int]
"""A move by whole voxels in a coronal slice, along x and z."""

MEDIALLY, UP, UP_MEDIALLY = (1, 0), (0, 1), (1, 1)
"""Moves on the left side, where the midline is at higher x. The right side is treated as its mirror image."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Where one side may grow, 0 to 1, on an array whose x points to the midline."""

    tissue: Float[ndarray, "x y z"]
    """Not fluid."""
    open: Float[ndarray, "x y z"]
    """Not fluid, below the sulcus and on this side of the midline."""

    def mirrored(self) -> "Surroundings":
        """The same with x reversed."""
        return Surroundings(self.tissue[::-1], self.open[::-1])


def seed_outline(
    left: Float[ndarray, "x y z"], right: Float[ndarray, "x y z"], image: Float[ndarray, "x y z"], grid: Grid
) -> Float32[ndarray, "channel x y z"]:
    """Posteriors of background, left and right in protocol ``seed``.

    The whole contains the first outlines and grows with them, voxel by voxel. Each step is a maximum, a minimum or a
    smooth function of image and posteriors, so that nothing jumps where they change a little.

    Parameters
    ----------
    left, right
        Posteriors of the two sides in protocol ``billot2020-consensus``.
    image
        In units of white matter.
    grid
        Of all three: in AC-PC space, its axes along x, y and z.

    Raises
    ------
    ModelError
        If the grid is another.

    Examples
    --------
    >>> from hypodask.grid import box_grid
    >>> grid = box_grid((24, 8, 24), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
    >>> left = np.zeros(grid.shape)
    >>> left[4:10, :, 8:14] = 1.0  # its medial border lies 1 mm from the midline
    >>> seed = seed_outline(left, left[::-1], np.full(grid.shape, 0.7), grid)
    >>> bool((seed[1] >= 0.9 * left).all()), bool(seed[1, 11, 4, 10] > 0.8)  # and all is tissue up to it
    (True, True)
    """
    whole, share = seed_whole(left, right, surroundings(image, grid), grid), left_share(left, right, grid)
    return np.stack([1 - whole, whole * share, whole * (1 - share)]).astype(np.float32)


def seed_whole(
    left: Float[ndarray, "x y z"], right: Float[ndarray, "x y z"], around: tuple[Surroundings, Surroundings], grid: Grid
) -> Float[ndarray, "x y z"]:
    """Posterior of both sides together in protocol ``seed``."""
    of_left, of_right = around
    return np.maximum(extended(left, of_left, grid), extended(right[::-1], of_right.mirrored(), grid)[::-1])


def _check(grid: Grid) -> None:
    linear = grid.space_from_vox[:3, :3]
    if grid.space != "acpc" or not np.allclose(linear, np.diag(grid.spacing_mm), atol=1e-6):
        raise ModelError(
            f"protocol {HYPOTHALAMUS_SEED.protocol!r} is drawn on grids in AC-PC space with axes along x, y and z, got "
            f"one in {grid.space!r} space with steps {linear.tolist()}; use a network of ours, which has such a grid"
        )


def surroundings(image: Float[ndarray, "x y z"], grid: Grid) -> tuple[Surroundings, Surroundings]:
    """Where the left and the right side may grow."""
    _check(grid)
    x, y, z = _axes_mm(grid)
    tissue = expit((opened_slit(image, grid) - FLUID_LEVEL) / FLUID_WIDTH).astype(np.float32)
    sulcus = np.interp(y, *np.transpose(SULCUS_YZ_MM))[:, None]
    below = np.minimum(tissue, expit((sulcus - z) / EDGE_MM))
    of_left, of_right = (
        np.minimum(below, expit((ACROSS_MM + side * x) / EDGE_MM)[:, None, None]).astype(np.float32) for side in (-1, 1)
    )
    return Surroundings(tissue, of_left), Surroundings(tissue, of_right)


def opened_slit(image: Float[ndarray, "x y z"], grid: Grid) -> Float[ndarray, "x y z"]:
    """An image whose third ventricle is dark also where it is narrower than a scan's voxels.

    The depth of a valley across x at the midline is taken off once more, less the height of a ridge across z: the floor
    of the ventricle is both, and stays.
    """
    across_x, _, across_z = (_odd(SLIT_MM / spacing) for spacing in grid.spacing_mm)
    valley = ndimage.grey_closing(image, size=(across_x, 1, 1)) - image
    ridge = image - ndimage.grey_opening(image, size=(1, 1, across_z))
    at_midline = expit((MIDLINE_MM - np.abs(_axes_mm(grid)[0])) / EDGE_MM)[:, None, None]
    return image - at_midline * np.maximum(valley - ridge, 0)


def extended(side: Float[ndarray, "x y z"], around: Surroundings, grid: Grid) -> Float[ndarray, "x y z"]:
    """One side with its fornix, its dorsal strip and its wall; the midline lies at higher x."""
    across, _, along = grid.spacing_mm
    closed = ndimage.grey_closing(side, footprint=disc(FORNIX_MM, grid))
    filled = np.maximum(side, np.minimum(around.tissue, closed))
    # Every other step up also leads inwards, so that the strip narrows as the outline does.
    upwards = islice(cycle([UP, UP_MEDIALLY]), round(DORSAL_MM / along))
    return spread(spread(filled, around.open, upwards), around.open, [MEDIALLY] * round(WALL_MM / across))


def spread(seed: Float[ndarray, "x y z"], within: Float[ndarray, "x y z"], steps: Iterable[Step]) -> ndarray:
    """Geodesic dilation: the shape grows by one step after the other, through voxels that are open to it.

    A voxel is reached as far as the least open one on the way to it.

    >>> spread(np.array([1.0, 0, 0, 0]).reshape(4, 1, 1), np.array([1, 1, 0.2, 1.0]).reshape(4, 1, 1),
    ...        [(1, 0)] * 3).ravel().tolist()
    [1.0, 1.0, 0.2, 0.2]
    """
    for step in steps:
        seed = np.maximum(seed, np.minimum(within, _moved(seed, step)))
    return seed


def _moved(volume: ndarray, step: Step) -> ndarray:
    """Every coronal slice moved by one step; zeros come in."""
    x, z = step
    moved = np.zeros_like(volume)
    moved[x:, :, z:] = volume[: volume.shape[0] - x, :, : volume.shape[2] - z]
    return moved


def disc(radius_mm: float, grid: Grid) -> Bool[ndarray, "x 1 z"]:
    """A disc in a coronal slice."""
    x, z = (np.arange(-reach, reach + 1) * s for s in grid.spacing_mm[::2] for reach in [int(radius_mm / s)])
    return ((x[:, None] ** 2 + z**2) <= radius_mm**2 + 1e-6)[:, None, :]


def left_share(left: ndarray, right: ndarray, grid: Grid) -> Float[ndarray, "x y z"]:
    """How much of what is found in a voxel belongs to the left side; one half where both are equally near."""
    sigma = SHARE_MM / np.array(grid.spacing_mm)
    near_left, near_right = (
        (side + SHARE_WEIGHT * ndimage.gaussian_filter(np.asarray(side, float), sigma) + 1e-6) ** SHARE_POWER
        for side in (left, right)
    )
    return near_left / (near_left + near_right)


def _axes_mm(grid: Grid) -> list[Float[ndarray, "n"]]:
    """Coordinates of the voxels along x, y and z."""
    starts = grid.space_from_vox[:3, 3]
    return [start + s * np.arange(n) for start, s, n in zip(starts, grid.spacing_mm, grid.shape, strict=True)]


def _odd(width: float) -> int:
    """The odd whole number next to a width: a window of so many voxels has a middle."""
    return 2 * round((width - 1) / 2) + 1


def in_seed_protocol(found: Segmentation, image: Float[ndarray, "x y z"]) -> Segmentation:
    """A segmentation by sides or subunits, in protocol ``seed``."""
    left, right = (side_of(found, side) for side in ("left", "right"))
    posteriors = seed_outline(left, right, image, found.grid)
    members = None if found.member_wholes is None else _members(found.member_wholes, left, right, image, found.grid)
    return Segmentation(posteriors, found.grid, HYPOTHALAMUS_SEED, members)


def _members(wholes: ndarray, left: ndarray, right: ndarray, image: ndarray, grid: Grid) -> ndarray:
    """The whole of each member in protocol ``seed``; its sides are those of all members together."""
    around, share = surroundings(image, grid), left / np.maximum(left + right, 1e-6)
    wholes = wholes.astype(np.float32)
    return np.stack([seed_whole(m * share, m * (1 - share), around, grid) for m in wholes]).astype(np.float16)


def side_of(found: Segmentation, hemisphere: str) -> Float[ndarray, "x y z"]:
    """Posterior of all labels of one side together."""
    channels = [1 + number for number, label in enumerate(found.labels) if label.hemisphere == hemisphere]
    return found.posteriors[channels].sum(axis=0)


@dataclass(frozen=True, eq=False)
class SeedNetwork:
    """A hypothalamus network that answers in protocol ``seed``."""

    first: "Network"
    """The network whose outlines are extended."""
    task: Task = "hypothalamus"
    protocol: str = HYPOTHALAMUS_SEED.protocol
    calibrated: bool = True
    relative_volume_sd: float | None = None
    """Nobody measured it: that takes outlines of this protocol by hand."""
    volume_heads: int | None = None
    part_volume_sd: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``hypothalamus-seed`` and the weights that are behind it."""
        return f"{SEED_MODEL}:{self.first.name.rpartition(':')[2]}"

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan."""
        found = self.first.segment(scan, alignment)
        image = resample(scan.data, scan.grid, found.grid, onto_from_grid=alignment.acpc_from_scanner, order=3)
        return in_seed_protocol(found, box_bright(image))
