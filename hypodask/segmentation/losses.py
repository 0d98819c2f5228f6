"""What training minimises."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CROSS_ENTROPY_WEIGHT = 10.0
"""Of cross-entropy against soft Dice. Cross-entropy is a proper score, so that posteriors may be summed to volumes;
Dice speeds up the first steps and, by itself, would make uncertain borders too large."""


def segmentation_loss(logits: Float[Array, "n h w class_"], truth: Float[Array, "n h w class_"]) -> Float[Array, ""]:
    """Cross-entropy of all classes times 10 plus soft Dice of all but background together, against soft labels."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    cross_entropy = -(truth * log_probabilities).sum(-1).mean()
    overlap = soft_dice(1 - jnp.exp(log_probabilities[..., :1]), 1 - truth[..., :1])
    return CROSS_ENTROPY_WEIGHT * cross_entropy + 1 - overlap.mean()


def soft_dice(a: Float[Array, "*n class_"], b: Float[Array, "*n class_"]) -> Float[Array, "class_"]:
    """Dice overlap of soft labels: twice the shared over the summed squares, class by class."""
    axes = tuple(range(a.ndim - 1))
    return (2 * (a * b).sum(axes) + 1.0) / ((a**2).sum(axes) + (b**2).sum(axes) + 1.0)
