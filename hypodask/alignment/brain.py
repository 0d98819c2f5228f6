"""Where is the brain? Affine registration of the template's brain to a head, first whole, then about its commissures.

What comes out is right to 1 to 3 mm and 1 to 6 degrees, and says which plane is the midsagittal one: the template is
symmetric.
"""

from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment.pose import acpc_frame
from hypodask.alignment.register import CONTRAST_MM, Fit, Fixed, Moving, local_contrast, register, register_from
from hypodask.alignment.search import COARSE_MM, FIELD, Field, distinct, search
from hypodask.grid import Grid, transform_points
from hypodask.intensity import white_level
from hypodask.resample import interpolate, low_pass, resample
from hypodask.scan import Scan
from hypodask.template import AC_MNI_MM, PC_MNI_MM, mni152_brain

RING_MM = 6.0
"""Width of the dark ring of CSF and skull around the template's brain that is matched with it."""

LOCAL_SIGMA_MM = 24.0
"""Reach of the last registration around the commissures: diencephalon and corpus callosum, no cortex."""

LOCAL_MM = 50.0
"""End of that reach."""

LEAST_WEIGHT = 0.02
"""Points of the template that weigh less are left out."""

MEDIUM_MM = 4.0
"""Voxels in which the whole brain is registered."""

FAR_MM, WIDE_MM, FAR_STEPS = 12.0, 16.0, 8
"""Voxels of the template, reach of the contrast and steps of the first registration: twice the usual reach, so that a
pose that is 15 degrees off finds its way."""

STARTS, RIGID, AFFINE = 40, 4, 2
"""Poses that are registered at 12 mm, then the best of them at 8, then at 4 mm. Measured on 24 re-poses of
six heads with a bright scalp, wide ventricles or a cropped field of view: with 16 starts four are lost, with 40
one, and that one is refused."""

NEAR_MM = 3.0
"""Voxels in which the surroundings of the commissures are registered."""

SAME_POSE_MM = 1.0
"""Poses this near to each other, at the brain's rim, are one."""

BRIGHTEST = 1.0
"""Fat and vessels are cut down to white matter: scalp beside a surface coil can be several times brighter than
the brain, and would lead the fit."""


class Registration(NamedTuple):
    """The template's brain in a head."""

    whole: Fit
    """All of it."""
    near: Fit
    """Fitted about the commissures alone."""

    @property
    def commissures_mm(self) -> Float[ndarray, "2 3"]:
        """Where the template's AC and PC lie in the scanner."""
        return transform_points(np.asarray(self.near.scanner_from_mni, float), np.array([AC_MNI_MM, PC_MNI_MM]))

    @property
    def mni_from_scanner(self) -> Float[ndarray, "4 4"]:
        """The affine of the whole brain."""
        return np.linalg.inv(np.asarray(self.whole.scanner_from_mni, float))

    @property
    def right(self) -> Float[ndarray, "3"]:
        """Normal of the midsagittal plane, to the subject's right.

        Mean of the whole brain's plane, which its lobes' asymmetry may turn, and that about the commissures, which is
        known less well; they differ by half a degree on average (15 heads), and people see the middle between them.
        """
        # Normals of planes go by the inverse transpose: x = 0 of the template is the midsagittal plane.
        planes = [np.linalg.inv(np.asarray(fit.scanner_from_mni, float))[0, :3] for fit in self]
        normal = sum(plane / np.linalg.norm(plane) for plane in planes)
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def acpc_from_scanner(self) -> Float[ndarray, "4 4"]:
        """The pose that the template's commissures and the midsagittal plane between them say."""
        places = self.commissures_mm
        aside = (places - places.mean(axis=0)) @ self.right
        ac, pc = places - aside[:, None] * self.right
        return acpc_frame(ac, pc, self.right)


def register_template(scan: Scan) -> Registration:
    """Find the template's brain in a head.

    Parameters
    ----------
    scan
        T1-weighted head in any pose; what is no head is registered too, with a low correlation.
    """
    data = scan.data / white_level(scan.data)
    np.clip(data, 0.0, BRIGHTEST, out=data)
    whole = _register_brain(data, scan.grid)
    near = _cube(transform_points(np.asarray(whole.scanner_from_mni, float), _midpoint()), NEAR_MM, 48)
    moving = _moving(resample(data, scan.grid, near), scan.grid, near, CONTRAST_MM)
    return Registration(whole, register(moving, _commissures(), whole.scanner_from_mni, freedom=12, steps=15))


def _register_brain(data: Float32[ndarray, "i j k"], grid: Grid) -> Fit:
    """Find the brain among all poses at 10 mm, then register it at 12, 8 and 4 mm, fewer poses each time."""
    medium, wide = _cube(grid.centre_mm, MEDIUM_MM, 80), _cube(grid.centre_mm, 2 * MEDIUM_MM, 40)
    thinned, thin_grid = low_pass(data, grid, MEDIUM_MM)
    # Size is held while the pose settles: a free size swells until the template's brain fills the scalp.
    far = _moving(resample(thinned, thin_grid, wide), grid, wide, WIDE_MM)
    settled = _settled(far, _brain(FAR_MM, WIDE_MM), _starts(thinned, thin_grid, grid))
    moving = _moving(interpolate(thinned, thin_grid, medium), grid, medium, CONTRAST_MM)
    posed = [register(moving, _brain(8.0, CONTRAST_MM), start, freedom=6, steps=10) for start in settled]
    best = distinct(_poses(sorted(posed, key=_correlation, reverse=True)), AFFINE, SAME_POSE_MM)
    brain = _brain(MEDIUM_MM, CONTRAST_MM)
    free = [register(moving, brain, jnp.asarray(start, jnp.float32), freedom=12, steps=20) for start in best]
    return max(free, key=_correlation)


def _starts(data: Float32[ndarray, "i j k"], thin_grid: Grid, grid: Grid) -> Float32[ndarray, "start 4 4"]:
    """Always as many, so that one program serves all heads."""
    coarse = _cube(grid.centre_mm, COARSE_MM, FIELD)
    starts = search(
        Field(resample(data, thin_grid, coarse), _seen(grid, coarse), coarse), _template(COARSE_MM), keep=STARTS
    )
    return np.stack([*starts, *starts[:1] * (STARTS - len(starts))]).astype(np.float32)


def _settled(moving: Moving, fixed: Fixed, starts: Float32[ndarray, "start 4 4"]) -> list[Float[ndarray, "4 4"]]:
    """The few poses at which the brain is explained best after a short way from every start."""
    many = register_from(moving, fixed, jnp.asarray(starts), freedom=6, steps=FAR_STEPS)
    order = np.argsort(-np.asarray(many.correlation))
    return distinct(np.asarray(many.scanner_from_mni, float)[order], RIGID, 3 * SAME_POSE_MM)


def _correlation(fit: Fit) -> float:
    return float(fit.correlation)


def _poses(fits: list[Fit]) -> list[Float[ndarray, "4 4"]]:
    return [np.asarray(fit.scanner_from_mni, float) for fit in fits]


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


def _midpoint() -> Float[ndarray, "3"]:
    return (np.array(AC_MNI_MM) + np.array(PC_MNI_MM)) / 2


@lru_cache(maxsize=1)
def _ringed() -> Float32[ndarray, "i j k"]:
    """The template's brain and the ring around it, 1 where it is to be matched."""
    brain = mni152_brain().data > 0
    return (ndimage.distance_transform_edt(~brain) <= RING_MM).astype(np.float32)


@lru_cache(maxsize=4)
def _template(spacing_mm: float) -> Field:
    brain = mni152_brain()
    data, grid = low_pass(brain.data, brain.grid, spacing_mm)
    return Field(data, low_pass(_ringed(), brain.grid, spacing_mm)[0], grid)


@lru_cache(maxsize=4)
def _brain(spacing_mm: float, reach_mm: float) -> Fixed:
    """Points of the brain and its ring."""
    template = _template(spacing_mm)
    return _points(template, template.seen, reach_mm)


@lru_cache(maxsize=1)
def _commissures() -> Fixed:
    """Points around the commissures, weighted by a Gaussian."""
    template = _template(NEAR_MM)
    index = np.moveaxis(np.indices(template.data.shape), 0, -1)
    distance = np.linalg.norm(transform_points(template.grid.space_from_vox, index) - _midpoint(), axis=-1)
    return _points(
        template, template.seen * np.exp(-0.5 * (distance / LOCAL_SIGMA_MM) ** 2) * (distance < LOCAL_MM), CONTRAST_MM
    )


def _points(template: Field, weights: Float32[ndarray, "i j k"], reach_mm: float) -> Fixed:
    """Local contrast of the template where it weighs anything."""
    contrast = local_contrast(template.data, np.ones_like(template.data), template.grid.spacing_mm[0], reach_mm)
    index = np.argwhere(weights > LEAST_WEIGHT)
    at = tuple(index.T)
    points = transform_points(template.grid.space_from_vox, index).T
    return Fixed(*(jnp.asarray(a, jnp.float32) for a in (points, contrast[at], weights[at])))
