"""Posteriors to volumes: soft and by label count, of a structure, its sides and its subunits.

What the network found is tidied first: islands are dropped, tiny holes are filled, and posteriors far from the
outline, which are leaks elsewhere in the image, do not count. Volumes and label maps come from the same tidied
posteriors.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from scipy import ndimage

from hypodask.errors import SegmentationError
from hypodask.grid import Grid, transform_points
from hypodask.labels import HYPOTHALAMUS_SEED, LabelTable
from hypodask.pieces import largest_piece, without_holes
from hypodask.segmentation import Segmentation

REACH_MM = 3.0
REACH_VOXELS = 1.5
"""Posteriors further than both from the outline, along any axis, are leaks elsewhere in the image and do not count; a
voxel beside the outline always does, however large."""

HOLE_MM3 = {"hypothalamus": 1.0, "icv": np.inf}
"""Larger holes that the outline of a side encloses are left open. The cavity has none. In the hypothalamus the fornix
is one: where it passes through, the outlines of the label protocol go around it. On the consensus of 14 heads, 7 of 28
sides enclose holes of 0.1 to 3.9 mm3, all of which the fornix makes; less than 1 mm3, a voxel of most scans, is nothing
that a scan can show. Coronal slices have holes of up to 11 mm3 in all, which are open at their ends and stay too."""

LEAST_MM3 = 50.0
"""Less than this is no structure but a few stray voxels."""

USUAL_MM3 = {"hypothalamus": (500.0, 1400.0), "icv": (1.1e6, 2.0e6)}
"""Volumes outside these are reported with a warning: adult ranges, generously."""

USUAL_IN_SEED_MM3 = {"hypothalamus": (750.0, 2100.0)}
"""The same where protocol ``seed`` draws more: the first protocol's outlines cover 0.67 of its (docs/networks.md)."""

FACES = (("left", "right"), ("back", "front"), ("bottom", "top"))
"""Lower and upper face of a box along x, y and z."""


@dataclass(frozen=True, eq=False)
class Volumes:
    """Volumes by structure, mm3: the whole first, then its sides, then its labels."""

    soft_mm3: dict[str, float]
    """Sum of posteriors, partial volumes counting in part."""
    label_mm3: dict[str, float]
    """Voxels that carry the label."""
    islands_mm3: float
    """Voxels that carried a label but lay apart from the structure and were dropped."""
    tidied: Segmentation
    """The posteriors that were summed; label maps are made from them too."""


def measure(segmentation: Segmentation) -> Volumes:
    """Volumes of a structure and its parts.

    The outline is the largest connected piece of each side; soft volumes count posteriors inside it and
    within 3 mm (or one and a half voxels) around it.

    Raises
    ------
    SegmentationError
        If the network found (next to) nothing.

    Examples
    --------
    >>> from hypodask.grid import box_grid
    >>> from hypodask.labels import ICV
    >>> posteriors = np.zeros((2, 8, 8, 8))
    >>> posteriors[1, 2:6, 2:6, 2:6] = 1.0
    >>> posteriors[0] = 1 - posteriors[1]
    >>> volumes = measure(Segmentation(posteriors, box_grid((8, 8, 8), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0)), ICV))
    >>> round(volumes.soft_mm3["icv"])
    512
    """
    table, voxel_mm3 = segmentation.labels, segmentation.grid.voxel_volume_mm3
    tidied = tidy(segmentation)
    label_map = tidied.label_map
    outline = label_map > 0
    if outline.sum() * voxel_mm3 < LEAST_MM3:
        raise SegmentationError(
            f"no {table.whole} was found: {outline.sum() * voxel_mm3:.0f} mm3, at least {LEAST_MM3:g} mm3 are needed; "
            "look at the pose of the scan in the report, and at the image"
        )
    sums = tidied.posteriors.sum(axis=(1, 2, 3), dtype=np.float64) * voxel_mm3
    counts = np.bincount(label_map.ravel(), minlength=256) * voxel_mm3
    soft = {label.structure: float(volume) for label, volume in zip(table, sums[1:], strict=True)}
    counted = {label.structure: float(counts[label.index]) for label in table}
    islands = np.count_nonzero((segmentation.label_map > 0) & ~outline) * voxel_mm3
    return Volumes(_with_wholes(soft, table.whole), _with_wholes(counted, table.whole), float(islands), tidied)


def tidy(segmentation: Segmentation) -> Segmentation:
    """The structure alone: the largest piece of each side without its tiny holes, and partial volumes around it.

    Islands and what lies far away become background; in a hole that is filled, background is taken away and the
    labels keep their proportions. All other posteriors stay as they are.

    Examples
    --------
    >>> from hypodask.grid import box_grid
    >>> from hypodask.labels import ICV
    >>> cavity = np.zeros((12, 12, 12))
    >>> cavity[1:9, 1:9, 1:9], cavity[4, 4, 4], cavity[11, 11, 11] = 1.0, 0.25, 0.75  # with a hole, and an island
    >>> grid = box_grid((12, 12, 12), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    >>> float(tidy(Segmentation(np.stack([1 - cavity, cavity]), grid, ICV)).posteriors[1].sum())
    512.0
    """
    found = segmentation.label_map
    outline = _outline(found, segmentation.labels, segmentation.grid.voxel_volume_mm3)
    near = dilate(outline, segmentation.grid.spacing_mm)
    counts = near & (outline | (found == 0))
    posteriors = np.where(counts, segmentation.posteriors, 0)
    background, labels = posteriors[0], posteriors[1:]
    filled = outline & (found == 0)
    labels[:, filled] /= np.maximum(labels[:, filled].sum(axis=0), 1e-6)
    np.subtract(1, labels.sum(axis=0), out=background)
    members = segmentation.member_wholes
    return replace(segmentation, posteriors=posteriors, member_wholes=None if members is None else members * counts)


def _outline(label_map: UInt8[ndarray, "i j k"], table: LabelTable, voxel_mm3: float) -> Bool[ndarray, "i j k"]:
    """The largest piece of each side, together, without holes that are too small to be anything."""
    sides = [[label.index for label in table.of(side)] for side in ("left", "right", "both")]
    pieces = [largest_piece(np.isin(label_map, numbers)) for numbers in sides if numbers]
    return np.any([without_holes(piece, HOLE_MM3[table.whole] / voxel_mm3) for piece in pieces], axis=0)


def dilate(mask: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]) -> Bool[ndarray, "i j k"]:
    """What lies within reach of a mask along every axis."""
    near = mask.view(np.uint8)
    reach_mm = max(REACH_MM, REACH_VOXELS * max(spacing_mm))
    for axis, spacing in enumerate(spacing_mm):
        # Dilation by a box goes axis by axis, at a tenth of the cost of distances.
        near = ndimage.maximum_filter1d(near, 1 + 2 * int(reach_mm / spacing), axis=axis, mode="constant")
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
    >>> from hypodask.grid import box_grid
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
    return tuple(face for pair in FACES for face in pair if face in reached)


def _face_names(box: Grid, reached: Bool[ndarray, "end axis"]) -> Iterator[str]:
    """Names of the faces at the lower and the upper end of the array's axes."""
    directions = box.space_from_vox[:3, :3] / box.spacing_mm
    for axis in range(3):
        world = int(np.abs(directions[:, axis]).argmax())
        names = FACES[world][:: int(np.sign(directions[world, axis]))]
        yield from (name for name, end in zip(names, reached[:, axis], strict=True) if end)


def unusual(volume_mm3: dict[str, float], protocol: str = "") -> list[str]:
    """Sentences about volumes that an adult seldom has in a label protocol."""
    ranges = USUAL_MM3 | (USUAL_IN_SEED_MM3 if protocol == HYPOTHALAMUS_SEED.protocol else {})
    return [
        f"The {structure} of {volume_mm3[structure]:.0f} mm3 is outside the usual {low:.0f}-{high:.0f} mm3."
        for structure, (low, high) in ranges.items()
        if structure in volume_mm3 and not low <= volume_mm3[structure] <= high
    ]


def _with_wholes(parts: dict[str, float], whole: str) -> dict[str, float]:
    """The whole, its two sides, and the parts."""
    if whole in parts:
        return parts
    sides = {
        f"{whole}_{side}": sum(volume for name, volume in parts.items() if name.endswith(f"_{side}"))
        for side in ("left", "right")
    }
    return {whole: sum(parts.values())} | sides | parts
