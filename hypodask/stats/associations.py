"""A volume against a covariate: age, disease duration, progression.

Kassubek et al. 2025: Pearson's correlation after a test for normality. Spearman's stands beside it and is
recommended where either variable is not normal.
"""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from hypodask.stats.groups import ALPHA, FEWEST_SCANS, MOST_FOR_SHAPIRO, looks_normal, shapiro_p
from hypodask.stats.multiplicity import add_holm
from hypodask.stats.samples import group_labels, group_names, is_constant, usable_scans, values_of

COLUMNS = (
    *("group", "variable", "covariate", "n", "missing", "r", "r_low", "r_high", "p", "rho", "p_spearman"),
    *("p_shapiro_variable", "p_shapiro_covariate", "normal", "test", "p_recommended", "p_holm", "reason"),
)


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
        95 % interval (Fisher's z) and ``p``; ``rho, p_spearman``; the p of both Shapiro-Wilk tests, ``normal`` and
        the ``test`` that follows, ``pearson`` or ``spearman``, with ``p_recommended`` and ``p_holm`` over the rows;
        ``reason`` why there is no result. Fewer than three scans or a constant give NaN.

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
    return add_holm(pd.DataFrame(rows, columns=list(COLUMNS)), "p_recommended")


def _correlation(y: Float[ndarray, " n"], x: Float[ndarray, " n"]) -> dict[str, object]:
    row: dict[str, object] = {"n": len(x), "normal": False, "test": "", "reason": _reason(y, x)}
    if row["reason"]:
        return row
    pearson, spearman = stats.pearsonr(y, x), stats.spearmanr(y, x)
    interval = pearson.confidence_interval(1 - ALPHA) if len(x) > FEWEST_SCANS else (np.nan, np.nan)
    p_y, p_x = shapiro_p(y), shapiro_p(x)
    normal = looks_normal(y, p_y) and looks_normal(x, p_x)
    row |= {"r": pearson.statistic, "r_low": interval[0], "r_high": interval[1], "p": pearson.pvalue}
    row |= {"rho": spearman.statistic, "p_spearman": spearman.pvalue}
    row |= {"p_shapiro_variable": p_y, "p_shapiro_covariate": p_x, "normal": normal}
    row |= {"test": "pearson" if normal else "spearman", "p_recommended": row["p" if normal else "p_spearman"]}
    return row | {"reason": "too many scans for Shapiro-Wilk" if len(x) > MOST_FOR_SHAPIRO else ""}


def _reason(y: Float[ndarray, " n"], x: Float[ndarray, " n"]) -> str:
    if len(x) < FEWEST_SCANS:
        return f"{len(x)} usable scans have both values, a correlation needs {FEWEST_SCANS}"
    if is_constant(x):
        return "the covariate is the same in every scan"
    return "the variable is the same in every scan" if is_constant(y) else ""
