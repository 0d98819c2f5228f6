"""Each real head as it is, and as blurrier scanners would give it."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

from hypodask.intensity import scale_by
from hypodask.network.weights import InputGeometry

Image = Float[ndarray, "i j k"]

Scanner = Callable[[Image, tuple[float, float, float]], Image]
"""From an image and its spacing in mm to what another scanner would have given."""

SLICE_MM = 3.0
"""Thickness of the slices of clinical scans."""


def sharp(image: Image, spacing_mm: tuple[float, float, float]) -> Image:
    """The head as it was scanned."""
    return image


def blurred(image: Image, spacing_mm: tuple[float, float, float], *, sd_mm: tuple[float, float, float]) -> Image:
    """A head seen with a wider point spread, a Gaussian of standard deviation ``sd_mm`` along each axis."""
    return gaussian_filter(image, np.divide(sd_mm, spacing_mm))


def in_slices(image: Image, spacing_mm: tuple[float, float, float], *, axis: int, first: float) -> Image:
    """A head scanned in slices of ``SLICE_MM`` along an axis, and read as scans are, by cubic splines.

    ``first`` is where slices begin, from 0 to 1 slice.
    """
    count = round(SLICE_MM / spacing_mm[axis])
    before = count - round(first * count)
    after = before + 2 * count
    padded = np.pad(image, [(before, after) if other == axis else (0, 0) for other in range(3)], mode="edge")
    slices = np.moveaxis(padded, axis, 0)
    slices = slices[: len(slices) // count * count].reshape(-1, count, *slices.shape[1:]).mean(axis=1)
    middles = count * np.arange(len(slices)) + (count - 1) / 2 - before
    read = make_interp_spline(middles, slices, k=3)(np.arange(image.shape[axis]))
    return np.moveaxis(read, 0, axis)


softer = partial(blurred, sd_mm=(0.6, 0.6, 0.6))


def versions_of(
    image: Image, scanners: tuple[Scanner, ...], geometry: InputGeometry, core: tuple[slice, ...]
) -> Float[ndarray, "version i j k"]:
    """What each scanner makes of one head, scaled as the network's own box would be."""
    versions = [scanner(image, geometry.spacing_mm) for scanner in scanners]
    return np.stack([scale_by(version, version[core]) for version in versions]).astype(np.float16)
