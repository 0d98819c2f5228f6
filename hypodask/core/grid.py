"""A grid: how many voxels, and where they are in a named space.

There are four spaces: ``vox`` (array indices), ``scanner`` (the scan's RAS+ mm), ``acpc`` (RAS+ mm, origin at the
anterior commissure, +y from PC to AC, midsagittal plane x = 0) and ``mni``. An affine is named ``to_from`` so that
neighbours must match: ``acpc_from_vox = acpc_from_scanner @ scanner_from_vox``. The whole 4x4 is kept, never scale and
translation alone, so that the rotation of an oblique scan is never lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Real, Shaped
from numpy import ndarray

Space = Literal["scanner", "acpc", "mni"]

_SLAB_SHAPE = (512, 50, 512)
"""Voxels of the hypothalamic slab along x, y, z (Kassubek 2025: 50 coronal slices, matrix 512 x 512)."""

_SLAB_SPACING_MM = (0.125, 0.5, 0.125)
"""Voxel size of the slab along x, y, z in mm (Kassubek 2025)."""

SLAB_CENTRE_MM = (0.0, -5.5, 0.0)
"""Centre of the slab in AC-PC space, mm.

Along y the slab spans +7 to -18 mm. On 14 scans of the public scans that alignment was made with, the hypothalamus with
its mammillary bodies reaches from +2.2 to -13.8 mm, so that it lies inside with 4 mm to spare. The optic chiasm, whose
front lies at +6.2 to +9.4 mm, is not part of it and is cut: with 4 mm around the chiasm as well, 31 mm would be needed,
and the paper's slab has 25. Along z the slab is centred on the AC, which puts the hypothalamus 5-6 mm below the centre
of the field, as in the paper's own slabs.
"""

_HEAD_LOW_MM = (-88.0, -120.0, -80.0)
_HEAD_HIGH_MM = (88.0, 88.0, 96.0)
"""Edges of the head box in AC-PC space, mm: every adult intracranial volume with at least 8 mm around it."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a block of voxels.

    Raises
    ------
    ValueError
        If the affine is not a finite 4x4 whose last row is 0 0 0 1.

    Examples
    --------
    >>> Grid((4, 4, 4), np.diag([1.0, 1.0, 2.0, 1.0]), "scanner").spacing_mm
    (1.0, 1.0, 2.0)
    """

    shape: tuple[int, int, int]
    """Voxels along the three array axes."""
    space_from_vox: Float[ndarray, "4 4"]
    """Maps the index of a voxel to its centre in ``space``, mm."""
    space: Space
    """The space that ``space_from_vox`` maps to."""

    def __post_init__(self) -> None:
        matrix = np.array(self.space_from_vox, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or tuple(matrix[3]) != (0, 0, 0, 1):
            raise ValueError(f"a grid needs a finite 4x4 affine with last row 0 0 0 1, got {matrix!r}")
        matrix.setflags(write=False)
        object.__setattr__(self, "space_from_vox", matrix)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along the three array axes, mm."""
        i, j, k = np.linalg.norm(self.space_from_vox[:3, :3], axis=0).tolist()
        return (i, j, k)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, mm3."""
        return float(abs(np.linalg.det(self.space_from_vox[:3, :3])))

    @property
    def centre_mm(self) -> Float[ndarray, "3"]:
        """Centre of the block in ``space``, mm."""
        return transform_points(self.space_from_vox, (np.array(self.shape) - 1) / 2)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Field of view along the three array axes, from edge to edge, mm."""
        i, j, k = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return (i, j, k)

    def moved(self, to_from: Float[ndarray, "4 4"], space: Space) -> "Grid":
        """The same voxels in another space."""
        return Grid(self.shape, to_from @ self.space_from_vox, space)

    def block(self, first: Shaped[ndarray, "3"], shape: tuple[int, ...]) -> "Grid":
        """A block of the same voxels that starts at voxel ``first``; it may extend beyond this grid.

        >>> Grid((9, 9, 9), np.diag([2.0, 2.0, 2.0, 1.0]), "mni").block(np.array([1, 0, 3]), (4, 4, 4)).extent_mm
        (8.0, 8.0, 8.0)
        """
        space_from_vox = np.array(self.space_from_vox)
        space_from_vox[:3, 3] = transform_points(space_from_vox, first)
        i, j, k = shape
        return Grid((i, j, k), space_from_vox, self.space)


def transform_points(
    to_from: Float[ndarray, "4 4"], points: Real[ndarray, "*any 3"] | Sequence[float]
) -> Float[ndarray, "*any 3"]:
    """Carry points, or indices of voxels, through an affine; the last dimension holds x, y, z.

    >>> transform_points(np.diag([2.0, 2.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0])).tolist()
    [2.0, 0.0, 0.0]
    """
    return np.asarray(points) @ to_from[:3, :3].T + to_from[:3, 3]


def box_grid(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], centre_mm: tuple[float, float, float]
) -> Grid:
    """A block of voxels in AC-PC space, axes along x, y, z, centred at ``centre_mm``."""
    matrix = np.diag([*spacing_mm, 1.0])
    matrix[:3, 3] = np.array(centre_mm) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix, "acpc")


def slab_grid() -> Grid:
    """The hypothalamic slab of the paper: 512 x 50 x 512 voxels of 0.125 x 0.5 x 0.125 mm in AC-PC space.

    >>> slab_grid().extent_mm
    (64.0, 25.0, 64.0)
    """
    return box_grid(_SLAB_SHAPE, _SLAB_SPACING_MM, SLAB_CENTRE_MM)


def head_grid(spacing_mm: float) -> Grid:
    """The intracranial volume and its surroundings in AC-PC space, with cubic voxels of ``spacing_mm``.

    >>> head_grid(2.0).shape
    (88, 104, 88)
    """
    low, high = np.array(_HEAD_LOW_MM), np.array(_HEAD_HIGH_MM)
    i, j, k = np.round((high - low) / spacing_mm).astype(int).tolist()
    x, y, z = ((low + high) / 2).tolist()
    return box_grid((i, j, k), (spacing_mm,) * 3, (x, y, z))
