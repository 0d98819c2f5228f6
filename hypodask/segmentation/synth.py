"""Whole-head images of any contrast, made from label maps.

A label map is stored as the share of each tissue in every voxel, so that an image is one weighted sum of
random tissue intensities, partial volumes included. Labels 1 to 499 are inside the skull (FreeSurfer's
numbering); 24 and 4, 5, 14, 15, 43, 44 are fluid; 500 and above lie outside the brain.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Integer, PRNGKeyArray, UInt8
from numpy import ndarray

from hypodask.grid import Grid
from hypodask.resample import resample

TISSUES: Mapping[str, tuple[int, ...]] = {
    "white": (2, 7, 41, 46, 77, 251, 252, 253, 254, 255),
    "cortex": (3, 8, 42, 47),
    "nuclei": (10, 11, 12, 17, 18, 26, 49, 50, 51, 53, 54, 58),
    "pallidum": (13, 52),
    "stem": (16, 28, 60),
    "fluid": (4, 5, 14, 15, 24, 43, 44),
    "vessel": (25, 30, 57, 62, 72, 85, 136, 137, 163, 164),
}
"""Labels that share an intensity; any other label has one of its own. Small structures of many kinds go
with the vessels."""

T1_MEAN = {"white": 1.0, "cortex": 0.68, "nuclei": 0.78, "pallidum": 0.92, "stem": 0.92, "fluid": 0.2}
"""Intensity of each tissue in T1-weighted scans, in units of white matter (typical of MPRAGE)."""

T1_SPREAD = 0.08
OUTSIDE_HIGH = 1.4
"""Tissues outside the skull take any intensity up to this: bone is dark, marrow and fat are bright."""

RANDOM_CONTRAST = 0.15
"""Share of images whose tissues take any intensity at all."""

STRIPPED = 0.12
"""Share of images from which everything outside the skull has been removed."""


def tissue_shares(
    label_map: Integer[ndarray, "i j k"], grid: Grid, onto: Grid, acpc_from_scanner: Float[ndarray, "4 4"]
) -> tuple[UInt8[ndarray, "tissue x y z"], list[str]]:
    """Share of every tissue in every voxel of ``onto``, 0-255, and the tissues' names.

    Labels without a tissue of their own in ``TISSUES`` are named by their number. Background is left out.
    """
    shares, names = [], []
    rest = set(np.unique(label_map).tolist()) - {0} - {n for numbers in TISSUES.values() for n in numbers}
    groups = dict(TISSUES) | {str(n): (n,) for n in sorted(rest)}
    for name, numbers in groups.items():
        mask = np.isin(label_map, numbers).astype(np.float32)
        if mask.any():
            share = resample(mask, grid, onto, onto_from_grid=acpc_from_scanner)
            shares.append(np.round(255 * share).astype(np.uint8))
            names.append(name)
    return np.stack(shares), names


def is_intracranial(name: str) -> bool:
    """Whether a tissue lies inside the skull."""
    return not name.isdigit() or int(name) < 500


def tissue_means(names: list[str]) -> tuple[Float32[ndarray, "tissue"], Float32[ndarray, "tissue"]]:
    """Typical T1-weighted intensity of each tissue and 1 where it is inside the skull."""
    inside = np.array([is_intracranial(name) for name in names], np.float32)
    return np.array([T1_MEAN.get(name, 0.6) for name in names], np.float32), inside


def image_of(
    key: PRNGKeyArray,
    shares: Float[Array, "tissue x y z"],
    typical: Float[Array, "tissue"],
    inside: Float[Array, "tissue"],
) -> Float[Array, "x y z"]:
    """A scan of a head with random tissue intensities and grain, in units of white matter."""
    keys = jax.random.split(key, 7)
    usual = typical * jnp.exp(T1_SPREAD * jax.random.normal(keys[0], typical.shape))
    anything = jax.random.uniform(keys[1], typical.shape)
    within = jnp.where(jax.random.bernoulli(keys[2], RANDOM_CONTRAST), anything, usual)
    beyond = OUTSIDE_HIGH * jax.random.uniform(keys[3], typical.shape) ** 1.5
    stripped = jax.random.bernoulli(keys[4], STRIPPED)
    means = jnp.where(inside > 0, within, jnp.where(stripped, 0.0, beyond))
    image = jnp.tensordot(means, shares, axes=1)
    grain = 0.03 + 0.09 * jax.random.uniform(keys[5])
    outside_grain = 1 + 3 * (1 - jnp.tensordot(inside, shares, axes=1))
    return jnp.clip(image * (1 + grain * outside_grain * _grain(keys[6], image.shape)), 0.0)


def _grain(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Texture of two scales: what tissue looks like that no label tells apart."""
    fine, coarse = jax.random.split(key)
    half = tuple(-(-n // 3) for n in shape)
    blobs = jax.image.resize(jax.random.normal(coarse, half), shape, "linear")
    return 0.5 * jax.random.normal(fine, shape) + blobs
