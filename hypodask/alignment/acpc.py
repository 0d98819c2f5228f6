"""Rigid AC-PC alignment of one scan: find the brain, look for the commissures, say how sure the pose is."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.alignment.brain import Registration, register_template
from hypodask.alignment.commissures import Commissures, find_commissures, refined_frame
from hypodask.alignment.manual import align_to
from hypodask.alignment.pose import Alignment
from hypodask.errors import AlignmentError
from hypodask.grid import Grid, transform_points
from hypodask.landmarks import Landmarks
from hypodask.scan import Scan

REFUSED_BELOW = 0.40
FLAGGED_BELOW = 0.50
"""Correlation with the template's brain under which there is no head, or no trustworthy pose. Measured: 15 scans of
heads and stripped brains as stored 0.54-0.75, a fruit 0.45, so that this alone does not tell a head."""

LOCAL_REFUSED_BELOW = 0.45
"""The same around the commissures, which only a brain has: the same scans 0.71-0.86, the fruit 0.25. Set between
these very images; the refused and flagged cases of ``docs/alignment.md`` are others."""

DISTANCE_MM = (21.0, 32.0)
"""AC-PC distances outside this are flagged: 26.6 +- 1.4 mm in adults (AFIDs on OASIS and HCP, n = 60)."""

APART_MM = 6.0
"""Commissures and those of the registered template may lie this far apart: 0.1 to 2.6 mm on 14 heads."""

SIZE = (0.70, 1.20)
"""Linear size relative to MNI152 outside which the fit is flagged: brains of 0.65 to 3.2 litres."""

SPREAD_MM = 0.8
"""Looks at a commissure that differ by more than this are flagged: 0.05 to 0.25 mm on 14 heads."""

CERTAIN = 0.7
"""A smaller share of the likelihood at one place is flagged: 0.93 to 0.99 on 14 heads."""

MARGIN_MM = 12.0
"""A commissure nearer to the border of the field of view than this is flagged: its surroundings were not seen."""

HELD_OUT_MM = 0.6
"""Root mean square distance of commissures from those of two raters on 12 heads that the
network had not learnt from (``recipes/commissures.py``)."""

SETTLING_TURNS = 2
"""Times that the network looks, each time from the pose that the commissures found before say; nothing changes by
more than 0.15 mm in a third."""


def align(scan: Scan, *, landmarks: Landmarks | None = None) -> Alignment:
    """Rigid alignment of a head to its anterior and posterior commissure.

    The template's brain is registered to the head, which gives the midsagittal plane and a first pose; a network then
    looks for both commissures in that plane. Roll and yaw are those of the plane, pitch that of the line between the
    commissures (Kassubek et al. 2025).

    Parameters
    ----------
    scan
        T1-weighted head in any axis order and voxel size, pitched up to 48 and rolled or turned up to 20 degrees;
        with or without neck, face or skull.
    landmarks
        Commissures that a person placed; they win over what is found.

    Returns
    -------
    Alignment
        ``acpc_from_scanner`` and the commissures in scanner space; ``flagged`` when not to be trusted.

    Raises
    ------
    AlignmentError
        When no pose explains the image as a human head.
    LandmarkError
        When landmarks by hand cannot be those of a head in this scan.
    """
    if landmarks is not None:
        return align_to(scan, landmarks, _found(scan))
    registration = register_template(scan)
    _refuse_what_is_no_head(registration, scan.source or "scan")
    pose = registration.acpc_from_scanner
    for _ in range(SETTLING_TURNS):
        found = find_commissures(scan.data, scan.grid, pose)
        scanner_from_found = np.linalg.inv(pose)
        pose = refined_frame(pose, found)
    ac, pc = transform_points(scanner_from_found, np.array([found.ac_mm, found.pc_mm]))
    warnings = tuple(_doubts(registration, found, np.array([ac, pc]), scan.grid))
    return Alignment(
        acpc_from_scanner=pose,
        ac_mm=ac,
        pc_mm=pc,
        mni_from_scanner=registration.mni_from_scanner,
        score=float(registration.whole.correlation),
        flagged=bool(warnings),
        warnings=warnings,
        error_mm=float(np.hypot(HELD_OUT_MM, found.spread_mm.max())),
    )


def _found(scan: Scan) -> Alignment | None:
    """The pose as it is without landmarks, if there is one."""
    try:
        return align(scan)
    except AlignmentError:
        return None


def _refuse_what_is_no_head(registration: Registration, source: str) -> None:
    fits = (
        ("MNI152 brain", registration.whole, REFUSED_BELOW),
        ("commissures", registration.near, LOCAL_REFUSED_BELOW),
    )
    for what, fit, least in fits:
        # Written so that not-a-number is refused too.
        if not float(fit.correlation) >= least:
            raise AlignmentError(
                f"{source}: no human head was found: the best pose explains the {what} with a correlation of "
                f"{float(fit.correlation):.2f}, at least {least} is needed; check that this is a T1-weighted head scan"
            )


def _doubts(
    registration: Registration, found: Commissures, places_mm: Float[ndarray, "2 3"], grid: Grid
) -> Iterator[str]:
    """Reasons not to trust the pose."""
    whole = registration.whole
    if whole.correlation < FLAGGED_BELOW:
        yield f"The head resembles the template little (correlation {float(whole.correlation):.2f})."
    distance = float(np.linalg.norm(places_mm[0] - places_mm[1]))
    if not DISTANCE_MM[0] <= distance <= DISTANCE_MM[1]:
        yield f"The commissures are {distance:.1f} mm apart; {DISTANCE_MM[0]:g}-{DISTANCE_MM[1]:g} is usual."
    sizes = np.linalg.svd(np.asarray(whole.scanner_from_mni)[:3, :3], compute_uv=False)
    if sizes.min() < SIZE[0] or sizes.max() > SIZE[1]:
        yield f"The brain is {sizes.min():.2f} to {sizes.max():.2f} times the template's size."
    carried = np.linalg.norm(registration.commissures_mm - places_mm, axis=1)
    inside = _from_border_mm(places_mm, grid)
    for name, apart, spread, certain, margin in zip(
        ("AC", "PC"), carried, found.spread_mm, found.certainty, inside, strict=True
    ):
        if apart > APART_MM:
            yield f"The {name} that was found and the template's are {apart:.1f} mm apart."
        if spread > SPREAD_MM or certain < CERTAIN:
            yield f"The {name} is not clear: looks differ by {spread:.1f} mm, {100 * certain:.0f} % agree on one place."
        if margin < MARGIN_MM:
            yield f"The {name} lies {margin:.0f} mm inside the field of view; {MARGIN_MM:g} mm are needed."


def _from_border_mm(places_mm: Float[ndarray, "n 3"], grid: Grid) -> Float[ndarray, "n"]:
    """How far places lie inside the field of view; negative outside."""
    vox = transform_points(np.linalg.inv(grid.space_from_vox), places_mm)
    margins = np.minimum(vox + 0.5, np.array(grid.shape) - 0.5 - vox) * grid.spacing_mm
    return np.asarray(margins.min(axis=1))
