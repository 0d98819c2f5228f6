"""The box in AC-PC space that a network is trained in: what it sees of a scan, and the room around that.

Scans are stored on the training grid, which reaches 8 mm further than the network's box, so that a scan can be turned,
shifted and warped without a view of what lies beyond the grid.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from hypodask.core.grid import Grid
from hypodask.core.structures import Structure
from hypodask.image.intensity import scale_by
from hypodask.networks.cards import InputGeometry

_MARGIN = (16, 15, 16)
"""Voxels of the training grid on each side of what the network sees."""

SEEN = tuple(slice(margin, -margin) for margin in _MARGIN)
"""The part of the training grid that the network sees."""

_VOXEL_MM, _LARGE_VOXEL_MM = 0.5, 1.0
"""Voxels of a network's box, and of one that is longer than ``_LARGE_BOX_MM`` along some axis."""

_LARGE_BOX_MM = 100.0

_SLICES, _SLICE_DISTANCE_MM = 5, 1.0
"""Coronal slices that a network sees at a time, and the distance from one to the next."""


def training_geometry(structure: Structure, *, multiple: int = 1) -> InputGeometry:
    """What a network of a structure sees: coronal slices of the structure's box.

    Parameters
    ----------
    structure
        Its record says where the box is and how large.
    multiple
        The architecture halves slices evenly if their sides are multiples of this; the box grows to the next ones.

    Examples
    --------
    >>> from hypodask.core.structures import MAIN
    >>> geometry = training_geometry(MAIN)
    >>> geometry.shape, geometry.spacing_mm
    ((80, 50, 72), (0.5, 0.5, 0.5))
    """
    voxel_mm = _VOXEL_MM if max(structure.box_mm) <= _LARGE_BOX_MM else _LARGE_VOXEL_MM
    i, j, k = (round(length / voxel_mm) for length in structure.box_mm)
    wide, high = (multiple * -(-n // multiple) for n in (i, k))
    return InputGeometry(
        spacing_mm=(voxel_mm,) * 3,
        shape=(wide, j, high),
        slices=_SLICES,
        slice_axis=1,
        intensity="box_bright",
        slice_step=round(_SLICE_DISTANCE_MM / voxel_mm),
        centre_mm=structure.box_centre_mm,
        frame="head_size",
    )


def training_grid(geometry: InputGeometry, head_size: float = 1.0) -> Grid:
    """Where the voxels of a stored scan are: the network's box with the margin around it.

    Parameters
    ----------
    geometry
        What the network sees.
    head_size
        Of the scan, as :class:`~hypodask.alignment.pose.Alignment` has it.
    """
    i, j, k = (n + 2 * margin for n, margin in zip(geometry.shape, _MARGIN, strict=True))
    return replace(geometry, shape=(i, j, k)).grid_for(head_size)


def scaled_image(image: Float[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """An image on the training grid in units of white matter, which is measured in the network's box alone."""
    return scale_by(image, image[SEEN])


def seen_image(image: Float[ndarray, "i j k"]) -> Float32[ndarray, "x y z"]:
    """What the network sees of an image on the training grid."""
    return scaled_image(image)[SEEN]


def seen_labels(truth: Float[ndarray, "label i j k"]) -> Float32[ndarray, "label x y z"]:
    """Soft labels in the network's box, from those on the training grid."""
    return truth[(slice(None), *SEEN)].astype(np.float32)


def with_background(labels: Float32[ndarray, "label x y z"]) -> Float32[ndarray, "channel x y z"]:
    """Soft labels with the background as first channel, so that all channels sum to one."""
    return np.concatenate([1 - labels.sum(axis=0, keepdims=True), labels])
