"""The U-Net with an EfficientNet as encoder: its published size, its blocks, and that it folds, is kept and learns."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import correlate
from scipy.special import expit

from hypodask.core.structures import Label, LabelTable
from hypodask.learning import loop as learn
from hypodask.learning.loop import Schedule
from hypodask.learning.losses import cross_entropy_jaccard_loss
from hypodask.networks.architectures import build
from hypodask.networks.cards import InputGeometry, ModelCard
from hypodask.networks.efficientnet import _B0_STAGES, EfficientUNet, EfficientUNetConfig, Stage
from hypodask.networks.unet import ConvNorm, fold_batch_norm, parameter_count, predictor
from hypodask.networks.weights import load_weights, save_weights

STAGES = (Stage(3, 1, 4, 1, 1), Stage(5, 2, 6, 2, 2))
WHOLE = LabelTable("by-hand", "hypothalamus", (Label(1, "hypothalamus", "both", "Hyp", "#ff6b3d"),))
SMALL = EfficientUNetConfig(3, 2, stem=4, stages=STAGES, top=8, decoder_widths=(8, 4))

TINY = EfficientUNetConfig(3, 2, stem=4, stages=(Stage(3, 1, 6, 2, 1),), top=8, decoder_widths=(8,))


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def shapes_of(config):
    """A network without any numbers in it."""
    return nnx.eval_shape(lambda: EfficientUNet(config, rngs=nnx.Rngs(0)))


def filled(config):
    """A network whose batch normalisation is far from doing nothing; NumPy's numbers need no compilation."""
    model, rng = shapes_of(config), np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        values = rng.uniform(0.2, 1, variable.shape) - (0.5 if len(variable.shape) > 1 else 0)
        variable.set_value(jnp.asarray(values, jnp.float32))
    return model


@pytest.fixture(scope="module")
def model():
    return filled(SMALL)


@pytest.fixture
def slices():
    return jnp.asarray(np.random.default_rng(1).random((3, 8, 8, 3)), jnp.float32)


def test_the_encoder_without_classifier_has_the_weights_of_efficientnet_b0():
    network = shapes_of(EfficientUNetConfig())
    encoder = sum(parameter_count(part) for part in (network.stem, network.blocks, network.top))
    classifier = 1280 * 1000 + 1000
    assert encoder == 4_007_548
    assert encoder + classifier == 5_288_548
    assert len(network.blocks) == sum(stage.blocks for stage in _B0_STAGES) == 16


def test_the_network_has_the_weights_of_segmentation_models_unet_of_one_class():
    network = shapes_of(EfficientUNetConfig(out_channels=1))
    statistics = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.BatchStat)))
    assert parameter_count(network) == 10_071_501
    assert parameter_count(network) + statistics == 10_115_501


def test_a_block_computes_what_numpy_does(model):
    block, features = model.blocks[1], np.random.default_rng(2).normal(size=(1, 8, 8, 4)).astype(np.float32)
    expanded = block.expanded(jnp.asarray(features), train=False)
    outcome = block.finished(jnp.asarray(features), expanded, train=False)
    np.testing.assert_allclose(outcome[0], block_in_numpy(block, features[0].astype(float)), rtol=1e-4, atol=1e-5)


def block_in_numpy(block, features):
    """Expansion, depthwise convolution of stride 2, attention to channels and projection of one image."""
    inner = silu(normalised(block.expand, features @ kernel(block.expand.conv)[0, 0]))
    alone = kernel(block.depthwise.conv)[:, :, 0]
    # With an even size, "same" puts the middle of a 5 x 5 kernel on every second pixel, starting with the second.
    inner = [correlate(inner[..., c], alone[..., c], mode="constant")[1::2, 1::2] for c in range(inner.shape[-1])]
    inner = silu(normalised(block.depthwise, np.stack(inner, axis=-1)))
    squeezed = silu(inner.mean(axis=(0, 1)) @ kernel(block.squeeze)[0, 0] + block.squeeze.bias[...])
    inner = inner * expit(squeezed @ kernel(block.excite)[0, 0] + block.excite.bias[...])
    return normalised(block.project, inner @ kernel(block.project.conv)[0, 0])


def kernel(conv):
    return np.asarray(conv.kernel[...], float)


def normalised(unit, features):
    norm = unit.norm
    scale, shift, mean, variance = (np.asarray(v[...], float) for v in (norm.scale, norm.bias, norm.mean, norm.var))
    return (features - mean) / np.sqrt(variance + 1e-3) * scale + shift


def silu(x):
    return x * expit(x)


def test_folding_batch_norm_does_not_change_the_network(model, slices):
    folded = fold_batch_norm(model)
    assert not any(unit.norm for _, unit in nnx.iter_modules(folded) if isinstance(unit, ConvNorm))
    expected = jax.nn.softmax(model(slices), axis=-1)
    assert np.ptp(expected[..., 1]) > 0.01
    np.testing.assert_allclose(predictor(model)(slices), expected, atol=1e-4)
    assert (expected.shape, expected.dtype) == ((3, 8, 8, 2), jnp.float32)


@pytest.mark.parametrize("shape", [(1, 8, 10, 3), (1, 8, 8, 1), (0, 8, 8, 3)])
def test_slices_that_do_not_fit_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"the network takes slices|multiples of 4"):
        model(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"decoder_widths": (8, 4, 2)}, "halves the resolution 2 times"),
        ({"stages": (Stage(3, 1, 4, 1, 4),)}, "by strides of 2"),
        ({"out_channels": 0}, "at least one channel"),
        ({"stages": (Stage(3, 0, 4, 1, 2),)}, "at least one channel"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        EfficientUNetConfig(**{"stem": 4, "stages": STAGES, "top": 8, "decoder_widths": (8, 4)} | wrong)


def test_it_is_kept_in_a_weights_file_like_any_network(tmp_path, model):
    geometry = InputGeometry((0.125, 0.5, 0.125), (512, 50, 512), 3, slice_axis=1, intensity="window", slice_step=0)
    card = ModelCard("paper", "hypothalamus", "by-hand", SMALL, geometry, "nothing", "BSD-3-Clause", labels=WHOLE)
    path = save_weights(tmp_path / "paper.safetensors", model, card)
    (loaded,), read = load_weights(path)
    assert read == card
    assert "EfficientNet" in path.with_suffix(".md").read_text(encoding="utf-8")
    for one, other in zip(*(jax.tree.leaves(nnx.state(network)) for network in (loaded, model)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_architecture_is_built_from_its_config():
    assert isinstance(nnx.eval_shape(lambda: build(SMALL, rngs=nnx.Rngs(0))), EfficientUNet)
    assert SMALL.kind == "efficient_unet"


def test_learning_lowers_the_loss(monkeypatch):
    rng, (rows, columns) = np.random.default_rng(3), np.indices((16, 16))
    centres, reaches = rng.uniform(5, 11, (2, 4, 1, 1)), rng.uniform(2, 4, (4, 1, 1))
    discs = (np.hypot(rows - centres[0], columns - centres[1]) < reaches).astype(np.float32)
    images = 0.3 + 0.4 * discs + rng.normal(0, 0.1, discs.shape)
    batch = jnp.asarray(np.stack([images] * 3, axis=-1), jnp.float32), jnp.stack([1 - discs, discs], axis=-1)
    monkeypatch.setattr(learn, "build", lambda config, rngs: filled(config))
    schedule = Schedule(steps=40, learning_rate=5e-3, checkpoint_every=10)
    first, *_, last = learn.learning(lambda key: batch, cross_entropy_jaccard_loss, TINY, schedule)
    assert last.loss < 0.7 * first.loss
