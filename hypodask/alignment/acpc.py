"""Rigid AC-PC alignment of one scan: find the brain, register it, carry the commissures over."""

from collections.abc import Iterator
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment.pose import Alignment, acpc_frame
from hypodask.alignment.register import ARM_MM, Fit, Fixed, Moving, local_contrast, register
from hypodask.alignment.search import COARSE_MM, FIELD, Field, search
from hypodask.errors import AlignmentError
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

NEAR_MM = 2.0
"""Voxels in which the surroundings of the commissures are registered."""

SAME_POSE_MM = 1.0
"""Starts that settled this near to each other, at the brain's rim, are one."""

BRIGHTEST = 1.0
"""Fat and vessels are cut down to white matter: scalp beside a surface coil can be several times brighter than
the brain, and would lead the fit."""

REFUSED_BELOW = 0.45
FLAGGED_BELOW = 0.52
"""Correlation with the template's brain under which there is no head, or no trustworthy pose. Measured: 19 scans
of heads and stripped brains 0.54-0.75; a fruit in nine poses 0.40-0.45, simulated balls and shells up to
0.53, so that this alone does not tell a head."""

LOCAL_REFUSED_BELOW = 0.45
"""The same around the commissures, which only a brain has: the same scans 0.66-0.83, the fruit 0.15-0.23, two balls,
a shell and noise below 0.06. Set in the middle of these very images; not yet tried on others."""

DISTANCE_MM = (21.0, 32.0)
"""AC-PC distances outside this are flagged: 26.6 +- 1.4 mm in adults (AFIDs on OASIS and HCP, n = 60)."""

APART_MM = 6.0
"""Whole brain and commissures may disagree by this much about the middle between AC and PC; a guess."""

SIZE = (0.70, 1.20)
"""Linear size relative to MNI152 outside which the fit is flagged: brains of 0.65 to 3.2 litres."""


def align(scan: Scan) -> Alignment:
    """Rigid alignment of a head to its anterior and posterior commissure.

    Parameters
    ----------
    scan
        T1-weighted head in any pose, axis order and voxel size; with or without neck, face or skull.

    Returns
    -------
    Alignment
        ``acpc_from_scanner`` and the commissures in scanner space; ``flagged`` when not to be trusted.

    Raises
    ------
    AlignmentError
        When no pose explains the image as a human head.
    """
    data = scan.data / white_level(scan.data)
    np.clip(data, 0.0, BRIGHTEST, out=data)
    whole = _register_brain(data, scan.grid)
    near = _cube(transform_points(np.asarray(whole.scanner_from_mni, float), _midpoint()), NEAR_MM, 80)
    moving = _moving(resample(data, scan.grid, near), scan.grid, near)
    local = register(moving, _commissures(), whole.scanner_from_mni, freedom=12, steps=15)
    _refuse_what_is_no_head(whole, local, scan.source or "scan")
    return _alignment(whole, local)


def _refuse_what_is_no_head(whole: Fit, local: Fit, source: str) -> None:
    for what, fit, least in (("MNI152 brain", whole, REFUSED_BELOW), ("commissures", local, LOCAL_REFUSED_BELOW)):
        # Written so that not-a-number is refused too.
        if not float(fit.correlation) >= least:
            raise AlignmentError(
                f"{source}: no human head was found: the best pose explains the {what} with a correlation of "
                f"{float(fit.correlation):.2f}, at least {least} is needed; check that this is a T1-weighted head scan"
            )


def _register_brain(data: Float32[ndarray, "i j k"], grid: Grid) -> Fit:
    """Find the brain among all poses at 10 mm, then register it at 8 and 4 mm."""
    medium, coarse = _cube(grid.centre_mm, MEDIUM_MM, 80), _cube(grid.centre_mm, COARSE_MM, FIELD)
    thinned, thin_grid = low_pass(data, grid, MEDIUM_MM)
    moving = _moving(interpolate(thinned, thin_grid, medium), grid, medium)
    starts = search(Field(resample(thinned, thin_grid, coarse), _seen(grid, coarse), coarse), _template(COARSE_MM))
    # Size is held while the pose settles: a free size swells until the template's brain fills the scalp.
    posed = [register(moving, _brain(8.0), jnp.asarray(s, jnp.float32), freedom=6, steps=10) for s in starts]
    free = [register(moving, _brain(MEDIUM_MM), f.scanner_from_mni, freedom=12, steps=20) for f in _distinct(posed)]
    return max(free, key=_correlation)


def _correlation(fit: Fit) -> float:
    return float(fit.correlation)


def _distinct(fits: list[Fit]) -> list[Fit]:
    """The best three, less those that are one pose found twice."""
    kept: list[Fit] = []
    for fit in sorted(fits, key=_correlation, reverse=True)[:3]:
        if all(_apart_mm(fit, other) > SAME_POSE_MM for other in kept):
            kept.append(fit)
    return kept


def _apart_mm(one: Fit, other: Fit) -> float:
    """Greatest distance between two places of a point on the template brain's rim."""
    rim = ARM_MM * np.concatenate([np.eye(3), -np.eye(3)]) + (0.0, -20.0, 0.0)
    here, there = (transform_points(np.asarray(fit.scanner_from_mni, float), rim) for fit in (one, other))
    return float(np.linalg.norm(here - there, axis=1).max())


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


def _moving(data: Float32[ndarray, "x y z"], grid: Grid, onto: Grid) -> Moving:
    """Local contrast of a cube of the head, ready to be registered."""
    seen = _seen(grid, onto)
    contrast = local_contrast(data, seen, onto.spacing_mm[0])
    return Moving(*(jnp.asarray(a, jnp.float32) for a in (contrast, seen, np.linalg.inv(onto.space_from_vox))))


def _alignment(whole: Fit, local: Fit) -> Alignment:
    """Carry the template's commissures and midline into the scanner."""
    scanner_from_mni = np.asarray(local.scanner_from_mni, float)
    ac, pc = transform_points(scanner_from_mni, np.array([AC_MNI_MM, PC_MNI_MM]))
    mni_from_scanner = np.linalg.inv(np.asarray(whole.scanner_from_mni, float))
    # Normals of planes go by the inverse transpose: x = 0 of the template is the midsagittal plane.
    right = mni_from_scanner[0, :3]
    warnings = tuple(_doubts(whole, ac, pc))
    return Alignment(
        acpc_from_scanner=acpc_frame(ac, pc, right),
        ac_mm=ac,
        pc_mm=pc,
        mni_from_scanner=mni_from_scanner,
        score=float(whole.correlation),
        flagged=bool(warnings),
        warnings=warnings,
    )


def _doubts(whole: Fit, ac: ndarray, pc: ndarray) -> Iterator[str]:
    """Reasons not to trust the pose."""
    scanner_from_mni = np.asarray(whole.scanner_from_mni, float)
    if whole.correlation < FLAGGED_BELOW:
        yield f"The head resembles the template little (correlation {float(whole.correlation):.2f})."
    distance = float(np.linalg.norm(ac - pc))
    if not DISTANCE_MM[0] <= distance <= DISTANCE_MM[1]:
        yield f"The commissures are {distance:.1f} mm apart; {DISTANCE_MM[0]:g}-{DISTANCE_MM[1]:g} is usual."
    sizes = np.linalg.svd(scanner_from_mni[:3, :3], compute_uv=False)
    if sizes.min() < SIZE[0] or sizes.max() > SIZE[1]:
        yield f"The brain is {sizes.min():.2f} to {sizes.max():.2f} times the template's size."
    apart = float(np.linalg.norm(transform_points(scanner_from_mni, _midpoint()) - (ac + pc) / 2))
    if apart > APART_MM:
        yield f"Whole brain and commissures disagree by {apart:.1f} mm."


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
def _brain(spacing_mm: float) -> Fixed:
    """Points of the brain and its ring."""
    template = _template(spacing_mm)
    return _points(template, template.seen)


@lru_cache(maxsize=1)
def _commissures() -> Fixed:
    """Points around the commissures, weighted by a Gaussian."""
    template = _template(NEAR_MM)
    index = np.moveaxis(np.indices(template.data.shape), 0, -1)
    distance = np.linalg.norm(transform_points(template.grid.space_from_vox, index) - _midpoint(), axis=-1)
    return _points(template, template.seen * np.exp(-0.5 * (distance / LOCAL_SIGMA_MM) ** 2) * (distance < LOCAL_MM))


def _points(template: Field, weights: Float32[ndarray, "i j k"]) -> Fixed:
    """Local contrast of the template where it weighs anything."""
    contrast = local_contrast(template.data, np.ones_like(template.data), template.grid.spacing_mm[0])
    index = np.argwhere(weights > LEAST_WEIGHT)
    at = tuple(index.T)
    points = transform_points(template.grid.space_from_vox, index).T
    return Fixed(*(jnp.asarray(a, jnp.float32) for a in (points, contrast[at], weights[at])))
