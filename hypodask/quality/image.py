"""Measures of the image: noise, resolution and fluid around the hypothalamus; contrast and air of the whole head.

None of them may depend on what changes no volume. A smooth shading of the coil is removed or left out: levels are
those around the hypothalamus, and the contrast of the whole head is measured after division by a smooth field.
A constant that was added to all intensities cancels in differences between tissues, of which most measures are made.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from hypodask.core.grid import Grid, transform_points
from hypodask.image.masks import largest_piece

_BOX_MM = ((-25.0, -35.0, -28.0), (25.0, 20.0, 20.0))
"""Corners in AC-PC space of the box around the hypothalamus in which noise and resolution are measured: it holds white
matter, grey matter and fluid, all inside the skull."""

_COARSE_MM = 2.0
"""Measures of the whole head use voxels about this far apart."""

_AIR_DISTANCE_MM = 14.0
"""Air is measured this far from the head. Nearer, pulsation of vessels and ringing of the scalp are usual."""

_SMALLEST_AIR_SHARE = 0.02
"""Share of the image that has to be air for its brightness to be measured."""

BLACK = 0.02
"""Voxels inside the head darker than this show nothing, in units of white matter; fluid has 0.1 to 0.4."""

_BLOCK_MM = 20.0
"""The brightness of white matter is measured in cubes of this size; each holds some in most of the head."""

_WHITE_PERCENTILE = 85
"""Percentile of the intensities inside the ICV mask that is white matter."""

_FULL_BLOCK = 0.4
"""Share of a cube that has to lie in the ICV mask."""

_FEWEST_BLOCKS = 30
"""No smooth field is fitted to fewer cubes than this, since it has ten coefficients."""

_BESIDE_MM = (3.0, 33.0)
"""The two sides are compared this far from the midsagittal plane: near enough that smooth shading hardly tells them
apart."""


@dataclass(frozen=True)
class Levels:
    """Intensities of fluid and of white matter inside the ICV mask."""

    fluid: float
    white: float

    @property
    def contrast(self) -> float:
        """Difference of the two, above zero."""
        return max(self.white - self.fluid, 1e-6)


def levels(inside: Float[ndarray, "n"]) -> Levels:
    """Fluid and white matter as the 3rd and the 85th percentile of intensities inside the ICV mask.

    >>> levels(np.arange(101.0))
    Levels(fluid=3.0, white=85.0)
    """
    fluid, white = np.percentile(inside, (3, _WHITE_PERCENTILE)).tolist()
    return Levels(fluid, white)


def without_shading(
    data: Float[ndarray, "i j k"], icv_mask: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]
) -> Float[ndarray, "n"]:
    """Intensities inside the ICV mask, divided by the smooth field that makes white matter equally bright everywhere.

    The logarithm of the field is a polynomial of second degree, fitted to the bright intensities of cubes of 20 mm. A
    quarter of the cubes, those that fit worst, are left out and the rest is fitted again. It follows the shading of a
    coil, and is too smooth to follow lost signal. The mean of the field's logarithm is 0. Where too few cubes can be
    used, nothing is divided.

    Examples
    --------
    >>> shade = np.exp(np.linspace(-0.5, 0.5, 60))[:, None, None]
    >>> flat = without_shading(shade * np.ones((60, 60, 60)), np.ones((60, 60, 60), bool), (2.0, 2.0, 2.0))
    >>> bool(np.ptp(flat) < 0.01)
    True
    """
    places = np.argwhere(icv_mask)
    values = data[icv_mask].astype(np.float64)
    size = np.maximum(np.rint(_BLOCK_MM / np.array(spacing_mm)), 1).astype(int)
    blocks = np.ravel_multi_index(tuple((places // size).T), tuple(-(-np.array(data.shape) // size)))
    order = np.argsort(blocks, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1)
    full = [own for own in groups if len(own) >= _FULL_BLOCK * size.prod()]
    levels_ = np.array([np.percentile(values[own], _WHITE_PERCENTILE) for own in full])
    if (levels_ > 0).sum() < _FEWEST_BLOCKS:
        return values
    scale = np.array(data.shape) / 2
    terms = _quadratic_terms(np.array([places[own].mean(axis=0) for own in full])[levels_ > 0] / scale - 1)
    wanted = np.log(levels_[levels_ > 0])
    fitted = np.linalg.lstsq(terms, wanted, rcond=None)[0]
    misfit = np.abs(terms @ fitted - wanted)
    well = misfit <= np.percentile(misfit, 75)
    field = _quadratic_terms(places / scale - 1) @ np.linalg.lstsq(terms[well], wanted[well], rcond=None)[0]
    return values / np.exp(field - field.mean())


def _quadratic_terms(places: Float[ndarray, "n 3"]) -> Float[ndarray, "n 10"]:
    """Everything of at most second degree in the coordinates."""
    x, y, z = places.T
    return np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, z * x], axis=1)


def coarse_index(grid: Grid) -> tuple[slice, ...]:
    """An index that takes voxels of a scan about 2 mm apart."""
    return tuple(slice(None, None, max(1, round(_COARSE_MM / spacing))) for spacing in grid.spacing_mm)


def box_about_hypothalamus(grid: Grid, acpc_from_scanner: Float[ndarray, "4 4"]) -> tuple[slice, ...]:
    """The voxels of a scan around the hypothalamus: a box along the array's axes that covers ``_BOX_MM``."""
    corners = np.array(np.meshgrid(*zip(*_BOX_MM, strict=True))).reshape(3, -1).T
    vox = transform_points(np.linalg.inv(acpc_from_scanner @ grid.space_from_vox), corners)
    low = np.clip(np.floor(vox.min(axis=0)), 0, np.array(grid.shape) - 1).astype(int)
    high = np.clip(np.ceil(vox.max(axis=0)) + 1, low + 1, grid.shape).astype(int)
    return tuple(map(slice, low.tolist(), high.tolist()))


def noise_sd(box: Float[ndarray, "i j k"]) -> float:
    """Standard deviation of the noise of an image, from its finest details.

    The mixed difference of the eight corners of a cube of voxels removes everything that varies along less than three
    axes at once. The median of its absolute values ignores the few cubes where an edge remains (the finest diagonal
    band of a Haar wavelet; Donoho and Johnstone, Biometrika 1994). Cubes with a voxel of exactly 0 do not count: they
    are masked background. In smoothed images the noise is underestimated.

    >>> image = np.random.default_rng(0).normal(100, 3, (30, 30, 30))
    >>> round(noise_sd(image), 1)
    3.0
    """
    detail = box.astype(np.float64)
    shown = box != 0
    for axis in range(3):
        detail = np.diff(detail, axis=axis)
        shown = np.logical_and(*(np.take(shown, range(s, shown.shape[axis] - 1 + s), axis=axis) for s in (0, 1)))
    return float(np.median(np.abs(detail[shown])) / 0.6745 / np.sqrt(8)) if shown.any() else np.nan


def edge_mm(box: Float[ndarray, "i j k"], spacing_mm: tuple[float, float, float], contrast: float) -> float:
    """Width of the sharpest edges, mm: the contrast divided by the steepest gradients (99th percentile)."""
    if min(box.shape) < 4:
        return np.nan
    smooth = ndimage.gaussian_filter(box, 0.7)
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(smooth, *spacing_mm)))
    return float(contrast / max(np.percentile(slope, 99), 1e-9))


def separability(inside: Float[ndarray, "n"], bins: int = 64) -> float:
    """How well fluid, grey and white matter can be told apart, 0 to 1.

    The variance between three classes divided by the total variance, with the two thresholds that make it largest
    (Otsu 1979). Noise, motion and bias fields lower it. Not-a-number where all intensities are equal.

    >>> values = np.repeat([1.0, 2.0, 3.0], 50)
    >>> round(separability(values), 2)
    1.0
    """
    low, high = np.percentile(inside, (0.5, 99.5)).tolist() if inside.size else (0.0, 0.0)
    if not high > low:
        return np.nan
    counts, edges = np.histogram(np.clip(inside, low, high), bins=bins, range=(low, high))
    share, middle = counts / counts.sum(), (edges[:-1] + edges[1:]) / 2
    mass, moment = np.cumsum(share), np.cumsum(share * middle)
    first, second = np.triu_indices(bins - 1, k=1)
    masses = np.stack([mass[first], mass[second] - mass[first], 1 - mass[second]])
    moments = np.stack([moment[first], moment[second] - moment[first], moment[-1] - moment[second]])
    between = (moments**2 / np.maximum(masses, 1e-12)).sum(axis=0).max() - moment[-1] ** 2
    total = (share * middle**2).sum() - moment[-1] ** 2
    return float(between / total)


def sides_log_ratio(inside: Float[ndarray, "n"], x_mm: Float[ndarray, "n"]) -> float:
    """Logarithm of the contrast of the brain left of the midsagittal plane over that right of it.

    Contrast is the difference between white matter and fluid, from 3 to 33 mm beside the plane: signal that is lost on
    one side lowers it, a smooth shading over the head or a constant added to all intensities hardly does.

    Parameters
    ----------
    inside, x_mm
        Intensities inside the ICV mask without shading, and their positions in AC-PC space.
    """
    near, far = _BESIDE_MM
    left, right = (inside[(side > near) & (side < far)] for side in (-x_mm, x_mm))
    if not (left.size and right.size):
        return np.nan
    return float(np.log(levels(left).contrast / levels(right).contrast))


def air_over_noise(
    data: Float[ndarray, "i j k"], spacing_mm: tuple[float, float, float], white: float, noise: float
) -> float:
    """Mean intensity of the air over the mean that noise alone would give, at least 1.

    Motion smears the head along the phase-encoding direction into the air: the ratio rises above 1. Ratios below 1,
    such as in air that was masked, are set to 1: such air is as good as air with nothing but noise. Without signal,
    magnitude images have a mean of sigma times the root of pi / 2 (Rayleigh), sigma being the SD of the noise in each
    channel.

    Parameters
    ----------
    data, spacing_mm
        The image, and its voxel sizes.
    white, noise
        Mean intensity of white matter, and sigma; both in units of ``data``.

    Returns
    -------
    float
        Not-a-number if hardly any of the image is air, or ``noise`` is not above 0. Air is what lies farther from the
        head than 14 mm.
    """
    smooth = ndimage.uniform_filter(data, 3)
    near_head = largest_piece(smooth > 0.25 * white, by_corners=False).view(np.uint8)
    for axis, spacing in enumerate(spacing_mm):
        near_head = ndimage.maximum_filter1d(near_head, 1 + 2 * round(_AIR_DISTANCE_MM / spacing), axis=axis)
    air = ~near_head.astype(bool)
    if air.mean() < _SMALLEST_AIR_SHARE or not noise > 0:
        return np.nan
    return max(1.0, float(data[air].mean() / (np.sqrt(np.pi / 2) * noise)))
