"""The published Keras network, against a forward pass that shares nothing with it."""

import h5py
import numpy as np
import pytest
from scipy.ndimage import correlate

from hypodask.core.errors import ModelError
from hypodask.segmentation.published import import_hypothalamus_seg

CONVS = {
    "downarm_0_0": (1, 1),
    "downarm_0_1": (1, 1),
    "downarm_1_0": (1, 2),
    "downarm_1_1": (2, 2),
    "downarm_2_0": (2, 4),
    "downarm_2_1": (4, 4),
    "uparm_3_0": (6, 2),
    "uparm_3_1": (2, 2),
    "uparm_4_0": (3, 1),
    "uparm_4_1": (1, 1),
}
"""Input and output channels of each convolution, in units of the channels at full resolution."""

NORMS = {"down_0": 1, "down_1": 2, "down_2": 4, "up_0": 2, "up_1": 1}


def random_weights(width=4, classes=11):
    """Weights of the published layout, by layer and name."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, (inputs, outputs) in CONVS.items():
        inputs = 1 if name == "downarm_0_0" else inputs * width
        kernel = rng.normal(0, (2 / (27 * inputs)) ** 0.5, (3, 3, 3, inputs, outputs * width))
        weights[f"unet_conv_{name}"] = {"kernel": kernel, "bias": rng.normal(0, 0.1, outputs * width)}
    for name, multiple in NORMS.items():
        n = multiple * width
        weights[f"unet_bn_{name}"] = {
            "gamma": rng.normal(1, 0.5, n),
            "beta": rng.normal(0, 0.2, n),
            "moving_mean": rng.normal(0, 0.3, n),
            "moving_variance": rng.uniform(0.05, 1, n),
        }
    kernel = rng.normal(0, 1, (1, 1, 1, width, classes))
    weights["unet_likelihood"] = {"kernel": kernel, "bias": rng.normal(0, 0.1, classes)}
    return weights


def write_h5(path, weights, *, root=""):
    with h5py.File(path, "w") as file:
        file.create_group(f"{root}/lambda_1")
        for layer, arrays in weights.items():
            for name, values in arrays.items():
                file[f"{root}/{layer}/{layer}/{name}:0"] = np.asarray(values, np.float32)
    return path


@pytest.fixture
def weights():
    return random_weights()


@pytest.fixture
def h5(tmp_path, weights):
    return write_h5(tmp_path / "published.h5", weights)


def correlate_layer(features, layer):
    """3D convolution, zero padding, then ELU; features are (channel, i, j, k)."""
    kernel = np.asarray(layer["kernel"], np.float64)
    out = np.empty((kernel.shape[-1], *features.shape[1:]))
    for d in range(len(out)):
        out[d] = layer["bias"][d]
        for c, volume in enumerate(features):
            out[d] += correlate(volume, kernel[..., c, d], mode="constant")
    return np.where(out > 0, out, np.expm1(np.minimum(out, 0)))


def normalise(features, layer):
    mean, variance, gamma, beta = (
        np.asarray(layer[n], np.float64)[:, None, None, None]
        for n in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    return gamma * (features - mean) / np.sqrt(variance + 1e-3) + beta


def two_convs(features, weights, arm):
    return correlate_layer(correlate_layer(features, weights[f"{arm}_0"]), weights[f"{arm}_1"])


def pool(features):
    corners = [features[:, i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    return np.max(corners, axis=0)


def reference_posteriors(image, weights):
    """The published network in float64, from scipy's correlation."""
    features, skips = image[None].astype(np.float64), []
    for level in range(3):
        skips.append(two_convs(features if level == 0 else pool(features), weights, f"unet_conv_downarm_{level}"))
        features = normalise(skips[-1], weights[f"unet_bn_down_{level}"])
    for number in range(2):
        doubled = features.repeat(2, 1).repeat(2, 2).repeat(2, 3)
        features = two_convs(np.concatenate([skips[1 - number], doubled]), weights, f"unet_conv_uparm_{3 + number}")
        features = normalise(features, weights[f"unet_bn_up_{number}"])
    last = weights["unet_likelihood"]
    logits = np.einsum("cijk,cd->dijk", features, last["kernel"][0, 0, 0]) + last["bias"][:, None, None, None]
    odds = np.exp(logits - logits.max(axis=0))
    return odds / odds.sum(axis=0)


def crop(shape):
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def test_posteriors_equal_an_independent_forward_pass(h5, weights):
    image = crop((12, 16, 8))
    posteriors = import_hypothalamus_seg(h5).posteriors(image)
    assert posteriors.dtype == np.float32
    np.testing.assert_allclose(posteriors, reference_posteriors(image, weights), atol=5e-5)


@pytest.mark.validation
def test_the_published_weights_equal_an_independent_forward_pass(validation_data):
    path = validation_data / "models" / "hypothalamus_seg_billot2020.h5"
    with h5py.File(path) as file:
        layers = [name for name in file if len(file[name].attrs["weight_names"])]
        weights = {
            layer: {name.removesuffix(":0"): values[()] for name, values in file[layer][layer].items()}
            for layer in layers
        }
    image = crop((8, 12, 8))
    posteriors = import_hypothalamus_seg(path).posteriors(image)
    np.testing.assert_allclose(posteriors, reference_posteriors(image, weights), atol=5e-5)


def test_any_shape_comes_back_as_it_went_in(h5, weights):
    image = crop((9, 7, 6))
    posteriors = import_hypothalamus_seg(h5).posteriors(image)
    assert posteriors.shape == (11, 9, 7, 6)
    padded = np.pad(image, [(0, 3), (0, 1), (0, 2)])
    np.testing.assert_allclose(posteriors, reference_posteriors(padded, weights)[:, :9, :7, :6], atol=5e-5)


def test_a_whole_model_file_is_read_like_a_weights_file(tmp_path, h5, weights):
    whole = write_h5(tmp_path / "whole.hdf5", weights, root="model_weights")
    image = crop((4, 4, 4))
    expected = import_hypothalamus_seg(h5).posteriors(image)
    np.testing.assert_array_equal(import_hypothalamus_seg(whole).posteriors(image), expected)


def test_the_labels_are_the_ten_subunits_after_background(h5):
    model = import_hypothalamus_seg(h5)
    assert len(model.labels) == 10
    assert model.labels["posterior_right"].index == 8
    assert model.spacing_mm == 1.0


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 1), (0, 4, 4)])
def test_what_is_not_a_volume_is_refused(h5, shape):
    with pytest.raises(ValueError, match=r"one volume \(i, j, k\)"):
        import_hypothalamus_seg(h5).posteriors(np.zeros(shape))


def refuse(path, match):
    with pytest.raises(ModelError, match=match) as caught:
        import_hypothalamus_seg(path)
    return caught.value


def test_a_missing_file_is_refused(tmp_path):
    refuse(tmp_path / "nowhere.h5", "no weights file")
    refuse(tmp_path, "no weights file")


def test_a_file_that_is_not_hdf5_is_refused(tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"PK\x03\x04 not weights")
    refuse(path, "cannot be read as HDF5")


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(h5, kept):
    content = h5.read_bytes()
    h5.write_bytes(content[: int(kept * len(content))])
    refuse(h5, "cannot be read as HDF5")


@pytest.mark.parametrize("layer", ["unet_conv_downarm_0_0", "unet_bn_up_1", "unet_conv_uparm_4_1", "unet_likelihood"])
def test_a_missing_layer_is_named(tmp_path, weights, layer):
    del weights[layer]
    error = refuse(write_h5(tmp_path / "w.h5", weights), f"layer {layer}")
    assert "w.h5" in error.__notes__[0]


@pytest.mark.parametrize(
    ("layer", "name", "shape"),
    [
        ("unet_conv_downarm_0_0", "kernel", (3, 3, 1, 4)),
        ("unet_conv_downarm_0_0", "kernel", (3, 3, 3, 2, 4)),
        ("unet_conv_downarm_1_1", "kernel", (3, 3, 3, 8, 9)),
        ("unet_conv_uparm_3_0", "bias", (4,)),
        ("unet_bn_down_2", "gamma", (8,)),
        ("unet_likelihood", "kernel", (1, 1, 1, 4, 12)),
        ("unet_likelihood", "bias", ()),
    ],
)
def test_a_weight_of_another_shape_is_refused(tmp_path, weights, layer, name, shape):
    weights[layer][name] = np.zeros(shape)
    refuse(write_h5(tmp_path / "w.h5", weights), "shape|needs a kernel")


def test_values_that_cannot_be_are_refused(tmp_path, weights):
    weights["unet_bn_up_0"]["moving_variance"][0] = -1
    refuse(write_h5(tmp_path / "negative.h5", weights), "negative variance")
    weights["unet_bn_up_0"]["moving_variance"][0] = np.nan
    refuse(write_h5(tmp_path / "nan.h5", weights), "NaN")


def test_a_dataset_where_a_group_should_be_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["model_weights"] = np.zeros(3)
    refuse(tmp_path / "w.h5", "has no kernel")
