"""Groups compared by volumes that each have their own uncertainty.

The 95 % interval of every volume goes from ``volume_low_mm3`` to ``volume_high_mm3``. The variance in a group then has
two parts: between people, which is estimated, and from measurement, which is known. As in a random-effects
meta-analysis, a volume is weighted by the inverse of the sum of both variances, so that a poor scan counts less and
need not be excluded. The standard error is that of Knapp and Hartung with Student's t. It is never smaller than the
errors of measurement imply, and never smaller than a robust one that does not depend on the weights. It is therefore
valid also if the intervals of the volumes are too narrow or too wide.

The errors of measurement are taken as independent between scans. An error that all scans share, such as a bias of the
network, is not in the interval of a difference.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from scipy.optimize import brentq

from hypodask.core.structures import HEAD_SIZE
from hypodask.stats.groups import ALPHA, FEWEST_SCANS, pairs, repeated_notes
from hypodask.stats.multiplicity import add_holm
from hypodask.stats.samples import Sample, group_labels, group_names, is_constant, samples, usable_scans, values_of

_COLUMNS = (
    *("group_a", "group_b", "n_a", "n_b", "mean_a", "mean_a_low", "mean_a_high", "mean_b", "mean_b_low", "mean_b_high"),
    *("between_sd_a", "between_sd_b", "measured_sd_a", "measured_sd_b", "reliability_a", "reliability_b"),
    *("difference", "difference_low", "difference_high", "percent", "t", "df", "p", "p_holm"),
    *("missing_a", "missing_b", "excluded_a", "excluded_b", "reason"),
)


@dataclass(frozen=True)
class _WeightedMean:
    """Mean of values that vary between people and were measured with known errors."""

    n: int
    mean: float
    error: float
    """Standard error of the mean."""
    df: float
    """Degrees of freedom of the error: ``n - 1``, or fewer if few values have most of the weight."""
    between_sd: float
    """Standard deviation between people; 0 if the errors of measurement explain the whole spread."""
    measured_sd: float
    """Root mean square of the errors of measurement."""

    @property
    def reliability(self) -> float:
        """Share of the variance that is between people, from 0 to 1."""
        return self.between_sd**2 / (self.between_sd**2 + self.measured_sd**2)


def _weighted_mean(values: Float[ndarray, " n"], errors: Float[ndarray, " n"]) -> _WeightedMean:
    """Mean of a random-effects model.

    Parameters
    ----------
    values
        One per person, two or more, not all the same.
    errors
        Standard deviation of the error of measurement of each value, in the same unit, above 0.

    References
    ----------
    Paule & Mandel, Journal of Research of the National Bureau of Standards 1982 (variance between people); Knapp &
    Hartung, Statistics in Medicine 2003 (standard error). If it is larger, the standard error HC2 of MacKinnon & White,
    Journal of Econometrics 1985, is used, which is valid also if the stated errors are wrong, with the degrees of
    freedom of Bell & McCaffrey, Survey Methodology 2002.

    Examples
    --------
    >>> found = _weighted_mean(np.array([800.0, 900.0, 820.0, 860.0]), np.array([20.0, 90.0, 20.0, 20.0]))
    >>> round(found.mean, 1), round(found.between_sd, 1)
    (828.9, 19.6)
    """
    between = _between_variance(values, errors**2)
    weights = 1 / (between + errors**2)
    mean = float((weights * values).sum() / weights.sum())
    spread = float((weights * (values - mean) ** 2).sum() / (len(values) - 1))
    # A spread smaller than the errors is chance, or the intervals are too wide: it must not make the error smaller.
    by_model = max(spread, 1.0) / float(weights.sum())
    robust, robust_df = _sandwich(values - mean, weights / weights.sum())
    variance, df = (by_model, len(values) - 1.0) if by_model >= robust else (robust, robust_df)
    measured = float(np.sqrt((errors**2).mean()))
    return _WeightedMean(len(values), mean, float(np.sqrt(variance)), df, float(np.sqrt(between)), measured)


def _sandwich(residuals: Float[ndarray, " n"], shares: Float[ndarray, " n"]) -> tuple[float, float]:
    """Variance of a weighted mean from its residuals, valid for any weights (HC2), and its degrees of freedom."""
    # Satterthwaite's, from mean and variance of the sum of squared residuals, which are correlated by the common mean.
    moved = shares**2 / (1 - shares)
    df = 1 / float((shares**2).sum() + moved.sum() ** 2 - (moved**2).sum())
    return float((moved * residuals**2).sum()), df


def _between_variance(values: Float[ndarray, " n"], known: Float[ndarray, " n"]) -> float:
    """The variance between people at which the weighted sum of squares equals its degrees of freedom."""

    def excess(between: float) -> float:
        weights = 1 / (between + known)
        mean = (weights * values).sum() / weights.sum()
        return float((weights * (values - mean) ** 2).sum() - (len(values) - 1))

    if excess(0.0) <= 0:
        return 0.0
    # If the variance between people were the sum of squares, the weighted sum would be below 1: an upper bound.
    return float(brentq(excess, 0.0, float(((values - values.mean()) ** 2).sum()), xtol=1e-12 * float(values.var())))


def compare_measured(
    ds: xr.Dataset,
    variable: str = "volume_mm3",
    *,
    structure: str,
    by: str = "group",
    reference: str | None = None,
) -> pd.DataFrame:
    """Compare every pair of groups by volumes of different uncertainty.

    Parameters
    ----------
    ds
        Results with ``volume_low_mm3`` and ``volume_high_mm3``; scans that are failed, skipped, ``excluded`` or
        without value, interval or group do not count.
    variable
        ``volume_mm3`` or ``normalized_volume_mm3``, whose uncertainty is that of the volume and of the ICV.
    structure
        Such as ``hypothalamus``.
    by
        Coordinate that holds the group.
    reference
        Name of the reference group, as in :func:`~hypodask.stats.compare_groups`.

    Returns
    -------
    DataFrame
        One row per pair: weighted ``mean_a`` and ``mean_b`` with 95 % intervals; ``between_sd``, the standard deviation
        between people, ``measured_sd``, that of the measurement, and ``reliability``, the share of the variance that is
        between people; ``difference`` with interval, ``percent`` of ``mean_b``, ``t, df`` (Satterthwaite), ``p`` and
        ``p_holm``; ``missing`` (also those without an interval) and ``excluded`` scans; ``reason`` why there is no
        result.

    Raises
    ------
    ResultsError
        If the variable, its intervals, the structure, the group column or the reference group is not there.

    Examples
    --------
    >>> volume = np.array([[820.0], [790.0], [850.0], [905.0], [860.0], [880.0]])
    >>> dims = ("scan", "structure")
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (dims, volume), "volume_low_mm3": (dims, volume / 1.1),
    ...      "volume_high_mm3": (dims, volume * 1.1)},
    ...     coords={"structure": ["hypothalamus"], "group": ("scan", ["PLS"] * 3 + ["control"] * 3)},
    ... )
    >>> compare_measured(ds, structure="hypothalamus").round(1)[["difference", "between_sd_a"]].values.tolist()
    [[-61.7, 0.0]]
    """
    relative = _relative_errors(ds, variable, structure)
    values = np.where(np.isfinite(relative), values_of(ds, variable, structure), np.nan)
    found = samples(ds.assign({variable: ("scan", values)}), variable, structure=None, by=by)
    names = group_names(np.array(list(found), dtype=object), reference)
    labels = np.where(usable_scans(ds) & np.isfinite(values), group_labels(ds, by), "")
    means = {name: _group_mean(values[labels == name], relative[labels == name]) for name in names}
    rows = [
        _describe(found[a], means[a], "a")
        | _describe(found[b], means[b], "b")
        | _difference_of_means(means[a], means[b])
        | {"reason": _reason(found[a], means[a], found[b], means[b])}
        for a, b in pairs(names, reference)
    ]
    return add_holm(pd.DataFrame(rows, columns=list(_COLUMNS)))


def _relative_errors(ds: xr.Dataset, variable: str, structure: str) -> Float[ndarray, " scan"]:
    """Standard deviation of the error of each volume relative to it; NaN where it has no interval.

    Intervals are symmetric in the logarithm; a volume divided by the ICV has the errors of both.

    Examples
    --------
    >>> dims = ("scan", "structure")
    >>> ds = xr.Dataset(
    ...     {"volume_low_mm3": (dims, [[800 / 1.2]]), "volume_high_mm3": (dims, [[800 * 1.2]])},
    ...     coords={"structure": ["hypothalamus"]},
    ... )
    >>> _relative_errors(ds, "volume_mm3", "hypothalamus").round(3).tolist()
    [0.093]
    """
    own = _log_sd(ds, structure)
    return np.hypot(own, _log_sd(ds, HEAD_SIZE.name)) if variable == "normalized_volume_mm3" else own


def _log_sd(ds: xr.Dataset, structure: str) -> Float[ndarray, " scan"]:
    low, high = values_of(ds, "volume_low_mm3", structure), values_of(ds, "volume_high_mm3", structure)
    ratio = np.divide(high, low, out=np.full(len(low), np.nan), where=(low > 0) & (high > low))
    return np.log(ratio) / (2 * stats.norm.ppf(1 - ALPHA / 2))


def _group_mean(values: Float[ndarray, " n"], relative: Float[ndarray, " n"]) -> _WeightedMean | None:
    """Mean of a group from relative errors; None for fewer than three scans or a constant."""
    if len(values) < FEWEST_SCANS or is_constant(values):
        return None
    # Errors are relative to the mean of the group. Relative to each volume, small volumes would get more weight.
    return _weighted_mean(values, relative * abs(values.mean()))


def _describe(sample: Sample, found: _WeightedMean | None, side: str) -> dict[str, object]:
    row: dict[str, object] = {f"group_{side}": sample.group, f"n_{side}": sample.n}
    row |= {f"missing_{side}": sample.missing, f"excluded_{side}": sample.excluded}
    if found is None:
        return row
    reach = found.error * float(stats.t.ppf(1 - ALPHA / 2, found.df))
    row |= {f"mean_{side}": found.mean, f"mean_{side}_low": found.mean - reach, f"mean_{side}_high": found.mean + reach}
    row |= {f"between_sd_{side}": found.between_sd, f"measured_sd_{side}": found.measured_sd}
    return row | {f"reliability_{side}": found.reliability}


def _difference_of_means(a: _WeightedMean | None, b: _WeightedMean | None) -> dict[str, float]:
    """Difference with interval, percent of b, ``t, df, p``; empty if a mean is missing."""
    if a is None or b is None:
        return {}
    difference, error2 = a.mean - b.mean, a.error**2 + b.error**2
    df = error2**2 / (a.error**4 / a.df + b.error**4 / b.df)
    t, reach = difference / np.sqrt(error2), np.sqrt(error2) * stats.t.ppf(1 - ALPHA / 2, df)
    row = {"difference": difference, "difference_low": difference - reach, "difference_high": difference + reach}
    row |= {"percent": 100 * difference / b.mean if b.mean else np.nan, "t": t, "df": df}
    return row | {"p": float(2 * stats.t.sf(abs(t), df))}


def _reason(a: Sample, mean_a: _WeightedMean | None, b: Sample, mean_b: _WeightedMean | None) -> str:
    notes = [
        f"{s.group} has fewer than {FEWEST_SCANS} usable scans with an interval, or they are all the same"
        for s, found in ((a, mean_a), (b, mean_b))
        if found is None
    ]
    notes += repeated_notes(a, b)
    return "; ".join(notes)
