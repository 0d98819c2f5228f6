"""Volumes that are right on average on heads that a network has not seen.

Borders that a network is unsure of, and heads that are not varied as its examples were, leave its volumes some per cent
too large. One number mends it, the log-odds that are added to the background everywhere, found where the volumes of
left-out heads are right on average.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq

from hypodask.network.architectures import AnyNetwork
from hypodask.segmentation.segmentation import Segmentation
from hypodask.volumes import measure

LARGEST_OFFSET = 2.0
"""Log-odds within which the offset is looked for; it was 0.16 for the shipped networks."""


def fitted_offset(found: Mapping[str, tuple[Segmentation, float]]) -> float:
    """Log-odds to add to the background, so that the volumes' mean logarithm is right.

    Parameters
    ----------
    found
        By head: what a network that had not seen it says, and its true volume in mm3.

    Raises
    ------
    ValueError
        If no offset within ``LARGEST_OFFSET`` makes them right.
    """

    def error(offset: float) -> float:
        return float(np.mean([np.log(volume_mm3(shifted(one, offset)) / true) for one, true in found.values()]))

    return float(brentq(error, -LARGEST_OFFSET, LARGEST_OFFSET, xtol=1e-3))


def volume_mm3(segmentation: Segmentation) -> float:
    """Soft volume of the whole structure."""
    return measure(segmentation).soft_mm3[segmentation.labels.whole]


def shifted(segmentation: Segmentation, offset: float) -> Segmentation:
    """Posteriors after log-odds are added to the background; the labels keep their shares of the rest.

    >>> from hypodask.grid import box_grid
    >>> from hypodask.labels import ICV
    >>> half = Segmentation(np.full((2, 1, 1, 1), 0.5), box_grid((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), ICV)
    >>> shifted(half, np.log(3)).posteriors.ravel().round(3).tolist()
    [0.75, 0.25]
    """
    return replace(segmentation, posteriors=odds_shifted(segmentation.posteriors, offset), member_wholes=None)


def odds_shifted(posteriors: Float[ndarray, "channel i j k"], offset: float) -> Float[ndarray, "channel i j k"]:
    """As ``shifted``, of an array."""
    raised = posteriors.copy()
    raised[0] *= np.exp(offset)
    return raised / raised.sum(axis=0)


def calibrated(model: AnyNetwork, offset: float) -> AnyNetwork:
    """The same network, with the offset in its last bias."""
    copy = nnx.clone(model)
    bias = copy.classify.bias
    assert bias is not None  # noqa: S101 - every U-Net of ours has one
    bias.set_value(jnp.asarray(bias[...]).at[0].add(offset))
    return copy
