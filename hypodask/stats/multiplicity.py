"""Adjustment of p-values for the number of comparisons.

Tables of comparisons carry Holm's (``p_holm``), which bounds the chance of any false finding. With many structures one
may rather bound the share of false findings among all: Benjamini and Hochberg 1995, for independent or positively
dependent tests, as volumes of one head are; Benjamini and Yekutieli 2001 under any dependence.
"""

from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from statsmodels.stats.multitest import multipletests

from hypodask.errors import ResultsError

Adjustment = Literal["holm", "fdr_bh", "fdr_by", "bonferroni", "sidak", "holm-sidak", "hommel"]


def adjust_p(table: pd.DataFrame, method: Adjustment = "fdr_bh", *, column: str = "p_recommended") -> pd.DataFrame:
    """Add the p-values of a table adjusted over all its rows.

    Parameters
    ----------
    table
        One row per comparison, such as several tables of :func:`~hypodask.stats.compare_groups` one below the other.
    method
        Name in ``statsmodels.stats.multitest.multipletests``: ``fdr_bh``, ``fdr_by``, ``holm`` and so on.
    column
        The p-values; missing ones stay missing and do not count.

    Returns
    -------
    DataFrame
        With the column ``p_`` and the method, such as ``p_fdr_bh``, after ``column``.

    Raises
    ------
    ResultsError
        If there is no such method or column, or a p-value lies outside 0 to 1.

    Examples
    --------
    >>> adjust_p(pd.DataFrame({"p": [0.01, np.nan, 0.04, 0.03]}), column="p")["p_fdr_bh"].round(3).tolist()
    [0.03, nan, 0.04, 0.04]
    """
    if method not in get_args(Adjustment):
        raise ResultsError(f"no adjustment {method!r}: choose one of {list(get_args(Adjustment))}")
    if column not in table:
        raise ResultsError(f"the table has no column {column!r}: choose one of {table.columns.tolist()}")
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

    Every table needs it, and statsmodels collects the garbage of the whole process each time: up to a second.

    >>> holm(np.array([0.01, np.nan, 0.04, 0.03])).tolist()
    [0.03, nan, 0.06, 0.06]
    """
    adjusted, tested = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested])]
    # Times as many as are left, and never less than one before.
    at_least = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(at_least, 1.0)
    return adjusted


def _adjusted(p: Float[ndarray, " n"], method: Adjustment) -> Float[ndarray, " n"]:
    adjusted, tested = np.full(len(p), np.nan), np.isfinite(p)
    if tested.any():
        adjusted[tested] = multipletests(p[tested], method=method)[1]
    return adjusted
