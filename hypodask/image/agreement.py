"""How far two segmentations of one scan, or two volumes of many scans, agree.

Segmentations: overlap, and distances between surfaces in millimetres. Volumes: intraclass correlation and limits of
agreement. They compare a network with a rater, two raters, or a scan with its repetition.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

FEWEST_SCANS = 3
"""With fewer scans a correlation and a spread say nothing: every line passes through two points."""

NORMAL_95 = 1.96
"""Standard deviations on either side of the mean that hold 95 % of normal differences."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of two masks, mm; not-a-number where a mask is empty."""

    hd95_mm: float
    """95 % of each surface lies within this distance of the other: the larger of both directions."""
    mean_mm: float
    """Mean over the voxels of both surfaces."""
    largest_mm: float
    """Hausdorff distance."""


@dataclass(frozen=True)
class VolumeAgreement:
    """Agreement of the volumes of several scans, measured in two ways."""

    scans: int
    icc: float
    """ICC(2,1): share of the variance that is between scans; a bias lowers it. Not-a-number if nothing varies."""
    bias_mm3: float
    """Mean of measured less reference."""
    low_mm3: float
    high_mm3: float
    """Limits of agreement: about 95 % of differences lie between them."""
    bias_percent: float
    """Mean difference relative to each scan's reference."""
    sd_percent: float
    """Standard deviation over scans of these relative differences."""
    r: float
    """Pearson's correlation; blind to a bias. Not-a-number if either does not vary."""


def dice(a: Bool[ndarray, "..."], b: Bool[ndarray, "..."]) -> float:
    """Dice overlap of two masks, 0 to 1; 1 when both are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False])).__round__(3)
    0.667
    """
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def surface_distances(
    a: Bool[ndarray, "..."], b: Bool[ndarray, "..."], spacing_mm: tuple[float, ...]
) -> SurfaceDistances:
    """Symmetric distances between the surfaces of two masks.

    A surface is the centres of those voxels of a mask that share a face with a voxel outside it; the edge of the
    array counts as outside. A surface's distance from the other is measured from each of its voxels to the nearest
    of the other's. With an empty mask there is no distance, and all are not-a-number: a network that finds nothing
    in one scan must not stop the validation of the others. The scan's ``dice`` is then 0.

    Parameters
    ----------
    a, b
        Masks of one shape.
    spacing_mm
        Distance between neighbouring voxels along each array axis, in the order of the axes: ``grid.spacing_mm``.

    Raises
    ------
    ValueError
        If shapes differ, or there is not one positive spacing for each axis.

    References
    ----------
    Definitions as in Maier-Hein et al., Nature Methods 2024 (Metrics Reloaded).

    Examples
    --------
    Two slices of 3 mm apart along the last axis:

    >>> a, b = np.zeros((2, 4, 4, 6), bool)
    >>> a[:, :, 1], b[:, :, 3] = True, True
    >>> surface_distances(a, b, (1.0, 1.0, 3.0)).largest_mm
    6.0
    """
    _check_masks(a, b, spacing_mm)
    if not (a.any() and b.any()):
        return SurfaceDistances(np.nan, np.nan, np.nan)
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    surface_a, surface_b = _surface(a[box]), _surface(b[box])
    from_a = ndimage.distance_transform_edt(~surface_b, sampling=spacing_mm)[surface_a]
    from_b = ndimage.distance_transform_edt(~surface_a, sampling=spacing_mm)[surface_b]
    return SurfaceDistances(
        hd95_mm=float(max(np.percentile(from_a, 95), np.percentile(from_b, 95))),
        mean_mm=float(np.concatenate([from_a, from_b]).mean()),
        largest_mm=float(max(from_a.max(), from_b.max())),
    )


def _check_masks(a: ndarray, b: ndarray, spacing_mm: tuple[float, ...]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape}, needed two on one grid: resample one of them")
    if len(spacing_mm) != a.ndim or not all(0 < spacing < np.inf for spacing in spacing_mm):
        raise ValueError(
            f"spacing {tuple(spacing_mm)} for masks of shape {a.shape}, needed one positive number of mm for each axis"
        )


def _surface(mask: Bool[ndarray, "..."]) -> Bool[ndarray, "..."]:
    return mask & ~ndimage.binary_erosion(mask)


def volume_agreement(measured_mm3: Float[ndarray, " scan"], reference_mm3: Float[ndarray, " scan"]) -> VolumeAgreement:
    """Intraclass correlation, bias and limits of agreement of two measurements of the same scans.

    Parameters
    ----------
    measured_mm3, reference_mm3
        Volume of each scan, in one order.

    Raises
    ------
    ValueError
        If there are fewer than three scans, not as many of both, or a volume that is not finite and positive.

    References
    ----------
    Shrout & Fleiss, Psychological Bulletin 1979 (ICC); Bland & Altman, Lancet 1986 (limits of agreement).

    Examples
    --------
    >>> reference = np.array([800.0, 900.0, 1000.0])
    >>> agreement = volume_agreement(reference * 1.1, reference)
    >>> round(agreement.bias_percent, 6), round(agreement.r, 6), round(agreement.icc, 3)
    (10.0, 1.0, 0.729)
    """
    measured, reference = np.asarray(measured_mm3, np.float64), np.asarray(reference_mm3, np.float64)
    _check_volumes(measured, reference)
    difference = measured - reference
    percent = 100 * difference / reference
    bias, half = float(difference.mean()), NORMAL_95 * float(difference.std(ddof=1))
    return VolumeAgreement(
        scans=len(measured),
        icc=intraclass_correlation(np.stack([measured, reference], axis=1)),
        bias_mm3=bias,
        low_mm3=bias - half,
        high_mm3=bias + half,
        bias_percent=float(percent.mean()),
        sd_percent=float(percent.std(ddof=1)),
        r=_correlation(measured, reference),
    )


def _check_volumes(measured: ndarray, reference: ndarray) -> None:
    if measured.ndim != 1 or measured.shape != reference.shape:
        raise ValueError(
            f"volumes of shapes {measured.shape} and {reference.shape}, needed one of each kind for every scan"
        )
    if len(measured) < FEWEST_SCANS:
        raise ValueError(
            f"{len(measured)} scans, needed at least {FEWEST_SCANS}: agreement is about how differences vary over scans"
        )
    for name, volumes in (("measured", measured), ("reference", reference)):
        if not (np.isfinite(volumes) & (volumes > 0)).all():
            raise ValueError(f"{name} volumes {volumes.tolist()}, needed positive numbers: leave failed scans out")


def _correlation(a: Float[ndarray, " scan"], b: Float[ndarray, " scan"]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else np.nan


def intraclass_correlation(ratings: Float[ndarray, "scan rater"]) -> float:
    """ICC(2,1) of Shrout & Fleiss 1979: two-way random effects, absolute agreement, a single rating.

    At most 1; below 0 where raters differ more on one scan than scans differ; not-a-number if all ratings are equal.

    Raises
    ------
    ValueError
        If it is not a table of at least two scans by two raters.

    Examples
    --------
    >>> round(intraclass_correlation(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 4.0]])), 3)
    0.9
    """
    if ratings.ndim != 2 or min(ratings.shape) < 2:
        raise ValueError(f"ratings of shape {ratings.shape}, needed at least two scans (rows) by two raters (columns)")
    n, k = ratings.shape
    scans, raters, centre = ratings.mean(axis=1), ratings.mean(axis=0), ratings.mean()
    residual = ratings - scans[:, None] - raters + centre
    between_scans = k * ((scans - centre) ** 2).sum() / (n - 1)
    between_raters = n * ((raters - centre) ** 2).sum() / (k - 1)
    error = (residual**2).sum() / ((n - 1) * (k - 1))
    total = between_scans + (k - 1) * error + k * (between_raters - error) / n
    return float((between_scans - error) / total) if np.ptp(ratings) else np.nan
