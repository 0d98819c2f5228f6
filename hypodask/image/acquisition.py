"""What a scanner does to the image of a head: the physics, said once for phantoms, training examples and recipes.

A scanner sees every place through its point spread, multiplied by the sensitivity of its coil. Noise is added to the
real and to the imaginary part of the signal, and the magnitude is stored. Slices may be thick, a ghost of the image may
lie over it, and the field of view may end within the head.

Nothing here is random: callers draw strengths, fields and noise, and hand them over. Volumes are arrays of NumPy or of
JAX, and so is what is returned; JAX is not imported, so that phantoms are made without it.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray
from scipy.interpolate import make_interp_spline

FWHM_TO_SIGMA = 1 / math.sqrt(8 * math.log(2))
"""Standard deviation of a Gaussian relative to its full width at half maximum."""

_WIDEST_TAPS = 0.7
"""Largest standard deviation of :func:`three_tap_spread`, voxels: a wider one would weigh the middle less than both
neighbours together."""


def gaussian_spread(places_mm: Float[Any, "n"], sigma_mm: Shaped[Any, ""] | float) -> Float[Any, "n n"]:
    """Point spread along one axis, as the matrix of Gaussian means around each sample; see :func:`apply_along`.

    Beyond both ends nothing is known, so nothing weighs there: an even image stays even.

    Parameters
    ----------
    places_mm
        Where the samples of the axis are.
    sigma_mm
        Standard deviation, above 0; ``FWHM_TO_SIGMA`` times the full width at half maximum.

    Examples
    --------
    >>> gaussian_spread(np.arange(3.0), 0.6).round(2).tolist()
    [[0.8, 0.2, 0.0], [0.17, 0.67, 0.17], [0.0, 0.2, 0.8]]
    """
    xp = _namespace(places_mm)
    weights = xp.exp(-0.5 * ((places_mm[:, None] - places_mm) / sigma_mm) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def three_tap_spread(image: Float[ndarray, "i j k"], sd_voxels: float) -> Float[ndarray, "i j k"]:
    """Point spread of up to 0.7 voxels, worked out in place: along each axis three taps with a Gaussian's variance.

    For volumes of a whole head, on which :func:`gaussian_spread` would take long. The outermost voxels are not changed.

    >>> peak = np.zeros((1, 1, 5))
    >>> peak[0, 0, 2] = 1.0
    >>> three_tap_spread(peak, 0.5)[0, 0].tolist()
    [0.0, 0.125, 0.75, 0.125, 0.0]
    """
    side = np.float32(min(sd_voxels, _WIDEST_TAPS) ** 2 / 2)
    for axis in range(3):
        view = np.moveaxis(image, axis, 0)
        # Copies, because the neighbours are needed as they were before.
        before, after = view[:-2].copy(), view[2:].copy()
        view[1:-1] = (1 - 2 * side) * view[1:-1] + side * (before + after)
    return image


def thick_slices(
    image: Float[ndarray, "i j k"], *, voxels: int, axis: int, first: float = 0.0
) -> Float[ndarray, "i j k"]:
    """An image of thick slices, read back at its own voxels by cubic splines as scans are.

    Parameters
    ----------
    image
        A volume with several voxels in each slice.
    voxels
        Thickness of a slice: the mean of so many voxels.
    axis
        Across the slices.
    first
        Where the first slice begins, from 0 to 1 slice.

    Examples
    --------
    >>> ramp = np.arange(12.0)[:, None, None]
    >>> thick_slices(ramp, voxels=3, axis=0)[4:8, 0, 0].round(1).tolist()
    [4.0, 5.0, 6.0, 7.0]
    """
    before = voxels - round(first * voxels)
    after = before + 2 * voxels
    padded = np.pad(image, [(before, after) if other == axis else (0, 0) for other in range(3)], mode="edge")
    slices = np.moveaxis(padded, axis, 0)
    slices = slices[: len(slices) // voxels * voxels].reshape(-1, voxels, *slices.shape[1:]).mean(axis=1)
    middles = voxels * np.arange(len(slices)) + (voxels - 1) / 2 - before
    read = make_interp_spline(middles, slices, k=3)(np.arange(image.shape[axis]))
    return np.moveaxis(read, 0, axis)


def ghosted(image: Float[Any, "*n"], copy: Float[Any, "*n"], strength: Shaped[Any, ""] | float) -> Float[Any, "*n"]:
    """A weak copy of an image, moved by the caller, over it, as motion and wrap-around make; ``strength`` is 0 to 1."""
    return image * (1 - 0.5 * strength) + strength * copy


def rician(signal: Float[Any, "*n"], real: Float[Any, "*n"], imaginary: Float[Any, "*n"]) -> Float[Any, "*n"]:
    """Magnitude of a signal with noise in its real and its imaginary part; air becomes brighter, never negative.

    >>> rician(np.array([0.0, 3.0]), np.array([0.0, 0.0]), np.array([1.0, 4.0])).tolist()
    [1.0, 5.0]
    """
    return _namespace(signal).hypot(signal + real, imaginary)


def in_field_of_view(
    y_mm: Float[Any, "*n"], z_mm: Float[Any, "*m"], *, bottom_mm: Any, top_mm: Any, slope: Any = 0.0
) -> Bool[Any, "..."]:
    """Whether places lie between the lower and the upper end of an image, which rise by ``slope`` towards the front.

    Places are in AC-PC space and broadcast against each other; the ends are heights at y = 0.

    >>> in_field_of_view(np.zeros(3), np.array([-60.0, 0.0, 90.0]), bottom_mm=-50.0, top_mm=80.0).tolist()
    [False, True, False]
    """
    height = z_mm + slope * y_mm
    return (height < top_mm) & (height > bottom_mm)


def is_face(y_mm: Float[Any, "*n"], z_mm: Float[Any, "*m"], brow_mm: Any) -> Bool[Any, "..."]:
    """Whether places in AC-PC space are of a face, which defacing removes: before and below a slanted plane.

    The plane leads from the bridge of the nose, at the height ``brow_mm``, down and back to the chin.
    """
    return (y_mm > 20.0) & (z_mm < brow_mm + 0.7 * (y_mm - 40.0))


def interpolation(size: int, knots: int, *, xp: Any = np) -> Float[Any, "size knots"]:
    """Linear interpolation from knots that span an axis from its first to its last sample, as a matrix.

    Smooth things, such as the sensitivity of a coil, are made at few knots and carried to the voxels by it.
    ``xp`` is ``jax.numpy`` for a matrix of JAX.

    >>> interpolation(3, 2).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    places = xp.linspace(0.0, knots - 1.0, size)
    return xp.maximum(0.0, 1 - xp.abs(places[:, None] - xp.arange(knots))).astype(np.float32)


def from_knots(values: Float[Any, "_ _ _"], shape: Sequence[int]) -> Float[Any, "_ _ _"]:
    """A field of a shape from its values at knots that span every axis: linear in between.

    >>> from_knots(np.arange(8.0).reshape(2, 2, 2), (3, 2, 2))[:, 0, 0].tolist()
    [0.0, 2.0, 4.0]
    """
    xp = _namespace(values)
    steps = [interpolation(size, knots, xp=xp) for size, knots in zip(shape, values.shape, strict=True)]
    return apply_along(steps, values)


def apply_along(matrices: Sequence[Float[Any, "_ _"]], volume: Float[Any, "i j k *c"]) -> Float[Any, "_ _ _ *c"]:
    """One matrix along each of the first three axes."""
    first, second, third = matrices
    options = {"optimize": True} if isinstance(volume, ndarray) else {}
    return _namespace(volume).einsum("ai,bj,ck,ijk...->abc...", first, second, third, volume, **options)


def _namespace(array: Any) -> ModuleType:
    """The module whose functions take this array: ``numpy`` or ``jax.numpy``."""
    module: ModuleType = array.__array_namespace__()
    return module
