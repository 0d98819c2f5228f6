"""Pull resampling: for every voxel of the wanted grid, look up the stored scan there.

One interpolation leads from the stored scan to each network's grid, never two in a row. Three orders:
0 nearest, 1 trilinear, 3 cubic B-spline with the exact prefilter (Unser 1999), as in
``scipy.ndimage.map_coordinates(mode="grid-constant")``: beyond the outermost voxel centres the image
fades to 0 within one voxel. Where the wanted voxels are larger than the stored ones, a
Gaussian low-pass whose full width at half maximum is the wanted voxel comes first.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int
from numpy import ndarray
from scipy import ndimage

from hypodask.grid import Grid, transform_points

Order = Literal[0, 1, 3]

SHAPE_CLASS = 32
"""Crops are padded up to a multiple of this many voxels, so that a cohort of mixed sizes compiles few kernels."""

SPLINE_MARGIN = 12
"""Voxels kept around a crop: the B-spline prefilter's response falls by 0.27 a voxel, to 1e-7 in twelve."""

BLUR_MARGIN = 5
"""Thinned voxels kept around a crop for the low-pass, whose standard deviation is at most 0.85 of one."""

SAME = 1e-3
"""Voxel sizes that differ by less than this share are one size."""

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
        margin = BLUR_MARGIN + (SPLINE_MARGIN if order == 3 else 1)
        data, grid = _touched(data, grid, onto, onto_from_grid, margin=margin)
        data, grid = low_pass(data, grid, max(onto.spacing_mm))
    return interpolate(data, grid, onto, onto_from_grid=onto_from_grid, order=order)


def interpolate(
    data: Float32[ndarray, "i j k"],
    grid: Grid,
    onto: Grid,
    *,
    onto_from_grid: Float[ndarray, "4 4"] | None = None,
    order: Order = 1,
) -> Float32[ndarray, "x y z"]:
    """As ``resample``, for a volume that is not finer than the wanted voxels: nothing is smoothed."""
    onto_from_grid = np.eye(4) if onto_from_grid is None else onto_from_grid
    vox_from_out = _vox_from_out(grid, onto, onto_from_grid)
    data, offset = _crop(data, vox_from_out, onto.shape)
    if order == 3:
        data = ndimage.spline_filter(data, order=3, output=np.float32, mode="mirror")
    vox_from_out[:3, 3] -= offset
    return np.asarray(pull(jnp.asarray(data), jnp.asarray(vox_from_out, jnp.float32), onto.shape, order))


def low_pass(
    data: Float32[ndarray, "i j k"], grid: Grid, spacing_mm: float
) -> tuple[Float32[ndarray, "i2 j2 k2"], Grid]:
    """Smooth every axis that is finer than ``spacing_mm``, and thin it out by a whole number of voxels.

    A voxel is taken to see its surroundings as a Gaussian does whose full width at half maximum is its size;
    variances add, so the smoothing is what a voxel of ``spacing_mm`` has more.

    Parameters
    ----------
    data
        Voxels on ``grid``, in either memory order.
    grid
        Where they are; its space is kept.
    spacing_mm
        Size of the wanted voxels, mm.

    Returns
    -------
    data, grid
        The smoothed volume and where its voxels are; beyond the borders nothing is known, so nothing weighs.

    Examples
    --------
    >>> _, coarse = low_pass(np.ones((9, 9, 9), np.float32), Grid((9, 9, 9), np.eye(4), "scanner"), 2.5)
    >>> coarse.shape, coarse.spacing_mm, coarse.space_from_vox[:3, 3].tolist()
    ((5, 5, 5), (2.0, 2.0, 2.0), [0.5, 0.5, 0.5])
    """
    matrix = np.array(grid.space_from_vox)
    steps = _steps(grid, spacing_mm)
    # Along the axis that is slowest in memory first: the fastest is the dearest, and then little is left of it.
    for axis in np.argsort(data.strides)[::-1]:
        step, ratio = steps[axis], spacing_mm / grid.spacing_mm[axis]
        if ratio < 1 + SAME:
            continue
        data = _along(axis, _means(data.shape[axis], step, FWHM_TO_SIGMA * np.sqrt(ratio**2 - 1)), data)
        matrix[:3, 3] += matrix[:3, axis] * (step - 1) / 2
        matrix[:3, axis] *= step
    return data, Grid(data.shape, matrix, grid.space)


def _steps(grid: Grid, spacing_mm: float) -> Int[ndarray, "3"]:
    """Stored voxels that go whole into a wanted one, along each axis."""
    return np.maximum(1, np.floor(spacing_mm / np.array(grid.spacing_mm) + SAME)).astype(int)


def _means(size: int, step: int, sigma: float) -> Float32[ndarray, "thin size"]:
    """Gaussian means at the middle of every ``step`` voxels of an axis, as a matrix."""
    centres = np.arange(-(-size // step)) * step + (step - 1) / 2
    weights = np.exp(-0.5 * ((np.arange(size) - centres[:, None]) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _along(axis: int, matrix: Float32[ndarray, "m n"], data: ndarray) -> Float32[ndarray, "..."]:
    """A matrix applied to one axis of a volume; three ways, since each keeps the volume where it is in memory."""
    if data.strides[0] < data.strides[2]:
        return _along(2 - axis, matrix, data.T).T
    data = data.astype(np.float32, copy=False)
    if axis == 0:
        return np.tensordot(matrix, data, axes=1)
    return matrix @ data if axis == 1 else data @ matrix.T


def _vox_from_out(grid: Grid, onto: Grid, onto_from_grid: ndarray) -> Float[ndarray, "4 4"]:
    return np.linalg.inv(onto_from_grid @ grid.space_from_vox) @ onto.space_from_vox


def _reach(
    vox_from_out: ndarray, shape: tuple[int, int, int], size: tuple[int, ...], margin_vox: int | Int[ndarray, "3"]
) -> tuple[Int[ndarray, "3"], Int[ndarray, "3"]]:
    """First index, and the one after the last, of the voxels that an affine grid touches, never none."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    reached = transform_points(vox_from_out, corners)
    low = np.clip(np.floor(reached.min(0)) - margin_vox, 0, np.array(size) - 1).astype(int)
    high = np.clip(np.ceil(reached.max(0)) + margin_vox + 1, low + 1, size).astype(int)
    return low, high


def _touched(data: ndarray, grid: Grid, onto: Grid, onto_from_grid: ndarray, *, margin: int) -> tuple[ndarray, Grid]:
    """The part of a volume that the wanted voxels see, so that no more is smoothed; whole steps are left out."""
    steps = _steps(grid, max(onto.spacing_mm))
    low, high = _reach(_vox_from_out(grid, onto, onto_from_grid), onto.shape, data.shape, steps * margin)
    low -= low % steps
    matrix = np.array(grid.space_from_vox)
    matrix[:3, 3] = transform_points(matrix, low)
    part = data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return part, Grid(part.shape, matrix, grid.space)


def _crop(data: ndarray, vox_from_out: ndarray, shape: tuple[int, int, int]) -> tuple[ndarray, ndarray]:
    """The part of ``data`` that the wanted voxels touch, padded with zeros to a shape class; its first index."""
    low, high = _reach(vox_from_out, shape, data.shape, SPLINE_MARGIN)
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
