"""Weights files and the cards they carry."""

import dataclasses
import hashlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_types import unchecked
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hypodask.core.errors import ModelError
from hypodask.core.structures import HYPOTHALAMUS, HYPOTHALAMUS_SIDES, ICV, Label, LabelTable
from hypodask.networks import weights
from hypodask.networks.cards import InputGeometry, ModelCard
from hypodask.networks.unet import UNet, UNetConfig, fold_batch_norm, parameter_count
from hypodask.networks.weights import load_weights, resolve_model, save_weights, sha256

CONFIG = UNetConfig(in_channels=3, out_channels=2, widths=(4, 8))

WHOLE = LabelTable("by-hand", "hypothalamus", (Label(7, "hypothalamus", "both", "Hyp", "#ff6b3d"),))

CARD = ModelCard(
    name="trial",
    task="hypothalamus",
    protocol="by-hand",
    architecture=CONFIG,
    geometry=InputGeometry((0.5, 0.5, 0.5), (128, 50, 128), slices=3, slice_axis=1, intensity="robust_unit"),
    training_data="Seven heads; größte Sorgfalt.",
    licence="BSD-3-Clause",
    version="1",
    metrics={"dice": 0.92, "measured_on": "four heads held out"},
    relative_volume_sd=0.05,
    changelog=("1: first",),
    labels=WHOLE,
)


def labelled(**changes):
    """The table of one label with another row, which may be wrong."""
    with unchecked():
        return dataclasses.replace(WHOLE, labels=(dataclasses.replace(WHOLE.labels[0], **changes),))


@pytest.fixture
def model():
    model = UNet(CONFIG, rngs=nnx.Rngs(3))
    model(jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), train=True)
    return model


@pytest.fixture
def saved(tmp_path, model):
    return save_weights(tmp_path / "new" / "trial.safetensors", model, CARD)


def rewrite(path, *, change=None, metadata=None):
    """The same file with other tensors or another card."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() if metadata is None else metadata
    tensors = load_file(path)
    if change:
        change(tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def with_card(path, **changes):
    card = json.loads(CARD.to_json()) | changes
    return rewrite(path, metadata={"hypodask_model_card": json.dumps(card)})


def refuse(path, match):
    with pytest.raises(ModelError, match=match) as caught:
        load_weights(path)
    return caught.value


def test_a_model_and_its_card_come_back_as_they_were(saved, model):
    (loaded,), card = load_weights(saved)
    assert card == CARD
    slices = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    np.testing.assert_array_equal(loaded(slices), model(slices))
    np.testing.assert_array_equal(loaded(slices, train=True), model(slices, train=True))


def test_a_folded_model_is_saved_like_any_other(tmp_path, model):
    folded = fold_batch_norm(model)
    card = dataclasses.replace(CARD, architecture=folded.config)
    (loaded,), _ = load_weights(save_weights(tmp_path / "folded.safetensors", folded, card))
    np.testing.assert_array_equal(loaded(jnp.ones((1, 8, 8, 3))), folded(jnp.ones((1, 8, 8, 3))))


def test_in_half_precision_a_file_is_half_as_large_and_weights_are_right_to_one_in_two_thousand(tmp_path, saved, model):
    path = save_weights(tmp_path / "half.safetensors", model, CARD, half=True)
    tensors, halves = load_file(saved), load_file(path)
    assert tensors.keys() == halves.keys()
    for name, tensor in tensors.items():
        assert halves[name].nbytes == tensor.nbytes / 2
        np.testing.assert_allclose(halves[name], tensor, rtol=1 / 2000, atol=1e-7)
    (loaded,), card = load_weights(path)
    assert card == CARD
    assert loaded.classify.kernel[...].dtype == jnp.float32


def test_members_come_back_in_their_order(tmp_path, model):
    members = (model, UNet(CONFIG, rngs=nnx.Rngs(4)), UNet(CONFIG, rngs=nnx.Rngs(5)))
    card = dataclasses.replace(CARD, members=3)
    path = save_weights(tmp_path / "three.safetensors", members, card)
    loaded, read = load_weights(path)
    assert read == card
    assert "ensemble of 3 networks" in path.with_suffix(".md").read_text(encoding="utf-8")
    slices = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    for one, other in zip(loaded, members, strict=True):
        np.testing.assert_array_equal(one(slices), other(slices))


def test_a_card_and_its_file_have_the_same_number_of_members(tmp_path, saved, model):
    with pytest.raises(ModelError, match="describes 1 members, 2 were given"):
        save_weights(tmp_path / "two.safetensors", (model, model), CARD)
    refuse(with_card(saved, members=2), "differ, the first is 0.classify")
    refuse(with_card(saved, members=1 << 40), "members, the file has")
    refuse(with_card(saved, members=0), "at least one member")


def test_a_file_of_one_member_is_written_and_read_as_before_there_were_several(saved, model):
    assert "down.0.first.conv.kernel" in load_file(saved)
    card = json.loads(CARD.to_json())
    del card["members"], card["architecture"]["kind"]
    (loaded,), read = load_weights(rewrite(saved, metadata={"hypodask_model_card": json.dumps(card)}))
    assert read == CARD
    np.testing.assert_array_equal(loaded.classify.kernel[...], model.classify.kernel[...])


@pytest.mark.parametrize("task", ["hypothalamus", "icv", "icv-border", "commissures"])
def test_the_shipped_weights_are_read(task):
    members, card = load_weights(resolve_model(task))
    assert [member.config for member in members] == [card.architecture] * card.members
    assert (card.labels is None) == (task in ("icv-border", "commissures"))


@pytest.mark.parametrize("task", ["hypothalamus", "icv", "icv-border", "commissures"])
def test_the_cards_beside_the_shipped_weights_say_the_same_in_words(task):
    path = resolve_model(task)
    (model, *_), card = load_weights(path)
    text = card.to_markdown(parameters=parameter_count(model), digest=sha256(path))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("task", "channels", "table"),
    [("hypothalamus", 3, HYPOTHALAMUS_SIDES), ("hypothalamus", 11, HYPOTHALAMUS), ("icv", 2, ICV)],
)
def test_a_card_without_labels_has_those_of_its_task_in_its_own_protocol(task, channels, table):
    card = json.loads(CARD.to_json()) | {"task": task, "architecture": {"in_channels": 3, "out_channels": channels}}
    del card["labels"]
    read = ModelCard.from_json(json.dumps(card))
    assert read.labels == dataclasses.replace(table, protocol="by-hand")


def test_a_network_that_outlines_nothing_has_no_labels():
    assert dataclasses.replace(CARD, task="commissures", labels=None).labels is None


def test_the_same_model_gives_the_same_bytes(tmp_path, saved, model):
    again = save_weights(tmp_path / "again.safetensors", model, CARD)
    assert again.read_bytes() == saved.read_bytes()


def test_the_card_lies_beside_the_weights_with_their_fingerprint(saved):
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert sha256(saved) == digest
    beside = json.loads(saved.with_suffix(".json").read_text(encoding="utf-8"))
    assert beside["sha256"] == digest
    assert beside["metrics"] == CARD.metrics
    text = saved.with_suffix(".md").read_text(encoding="utf-8")
    assert digest in text
    assert "four heads held out" in text
    assert "5.0 %" in text


def test_nothing_else_is_left_beside_the_weights(saved):
    assert sorted(p.suffix for p in saved.parent.iterdir()) == [".json", ".md", ".safetensors"]


def test_a_card_says_what_was_not_measured():
    bare = dataclasses.replace(CARD, metrics={}, relative_volume_sd=None, changelog=())
    text = bare.to_markdown(parameters=1, digest="0")
    assert "None measured." in text
    assert "not measured" in text


def test_a_card_survives_json():
    assert ModelCard.from_json(CARD.to_json()) == CARD


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"task": "amygdala"}, "task"),
        ({"architecture": UNetConfig(5, 2)}, "5 channels"),
        ({"labels": None}, "does not say what the 2 channels"),
        ({"labels": HYPOTHALAMUS}, "2 channels, background first, and its card 10 labels"),
        ({"protocol": "seed"}, "labels are of protocol 'by-hand'"),
        ({"labels": labelled(index=0)}, "number of its own from 1 to 255"),
        ({"labels": labelled(index=256)}, "number of its own from 1 to 255"),
        ({"labels": labelled(hemisphere="up")}, "hemisphere is one of"),
        ({"members": 0}, "at least one member"),
        ({"metrics": {"dice": 0.9}}, "measured_on"),
        ({"relative_volume_sd": 0.0}, "relative_volume_sd"),
        ({"relative_volume_sd": float("nan")}, "relative_volume_sd"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(wrong, match):
    with pytest.raises(ModelError, match=match):
        dataclasses.replace(CARD, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"slices": 2}, {"slice_axis": 3}, {"shape": (4, 4)}, {"shape": (0, 4, 4)}, {"spacing_mm": (1, 1, -1)}]
)
def test_a_geometry_that_cannot_be_is_refused(wrong):
    with pytest.raises(ModelError, match="an input needs"), unchecked():
        dataclasses.replace(CARD.geometry, **wrong)


def test_saving_needs_the_right_ending_and_the_models_own_card(tmp_path, model):
    with pytest.raises(ModelError, match=r"\.safetensors"):
        save_weights(tmp_path / "trial.pkl", model, CARD)
    other = dataclasses.replace(CARD, architecture=UNetConfig(3, 2, widths=(8, 16)))
    with pytest.raises(ModelError, match="the model is"):
        save_weights(tmp_path / "trial.safetensors", model, other)


def test_a_model_that_diverged_is_not_saved(tmp_path, model):
    model.classify.bias.set_value(jnp.array([0.0, jnp.nan]))
    with pytest.raises(ModelError, match=r"classify\.bias"):
        save_weights(tmp_path / "trial.safetensors", model, CARD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content))])
    refuse(saved, "cut short")


def test_a_missing_file_is_refused(tmp_path):
    refuse(tmp_path / "none.safetensors", "no weights file")


def test_a_file_without_a_card_is_refused(saved):
    error = refuse(rewrite(saved, metadata={"format": "pt"}), "no hypodask model card")
    assert "trial.safetensors" in error.__notes__[0]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"colour": "red"}, "has 'colour', which is not known; it may have name, task.*update hypodask"),
        ({"architecture": {"in_channels": 3}}, r"\[architecture\] lacks 'out_channels'; add it .a whole number."),
        ({"architecture": None}, "has architecture = None; a table is needed; fetch"),
        (
            {"architecture": {"kind": "transformer"}},
            r"\[architecture\] has kind = 'transformer'; one of 'unet', 'efficient_unet', .* is needed",
        ),
        ({"geometry": [1]}, r"geometry = \[1\]; a table is needed"),
        ({"metrics": 3}, "metrics = 3; a table is needed"),
        ({"labels": {"protocol": "by-hand"}}, r"\[labels\] lacks 'whole'"),
        (
            {"labels": {"protocol": "by-hand", "whole": "w", "labels": [{"size": 1}]}},
            r"\[labels.labels\[0\]\] has 'size'",
        ),
        ({"architecture": {"in_channels": 3, "out_channels": 2, "widths": [4, 16]}}, "differ"),
        ({"architecture": {"in_channels": 3, "out_channels": 2, "widths": [4, 1 << 30]}}, "differ"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(saved, changes, match):
    refuse(with_card(saved, **changes), match)


@pytest.mark.parametrize("options", [{"activation": "relu", "upsampling": "nearest", "space_to_depth": 1}, {}])
def test_a_card_with_an_option_that_was_dropped_is_read_where_it_says_what_is_still_done(saved, options):
    architecture = {"kind": "unet", "in_channels": 3, "out_channels": 2, "widths": [4, 8]}
    _, read = load_weights(with_card(saved, architecture=architecture | options))
    assert read == CARD


@pytest.mark.parametrize("option", [{"activation": "leaky_relu"}, {"upsampling": "bilinear"}, {"space_to_depth": 2}])
def test_a_card_with_an_option_that_was_dropped_is_refused_where_it_says_something_else(saved, option):
    architecture = {"kind": "unet", "in_channels": 3, "out_channels": 2, "widths": [4, 8]}
    match = r"the model card: \[architecture\] has \w+ = .*, an option that hypodask no longer has; .* or train anew"
    refuse(with_card(saved, architecture=architecture | option), match)


def test_a_card_that_is_no_json_is_refused(saved):
    refuse(rewrite(saved, metadata={"hypodask_model_card": "{"}), "cannot be read")
    refuse(rewrite(saved, metadata={"hypodask_model_card": "[]"}), "cannot be read")


def test_tensors_that_are_missing_extra_or_not_finite_are_refused(saved):
    refuse(rewrite(saved, change=lambda t: t.update(extra=np.zeros(1, np.float32))), "extra")
    refuse(rewrite(saved, change=lambda t: (t.pop("extra"), t.pop("classify.bias"))), r"classify\.bias")
    broken = {"classify.bias": np.array([np.inf, 0], np.float32)}
    refuse(rewrite(saved, change=lambda t: t.update(broken)), r"classify\.bias")
    refuse(rewrite(saved, change=lambda t: t.update({"classify.bias": np.zeros(2, np.int32)})), "int32")


@pytest.mark.parametrize("name", ["hypothalamus", "icv"])
def test_a_shipped_model_is_found_by_name(monkeypatch, tmp_path, name):
    monkeypatch.setattr(weights, "files", lambda package: tmp_path)
    with pytest.raises(ModelError, match="install hypodask anew"):
        resolve_model(name)
    path = tmp_path / "weights" / f"{name}.safetensors"
    path.parent.mkdir()
    path.touch()
    path.with_suffix(".json").write_text(json.dumps({"sha256": sha256(path)}))
    assert resolve_model(name) == path


@pytest.mark.parametrize("ending", ["safetensors", "h5", "hdf5", "H5"])
def test_a_path_is_taken_as_it_is(tmp_path, ending):
    path = tmp_path / f"own.{ending}"
    with pytest.raises(ModelError, match="no weights file at"):
        resolve_model(path)
    path.touch()
    assert resolve_model(path) == path
    assert resolve_model(str(path)) == path


@pytest.mark.parametrize("name", ["amygdala", "weights.pkl", ""])
def test_an_unknown_model_is_refused_with_the_known_ones(name):
    with pytest.raises(ModelError, match=re.escape("['hypothalamus', 'icv', 'icv-border', 'commissures']")):
        resolve_model(name)


def test_a_fingerprint_of_nothing_is_refused(tmp_path):
    with pytest.raises(ModelError, match="fingerprint"):
        sha256(tmp_path / "none")
