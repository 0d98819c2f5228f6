"""Volumes that are right on average on scans that a network has not seen.

Uncertain boundaries, and scans that are not varied as the training examples were, make a network's volumes some per
cent too large. One number corrects this: log-odds that are added to the background everywhere, chosen so that the
volumes of left-out scans are right on average.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq

from hypodask.networks.architectures import AnyNetwork
from hypodask.segmentation.segmentation import Segmentation
from hypodask.segmentation.volumes import measure

_LARGEST_OFFSET = 2.0
"""Largest offset that is tried, either way; it was 0.16 for the shipped networks."""


def fitted_offset(found: Mapping[str, tuple[Segmentation, float]]) -> float:
    """Log-odds to add to the background, so that the volumes' mean logarithm is right.

    Parameters
    ----------
    found
        By scan: its segmentation by a network that has not seen it, and its true volume in mm3.

    Raises
    ------
    ValueError
        If no offset within ``_LARGEST_OFFSET`` makes them right.
    """

    def error(offset: float) -> float:
        return float(np.mean([np.log(volume_mm3(shifted(one, offset)) / true) for one, true in found.values()]))

    return float(brentq(error, -_LARGEST_OFFSET, _LARGEST_OFFSET, xtol=1e-3))


def volume_mm3(segmentation: Segmentation) -> float:
    """Soft volume of the whole structure."""
    return measure(segmentation).soft_mm3[segmentation.labels.whole]


def shifted(segmentation: Segmentation, offset: float) -> Segmentation:
    """Posteriors with log-odds added to the background; the labels keep their shares of the rest.

    >>> from hypodask.core.grid import box_grid
    >>> from hypodask.core.structures import ICV
    >>> half = Segmentation(np.full((2, 1, 1, 1), 0.5), box_grid((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), ICV)
    >>> shifted(half, np.log(3)).posteriors.ravel().round(3).tolist()
    [0.75, 0.25]
    """
    return replace(segmentation, posteriors=odds_shifted(segmentation.posteriors, offset), member_wholes=None)


def odds_shifted(posteriors: Float[ndarray, "channel i j k"], offset: float) -> Float[ndarray, "channel i j k"]:
    """As ``shifted``, for an array."""
    raised = posteriors.copy()
    raised[0] *= np.exp(offset)
    return raised / raised.sum(axis=0)


def calibrated(model: AnyNetwork, offset: float) -> AnyNetwork:
    """The same network, with the offset added to its last bias."""
    copy = nnx.clone(model)
    bias = copy.classify.bias
    assert bias is not None  # noqa: S101 - every U-Net of ours has one
    bias.set_value(jnp.asarray(bias[...]).at[0].add(offset))
    return copy
