"""Training: right examples are drawn, a simple task is learnt, and a run that was stopped goes on."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from hypodask.agreement import dice
from hypodask.errors import ModelError
from hypodask.grid import box_grid
from hypodask.network import augment, learn
from hypodask.network.augment import Variation
from hypodask.network.learn import Schedule
from hypodask.network.unet import UNetConfig, predictor
from hypodask.network.weights import InputGeometry
from hypodask.segmentation import train as training
from hypodask.segmentation.train import Head, Task, draw, train

STORED = box_grid((24, 12, 24), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
WANTED = box_grid((16, 4, 16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
GEOMETRY = InputGeometry((1, 1, 1), (16, 4, 16), slices=3, slice_axis=1, intensity="box_bright", slice_step=2)
NETWORK = UNetConfig(in_channels=3, out_channels=3, widths=(4, 8))
SCHEDULE = Schedule(steps=80, heads=4, slices=2, learning_rate=2e-2, average=0.9, checkpoint_every=30, log_every=10)


@pytest.fixture(scope="module")
def plain():
    """Heads are mirrored but not varied otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "points_of", lambda key, points, centre, options: points)
        patch.setattr(training, "contrast_of", lambda key, values, points, options: values)
        yield


@pytest.fixture(scope="module")
def run(plain, tmp_path_factory):
    """A network that was trained without disturbance, and the checkpoint that the run left."""
    checkpoint = tmp_path_factory.mktemp("run") / "checkpoint.safetensors"
    return train(task_of(bars), NETWORK, SCHEDULE, checkpoint=checkpoint), checkpoint


def bars(key):
    """A broad bar on the left and a narrow one on the right, at random heights; white matter everywhere else."""
    left, right = jax.random.uniform(key, (2,), minval=-3, maxval=3)
    x, _, z = jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2 for n in STORED.shape), indexing="ij")
    truth = jnp.stack([(jnp.abs(x + 5) < 3) & (jnp.abs(z - left) < 3), (jnp.abs(x - 5) < 2) & (jnp.abs(z - right) < 3)])
    return Head(1 - 0.7 * truth.sum(0), truth.astype(jnp.float32))


def slopes(key):
    """An image whose intensity is its y in mm."""
    y = (jnp.arange(STORED.shape[1]) - 5.5)[None, :, None]
    return Head(jnp.broadcast_to(y, STORED.shape), jnp.zeros((2, *STORED.shape)))


def task_of(make):
    return Task(make, STORED, WANTED, GEOMETRY, Variation(), lambda truth: truth[::-1])


def weights(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_a_batch_of_varied_heads_holds_slices_and_soft_labels_that_sum_to_one(monkeypatch):
    # Smooth fields take long to compile, and have tests of their own.
    monkeypatch.setattr(augment, "smooth_field", lambda key, points, spacing, channels: 0.1 * points[:, :channels])
    inputs, truth = draw(task_of(bars), Schedule(heads=4, slices=1), jax.random.key(0))
    assert inputs.shape == truth.shape == (4, 16, 16, 3)
    np.testing.assert_allclose(truth.sum(-1), 1, atol=1e-5)
    assert np.isfinite(inputs).all()


def test_left_stays_left_when_heads_are_mirrored(plain):
    _, truth = draw(task_of(bars), Schedule(heads=16, slices=1), jax.random.key(1))
    left, right = np.asarray(truth[..., 1]), np.asarray(truth[..., 2])
    assert not left[:, 8:].any()
    assert not right[:, :8].any()
    broad_left = left.sum((1, 2)) > right.sum((1, 2))
    assert 0 < broad_left.sum() < 16


def test_labels_lie_where_the_image_shows_them(plain):
    inputs, truth = draw(task_of(bars), Schedule(heads=2, slices=2), jax.random.key(2))
    np.testing.assert_allclose(inputs[..., 1], 1 - 0.7 * truth[..., 1:].sum(-1), atol=1e-5)


def test_channels_are_a_slice_and_its_neighbours(plain):
    inputs, _ = draw(task_of(slopes), Schedule(heads=4, slices=2), jax.random.key(3))
    np.testing.assert_allclose(inputs[..., 1] - inputs[..., 0], 2, atol=1e-4)
    np.testing.assert_allclose(inputs[..., 2] - inputs[..., 1], 2, atol=1e-4)
    assert set(np.round(2 * np.unique(inputs[..., 1])).tolist()) <= {-3, -1, 1, 3}


def test_a_simple_task_is_learnt(run):
    inputs, truth = draw(task_of(bars), SCHEDULE, jax.random.key(99))
    found = np.asarray(predictor(run[0])(inputs)).argmax(-1)
    wanted = np.asarray(truth).argmax(-1)
    assert min(dice(found == side, wanted == side) for side in (1, 2)) > 0.9


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(run, caplog):
    undisturbed, checkpoint = run
    caplog.set_level(logging.INFO, logger=learn.__name__)
    resumed = train(task_of(bars), NETWORK, SCHEDULE, checkpoint=checkpoint)
    assert [record.args[0] for record in caplog.records] == [70, 80]
    for a, b in zip(weights(undisturbed), weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    save_file({"0": np.zeros((3, 3)), "1": np.zeros(4)}, checkpoint)
    with pytest.raises(ModelError, match="belongs to another network; delete it"):
        train(task_of(bars), NETWORK, SCHEDULE, checkpoint=checkpoint)
