"""Adjustment of p-values for the number of comparisons.

Tables of comparisons have Holm's adjustment (``p_holm``), which bounds the chance of any false finding. With many
structures a bound on the share of false findings may be wanted instead. Benjamini and Hochberg 1995 give it for tests
that are independent or positively dependent, as those of several volumes of the same people are; Benjamini and
Yekutieli 2001 give it under any dependence.
"""

from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from statsmodels.stats.multitest import multipletests

from hypodask.core.errors import ResultsError

Adjustment = Literal["holm", "fdr_bh", "fdr_by", "bonferroni", "sidak", "holm-sidak", "hommel"]


def adjust_p(table: pd.DataFrame, method: Adjustment = "fdr_bh", *, column: str = "p_recommended") -> pd.DataFrame:
    """A copy of a table with one more column: its p-values, adjusted for the number of its rows.

    Parameters
    ----------
    table
        One row per comparison, such as several tables of :func:`~hypodask.stats.compare_groups` one below the other.
    method
        One of ``holm``, ``fdr_bh``, ``fdr_by``, ``bonferroni``, ``sidak``, ``holm-sidak``, ``hommel``, as statsmodels
        names them.
    column
        Column of the p-values; missing ones stay missing and do not count.

    Returns
    -------
    DataFrame
        With the column ``p_`` and the method, such as ``p_fdr_bh``, right after ``column``. A column of that name is
        replaced.

    Raises
    ------
    ResultsError
        If there is no such method or column, a p-value lies outside 0 to 1, or ``column`` itself would be replaced.

    Examples
    --------
    >>> adjust_p(pd.DataFrame({"p": [0.01, np.nan, 0.04, 0.03]}), column="p")["p_fdr_bh"].round(3).tolist()
    [0.03, nan, 0.04, 0.04]
    """
    if method not in get_args(Adjustment):
        raise ResultsError(f"no adjustment {method!r}: choose one of {list(get_args(Adjustment))}")
    if column not in table:
        raise ResultsError(f"the table has no column {column!r}: choose one of {table.columns.tolist()}")
    if column == f"p_{method}":
        raise ResultsError(f"{column!r} would be replaced by its own adjustment: name the unadjusted p-values")
    p = table[column].to_numpy(dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ResultsError(f"column {column!r} holds values outside 0 to 1, needed p-values: name another column")
    found = table.drop(columns=f"p_{method}", errors="ignore")
    found.insert(found.columns.tolist().index(column) + 1, f"p_{method}", _adjusted(p, method))
    return found


def add_holm(table: pd.DataFrame, column: str = "p") -> pd.DataFrame:
    """Fill ``p_holm``, Holm's adjustment over all rows of a table; missing p-values stay missing and do not count."""
    return table.assign(p_holm=holm(table[column].to_numpy(dtype=np.float64)))


def holm(p: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
    """Holm's adjustment (1979) of the finite p-values; the others stay NaN and do not count.

    Own code, because every table needs it and statsmodels runs Python's garbage collector on each call, which takes up
    to a second.

    >>> holm(np.array([0.01, np.nan, 0.04, 0.03])).tolist()
    [0.03, nan, 0.06, 0.06]
    """
    adjusted, tested = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested])]
    # The smallest p counts n times, the next n - 1 times, and so on; none becomes smaller than the one before.
    at_least = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(at_least, 1.0)
    return adjusted


def _adjusted(p: Float[ndarray, " n"], method: Adjustment) -> Float[ndarray, " n"]:
    adjusted, tested = np.full(len(p), np.nan), np.isfinite(p)
    if tested.any():
        adjusted[tested] = multipletests(p[tested], method=method)[1]
    return adjusted
