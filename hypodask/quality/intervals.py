"""95 % intervals: how far a volume may be from the truth.

The relative error of a volume is taken as a sum of independent parts. The first is the error of the network on
held-out participants, measured when it was trained; it includes the errors of pose and noise that good-quality scans
have. If the network says how certain the position of the boundary is, this part is in proportion to that. Each other
part is what this scan has in excess of good-quality scans: a less certain boundary, more disagreement between the
networks of an ensemble, a less certain pose, more noise, and what was not imaged.

Volumes are positive and errors are relative, so the interval is one of the logarithm of the volume. The first part
comes from few participants, which Student's t accounts for; the degrees of freedom of the sum are Satterthwaite's
(Biometrics Bulletin 1946).

The interval is about the label protocol that the network learnt. How protocols differ is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.quality.reference import VolumeErrors, load_reference
from hypodask.segmentation.network import Network
from hypodask.segmentation.volumes import Volumes

_COVERAGE = 0.95

_UNSEEN_ERROR = 0.5
"""Relative standard deviation of a volume that is inferred where nothing was imaged; a guess."""

_MANUAL_POSE_MM = 0.5
"""Expected error of a commissure that a person placed. Two raters of public scans were 0.2 mm apart on average; other
raters may be less careful."""


_HELD_OUT_BOUNDARY_SD_MM, _SMALLEST_SHARE = 1.4, 0.5
"""How uncertain the boundary of the ICV is (``Segmentation.boundary_sd_mm``) on images of held-out label maps that are
like those which the card's error was measured on: fluid and bone may be alike. The error is taken in proportion to it,
down to a half. Measured: 1.33 and 1.47 mm on such images of two maps, 0.77 to 0.94 mm on seven images of four maps with
a usual contrast, 1.02 to 1.20 mm on seven whole heads of 0.7 to 1 mm."""


@dataclass(frozen=True)
class Conditions:
    """What increases the error of the volume of one scan; by default those of a good-quality scan."""

    uncertainty: float = float("nan")
    """Entropy (bits) of the posteriors near the boundary; not-a-number counts as usual."""
    spread: float = float("nan")
    """Relative standard deviation of the volume over the members of an ensemble; not-a-number counts as usual."""
    members: int = 1
    """How many members the ensemble has."""
    pose_mm: float = 0.0
    """Expected error of a commissure, mm; not-a-number where a person placed them."""
    noise: float = float("nan")
    """In units of the contrast; not-a-number counts as usual."""
    unseen: float = 0.0
    """Share of the structure that was not imaged."""
    boundary_sd_mm: float = float("nan")
    """How uncertain the position of the boundary is, where a network says so; not-a-number counts as on held-out
    participants."""


@dataclass(frozen=True)
class RelativeError:
    """Standard deviation of the logarithm of a volume, and its degrees of freedom."""

    sd: float
    freedom: float


def relative_error(
    known_sd: float, participants: int | None, conditions: Conditions, errors: VolumeErrors
) -> RelativeError:
    """Expected relative error of one volume.

    Parameters
    ----------
    known_sd
        Relative error on held-out participants, including their mean error.
    participants
        How many they were; None where that is not known, which is taken as many.
    conditions
        What is unusual about the scan.
    errors
        How much that matters.

    Examples
    --------
    >>> errors = VolumeErrors(0.01, 0.1, usual_noise=0.02, usual_uncertainty=0.6, usual_spread=0.02)
    >>> found = relative_error(0.05, 11, Conditions(unseen=0.2), errors)
    >>> round(found.sd, 3), round(found.freedom)
    (0.112, 250)
    """
    if np.isfinite(conditions.boundary_sd_mm):
        known_sd = known_sd * max(conditions.boundary_sd_mm / _HELD_OUT_BOUNDARY_SD_MM, _SMALLEST_SHARE)
    # Two variances come from few values: of held-out participants, and of the members of the ensemble.
    held_out, agreement = known_sd**2, _beyond(conditions.spread, errors.usual_spread) ** 2
    pose_mm = _MANUAL_POSE_MM if np.isnan(conditions.pose_mm) else conditions.pose_mm
    noise = max(0.0, float(np.nan_to_num(conditions.noise - errors.usual_noise)))
    well_known = (
        (known_sd * _beyond(conditions.uncertainty / errors.usual_uncertainty, 1.0)) ** 2
        + (errors.pose_per_mm * pose_mm) ** 2
        + (errors.per_squared_noise * noise**2) ** 2
        + (_UNSEEN_ERROR * conditions.unseen) ** 2
    )
    total = held_out + agreement + well_known
    # Satterthwaite: the squared sum over the sum of each squared variance by its degrees of freedom.
    doubt = held_out**2 / max(participants - 1, 1) if participants else 0.0
    doubt += agreement**2 / max(conditions.members - 1, 1)
    return RelativeError(float(np.sqrt(total)), float(total**2 / doubt) if doubt > 0 else np.inf)


def _beyond(value: float, usual: float) -> float:
    """The standard deviation that, with the usual one, adds up to ``value``; 0 where that is smaller or unknown."""
    return float(np.sqrt(max(0.0, np.nan_to_num(value**2 - usual**2))))


def interval(volume_mm3: float, error: RelativeError) -> tuple[float, float]:
    """95 % interval of a volume, mm3; never below 0.

    >>> [round(end) for end in interval(1000.0, RelativeError(0.05, 10.0))]
    [895, 1118]
    >>> [round(end) for end in interval(1000.0, RelativeError(0.05, np.inf))]
    [907, 1103]
    """
    tail = (1 + _COVERAGE) / 2
    quantile = stdtrit(error.freedom, tail) if np.isfinite(error.freedom) else ndtri(tail)
    factor = float(np.exp(min(quantile * error.sd, 50.0)))
    return volume_mm3 / factor, volume_mm3 * factor


def volume_intervals(
    networks: Sequence[Network],
    volumes: Mapping[str, Volumes],
    volume_mm3: Mapping[str, float],
    measures: Mapping[str, float],
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the volumes of one scan, mm3; only where the error of the network was measured.

    A volume that is not published, since its boundary was not imaged, has none.

    Parameters
    ----------
    networks
        One for each structure.
    volumes
        Of each structure, by its name.
    volume_mm3
        The volume to publish of each structure, side and part.
    measures
        Measures of quality of the scan.
    """
    found = {}
    for network in networks:
        conditions = _conditions(network.task, volumes[network.task], measures)
        known = network.volume_error
        for name in volumes[network.task].soft_mm3:
            known_sd = known.parts.get(name, known.relative_sd if name == network.task else None)
            if known_sd is not None and np.isfinite(volume_mm3[name]):
                error = relative_error(known_sd, known.participants, conditions, load_reference().errors)
                found[name] = interval(volume_mm3[name], error)
    return found


def _conditions(structure: str, volumes: Volumes, measures: Mapping[str, float]) -> Conditions:
    """What increases the error of a structure's volume.

    How much each condition matters was measured for two structures; for others only the pose is taken into account.
    """
    if structure == HEAD_SIZE.name:
        return Conditions(unseen=measures["cavity_unseen"], boundary_sd_mm=volumes.cleaned.boundary_sd_mm)
    if structure != MAIN.name:
        return Conditions(pose_mm=measures["alignment_error_mm"])
    members = volumes.cleaned.member_wholes
    return Conditions(
        uncertainty=measures["border_entropy"],
        spread=measures["member_spread"],
        members=1 if members is None else len(members),
        pose_mm=measures["alignment_error_mm"],
        noise=measures["noise"],
        unseen=measures["unseen"],
    )
