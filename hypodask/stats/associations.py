"""A volume against a covariate: age, disease duration, progression.

Kassubek et al. 2025: Pearson's correlation after a test for normality. Spearman's is given too and is recommended
where either variable is not normal. Its p is exact for few scans: the usual approximation by Student's t gives 1e-24
for five scans in perfect order, although one order in 60 is as extreme.
"""

import math

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from hypodask.stats.groups import ALPHA, FEWEST_SCANS, MOST_FOR_SHAPIRO, looks_normal, shapiro_p
from hypodask.stats.multiplicity import add_holm
from hypodask.stats.samples import group_labels, group_names, is_constant, usable_scans, values_of

_COLUMNS = (
    *("group", "variable", "covariate", "n", "missing", "r", "r_low", "r_high", "p", "rho", "p_spearman"),
    *("spearman_method", "p_shapiro_variable", "p_shapiro_covariate", "normal", "test", "p_recommended", "p_holm"),
    "reason",
)

_FEWEST_FOR_T = 10
"""For fewer scans all orders are tried, as R's ``cor.test`` does."""

_FEWEST_TIED_FOR_T = 50
"""For fewer scans with ties, random orders are drawn; from here on the approximation by t is as good with ties."""

_PERMUTATIONS = 99_999
"""Random orders drawn; a p near 0.05 is then right to 0.0014."""


def correlate(
    ds: xr.Dataset, variable: str, covariate: str, *, structure: str | None = None, by: str | None = None
) -> pd.DataFrame:
    """Correlate a variable with a covariate, over all scans or within each group.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or lack either value do not count.
    variable
        Such as ``normalized_volume_mm3``.
    covariate
        Coordinate or variable with one number per scan, such as ``age``.
    structure
        Such as ``hypothalamus``; needed when the variable has one value per structure.
    by
        Coordinate that holds the group; None for all scans together.

    Returns
    -------
    DataFrame
        One row per group: ``n``; ``missing``, the usable scans without one of the values; ``r`` (Pearson) with its
        95 % interval (Fisher's z) and ``p``; ``rho, p_spearman`` and the ``spearman_method`` of that p (``exact`` for
        fewer than 10 scans, ``permutation`` for fewer than 50 with ties, else ``t``); the p of both Shapiro-Wilk tests,
        ``normal`` and the recommended ``test``, ``pearson`` or ``spearman``, with its ``p_recommended`` and ``p_holm``
        over the rows; ``reason`` why there is no result. Fewer than three scans or a constant give NaN.

    Raises
    ------
    ResultsError
        If the variable, covariate, structure or group column is not there, or the covariate is text.

    Examples
    --------
    >>> ds = xr.Dataset({"volume": ("scan", [9.0, 8.0, 8.0, 6.0])}, coords={"age": ("scan", [40, 50, 60, 70])})
    >>> float(correlate(ds, "volume", "age")["r"].iloc[0].round(3))
    -0.923
    """
    x, y = values_of(ds, covariate), values_of(ds, variable, structure)
    labels, usable = group_labels(ds, by), usable_scans(ds)
    both = usable & np.isfinite(x) & np.isfinite(y)
    rows = []
    for name in group_names(labels):
        counted = both & (labels == name)
        missing = int((usable & (labels == name)).sum() - counted.sum())
        named = {"group": name, "variable": variable, "covariate": covariate, "missing": missing}
        rows.append(named | _correlation(y[counted], x[counted]))
    return add_holm(pd.DataFrame(rows, columns=list(_COLUMNS)), "p_recommended")


def _correlation(y: Float[ndarray, " n"], x: Float[ndarray, " n"]) -> dict[str, object]:
    row: dict[str, object] = {"n": len(x), "normal": False, "test": "", "spearman_method": ""}
    row["reason"] = _reason(y, x)
    if row["reason"]:
        return row
    pearson, (rho, p_spearman, method) = stats.pearsonr(y, x), _spearman(y, x)
    interval = pearson.confidence_interval(1 - ALPHA) if len(x) > FEWEST_SCANS else (np.nan, np.nan)
    p_y, p_x = shapiro_p(y), shapiro_p(x)
    normal = looks_normal(y, p_y) and looks_normal(x, p_x)
    row |= {"r": pearson.statistic, "r_low": interval[0], "r_high": interval[1], "p": pearson.pvalue}
    row |= {"rho": rho, "p_spearman": p_spearman, "spearman_method": method}
    row |= {"p_shapiro_variable": p_y, "p_shapiro_covariate": p_x, "normal": normal}
    row |= {"test": "pearson" if normal else "spearman", "p_recommended": row["p" if normal else "p_spearman"]}
    return row | {"reason": "too many scans for Shapiro-Wilk" if len(x) > MOST_FOR_SHAPIRO else ""}


def _spearman(y: Float[ndarray, " n"], x: Float[ndarray, " n"]) -> tuple[float, float, str]:
    """Spearman's rho, its p and how that was found."""
    approximate = stats.spearmanr(y, x)
    rho = float(approximate.statistic)
    has_ties = min(len(np.unique(y)), len(np.unique(x))) < len(x)
    if len(x) >= (_FEWEST_TIED_FOR_T if has_ties else _FEWEST_FOR_T):
        return rho, float(approximate.pvalue), "t"
    ranks, of_x = stats.rankdata(y), stats.rankdata(x)
    found = stats.permutation_test(
        (ranks,),
        lambda ordered, axis: (ordered * of_x).sum(axis=axis),
        permutation_type="pairings",
        # scipy tries all orders if it may draw as many as there are.
        n_resamples=_PERMUTATIONS if len(x) >= _FEWEST_FOR_T else math.factorial(len(x)),
        vectorized=True,
        batch=20_000,
        rng=0,
    )
    return rho, float(found.pvalue), "permutation" if len(x) >= _FEWEST_FOR_T else "exact"


def _reason(y: Float[ndarray, " n"], x: Float[ndarray, " n"]) -> str:
    if len(x) < FEWEST_SCANS:
        return f"{len(x)} usable scans have both values, a correlation needs {FEWEST_SCANS}"
    if is_constant(x):
        return "the covariate is the same in every scan"
    return "the variable is the same in every scan" if is_constant(y) else ""
