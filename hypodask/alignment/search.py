"""Where, roughly, is the brain? Every pose a head can be scanned in, tried at 10 mm.

For each rotation of a coarse net the template is correlated with the head at all shifts at once by FFT:
normalized cross-correlation inside the template's brain and a dark ring around it (CSF and skull), which
is what tells a brain from a neck. A head with a neck, a stripped brain and a cropped head look alike to it.
"""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy.spatial.transform import Rotation

from hypodask.grid import Grid, transform_points
from hypodask.resample import gather

COARSE_MM = 10.0
FIELD = 28
"""Voxels along each side of the coarse head: 280 mm about the middle of the field of view."""
WINDOW = 40
"""Side of the FFT: head plus half a rotated brain, so that shifts do not wrap into each other."""
BRAIN = 24
"""Side of the cube that holds the template's brain and ring in any rotation."""

LEAST_SEEN = 0.5
"""Share of the template that must lie in the field of view."""

PITCH_DEG = (-48, -36, -24, -12, 0, 12, 24, 36, 48)
ROLL_DEG = (-14, 0, 14)
YAW_DEG = (-14, 0, 14)
OTHER_SIZES = (0.93, 1.08)
"""Tried beside 1, in the rotations that do best."""
ADULT_STRETCH = (0.91, 0.95, 0.85)
"""Adult brains against MNI152, which is larger than most: mean stretch along x, y, z (11 adults)."""


RESIZED = 8
"""Rotations that are also tried in other sizes."""

RIM_MM = 70.0 * np.concatenate([np.eye(3), -np.eye(3)]) + (0.0, -20.0, 0.0)
"""Points on the rim of the template's brain, MNI mm."""

NEIGHBOURS_MM = 8.0
"""Poses nearer than this at the brain's rim are one to registration."""


class Field(NamedTuple):
    """A block of a head, or of the template, and what of it counts."""

    data: Float32[ndarray, "i j k"]
    """Intensities, white matter near 1."""
    seen: Float32[ndarray, "i j k"]
    """1 inside the scan's field of view, or in the template's brain and ring; 0 elsewhere."""
    grid: Grid


class Place(NamedTuple):
    """The best shift of one rotation."""

    score: float
    linear: Float[ndarray, "3 3"]
    """Rotation times stretch, ``scanner_from_mni``."""
    vox: Float[ndarray, "3"]
    """Voxel of the head that the template's centre lies on."""


def turns_net() -> Float[ndarray, "n 3 3"]:
    """Rotation times stretch of every pose that is tried, ``scanner_from_mni``.

    >>> turns_net().shape
    (81, 3, 3)
    """
    angles = list(product(PITCH_DEG, ROLL_DEG, YAW_DEG))
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * ADULT_STRETCH


def search(head: Field, template: Field, *, keep: int = 40) -> list[Float[ndarray, "4 4"]]:
    """The ``keep`` most likely poses ``scanner_from_mni``, best first, none a neighbour of another.

    Parameters
    ----------
    head
        ``FIELD`` voxels of ``COARSE_MM`` along each of the scanner's axes.
    template
        Brain and ring, in voxels of the same size along the template's axes.
    keep
        Poses returned at most.
    """
    spectra = _spectra(jnp.asarray(head.data), jnp.asarray(head.seen))
    pattern = jnp.asarray(template.data), jnp.asarray(template.seen)

    def place(linear: ndarray) -> Place:
        score, shift = _best_shift(spectra, pattern, jnp.asarray(linear, jnp.float32))
        index = np.array(np.unravel_index(int(shift), (WINDOW,) * 3)) + BRAIN // 2
        wrapped = (index + WINDOW - FIELD - 8) % WINDOW - (WINDOW - FIELD - 8)
        return Place(float(score), linear, wrapped.astype(float))

    places = _best([place(linear) for linear in turns_net()], RESIZED)
    places += [place(found.linear * size) for found in places for size in OTHER_SIZES]
    centre_mm = transform_points(template.grid.space_from_vox, (np.array(template.data.shape) - 1) / 2)
    poses = [_pose(found, head.grid, centre_mm) for found in _best(places, len(places))]
    return distinct(poses, keep, NEIGHBOURS_MM)


def _best(places: list[Place], keep: int) -> list[Place]:
    return sorted(places, key=lambda place: -place.score)[:keep]


def _pose(found: Place, grid: Grid, centre_mm: ndarray) -> Float[ndarray, "4 4"]:
    """The affine that turns the template and puts its centre on a voxel of the head."""
    pose = np.eye(4)
    pose[:3, :3] = found.linear
    pose[:3, 3] = transform_points(grid.space_from_vox, found.vox) - found.linear @ centre_mm
    return pose


def distinct(poses: Iterable[Float[ndarray, "4 4"]], keep: int, apart_mm: float) -> list[Float[ndarray, "4 4"]]:
    """The first ``keep`` poses, less those that are neighbours of one before them."""
    kept: list[Float[ndarray, "4 4"]] = []
    for pose in poses:
        if len(kept) < keep and all(rim_distance_mm(pose, other) > apart_mm for other in kept):
            kept.append(pose)
    return kept


def rim_distance_mm(one: Float[ndarray, "4 4"], other: Float[ndarray, "4 4"]) -> float:
    """Greatest distance between two places of a point on the template brain's rim."""
    here, there = transform_points(one, RIM_MM), transform_points(other, RIM_MM)
    return float(np.linalg.norm(here - there, axis=1).max())


class Spectra(NamedTuple):
    """Of the head: what every rotation of the template is multiplied with."""

    head: Array
    square: Array
    seen: Array
    variance: Array


@jax.jit
def _spectra(head: Array, seen: Array) -> Spectra:
    once, square, count = (jnp.fft.rfftn(volume, (WINDOW,) * 3) for volume in (head * seen, head**2 * seen, seen))
    return Spectra(once, square, count, jnp.var(head))


@jax.jit
def _best_shift(spectra: Spectra, template: tuple[Array, Array], linear: Array) -> tuple[Array, Array]:
    """Best masked correlation over all shifts of one rotation, and the flat index of that shift."""
    size = (WINDOW,) * 3

    def correlate(spectrum: Array, volume: Array) -> Array:
        return jnp.fft.irfftn(spectrum * volume, size)

    turned, inside = (_turned(volume, linear) for volume in template)
    brain, pattern, square = (jnp.conj(jnp.fft.rfftn(v, size)) for v in (inside, turned * inside, turned**2 * inside))
    count = jnp.maximum(correlate(spectra.seen, brain), 1.0)
    head_mean = correlate(spectra.head, brain) / count
    head_variance = correlate(spectra.square, brain) / count - head_mean**2
    mean = correlate(spectra.seen, pattern) / count
    variance = correlate(spectra.seen, square) / count - mean**2
    covariance = correlate(spectra.head, pattern) / count - head_mean * mean
    # Less than a tenth of the usual variance is air, or a corner of the template: nothing to correlate.
    spread = jnp.maximum(head_variance, 0.1 * spectra.variance) * jnp.maximum(variance, 0.1 * jnp.var(template[0]))
    correlation = jnp.where(count > LEAST_SEEN * inside.sum(), covariance / jnp.sqrt(spread), -1.0)
    return correlation.max(), correlation.argmax()


def _turned(volume: Float[Array, "i j k"], linear: Float[Array, "3 3"]) -> Float[Array, "24 24 24"]:
    """The template turned about its centre, which comes to index ``BRAIN // 2``."""
    axis = jnp.arange(BRAIN) - BRAIN // 2
    offsets = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    centre = (jnp.array(volume.shape) - 1) / 2
    places = jnp.linalg.inv(linear) @ offsets + centre[:, None] + 1
    return gather(jnp.pad(volume, 1), places, 1).reshape((BRAIN,) * 3)
