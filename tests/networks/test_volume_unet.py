"""The U-Net for volumes is what a U-Net of three-dimensional convolutions would be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_types import unchecked
from flax import nnx

from hypodask.networks.architectures import build
from hypodask.networks.unet import fold_batch_norm
from hypodask.networks.volume_unet import (
    VolumeUNet,
    VolumeUNetConfig,
    _cubes_to_depth,
    _depth_to_cubes,
    volume_predictor,
)

SMALL = VolumeUNetConfig(out_channels=2, widths=(4, 6), backgrounds=2)


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def volumes():
    return jax.random.normal(jax.random.key(0), (2, 8, 12, 16, 1))


@pytest.fixture
def model():
    """A network whose batch normalisation is far from doing nothing."""
    model = VolumeUNet(SMALL, rngs=nnx.Rngs(1))
    for level in [*model.down, *model.up]:
        for conv in (level.first, level.second):
            (size,) = conv.norm.mean.shape
            conv.norm.mean.set_value(jnp.linspace(-1.0, 1.0, size))
            conv.norm.var.set_value(jnp.linspace(0.5, 2.0, size))
            conv.norm.scale.set_value(jnp.linspace(0.5, 1.5, size))
            conv.norm.bias.set_value(jnp.linspace(0.3, -0.3, size))
    return model


def convolved(layer, features, *, slices):
    """A convolution in three dimensions, or slice by slice, with normalisation and ReLU, by ``jax.lax``."""
    # The slice before, the slice itself and the slice behind: in the kernel one after the other.
    kernel = jnp.stack(jnp.split(layer.conv.kernel[...], 3 if slices else 1, axis=2))
    made = jax.lax.conv_general_dilated(
        features, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    norm = layer.norm
    shape = (1, 1, 1, 1, -1)
    mean, var, scale, bias = (part[...].reshape(shape) for part in (norm.mean, norm.var, norm.scale, norm.bias))
    return jax.nn.relu((made - mean) / jnp.sqrt(var + norm.epsilon) * scale + bias)


def in_three_dimensions(model, volumes):
    """The logits of ``SMALL``, from nothing but three-dimensional convolutions, pooling and repetition."""
    (top, low), (up,), (narrow,) = model.down, model.up, model.narrow
    features = convolved(top.second, convolved(top.first, _cubes_to_depth(volumes, 2), slices=True), slices=False)
    window = (1, 2, 2, 2, 1)
    below = jax.lax.reduce_window(features, -jnp.inf, jax.lax.max, window, window, "VALID")
    below = convolved(low.second, convolved(low.first, below, slices=True), slices=True)
    below = jnp.einsum("nyxzc,cd->nyxzd", below, narrow.kernel[0, 0]) + narrow.bias[...].reshape(1, 1, 1, 1, -1)
    for axis in (1, 2, 3):
        below = jnp.repeat(below, 2, axis)
    features = convolved(up.first, jnp.concatenate([features, below], -1), slices=False)
    features = convolved(up.second, features, slices=True)
    logits = jnp.einsum("nyxzc,cd->nyxzd", features, model.classify.kernel[0, 0])
    return _depth_to_cubes(logits + model.classify.bias[...].reshape(1, 1, 1, 1, -1), 2)


def test_convolutions_of_slices_and_their_neighbours_are_three_dimensional_ones(model, volumes):
    logits = in_three_dimensions(model, volumes)
    together = jax.nn.logsumexp(logits[..., :2], axis=-1)
    np.testing.assert_allclose(model(volumes)[..., 0], together, atol=1e-4)
    np.testing.assert_allclose(model(volumes)[..., 1], logits[..., 2], atol=1e-4)


def test_classes_of_the_background_are_answered_one_by_one_only_in_training(model, volumes):
    assert model(volumes, train=True).shape == (2, 8, 12, 16, 3)
    assert model(volumes).shape == (2, 8, 12, 16, 2)


def test_in_training_slices_are_taken_together_and_come_out_the_same(volumes):
    config = VolumeUNetConfig(out_channels=2, widths=(4, 6), batch_norm=False)
    model = VolumeUNet(config, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(model(volumes, train=True), model(volumes), atol=1e-5)


@pytest.mark.parametrize(("backend", "one_by_one"), [("cpu", True), ("gpu", False)])
def test_a_gpu_takes_all_slices_together_and_a_cpu_one_by_one(model, volumes, monkeypatch, backend, one_by_one):
    here = model(volumes)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert ("scan[" in str(jax.make_jaxpr(model)(volumes))) is one_by_one
    np.testing.assert_allclose(model(volumes), here, atol=1e-5)


def test_folding_batch_norm_does_not_change_the_network(model, volumes):
    folded = fold_batch_norm(model)
    np.testing.assert_allclose(folded(volumes), model(volumes), atol=1e-4)
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))


def test_the_predictor_gives_the_softmax_of_the_networks_logits(model, volumes):
    probabilities = volume_predictor(model)(volumes[1])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(model(volumes)[1], axis=-1), atol=1e-5)


def test_cubes_become_channels_and_come_back():
    features = jax.random.normal(jax.random.key(0), (2, 4, 8, 12, 3))
    deep = _cubes_to_depth(features, 2)
    assert deep.shape == (2, 2, 4, 6, 24)
    np.testing.assert_array_equal(deep[1, 1, 2, 3, 3:6], features[1, 2, 4, 7])
    np.testing.assert_array_equal(_depth_to_cubes(deep, 2), features)


@pytest.mark.parametrize("shape", [(1, 8, 10, 16, 1), (1, 6, 8, 8, 1)])
def test_a_size_that_does_not_halve_evenly_is_refused(model, shape):
    for run in (lambda volumes: model(volumes), lambda volumes: volume_predictor(model)(volumes[0])):
        with pytest.raises(ValueError, match="a multiple of 4"):
            run(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(8, 8, 8, 1), (1, 8, 8, 8, 2)])
def test_other_channels_and_other_ranks_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"takes volumes \(n, y, x, z, 1\)"), unchecked():
        model(jnp.zeros(shape))


@pytest.mark.parametrize("wrong", [{"widths": (4,)}, {"widths": (4, 0)}, {"in_channels": 0}, {"backgrounds": 0}])
def test_a_network_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="two levels"):
        VolumeUNetConfig(**{"out_channels": 2, **wrong})


def test_it_is_built_by_its_shape():
    assert isinstance(build(SMALL, rngs=nnx.Rngs(0)), VolumeUNet)
