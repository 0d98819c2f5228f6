"""Pull resampling: for every voxel of the wanted grid, look up the stored scan there.

One interpolation leads from the stored scan to each network's grid, never two in a row. Three orders:
0 nearest, 1 trilinear, 3 cubic B-spline with the exact prefilter (Unser 1999), as in
``scipy.ndimage.map_coordinates(mode="grid-constant")``: beyond the outermost voxel centres the image
fades to ``outside`` within one voxel. Where the wanted voxels are larger than the stored ones, a
Gaussian low-pass whose full width at half maximum is the wanted voxel comes first.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy import ndimage

from hypodask.grid import Grid, transform_points

Order = Literal[0, 1, 3]

SHAPE_CLASS = 32
"""Crops are padded up to a multiple of this many voxels, so that a cohort of mixed sizes compiles few kernels."""

SPLINE_MARGIN = 12
"""Voxels kept around a crop: the B-spline prefilter's response falls by 0.27 a voxel, to 1e-7 in twelve."""

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


def resample(
    data: Float32[ndarray, "i j k"],
    grid: Grid,
    onto: Grid,
    *,
    onto_from_grid: Float[ndarray, "4 4"] | None = None,
    order: Order = 1,
) -> Float32[ndarray, "x y z"]:
    """Values of a volume at the voxel centres of another grid.

    Parameters
    ----------
    data
        Voxels on ``grid``.
    grid, onto
        Where the voxels are, and where they are wanted.
    onto_from_grid
        From the space of ``grid`` to the space of ``onto``, such as ``acpc_from_scanner``; identity when
        both grids are in one space.
    order
        0 nearest, 1 trilinear, 3 cubic B-spline.

    Returns
    -------
    ndarray
        float32 of shape ``onto.shape``; 0 outside the field of view.
    """
    onto_from_grid = np.eye(4) if onto_from_grid is None else onto_from_grid
    if order:
        data, grid = low_pass(data, grid, max(onto.spacing_mm))
    vox_from_out = np.linalg.inv(onto_from_grid @ grid.space_from_vox) @ onto.space_from_vox
    data, offset = _crop(data, vox_from_out, onto.shape)
    if order == 3:
        data = ndimage.spline_filter(data, order=3, output=np.float32, mode="mirror")
    vox_from_out = vox_from_out.copy()
    vox_from_out[:3, 3] -= offset
    return np.asarray(pull(jnp.asarray(data), jnp.asarray(vox_from_out, jnp.float32), onto.shape, order))


def low_pass(
    data: Float32[ndarray, "i j k"], grid: Grid, spacing_mm: float
) -> tuple[Float32[ndarray, "i2 j2 k2"], Grid]:
    """Smooth every axis that is finer than ``spacing_mm``, and thin it out by a whole number of voxels."""
    matrix = np.array(grid.space_from_vox)
    for axis, fine_mm in enumerate(grid.spacing_mm):
        ratio = spacing_mm / fine_mm
        if ratio < 1 + 1e-3:
            continue
        step, sigma = int(ratio + 1e-3), FWHM_TO_SIGMA * np.sqrt(ratio**2 - 1)
        if step == 1:
            data = ndimage.gaussian_filter1d(data, sigma, axis, output=np.float32, mode="nearest")
            continue
        data = _thin(data, axis, step, sigma)
        matrix[:3, 3] += matrix[:3, axis] * (step - 1) / 2
        matrix[:3, axis] *= step
    return data, Grid(data.shape, matrix, grid.space)


def _thin(data: ndarray, axis: int, step: int, sigma: float) -> Float32[ndarray, "..."]:
    """Gaussian means at every ``step``-th place of one axis, as one matrix product."""
    size = data.shape[axis]
    centres = np.arange(-(-size // step)) * step + (step - 1) / 2
    weights = np.exp(-0.5 * ((np.arange(size) - centres[:, None]) / sigma) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    thinned = np.tensordot(weights.astype(np.float32), data.astype(np.float32, copy=False), axes=(1, axis))
    return np.ascontiguousarray(np.moveaxis(thinned, 0, axis))


def _crop(data: ndarray, vox_from_out: ndarray, shape: tuple[int, int, int]) -> tuple[ndarray, ndarray]:
    """The part of ``data`` that the wanted voxels touch, padded with zeros to a shape class; its first index."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    reached = transform_points(vox_from_out, corners)
    low = np.clip(np.floor(reached.min(0)) - SPLINE_MARGIN, 0, np.array(data.shape) - 1).astype(int)
    high = np.clip(np.ceil(reached.max(0)) + SPLINE_MARGIN + 1, low + 1, data.shape).astype(int)
    part = data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    # The zeros around are the outside that the last voxels, and the spline's coefficients, fade into.
    after = SPLINE_MARGIN + -(np.array(part.shape) + 2 * SPLINE_MARGIN) % SHAPE_CLASS
    padded = np.pad(part, [(SPLINE_MARGIN, int(n)) for n in after])
    return padded.astype(np.float32, copy=False), low - SPLINE_MARGIN


@partial(jax.jit, static_argnames=("shape", "order"))
def pull(
    data: Float[Array, "i j k"], vox_from_out: Float[Array, "4 4"], shape: tuple[int, int, int], order: Order
) -> Float[Array, "x y z"]:
    """Gather ``data`` (B-spline coefficients for order 3) at the voxels of an affine grid.

    Indices beyond the array are clamped; callers pad with what should be found there.
    """
    grid = jnp.meshgrid(*[jnp.arange(n, dtype=jnp.float32) for n in shape], indexing="ij")
    points = jnp.stack(grid).reshape(3, -1)
    return gather(data, vox_from_out[:3, :3] @ points + vox_from_out[:3, 3:], order).reshape(shape)


def gather(data: Float[Array, "i j k"], points: Float[Array, "3 n"], order: Order) -> Float[Array, "n"]:
    """Interpolate at points given in voxels; clamped at the borders of the array."""
    first, weights = _taps(points, order)
    size = jnp.array(data.shape)[:, None]
    strides = (data.shape[1] * data.shape[2], data.shape[2], 1)
    flat = data.reshape(-1)
    taps = len(weights)
    index = [
        [jnp.clip(first[axis] + tap, 0, size[axis] - 1) * strides[axis] for tap in range(taps)] for axis in range(3)
    ]
    total = jnp.zeros(points.shape[1], data.dtype)
    for a in range(taps):
        for b in range(taps):
            line = sum(weights[c][2] * flat[index[0][a] + index[1][b] + index[2][c]] for c in range(taps))
            total = total + weights[a][0] * weights[b][1] * line
    return total


def _taps(points: Float[Array, "3 n"], order: Order) -> tuple[Array, list[Array]]:
    """First voxel of each axis's support, and the basis function's value at each voxel of it."""
    if order == 0:
        return jnp.floor(points + 0.5).astype(jnp.int32), [jnp.ones_like(points)]
    base = jnp.floor(points)
    t = points - base
    if order == 1:
        return base.astype(jnp.int32), [1 - t, t]
    s = 1 - t
    weights = [s**3 / 6, 2 / 3 - t**2 * (2 - t) / 2, 2 / 3 - s**2 * (2 - s) / 2, t**3 / 6]
    return base.astype(jnp.int32) - 1, weights
