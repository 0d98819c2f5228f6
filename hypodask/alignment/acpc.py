"""Rigid AC-PC alignment of one scan: find the brain, then the commissures, and say how far the pose can be trusted."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.alignment.brain import Registration, register_template
from hypodask.alignment.commissures import Commissures, find_commissures, refined_frame
from hypodask.alignment.manual import align_to
from hypodask.alignment.pose import Alignment
from hypodask.core.errors import AlignmentError
from hypodask.core.grid import Grid, transform_points
from hypodask.scan.air import above_air
from hypodask.scan.landmarks import Landmarks
from hypodask.scan.scan import Scan

_REFUSED_BELOW, _FLAGGED_BELOW = 0.45, 0.55
"""Correlation with the template around the commissures below which a scan is refused, or its pose is flagged."""

_LEAST_LIKENESS, _FLAGGED_LIKENESS = 0.25, 0.50
"""Plain correlation of contrast there, below which it is not that of a T1-weighted scan, or is doubtful: 0.70 to 0.86
on 11 scans, -0.5 on an image with the contrast of T2."""

_DISTANCE_MM = (21.0, 32.0)
"""AC-PC distances outside this range, times the size of the head, are flagged: 26.6 +- 1.4 mm in adults (AFIDs on OASIS
and HCP, n = 60)."""

_APART_MM = 6.0
"""Greatest distance of a commissure from that of the registered template: 0.1 to 2.6 mm on 14 heads."""

_SIZE = (0.78, 1.33)
"""Linear sizes relative to an average adult's outside this range are flagged: brains of 0.65 to 3.2 litres."""

_DISTORTION = 1.30
"""Largest ratio of stretches of a brain, relative to a usual adult's: 1.04 to 1.2."""

_TURN_DEG = 60.0
"""Heads that are turned by more against the axes of their header are flagged: no scanner holds a head so."""

_SPREAD_MM = 0.8
"""Largest spread of a commissure over the test-time augmentations: 0.05 to 0.25 mm on 14 heads."""

_CERTAIN = 0.7
"""Least share of the likelihood that lies at one place: 0.93 to 0.99 on 14 heads."""

_MARGIN_MM = 12.0
"""Least distance of a commissure from the border of the field of view: nearer, its surroundings were not seen."""

_HELD_OUT_MM = 0.6
"""Root mean square distance of the commissures from those of two raters, on 12 heads that the network had not learnt
from (``recipes/commissures.py``)."""

_REFINEMENTS = 2
"""How often the network is applied, each time in the pose of the commissures that it found before. A third time changes
nothing by more than 0.15 mm."""


def align(scan: Scan, *, landmarks: Landmarks | None = None) -> Alignment:
    """Rigid alignment of a head to its anterior and posterior commissure.

    The template's brain is registered to the head, which gives the midsagittal plane and a first pose. A network then
    finds both commissures in that plane. The plane gives roll and yaw, the line between the commissures gives pitch
    (Kassubek et al. 2025).

    Parameters
    ----------
    scan
        T1-weighted head in any axis order and voxel size, pitched up to 48 and rolled or turned up to 20 degrees;
        with or without neck, face or skull.
    landmarks
        Commissures that a person placed; they replace those that are found.

    Returns
    -------
    Alignment
        ``acpc_from_scanner`` and the commissures in scanner space; ``flagged`` if it should not be trusted.

    Raises
    ------
    AlignmentError
        If no pose explains the image as a human head.
    BackgroundError
        If the intensity of air cannot be known.
    LandmarkError
        If landmarks placed by hand cannot be those of a head in this scan.
    """
    if landmarks is not None:
        try:
            automatic = align(scan)
        except AlignmentError:
            automatic = None
        return align_to(scan, landmarks, automatic)
    scan = above_air(scan)
    registration = register_template(scan)
    _refuse_without_head(registration, scan.source or "scan")
    # The network sees the head at the size of an average adult's, as those of the structures do.
    to_average = np.diag([1 / registration.head_size] * 3 + [1.0])
    pose = to_average @ registration.acpc_from_scanner
    for _ in range(_REFINEMENTS):
        found = find_commissures(scan.data, scan.grid, pose)
        scanner_from_found = np.linalg.inv(pose)
        pose = refined_frame(pose, found)
    ac, pc = transform_points(scanner_from_found, np.array([found.ac_mm, found.pc_mm]))
    pose = np.linalg.inv(to_average) @ pose
    warnings = tuple(_doubts(registration, found, np.array([ac, pc]), scan.grid))
    return Alignment(
        acpc_from_scanner=pose,
        ac_mm=ac,
        pc_mm=pc,
        mni_from_scanner=registration.mni_from_scanner,
        score=float(registration.whole.correlation),
        flagged=bool(warnings),
        warnings=warnings,
        head_size=registration.head_size,
        error_mm=float(registration.head_size * np.hypot(_HELD_OUT_MM, found.spread_mm.max())),
    )


def _refuse_without_head(registration: Registration, source: str) -> None:
    near = float(registration.near.correlation)
    # Written so that not-a-number is refused too.
    if not near >= _REFUSED_BELOW:
        raise AlignmentError(
            f"{source}: no human head was found: the best pose explains the commissures' surroundings with a "
            f"correlation of {near:.2f}, at least {_REFUSED_BELOW:g} is needed; check that this is a T1-weighted head "
            "scan"
        )
    if not registration.likeness >= _LEAST_LIKENESS:
        raise AlignmentError(
            f"{source}: the contrast is not that of a T1-weighted scan: its correlation with the template's is "
            f"{registration.likeness:.2f}, at least {_LEAST_LIKENESS:g} is needed; check that this is no T2-weighted "
            "or inverted image"
        )


def _turn_deg(acpc_from_scanner: Float[ndarray, "4 4"]) -> float:
    """Angle of the whole turn of a head."""
    return float(np.degrees(np.arccos(np.clip((np.trace(acpc_from_scanner[:3, :3]) - 1) / 2, -1, 1))))


def _doubts(
    registration: Registration, found: Commissures, places_mm: Float[ndarray, "2 3"], grid: Grid
) -> Iterator[str]:
    """Reasons not to trust the pose."""
    near = float(registration.near.correlation)
    if near < _FLAGGED_BELOW:
        yield f"The surroundings of the commissures resemble the template little (correlation {near:.2f})."
    if registration.likeness < _FLAGGED_LIKENESS:
        yield (
            f"The contrast about the commissures resembles that of a T1-weighted scan little (correlation "
            f"{registration.likeness:.2f})."
        )
    distance = float(np.linalg.norm(places_mm[0] - places_mm[1]))
    size = registration.head_size
    low, high = (limit * size for limit in _DISTANCE_MM)
    if not low <= distance <= high:
        yield f"The commissures are {distance:.1f} mm apart; {low:.0f}-{high:.0f} is usual in a head of this size."
    if not _SIZE[0] <= size <= _SIZE[1]:
        yield f"The brain is {size:.2f} times as long as an average adult's; {_SIZE[0]:g} to {_SIZE[1]:g} is usual."
    if not registration.distortion <= _DISTORTION:
        yield (
            f"The brain is stretched {registration.distortion:.2f} times more along one direction than along another, "
            f"at most {_DISTORTION:g} is usual: check the voxel sizes in the header."
        )
    turn_deg = _turn_deg(registration.acpc_from_scanner)
    if turn_deg > _TURN_DEG:
        yield f"The head is turned by {turn_deg:.0f} degrees against its header: check its orientation."
    carried = np.linalg.norm(registration.commissures_mm - places_mm, axis=1)
    vox = transform_points(np.linalg.inv(grid.space_from_vox), places_mm)
    margins = (np.minimum(vox + 0.5, np.array(grid.shape) - 0.5 - vox) * grid.spacing_mm).min(axis=1)
    for name, apart, spread, certain, margin in zip(
        ("AC", "PC"), carried, found.spread_mm, found.certainty, margins, strict=True
    ):
        if apart > _APART_MM:
            yield f"The {name} that was found and that of the registered template are {apart:.1f} mm apart."
        if spread > _SPREAD_MM or certain < _CERTAIN:
            yield (
                f"The {name} is not clear: test-time augmentations differ by {spread:.1f} mm, and "
                f"{100 * certain:.0f} % of the likelihood lies at one place."
            )
        if margin < _MARGIN_MM:
            yield f"The {name} lies {margin:.0f} mm inside the field of view; {_MARGIN_MM:g} mm are needed."
