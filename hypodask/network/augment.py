"""Random variation of training examples: pose, shape, contrast and the faults of scanners, in JAX.

Every function takes an explicit PRNG ``key``. Images are in units of white matter. A training example is a
few neighbouring slices, so only their points are ever looked up, not a whole warped volume.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from hypodask.resample import gather

BIAS_SPACING_MM = 60.0
"""Of the knots of the bias field."""


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

    def times(self, strength: Float[Array, ""]) -> "Variation":
        """All amplitudes times a factor; lengths over which they act stay.

        Examples of every strength let a network see heads as they are, too: where all were varied in full, it outlined
        its own training heads 7 % too large, though varied ones right within 2 %.
        """
        return replace(self, **{name: getattr(self, name) * strength for name in AMPLITUDES})


AMPLITUDES = ("turn_deg", "shift_mm", "size", "warp_mm", "local_size", "gamma", "gain", "bias", "noise", "curve")


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
    key: PRNGKeyArray, values: Float[Array, "*n"], points_mm: Float[Array, "*m 3"], options: Variation
) -> Float[Array, "*n"]:
    """Another scanner's intensities: gamma, another curve, gain, bias field and Rician noise.

    The points may be fewer than the values, evenly among them: the bias field is smooth.
    """
    keys = jax.random.split(key, 6)
    gamma = jnp.exp(options.gamma * jax.random.normal(keys[0]))
    values = jnp.clip(values, 1e-3) ** gamma
    first, second = options.curve * jax.random.normal(keys[5], (2,))
    values = values + first * jnp.sin(jnp.pi * values) + second * jnp.sin(2 * jnp.pi * values)
    values = values * jnp.exp(options.gain * jax.random.normal(keys[1]))
    bias = jnp.exp(options.bias * smooth_field(keys[2], points_mm.reshape(-1, 3), BIAS_SPACING_MM, 1))
    values = values * jax.image.resize(bias.reshape(points_mm.shape[:-1]), values.shape, "linear")
    real, imaginary = options.noise * jax.random.uniform(keys[3]) * _grain(keys[4], values.shape)
    return jnp.clip(jnp.hypot(values + real, imaginary), 0.0, 1.5)


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
