"""What training minimises, against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy

from hypodask.learning.losses import _soft_dice, cross_entropy, cross_entropy_jaccard_loss, segmentation_loss


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def one_pixel_of_four():
    """Truth of a 2 x 2 slice with one pixel of foreground."""
    foreground = jnp.zeros((1, 2, 2)).at[0, 0, 0].set(1.0)
    return jnp.stack([1 - foreground, foreground], axis=-1)


def test_cross_entropy_is_that_of_the_textbook():
    random = np.random.default_rng(0)
    logits, truth = 3 * random.standard_normal((2, 3, 4, 5)), random.dirichlet(np.ones(5), (2, 3, 4))
    expected = -(truth * log_softmax(logits, axis=-1)).sum(-1).mean()
    assert cross_entropy(jnp.asarray(logits), jnp.asarray(truth)) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_is_least_at_the_soft_labels_themselves():
    truth = np.array([0.2, 0.5, 0.3]).reshape(1, 1, 1, 3)
    least, slopes = jax.value_and_grad(lambda logits: cross_entropy(logits, jnp.asarray(truth)))(jnp.log(truth))
    assert least == pytest.approx(entropy(truth.ravel()), rel=1e-5)
    assert np.abs(slopes).max() < 1e-6


def test_cross_entropy_of_sure_labels_that_leave_classes_out_is_finite():
    truth = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    slopes = jax.grad(lambda logits: cross_entropy(logits, truth))(jnp.array([50.0, -50.0]).reshape(1, 1, 1, 2))
    assert np.isfinite(slopes).all()


def test_loss_of_a_network_that_knows_nothing(one_pixel_of_four):
    # Cross-entropy ln 2; soft Dice of the foreground (2 * 0.5 + 1) / (4 * 0.25 + 1 + 1).
    expected = 10 * np.log(2) + 1 - 2 / 3
    assert segmentation_loss(jnp.zeros((1, 2, 2, 2)), one_pixel_of_four) == pytest.approx(expected, rel=1e-6)


def test_loss_of_a_network_that_is_right_and_sure_is_nothing(one_pixel_of_four):
    assert segmentation_loss(40 * one_pixel_of_four, one_pixel_of_four) == pytest.approx(0, abs=1e-6)


def test_loss_is_least_at_the_soft_labels_themselves():
    truth = jnp.array([0.3, 0.7]).reshape(1, 1, 1, 2)
    slope = jax.grad(lambda logits: segmentation_loss(logits, truth))(jnp.log(truth))
    assert np.abs(slope).max() < 1e-6


def test_the_papers_loss_of_a_network_that_knows_nothing(one_pixel_of_four):
    # Cross-entropy ln 2 over two classes; Jaccard 1.5 / (2 + 3 - 1.5) of background and 0.5 / (2 + 1 - 0.5).
    expected = np.log(2) / 2 + 1 - (3 / 7 + 1 / 5) / 2
    assert cross_entropy_jaccard_loss(jnp.zeros((1, 2, 2, 2)), one_pixel_of_four) == pytest.approx(expected, rel=1e-5)
    assert cross_entropy_jaccard_loss(40 * one_pixel_of_four, one_pixel_of_four) == pytest.approx(0, abs=1e-6)


def test_the_papers_loss_pulls_soft_borders_to_one_side():
    truth = jnp.array([0.3, 0.7]).reshape(1, 1, 1, 2)
    slope = jax.grad(lambda logits: cross_entropy_jaccard_loss(logits, truth))(jnp.log(truth))
    assert slope[..., 1] < -0.01


def test_soft_dice_of_equal_labels_is_one_in_every_class():
    labels = jax.random.uniform(jax.random.key(0), (3, 4, 5, 2))
    assert _soft_dice(labels, labels).tolist() == pytest.approx([1, 1])


def test_soft_dice_is_symmetric():
    a, b = jax.random.uniform(jax.random.key(1), (2, 7, 3))
    np.testing.assert_allclose(_soft_dice(a, b), _soft_dice(b, a), rtol=1e-6)
