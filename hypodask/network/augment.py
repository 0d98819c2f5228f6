"""Random variation of training examples: pose, shape, contrast and the faults of scanners, in JAX.

Every function takes an explicit PRNG ``key``. Images are in units of white matter. A training example is a
few neighbouring slices, so only their points are ever looked up, not a whole warped volume.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from hypodask.resample import gather


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
    gamma: float = 0.2
    gain: float = 0.12
    bias: float = 0.15
    """Amplitude of a smooth multiplicative field."""
    noise: float = 0.04
    """Largest standard deviation of the noise."""


def points_of(
    key: PRNGKeyArray, points_mm: Float[Array, "n 3"], centre_mm: Float[Array, "3"], options: Variation
) -> Float[Array, "n 3"]:
    """Where in the stored head the wanted points are to be looked up: pose, size, warp and local growth."""
    keys = jax.random.split(key, 5)
    offset = points_mm - centre_mm
    radius = jnp.linalg.norm(offset, axis=1, keepdims=True)
    growth = options.local_size * jax.random.normal(keys[0])
    offset = offset * (1 + growth * jnp.exp(-0.5 * (radius / options.local_radius_mm) ** 2))
    offset = offset + smooth_field(keys[1], offset, options.warp_spacing_mm, 3) * options.warp_mm
    angles = jnp.deg2rad(options.turn_deg) * jax.random.normal(keys[2], (3,))
    size = jnp.exp(options.size * jax.random.normal(keys[3], (3,)))
    turned = (offset * size) @ rotation(angles).T
    return turned + centre_mm + options.shift_mm * jax.random.normal(keys[4], (3,))


def rotation(angles: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rotation matrix of a rotation vector, radians."""
    x, y, z = angles
    return jax.scipy.linalg.expm(jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))


def smooth_field(
    key: PRNGKeyArray, points_mm: Float[Array, "n 3"], spacing_mm: float, channels: int
) -> Float[Array, "n channel"]:
    """Smooth random field: unit-variance cubic B-spline coefficients on a net of ``spacing_mm``.

    The net has 16 knots a side and repeats nowhere inside; points beyond it see its rim.
    """
    knots = jax.random.normal(key, (channels, 16, 16, 16))
    places = points_mm.T / spacing_mm + 7.5
    # The variance of a cubic B-spline field is (0.479)^3 of its coefficients': undo that.
    return jnp.stack([gather(knot, places, 3) for knot in knots], axis=1) * 3.0


def contrast_of(
    key: PRNGKeyArray, values: Float[Array, "*n"], points_mm: Float[Array, "*n 3"], options: Variation
) -> Float[Array, "*n"]:
    """Another scanner's intensities: gamma, gain, bias field and Rician noise."""
    keys = jax.random.split(key, 6)
    gamma = jnp.exp(options.gamma * jax.random.normal(keys[0]))
    values = jnp.clip(values, 1e-3) ** gamma * jnp.exp(options.gain * jax.random.normal(keys[1]))
    flat = points_mm.reshape(-1, 3)
    values = values * jnp.exp(options.bias * smooth_field(keys[2], flat, 60.0, 1)).reshape(values.shape)
    level = options.noise * jax.random.uniform(keys[3])
    real, imaginary = level * jax.random.normal(keys[4], (2, *values.shape))
    return jnp.clip(jnp.hypot(values + real, imaginary), 0.0, 1.5)
