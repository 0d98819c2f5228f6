"""The 2D U-Net and its form for inference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from array_types import unchecked
from flax import nnx

from hypodask.networks import unet
from hypodask.networks.convolutions import JoinedConv, RunConv
from hypodask.networks.unet import (
    UNet,
    UNetConfig,
    _for_cpu,
    fold_batch_norm,
    parameter_count,
    predictor,
)

SMALL = UNetConfig(in_channels=3, out_channels=2, widths=(4, 8, 16))


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def slices():
    return jax.random.normal(jax.random.key(0), (5, 16, 24, 3))


def trained(config):
    """A network whose batch normalisation is far from doing nothing."""
    model = UNet(config, rngs=nnx.Rngs(1))
    for level in [*model.down, *model.up]:
        for conv in (level.first, level.second):
            shape = conv.norm.mean.shape
            conv.norm.mean.set_value(jnp.linspace(-1.0, 1.0, shape[0]))
            conv.norm.var.set_value(jnp.linspace(0.5, 2.0, shape[0]))
            conv.norm.scale.set_value(jnp.linspace(-0.5, 1.5, shape[0]))
            conv.norm.bias.set_value(jnp.linspace(0.3, -0.3, shape[0]))
    return model


def test_every_pixel_gets_one_float32_logit_per_class(slices):
    logits = UNet(UNetConfig(3, 4, widths=(4, 8)), rngs=nnx.Rngs(0))(slices)
    assert logits.shape == (5, 16, 24, 4)
    assert logits.dtype == jnp.float32


def test_folding_batch_norm_does_not_change_the_network(slices):
    model = trained(SMALL)
    folded = fold_batch_norm(model)
    np.testing.assert_allclose(folded(slices), model(slices), atol=1e-5)
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
    assert fold_batch_norm(folded) is folded


def test_the_predictor_gives_the_softmax_of_the_networks_logits(slices):
    model = trained(SMALL)
    probabilities = predictor(model)(slices)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(model(slices), axis=-1), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("slices_at_once", [1, 2, 5, 50])
def test_the_number_of_slices_at_once_changes_nothing(slices, slices_at_once):
    model = trained(SMALL)
    together = predictor(model, slices_at_once=slices_at_once)(slices)
    np.testing.assert_allclose(together, predictor(model)(slices), atol=1e-6)


@pytest.mark.parametrize(
    ("backend", "exchanged", "together"), [("cpu", None, 4), ("cpu", (0, 1), 2), ("gpu", None, 5), ("gpu", (0, 1), 5)]
)
def test_a_gpu_takes_all_slices_together_and_a_cpu_few(slices, monkeypatch, backend, exchanged, together):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    asked = []

    def answers(graph, answer, exchanged, together, state, slices):
        asked.append(together)
        return slices

    monkeypatch.setattr(unet, "_answers", answers)
    predictor(UNet(SMALL, rngs=nnx.Rngs(0)), exchanged=exchanged)(slices)
    assert asked == [together]


def test_answers_are_averaged_over_a_slice_and_its_mirror_image(slices):
    model = trained(UNetConfig(3, 3, widths=(4, 8, 16)))
    plain = predictor(model)
    expected = (plain(slices) + plain(slices[:, ::-1])[:, ::-1][..., jnp.array([0, 2, 1])]) / 2
    np.testing.assert_allclose(predictor(model, exchanged=(0, 2, 1))(slices), expected, atol=1e-6)


@pytest.mark.parametrize("widths", [(4, 8), (8, 8, 16), (12, 12, 12, 16), (16, 20), (24, 32, 40)])
def test_convolutions_for_a_cpu_do_not_change_the_network(widths):
    model = fold_batch_norm(trained(UNetConfig(3, 2, widths=widths)))
    slices = jax.random.normal(jax.random.key(0), (2, 8, 24, 3))
    fast = _for_cpu(model)
    np.testing.assert_allclose(fast(slices), model(slices), atol=1e-4)
    assert isinstance(fast.down[0].first.conv, RunConv) == (widths[0] <= 16)
    assert all(isinstance(level.first.conv, JoinedConv) for level in fast.up[:-1])
    assert not isinstance(model.down[0].first.conv, RunConv)


def test_later_training_does_not_change_a_predictor(slices):
    model = trained(SMALL)
    predict = predictor(model)
    before = np.asarray(predict(slices))
    model.classify.bias.set_value(jnp.array([5.0, -5.0]))
    np.testing.assert_array_equal(predict(slices), before)
    assert not np.allclose(predictor(model)(slices), before)


def test_training_mode_updates_the_running_statistics_and_inference_does_not(slices):
    model = UNet(SMALL, rngs=nnx.Rngs(0))
    model(slices)
    assert not model.down[0].first.norm.mean[...].any()
    model(slices, train=True)
    assert model.down[0].first.norm.mean[...].any()


def test_a_small_network_learns_a_threshold():
    slices = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    labels = (slices[..., 0] > 0.5).astype(jnp.int32)
    model = UNet(UNetConfig(1, 2, widths=(4, 8)), rngs=nnx.Rngs(0))
    graphdef, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    optimiser = optax.adam(1e-2)

    def loss(params, statistics):
        network = nnx.merge(graphdef, params, statistics, copy=True)
        logits = network(slices, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), nnx.state(network, nnx.BatchStat)

    @jax.jit
    def step(params, statistics, moments):
        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        updates, moments = optimiser.update(gradients, moments)
        return optax.apply_updates(params, updates), statistics, moments, value

    moments, values = optimiser.init(params), []
    for _ in range(60):
        params, statistics, moments, value = step(params, statistics, moments)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("shape", [(1, 10, 16, 3), (1, 16, 18, 3)])
def test_a_size_that_does_not_halve_evenly_is_refused(shape):
    model = UNet(SMALL, rngs=nnx.Rngs(0))
    for run in (model, predictor(model)):
        with pytest.raises(ValueError, match="multiples of 4"):
            run(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 16, 16, 2), (16, 16, 3), (0, 16, 16, 3)])
def test_other_channels_other_ranks_and_no_slices_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes slices \(n, h, w, 3\)"), unchecked():
        predictor(UNet(SMALL, rngs=nnx.Rngs(0)))(jnp.zeros(shape))


@pytest.mark.parametrize("wrong", [{"widths": (4,)}, {"widths": (4, 0)}, {"in_channels": 0}, {"out_channels": 0}])
def test_a_network_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="U-Net"):
        UNetConfig(**{"in_channels": 1, "out_channels": 2, **wrong})


def test_parameters_are_counted_without_running_statistics():
    first_level = 3 * 9 * 4 + 9 * 4 * 4 + 2 * 2 * 4
    second_level = 9 * 4 * 8 + 9 * 8 * 8 + 2 * 2 * 8
    upward = (8 * 4 + 4) + 9 * 8 * 4 + 9 * 4 * 4 + 2 * 2 * 4
    model = UNet(UNetConfig(3, 2, widths=(4, 8)), rngs=nnx.Rngs(0))
    assert parameter_count(model) == first_level + second_level + upward + (4 * 2 + 2)
