"""Scalings of intensities before a network sees them, by the names that model cards give.

Scanners give arbitrary units. The scalings of our own networks put white matter near 1 and cut brighter tissue, so
that fat and vessels do not set the scale; published networks expect 0 to 1.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from jaxtyping import Float32, Real
from numpy import ndarray

WHITE_OVER_MEDIAN = 1.5
"""White matter relative to the median of the voxels of a head, roughly: a scale, which was not measured."""

BRIGHTEST = 1.5
"""Intensities are cut at this many times white matter."""

_DARK = 0.1
"""Relative to white matter: ``spread_dark`` is about linear below this intensity, and logarithmic above."""

_WINDOW_PERCENTILES = (0.5, 99.5)
"""Percentiles of the positive voxels that become 0 and 1 for the published subunit network."""

FLUID_LEVEL, FLUID_WIDTH = 0.42, 0.06
"""Intensity between fluid and grey matter, relative to white matter, and the width of the step between them; read off
the histograms of seven heads."""


def white_level(data: Real[ndarray, "i j k"]) -> float:
    """Intensity of white matter in a whole head, roughly; infinite where nothing stands out.

    The voxels above the mean are mostly head; those above 0.3 of their median are the head.

    >>> white_level(np.full((2, 2, 2), 30.0) * [1, 2])
    67.5
    """
    # In the order of the memory: to sample a Fortran array in C order costs a transposed copy of it.
    sample = data.ravel(order="K")[:: max(1, data.size // 500_000)]
    above = sample[sample > sample.mean()]
    if not above.size:
        return np.inf
    head = sample[sample > 0.3 * np.median(above)]
    return float(WHITE_OVER_MEDIAN * np.median(head))


def head_median(data: Real[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """Scale by the median of the voxels that belong to a head; for whole heads.

    >>> head_median(np.full((2, 2, 2), 30.0) * [1, 2]).max().round(2)
    np.float32(0.89)
    """
    return _cut(data / white_level(data))


def _head_dark(data: Real[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """Scale as ``head_median``, then spread as :func:`spread_dark`; from 0 to 1."""
    return cast(ndarray, spread_dark(head_median(data)))


def spread_dark(levels: Any, *, xp: Any = np) -> Any:
    """Intensities in units of white matter, dark ones spread over more of the range from 0 to 1.

    Bone and fluid differ by a tenth of white matter, and their contrast shows where the intracranial volume ends; that
    between grey and white matter is less useful there. ``xp`` is ``jax.numpy`` for arrays of JAX.

    >>> spread_dark(np.array([0.1, 0.2, 0.8, 1.0, 1.5], np.float32)).round(2).tolist()
    [0.25999..., 0.4199..., 0.8199..., 0.8799..., 1.0]
    """
    return xp.arcsinh(levels / np.float32(_DARK)) / np.float32(np.arcsinh(BRIGHTEST / _DARK))


def box_bright(data: Real[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """Scale by the 90th percentile of the positive voxels; for a box inside the brain, where that is white matter."""
    return scale_by(data, data)


def scale_by(data: Real[ndarray, "i j k"], box: Real[ndarray, "x y z"]) -> Float32[ndarray, "i j k"]:
    """Scale one volume as ``box_bright`` scales another, such as a box inside it."""
    level = bright_level(box)
    return _cut(data / level) if level > 0 else np.zeros(data.shape, np.float32)


def bright_level(box: Real[ndarray, "x y z"]) -> float:
    """Intensity of the bright tissue in a box inside the brain, which is white matter; 0 where nothing is positive."""
    positive = box[box > 0]
    return float(np.percentile(positive, 90)) if positive.size else 0.0


def window(data: Real[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """Scale to [0, 1] between two percentiles of the voxels above zero, as the published networks expect.

    An image without two different positive values becomes zero.

    >>> window(np.arange(8.0).reshape(2, 2, 2)).max()
    np.float32(1.0)
    """
    return windowed(data, *intensity_window(data))


def intensity_window(data: Real[ndarray, "i j k"]) -> tuple[float, float]:
    """Intensities that become 0 and 1, from the voxels above zero of a whole scan."""
    positive = data[data > 0]
    low, high = np.percentile(positive, _WINDOW_PERCENTILES) if positive.size else (0.0, 0.0)
    return float(low), float(high)


def windowed(data: Real[ndarray, "i j k"], low: float, high: float) -> Float32[ndarray, "i j k"]:
    """Intensities from ``low`` to ``high`` as 0 to 1, cut beyond; zeros where the two are one.

    >>> windowed(np.array([[[1.0, 2.0, 5.0]]]), 1.0, 3.0).tolist()
    [[[0.0, 0.5, 1.0]]]
    """
    if high <= low:
        return np.zeros(data.shape, np.float32)
    return np.clip((data - low) / (high - low), 0, 1).astype(np.float32)


def _cut(data: ndarray) -> Float32[ndarray, "i j k"]:
    return np.clip(data, 0.0, BRIGHTEST).astype(np.float32)


SCALINGS: dict[str, Callable[[ndarray], ndarray]] = {
    "head_median": head_median,
    "head_dark": _head_dark,
    "box_bright": box_bright,
    "window": window,
}
"""By the name that a model card gives."""
