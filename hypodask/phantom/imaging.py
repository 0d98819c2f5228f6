"""From a deformed head to the voxels that a scanner would store.

How strong the effects of the scanner are is decided here; the effects themselves are :mod:`hypodask.image.acquisition`.
"""

from itertools import permutations, product

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float32, Int16
from numpy import ndarray
from numpy.random import Generator

from hypodask.core.grid import Grid
from hypodask.image.acquisition import rician, three_tap_spread
from hypodask.phantom.anatomy import Contrast, head_codes
from hypodask.phantom.deformation import HeadMap
from hypodask.phantom.fields import sample, upsampled
from hypodask.phantom.hypothalamus import ATROPHY_BOX
from hypodask.phantom.intracranial import BOX
from hypodask.phantom.truth import icv_surface
from hypodask.scan.scan import Scan

_WHITE_MATTER = 0.87
"""Brightness of white matter before the scanner's gain; noise is relative to it."""

_NODE_STEP_MM = 4.0
"""About this far apart the deformation is computed; linear in between, which is right to 0.03 mm (tested)."""

_AXES = tuple(product(permutations(range(3)), product((1, -1), repeat=3)))
"""The 48 orders and directions of three axes."""


def field_of_view(head: HeadMap, spacing_mm: tuple[float, float, float], *, neck: bool) -> Grid:
    """A block of voxels around the intracranial volume, as a radiographer would plan it; axes R, A, S."""
    hull = head.to_scanner(icv_surface())
    low = hull.min(axis=1) - np.array((14.0, 18.0, 45.0 if neck else 3.0))
    high = hull.max(axis=1) + np.array((14.0, 28.0, 16.0))
    i, j, k = (_voxels_to_cover(length, spacing) for length, spacing in zip(high - low, spacing_mm, strict=True))
    scanner_from_vox = np.diag([*spacing_mm, 1.0])
    scanner_from_vox[:3, 3] = (low + high - spacing_mm * (np.array([i, j, k]) - 1)) / 2
    return Grid((i, j, k), scanner_from_vox, "scanner")


def _voxels_to_cover(length_mm: float, spacing_mm: float) -> int:
    """Enough voxels for a length, the first and the last on a node of the deformation."""
    stride = _node_stride(spacing_mm)
    return stride * int(np.ceil(length_mm / spacing_mm / stride)) + 1


def _node_stride(spacing_mm: float) -> int:
    return max(1, round(_NODE_STEP_MM / spacing_mm))


def head_image(head: HeadMap, grid: Grid, contrast: Contrast) -> Float32[ndarray, "i j k"]:
    """Brightness of the deformed head at the voxel centres of a grid from :func:`field_of_view`."""
    template = contrast.brightness()[head_codes()]
    return sample(template, _model_indices(head, grid))


def _model_indices(head: HeadMap, grid: Grid) -> Float32[ndarray, "3 i j k"]:
    """Where in the head model, in voxels of its box, each voxel of a grid from :func:`field_of_view` comes from."""
    nodes = [slice(0, n, _node_stride(spacing)) for n, spacing in zip(grid.shape, grid.spacing_mm, strict=True)]
    indices = upsampled(BOX.indices(head.to_template(_voxel_places(grid, tuple(nodes)))), grid.shape)
    # Atrophy varies within millimetres: where it acts the deformation is computed at every voxel.
    room = _atrophy_room(head, grid)
    indices[(slice(None), *room)] = BOX.indices(head.to_template(_voxel_places(grid, room)))
    return indices


def _voxel_places(grid: Grid, room: tuple[slice, ...]) -> Float[ndarray, "3 i j k"]:
    """Scanner coordinates, mm, of the voxels in a part of a grid with axes R, A, S."""
    first, steps = grid.space_from_vox[:3, 3], np.diag(grid.space_from_vox)
    axes = (low + step * np.arange(n)[part] for low, step, n, part in zip(first, steps, grid.shape, room, strict=False))
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _atrophy_room(head: HeadMap, grid: Grid) -> tuple[slice, ...]:
    """The voxels in and around the hypothalamus, two thirds of the box where atrophy acts; beyond it is smooth."""
    low = np.array(ATROPHY_BOX.low_mm)
    size = ATROPHY_BOX.step_mm * (np.array(ATROPHY_BOX.shape) - 1)
    corners = np.array(list(product((1 / 6, 5 / 6), repeat=3))) * size + low
    places = (head.to_scanner(corners.T).T - grid.space_from_vox[:3, 3]) / grid.spacing_mm
    first, last = np.floor(places.min(axis=0)).astype(int), np.ceil(places.max(axis=0)).astype(int)
    return tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))


def acquire(
    image: Float32[ndarray, "i j k"], random: Generator, *, noise: float, bias: float, blur_voxels: float
) -> Int16[ndarray, "i j k"]:
    """The image as a scanner of random gain stores it: point spread, coil, Rician noise.

    ``noise`` is relative to white matter, ``bias`` the SD of the logarithm of the coil's sensitivity.
    """
    image = three_tap_spread(image, blur_voxels)
    image *= upsampled(np.exp(bias * _smooth_nodes(random)), image.shape)
    sigma = np.float32(noise * _WHITE_MATTER)
    real, imaginary = (sigma * random.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    gain = np.float32(random.uniform(500, 1200))
    magnitude: Int16[ndarray, "i j k"] = np.rint(gain * rician(image, real, imaginary)).astype(np.int16)
    return magnitude


def _smooth_nodes(random: Generator) -> Float32[ndarray, "9 9 9"]:
    """A smooth random field of SD about 1: a few low cosines."""
    place = np.cos(np.pi * np.outer(np.arange(3), np.linspace(0, 1, 9)))
    weights = random.standard_normal((3, 3, 3)) / 2
    weights[0, 0, 0] = 0
    field: Float32[ndarray, "9 9 9"] = np.einsum("abc,ai,bj,ck->ijk", weights, place, place, place).astype(np.float32)
    return field


def reordered(image: Int16[ndarray, "i j k"], grid: Grid, random: Generator) -> tuple[Int16[ndarray, "a b c"], Grid]:
    """The same voxels in the same places, the array's axes in one of the 48 orders and directions."""
    order, directions = _AXES[random.integers(len(_AXES))]
    old_from_new = np.zeros((4, 4))
    old_from_new[3, 3] = 1
    for new, (old, direction) in enumerate(zip(order, directions, strict=True)):
        old_from_new[old, new] = direction
        old_from_new[old, 3] = 0 if direction > 0 else grid.shape[old] - 1
    turned = image.transpose(order)[tuple(slice(None, None, direction) for direction in directions)]
    i, j, k = turned.shape
    return np.ascontiguousarray(turned), Grid((i, j, k), grid.space_from_vox @ old_from_new, "scanner")


def as_scan(image: Int16[ndarray, "i j k"], grid: Grid, source: str) -> Scan:
    """Voxels with a NIfTI-1 header, as if read from a file."""
    return Scan(image, grid, header=nifti_image(image, grid).header.binaryblock, source=source)


def nifti_image(image: Int16[ndarray, "i j k"], grid: Grid) -> nib.Nifti1Image:
    """Voxels as a NIfTI-1 image in scanner space."""
    nifti = nib.Nifti1Image(image, grid.space_from_vox)
    nifti.set_sform(grid.space_from_vox, code="scanner")
    nifti.set_qform(grid.space_from_vox, code="scanner")
    nifti.header.set_xyzt_units("mm", "sec")
    return nifti
