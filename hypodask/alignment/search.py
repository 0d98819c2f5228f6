"""Where, roughly, is the brain? Every pose in which a head can be scanned, tried at 10 mm.

For each rotation of a coarse grid the template is correlated with the head at all shifts at once by FFT. It is a
normalized cross-correlation inside the template's brain and the dark ring around it (CSF and skull); the ring tells a
brain from a neck. It works alike for heads with a neck, stripped brains and cropped heads.
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

from hypodask.core.grid import Grid, transform_points
from hypodask.image.resampling import gather
from hypodask.scan.template import MNI152

COARSE_MM = 10.0
FIELD = 28
"""Voxels along each side of the coarse head: 280 mm about the centre of what is bright."""
_WINDOW = 40
"""Side of the FFT: the head plus half a rotated brain, so that shifts do not wrap around."""
_BRAIN = 24
"""Side of the cube that holds the template's brain and ring in any rotation."""

_LEAST_SEEN = 0.5
"""Share of the template that must lie in the field of view."""

_PITCH_DEG = (-48, -36, -24, -12, 0, 12, 24, 36, 48)
_ROLL_DEG = (-14, 0, 14)
_YAW_DEG = (-14, 0, 14)
_OTHER_SIZES = (0.93, 1.08)
"""Sizes that are tried beside 1, in the rotations that do best."""
_RESIZED = 8
"""Number of rotations that are also tried in other sizes."""

_RIM_MM = MNI152.radius_mm * np.concatenate([np.eye(3), -np.eye(3)]) + MNI152.centre_mm
"""Points on the surface of the template's brain, MNI mm."""

_NEIGHBOURS_MM = 8.0
"""Poses nearer than this, on the surface of the brain, are one: registration takes them to the same place."""


class Field(NamedTuple):
    """A block of a head or of the template, and which of its voxels count."""

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


def _turns_net() -> Float[ndarray, "n 3 3"]:
    """Rotation times stretch of every pose that is tried, ``scanner_from_mni``.

    >>> _turns_net().shape
    (81, 3, 3)
    """
    angles = list(product(_PITCH_DEG, _ROLL_DEG, _YAW_DEG))
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * MNI152.adult_stretch


def search(head: Field, template: Field, *, size: float = 1.0, keep: int = 40) -> list[Float[ndarray, "4 4"]]:
    """The ``keep`` most likely poses ``scanner_from_mni``, best first, none a neighbour of another.

    Parameters
    ----------
    head
        ``FIELD`` voxels of ``COARSE_MM`` along each of the scanner's axes.
    template
        Brain and ring, in voxels of the same size along the template's axes.
    size
        Of the brain, relative to that of most adults.
    keep
        Poses returned at most.
    """
    spectra = _spectra(jnp.asarray(head.data), jnp.asarray(head.seen))
    pattern = jnp.asarray(template.data), jnp.asarray(template.seen)

    def place(linear: ndarray) -> Place:
        score, shift = _best_shift(spectra, pattern, jnp.asarray(linear, jnp.float32))
        index = np.array(np.unravel_index(int(shift), (_WINDOW,) * 3)) + _BRAIN // 2
        wrapped = (index + _WINDOW - FIELD - 8) % _WINDOW - (_WINDOW - FIELD - 8)
        return Place(float(score), linear, wrapped.astype(float))

    places = _best([place(linear * size) for linear in _turns_net()], _RESIZED)
    places += [place(found.linear * other) for found in places for other in _OTHER_SIZES]
    centre_mm = transform_points(template.grid.space_from_vox, (np.array(template.data.shape) - 1) / 2)
    poses = [_pose(found, head.grid, centre_mm) for found in _best(places, len(places))]
    return _distinct(poses, keep, _NEIGHBOURS_MM)


def _best(places: list[Place], keep: int) -> list[Place]:
    return sorted(places, key=lambda place: -place.score)[:keep]


def _pose(found: Place, grid: Grid, centre_mm: ndarray) -> Float[ndarray, "4 4"]:
    """The affine that turns the template and puts its centre on a voxel of the head."""
    pose = np.eye(4)
    pose[:3, :3] = found.linear
    pose[:3, 3] = transform_points(grid.space_from_vox, found.vox) - found.linear @ centre_mm
    return pose


def _distinct(poses: Iterable[Float[ndarray, "4 4"]], keep: int, apart_mm: float) -> list[Float[ndarray, "4 4"]]:
    """The first ``keep`` poses that are no neighbours of one before them."""
    kept: list[Float[ndarray, "4 4"]] = []
    for pose in poses:
        if len(kept) < keep and all(_rim_distance_mm(pose, other) > apart_mm for other in kept):
            kept.append(pose)
    return kept


def _rim_distance_mm(one: Float[ndarray, "4 4"], other: Float[ndarray, "4 4"]) -> float:
    """Greatest distance by which two poses place a point on the surface of the template's brain apart."""
    here, there = transform_points(one, _RIM_MM), transform_points(other, _RIM_MM)
    return float(np.linalg.norm(here - there, axis=1).max())


class _Spectra(NamedTuple):
    """Spectra of the head, with which every rotation of the template is multiplied."""

    head: Array
    square: Array
    seen: Array
    variance: Array


@jax.jit
def _spectra(head: Array, seen: Array) -> _Spectra:
    once, square, count = (jnp.fft.rfftn(volume, (_WINDOW,) * 3) for volume in (head * seen, head**2 * seen, seen))
    return _Spectra(once, square, count, jnp.var(head))


@jax.jit
def _best_shift(spectra: _Spectra, template: tuple[Array, Array], linear: Array) -> tuple[Array, Array]:
    """Best masked correlation over all shifts of one rotation, and the flat index of that shift."""
    size = (_WINDOW,) * 3

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
    correlation = jnp.where(count > _LEAST_SEEN * inside.sum(), covariance / jnp.sqrt(spread), -1.0)
    return correlation.max(), correlation.argmax()


def _turned(volume: Float[Array, "i j k"], linear: Float[Array, "3 3"]) -> Float[Array, "24 24 24"]:
    """The template turned about its centre, which comes to index ``_BRAIN // 2``."""
    axis = jnp.arange(_BRAIN) - _BRAIN // 2
    offsets = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    centre = (jnp.array(volume.shape) - 1) / 2
    places = jnp.linalg.inv(linear) @ offsets + centre[:, None] + 1
    return gather(jnp.pad(volume, 1), places, 1).reshape((_BRAIN,) * 3)
