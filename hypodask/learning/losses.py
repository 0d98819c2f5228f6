"""What training minimises."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

_CROSS_ENTROPY_WEIGHT = 10.0
"""Weight of cross-entropy against soft Dice."""

_JACCARD_SMOOTHING = 1e-5
"""Voxels added to both sides of the fraction, as published."""

Loss = Callable[[Float[Array, "*n class_"], Float[Array, "*n class_"]], Float[Array, ""]]
"""From a network's logits and the true shares of the classes to what is minimised."""


def cross_entropy(logits: Float[Array, "*n class_"], truth: Float[Array, "*n class_"]) -> Float[Array, ""]:
    """Cross-entropy of all classes against soft labels, per pixel.

    A proper score: posteriors that minimise it sum to volumes that are right on average.
    """
    return optax.safe_softmax_cross_entropy(logits, truth).mean()


def segmentation_loss(logits: Float[Array, "*n class_"], truth: Float[Array, "*n class_"]) -> Float[Array, ""]:
    """Ten times the cross-entropy of all classes, plus one minus the soft Dice of the whole structure.

    Dice speeds up the first steps. By itself it makes uncertain structures too large, because its optimum is the right
    volume divided by the overlap that is reached.
    """
    overlap = _soft_dice(1 - jax.nn.softmax(logits, axis=-1)[..., :1], 1 - truth[..., :1])
    return _CROSS_ENTROPY_WEIGHT * cross_entropy(logits, truth) + 1 - overlap.mean()


def cross_entropy_jaccard_loss(logits: Float[Array, "*n class_"], truth: Float[Array, "*n class_"]) -> Float[Array, ""]:
    """What the paper's own network minimises: cross-entropy plus one minus the Jaccard index, both means over classes.

    Background counts as much as the structure, and soft labels are not its optimum: measure the bias of volumes that
    are summed from the posteriors of such a network. The same as ``categorical_crossentropy + jaccard_loss`` of
    ``segmentation_models``.
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    cross_entropy = -(truth * log_probabilities).mean()
    return cross_entropy + 1 - _soft_jaccard(jnp.exp(log_probabilities), truth).mean()


LOSSES: Mapping[str, Loss] = {
    "cross_entropy_dice": segmentation_loss,
    "cross_entropy_jaccard": cross_entropy_jaccard_loss,
}
"""Losses that a run of training can ask for, by name."""


def _soft_jaccard(a: Float[Array, "*n class_"], b: Float[Array, "*n class_"]) -> Float[Array, "class_"]:
    """Jaccard index of soft labels, class by class: what they share over what they cover together; 1 where empty."""
    axes = tuple(range(a.ndim - 1))
    shared = (a * b).sum(axes)
    return (shared + _JACCARD_SMOOTHING) / (a.sum(axes) + b.sum(axes) - shared + _JACCARD_SMOOTHING)


def _soft_dice(a: Float[Array, "*n class_"], b: Float[Array, "*n class_"]) -> Float[Array, "class_"]:
    """Dice overlap of soft labels: twice the shared over the summed squares, class by class."""
    axes = tuple(range(a.ndim - 1))
    return (2 * (a * b).sum(axes) + 1.0) / ((a**2).sum(axes) + (b**2).sum(axes) + 1.0)
