"""How far a volume may be from the truth: the error on held-out heads, and what makes one scan worse than those.

The relative error of a volume is taken as a sum of independent parts. The first was measured when the network was
trained: its error on heads that it had not learnt from, with the pose and the noise of sound scans in it. The others
are the excess of one scan over sound ones: a border that is less certain, networks of an ensemble that disagree more,
a pose that is less sure, noise, and what was not imaged. A volume cannot be negative and errors are relative, so the
interval is one of its logarithm. Few heads stand behind the first part, which Student's t allows for; the degrees of
freedom of the sum are Satterthwaite's (Biometrics Bulletin 1946).

The interval is about the outlines that the network learnt, not about the tissue: how one protocol differs from another
is not in it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from hypodask.reference import VolumeErrors

COVERAGE = 0.95

UNSEEN_ERROR = 0.5
"""Standard deviation of what is inferred where nothing was imaged, relative to it; a guess."""

MANUAL_POSE_MM = 0.5
"""Error to expect of a commissure that a person placed; two raters of public scans were 0.2 mm apart on average, and
others than they may be less careful."""


@dataclass(frozen=True)
class Conditions:
    """What of a scan bears on the error of its volume; by default a sound scan's."""

    uncertainty: float = float("nan")
    """Entropy of the posteriors around the outline, bits; not-a-number counts as usual."""
    spread: float = float("nan")
    """Relative standard deviation of the volume over the members of an ensemble, likewise."""
    members: int = 1
    pose_mm: float = 0.0
    """Error to expect of a commissure; not-a-number where a person placed them."""
    noise: float = float("nan")
    """In units of the contrast; not-a-number counts as usual."""
    unseen: float = 0.0
    """Share of the structure that was not imaged."""


@dataclass(frozen=True)
class RelativeError:
    """Standard deviation of the logarithm of a volume, and its degrees of freedom."""

    sd: float
    freedom: float


def relative_error(known_sd: float, heads: int | None, conditions: Conditions, errors: VolumeErrors) -> RelativeError:
    """Error to expect of one volume.

    Parameters
    ----------
    known_sd
        Relative error on held-out heads, their systematic error in it.
    heads
        How many they were; None where nobody said, which is taken as many.
    conditions, errors
        What is unusual about the scan, and how much that matters.

    Examples
    --------
    >>> errors = VolumeErrors(0.01, 0.1, usual_noise=0.02, usual_uncertainty=0.6, usual_spread=0.02)
    >>> found = relative_error(0.05, 11, Conditions(unseen=0.2), errors)
    >>> round(found.sd, 3), round(found.freedom)
    (0.112, 250)
    """
    # Of held-out heads and of members only few stand behind a variance.
    head, agreement = known_sd**2, _beyond(conditions.spread, errors.usual_spread) ** 2
    pose_mm = MANUAL_POSE_MM if np.isnan(conditions.pose_mm) else conditions.pose_mm
    noise = max(0.0, float(np.nan_to_num(conditions.noise - errors.usual_noise)))
    sure = (
        (known_sd * _beyond(conditions.uncertainty / errors.usual_uncertainty, 1.0)) ** 2
        + (errors.pose_per_mm * pose_mm) ** 2
        + (errors.per_squared_noise * noise**2) ** 2
        + (UNSEEN_ERROR * conditions.unseen) ** 2
    )
    total = head + agreement + sure
    doubt = (head**2 / max(heads - 1, 1) if heads else 0.0) + agreement**2 / max(conditions.members - 1, 1)
    return RelativeError(float(np.sqrt(total)), float(total**2 / doubt) if doubt > 0 else np.inf)


def _beyond(value: float, usual: float) -> float:
    """What has to be added in quadrature to the usual to get the value; 0 where it is below, or unknown."""
    return float(np.sqrt(max(0.0, np.nan_to_num(value**2 - usual**2))))


def interval(volume_mm3: float, error: RelativeError) -> tuple[float, float]:
    """95 % interval of a volume, mm3; never below 0.

    >>> [round(end) for end in interval(1000.0, RelativeError(0.05, 10.0))]
    [895, 1118]
    >>> [round(end) for end in interval(1000.0, RelativeError(0.05, np.inf))]
    [907, 1103]
    """
    tail = (1 + COVERAGE) / 2
    quantile = stdtrit(error.freedom, tail) if np.isfinite(error.freedom) else ndtri(tail)
    factor = float(np.exp(min(quantile * error.sd, 50.0)))
    return volume_mm3 / factor, volume_mm3 * factor
