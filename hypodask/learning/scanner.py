"""Scanners drawn at random, as training examples need them: how strong each effect is, and in how many images.

What each effect is stands in :mod:`hypodask.image.acquisition`. Every function here takes an explicit PRNG ``key``;
intensities are in units of white matter. Smooth fields are made at few knots and carried to the voxels by products of
matrices, which CPUs do best.
"""

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

from hypodask.image.acquisition import FWHM_TO_SIGMA, from_knots, gaussian_spread, in_field_of_view, is_face, rician
from hypodask.image.acquisition import ghosted as with_ghost

_SHARPEST_MM, _BLUNTEST_MM = 0.8, 2.2
"""Full width at half maximum of the point spread along every axis: that of scans of about 1 mm, and trilinear
resampling."""

_THICK, _THICKEST_MM = 0.3, 5.0
"""Share of the images with thick slices along one axis, and how thick those may be."""

_GHOST, _STRONGEST_GHOST = 0.25, 0.2
"""Share of the images with a ghost, and its largest strength."""

_FIELD_KNOT = 44
"""Voxels from one knot of the receive field to the next."""

_CUT = 0.12
"""Share of the images that end above, and of those that end below, at a random height."""

_TILT = 0.2
"""Standard deviation of the slope of these ends against the AC-PC line."""

_NOT_CUT_MM = 1e3
"""Height of an end that no voxel reaches."""

_DEFACED = 0.2
"""Share of the images whose face has been removed."""


def smooth_noise(key: PRNGKeyArray, shape: tuple[int, ...], knots: tuple[int, int, int]) -> Float[Array, "_ _ _"]:
    """Random field of a shape whose values at so many knots along each axis have unit variance."""
    return cast(Array, from_knots(jax.random.normal(key, knots), shape))


def point_spread(key: PRNGKeyArray, places_mm: Sequence[Float[Array, " _"]]) -> list[Float[Array, "_ _"]]:
    """Matrices of a Gaussian point spread along each axis, given where the voxels are.

    One width for all axes, and in some images a larger one along one of them: thick slices.
    """
    keys = jax.random.split(key, 4)
    width = jax.random.uniform(keys[0], minval=_SHARPEST_MM, maxval=_BLUNTEST_MM)
    thick = jax.random.uniform(keys[1], minval=_BLUNTEST_MM, maxval=_THICKEST_MM)
    axis = jnp.where(jax.random.bernoulli(keys[2], _THICK), jax.random.randint(keys[3], (), 0, 3), -1)
    return [
        gaussian_spread(places, FWHM_TO_SIGMA * jnp.where(axis == number, thick, width))
        for number, places in enumerate(places_mm)
    ]


def seen(
    key: PRNGKeyArray, y_mm: Float[Array, "y"], z_mm: Float[Array, "z"], icv: Bool[Array, "y x z"]
) -> Bool[Array, "y x z"]:
    """Where an image has anything: its field of view may end in the vertex or the neck, its face may be removed.

    Places are in AC-PC space; what is removed with a face spares the intracranial volume.
    """
    keys = jax.random.split(key, 7)
    y, z = y_mm[:, None, None], z_mm[None, None, :]
    slope = _TILT * jax.random.normal(keys[6])
    top = jnp.where(
        jax.random.bernoulli(keys[0], _CUT), jax.random.uniform(keys[1], minval=50.0, maxval=85.0), _NOT_CUT_MM
    )
    bottom = jnp.where(
        jax.random.bernoulli(keys[2], _CUT), jax.random.uniform(keys[3], minval=-75.0, maxval=-45.0), -_NOT_CUT_MM
    )
    brow = jax.random.uniform(keys[5], minval=-35.0, maxval=0.0)
    face = jax.random.bernoulli(keys[4], _DEFACED) & is_face(y, z, brow)
    return cast(Array, in_field_of_view(y, z, bottom_mm=bottom, top_mm=top, slope=slope) & ~(face & ~icv))


def ghosted(key: PRNGKeyArray, image: Float[Array, "s h w"]) -> Float[Array, "s h w"]:
    """In some images, a weak copy of each slice over it, moved along one of its axes."""
    keys = jax.random.split(key, 4)
    strength = jnp.where(jax.random.bernoulli(keys[0], _GHOST), _STRONGEST_GHOST * jax.random.uniform(keys[1]), 0.0)
    steps = jax.random.randint(keys[2], (), 1, image.shape[1])
    across = jax.random.bernoulli(keys[3])
    copy = jnp.where(across, jnp.roll(image, steps, axis=1), jnp.roll(image, steps, axis=2))
    return cast(Array, with_ghost(image, copy, strength))


def noisy(key: PRNGKeyArray, image: Float[Array, "s h w"], most: float) -> Float[Array, "s h w"]:
    """Rician noise with a standard deviation of up to ``most``."""
    of_level, of_noise = jax.random.split(key)
    level = most * jax.random.uniform(of_level) ** 2
    return cast(Array, rician(image, *(level * jax.random.normal(of_noise, (2, *image.shape)))))


def biased(key: PRNGKeyArray, image: Float[Array, "s h w"], most: float) -> Float[Array, "s h w"]:
    """An image through a coil of uneven sensitivity, whose logarithm has an amplitude of up to ``most``."""
    of_amplitude, of_field = jax.random.split(key)
    amplitude = most * jax.random.uniform(of_amplitude)
    knots = cast(tuple[int, int, int], tuple(max(2, round(size / _FIELD_KNOT)) for size in image.shape))
    return image * jnp.exp(amplitude * smooth_noise(of_field, image.shape, knots))
