"""Where zero is: the intensity of air, which the method expects to be 0.

Magnitude images are positive, and air around the head is dark noise just above 0. Rescaled images (z-scores, -0.5 to
0.5, an offset of a converter) have their air elsewhere. Every step of the method that compares intensities with white
matter would then be wrong, without a word; so the offset is found here and removed first.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from hypodask.core.errors import BackgroundError
from hypodask.scan.scan import Scan

_SAMPLE = 500_000
"""At least so many voxels, if there are, tell the level of air."""

_TIE = 1e-5
"""Widths that differ by less, relative to the range of the image, are equal."""

_RAYLEIGH_LEVEL = 1.6
"""Level of air over its spread, both as :class:`_Air` has them, in a magnitude image, whose noise in air has a Rayleigh
distribution."""

_FILLED, _FEW = 0.2, 0.01
"""A value that more than the first share of the dark voxels have was filled in. It says nothing of air if more than the
second share is darker."""

_LEAST_OFFSET = 0.002
"""An offset that is smaller than this, relative to the contrast of bright tissue to air, stays."""

_TOLD_OFFSET = 0.1
"""From this on, likewise relative, a warning tells of the offset. It is 0.00 to 0.04 on 47 scans as stored."""

_BELOW_AIR, _FAR_BELOW = 0.02, 0.1
"""A scan is refused if more than the first share of its voxels is darker than its background, by more than the second
share of the contrast of bright tissue to it; none is in 47 scans as stored."""

_NOISY_SPREAD, _NOISY_CORRELATION = 0.5, 0.3
"""A face of the image is noise as bright as tissue if its spread is more than the first times that of the whole image,
and the voxels on it correlate with those next to them by less than the second."""

_NOISY_FACES = 4
"""An image is refused if so many of its six faces are noise: the neck may pass through one, a mask cover others."""


class _Air(NamedTuple):
    """Intensities of the background."""

    level: float
    """Middle of the shortest interval that holds half of the dark voxels."""
    spread: float
    """Half the width of that interval, over that of a standard Gaussian."""
    bright: float
    """Median of the voxels that are not dark."""
    darkest: float
    """Of all voxels."""

    @property
    def zero(self) -> float:
        """Intensity without any signal: below the level of air by what noise adds, as magnitudes are positive.

        So it is the same whether the air is noise or was masked. It is not below the darkest voxel.
        """
        return max(self.level - _RAYLEIGH_LEVEL * self.spread, self.darkest)


def _air_of(data: Float[ndarray, "..."]) -> _Air:
    """Level and spread of the darkest thing in an image that fills much of it: air, or what it was replaced by.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> head = np.hypot(rng.normal(0, 5, 9000), rng.normal(0, 5, 9000))
    >>> head[:4000] += 300.0
    >>> round(_air_of(head).zero), round(_air_of(head - 100.0).zero), round(_air_of(2.0 * head + 400.0).zero)
    (0, -100, 400)
    """
    # In the order of the memory: to sample a Fortran array in C order costs a transposed copy of it.
    flat = data.ravel(order="K")
    sample = np.sort(flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64))
    dark = _unfilled(sample[sample <= _otsu(sample)])
    half = max(1, dark.size // 2)
    widths = dark[half:] - dark[: dark.size - half]
    # Whole numbers give many intervals of one width: the middle one of them does not depend on rounding.
    shortest = np.flatnonzero(widths <= widths.min(initial=np.inf) + _TIE * np.ptp(sample))
    first = int(shortest[shortest.size // 2]) if widths.size else 0
    bright = sample[dark.size :]
    return _Air(
        level=float(dark[first : first + half].mean()),
        spread=float(widths[first] / 2 / 0.6745) if widths.size else 0.0,
        bright=float(np.median(bright)) if bright.size else float(sample[-1]),
        darkest=float(sample[0]),
    )


def _unfilled(dark: Float[ndarray, "n"]) -> Float[ndarray, "m"]:
    """Sorted dark voxels without the one value that padding gave to many of them, if there are some on either side."""
    values, counts = np.unique(dark, return_counts=True)
    filled = int(counts.argmax())
    if counts[filled] > _FILLED * dark.size and counts[:filled].sum() > _FEW * dark.size:
        return dark[dark != values[filled]]
    return dark


def _otsu(sample: Float[ndarray, "n"]) -> float:
    """The value that splits sorted numbers into two classes with the least variance within (Otsu 1979)."""
    # Bright outliers, such as vessels, would leave too few numbers on their side to matter.
    kept = sample[: max(2, int(0.995 * sample.size))]
    below = np.arange(1, kept.size)
    sums = np.cumsum(kept)
    means = sums[:-1] / below, (sums[-1] - sums[:-1]) / (kept.size - below)
    between = below * (kept.size - below) * (means[1] - means[0]) ** 2
    return float(kept[int(between.argmax())])


def above_air(scan: Scan) -> Scan:
    """The same scan with its air at zero, and a warning if that took an offset; most scans come back as they are.

    Raises
    ------
    BackgroundError
        If much of the image is darker than its background, as where the brain was z-scored within a mask, or the
        background is noise as bright as tissue, as in the uniform image of MP2RAGE.
    """
    name, air = scan.source or "scan", _air_of(scan.data)
    contrast = air.bright - air.level
    _refuse_noise(scan.data, name)
    _refuse_bright_fill(scan.data, contrast, name)
    if abs(air.zero) <= _LEAST_OFFSET * contrast:
        return scan
    warnings = list(scan.warnings)
    if abs(air.zero) > _TOLD_OFFSET * contrast:
        warnings.append(
            f"The intensity of air was {air.zero:.4g}, that of bright tissue {air.bright:.4g}; air was set to 0."
        )
    return replace(scan, intercept=scan.intercept - air.zero, warnings=tuple(warnings))


def _refuse_noise(data: Float32[ndarray, "i j k"], name: str) -> None:
    """Refuse an image whose faces hold noise as bright as a head."""
    low, high = np.percentile(data[::3, ::3, ::3], (0.5, 99.5))
    noisy = 0
    for axis in range(3):
        for outer, inner in ((0, 1), (-1, -2)):
            one, other = data.take(outer, axis).ravel(), data.take(inner, axis).ravel()
            spread = np.subtract(*np.percentile(one, (95, 5)))
            if spread > _NOISY_SPREAD * (high - low) and np.corrcoef(one, other)[0, 1] < _NOISY_CORRELATION:
                noisy += 1
    if noisy >= _NOISY_FACES:
        raise BackgroundError(
            f"{name}: the background is noise as bright as the head, on {noisy} of the 6 faces of the image, as in the "
            "uniform image (UNI) of MP2RAGE; a background darker than tissue is needed: give the image without this "
            "noise (such as UNI-DEN, or UNI times the second inversion), or another T1-weighted scan"
        )


def _refuse_bright_fill(data: Float32[ndarray, "i j k"], contrast: float, name: str) -> None:
    """Refuse an image whose faces have one value, if that is not its darkest."""
    faces = [data.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    fill = float(values[counts.argmax()])
    below = float((data[::2, ::2, ::2] < fill - _FAR_BELOW * contrast).mean())
    if counts.max() > 0.5 * counts.sum() and below > _BELOW_AIR:
        raise BackgroundError(
            f"{name}: {100 * below:.0f} % of the voxels are darker than the background ({fill:.4g}), so that the "
            "intensity of air is not known; a T1-weighted image is needed whose background is its darkest part: give "
            "the image from before its intensities were normalised"
        )
