"""Examples for the segmentation networks: a few slices of heads that are made and varied as training goes on.

A task makes one head from a PRNG key; the head is varied in pose, shape and contrast, and slices are drawn from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key, PRNGKeyArray

from hypodask.core.grid import Grid
from hypodask.image.resampling import gather, gather_channels
from hypodask.learning.augmentation import Variation, contrast_of, points_of
from hypodask.learning.loop import Batch, Drawer, Schedule, learn
from hypodask.learning.losses import cross_entropy
from hypodask.networks.architectures import AnyNetwork, Architecture
from hypodask.networks.cards import InputGeometry

_COARSE = 4
"""Warps are computed at every fourth pixel and interpolated: they are smooth over ten or more."""


class Growth(NamedTuple):
    """Structures of a head that grow and shrink, and how much."""

    fields: Float[Array, "structure 3 x y z"]
    """Displacements in mm that double each; voxels twice as large as those of the head (``growth.growth_fields``)."""
    log_sd: Float[Array, "structure"]
    """Standard deviations of the logarithms of their relative volumes."""


class Head(NamedTuple):
    """One head before pose and contrast are varied."""

    image: Float[Array, "i j k"]
    """In units of white matter."""
    truth: Float[Array, "i j k class"]
    """Soft labels without background."""
    growth: Growth | None = None


_Maker = Callable[[PRNGKeyArray], Head]

_LARGEST_GROWTH = 1.75
"""Growth is cut at so many standard deviations, so that nothing folds."""


@dataclass(frozen=True)
class Task:
    """What a network is to learn, and on which grid."""

    make: _Maker
    stored: Grid
    """Where a head's voxels are."""
    wanted: Grid
    """The grid that the network sees; slices run across y."""
    geometry: InputGeometry
    variation: Variation
    mirror: Callable[[Array], Array]
    """From a truth, classes last, to that of the mirrored head: left and right change places."""


def train(task: Task, config: Architecture, schedule: Schedule, *, checkpoint: Path | None = None) -> AnyNetwork:
    """Learn a U-Net from a task, as :func:`hypodask.learning.loop.learn` does."""
    return learn(drawer(task, schedule), cross_entropy, config, schedule, checkpoint=checkpoint)


def drawer(task: Task, schedule: Schedule) -> Drawer:
    """Compile the drawing of batches, one for each key."""

    @jax.jit
    def of_head(head: Head, keys: Key[Array, "slice"]) -> Batch:
        examples = [_slice(task, head, key) for key in keys]
        return jnp.stack([values for values, _ in examples]), jnp.stack([truth for _, truth in examples])

    def of_batch(key: PRNGKeyArray) -> Batch:
        parts = []
        for one in jax.random.split(key, schedule.heads):
            keys = jax.random.split(one, 1 + schedule.slices)
            # Compiled together with the lookup of slices, a head would be made anew for every voxel.
            parts.append(of_head(task.make(keys[0]), keys[1:]))
        return jnp.concatenate([inputs for inputs, _ in parts]), jnp.concatenate([truth for _, truth in parts])

    return of_batch


def _slice(task: Task, head: Head, key: PRNGKeyArray) -> tuple[Float[Array, "h w c"], Float[Array, "h w k"]]:
    """Neighbouring slices of a varied head, and the truth of the middle one."""
    keys = jax.random.split(key, 6)
    strength = jax.random.uniform(keys[5])
    middle = jax.random.randint(keys[0], (), 0, task.wanted.shape[1])
    flip = jnp.where(jax.random.bernoulli(keys[1]), -1.0, 1.0)
    coarse = _slab_points(task, middle)
    shape = coarse.shape
    centre = jnp.asarray(task.wanted.centre_mm, jnp.float32)
    there = points_of(keys[2], coarse.reshape(-1, 3), centre, task.variation, strength).reshape(shape)
    there = there * jnp.array([flip, 1.0, 1.0])
    fine = (*shape[:1], task.wanted.shape[0], task.wanted.shape[2], 3)
    if head.growth is not None:
        there = there + _grown(keys[4], head.growth, there, task.stored)
    vox = jnp.moveaxis(_voxels(task.stored, jax.image.resize(there, fine, "linear")), -1, 0)
    values = gather(head.image, vox.reshape(3, -1), 1).reshape(fine[:3]).astype(jnp.float32)
    values = contrast_of(keys[3], values, there, task.variation, strength)
    truth = gather_channels(head.truth, vox[:, fine[0] // 2].reshape(3, -1)).reshape(*fine[1:3], -1)
    truth = jnp.where(flip < 0, task.mirror(truth), truth)
    return jnp.moveaxis(values, 0, -1), jnp.concatenate([1 - truth.sum(-1, keepdims=True), truth], axis=-1)


def _grown(
    key: PRNGKeyArray, growth: Growth, points_mm: Float[Array, "s h w 3"], stored: Grid
) -> Float[Array, "s h w 3"]:
    """Displacement of points by structures that grow or shrink by random amounts."""
    amounts = jnp.clip(jax.random.normal(key, growth.log_sd.shape), -_LARGEST_GROWTH, _LARGEST_GROWTH)
    # Looked up from further away, a structure has shrunk: where it is v times as large, places move by 1 / v - 1.
    away = jnp.exp(-growth.log_sd * amounts) - 1
    field = jnp.moveaxis(jnp.tensordot(away, growth.fields, axes=1), 0, -1)
    at = (_voxels(stored, points_mm) - 0.5) / 2
    return gather_channels(field, at.reshape(-1, 3).T).reshape(points_mm.shape)


def _voxels(grid: Grid, points_mm: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Voxel coordinates of points in the grid's space."""
    vox_from_space = jnp.asarray(np.linalg.inv(grid.space_from_vox), jnp.float32)
    return points_mm @ vox_from_space[:3, :3].T + vox_from_space[:3, 3]


def _slab_points(task: Task, middle: Array) -> Float[Array, "slice h w 3"]:
    """Millimetres of every ``_COARSE``-th pixel of a slice and its neighbours."""
    i, _, k = task.wanted.shape
    near = task.geometry.slice_step * (jnp.arange(task.geometry.slices) - task.geometry.slices // 2)
    rows, columns = ((jnp.arange(n // _COARSE) + 0.5) * _COARSE - 0.5 for n in (i, k))
    y, x, z = jnp.meshgrid(near + middle, rows, columns, indexing="ij")
    vox = jnp.stack([x, y, z], -1)
    matrix = jnp.asarray(task.wanted.space_from_vox, jnp.float32)
    return vox @ matrix[:3, :3].T + matrix[:3, 3]
