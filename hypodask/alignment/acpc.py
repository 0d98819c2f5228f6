"""Rigid AC-PC alignment of one scan: find the brain, register it, carry the commissures over."""

from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment.pose import Alignment, acpc_frame
from hypodask.alignment.register import Fit, Fixed, Moving, local_contrast, register
from hypodask.alignment.search import COARSE_MM, FIELD, search
from hypodask.errors import AlignmentError
from hypodask.grid import Grid, transform_points
from hypodask.resample import low_pass, resample
from hypodask.scan import Scan
from hypodask.template import AC_MNI_MM, PC_MNI_MM, mni152_brain

RING_MM = 6.0
"""Width of the dark ring of CSF and skull around the template's brain that is matched with it."""

LOCAL_SIGMA_MM = 24.0
"""Reach of the last registration around the commissures: diencephalon and corpus callosum, no cortex."""

BRIGHT = 1.5
"""White matter relative to the median of a head's voxels, roughly; brighter voxels are cut to this."""

REFUSED_BELOW = 0.45
FLAGGED_BELOW = 0.52
"""Correlation with the template under which there is no head, or no trustworthy pose. Measured: 18 heads
and stripped brains of as many scanners 0.54-0.75, a fruit 0.41."""

DISTANCE_MM = (21.0, 32.0)
"""AC-PC distances outside this are flagged: 26.6 +- 1.4 mm in adults (AFIDs on OASIS and HCP, n = 60)."""

SIZE = (0.70, 1.20)
"""Linear size relative to MNI152 outside which the fit is flagged: brains of 0.65 to 3.2 litres."""


class Field(NamedTuple):
    """A cube of the head around a point, along the scanner's axes."""

    data: ndarray
    seen: ndarray
    grid: Grid

    @classmethod
    def of(cls, data: ndarray, grid: Grid, centre_mm: ndarray, spacing_mm: float, size: int) -> "Field":
        """Resample the head and its field of view."""
        matrix = np.diag([spacing_mm] * 3 + [1.0])
        matrix[:3, 3] = centre_mm - spacing_mm * (size - 1) / 2
        onto = Grid((size,) * 3, matrix, "scanner")
        return cls(resample(data, grid, onto), _seen(grid, onto), onto)

    def moving(self) -> Moving:
        """Its local contrast, ready to be registered."""
        contrast = local_contrast(self.data, self.seen, self.grid.spacing_mm[0])
        vox_from_scanner = np.linalg.inv(self.grid.space_from_vox)
        return Moving(*(jnp.asarray(a, jnp.float32) for a in (contrast, self.seen, vox_from_scanner)))


def _seen(grid: Grid, onto: Grid) -> ndarray:
    """1 at the voxels of ``onto`` that lie in the field of view of ``grid``."""
    index = np.moveaxis(np.indices(onto.shape), 0, -1)
    vox = transform_points(np.linalg.inv(grid.space_from_vox) @ onto.space_from_vox, index)
    return np.all((vox > -0.5) & (vox < np.array(grid.shape) - 0.5), axis=-1).astype(np.float32)


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
    data = _normalized(scan.data)
    coarse = Field.of(data, scan.grid, scan.grid.centre_mm, COARSE_MM, FIELD)
    medium = Field.of(data, scan.grid, scan.grid.centre_mm, 4.0, 80).moving()
    starts = search(coarse.data, coarse.seen, coarse.grid.space_from_vox, *_coarse_template())
    # Size is held while the pose settles: a free size swells until the template's brain fills the scalp.
    posed = [register(medium, _brain(8.0), jnp.asarray(s, jnp.float32), freedom=6, steps=10) for s in starts]
    posed = sorted(posed, key=lambda fit: -float(fit.correlation))[:3]
    whole = max(
        (register(medium, _brain(4.0), fit.scanner_from_mni, freedom=12, steps=20) for fit in posed),
        key=lambda fit: float(fit.correlation),
    )
    if not float(whole.correlation) >= REFUSED_BELOW:
        raise AlignmentError(
            f"{scan.source or 'scan'}: no human head was found: the best pose explains the MNI152 brain with a "
            f"correlation of {float(whole.correlation):.2f}, at least {REFUSED_BELOW} is needed; check that this is "
            "a T1-weighted head scan"
        )
    middle = transform_points(np.asarray(whole.scanner_from_mni, float), _midpoint())
    near = Field.of(data, scan.grid, middle, 2.0, 80).moving()
    local = register(near, _commissures(), whole.scanner_from_mni, freedom=12, steps=15)
    return _alignment(whole, local)


def _alignment(whole: Fit, local: Fit) -> Alignment:
    """Carry the template's commissures and midline into the scanner."""
    scanner_from_mni = np.asarray(local.scanner_from_mni, float)
    ac, pc = transform_points(scanner_from_mni, np.array([AC_MNI_MM, PC_MNI_MM]))
    # Normals of planes go by the inverse transpose: x = 0 of the template is the midsagittal plane.
    right = np.linalg.inv(np.asarray(whole.scanner_from_mni, float))[0, :3]
    return Alignment(
        acpc_from_scanner=acpc_frame(ac, pc, right / np.linalg.norm(right)),
        ac_mm=ac,
        pc_mm=pc,
        mni_from_scanner=np.linalg.inv(np.asarray(whole.scanner_from_mni, float)),
        score=float(whole.correlation),
        flagged=bool(_doubts(whole, local, ac, pc)),
        warnings=tuple(_doubts(whole, local, ac, pc)),
    )


def _doubts(whole: Fit, local: Fit, ac: ndarray, pc: ndarray) -> list[str]:
    """Reasons not to trust the pose."""
    doubts = []
    if whole.correlation < FLAGGED_BELOW:
        doubts.append(f"The head resembles the template little (correlation {float(whole.correlation):.2f}).")
    distance = float(np.linalg.norm(ac - pc))
    if not DISTANCE_MM[0] <= distance <= DISTANCE_MM[1]:
        doubts.append(f"The commissures are {distance:.1f} mm apart; {DISTANCE_MM[0]:g}-{DISTANCE_MM[1]:g} is usual.")
    sizes = np.linalg.svd(np.asarray(whole.scanner_from_mni)[:3, :3], compute_uv=False)
    if sizes.min() < SIZE[0] or sizes.max() > SIZE[1]:
        doubts.append(f"The brain is {sizes.min():.2f} to {sizes.max():.2f} times the template's size.")
    apart = transform_points(np.asarray(whole.scanner_from_mni, float), _midpoint()) - (ac + pc) / 2
    if np.linalg.norm(apart) > 6.0:
        doubts.append(f"Whole brain and commissures disagree by {np.linalg.norm(apart):.1f} mm.")
    return doubts


def _midpoint() -> Float[ndarray, "3"]:
    return (np.array(AC_MNI_MM) + np.array(PC_MNI_MM)) / 2


def _normalized(data: ndarray) -> ndarray:
    """Intensities relative to the middle of the head's, with fat and vessels cut down to white matter.

    Scalp beside a surface coil can be several times brighter than the brain, and would lead the fit.
    """
    sample = data.reshape(-1)[:: max(1, data.size // 500_000)]
    head = sample[sample > 0.3 * np.percentile(sample[sample > sample.mean()], 50)]
    return np.clip(data / (BRIGHT * np.median(head)), 0.0, 1.0)


@lru_cache(maxsize=1)
def _ringed() -> ndarray:
    """The template's brain and the ring around it, 1 where it is to be matched."""
    brain = mni152_brain().data > 0
    return (ndimage.distance_transform_edt(~brain) <= RING_MM).astype(np.float32)


@lru_cache(maxsize=4)
def _low_passed(spacing_mm: float) -> tuple[ndarray, ndarray, Grid]:
    brain = mni152_brain()
    data, grid = low_pass(brain.data, brain.grid, spacing_mm)
    return data, low_pass(_ringed(), brain.grid, spacing_mm)[0], grid


def _coarse_template() -> tuple[ndarray, ndarray, ndarray]:
    data, mask, grid = _low_passed(COARSE_MM)
    return jnp.asarray(data), jnp.asarray(mask), np.array(grid.space_from_vox)


@lru_cache(maxsize=4)
def _brain(spacing_mm: float) -> Fixed:
    """Points of the brain and its ring."""
    data, mask, grid = _low_passed(spacing_mm)
    return _points(data, grid, mask)


@lru_cache(maxsize=1)
def _commissures() -> Fixed:
    """Points around the commissures, weighted by a Gaussian."""
    data, mask, grid = _low_passed(2.0)
    index = np.moveaxis(np.indices(data.shape), 0, -1)
    distance = np.linalg.norm(transform_points(grid.space_from_vox, index) - _midpoint(), axis=-1)
    return _points(data, grid, mask * np.exp(-0.5 * (distance / LOCAL_SIGMA_MM) ** 2) * (distance < 50))


def _points(data: ndarray, grid: Grid, weights: ndarray) -> Fixed:
    """Local contrast of the template where it weighs anything."""
    contrast = local_contrast(data, np.ones_like(data), grid.spacing_mm[0])
    index = np.argwhere(weights > 0.02)
    at = tuple(index.T)
    points = transform_points(grid.space_from_vox, index)
    return Fixed(*(jnp.asarray(a, jnp.float32) for a in (points, contrast[at], weights[at])))
