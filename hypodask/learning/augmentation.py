"""Random variation of training examples: pose, shape, contrast and the effects of scanners, in JAX.

Every function takes an explicit PRNG ``key``. Images are in units of white matter. A training example is a
few neighbouring slices, so only their points are ever looked up, not a whole warped volume.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from hypodask.image.acquisition import rician
from hypodask.image.intensity import BRIGHTEST
from hypodask.image.resampling import gather

_BIAS_SPACING_MM = 60.0
"""Distance between the knots of the receive field."""

_FIELD_KNOTS = 16
"""Knots along each axis of a smooth field; points beyond them see the outermost."""


@dataclass(frozen=True)
class Variation:
    """How far examples are varied; standard deviations unless said otherwise."""

    turn_deg: float = 4.0
    shift_mm: float = 1.5
    size: float = 0.06
    """Relative change of length, each axis by itself."""
    warp_mm: float = 1.2
    """Displacement of the control points of a smooth warp."""
    warp_spacing_mm: float = 12.0
    local_size: float = 0.05
    """Growth or shrinkage of a ball about the centre, relative length."""
    local_radius_mm: float = 9.0
    gamma: float = 0.3
    """Of its logarithm: so far that 0.75 and 1.3 are no rare extremes."""
    gain: float = 0.12
    bias: float = 0.15
    """Amplitude of a smooth multiplicative field."""
    noise: float = 0.06
    """Largest standard deviation of the noise."""
    curve: float = 0.05
    """Amplitude of a smooth change of the intensity curve, which leaves black and white matter where they are."""


def points_of(
    key: PRNGKeyArray,
    points_mm: Float[Array, "n 3"],
    centre_mm: Float[Array, "3"],
    options: Variation,
    strength: Float[Array, ""] | float = 1.0,
) -> Float[Array, "n 3"]:
    """Where in the stored head the wanted points are to be looked up: pose, size, warp and local growth.

    ``strength``, from 0 to 1, multiplies every amplitude. Drawn at random, it also shows a network heads as they are:
    when all were varied in full, it segmented its own training heads 7 % too large, though varied ones right to 2 %.
    """
    keys = jax.random.split(key, 5)
    offset = points_mm - centre_mm
    radius = jnp.linalg.norm(offset, axis=1, keepdims=True)
    growth = options.local_size * strength * jax.random.normal(keys[0])
    offset = offset * (1 + growth * jnp.exp(-0.5 * (radius / options.local_radius_mm) ** 2))
    offset = offset + _smooth_field(keys[1], offset, options.warp_spacing_mm, 3) * (options.warp_mm * strength)
    angles = jnp.deg2rad(options.turn_deg * strength) * jax.random.normal(keys[2], (3,))
    size = jnp.exp(options.size * strength * jax.random.normal(keys[3], (3,)))
    turned = (offset * size) @ _rotation(angles).T
    return turned + centre_mm + options.shift_mm * strength * jax.random.normal(keys[4], (3,))


def _rotation(angles: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rotation matrix of a rotation vector, radians."""
    x, y, z = angles
    return jax.scipy.linalg.expm(jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))


def _smooth_field(
    key: PRNGKeyArray, points_mm: Float[Array, "n 3"], spacing_mm: float, channels: int
) -> Float[Array, "n {channels}"]:
    """Smooth random fields of unit variance at points: cubic B-splines on a net of ``spacing_mm``."""
    knots = jax.random.normal(key, (channels, *(_FIELD_KNOTS,) * 3))
    places = points_mm.T / spacing_mm + (_FIELD_KNOTS - 1) / 2
    # A cubic B-spline field has 0.479^3 of the variance of its coefficients, so its standard deviation is about 1 / 3.
    return jnp.stack([gather(knot, places, 3) for knot in knots], axis=1) * 3.0


def contrast_of(
    key: PRNGKeyArray,
    values: Float[Array, "*n"],
    points_mm: Float[Array, "*m 3"],
    options: Variation,
    strength: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*n"]:
    """Another scanner's intensities: gamma, another curve, gain, receive field and Rician noise.

    The points may be fewer than the values, evenly among them: the receive field is smooth. ``strength`` multiplies
    every amplitude, as in :func:`points_of`.
    """
    keys = jax.random.split(key, 6)
    gamma = jnp.exp(options.gamma * strength * jax.random.normal(keys[0]))
    values = jnp.clip(values, 1e-3) ** gamma
    first, second = options.curve * strength * jax.random.normal(keys[5], (2,))
    values = values + first * jnp.sin(jnp.pi * values) + second * jnp.sin(2 * jnp.pi * values)
    values = values * jnp.exp(options.gain * strength * jax.random.normal(keys[1]))
    bias = jnp.exp(options.bias * strength * _smooth_field(keys[2], points_mm.reshape(-1, 3), _BIAS_SPACING_MM, 1))
    values = values * jax.image.resize(bias.reshape(points_mm.shape[:-1]), values.shape, "linear")
    noise = options.noise * strength * jax.random.uniform(keys[3]) * _grain(keys[4], values.shape)
    return jnp.clip(rician(values, *noise), 0.0, BRIGHTEST)


def _grain(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "2 *n"]:
    """Two channels of noise of unit variance, partly shared by neighbours: scans have larger voxels than our grids."""
    of_noise, of_share = jax.random.split(key)
    fine = jax.random.normal(of_noise, (2, *shape))
    pairs = fine
    for axis in (-1, -2)[: len(shape)]:
        pairs = (pairs + jnp.roll(pairs, 1, axis)) / jnp.sqrt(2.0)
    share = jax.random.uniform(of_share)
    alone = 1 - share
    # Neighbours overlap with the fine noise itself, so that the variances do not simply add up.
    overlap = 0.5 ** (min(2, len(shape)) / 2)
    return (share * pairs + alone * fine) / jnp.sqrt(share**2 + alone**2 + 2 * share * alone * overlap)
