"""Where is the brain? Affine registration of the template's brain to a head, first whole, then about its commissures.

The result is right to 1 to 3 mm and 1 to 6 degrees. Because the template is symmetric, it also says which plane is the
midsagittal one.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment.pose import acpc_frame
from hypodask.alignment.register import (
    CONTRAST_MM,
    Fit,
    Fixed,
    Moving,
    likeness,
    local_contrast,
    register,
    register_from,
)
from hypodask.alignment.search import COARSE_MM, FIELD, Field, search
from hypodask.core.grid import Grid, transform_points
from hypodask.image.intensity import white_level
from hypodask.image.resampling import interpolate, low_pass, resample
from hypodask.scan.scan import Scan
from hypodask.scan.template import MNI152

_RING_MM = 6.0
"""Width of the dark ring of CSF and skull around the template's brain that is matched with it."""

_LOCAL_SIGMA_MM = 24.0
"""Reach (SD) of the last registration around the commissures: diencephalon and corpus callosum, no cortex."""

_LOCAL_MM = 50.0
"""Distance from the commissures at which that registration ends."""

_LEAST_WEIGHT = 0.02
"""Points of the template with a smaller weight are left out."""

_MEDIUM_MM = 4.0
"""Voxel size at which the whole brain is registered."""

_ROUGH_MM, _ROUGH_STEPS, _STARTS = 6.0, 12, 40
"""Voxel size of the template and number of steps with which the surroundings of the commissures are registered from
each of the poses that the search found, and number of these."""

_NEAR_MM = 3.0
"""Voxel size at which the surroundings of the commissures are registered."""

_BRIGHTEST = 1.0
"""Intensities are cut at white matter: scalp beside a surface coil can be several times brighter than the brain, and
would dominate the fit."""


_SURE = 0.60
"""Correlation around the commissures from which on no other pose is looked for."""

_TISSUE, _EVEN_MM, _WHITE_OVER_TISSUE = 0.1, 25.0, 1.35
"""Of the correction of shading: what is darker, in units of white matter, is air or bone; standard deviation of the
Gaussian that weighs the tissue around; white matter over the mean of that."""


_MIDDLE_OVER_WHOLE = 1.03
"""Linear size of the template about the commissures over that of its whole brain in heads: 1.025 to 1.037 in five, 1.09
in one."""


class Registration(NamedTuple):
    """The template's brain in a head, registered in two ways."""

    whole: Fit
    """To the whole brain."""
    near: Fit
    """To the surroundings of the commissures alone."""
    likeness: float
    """Plain correlation of the contrast there, -1 to 1: negative if bright and dark are exchanged."""

    @property
    def commissures_mm(self) -> Float[ndarray, "2 3"]:
        """Where the template's AC and PC lie in the scanner."""
        return transform_points(np.asarray(self.near.scanner_from_mni, float), MNI152.commissures_mm)

    @property
    def mni_from_scanner(self) -> Float[ndarray, "4 4"]:
        """The affine of the whole brain."""
        return np.linalg.inv(np.asarray(self.whole.scanner_from_mni, float))

    @property
    def head_size(self) -> float:
        """Linear size of the middle of the brain relative to an average adult's.

        It is taken about the commissures, and not from the whole brain, whose registration follows the edge of a brain
        mask: if six heads are stripped to their ICV, that size changes by 3.3 to 6.3 %, this one by 0.2 to 0.9 %.
        """
        volume = np.linalg.det(np.asarray(self.near.scanner_from_mni, float)[:3, :3]) / np.prod(MNI152.adult_stretch)
        return float(np.cbrt(volume) / _MIDDLE_OVER_WHOLE)

    @property
    def distortion(self) -> float:
        """Greatest over least stretch, relative to a usual adult brain: 1 where only the size differs."""
        linear = np.asarray(self.whole.scanner_from_mni, float)[:3, :3] / MNI152.adult_stretch
        stretches = np.linalg.svd(linear, compute_uv=False)
        return float(stretches.max() / stretches.min())

    @property
    def right(self) -> Float[ndarray, "3"]:
        """Normal of the midsagittal plane, to the subject's right.

        It is the mean of two planes: that of the whole brain, which asymmetric lobes may turn, and that about the
        commissures, which is known less precisely. They differ by half a degree on average (15 heads), and people see
        the plane midway between them.
        """
        # Normals of planes transform by the inverse transpose; x = 0 of the template is its midsagittal plane.
        planes = [np.linalg.inv(np.asarray(fit.scanner_from_mni, float))[0, :3] for fit in (self.whole, self.near)]
        normal = sum(plane / np.linalg.norm(plane) for plane in planes)
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def acpc_from_scanner(self) -> Float[ndarray, "4 4"]:
        """The pose of the template's commissures, moved into the midsagittal plane."""
        places = self.commissures_mm
        aside = (places - places.mean(axis=0)) @ self.right
        ac, pc = places - aside[:, None] * self.right
        return acpc_frame(ac, pc, self.right)


def register_template(scan: Scan) -> Registration:
    """Find the template's brain in a head.

    How well the surroundings of the commissures fit tells a right pose from a wrong one. Where they fit too little,
    the search is repeated with other intensities and sizes, and the best fit of all is kept.

    Parameters
    ----------
    scan
        T1-weighted head in any pose; anything else is registered too, with a low correlation.
    """
    levels = scan.data / white_level(scan.data)
    data = np.clip(levels, 0.0, _BRIGHTEST)
    head = _Head(data, scan.grid, _centre_vox(data))
    thinned, grid = _thinned(data, head, _MEDIUM_MM)
    rough = _rough(thinned, grid, head, 1.0)
    if not rough.correlation >= _SURE:
        images = {"even": _even(*_thinned(levels, head, _MEDIUM_MM)), "root": np.sqrt(thinned), "plain": thinned}
        for intensities, size in _ATTEMPTS:
            other = _rough(images[intensities], grid, head, size)
            rough = max(rough, other, key=_correlation)
            if rough.correlation >= _SURE:
                break
    moving = _moving_cube(data, head, _cube(_commissures_mm(rough), _NEAR_MM, 48))
    near = register(moving, _commissures(_NEAR_MM), rough.scanner_from_mni, freedom=12, steps=20)
    alike = float(likeness(moving, _commissures(_NEAR_MM), near.scanner_from_mni))
    return Registration(_whole(thinned, grid, head, near), near, alike)


_ATTEMPTS = (("even", 1.0), ("plain", 0.88), ("even", 1.12), ("root", 1.0), ("plain", 1.12), ("even", 0.88))
"""Intensities and sizes of the brain with which a head is searched again, one after the other until one fits."""


def _even(data: Float32[ndarray, "i j k"], grid: Grid) -> Float32[ndarray, "i j k"]:
    """Intensities relative to the mean of the tissue around, which takes out most of a surface coil's shading."""
    tissue = (data > _TISSUE).astype(np.float32)
    blur = partial(ndimage.gaussian_filter, sigma=_EVEN_MM / np.array(grid.spacing_mm), mode="constant", truncate=3.0)
    around = blur(data * tissue) / (blur(tissue) + 1e-3)
    return np.clip(tissue * data / (_WHITE_OVER_TISSUE * around + 1e-3), 0.0, _BRIGHTEST)


class _Head(NamedTuple):
    """A scan that is registered."""

    data: Float32[ndarray, "i j k"]
    """Intensities, white matter near 1 and cut there."""
    grid: Grid
    centre_vox: Float[ndarray, "3"]
    """Centre of mass of what is bright, which padding with air does not move."""

    @property
    def centre_mm(self) -> Float[ndarray, "3"]:
        """The same in the scanner."""
        return transform_points(self.grid.space_from_vox, self.centre_vox)


def _centre_vox(data: Float32[ndarray, "i j k"]) -> Float[ndarray, "3"]:
    """Centre of mass; the middle of the field of view if nothing is bright."""
    profiles = [data.sum(axis=tuple({0, 1, 2} - {axis}), dtype=float) for axis in range(3)]
    if not profiles[0].sum() > 0:
        return (np.array(data.shape) - 1) / 2
    return np.array([np.average(np.arange(len(profile)), weights=profile) for profile in profiles])


def _anchored(data: Float32[ndarray, "i j k"], head: _Head, spacing_mm: float) -> tuple[ndarray, Grid]:
    """The volume without its first voxels, so few that thinning it meets the head's centre in the same phase.

    Thinning averages whole groups of voxels, counted from the first one. Were that the first of the field of view,
    padding by a voxel would form other groups, and move the result by up to a quarter of a millimetre.
    """
    steps = np.maximum(1, np.floor(spacing_mm / np.array(head.grid.spacing_mm) + 1e-3)).astype(int)
    first = np.round(head.centre_vox).astype(int) % steps
    first = np.where(first < np.array(data.shape) // 2, first, 0)
    part = data[tuple(slice(n, None) for n in first)]
    return part, head.grid.block(first, part.shape)


def _thinned(data: Float32[ndarray, "i j k"], head: _Head, spacing_mm: float) -> tuple[ndarray, Grid]:
    return low_pass(*_anchored(data, head, spacing_mm), spacing_mm)


def _rough(thinned: Float32[ndarray, "i j k"], thin_grid: Grid, head: _Head, size: float) -> Fit:
    """Search all poses at 10 mm, then register the surroundings of the commissures from each of the best, at 6 mm."""
    medium = _cube(head.centre_mm, _MEDIUM_MM, 80)
    moving = _moving(interpolate(thinned, thin_grid, medium), head.grid, medium, CONTRAST_MM)
    starts = jnp.asarray(_starts(thinned, thin_grid, head, size))
    many = register_from(moving, _commissures(_ROUGH_MM), starts, freedom=7, steps=_ROUGH_STEPS)
    best = int(np.argmax(np.nan_to_num(np.asarray(many.correlation), nan=-1.0)))
    return Fit(many.scanner_from_mni[best], many.correlation[best])


def _whole(thinned: Float32[ndarray, "i j k"], thin_grid: Grid, head: _Head, near: Fit) -> Fit:
    """Register the whole brain at 4 mm, from the pose of the commissures."""
    medium = _cube(head.centre_mm, _MEDIUM_MM, 80)
    moving = _moving(interpolate(thinned, thin_grid, medium), head.grid, medium, CONTRAST_MM)
    return register(moving, _brain(_MEDIUM_MM, CONTRAST_MM), near.scanner_from_mni, freedom=12, steps=20)


def _commissures_mm(fit: Fit) -> Float[ndarray, "3"]:
    """Where the middle of the template's commissures lies in the scanner."""
    return transform_points(np.asarray(fit.scanner_from_mni, float), MNI152.commissures_mm.mean(axis=0))


def _moving_cube(data: Float32[ndarray, "i j k"], head: _Head, onto: Grid) -> Moving:
    part, grid = _anchored(data, head, onto.spacing_mm[0])
    return _moving(resample(part, grid, onto), head.grid, onto, CONTRAST_MM)


def _starts(
    data: Float32[ndarray, "i j k"], thin_grid: Grid, head: _Head, size: float
) -> Float32[ndarray, "start 4 4"]:
    """Likely poses ``scanner_from_mni``; always as many, so that one compiled program serves all heads."""
    coarse = _cube(head.centre_mm, COARSE_MM, FIELD)
    field = Field(resample(data, thin_grid, coarse), _seen(head.grid, coarse), coarse)
    starts = search(field, _template(COARSE_MM), size=size, keep=_STARTS)
    return np.stack([*starts, *starts[:1] * (_STARTS - len(starts))]).astype(np.float32)


def _correlation(fit: Fit) -> float:
    return float(fit.correlation)


def _cube(centre_mm: Float[ndarray, "3"], spacing_mm: float, size: int) -> Grid:
    """A cube of voxels along the scanner's axes."""
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = centre_mm - spacing_mm * (size - 1) / 2
    return Grid((size,) * 3, matrix, "scanner")


def _seen(grid: Grid, onto: Grid) -> Float32[ndarray, "x y z"]:
    """1 at the voxels of ``onto`` that lie in the field of view of ``grid``."""
    vox_from_onto = np.linalg.inv(grid.space_from_vox) @ onto.space_from_vox
    x, y, z = np.ogrid[tuple(slice(n) for n in onto.shape)]
    seen = np.ones(onto.shape, bool)
    for (a, b, c, shift), size in zip(vox_from_onto[:3], grid.shape, strict=True):
        vox = a * x + b * y + (c * z + shift)
        seen &= (vox > -0.5) & (vox < size - 0.5)
    return seen.astype(np.float32)


def _moving(data: Float32[ndarray, "x y z"], grid: Grid, onto: Grid, reach_mm: float) -> Moving:
    """Local contrast of a cube of the head, ready to be registered."""
    seen = _seen(grid, onto)
    contrast = local_contrast(data, seen, onto.spacing_mm[0], reach_mm)
    return Moving(*(jnp.asarray(a, jnp.float32) for a in (contrast, seen, np.linalg.inv(onto.space_from_vox))))


@lru_cache(maxsize=1)
def _ringed() -> Float32[ndarray, "i j k"]:
    """The template's brain and the ring around it, 1 where they are to be matched."""
    brain = MNI152.brain.data > 0
    return (ndimage.distance_transform_edt(~brain) <= _RING_MM).astype(np.float32)


@lru_cache(maxsize=5)
def _template(spacing_mm: float) -> Field:
    brain = MNI152.brain
    data, grid = low_pass(brain.data, brain.grid, spacing_mm)
    return Field(data, low_pass(_ringed(), brain.grid, spacing_mm)[0], grid)


@lru_cache(maxsize=5)
def _brain(spacing_mm: float, reach_mm: float) -> Fixed:
    """Points of the brain and its ring."""
    template = _template(spacing_mm)
    return _points(template, template.seen, reach_mm)


@lru_cache(maxsize=2)
def _commissures(spacing_mm: float) -> Fixed:
    """Points around the commissures, weighted by a Gaussian."""
    template = _template(spacing_mm)
    index = np.moveaxis(np.indices(template.data.shape), 0, -1)
    distance = np.linalg.norm(
        transform_points(template.grid.space_from_vox, index) - MNI152.commissures_mm.mean(axis=0), axis=-1
    )
    return _points(
        template, template.seen * np.exp(-0.5 * (distance / _LOCAL_SIGMA_MM) ** 2) * (distance < _LOCAL_MM), CONTRAST_MM
    )


def _points(template: Field, weights: Float[ndarray, "i j k"], reach_mm: float) -> Fixed:
    """Local contrast of the template where it weighs anything."""
    contrast = local_contrast(template.data, np.ones_like(template.data), template.grid.spacing_mm[0], reach_mm)
    index = np.argwhere(weights > _LEAST_WEIGHT)
    at = tuple(index.T)
    points = transform_points(template.grid.space_from_vox, index).T
    return Fixed(*(jnp.asarray(a, jnp.float32) for a in (points, contrast[at], weights[at])))
