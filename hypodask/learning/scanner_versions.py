"""Each training scan as it is, and as other scanners would give it: with a wider point spread, or with thick slices."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float, Float16
from numpy import ndarray

from hypodask.image.acquisition import apply_along, gaussian_spread, thick_slices
from hypodask.image.intensity import scale_by
from hypodask.networks.cards import InputGeometry

Image = Float[ndarray, "i j k"]

Scanner = Callable[[Image, tuple[float, float, float]], Image]
"""From an image and its spacing in mm to the image that another scanner would give."""

SLICE_MM = 3.0
"""Thickness of the slices of clinical scans."""


def sharp(image: Image, spacing_mm: tuple[float, float, float]) -> Image:
    """The image as it was scanned."""
    return image


def blurred(image: Image, spacing_mm: tuple[float, float, float], *, sd_mm: tuple[float, float, float]) -> Image:
    """The image with a wider point spread: a Gaussian of standard deviation ``sd_mm`` along each axis, 0 for none."""
    axes_mm = [spacing * np.arange(size) for spacing, size in zip(spacing_mm, image.shape, strict=True)]
    matrices = [gaussian_spread(axis, sd) if sd else np.eye(len(axis)) for axis, sd in zip(axes_mm, sd_mm, strict=True)]
    return np.asarray(apply_along(matrices, image), image.dtype)


def _in_slices(image: Image, spacing_mm: tuple[float, float, float], *, axis: int, first: float) -> Image:
    """The image scanned in slices of ``SLICE_MM`` along an axis, which begin at ``first``, from 0 to 1 slice."""
    return thick_slices(image, voxels=round(SLICE_MM / spacing_mm[axis]), axis=axis, first=first)


softer = partial(blurred, sd_mm=(0.6, 0.6, 0.6))

SCANNERS: dict[Scanner, float] = {
    sharp: 0.45,
    softer: 0.15,
    **{
        partial(_in_slices, axis=axis, first=first): share
        for axis, share in enumerate((0.1, 0.05, 0.05))
        for first in (0.0, 0.5)
    },
}
"""Scanners that show a structure deep in the brain, each with its share of the examples. Slices along x blur the walls
of the third ventricle, which is a sheet across x: they are shown twice as often."""


def versions_of(
    image: Image, scanners: tuple[Scanner, ...], geometry: InputGeometry, seen: tuple[slice, ...]
) -> Float16[ndarray, "version i j k"]:
    """The image of each scanner, in units of white matter as measured in the part that the network sees."""
    versions = [scanner(image, geometry.spacing_mm) for scanner in scanners]
    return np.stack([scale_by(version, version[seen]) for version in versions]).astype(np.float16)
