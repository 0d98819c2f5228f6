"""Each real head as it is, and as blurrier scanners would give it."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.ndimage import gaussian_filter

from hypodask.intensity import scale_by
from hypodask.network.weights import InputGeometry

Blurs = tuple[tuple[float, float, float], ...]

BLURS_MM = ((0.0, 0.0, 0.0), (0.6, 0.6, 0.6), (1.27, 0.0, 0.0), (0.0, 1.27, 0.0), (0.0, 0.0, 1.27))
"""Blurred versions of each head: none, a softer scanner, 3 mm slices along x, y or z."""

BLUR_SHARES = (0.6, 0.2, 0.066, 0.067, 0.067)


def versions_of(
    image: Float[ndarray, "i j k"], blurs_mm: Blurs, geometry: InputGeometry, core: tuple[slice, ...]
) -> ndarray:
    """The versions of one head, each scaled as the network's own box would be."""
    versions = [gaussian_filter(image, np.divide(blur, geometry.spacing_mm)) for blur in blurs_mm]
    return np.stack([scale_by(version, version[core]) for version in versions]).astype(np.float16)
