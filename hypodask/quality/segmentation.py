"""Measures of segmentations: how certain, how similar, how symmetric, where, and what is cut off."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from hypodask.core.grid import Grid, transform_points

_NEAR_BOUNDARY_MM = 1.0
"""Posteriors this near to the boundary, on both sides, show how certain it is."""

_SMALLEST_POSTERIOR = 0.05
"""Smaller posteriors do not count for place and extent: there are so many of them that they would change both."""

_END_SHARE = 0.02
"""Share of the volume that lies beyond each end of a structure: single voxels that stick out are no end."""

_LARGEST_LOG_RATIO = 5.0
"""Logarithms of ratios of volumes are at most this: a side that is missing is no smaller than 1/150 of the other."""

_ROOM_MM = 15.0
"""A structure this far from the edge of the field of view is seen with everything that a network uses around it."""


@dataclass(frozen=True)
class Place:
    """Where a structure is in AC-PC space, and how far it extends along each axis."""

    centroid_mm: Float[ndarray, "3"]
    """Mean of the coordinates of its voxels."""
    sd_mm: Float[ndarray, "3"]
    """Their standard deviation."""


def place_of(posterior: Float[ndarray, "i j k"], acpc_from_vox: Float[ndarray, "4 4"]) -> Place:
    """Mean and standard deviation of the coordinates of a structure, weighted by its posterior.

    >>> ball = np.zeros((5, 5, 5))
    >>> ball[1:4, 2, 2] = 1.0
    >>> found = place_of(ball, np.eye(4))
    >>> found.centroid_mm.tolist(), found.sd_mm.round(2).tolist()
    ([2.0, 2.0, 2.0], [0.82, 0.0, 0.0])
    """
    voxels = np.argwhere(posterior > _SMALLEST_POSTERIOR)
    weights = posterior[tuple(voxels.T)]
    if not len(voxels):
        return Place(np.full(3, np.nan), np.full(3, np.nan))
    at = transform_points(acpc_from_vox, voxels)
    centroid = np.average(at, axis=0, weights=weights)
    return Place(centroid, np.sqrt(np.average((at - centroid) ** 2, axis=0, weights=weights)))


def ends_mm(posterior: Float[ndarray, "i j k"], acpc_from_vox: Float[ndarray, "4 4"]) -> Float[ndarray, "2 3"]:
    """Where a structure begins and ends along each axis; 2 % of its volume lie beyond each end.

    >>> rod = np.zeros((101, 1, 1))
    >>> rod[20:71] = 1.0
    >>> ends_mm(rod, np.eye(4))[:, 0].round().tolist()
    [20.0, 69.0]
    """
    voxels = np.argwhere(posterior > _SMALLEST_POSTERIOR)
    if not len(voxels):
        return np.full((2, 3), np.nan)
    weights, at = posterior[tuple(voxels.T)], transform_points(acpc_from_vox, voxels)
    order = np.argsort(at, axis=0)
    below = np.cumsum(weights[order], axis=0, dtype=np.float64) / weights.sum(dtype=np.float64)
    at = np.take_along_axis(at, order, axis=0)
    shares = (_END_SHARE, 1 - _END_SHARE)
    return np.array([np.interp(shares, below[:, axis], at[:, axis]) for axis in range(3)]).T


def boundary_entropy(posterior: Float[ndarray, "i j k"], spacing_mm: tuple[float, float, float]) -> float:
    """Mean entropy of the posteriors within 1 mm of the boundary, in bits: 0 where all are certain, 1 where none is.

    A sharp boundary that passes through voxels leaves some entropy; therefore it is compared with good-quality scans.
    """
    near = _near_boundary(posterior > 0.5, spacing_mm)
    p = np.clip(posterior[near].astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean()) if p.size else np.nan


def _near_boundary(mask: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]) -> Bool[ndarray, "i j k"]:
    """Voxels within 1 mm of the boundary of a mask along every axis, on both sides."""
    outer = inner = mask.view(np.uint8)
    for axis, spacing in enumerate(spacing_mm):
        width = 1 + 2 * max(1, int(_NEAR_BOUNDARY_MM / spacing))
        outer = ndimage.maximum_filter1d(outer, width, axis=axis)
        inner = ndimage.minimum_filter1d(inner, width, axis=axis)
    return outer > inner


def member_spread(members: Float[ndarray, "member i j k"] | None) -> float:
    """Relative standard deviation of the volume over the members of an ensemble; not-a-number without one.

    >>> round(member_spread(np.array([[[[1.0, 1.0]]], [[[1.0, 0.8]]]])), 3)
    0.075
    """
    if members is None or len(members) < 2:
        return np.nan
    volumes = members.sum(axis=(1, 2, 3), dtype=np.float64)
    return float(np.log(np.maximum(volumes, 1e-6)).std(ddof=1))


def member_overlap(members: Float[ndarray, "member i j k"] | None, posterior: Float[ndarray, "i j k"]) -> float:
    """Smallest Dice overlap between the mask of a member and that of the whole ensemble; not-a-number without one."""
    if members is None or len(members) < 2:
        return np.nan
    whole = posterior > 0.5
    return float(min(2 * (m & whole).sum() / max(m.sum() + whole.sum(), 1) for m in members > 0.5))


def log_ratio(a: float, b: float) -> float:
    """Logarithm of a ratio of two volumes, from -5 to 5; not-a-number where both are 0.

    >>> round(log_ratio(1.1, 1.0), 3), log_ratio(1.0, 0.0)
    (0.095, 5.0)
    """
    if not a + b > 0:
        return np.nan
    share = np.clip(a / (a + b), 1e-9, 1 - 1e-9)
    return float(np.clip(np.log(share / (1 - share)), -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))


def mirror_distance_mm(left: Place, right: Place) -> float:
    """Distance (mm) of the centroid of the right side from the mirror image of the left one's."""
    return float(np.linalg.norm(left.centroid_mm * (-1, 1, 1) - right.centroid_mm))


def indices_in_scan(
    mask: Bool[ndarray, "i j k"], grid: Grid, scan_grid: Grid, scanner_from_grid: Float[ndarray, "4 4"]
) -> Float[ndarray, "n 3"]:
    """Where the voxels of a mask on ``grid`` lie in the array of the scan, as fractional indices."""
    scan_from_grid = np.linalg.inv(scan_grid.space_from_vox) @ scanner_from_grid @ grid.space_from_vox
    return transform_points(scan_from_grid, np.argwhere(mask))


def margin_mm(indices: Float[ndarray, "n 3"], scan_grid: Grid) -> float:
    """Distance (mm) from the outermost of these points of a scan to the nearest edge of the field of view.

    At most :data:`_ROOM_MM`, since more does not matter. 0 where some points lie outside.
    """
    if not len(indices):
        return np.nan
    margins = np.minimum(indices.min(axis=0) + 0.5, np.array(scan_grid.shape) - 0.5 - indices.max(axis=0))
    return float(np.clip((margins * scan_grid.spacing_mm).min(), 0, _ROOM_MM))


def unseen_share(indices: Float[ndarray, "n 3"], data: Float[ndarray, "i j k"], dark: float) -> float:
    """Share of these points of a scan that lie outside the field of view, or where the image is as dark as air."""
    nearest = np.rint(indices).astype(int)
    inside = ((nearest >= 0) & (nearest < data.shape)).all(axis=1)
    bright = data[tuple(nearest[inside].T)] > dark
    return float(1 - bright.sum() / len(indices)) if len(indices) else np.nan
