"""Label maps without islands and holes, also on other grids: the slab of the paper, and the voxels of the scan."""

from math import ceil, isinf

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from scipy import ndimage

from hypodask.core.grid import Grid, slab_grid, transform_points
from hypodask.core.structures import LabelTable, structure
from hypodask.image.masks import largest_piece, without_holes
from hypodask.image.resampling import interpolate
from hypodask.segmentation.segmentation import Segmentation, most_probable

_Part = tuple[slice, ...]

_SIZE_STEP = 32
"""Posteriors are interpolated on blocks whose sizes are multiples of this: each new size has to be compiled."""


def tidied(label_map: UInt8[ndarray, "i j k"], table: LabelTable, voxel_mm3: float) -> UInt8[ndarray, "i j k"]:
    """A label map with one connected component of each side, and without the holes that the structure may not have.

    Voxels of a component share a face, an edge or a corner. A hole is background from which no path through faces of
    voxels leads out of the side. Holes up to ``largest_hole_mm3`` of the structure's record are filled, each voxel with
    the label that is nearest to it on this side.

    Parameters
    ----------
    label_map
        Numbers of ``table``, 0 for background.
    table
        Labels of one structure.
    voxel_mm3
        Volume of a voxel.

    Examples
    --------
    >>> from hypodask.core.structures import ICV
    >>> shell = np.ones((5, 5, 9), np.uint8)
    >>> shell[2, 2, 2] = 0  # a hole
    >>> shell[:, :, 5:] = 0
    >>> shell[0, 0, 8] = 1  # an island
    >>> int(tidied(shell, ICV, 1.0).sum())
    125
    """
    tidy = np.zeros_like(label_map)
    most_voxels = structure(table.whole).largest_hole_mm3 / voxel_mm3
    for side in ("left", "right", "both"):
        if not (numbers := [label.index for label in table.of(side)]):
            continue
        own = largest_piece(np.isin(label_map, numbers))
        whole = without_holes(own, most_voxels)
        np.copyto(tidy, label_map, where=whole)
        filled = whole & (label_map == 0)
        if len(numbers) > 1 and filled.any():
            nearest = ndimage.distance_transform_edt(~own, return_distances=False, return_indices=True)
            tidy[filled] = label_map[tuple(nearest[:, filled])]
        else:
            tidy[filled] = numbers[0]
    return tidy


def label_map_on(
    segmentation: Segmentation, grid: Grid, grid_from_segmentation: Float[ndarray, "4 4"]
) -> UInt8[ndarray, "i j k"]:
    """The most probable label at each voxel of another grid; posteriors are interpolated, never labels.

    Posteriors are taken at the centres of the voxels and not averaged over the voxels: averaging would shrink
    a small structure on thick slices, while counting centres keeps its volume on average.

    Between the voxels of the segmentation a narrow channel of background may close, or a bridge break. A structure
    whose holes are all filled, as its record says, has neither islands nor holes on the other grid either
    (:func:`tidied`).

    Parameters
    ----------
    segmentation
        Posteriors on their own grid.
    grid
        Where the labels are wanted.
    grid_from_segmentation
        From the space of the segmentation's grid to the space of ``grid``, mm.

    Returns
    -------
    ndarray
        Numbers of ``segmentation.labels``, 0 for background and outside of the segmentation's grid. ``i`` is
        fastest in memory, as in the scans that are stored beside it.

    Examples
    --------
    >>> from hypodask.core.grid import box_grid
    >>> from hypodask.core.structures import ICV
    >>> posteriors = np.zeros((2, 4, 4, 4), np.float32)
    >>> posteriors[1, 1:3, 1:3, 1:3] = 1.0
    >>> posteriors[0] = 1 - posteriors[1]
    >>> icv = Segmentation(posteriors, box_grid((4, 4, 4), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0)), ICV)
    >>> finer = box_grid((8, 8, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    >>> int(label_map_on(icv, finer, np.eye(4)).sum())  # a cube of 4 x 4 x 4 without its corners
    56
    """
    label_map = np.zeros(grid.shape, np.uint8, order="F")
    vox_from_seg = np.linalg.inv(grid.space_from_vox) @ grid_from_segmentation @ segmentation.grid.space_from_vox
    part = _reached(segmentation.posteriors[0] < 0.5, vox_from_seg, grid.shape)
    if part:
        label_map[part] = _most_probable(segmentation, grid, grid_from_segmentation, part)
        if isinf(structure(segmentation.labels.whole).largest_hole_mm3):
            label_map[part] = tidied(label_map[part], segmentation.labels, grid.voxel_volume_mm3)
    return label_map


def slab_label_map(
    segmentation: Segmentation, acpc_from_segmentation: Float[ndarray, "4 4"]
) -> UInt8[ndarray, "x y z"]:
    """The label map on the 512 x 50 x 512 slab of the paper, as :func:`label_map_on` gives it."""
    return label_map_on(segmentation, slab_grid(), acpc_from_segmentation)


def _reached(found: Bool[ndarray, "i j k"], to_from: ndarray, shape: tuple[int, int, int]) -> _Part | None:
    """The part of another grid that can have labels: around the voxels of ``found``; None where there is none."""
    if not found.any():
        return None
    # The first and the last voxel of each line are enough: an affine map keeps what lies between them between them.
    inside = found.any(axis=2)
    ends = [found.argmax(axis=2), found.shape[2] - 1 - found[:, :, ::-1].argmax(axis=2)]
    reached = transform_points(to_from, np.concatenate([[*np.nonzero(inside), end[inside]] for end in ends], axis=1).T)
    margin = np.abs(to_from[:3, :3]).sum(axis=1)  # interpolation reaches up to the next voxel
    low = np.clip(np.floor(reached.min(0) - margin), 0, shape).astype(int).tolist()
    high = np.clip(np.ceil(reached.max(0) + margin) + 1, 0, shape).astype(int).tolist()
    return None if any(a >= b for a, b in zip(low, high, strict=True)) else tuple(map(slice, low, high))


def _most_probable(
    segmentation: Segmentation, grid: Grid, grid_from_segmentation: ndarray, part: _Part
) -> UInt8[ndarray, "i j k"]:
    """Numbers of the labels in a part of a grid; the probability of background is one minus that of all labels."""
    shape = tuple(_SIZE_STEP * ceil((axis.stop - axis.start) / _SIZE_STEP) for axis in part)
    onto = grid.block(np.array([axis.start for axis in part]), shape)
    wanted = tuple(slice(axis.stop - axis.start) for axis in part)
    labels = [
        interpolate(channel, segmentation.grid, onto, onto_from_grid=grid_from_segmentation)[wanted]
        for channel in segmentation.posteriors[1:]
    ]
    return most_probable(1 - np.sum(labels, axis=0), np.stack(labels), segmentation)
