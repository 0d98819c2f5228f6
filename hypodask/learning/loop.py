"""The training loop of every network; batches are made while it runs.

AdamW with a cosine schedule; what is kept is an exponential average of the weights. Checkpoints are written on the way,
and the same call goes on from the newest. A run may start from the weights of another network, and compute in half
precision: parameters, their average and the loss stay in single precision.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from hypodask.core.errors import ModelError
from hypodask.learning.checkpoints import keep, restored
from hypodask.learning.losses import Loss
from hypodask.networks.architectures import AnyNetwork, Architecture, build

log = logging.getLogger(__name__)

_WARM_UP_STEPS = 50
"""Steps over which the learning rate rises, or half of all steps where that is less."""

Batch = tuple[Float[Array, "n *seen"], Float[Array, "n *answered"]]
"""Inputs and their truth: slices, volumes or profiles, channels last, and a share of every class or place."""

Drawer = Callable[[PRNGKeyArray], Batch]

Precision = Literal["float32", "bfloat16"]


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
    checkpoint_every: int = 50
    """Steps from one checkpoint, and one line of the log, to the next."""
    precision: Precision = "float32"
    """Of the network's arithmetic; ``bfloat16`` is faster on a GPU, and slower on most CPUs."""


class Learnt(NamedTuple):
    """Where a run is."""

    step: int
    loss: float
    """Mean over the steps since the previous checkpoint."""
    model: AnyNetwork
    """With the averaged weights."""


class _State(NamedTuple):
    params: Any
    stats: Any
    average: Any
    optimizer: Any
    step: Array
    loss: Array
    """Sum since the last checkpoint."""


def learn(
    drawn: Drawer,
    loss: Loss,
    config: Architecture,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    initial: AnyNetwork | None = None,
) -> AnyNetwork:
    """Learn a network.

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
        Folder, written every ``schedule.checkpoint_every`` steps and gone on from where it exists: what comes out is
        what an undisturbed run gives.
    initial
        A network to start from, of the same shape but for its classes.

    Returns
    -------
    AnyNetwork
        With the averaged weights.

    Raises
    ------
    ModelError
        If the checkpoint belongs to another network, or ``initial`` has another shape.
    """
    *_, last = learning(drawn, loss, config, schedule, checkpoint=checkpoint, initial=initial)
    return last.model


def learning(
    drawn: Drawer,
    loss: Loss,
    config: Architecture,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    initial: AnyNetwork | None = None,
) -> Iterator[Learnt]:
    """As :func:`learn`, but yields the state at every checkpoint, the one it starts from included, and at the end.

    A caller that stops early can go on later with the same call.
    """
    model = _started(config, schedule.seed, initial)
    graph, params, stats = cast(tuple[Any, Any, Any], nnx.split(model, nnx.Param, nnx.BatchStat))
    # The compiled step does not depend on the seed: networks that differ only in the seed share it.
    alike, zero = replace(schedule, seed=0), jnp.asarray(0.0)
    optimizer = _optimizer(alike)
    state = _State(params, stats, (params, stats), optimizer.init(params), jnp.asarray(0), zero)
    state = restored(checkpoint, state) if checkpoint else state
    if state.step:
        yield _learnt(graph, state, schedule)
        state = state._replace(loss=zero)
    for step, (inputs, truth) in _ahead(drawn, schedule, int(state.step)):
        state = _learn(graph, optimizer, loss, alike, state, inputs, truth)
        if (step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps:
            learnt = _learnt(graph, state, schedule)
            log.info("step %d loss %.4f", learnt.step, learnt.loss)
            if checkpoint:
                keep(checkpoint, step + 1, state)
            yield learnt
            state = state._replace(loss=zero)


def _ahead(drawn: Drawer, schedule: Schedule, first: int) -> Iterator[tuple[int, Batch]]:
    """The number and the batch of every step from ``first``; the next batch is drawn while one is learnt from."""
    key = jax.random.key(schedule.seed)

    def batch(step: int) -> Batch:
        inputs, truth = drawn(jax.random.fold_in(key, step))
        return inputs.block_until_ready(), truth.block_until_ready()

    with ThreadPoolExecutor(1, "draw") as pool:
        coming = pool.submit(batch, first)
        for step in range(first, schedule.steps):
            here = coming.result()
            if step + 1 < schedule.steps:
                coming = pool.submit(batch, step + 1)
            yield step, here


def _started(config: Architecture, seed: int, initial: AnyNetwork | None = None) -> AnyNetwork:
    """The initial network: random weights, or those of another, whose last layer starts anew if the classes differ.

    Raises
    ------
    ModelError
        If ``initial`` has another shape.
    """
    model = build(config, rngs=nnx.Rngs(seed))
    if initial is None:
        return model
    if replace(initial.config, out_channels=config.out_channels) != config:
        raise ModelError(
            f"the weights to start from are of {initial.config}, the network to be learnt is {config}; only classes "
            "(out_channels) may differ: start from other weights, or from scratch"
        )
    kept = nnx.state(initial, nnx.Any(nnx.Param, nnx.BatchStat))
    if initial.config.out_channels != config.out_channels:
        log.info(
            "starting from weights of %d classes: the last layer, of %d, starts anew",
            initial.config.out_channels,
            config.out_channels,
        )
        # At zero all classes are equally probable; random weights on large features would be certain and wrong.
        model.classify.kernel.set_value(jnp.zeros_like(model.classify.kernel[...]))
        del kept["classify"]
    nnx.update(model, kept)
    return model


def _learnt(graph: Any, state: _State, schedule: Schedule) -> Learnt:
    step = int(state.step)
    steps = step % schedule.checkpoint_every or schedule.checkpoint_every
    return Learnt(step, float(state.loss) / steps, cast(AnyNetwork, nnx.merge(graph, *state.average)))


@lru_cache(maxsize=4)
def _optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """AdamW whose learning rate rises linearly and falls along a cosine.

    One object per schedule, because a step is compiled for the object it is given.
    """
    rise = min(_WARM_UP_STEPS, schedule.steps // 2)
    rates = optax.warmup_cosine_decay_schedule(0.0, schedule.learning_rate, rise, schedule.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates, weight_decay=schedule.weight_decay))


@partial(jax.jit, static_argnames=("graph", "optimizer", "loss", "schedule"))
def _learn(
    graph: Any,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    schedule: Schedule,
    state: _State,
    inputs: Array,
    truth: Array,
) -> _State:
    """One step of AdamW."""

    def loss_of(params: Any) -> tuple[Array, Any]:
        # A network computes in the type of its weights; gradients come back through the cast in single precision.
        cast_down = jax.tree.map(lambda weight: weight.astype(schedule.precision), params)
        model = nnx.merge(graph, cast_down, state.stats, copy=True)
        answer = model(inputs, train=True).astype(jnp.float32)
        return loss(answer, truth), nnx.state(model, nnx.BatchStat)

    (value, stats), slopes = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(slopes, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average starts as a plain mean, so that the initial weights do not persist in it.
    decay = jnp.minimum(schedule.average, (1 + state.step) / (10 + state.step))
    mean = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.average, (params, stats))
    return _State(params, stats, mean, optimizer_state, state.step + 1, state.loss + value)
