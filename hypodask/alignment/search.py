"""Where, roughly, is the brain? Every pose a head can be scanned in, tried at 10 mm.

For each rotation of a coarse net the template is correlated with the head at all shifts at once by FFT:
normalized cross-correlation inside the template's brain and a dark ring around it (CSF and skull), which
is what tells a brain from a neck. A head with a neck, a stripped brain and a cropped head look alike to it.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial.transform import Rotation

from hypodask.resample import gather

COARSE_MM = 10.0
FIELD = 32
"""Voxels along each side of the coarse head: 320 mm."""
WINDOW = 48
"""Side of the FFT: head plus half a rotated brain, so that shifts do not wrap into each other."""

LEAST_SEEN = 0.5
"""Share of the template that must lie in the field of view."""

PITCH_DEG = (-48, -36, -24, -12, 0, 12, 24, 36, 48)
ROLL_DEG = (-14, 0, 14)
YAW_DEG = (-14, 0, 14)
SIZES = (0.93, 1.0, 1.08)
ADULT_STRETCH = (0.91, 0.95, 0.85)
"""Adult brains against MNI152, which is larger than most: mean stretch along x, y, z (11 adults)."""


def rotations_net() -> Float[ndarray, "n 3 3"]:
    """Rotation times stretch of every pose that is tried, ``scanner_from_mni``."""
    angles = list(product(PITCH_DEG, ROLL_DEG, YAW_DEG))
    turns = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    stretches = np.array(SIZES)[:, None] * ADULT_STRETCH
    return (turns[:, None] * stretches[None, :, None, :]).reshape(-1, 3, 3)


def search(
    head: Float[Array, "32 32 32"],
    seen: Float[Array, "32 32 32"],
    scanner_from_vox: Float[ndarray, "4 4"],
    template: Float[Array, "x y z"],
    mask: Float[Array, "x y z"],
    mni_from_vox: Float[ndarray, "4 4"],
    *,
    keep: int = 16,
) -> list[Float[ndarray, "4 4"]]:
    """The ``keep`` most likely poses ``scanner_from_mni``, best first.

    Head and template are at 10 mm with axes along x, y, z; ``seen`` is 1 inside the scan's field of view,
    ``mask`` 1 in the brain and the ring around it.
    """
    net = rotations_net()
    centre_vox = (np.array(template.shape) - 1) / 2
    scores, shifts = _scores(head, seen, template, mask, jnp.asarray(net, jnp.float32))
    best = np.argsort(-np.asarray(scores))[:keep]
    centre_mni = (mni_from_vox @ np.append(centre_vox, 1))[:3]
    poses = []
    for number in best:
        place = np.unravel_index(int(shifts[number]), (WINDOW,) * 3)
        vox = np.where(np.array(place) >= FIELD + 8, np.array(place) - WINDOW, place)
        pose = np.eye(4)
        pose[:3, :3] = net[number]
        pose[:3, 3] = (scanner_from_vox @ np.append(vox, 1))[:3] - net[number] @ centre_mni
        poses.append(pose)
    return poses


@jax.jit
def _scores(head: Array, seen: Array, template: Array, mask: Array, net: Array) -> tuple[Array, Array]:
    """Best masked correlation over all shifts for every rotation, and the flat index of that shift."""
    size = (WINDOW,) * 3
    spectra = [jnp.fft.rfftn(volume, size) for volume in (head * seen, head**2 * seen, seen)]

    def correlate(spectrum: Array, volume: Array) -> Array:
        return jnp.fft.irfftn(spectrum * jnp.conj(jnp.fft.rfftn(volume)), size)

    def score(rotation: Array) -> tuple[Array, Array]:
        inside = _turned(mask, rotation)
        pattern = _turned(template, rotation) * inside
        count = jnp.maximum(correlate(spectra[2], inside), 1.0)
        head_mean = correlate(spectra[0], inside) / count
        head_variance = correlate(spectra[1], inside) / count - head_mean**2
        mean = correlate(spectra[2], pattern) / count
        variance = correlate(spectra[2], pattern * _turned(template, rotation)) / count - mean**2
        covariance = correlate(spectra[0], pattern) / count - head_mean * mean
        # Less than a tenth of the usual variance is air, or a corner of the template: nothing to correlate.
        floor = 0.1 * jnp.var(head), 0.1 * jnp.var(template)
        spread = jnp.maximum(head_variance, floor[0]) * jnp.maximum(variance, floor[1])
        correlation = jnp.where(count > LEAST_SEEN * inside.sum(), covariance / jnp.sqrt(spread), -1.0)
        return correlation.max(), correlation.argmax()

    return jax.lax.map(score, net)


def _turned(volume: Array, rotation: Array) -> Array:
    """The template turned about its centre, that centre at index 0 of a wrapped window."""
    axis = jnp.fft.fftfreq(WINDOW, 1 / WINDOW)
    offsets = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    centre = (jnp.array(volume.shape) - 1) / 2
    padded = jnp.pad(volume, 1)
    places = jnp.linalg.inv(rotation) @ offsets + centre[:, None] + 1
    return gather(padded, places, 1).reshape((WINDOW,) * 3)


