"""Posteriors to volumes: soft and by label count, with an interval, and what to know before trusting them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from scipy import ndimage

from hypodask.errors import SegmentationError
from hypodask.labels import LabelTable
from hypodask.segmentation import Segmentation

Part = tuple[slice, ...]

REACH_MM = 3.0
REACH_VOXELS = 1.5
"""Posteriors further than both from the outline are leaks elsewhere in the image and do not count; a voxel beside
the outline always does, however large."""

LEAST_MM3 = 50.0
"""Less than this is no structure but a few stray voxels."""

USUAL_MM3 = {"hypothalamus": (500.0, 1400.0), "icv": (1.1e6, 2.0e6)}
"""Volumes outside these are reported with a warning: adult range of both protocols, generously."""


@dataclass(frozen=True)
class Volumes:
    """Volumes by structure, mm3: the whole first, then its labels."""

    soft_mm3: dict[str, float]
    """Sum of posteriors, partial volumes counting in part."""
    label_mm3: dict[str, float]
    """Voxels that carry the label."""
    certainty: float
    """Mean posterior of the whole structure inside its outline, 0.5 to 1."""


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
    label_map = segmentation.label_map
    outline = _outline(label_map, table)
    if outline.sum() * voxel_mm3 < LEAST_MM3:
        raise SegmentationError(
            f"no {table.whole} was found: {outline.sum() * voxel_mm3:.0f} mm3, at least {LEAST_MM3:g} mm3 are needed; "
            "look at the pose of the scan in the report, and at the image"
        )
    part, near = _surroundings(outline, segmentation.grid.spacing_mm)
    soft = {
        label.structure: float(channel[part][near].sum(dtype=np.float64) * voxel_mm3)
        for label, channel in zip(table, segmentation.posteriors[1:], strict=True)
    }
    counted = {label.structure: float((label_map[outline] == label.index).sum() * voxel_mm3) for label in table}
    certainty = float(1 - segmentation.posteriors[0][outline].mean(dtype=np.float64))
    return Volumes(_with_wholes(soft, table.whole), _with_wholes(counted, table.whole), certainty)


def _outline(label_map: UInt8[ndarray, "i j k"], table: LabelTable) -> Bool[ndarray, "i j k"]:
    """The largest piece of each side, together."""
    sides = [[label.index for label in table.of(side)] for side in ("left", "right", "both")]
    return np.any([largest_piece(np.isin(label_map, numbers)) for numbers in sides if numbers], axis=0)


def _surroundings(
    outline: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]
) -> tuple[Part, Bool[ndarray, "x y z"]]:
    """The box that holds everything within reach of an outline, and what of it is within reach."""
    box = ndimage.find_objects(outline.view(np.uint8))[0]
    reach_mm = max(REACH_MM, REACH_VOXELS * max(spacing_mm))
    margins = [int(np.ceil(reach_mm / spacing)) for spacing in spacing_mm]
    part = tuple(
        slice(max(axis.start - margin, 0), axis.stop + margin) for axis, margin in zip(box, margins, strict=True)
    )
    return part, ndimage.distance_transform_edt(~outline[part], sampling=spacing_mm) <= reach_mm


def interval(volume_mm3: float, relative_sd: float | None) -> tuple[float, float] | None:
    """95 % interval of a volume, from the error that the network made on heads it had not seen.

    >>> interval(1000.0, 0.05)
    (902.0, 1098.0)
    """
    if relative_sd is None:
        return None
    half = 1.96 * relative_sd * volume_mm3
    return volume_mm3 - half, volume_mm3 + half


def unusual(volume_mm3: dict[str, float]) -> list[str]:
    """Sentences about volumes that an adult seldom has."""
    return [
        f"The {structure} of {volume_mm3[structure]:.0f} mm3 is outside the usual {low:.0f}-{high:.0f} mm3."
        for structure, (low, high) in USUAL_MM3.items()
        if structure in volume_mm3 and not low <= volume_mm3[structure] <= high
    ]


def largest_piece(mask: Bool[ndarray, "i j k"]) -> Bool[ndarray, "i j k"]:
    """The largest connected piece of a mask; neighbours share a face, an edge or a corner."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    return np.asarray(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())


def _with_wholes(parts: dict[str, float], whole: str) -> dict[str, float]:
    """The whole, its two sides, and the parts."""
    if whole in parts:
        return parts
    sides = {
        f"{whole}_{side}": sum(volume for name, volume in parts.items() if name.endswith(f"_{side}"))
        for side in ("left", "right")
    }
    return {whole: sum(parts.values())} | sides | parts
