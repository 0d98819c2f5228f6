"""The brain and the intracranial volume (ICV) around it, in template space.

The template is a brain without a skull. The ICV is made here: sulci and cisterns are closed, a layer of
subarachnoid CSF is added around them, and the foramen magnum is cut with a plane.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from scipy import ndimage

from hypodask.phantom.fields import Lattice
from hypodask.scan.template import MNI152

Triple = tuple[float, float, float]

BOX = Lattice(low_mm=(-100.0, -135.0, -160.0), step_mm=1.0, shape=(201, 261, 261))
"""Nodes of the head model in MNI mm: from the vertex to the lower neck, from the occiput to the nose."""

COARSE_BOX = Lattice(low_mm=BOX.low_mm, step_mm=2.0, shape=(101, 131, 131))
"""Every second node of the box, for distances to surfaces, which are smooth."""

FORAMEN_MAGNUM_MM = -66.0
"""MNI z below which the brain stem no longer counts as intracranial: under the cerebellar tonsils."""

_CLOSING_MM = 10.0
"""Half the width of the clefts that the ICV bridges: sulci and cisterns, but not the two middle fossae."""

_CSF_MM = 2.0
"""Subarachnoid space between the brain's hull and the skull; brings the template's ICV to 2.0 l, as its
brain mask of 1.88 l asks for (MNI space is about a third larger than life)."""

_CISTERN_CENTRE_MM = (0.0, 1.0, -20.0)
_CISTERN_RADII_MM = (14.0, 13.0, 8.5)
"""Suprasellar cistern: the template ends right under the chiasm, a real cistern does not."""


@lru_cache(maxsize=1)
def template_brain() -> UInt8[ndarray, "i j k"]:
    """The template brain on :data:`BOX`: 0 outside the brain, 255 the brightest white matter."""
    scan = MNI152.brain
    levels = np.rint(scan.data * 255).astype(np.uint8)
    first = np.rint(scan.grid.space_from_vox[:3, 3] - BOX.low_mm).astype(int)
    brain = np.zeros(BOX.shape, dtype=np.uint8)
    room = tuple(slice(start, start + n) for start, n in zip(first, levels.shape, strict=True))
    # The template's box rises above the vertex and out of ours; only air is lost.
    brain[room] = levels[tuple(slice(size) for size in brain[room].shape)]
    return brain


@lru_cache(maxsize=1)
def skull_distance() -> Float32[ndarray, "a b c"]:
    """Distance outside the inner surface of the skull on :data:`COARSE_BOX`, mm, negative inside.

    The foramen magnum is not cut: no bone closes it.
    """
    step = COARSE_BOX.step_mm
    brain = template_brain()[::2, ::2, ::2] > 0
    outside = step * ndimage.distance_transform_edt(~brain)
    depth = step * ndimage.distance_transform_edt(outside <= _CLOSING_MM)
    # Distances count from voxel centres, so depth is _CLOSING_MM + step / 2 on the hull of the brain.
    hull = ndimage.gaussian_filter(_CLOSING_MM + step / 2 - _CSF_MM - depth, 1.2)
    # Far outside depth stops at zero; there the plain distance to the brain takes over.
    distance = np.where(hull < _CLOSING_MM / 2, hull, np.maximum(hull, outside - _CSF_MM))
    cistern = ellipsoid_distance(COARSE_BOX, _CISTERN_CENTRE_MM, _CISTERN_RADII_MM)
    return smooth_union(distance.astype(np.float32), cistern, rounding_mm=5.0)


@lru_cache(maxsize=1)
def icv_distance() -> Float32[ndarray, "a b c"]:
    """Distance outside the ICV on :data:`COARSE_BOX`, mm, cut at the foramen magnum."""
    below = FORAMEN_MAGNUM_MM - COARSE_BOX.axes_mm()[2]
    cut: Float32[ndarray, "a b c"] = np.maximum(skull_distance(), below).astype(np.float32)
    return cut


def ellipsoid_distance(lattice: Lattice, centre_mm: Triple, radii_mm: Triple) -> Float32[ndarray, "i j k"]:
    """Distance outside an ellipsoid, mm, negative inside; exact on its surface, close to it near by."""
    offsets = [axis - middle for axis, middle in zip(lattice.axes_mm(), centre_mm, strict=True)]
    reach = np.sqrt(sum((offset / radius) ** 2 for offset, radius in zip(offsets, radii_mm, strict=True)))
    slope = np.sqrt(sum((offset / radius**2) ** 2 for offset, radius in zip(offsets, radii_mm, strict=True)))
    distance: Float32[ndarray, "i j k"] = (reach * (reach - 1) / np.maximum(slope, 1e-6)).astype(np.float32)
    return distance


def smooth_union(
    one: Float32[ndarray, "i j k"], other: Float32[ndarray, "i j k"], *, rounding_mm: float
) -> Float32[ndarray, "i j k"]:
    """Distance outside two bodies together, the crease between them rounded."""
    overlap = np.maximum(rounding_mm - np.abs(one - other), 0) / rounding_mm
    return np.minimum(one, other) - overlap**2 * np.float32(rounding_mm / 4)
