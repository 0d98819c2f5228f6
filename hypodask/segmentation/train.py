"""Training of a U-Net on examples that are made on the fly.

A ``Maker`` makes one varied head from a PRNG key; slices are drawn from it; AdamW with a cosine schedule
learns from them; an exponential average of the weights is what is kept. A checkpoint is written as it
goes, and the same call goes on from it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray
from safetensors.numpy import load_file, save_file

from hypodask.errors import ModelError
from hypodask.grid import Grid
from hypodask.resample import gather
from hypodask.segmentation.augment import Variation, contrast_of, points_of
from hypodask.segmentation.losses import segmentation_loss
from hypodask.segmentation.unet import UNet, UNetConfig
from hypodask.segmentation.weights import InputGeometry

log = logging.getLogger(__name__)

COARSE = 4
"""Warps are worked out at every fourth pixel and interpolated: they are smooth over ten or more."""

WARM_UP_STEPS = 50
"""Steps over which the rate rises, or half of all where that is less."""


class Head(NamedTuple):
    """One head as a network could be shown it, before pose and contrast vary."""

    image: Float[Array, "i j k"]
    """In units of white matter."""
    truth: Float[Array, "class i j k"]
    """Soft labels without background."""


Maker = Callable[[PRNGKeyArray], Head]
Batch = tuple[Float[Array, "n h w slice"], Float[Array, "n h w class"]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int = 1200
    heads: int = 8
    """Heads made for each step."""
    slices: int = 2
    """Slices drawn from each."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    average: float = 0.995
    """Decay of the average of the weights."""
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 100


@dataclass(frozen=True)
class Task:
    """What is to be learnt, and on which grid."""

    make: Maker
    stored: Grid
    """Where a head's voxels are."""
    wanted: Grid
    """The grid that the network will see; slices run across y."""
    geometry: InputGeometry
    variation: Variation
    mirror: Callable[[Array], Array]
    """Truth channels of a mirrored head: left and right change places."""


class _State(NamedTuple):
    params: Any
    stats: Any
    average: Any
    optimizer: Any
    step: Array


def train(task: Task, config: UNetConfig, schedule: Schedule, *, checkpoint: Path | None = None) -> UNet:
    """Learn a U-Net.

    Parameters
    ----------
    task
        Where examples come from.
    config
        Shape of the network.
    schedule
        Steps, batch and rates.
    checkpoint
        Written every ``schedule.checkpoint_every`` steps, and gone on from where it exists: what comes out is
        what an undisturbed run gives.

    Returns
    -------
    UNet
        With the averaged weights.

    Raises
    ------
    ModelError
        If the checkpoint belongs to another network.
    """
    model = UNet(config, rngs=nnx.Rngs(schedule.seed))
    graph, params, stats = cast(tuple[Any, Any, Any], nnx.split(model, nnx.Param, nnx.BatchStat))
    optimizer = _optimizer(schedule)
    state = _resumed(_State(params, stats, (params, stats), optimizer.init(params), jnp.asarray(0)), checkpoint)
    key, drawn, losses = jax.random.key(schedule.seed), drawer(task, schedule), []
    for step in range(int(state.step), schedule.steps):
        inputs, truth = drawn(jax.random.fold_in(key, step))
        state, loss = _learn(graph, optimizer, schedule.average, state, inputs, truth)
        losses.append(float(loss))
        if step % schedule.log_every == schedule.log_every - 1:
            log.info("step %d loss %.4f", step + 1, np.mean(losses[-schedule.log_every :]))
        if checkpoint and step % schedule.checkpoint_every == schedule.checkpoint_every - 1:
            _keep(state, checkpoint)
    params, stats = state.average
    return cast(UNet, nnx.merge(graph, params, stats))


def draw(task: Task, schedule: Schedule, key: PRNGKeyArray) -> Batch:
    """One batch of slices and their truth, background first; compiled anew, for more of them see ``drawer``."""
    return drawer(task, schedule)(key)


def drawer(task: Task, schedule: Schedule) -> Callable[[PRNGKeyArray], Batch]:
    """Compile the drawing of batches, one for each key."""

    @jax.jit
    def of_head(head: Head, keys: PRNGKeyArray) -> Batch:
        examples = [_slice(task, head, key) for key in keys]
        return jnp.stack([values for values, _ in examples]), jnp.stack([truth for _, truth in examples])

    def of_batch(key: PRNGKeyArray) -> Batch:
        parts = []
        for one in jax.random.split(key, schedule.heads):
            keys = jax.random.split(one, 1 + schedule.slices)
            # Made before slices are looked up: compiled together, a head would be made anew for every voxel.
            parts.append(of_head(task.make(keys[0]), keys[1:]))
        return jnp.concatenate([inputs for inputs, _ in parts]), jnp.concatenate([truth for _, truth in parts])

    return of_batch


@lru_cache(maxsize=4)
def _optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """AdamW whose rate rises for a while and falls along a cosine.

    One object for one schedule: a step is compiled for the object it is given.
    """
    rise = min(WARM_UP_STEPS, schedule.steps // 2)
    rates = optax.warmup_cosine_decay_schedule(0.0, schedule.learning_rate, rise, schedule.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates, weight_decay=schedule.weight_decay))


def _slice(task: Task, head: Head, key: PRNGKeyArray) -> tuple[Float[Array, "h w c"], Float[Array, "h w k"]]:
    """Neighbouring slices of a varied head, and the truth of the middle one."""
    keys = jax.random.split(key, 4)
    middle = jax.random.randint(keys[0], (), 0, task.wanted.shape[1])
    flip = jnp.where(jax.random.bernoulli(keys[1]), -1.0, 1.0)
    coarse = _slab_points(task, middle)
    shape = coarse.shape
    centre = jnp.asarray(task.wanted.centre_mm, jnp.float32)
    there = points_of(keys[2], coarse.reshape(-1, 3), centre, task.variation).reshape(shape)
    there = there * jnp.array([flip, 1.0, 1.0])
    fine = (*shape[:1], task.wanted.shape[0], task.wanted.shape[2], 3)
    there = jax.image.resize(there, fine, "linear")
    vox_from_acpc = jnp.asarray(np.linalg.inv(task.stored.space_from_vox), jnp.float32)
    vox = jnp.moveaxis(there @ vox_from_acpc[:3, :3].T + vox_from_acpc[:3, 3], -1, 0)
    values = gather(head.image, vox.reshape(3, -1), 1).reshape(fine[:3])
    values = contrast_of(keys[3], values, there, task.variation)
    centre_slice = vox[:, fine[0] // 2].reshape(3, -1)
    truth = jnp.stack([gather(channel, centre_slice, 1).reshape(fine[1:3]) for channel in head.truth])
    truth = jnp.where(flip < 0, task.mirror(truth), truth)
    truth = jnp.concatenate([1 - truth.sum(0, keepdims=True), truth])
    return jnp.moveaxis(values, 0, -1), jnp.moveaxis(truth, 0, -1)


def _slab_points(task: Task, middle: Array) -> Float[Array, "slice h w 3"]:
    """Millimetres of every ``COARSE``-th pixel of a slice and its neighbours."""
    i, _, k = task.wanted.shape
    near = task.geometry.slice_step * (jnp.arange(task.geometry.slices) - task.geometry.slices // 2)
    rows, columns = ((jnp.arange(n // COARSE) + 0.5) * COARSE - 0.5 for n in (i, k))
    y, x, z = jnp.meshgrid(near + middle, rows, columns, indexing="ij")
    vox = jnp.stack([x, y, z], -1)
    matrix = jnp.asarray(task.wanted.space_from_vox, jnp.float32)
    return vox @ matrix[:3, :3].T + matrix[:3, 3]


@partial(jax.jit, static_argnames=("graph", "optimizer", "average"))
def _learn(
    graph: Any, optimizer: optax.GradientTransformation, average: float, state: _State, inputs: Array, truth: Array
) -> tuple[_State, Array]:
    """One step of AdamW."""

    def loss_of(params: Any) -> tuple[Array, Any]:
        model = nnx.merge(graph, params, state.stats, copy=True)
        return segmentation_loss(model(inputs, train=True), truth), nnx.state(model, nnx.BatchStat)

    (loss, stats), slopes = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(slopes, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average starts as a plain mean, so that the first weights do not linger.
    decay = jnp.minimum(average, (1 + state.step) / (10 + state.step))
    mean = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.average, (params, stats))
    return _State(params, stats, mean, optimizer_state, state.step + 1), loss


def _keep(state: _State, checkpoint: Path) -> None:
    """Write a checkpoint that is there whole or not at all."""
    partial_file = checkpoint.with_suffix(".partial")
    save_file({str(n): np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(state))}, partial_file)
    partial_file.replace(checkpoint)


def _resumed(state: _State, checkpoint: Path | None) -> _State:
    """The state of a checkpoint, where there is one."""
    if checkpoint is None or not checkpoint.exists():
        return state
    stored = load_file(checkpoint)
    leaves, tree = jax.tree.flatten(state)
    known = [stored[name] for name in sorted(stored, key=int)]
    if [leaf.shape for leaf in known] != [leaf.shape for leaf in leaves]:
        raise ModelError(f"{checkpoint} belongs to another network; delete it, or train the network it was made for")
    return cast(_State, jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in known]))
