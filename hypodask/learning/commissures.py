"""How the commissure network learns: from scans whose commissures people marked, varied at random.

An example is a stack of sagittal slices about the midsagittal plane, of a scan that was moved, warped and given another
contrast; so the plane is slightly wrong, as it is when the network is used. The truth is, for each commissure, a
probability over the pixels of the plane: a small Gaussian about where it lies. Nothing here is needed to process scans.

::

    marked scans -> drawer -> batches of (slices, truth) -> learning.loop.learn, which minimizes place_loss
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from hypodask.alignment.commissures import GEOMETRY
from hypodask.core.grid import Grid, box_grid
from hypodask.image.resampling import gather
from hypodask.learning.augmentation import Variation, contrast_of, points_of
from hypodask.learning.loop import Batch, Drawer

_TRUTH_SD_MM = 1.2
"""Standard deviation of the Gaussian that the network should answer with."""

_COARSE = 4
"""Warps are computed at every fourth pixel and interpolated: they are smooth over ten or more."""

_VARIATION = Variation(
    turn_deg=4.0, shift_mm=2.0, size=0.06, warp_mm=1.0, warp_spacing_mm=14.0, local_size=0.04, gamma=0.25, noise=0.07
)


class MarkedHeads(NamedTuple):
    """Scans on :func:`marked_grid`, in the AC-PC space of their marks: AC at the origin, PC on -y."""

    images: Float[Array, "head blur i j k"]
    """Each as it is and as blurrier scanners would give it, in units of white matter."""
    acpc_distance_mm: Float[Array, "head"]
    """How far behind the AC the PC lies."""
    blur_shares: Float[Array, "blur"]
    """How often each version is drawn; their sum is 1."""


def marked_grid() -> Grid:
    """The grid of marked scans: what the network sees, with a margin for random moves."""
    return box_grid((37, 128, 112), GEOMETRY.spacing_mm, GEOMETRY.centre_mm)


def drawer(heads: MarkedHeads, *, batch: int, variation: Variation = _VARIATION) -> Drawer:
    """Compile a function that draws batches of so many examples, one batch for each PRNG key."""

    @jax.jit
    def drawn(key: PRNGKeyArray) -> Batch:
        return jax.lax.map(lambda one: _example(heads, one, variation), jax.random.split(key, batch), batch_size=8)

    return drawn


def place_loss(logits: Float[Array, "n y z 2"], truth: Float[Array, "n y z 2"]) -> Float[Array, ""]:
    """Cross-entropy over the pixels of the plane; mean over examples and commissures.

    The pixels of one plane compete with each other, since a commissure lies at one place only.
    """
    return -(truth * jax.nn.log_softmax(logits, axis=(1, 2))).sum(axis=(1, 2)).mean()


def _example(
    heads: MarkedHeads, key: PRNGKeyArray, variation: Variation
) -> tuple[Float[Array, "y z slice"], Float[Array, "y z 2"]]:
    """The slices of one varied scan, and the probability of each commissure at each pixel of the middle one."""
    keys = jax.random.split(key, 5)
    head = jax.random.randint(keys[0], (), 0, len(heads.images))
    blur = jax.random.choice(keys[1], len(heads.blur_shares), p=heads.blur_shares)
    # Half of the scans are mirrored, so that neither side is preferred.
    points = _varied_points(keys[2], variation) * jnp.array([jnp.where(jax.random.bernoulli(keys[3]), -1.0, 1.0), 1, 1])
    vox_from_acpc = jnp.asarray(np.linalg.inv(marked_grid().space_from_vox), jnp.float32)
    vox = vox_from_acpc[:3, :3] @ points.reshape(-1, 3).T + vox_from_acpc[:3, 3:]
    values = gather(heads.images[head, blur].astype(jnp.float32), vox, 1).reshape(points.shape[:3])
    slices = contrast_of(keys[4], values, points, variation)
    commissures = jnp.stack([jnp.zeros(3), jnp.array([0.0, -1.0, 0.0]) * heads.acpc_distance_mm[head]])
    plane = points[GEOMETRY.slices // 2]
    squares = ((plane[:, :, None] - commissures) ** 2).sum(axis=-1)
    # A Gaussian about each commissure, whose sum over the plane is 1, also where the plane misses it.
    truth = jax.nn.softmax(-squares / (2 * _TRUTH_SD_MM**2), axis=(0, 1))
    return jnp.moveaxis(slices, 0, -1), jnp.asarray(truth)


def _varied_points(key: PRNGKeyArray, variation: Variation) -> Float[Array, "slice y z 3"]:
    """Where in a stored scan the pixels of the slices are looked up, AC-PC mm."""
    _, j, k = GEOMETRY.shape
    x = GEOMETRY.slice_step * (jnp.arange(GEOMETRY.slices) - GEOMETRY.slices // 2)
    y, z = ((jnp.arange(n // _COARSE) + 0.5) * _COARSE - n / 2 for n in (j, k))
    coarse = jnp.stack(jnp.meshgrid(x, y, z, indexing="ij"), axis=-1) * jnp.array(GEOMETRY.spacing_mm)
    centre = jnp.asarray(GEOMETRY.centre_mm)
    varied = points_of(key, coarse.reshape(-1, 3) + centre, centre, variation).reshape(coarse.shape)
    return jax.image.resize(varied, (GEOMETRY.slices, j, k, 3), "linear")
