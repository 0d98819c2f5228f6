"""What training minimises and validation reports."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

CROSS_ENTROPY_WEIGHT = 5.0
"""Of cross-entropy against soft Dice: cross-entropy sets the calibration that soft volumes need."""


def segmentation_loss(logits: Float[Array, "n h w class_"], truth: Float[Array, "n h w class_"]) -> Float[Array, ""]:
    """Cross-entropy times 5 plus soft Dice, against soft labels."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    cross_entropy = -(truth * log_probabilities).sum(-1).mean()
    return CROSS_ENTROPY_WEIGHT * cross_entropy + 1 - soft_dice(jnp.exp(log_probabilities), truth)[1:].mean()


def soft_dice(a: Float[Array, "*n class_"], b: Float[Array, "*n class_"]) -> Float[Array, "class_"]:
    """Dice overlap of soft labels: twice the shared over the summed squares, class by class."""
    axes = tuple(range(a.ndim - 1))
    return (2 * (a * b).sum(axes) + 1.0) / ((a**2).sum(axes) + (b**2).sum(axes) + 1.0)


def dice(a: Bool[ndarray, "..."], b: Bool[ndarray, "..."]) -> float:
    """Dice overlap of two masks, 0 to 1; 1 when both are empty.

    >>> import numpy as np
    >>> dice(np.array([True, True, False]), np.array([True, False, False])).__round__(3)
    0.667
    """
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
