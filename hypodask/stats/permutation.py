"""Groups compared by permutation, which assumes no distribution, only that scans are exchangeable between groups.

The statistic is Welch's t. Its permutation test is exact if the groups have the same distribution, and right for large
groups even if only their means are equal (Janssen 1997). A permutation test of the plain difference is not right where
the smaller group varies more.
"""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import special, stats

from hypodask.core.errors import ResultsError
from hypodask.stats.groups import FEWEST_SCANS, compare_groups
from hypodask.stats.multiplicity import holm
from hypodask.stats.samples import Sample, samples

RESAMPLES = 9999
"""Permutations drawn for groups that have more: p is known to 0.004 (2 standard errors) at 0.05."""

_VALUES_AT_ONCE = 2_000_000
"""Permuted values in memory at a time; not tuned."""

_KEPT = (
    *("group_a", "group_b", "n_a", "n_b", "mean_a", "mean_b", "difference", "difference_low", "difference_high"),
    *("percent", "t_welch", "hedges_g", "hedges_g_low", "hedges_g_high"),
)


def permute_groups(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    by: str = "group",
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every pair of groups by permutation.

    Parameters
    ----------
    ds, variable, structure, by, reference
        As in :func:`~hypodask.stats.compare_groups`.
    resamples
        Permutations that are drawn; if there are no more than these, all are used.
    seed
        Of the draws. The same seed gives the same p for the same values in any order of the scans.

    Returns
    -------
    DataFrame
        One row per pair: ``n, mean, difference, percent, t_welch, hedges_g`` with intervals, as ``compare_groups``
        gives them; ``p_permutation``, two-sided, with its standard error ``p_error`` (0 where ``exact``) and
        ``p_holm``; ``exact``, whether all ``permutations`` were used; ``missing``, ``excluded`` and ``reason``.

    Raises
    ------
    ResultsError
        If ``resamples`` is below 99, or as :func:`~hypodask.stats.compare_groups` does.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"age": ("scan", [61.0, 58.0, 66.0, 70.0, 50.0, 55.0, 49.0, 53.0])},
    ...     coords={"group": ("scan", ["PLS"] * 4 + ["control"] * 4)},
    ... )
    >>> permute_groups(ds, "age")[["permutations", "exact", "p_permutation"]].round(4).values.tolist()
    [[70, True, 0.0286]]
    """
    if resamples < 99:
        raise ResultsError(f"resamples is {resamples}, needed 99 or more: {RESAMPLES} is usual")
    table = compare_groups(ds, variable, structure=structure, by=by, reference=reference)
    found = samples(ds, variable, structure=structure, by=by)
    pairs = zip(table["group_a"], table["group_b"], strict=True)
    rows = pd.DataFrame([_permute(found[a], found[b], resamples, seed) for a, b in pairs], columns=_PERMUTED)
    rows.insert(1, "p_holm", holm(rows["p_permutation"].to_numpy(dtype=np.float64)))
    return pd.concat([table[list(_KEPT)], rows, table[_LEFT_OUT]], axis=1)


_PERMUTED = ["p_permutation", "p_error", "permutations", "exact"]
_LEFT_OUT = ["missing_a", "missing_b", "excluded_a", "excluded_b", "reason"]


def _permute(a: Sample, b: Sample, resamples: int, seed: int) -> dict[str, object]:
    if min(a.n, b.n) < FEWEST_SCANS or (a.constant and b.constant):
        return {"p_permutation": np.nan, "p_error": np.nan, "permutations": 0, "exact": False}
    # Sorted, so that neither the order of scans nor that of the groups changes which permutations are drawn.
    first, second = sorted((np.sort(a.values), np.sort(b.values)), key=lambda values: (len(values), values.tolist()))
    result = stats.permutation_test(
        (first, second),
        _welch_t,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _VALUES_AT_ONCE // (a.n + b.n)),
        rng=np.random.default_rng(seed),
    )
    all_of_them = float(special.binom(a.n + b.n, a.n))
    exact, p = all_of_them <= resamples, float(result.pvalue)
    error = 0.0 if exact else float(np.sqrt(p * (1 - p) / resamples))
    return {
        "p_permutation": p,
        "p_error": error,
        "permutations": int(all_of_them) if exact else resamples,
        "exact": exact,
    }


def _welch_t(a: Float[ndarray, "... n"], b: Float[ndarray, "... m"], axis: int) -> Float[ndarray, "..."]:
    error2 = a.var(axis=axis, ddof=1) / a.shape[axis] + b.var(axis=axis, ddof=1) / b.shape[axis]
    with np.errstate(divide="ignore"):
        t: ndarray = (a.mean(axis=axis) - b.mean(axis=axis)) / np.sqrt(error2)
    return np.asarray(t)
