"""The pose of a head whose commissures a person placed."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.alignment.pose import Alignment, acpc_frame
from hypodask.core.errors import LandmarkError
from hypodask.core.grid import Grid, transform_points
from hypodask.scan.landmarks import Landmarks
from hypodask.scan.scan import Scan
from hypodask.scan.template import MNI152

_DISTANCE_MM = (15.0, 40.0)
"""Distances between AC and PC outside this range are refused: 26.6 +- 1.4 mm in adults (AFIDs on OASIS and HCP,
n = 60), with room for the smallest and the largest heads."""

_OFF_LINE_MM = 15.0
"""A midline point must lie this far from the line through the commissures, so that an error of 1 mm turns the head by
no more than 4 degrees. A guess."""

_APART_MM = 3.0
"""Commissures placed further than this from the automatic ones give a warning; a guess."""

_TURNED_DEG = 5.0
"""A midline point that rolls the head by more than this against the automatic pose gives a warning; a guess."""


def align_to(scan: Scan, landmarks: Landmarks, automatic: Alignment | None) -> Alignment:
    """The pose of landmarks that a person placed; the automatic pose gives the midsagittal plane and is compared.

    Parameters
    ----------
    scan
        The scan that the landmarks were placed in.
    landmarks
        In its scanner space.
    automatic
        What was found without them, whose score and registration are kept; ``None`` if nothing was found, and then
        a midline point is needed.

    Returns
    -------
    Alignment
        ``source`` is ``landmarks``. Never flagged: where the automatic pose differs, the warnings say so.

    Raises
    ------
    LandmarkError
        If the landmarks cannot be those of a head in this scan, or do not say how it is rolled.
    """
    _refuse_implausible(landmarks, scan.grid)
    ac, pc = np.array(landmarks.ac_mm), np.array(landmarks.pc_mm)
    acpc_from_scanner = acpc_frame(ac, pc, _right(landmarks, automatic))
    # Without a registration, a rigid move that puts the commissures near the template's takes its place.
    acpc_from_mni = acpc_frame(MNI152.commissures_mm[0], MNI152.commissures_mm[1], np.array([1.0, 0.0, 0.0]))
    mni_from_scanner = np.linalg.inv(acpc_from_mni) @ acpc_from_scanner
    pose = Alignment(
        acpc_from_scanner=acpc_from_scanner,
        ac_mm=ac,
        pc_mm=pc,
        mni_from_scanner=automatic.mni_from_scanner if automatic else mni_from_scanner,
        score=automatic.score if automatic else float("nan"),
        head_size=automatic.head_size if automatic else 1.0,
        flagged=False,
        source="landmarks",
    )
    return replace(pose, warnings=tuple(_differences(pose, automatic)))


def _refuse_implausible(landmarks: Landmarks, grid: Grid) -> None:
    places = {"AC": landmarks.ac_mm, "PC": landmarks.pc_mm, "IH": landmarks.midline_mm}
    for name, place in places.items():
        if place is not None:
            _refuse_outside(name, np.array(place), grid)
    ac, pc = np.array(landmarks.ac_mm), np.array(landmarks.pc_mm)
    low, high = _DISTANCE_MM
    if not low <= np.linalg.norm(ac - pc) <= high:
        raise LandmarkError(
            f"AC and PC were given {np.linalg.norm(ac - pc):.1f} mm apart; {low:g} to {high:g} mm are possible: check "
            "the points, their units and that they are of this scan"
        )
    if ac[1] <= pc[1]:
        raise LandmarkError(
            f"AC was given {pc[1] - ac[1]:.1f} mm behind PC; in RAS+ mm its y is the larger of the two: check that "
            "they are not swapped, and that the points are RAS and not LPS"
        )


def _refuse_outside(name: str, place: Float[ndarray, "3"], grid: Grid) -> None:
    if not np.isfinite(place).all():
        raise LandmarkError(f"{name} was given at {place.tolist()}; three finite numbers are needed: fill them in")
    vox = transform_points(np.linalg.inv(grid.space_from_vox), place)
    if np.any(vox < -0.5) or np.any(vox > np.array(grid.shape) - 0.5):
        raise LandmarkError(
            f"{name} was given at {np.round(place, 1).tolist()}, voxel {np.round(vox, 1).tolist()} of a scan of "
            f"{list(grid.shape)}; it must lie in the scan: check that it is in scanner RAS+ mm and of this scan"
        )


def _right(landmarks: Landmarks, automatic: Alignment | None) -> Float[ndarray, "3"]:
    """Normal of the midsagittal plane, to the subject's right."""
    if landmarks.midline_mm is not None:
        return _right_of(landmarks)
    if automatic is None:
        raise LandmarkError(
            "AC and PC were given, but the automatic alignment, which tells how the head is rolled, found no head; "
            "give a third point of the midsagittal plane (IH), far above the commissures"
        )
    return automatic.acpc_from_scanner[0, :3]


def _right_of(landmarks: Landmarks) -> Float[ndarray, "3"]:
    """Normal of the plane through three points."""
    ac, pc, midline = (np.array(place) for place in (landmarks.ac_mm, landmarks.pc_mm, landmarks.midline_mm))
    anterior = (ac - pc) / np.linalg.norm(ac - pc)
    normal = np.cross(anterior, midline - ac)
    if np.linalg.norm(normal) < _OFF_LINE_MM:
        raise LandmarkError(
            f"the midline point (IH) lies {np.linalg.norm(normal):.1f} mm from the line through AC and PC; at least "
            f"{_OFF_LINE_MM:g} mm are needed to tell how the head is rolled: place it far above them"
        )
    # The midline point may lie above or below the commissures; +x of the scanner points to the subject's right.
    return normal * np.sign(normal[0])


def _differences(pose: Alignment, automatic: Alignment | None) -> Iterator[str]:
    """Warnings about where the automatic pose differs."""
    if automatic is None:
        yield (
            "Commissures were given by hand; no automatic alignment was found that could confirm them. The size of the "
            "head is not known, and that of an average adult's is taken."
        )
        return
    ac, pc = (np.linalg.norm(a - b) for a, b in ((pose.ac_mm, automatic.ac_mm), (pose.pc_mm, automatic.pc_mm)))
    if max(ac, pc) > _APART_MM:
        yield f"Commissures were given by hand; automatic ones lie {ac:.1f} mm (AC) and {pc:.1f} mm (PC) away."
    up = (automatic.acpc_from_scanner @ np.linalg.inv(pose.acpc_from_scanner))[:3, 2]
    roll_deg = float(np.degrees(np.arctan2(up[0], up[2])))
    if abs(roll_deg) > _TURNED_DEG:
        yield f"The midline point given by hand rolls the head {abs(roll_deg):.1f} degrees against the automatic pose."
