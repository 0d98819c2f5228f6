"""Training: right examples are drawn, a simple task is learnt, and a run that was stopped goes on."""

import logging
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hypodask.core.errors import ModelError
from hypodask.core.grid import box_grid
from hypodask.image.agreement import dice
from hypodask.learning import augmentation as augment
from hypodask.learning import loop as learning_module
from hypodask.learning import slices as training
from hypodask.learning.augmentation import Variation
from hypodask.learning.growth import _growth_field, _halved
from hypodask.learning.loop import Schedule, _started, learn, learning
from hypodask.learning.losses import segmentation_loss
from hypodask.learning.slices import Growth, Head, Task, drawer
from hypodask.networks.cards import InputGeometry
from hypodask.networks.unet import UNetConfig, predictor

STORED = box_grid((24, 12, 24), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
WANTED = box_grid((16, 4, 16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
GEOMETRY = InputGeometry((1, 1, 1), (16, 4, 16), slices=3, slice_axis=1, intensity="box_bright", slice_step=2)
NETWORK = UNetConfig(in_channels=3, out_channels=3, widths=(4, 8))
SCHEDULE = Schedule(steps=80, heads=4, slices=2, learning_rate=2e-2, average=0.9, checkpoint_every=30)


@pytest.fixture(scope="module")
def plain():
    """Heads are mirrored but not varied otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "points_of", lambda key, points, centre, options, strength: points)
        patch.setattr(training, "contrast_of", lambda key, values, points, options, strength: values)
        yield


@pytest.fixture(scope="module")
def drawn(plain):
    return drawer(task_of(bars), SCHEDULE)


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """A network that was trained without disturbance, and the checkpoint that the run left."""
    checkpoint = tmp_path_factory.mktemp("run") / "checkpoint"
    return learn(drawn, segmentation_loss, NETWORK, SCHEDULE, checkpoint=checkpoint), checkpoint


def bars(key):
    """A broad bar on the left and a narrow one on the right, at random heights; white matter everywhere else."""
    left, right = jax.random.uniform(key, (2,), minval=-3, maxval=3)
    x, _, z = jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2 for n in STORED.shape), indexing="ij")
    bars = [(jnp.abs(x + 5) < 3) & (jnp.abs(z - left) < 3), (jnp.abs(x - 5) < 2) & (jnp.abs(z - right) < 3)]
    truth = jnp.stack(bars, axis=-1)
    return Head(1 - 0.7 * truth.sum(-1), truth.astype(jnp.float32))


def slopes(key):
    """An image whose intensity is its y in mm."""
    y = (jnp.arange(STORED.shape[1]) - 5.5)[None, :, None]
    return Head(jnp.broadcast_to(y, STORED.shape), jnp.zeros((*STORED.shape, 2)))


def task_of(make):
    return Task(make, STORED, WANTED, GEOMETRY, Variation(), lambda truth: truth[..., ::-1])


def weights(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_a_batch_of_varied_heads_holds_slices_and_soft_labels_that_sum_to_one(monkeypatch):
    # Smooth fields take long to compile, and have tests of their own.
    monkeypatch.setattr(augment, "_smooth_field", lambda key, points, spacing, channels: 0.1 * points[:, :channels])
    inputs, truth = drawer(task_of(bars), Schedule(heads=4, slices=1))(jax.random.key(0))
    assert inputs.shape == truth.shape == (4, 16, 16, 3)
    np.testing.assert_allclose(truth.sum(-1), 1, atol=1e-5)
    assert np.isfinite(inputs).all()


def test_left_stays_left_when_heads_are_mirrored(plain):
    _, truth = drawer(task_of(bars), Schedule(heads=16, slices=1))(jax.random.key(1))
    left, right = np.asarray(truth[..., 1]), np.asarray(truth[..., 2])
    assert not left[:, 8:].any()
    assert not right[:, :8].any()
    broad_left = left.sum((1, 2)) > right.sum((1, 2))
    assert 0 < broad_left.sum() < 16


def test_labels_lie_where_the_image_shows_them(plain):
    inputs, truth = drawer(task_of(bars), Schedule(heads=2, slices=2))(jax.random.key(2))
    np.testing.assert_allclose(inputs[..., 1], 1 - 0.7 * truth[..., 1:].sum(-1), atol=1e-5)


def test_labels_grow_and_shrink_with_the_image(plain):
    growth = jnp.asarray(_growth_field(np.asarray(_halved(middle_ball())), (2.0, 2.0, 2.0)))[None]
    ball = jnp.asarray(middle_ball())
    truths = jnp.stack([ball, jnp.zeros_like(ball)], axis=-1)
    task = task_of(lambda key: Head(1 - 0.7 * ball, truths, Growth(growth, jnp.array([0.3]))))
    inputs, truth = drawer(task, Schedule(heads=6, slices=1))(jax.random.key(4))
    np.testing.assert_allclose(inputs[..., 1], 1 - 0.7 * truth[..., 1:].sum(-1), atol=1e-5)
    sizes = np.asarray(truth[..., 1:].sum((1, 2, 3)))
    assert sizes.max() > 1.2 * sizes.min()


def middle_ball():
    """A soft ball in the middle of the stored grid, the same in every slice that could be drawn."""
    places = np.moveaxis(np.indices(STORED.shape), 0, -1) - (np.array(STORED.shape) - 1) / 2
    return np.clip(6 - np.linalg.norm(places[..., [0, 2]], axis=-1), 0, 1).astype(np.float32)


def test_channels_are_a_slice_and_its_neighbours(plain):
    inputs, _ = drawer(task_of(slopes), Schedule(heads=4, slices=2))(jax.random.key(3))
    np.testing.assert_allclose(inputs[..., 1] - inputs[..., 0], 2, atol=1e-4)
    np.testing.assert_allclose(inputs[..., 2] - inputs[..., 1], 2, atol=1e-4)
    assert set(np.round(2 * np.unique(inputs[..., 1])).tolist()) <= {-3, -1, 1, 3}


def test_a_simple_task_is_learnt(run):
    inputs, truth = drawer(task_of(bars), SCHEDULE)(jax.random.key(99))
    found = np.asarray(predictor(run[0])(inputs)).argmax(-1)
    wanted = np.asarray(truth).argmax(-1)
    assert min(dice(found == side, wanted == side) for side in (1, 2)) > 0.9


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(run, drawn, tmp_path, caplog):
    undisturbed, _ = run
    caplog.set_level(logging.INFO, logger=learning_module.__name__)
    stopped = learning(drawn, segmentation_loss, NETWORK, SCHEDULE, checkpoint=tmp_path)
    stops = [next(stopped), next(stopped)]
    stopped.close()
    caplog.clear()
    resumed = list(learning(drawn, segmentation_loss, NETWORK, SCHEDULE, checkpoint=tmp_path))
    assert [learnt.step for learnt in stops + resumed] == [30, 60, 60, 80]
    assert [record.args[0] for record in caplog.records] == [80]
    assert stops[1].loss == resumed[0].loss
    assert_same_weights(stops[1].model, resumed[0].model)
    assert_same_weights(undisturbed, resumed[1].model)


def test_a_run_that_is_at_its_end_gives_its_weights_again(run, drawn, caplog):
    undisturbed, checkpoint = run
    caplog.set_level(logging.INFO, logger=learning_module.__name__)
    assert_same_weights(undisturbed, learn(drawn, segmentation_loss, NETWORK, SCHEDULE, checkpoint=checkpoint))
    assert caplog.records == []


def test_a_checkpoint_of_another_network_is_refused(run, drawn):
    with pytest.raises(ModelError, match="belongs to another network; delete it"):
        learn(drawn, segmentation_loss, replace(NETWORK, widths=(6, 8)), SCHEDULE, checkpoint=run[1])


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(run, drawn, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(run[1], checkpoint)
    shutil.copytree(checkpoint / "80", checkpoint / "90.orbax-checkpoint-tmp")
    (checkpoint / "90.orbax-checkpoint-tmp" / "commit_success.txt").unlink(missing_ok=True)
    assert_same_weights(run[0], learn(drawn, segmentation_loss, NETWORK, SCHEDULE, checkpoint=checkpoint))


def test_weights_to_start_from_are_kept_but_for_classes_of_another_number(run, caplog):
    caplog.set_level(logging.INFO, logger=learning_module.__name__)
    assert_same_weights(run[0], _started(NETWORK, 5, run[0]))
    assert caplog.records == []
    other = _started(replace(NETWORK, out_channels=5), 5, run[0])
    assert_same_weights(run[0].down, other.down)
    assert other.classify.kernel[...].shape == (1, 1, 4, 5)
    assert not other.classify.kernel[...].any()
    assert "3 classes: the last layer, of 5, starts anew" in caplog.text


def test_weights_of_another_shape_to_start_from_are_refused(run):
    with pytest.raises(ModelError, match="may differ: start from other weights, or from scratch"):
        _started(replace(NETWORK, widths=(4, 12)), 0, run[0])


def test_in_half_precision_the_loss_falls_too_and_weights_stay_single(drawn):
    schedule = replace(SCHEDULE, precision="bfloat16", steps=20, checkpoint_every=5)
    stops = list(learning(drawn, segmentation_loss, NETWORK, schedule))
    assert {leaf.dtype for leaf in weights(stops[-1].model)} == {np.dtype(np.float32)}
    assert stops[-1].loss < 0.7 * stops[0].loss


def assert_same_weights(a, b):
    for one, other in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(one, other)
