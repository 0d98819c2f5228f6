"""Learning of a U-Net from batches that are made on the fly.

AdamW with a cosine schedule; an exponential average of the weights is what is kept. A checkpoint is written
as it goes, and the same call goes on from it.
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
from hypodask.network.unet import UNet, UNetConfig

log = logging.getLogger(__name__)

WARM_UP_STEPS = 50
"""Steps over which the rate rises, or half of all where that is less."""

Batch = tuple[Float[Array, "n h w slice"], Float[Array, "n h w class"]]
Drawer = Callable[[PRNGKeyArray], Batch]
Loss = Callable[[Float[Array, "n h w class"], Float[Array, "n h w class"]], Float[Array, ""]]
"""Of a network's answer and the truth."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int = 1200
    heads: int = 8
    """Heads made for each step."""
    slices: int = 2
    """Examples drawn from each."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    average: float = 0.995
    """Decay of the average of the weights."""
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 100


class _State(NamedTuple):
    params: Any
    stats: Any
    average: Any
    optimizer: Any
    step: Array


def learn(drawn: Drawer, loss: Loss, config: UNetConfig, schedule: Schedule, *, checkpoint: Path | None = None) -> UNet:
    """Learn a U-Net.

    Parameters
    ----------
    drawn
        Makes one batch of inputs and their truth from a PRNG key.
    loss
        What is minimised.
    config
        Shape of the network.
    schedule
        Steps and rates.
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
    key, losses = jax.random.key(schedule.seed), []
    for step in range(int(state.step), schedule.steps):
        inputs, truth = drawn(jax.random.fold_in(key, step))
        state, value = _learn(graph, optimizer, loss, schedule.average, state, inputs, truth)
        losses.append(float(value))
        if step % schedule.log_every == schedule.log_every - 1:
            log.info("step %d loss %.4f", step + 1, np.mean(losses[-schedule.log_every :]))
        if checkpoint and step % schedule.checkpoint_every == schedule.checkpoint_every - 1:
            _keep(state, checkpoint)
    params, stats = state.average
    return cast(UNet, nnx.merge(graph, params, stats))


@lru_cache(maxsize=4)
def _optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """AdamW whose rate rises for a while and falls along a cosine.

    One object for one schedule: a step is compiled for the object it is given.
    """
    rise = min(WARM_UP_STEPS, schedule.steps // 2)
    rates = optax.warmup_cosine_decay_schedule(0.0, schedule.learning_rate, rise, schedule.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates, weight_decay=schedule.weight_decay))


@partial(jax.jit, static_argnames=("graph", "optimizer", "loss", "average"))
def _learn(
    graph: Any,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    average: float,
    state: _State,
    inputs: Array,
    truth: Array,
) -> tuple[_State, Array]:
    """One step of AdamW."""

    def loss_of(params: Any) -> tuple[Array, Any]:
        model = nnx.merge(graph, params, state.stats, copy=True)
        return loss(model(inputs, train=True), truth), nnx.state(model, nnx.BatchStat)

    (value, stats), slopes = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(slopes, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average starts as a plain mean, so that the first weights do not linger.
    decay = jnp.minimum(average, (1 + state.step) / (10 + state.step))
    mean = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.average, (params, stats))
    return _State(params, stats, mean, optimizer_state, state.step + 1), value


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
