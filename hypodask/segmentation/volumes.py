"""Posteriors to volumes: soft and by label count, of a structure, its sides and its subunits.

Posteriors are cleaned first: islands are removed, holes are filled, and posteriors far from the segmentation,
which are leaks elsewhere in the image, do not count. Volumes and label maps come from the same cleaned posteriors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment.pose import Alignment
from hypodask.core.errors import SegmentationError
from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import structure
from hypodask.segmentation.label_maps import tidied
from hypodask.segmentation.segmentation import Segmentation

_REACH_MM, _REACH_VOXELS = 3.0, 1.5
"""Posteriors further than both from the segmentation, along any axis, do not count. A voxel next to the segmentation
always does, however large voxels are."""

_LEAST_SHARE = 1e-6
"""Where all labels together have less than this in a hole, the network says nothing about which of them it is."""

LEAST_MM3 = 50.0
"""A smaller segmentation is no structure but a few stray voxels."""

_FACES = (("left", "right"), ("back", "front"), ("bottom", "top"))
"""Lower and upper face of a box along x, y and z."""


@dataclass(frozen=True, eq=False)
class Volumes:
    """Volumes by structure, mm3: the whole first, then its sides, then its labels."""

    soft_mm3: dict[str, float]
    """Sum of posteriors, partial volumes counting in part."""
    label_mm3: dict[str, float]
    """Voxels that carry the label."""
    islands_mm3: float
    """Voxels that carried a label but lay apart from the structure and were removed."""
    cleaned: Segmentation
    """The posteriors that were summed; label maps are made from them too."""

    def to_publish(self) -> dict[str, float]:
        """The volumes to publish, mm3: soft ones, unless the posteriors of the label protocol are not calibrated.

        The structure's record lists these protocols (``uncalibrated``); their labels are counted. Where the boundary
        was not imaged (``Segmentation.inferred``), there is nothing to publish: not-a-number.
        """
        labels = self.cleaned.labels
        if self.cleaned.inferred:
            return dict.fromkeys(self.soft_mm3, float("nan"))
        return self.label_mm3 if labels.protocol in structure(labels.whole).uncalibrated else self.soft_mm3

    def to_acpc(self, alignment: Alignment) -> Float[ndarray, "4 4"]:
        """Affine from the space of the posteriors' grid to AC-PC space, mm."""
        return np.eye(4) if self.cleaned.grid.space == "acpc" else alignment.acpc_from_scanner


def measure(segmentation: Segmentation) -> Volumes:
    """Volumes of a structure and its parts.

    Labels are counted in the largest connected component of each side. Soft volumes sum the posteriors in it and within
    3 mm (or one and a half voxels) around it.

    Raises
    ------
    SegmentationError
        If the network found (next to) nothing.

    Examples
    --------
    >>> from hypodask.core.grid import box_grid
    >>> from hypodask.core.structures import ICV
    >>> posteriors = np.zeros((2, 8, 8, 8))
    >>> posteriors[1, 2:6, 2:6, 2:6] = 1.0
    >>> posteriors[0] = 1 - posteriors[1]
    >>> volumes = measure(Segmentation(posteriors, box_grid((8, 8, 8), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0)), ICV))
    >>> round(volumes.soft_mm3["icv"])
    512
    """
    table, voxel_mm3 = segmentation.labels, segmentation.grid.voxel_volume_mm3
    cleaned = clean(segmentation)
    label_map = cleaned.label_map
    mask = label_map > 0
    if mask.sum() * voxel_mm3 < LEAST_MM3:
        raise SegmentationError(
            f"no {table.whole} was found: {mask.sum() * voxel_mm3:.0f} mm3, at least {LEAST_MM3:g} mm3 are needed; "
            "look at the pose of the scan in the report, and at the image"
        )
    sums = cleaned.posteriors.sum(axis=(1, 2, 3), dtype=np.float64) * voxel_mm3
    counts = np.bincount(label_map.ravel(), minlength=256) * voxel_mm3
    soft = {label.structure: float(volume) for label, volume in zip(table, sums[1:], strict=True)}
    counted = {label.structure: float(counts[label.index]) for label in table}
    islands = np.count_nonzero((segmentation.label_map > 0) & ~mask) * voxel_mm3
    return Volumes(_with_wholes(soft, table.whole), _with_wholes(counted, table.whole), float(islands), cleaned)


def _with_wholes(parts: dict[str, float], whole: str) -> dict[str, float]:
    """The whole, its two sides, and the parts."""
    if whole in parts:
        return parts
    sides = {
        f"{whole}_{side}": sum(volume for name, volume in parts.items() if name.endswith(f"_{side}"))
        for side in ("left", "right")
    }
    return {whole: sum(parts.values())} | sides | parts


def clean(segmentation: Segmentation) -> Segmentation:
    """The structure alone: the largest component of each side without its holes, and partial volumes around it.

    Which holes are filled is told by the structure's record (:func:`~hypodask.segmentation.label_maps.tidied`). Islands
    and what lies far away become background. In a hole that is filled, background is removed and the labels keep their
    proportions; where the network gave them no share at all, the nearest label gets everything. All other posteriors
    stay as they are.

    Examples
    --------
    >>> from hypodask.core.grid import box_grid
    >>> from hypodask.core.structures import ICV
    >>> inside = np.zeros((12, 12, 12))
    >>> inside[1:9, 1:9, 1:9], inside[4, 4, 4], inside[11, 11, 11] = 1.0, 0.25, 0.75  # with a hole, and an island
    >>> grid = box_grid((12, 12, 12), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    >>> float(clean(Segmentation(np.stack([1 - inside, inside]), grid, ICV)).posteriors[1].sum())
    512.0
    """
    found = segmentation.label_map
    tidy = tidied(found, segmentation.labels, segmentation.grid.voxel_volume_mm3)
    mask = tidy > 0
    near = _dilated(mask, segmentation.grid.spacing_mm)
    counts = near & (mask | (found == 0))
    posteriors = np.where(counts, segmentation.posteriors, 0)
    background, labels = posteriors[0], posteriors[1:]
    filled = mask & (found == 0)
    shares, nearest = labels[:, filled], tidy[filled]
    none = shares.sum(axis=0) < _LEAST_SHARE
    for channel, label in zip(shares, segmentation.labels, strict=True):
        channel[none] = nearest[none] == label.index
    labels[:, filled] = shares / shares.sum(axis=0)
    np.subtract(1, labels.sum(axis=0), out=background)
    members = segmentation.member_wholes
    return replace(segmentation, posteriors=posteriors, member_wholes=None if members is None else members * counts)


def _dilated(mask: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]) -> Bool[ndarray, "i j k"]:
    """A mask and what lies within reach of it along every axis."""
    near = mask.view(np.uint8)
    reach_mm = max(_REACH_MM, _REACH_VOXELS * max(spacing_mm))
    for axis, spacing in enumerate(spacing_mm):
        # Dilation by a box goes axis by axis, at a tenth of the cost of distances.
        # As many voxels on a grid that is a little finer or coarser, since a larger head has a coarser one.
        near = ndimage.maximum_filter1d(near, 1 + 2 * round(reach_mm / spacing), axis=axis, mode="constant")
    return near.astype(bool)


def faces_reached(
    mask: Bool[ndarray, "i j k"], grid: Grid, box: Grid, box_from_grid: Float[ndarray, "4 4"]
) -> tuple[str, ...]:
    """Faces of a box, which may be the grid itself, that a mask touches or crosses.

    Parameters
    ----------
    mask
        On the voxels of ``grid``.
    box
        In another space or the same; its faces are named after their direction there.
    box_from_grid
        From the space of ``grid`` to that of ``box``, mm.

    Examples
    --------
    >>> from hypodask.core.grid import box_grid
    >>> grid = box_grid((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    >>> mask = np.zeros((4, 4, 4), bool)
    >>> mask[0:2, 3, 2] = True
    >>> faces_reached(mask, grid, grid, np.eye(4))
    ('left', 'front')
    """
    surface = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    vox = transform_points(np.linalg.inv(box.space_from_vox) @ box_from_grid @ grid.space_from_vox, surface)
    half_voxel = 0.501 * max(grid.spacing_mm) / np.array(box.spacing_mm)
    low = vox + 0.5 <= half_voxel
    high = np.array(box.shape) - 0.5 - vox <= half_voxel
    reached = set(_face_names(box, np.stack([low.any(axis=0), high.any(axis=0)])))
    return tuple(face for pair in _FACES for face in pair if face in reached)


def _face_names(box: Grid, reached: Bool[ndarray, "end axis"]) -> Iterator[str]:
    """Names of the faces at the lower and the upper end of the array's axes."""
    directions = box.space_from_vox[:3, :3] / box.spacing_mm
    for axis in range(3):
        world = int(np.abs(directions[:, axis]).argmax())
        names = _FACES[world][:: int(np.sign(directions[world, axis]))]
        yield from (name for name, end in zip(names, reached[:, axis], strict=True) if end)
