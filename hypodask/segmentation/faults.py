"""What scanners do to images: bias, point spread, ghosts, noise, a cut field of view.

Every function takes an explicit PRNG ``key``; intensities are in units of white matter. Smooth things are made on a
coarse net and carried to the voxels by products of matrices, which is what a CPU does best.
"""

import math
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

FWHM_TO_SIGMA = 1 / math.sqrt(8 * math.log(2))

SHARPEST_MM, BLUNTEST_MM = 0.8, 2.2
"""Full width at half maximum of the point spread along every axis: that of scans of about 1 mm, and trilinear
resampling."""

THICK, THICKEST_MM = 0.3, 5.0
"""Share of the images with thick slices along one axis, and how thick those may be."""

GHOST, STRONGEST_GHOST = 0.25, 0.2
"""Share of the images with a ghost, and its largest strength."""

FIELD_KNOT = 44
"""Voxels from one knot of the receive field to the next."""

CUT = 0.12
"""Share of the images that end above, and of those that end below a random height."""

TILT = 0.2
"""Standard deviation of the slope of these ends against the AC-PC line."""

DEFACED = 0.2
"""Share of the images whose face has been removed."""


def apply_along(matrices: Sequence[Float[Array, "new old"]], volume: Float[Array, "i j k *c"]) -> Array:
    """One matrix along each of the first three axes."""
    first, second, third = matrices
    return jnp.einsum("ai,bj,ck,ijk...->abc...", first, second, third, volume)


def interpolation(size: int, knots: int) -> Float[Array, "size knot"]:
    """Linear interpolation from knots that span an axis from its first to its last sample.

    >>> interpolation(3, 2).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    places = jnp.linspace(0.0, knots - 1.0, size)
    return jnp.clip(1 - jnp.abs(places[:, None] - jnp.arange(knots)), 0.0)


def smooth_noise(key: PRNGKeyArray, shape: tuple[int, ...], knots: tuple[int, int, int]) -> Float[Array, "i j k"]:
    """Random field whose knots have unit variance."""
    steps = [interpolation(size, number) for size, number in zip(shape, knots, strict=True)]
    return apply_along(steps, jax.random.normal(key, knots))


def point_spread(key: PRNGKeyArray, places_mm: Sequence[Float[Array, "n"]]) -> list[Float[Array, "n n"]]:
    """Gaussian means along each axis, given where the voxels are.

    One width for all axes, and in some images a larger one along one of them: thick slices.
    """
    keys = jax.random.split(key, 4)
    width = jax.random.uniform(keys[0], minval=SHARPEST_MM, maxval=BLUNTEST_MM)
    thick = jax.random.uniform(keys[1], minval=BLUNTEST_MM, maxval=THICKEST_MM)
    axis = jnp.where(jax.random.bernoulli(keys[2], THICK), jax.random.randint(keys[3], (), 0, 3), -1)
    return [
        _gaussian(places, FWHM_TO_SIGMA * jnp.where(axis == number, thick, width))
        for number, places in enumerate(places_mm)
    ]


def _gaussian(places: Float[Array, "n"], sigma: Array) -> Float[Array, "n n"]:
    weights = jnp.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def seen(
    key: PRNGKeyArray, y_mm: Float[Array, "y"], z_mm: Float[Array, "z"], cavity: Bool[Array, "y x z"]
) -> Bool[Array, "y x z"]:
    """Where an image has anything: its field of view may end in the vertex or the neck, its face may be removed.

    Places are in AC-PC space; what is removed with a face spares the cranial cavity.
    """
    keys = jax.random.split(key, 7)
    y, z = y_mm[:, None, None], z_mm[None, None, :]
    height = z + TILT * jax.random.normal(keys[6]) * y
    top = jnp.where(jax.random.bernoulli(keys[0], CUT), jax.random.uniform(keys[1], minval=50.0, maxval=85.0), 1e3)
    bottom = jnp.where(
        jax.random.bernoulli(keys[2], CUT), jax.random.uniform(keys[3], minval=-75.0, maxval=-45.0), -1e3
    )
    # A plane from the bridge of the nose down and back to the chin.
    brow = jax.random.uniform(keys[5], minval=-35.0, maxval=0.0)
    face = jax.random.bernoulli(keys[4], DEFACED) & (y > 20.0) & (z < brow + 0.7 * (y - 40.0))
    return (height < top) & (height > bottom) & ~(face & ~cavity)


def ghosted(key: PRNGKeyArray, image: Float[Array, "s h w"]) -> Float[Array, "s h w"]:
    """Motion and wrap-around: in some images, a weak copy of the slice lies over it, moved along one of its axes."""
    keys = jax.random.split(key, 4)
    strength = jnp.where(jax.random.bernoulli(keys[0], GHOST), STRONGEST_GHOST * jax.random.uniform(keys[1]), 0.0)
    steps = jax.random.randint(keys[2], (), 1, image.shape[1])
    across = jax.random.bernoulli(keys[3])
    copy = jnp.where(across, jnp.roll(image, steps, axis=1), jnp.roll(image, steps, axis=2))
    return image * (1 - 0.5 * strength) + strength * copy


def noisy(key: PRNGKeyArray, image: Float[Array, "s h w"], most: float) -> Float[Array, "s h w"]:
    """Rician noise with a standard deviation of up to ``most``."""
    of_level, of_noise = jax.random.split(key)
    level = most * jax.random.uniform(of_level) ** 2
    real, imaginary = level * jax.random.normal(of_noise, (2, *image.shape))
    return jnp.hypot(image + real, imaginary)


def biased(key: PRNGKeyArray, image: Float[Array, "s h w"], most: float) -> Float[Array, "s h w"]:
    """The receive field of a coil: a smooth multiplicative one, of an amplitude of up to ``most``."""
    of_amplitude, of_field = jax.random.split(key)
    amplitude = most * jax.random.uniform(of_amplitude)
    knots = cast(tuple[int, int, int], tuple(max(2, round(size / FIELD_KNOT)) for size in image.shape))
    return image * jnp.exp(amplitude * smooth_noise(of_field, image.shape, knots))
