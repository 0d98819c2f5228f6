"""A second label protocol for the hypothalamus, made from segmentations in the first.

Volumes depend on who drew the border. The networks learn the labels of the published subunit network. The authors of
the paper that hypodask implements (Kassubek et al., Scientific Reports 2025) include more: the fornix where it passes
through, the wall of the third ventricle up to its fluid, the tissue up to the hypothalamic sulcus, and what joins both
sides under the ventricle's floor. :func:`seed_posteriors` adds these to the first segmentation by rules, from the
posteriors and the image alone. No manual segmentation of the authors was used.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32
from numpy import ndarray
from scipy import ndimage
from scipy.special import expit

from hypodask.alignment.pose import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.grid import Grid
from hypodask.core.structures import HYPOTHALAMUS_SEED, MAIN
from hypodask.image.intensity import FLUID_LEVEL, FLUID_WIDTH, box_bright
from hypodask.image.resampling import resample
from hypodask.scan.scan import Scan
from hypodask.segmentation.network import UNMEASURED, Elsewhere, Network, VolumeError, part_of
from hypodask.segmentation.segmentation import Segmentation

SEED_MODEL = f"{MAIN.name}-{HYPOTHALAMUS_SEED.protocol}"
"""Name of the network that segments the hypothalamus in protocol ``seed``."""

# The lengths below were chosen by eye on coronal slices of ten heads, so that the fornix is in and the ventricle, the
# anterior commissure and the optic tract are out; they were not compared with manual segmentations.

_FORNIX_MM = 1.5
"""Half the width of the widest hole or notch that is filled; the fornix is 2-3 mm thick."""

_DORSAL_MM = 3.5
"""Farthest reach above the first segmentation; the authors' own segmentations reach 1.5-4 mm above it."""

_WALL_MM = 3.0
"""Farthest reach towards the midline, through tissue only: to the wall, and under the floor from both sides."""

_SULCUS_YZ_MM = ((-13.0, -4.5), (-11.0, -3.0), (-8.0, -1.0), (-6.0, 0.0), (-3.0, 0.0), (-1.5, -2.5))
"""Points (y, z) of a line in AC-PC space above which no tissue is added. It lies in the plane of the commissures, near
which the hypothalamic sulcus is. It is lower at the back, where the sulcus descends to the aqueduct, and at the front,
under the AC."""

_ACROSS_MM = 1.0
"""What is added to a side may cross the midsagittal plane by so much: third ventricles are not quite straight."""

_SLIT_MM, _MIDLINE_MM = 3.5, 2.0
"""A dark valley narrower than the first, within the second of the midsagittal plane, is a third ventricle that partial
volumes make look like tissue; its depth is subtracted from the image once more."""

_EDGE_MM = 0.25
"""Softness of limits in space: about that of a posterior's border on a grid of 0.5 mm."""

_SHARE_MM, _SHARE_WEIGHT, _SHARE_POWER = 2.0, 0.05, 8
"""Added tissue goes to the side whose posterior, blurred by so much, is higher there. The small weight of the blurred
posteriors leaves the first segmentation to its sides; the power keeps the border between the sides under the floor
narrow."""

_Step = tuple[int, int]
"""A move by whole voxels in a coronal slice, along x and z."""

_MEDIALLY, _UP, _UP_MEDIALLY = (1, 0), (0, 1), (1, 1)
"""Moves on the left side, where the midline is at higher x. The right side is processed as its mirror image."""


@dataclass(frozen=True, eq=False)
class _Room:
    """Where one side may grow, 0 to 1, on an array whose x points to the midline."""

    tissue: Float[ndarray, "x y z"]
    """Not fluid."""
    open: Float[ndarray, "x y z"]
    """Not fluid, below the sulcus and on this side of the midline."""

    def mirrored(self) -> "_Room":
        """The same with x reversed."""
        return _Room(self.tissue[::-1], self.open[::-1])


def seed_posteriors(
    left: Float[ndarray, "x y z"], right: Float[ndarray, "x y z"], image: Float[ndarray, "x y z"], grid: Grid
) -> Float32[ndarray, "channel x y z"]:
    """Posteriors of background, left and right in protocol ``seed``.

    The whole contains the first segmentation and grows with it, voxel by voxel. Each step is a maximum, a minimum or a
    smooth function of image and posteriors, so that a small change of these changes the result a little.

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
    >>> from hypodask.core.grid import box_grid
    >>> grid = box_grid((24, 8, 24), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
    >>> left = np.zeros(grid.shape)
    >>> left[4:10, :, 8:14] = 1.0  # its medial border lies 1 mm from the midline
    >>> seed = seed_posteriors(left, left[::-1], np.full(grid.shape, 0.7), grid)
    >>> bool((seed[1] >= 0.9 * left).all()), bool(seed[1, 11, 4, 10] > 0.8)  # and all is tissue up to it
    (True, True)
    """
    whole, share = _whole(left, right, _rooms(image, grid), grid), _left_share(left, right, grid)
    return np.stack([1 - whole, whole * share, whole * (1 - share)]).astype(np.float32)


def _whole(
    left: Float[ndarray, "x y z"], right: Float[ndarray, "x y z"], rooms: tuple[_Room, _Room], grid: Grid
) -> Float[ndarray, "x y z"]:
    """Posterior of both sides together in protocol ``seed``."""
    of_left, of_right = rooms
    return np.maximum(_extended(left, of_left, grid), _extended(right[::-1], of_right.mirrored(), grid)[::-1])


def _rooms(image: Float[ndarray, "x y z"], grid: Grid) -> tuple[_Room, _Room]:
    """Where the left and the right side may grow."""
    linear = grid.space_from_vox[:3, :3]
    if grid.space != "acpc" or not np.allclose(linear, np.diag(grid.spacing_mm), atol=1e-6):
        raise ModelError(
            f"protocol {HYPOTHALAMUS_SEED.protocol!r} needs a grid in AC-PC space with axes along x, y and z, got one "
            f"in {grid.space!r} space with steps {linear.tolist()}; use a network of hypodask, which has such a grid"
        )
    x, y, z = _axes_mm(grid)
    tissue = expit((_opened_slit(image, grid) - FLUID_LEVEL) / FLUID_WIDTH).astype(np.float32)
    sulcus = np.interp(y, *np.transpose(_SULCUS_YZ_MM))[:, None]
    below = np.minimum(tissue, expit((sulcus - z) / _EDGE_MM))
    of_left, of_right = (
        np.minimum(below, expit((_ACROSS_MM + side * x) / _EDGE_MM)[:, None, None]).astype(np.float32)
        for side in (-1, 1)
    )
    return _Room(tissue, of_left), _Room(tissue, of_right)


def _opened_slit(image: Float[ndarray, "x y z"], grid: Grid) -> Float[ndarray, "x y z"]:
    """An image whose third ventricle is dark also where it is narrower than a scan's voxels.

    The depth of a valley across x at the midline is subtracted once more, less the height of a ridge across z. The
    floor of the ventricle is both a valley and a ridge, and stays.
    """
    # Windows of an odd number of voxels, so that they have a middle.
    across_x, _, across_z = (2 * round((_SLIT_MM / spacing - 1) / 2) + 1 for spacing in grid.spacing_mm)
    valley = ndimage.grey_closing(image, size=(across_x, 1, 1)) - image
    ridge = image - ndimage.grey_opening(image, size=(1, 1, across_z))
    at_midline = expit((_MIDLINE_MM - np.abs(_axes_mm(grid)[0])) / _EDGE_MM)[:, None, None]
    return image - at_midline * np.maximum(valley - ridge, 0)


def _extended(side: Float[ndarray, "x y z"], room: _Room, grid: Grid) -> Float[ndarray, "x y z"]:
    """One side with its fornix, its dorsal strip and its wall; the midline lies at higher x."""
    across, _, along = grid.spacing_mm
    closed = ndimage.grey_closing(side, footprint=_disc(_FORNIX_MM, grid))
    filled = np.maximum(side, np.minimum(room.tissue, closed))
    # Every other step up also leads inwards, so that the strip gets narrower upwards as the segmentation does.
    upwards = islice(cycle([_UP, _UP_MEDIALLY]), round(_DORSAL_MM / along))
    return _grown(_grown(filled, room.open, upwards), room.open, [_MEDIALLY] * round(_WALL_MM / across))


def _grown(
    seed: Float[ndarray, "x y z"], within: Float[ndarray, "x y z"], steps: Iterable[_Step]
) -> Float[ndarray, "x y z"]:
    """Geodesic dilation: the shape grows by one step after the other, through voxels that are open to it.

    A voxel gets the value of the least open voxel on the way to it.

    >>> _grown(np.array([1.0, 0, 0, 0]).reshape(4, 1, 1), np.array([1, 1, 0.2, 1.0]).reshape(4, 1, 1),
    ...        [(1, 0)] * 3).ravel().tolist()
    [1.0, 1.0, 0.2, 0.2]
    """
    for x, z in steps:
        moved = np.zeros_like(seed)
        moved[x:, :, z:] = seed[: seed.shape[0] - x, :, : seed.shape[2] - z]
        seed = np.maximum(seed, np.minimum(within, moved))
    return seed


def _disc(radius_mm: float, grid: Grid) -> Bool[ndarray, "x 1 z"]:
    """A disc in a coronal slice."""
    x, z = (np.arange(-reach, reach + 1) * s for s in grid.spacing_mm[::2] for reach in [int(radius_mm / s)])
    return ((x[:, None] ** 2 + z**2) <= radius_mm**2 + 1e-6)[:, None, :]


def _left_share(left: Float[ndarray, "x y z"], right: Float[ndarray, "x y z"], grid: Grid) -> Float[ndarray, "x y z"]:
    """How much of what is found in a voxel belongs to the left side; one half where both are equally near."""
    sigma = _SHARE_MM / np.array(grid.spacing_mm)
    near_left, near_right = (
        (side + _SHARE_WEIGHT * ndimage.gaussian_filter(np.asarray(side, float), sigma) + 1e-6) ** _SHARE_POWER
        for side in (left, right)
    )
    return near_left / (near_left + near_right)


def _axes_mm(grid: Grid) -> list[Float[ndarray, "_"]]:
    """Coordinates of the voxels along x, y and z."""
    starts = grid.space_from_vox[:3, 3]
    return [start + s * np.arange(n) for start, s, n in zip(starts, grid.spacing_mm, grid.shape, strict=True)]


def in_seed_protocol(found: Segmentation, image: Float[ndarray, "x y z"]) -> Segmentation:
    """A segmentation by sides or subunits, in protocol ``seed``.

    Parameters
    ----------
    found
        In protocol ``billot2020-consensus``.
    image
        On the same grid, in units of white matter.
    """
    left, right = found.side_posterior("left"), found.side_posterior("right")
    posteriors = seed_posteriors(left, right, image, found.grid)
    members = None if found.member_wholes is None else _members(found.member_wholes, left, right, image, found.grid)
    return Segmentation(posteriors, found.grid, HYPOTHALAMUS_SEED, members)


def _members(
    wholes: Float16[ndarray, "member x y z"],
    left: Float[ndarray, "x y z"],
    right: Float[ndarray, "x y z"],
    image: Float[ndarray, "x y z"],
    grid: Grid,
) -> Float16[ndarray, "member x y z"]:
    """The whole of each member in protocol ``seed``, split into sides as the mean of all members is."""
    rooms, share = _rooms(image, grid), left / np.maximum(left + right, 1e-6)
    members = wholes.astype(np.float32)
    return np.stack([_whole(m * share, m * (1 - share), rooms, grid) for m in members]).astype(np.float16)


@dataclass(frozen=True, eq=False)
class SeedNetwork:
    """A hypothalamus network that segments in protocol ``seed``."""

    base: Network
    """The network whose segmentations are extended."""
    task: str = MAIN.name
    protocol: str = HYPOTHALAMUS_SEED.protocol
    volume_error: VolumeError = UNMEASURED
    """Not measured: that needs manual segmentations in this protocol."""

    @property
    def name(self) -> str:
        """``hypothalamus-seed`` and the weights of the network that is extended."""
        return f"{SEED_MODEL}:{self.base.name.rpartition(':')[2]}"

    def on(self, elsewhere: Elsewhere) -> "SeedNetwork":
        """The same network, whose base runs elsewhere; the rules of the protocol run where the scan is."""
        return replace(self, base=self.base.on(part_of(elsewhere, "base")))

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan."""
        found = self.base.segment(scan, alignment)
        image = resample(scan.data, scan.grid, found.grid, onto_from_grid=alignment.acpc_from_scanner, order=3)
        # The lengths of the protocol's rules are those of a head of average size.
        average = found.grid.moved(np.diag([1 / alignment.head_size] * 3 + [1.0]), "acpc")
        return replace(in_seed_protocol(replace(found, grid=average), box_bright(image)), grid=found.grid)
