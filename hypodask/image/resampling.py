"""Pull resampling: the value of the stored scan at every voxel of the wanted grid.

One interpolation leads from the stored scan to each network's grid, never two in a row. Three orders:
0 nearest, 1 trilinear, 3 cubic B-spline with the exact prefilter (Unser 1999). Where the wanted voxels are
larger than the stored ones, a Gaussian low-pass whose full width at half maximum is the wanted voxel comes first.

Edges are those of ``scipy.ndimage.map_coordinates(mode="grid-constant")``: the volume goes on as zeros. Between the
outermost voxel centres nothing is lost; beyond them the image fades to 0 within one voxel (nearest: drops to 0
after half a voxel; cubic: rings to both sides of the edge as a spline does at a step).

A large grid that is much finer than the stored voxels, as the slab is, gets the same spline in two stages: its values
on every ``f``-th wanted voxel of an axis, about half a stored voxel apart, and between those the cubic spline through
them, by small matrices. Two samples a voxel determine a spline nearly: ``_STAGE_VOX`` says what is lost.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int
from numpy import ndarray
from scipy.interpolate import make_interp_spline

from hypodask.core.grid import Grid, transform_points
from hypodask.image.acquisition import FWHM_TO_SIGMA

Order = Literal[0, 1, 3]

_POLE = np.sqrt(3.0) - 2.0
"""The cubic prefilter's response, alternating in sign, falls by this factor a voxel."""

_SPLINE_MARGIN = 12
"""Voxels on either side that a spline's coefficient is made from; what lies further weighs less than 1e-7."""

_BLUR_MARGIN = 5
"""Thinned voxels kept around a crop for the low-pass, whose standard deviation is at most 0.85 of one."""

_NEGLIGIBLE = 1e-6
"""Weights of a matrix that are smaller than this share of its largest are left out."""

_BAND_ROWS = 16
"""Rows of a banded matrix that are applied at a time. Measured on one core of an EPYC: thinning 256 x 256 x 256 voxels
from 1 to 4 mm takes 27 ms by 16 rows, 47 ms by 64, which is the whole matrix; 8 and 24 are no better."""

_STAGE_VOX = 0.55
"""Longest step of the first of two stages, in stored voxels: 0.5 mm for a slab from 1 mm voxels, 0.375 mm from 0.7 mm.

Measured against sums of waves of any direction and up to 0.95 of the finest that the voxels hold, voxels of 0.7 to
1.2 mm: the error is 0.987 to 1.023 times that of one stage (with 0.72 it would be up to 1.11). On a simulated head of
1 mm both stages differ from the one by 0.014 % of white matter (root mean square; at most 0.23 %)."""

_STAGE_POINTS = 2**18
"""Grids of fewer voxels are computed in one stage: two would save little."""

_STAGE_MARGIN = 4
"""Samples of the first stage beyond the ends of an axis, so that the inexact ends of the spline lie outside."""

_SAME = 1e-3
"""Voxel sizes that differ by less than this share are one size."""


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
        margin = _BLUR_MARGIN + (_SPLINE_MARGIN if order == 3 else 1)
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
    if order == 1 and _is_along_axes(vox_from_out):
        return _stretched(data, vox_from_out, onto.shape)
    strides = _stage_strides(vox_from_out, onto.shape) if order == 3 else (1, 1, 1)
    vox_from_out, shape = _first_stage(vox_from_out, onto.shape, strides)
    block, first = _block(data, vox_from_out, shape, order)
    vox_from_out[:3, 3] -= first
    return _second_stage(np.asarray(_pull(block, vox_from_out, shape, order)), onto.shape, strides)


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
    # The slowest axis in memory first: the fastest costs most, and by then the volume is small.
    for axis in np.argsort(np.abs(data.strides))[::-1].tolist():
        step, ratio = steps[axis], spacing_mm / grid.spacing_mm[axis]
        if ratio < 1 + _SAME:
            continue
        data = _along(axis, _means(data.shape[axis], int(step), FWHM_TO_SIGMA * np.sqrt(ratio**2 - 1)), data)
        matrix[:3, 3] += matrix[:3, axis] * (step - 1) / 2
        matrix[:3, axis] *= step
    return data, Grid(data.shape, matrix, grid.space)


def smoothed(data: Float32[ndarray, "i j k"], sigma_vox: float) -> Float32[ndarray, "i j k"]:
    """Gaussian means along every axis: more than twice as fast as scipy's, and beyond the borders nothing weighs.

    >>> smoothed(np.ones((9, 9, 9), np.float32), 2.0).round(5).min().item()
    1.0
    """
    for axis, size in enumerate(data.shape):
        data = _along(axis, _means(size, 1, sigma_vox), data)
    return data


def _steps(grid: Grid, spacing_mm: float) -> Int[ndarray, "3"]:
    """Whole stored voxels in a wanted one, along each axis."""
    return np.maximum(1, np.floor(spacing_mm / np.array(grid.spacing_mm) + _SAME)).astype(int)


def _means(size: int, step: int, sigma: float) -> Float32[ndarray, "thin size"]:
    """Gaussian means at the middle of every ``step`` voxels of an axis, as a matrix."""
    centres = np.arange(-(-size // step)) * step + (step - 1) / 2
    weights = np.exp(-0.5 * ((np.arange(size) - centres[:, None]) / sigma) ** 2)
    weights[weights < _NEGLIGIBLE] = 0
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _along(axis: int, matrix: Float32[ndarray, "m n"], data: ndarray) -> Float32[ndarray, "..."]:
    """A banded matrix applied to one axis of a volume, which stays in its memory order."""
    if abs(data.strides[0]) < abs(data.strides[2]):
        return _along(2 - axis, matrix, data.T).T
    out = np.empty((*data.shape[:axis], len(matrix), *data.shape[axis + 1 :]), np.float32)
    # Matrices that are views of the volume, whichever the axis: BLAS reads and writes them in place.
    given, wanted = np.moveaxis(data.astype(np.float32, copy=False), axis, 1), np.moveaxis(out, axis, 1)
    for rows, columns in _bands(matrix):
        np.matmul(matrix[rows, columns], given[:, columns], out=wanted[:, rows])
    return out


def _bands(matrix: Float32[ndarray, "m n"]) -> Iterator[tuple[slice, slice]]:
    """Some rows at a time, and the columns in which they are not 0."""
    for start in range(0, len(matrix), _BAND_ROWS):
        rows = slice(start, start + _BAND_ROWS)
        used = np.flatnonzero(matrix[rows].any(axis=0))
        yield rows, slice(used[0], used[-1] + 1) if used.size else slice(1)


def _vox_from_out(grid: Grid, onto: Grid, onto_from_grid: ndarray) -> Float[ndarray, "4 4"]:
    return np.linalg.inv(onto_from_grid @ grid.space_from_vox) @ onto.space_from_vox


def _is_along_axes(vox_from_out: Float[ndarray, "4 4"]) -> bool:
    """Whether two grids differ by size and place of their voxels only."""
    linear = vox_from_out[:3, :3]
    return bool(np.abs(linear - np.diag(np.diag(linear))).max() < _NEGLIGIBLE)


def _stretched(
    data: Float32[ndarray, "i j k"], vox_from_out: Float[ndarray, "4 4"], shape: tuple[int, ...]
) -> Float32[ndarray, "x y z"]:
    """Trilinear interpolation between grids along the same axes: one axis after the other, by small matrices."""
    for axis, (size, wanted) in enumerate(zip(data.shape, shape, strict=True)):
        places = vox_from_out[axis, 3] + vox_from_out[axis, axis] * np.arange(wanted)
        hats = np.clip(1 - np.abs(places[:, None] - np.arange(size)), 0, None)
        data = _along(axis, hats.astype(np.float32), data)
    return data


def _reach(vox_from_out: ndarray, shape: tuple[int, ...]) -> tuple[Int[ndarray, "3"], Int[ndarray, "3"]]:
    """First and last index of the voxels between which an affine grid lies."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    reached = transform_points(vox_from_out, corners)
    return np.floor(reached.min(0)).astype(int), np.ceil(reached.max(0)).astype(int)


def _touched(data: ndarray, grid: Grid, onto: Grid, onto_from_grid: ndarray, *, margin: int) -> tuple[ndarray, Grid]:
    """The part of a volume that the wanted voxels depend on, never empty; it begins at a whole step of the low-pass."""
    steps = _steps(grid, max(onto.spacing_mm))
    low, high = _reach(_vox_from_out(grid, onto, onto_from_grid), onto.shape)
    low = np.clip(low - steps * margin, 0, np.array(data.shape) - 1)
    high = np.clip(high + steps * margin + 1, low + 1, data.shape)
    low -= low % steps
    part = _part(data, low, high)
    return part, grid.block(low, part.shape)


def _block(
    data: ndarray, vox_from_out: ndarray, shape: tuple[int, ...], order: Order
) -> tuple[Float32[ndarray, "i j k"], Int[ndarray, "3"]]:
    """Samples, or coefficients for order 3, that the wanted voxels touch; the index in ``data`` of the first.

    The last ones beyond a border of the volume are 0, so that all that lies further out is 0 by clamping.
    """
    size, beyond = np.array(data.shape), _SPLINE_MARGIN + 1 if order == 3 else 1
    low, high = _reach(vox_from_out, shape)
    # Two more than the support: places are rounded to float32 later on.
    low = np.clip(low - 2, -beyond, size + beyond - 1)
    high = np.clip(high + 4, low + 1, size + beyond)
    if order == 3:
        return _coefficients(data, low, high), low
    near, far = np.clip(low, 0, size), np.clip(high, 0, size)
    return np.pad(_part(data, near, far), np.stack([near - low, high - far], axis=1)), low


def _part(data: ndarray, low: Int[ndarray, "3"], high: Int[ndarray, "3"]) -> ndarray:
    return data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]


def _coefficients(data: ndarray, low: Int[ndarray, "3"], high: Int[ndarray, "3"]) -> Float32[ndarray, "i j k"]:
    """B-spline coefficients ``low`` to ``high`` of a volume; some may be of places outside."""
    near = np.clip(low - _SPLINE_MARGIN, 0, np.array(data.shape) - 1)
    part = _part(data, near, np.clip(high + _SPLINE_MARGIN, near + 1, data.shape))
    for axis in range(3):
        first, last = int(low[axis] - near[axis]), int(high[axis] - near[axis])
        part = _along(axis, _spline_inverse(first, last, part.shape[axis]), part)
    return part


def _spline_inverse(low: int, high: int, size: int) -> Float32[ndarray, "wanted size"]:
    """B-spline coefficients ``low`` to ``high`` of ``size`` samples that zeros surround, as a matrix (Unser 1999).

    >>> samples = np.array([0, 1, 4, 1, 0]) / 6
    >>> np.allclose(_spline_inverse(-1, 6, 5) @ samples, [0, 0, 0, 1, 0, 0, 0], atol=1e-5)
    True
    """
    apart = np.abs(np.arange(low, high)[:, None] - np.arange(size))
    return np.where(apart <= _SPLINE_MARGIN, np.sqrt(3) * _POLE**apart, 0).astype(np.float32)


def _stage_strides(vox_from_out: Float[ndarray, "4 4"], shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Which wanted voxels of each axis the first stage takes: every one, every second, ...

    >>> _stage_strides(np.diag([0.125, 0.5, 0.125, 1.0]), (512, 50, 512))
    (4, 1, 4)
    """
    if np.prod(shape) < _STAGE_POINTS:
        return (1, 1, 1)
    steps_vox = np.linalg.norm(vox_from_out[:3, :3], axis=0)
    return tuple(np.maximum(1, _STAGE_VOX / steps_vox).astype(int).tolist())


def _first_stage(
    vox_from_out: Float[ndarray, "4 4"], shape: tuple[int, int, int], strides: tuple[int, ...]
) -> tuple[Float[ndarray, "4 4"], tuple[int, ...]]:
    """The grid of the first stage: every ``strides``-th voxel, and some beyond both ends."""
    out_from_stage = np.diag([*strides, 1.0])
    out_from_stage[:3, 3] = [-_STAGE_MARGIN * n if n > 1 else 0 for n in strides]
    sizes = (len(_between(n, stride)[0]) if stride > 1 else n for n, stride in zip(shape, strides, strict=True))
    return vox_from_out @ out_from_stage, tuple(sizes)


def _second_stage(
    values: Float32[ndarray, "i j k"], shape: tuple[int, int, int], strides: tuple[int, ...]
) -> Float32[ndarray, "x y z"]:
    """Voxels between those of the first stage."""
    # The last axis first: the volume is large when the first is done, and that one's rows are the longest.
    for axis in (2, 1, 0):
        if strides[axis] > 1:
            values = _along(axis, _between(shape[axis], strides[axis]), values)
    return values


@lru_cache(maxsize=16)
def _between(size: int, stride: int) -> Float32[ndarray, "size sample"]:
    """Values at ``size`` voxels of the cubic spline through every ``stride``-th and ``_STAGE_MARGIN`` on either side.

    >>> ramp = np.arange(-_STAGE_MARGIN, 3 + _STAGE_MARGIN) * 4.0
    >>> np.round(_between(9, 4) @ ramp, 4).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    """
    places = np.arange(size) / stride + _STAGE_MARGIN
    samples = int(np.ceil(places[-1])) + _STAGE_MARGIN + 1
    matrix = make_interp_spline(np.arange(samples), np.eye(samples), k=3)(places)
    return np.where(np.abs(matrix) < _NEGLIGIBLE, 0, matrix).astype(np.float32)


def _pull(
    data: Float32[ndarray, "i j k"] | Float32[Array, "i j k"],
    vox_from_out: Float[ndarray, "4 4"],
    shape: tuple[int, ...],
    order: Order,
) -> Float[Array, "x y z"]:
    """Gather ``data`` (B-spline coefficients for order 3) at the voxels of an affine grid.

    Indices beyond the array are clamped; callers pad with what should be found there. Compiled once for each
    wanted shape and each class of sizes of ``data``, however its axes are.
    """
    data = np.asarray(data, np.float32)
    data = data if data.flags.f_contiguous else np.ascontiguousarray(data)
    strides = np.array(data.strides) // data.itemsize
    flat = data.ravel(order="K")
    padded = np.zeros(_size_class(flat.size), np.float32)
    padded[: flat.size] = flat
    sizes = np.array([data.shape, strides], np.int32)
    return _pull_planes(padded, sizes, np.asarray(vox_from_out[:3], np.float32), shape, order)


def _size_class(size: int) -> int:
    """The next power of four, from 64 thousand voxels on, so that a cohort of mixed sizes compiles few kernels.

    >>> [_size_class(n) for n in (10, 70_000, 600_000)]
    [65536, 262144, 1048576]
    """
    return int(max(4**8, 4 ** np.ceil(np.log2(size) / 2)))


@partial(jax.jit, static_argnames=("shape", "order"))
def _pull_planes(
    flat: Float[Array, "n"],
    sizes: Int[Array, "2 3"],
    vox_from_out: Float[Array, "3 4"],
    shape: tuple[int, ...],
    order: Order,
) -> Float[Array, "x y z"]:
    """One plane of the wanted grid after the other, so that the indices of only one are in memory."""
    y, z = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in shape[1:]), indexing="ij")
    plane = jnp.stack([jnp.zeros(y.size), y.ravel(), z.ravel(), jnp.ones(y.size)])

    def values(x: Array) -> Array:
        # A product of matrices, for the reason that ``gather`` gives; on a GPU the default would be of 10 bits.
        places = jnp.dot(vox_from_out, plane.at[0].set(x), precision="highest")
        return _gather(flat, sizes, places, order)

    return jax.lax.map(values, jnp.arange(shape[0], dtype=jnp.float32)).reshape(shape)


def gather(data: Float[Array, "i j k"], points: Float[Array, "3 n"], order: Order) -> Float[Array, "n"]:
    """Interpolate at points given in voxels; clamped at the borders of the array.

    Inside a compiled function, make the points by a product of matrices or take them as an argument: XLA may work out
    a sum twice, rounded differently for the index and for the weights, and a point within rounding of a whole voxel
    is then a voxel off (seen for one of a million).
    """
    sizes = np.array([data.shape, (data.shape[1] * data.shape[2], data.shape[2], 1)], np.int32)
    return _gather(jnp.asarray(data).reshape(-1), sizes, points, order)


def gather_channels(
    data: Float[Array, "i j k c"] | Float[ndarray, "i j k c"], points: Float[Array, "3 n"] | Float[ndarray, "3 n"]
) -> Float32[Array, "n c"]:
    """Trilinear interpolation of all channels at points given in voxels; clamped at the borders of the array.

    Channels lie side by side in memory, so that each corner is one look-up for all of them.
    """
    base = jnp.floor(points)
    part = points - base
    last = np.array(data.shape[:3])[:, None] - 1
    low, high = (jnp.clip(base + step, 0, last).astype(jnp.int32) for step in (0, 1))
    total = jnp.zeros((points.shape[1], data.shape[3]), jnp.float32)
    for corner in np.ndindex(2, 2, 2):
        i, j, k = (high[axis] if up else low[axis] for axis, up in enumerate(corner))
        share = jnp.prod(jnp.stack([part[axis] if up else 1 - part[axis] for axis, up in enumerate(corner)]), axis=0)
        total = total + share[:, None] * jnp.asarray(data).at[i, j, k].get(mode="promise_in_bounds")
    return total


def _gather(
    flat: Float[Array, "n"], sizes: Int[Array, "2 3"] | Int[ndarray, "2 3"], points: Float[Array, "3 m"], order: Order
) -> Float[Array, "m"]:
    """As ``gather``, from an array of any memory order; ``sizes`` are its shape and strides."""
    first, weights = _taps(points, order)
    taps = range(len(weights))
    index = [[jnp.clip(first[axis] + tap, 0, sizes[0, axis] - 1) * sizes[1, axis] for tap in taps] for axis in range(3)]
    total = jnp.zeros(points.shape[1], flat.dtype)
    for a in taps:
        for b in taps:
            corner = index[0][a] + index[1][b]
            # Clamped already: without the promise each of up to 64 look-ups would be checked and clamped again.
            found = [flat.at[corner + index[2][c]].get(mode="promise_in_bounds") for c in taps]
            line = sum(weights[c][2] * value for c, value in enumerate(found))
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
