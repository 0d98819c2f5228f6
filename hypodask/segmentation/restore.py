"""Label maps where people want them: on the paper's slab, and in the scan's own space."""

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from hypodask.grid import SLAB_CENTRE_MM, Grid, box_grid, slab_grid, transform_points
from hypodask.resample import SHAPE_CLASS, resample
from hypodask.segmentation.segmentation import Segmentation

COARSE_TIMES = 4
"""The slab's in-plane voxels go four times into the 0.5 mm at which networks see it."""


def label_map_on(
    segmentation: Segmentation, grid: Grid, grid_from_segmentation: Float[ndarray, "4 4"]
) -> UInt8[ndarray, "i j k"]:
    """The most probable label at each voxel of another grid; posteriors are interpolated, never labels."""
    label_map = np.zeros(grid.shape, np.uint8)
    found = np.argwhere(segmentation.posteriors[0] < 0.5)
    if not len(found):
        return label_map
    vox_from_seg = np.linalg.inv(grid.space_from_vox) @ grid_from_segmentation @ segmentation.grid.space_from_vox
    reached = transform_points(vox_from_seg, found)
    low = np.clip(np.floor(reached.min(0)) - 1, 0, grid.shape).astype(int)
    high = np.clip(np.ceil(reached.max(0)) + 2, 0, grid.shape).astype(int)
    if (high <= low).any():
        return label_map
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    label_map[part] = _most_probable(segmentation, _block(grid, low, high), grid_from_segmentation)[
        tuple(slice(0, n) for n in high - low)
    ]
    return label_map


def slab_label_map(segmentation: Segmentation, acpc_from_segmentation: Float[ndarray, "4 4"]) -> UInt8[ndarray, "x y z"]:
    """The label map on the 512 x 50 x 512 slab of the paper.

    Posteriors are brought to the slab at 0.5 mm, then interpolated linearly to its in-plane 0.125 mm.
    """
    slab = slab_grid()
    i, j, k = slab.shape
    coarse = box_grid((i // COARSE_TIMES, j, k // COARSE_TIMES), (0.5, 0.5, 0.5), SLAB_CENTRE_MM)
    posteriors = _posteriors_on(segmentation, coarse, acpc_from_segmentation)
    finer = _finer(i // COARSE_TIMES)
    fine = np.stack([np.einsum("xi,ijk,zk->xjz", finer, channel, finer, optimize=True) for channel in posteriors])
    return _numbers(segmentation)[fine.argmax(axis=0)]


def _finer(size: int) -> Float[ndarray, "fine coarse"]:
    """Linear interpolation along one axis, voxel edges kept, as a matrix."""
    places = (np.arange(size * COARSE_TIMES) + 0.5) / COARSE_TIMES - 0.5
    return np.clip(1 - np.abs(places[:, None] - np.arange(size)), 0, 1).astype(np.float32)


def _most_probable(segmentation: Segmentation, grid: Grid, to_from: ndarray) -> ndarray:
    return _numbers(segmentation)[_posteriors_on(segmentation, grid, to_from).argmax(axis=0)]


def _posteriors_on(segmentation: Segmentation, grid: Grid, to_from: ndarray) -> Float[ndarray, "channel i j k"]:
    """Background is what the labels leave, also beyond the segmentation's grid."""
    labels = [resample(channel, segmentation.grid, grid, onto_from_grid=to_from) for channel in segmentation.posteriors[1:]]
    return np.stack([1 - np.sum(labels, axis=0), *labels])


def _numbers(segmentation: Segmentation) -> UInt8[ndarray, "channel"]:
    return np.array([0, *(label.index for label in segmentation.labels)], np.uint8)


def _block(grid: Grid, low: ndarray, high: ndarray) -> Grid:
    """A part of a grid, rounded up to a shape class, so that few shapes are compiled."""
    matrix = np.array(grid.space_from_vox)
    matrix[:3, 3] = transform_points(matrix, low)
    i, j, k = (SHAPE_CLASS * np.ceil((high - low) / SHAPE_CLASS)).astype(int).tolist()
    return Grid((i, j, k), matrix, grid.space)
