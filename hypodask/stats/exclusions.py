"""How exclusions change a comparison, and whether one group has more of them than another.

Kassubek et al. 2025 exclude by group: 5 of 107 controls, 21 of 411 ALS, 1 of 46 PLS. A difference that only one rule of
exclusion finds is a finding about the rule.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int
from numpy import ndarray
from scipy import stats
from scipy.stats.contingency import odds_ratio

from hypodask.core.errors import ResultsError
from hypodask.stats.groups import ALPHA, compare_groups
from hypodask.stats.multiplicity import holm
from hypodask.stats.outliers import find_far_outliers, find_low_quality, find_outliers
from hypodask.stats.samples import done_scans, excluded_scans, group_labels, group_names, require

Rule = Callable[[xr.Dataset], xr.Dataset]
"""Marks scans as ``excluded``, as :func:`~hypodask.stats.find_outliers` does."""

_SMALLEST_EXPECTED = 5
"""Expected count below which the chi-square distribution is a poor approximation (Cochran 1954)."""

_TABLES = 9999
"""Random tables with the same margins, drawn where the chi-square distribution is a poor approximation."""

_COLUMNS = (
    *("groups", "excluded", "scans", "percent", "percent_difference", "test", "statistic", "df", "p", "p_holm"),
    *("effect", "effect_name", "effect_low", "effect_high", "reason"),
)


def _rules_of(ds: xr.Dataset, by: str) -> dict[str, Rule]:
    """No exclusions, the paper's rule, and rules that ignore the groups; quality if scans have one."""
    rules: dict[str, Rule] = {
        "nobody": _exclude_nobody,
        "iqr by group": partial(find_outliers, by=by),
        "iqr over all": partial(find_outliers, by=None),
        "robust z by group": partial(find_far_outliers, by=by),
        "robust z over all": find_far_outliers,
    }
    if "quality" in ds.variables and np.isfinite(ds["quality"].to_numpy()[done_scans(ds)]).any():
        rules["quality"] = find_low_quality
    return rules


def _exclude_nobody(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(excluded=("scan", ~done_scans(ds)))


def compare_exclusions(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    by: str = "group",
    reference: str | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> pd.DataFrame:
    """Compare the groups without exclusions and under each rule of exclusion.

    Parameters
    ----------
    ds, variable, structure, by, reference
        As in :func:`~hypodask.stats.compare_groups`; each rule replaces an ``excluded`` that is already there.
    rules
        Names and functions that mark ``excluded``, such as ``partial(find_outliers, quantiles="weibull")``; the others
        are compared with the first. By default nobody, IQR and robust z by group and over all, and quality.

    Returns
    -------
    DataFrame
        ``rule`` and the columns of ``compare_groups``, one row per rule and pair; ``reason`` also says where a rule
        moves the p across 0.05, or changes the sign of a significant difference.

    Raises
    ------
    ResultsError
        If there are no rules, or something is missing that a rule or the comparison needs.

    Examples
    --------
    >>> volumes = np.array([800.0, 805, 810, 815, 2000, 900, 905, 910, 915, 920])[:, None]
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volumes)},
    ...     coords={"structure": ["icv"], "group": ("scan", ["PLS"] * 5 + ["ALS"] * 5)},
    ... )
    >>> paper = partial(find_outliers, structures=["icv"])
    >>> table = compare_exclusions(ds, "volume_mm3", structure="icv", rules={"nobody": _exclude_nobody, "paper": paper})
    >>> table[["rule", "n_b", "difference"]].values.tolist()
    [['nobody', 5, -136.0], ['paper', 4, 102.5]]
    """
    chosen = _rules_of(ds, by) if rules is None else rules
    if not chosen:
        raise ResultsError("no rules of exclusion were given: leave out rules= for the usual ones")
    tables = []
    for name, rule in chosen.items():
        marked = rule(ds.drop_vars(["excluded", "outlier"], errors="ignore"))
        table = compare_groups(marked, variable, structure=structure, by=by, reference=reference)
        table.insert(0, "rule", name)
        tables.append(table)
    first = tables[0]
    return pd.concat([first, *(_with_change(table, first) for table in tables[1:])], ignore_index=True)


def _with_change(table: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    changed = _conclusions(table) != _conclusions(first)
    note = f"another conclusion than with {first['rule'].iloc[0]!r}" if len(first) else ""
    notes = [(text, note if new else "") for text, new in zip(table["reason"], changed, strict=True)]
    return table.assign(reason=["; ".join(filter(None, pair)) for pair in notes])


def _conclusions(table: pd.DataFrame) -> ndarray:
    """For each comparison -1 significantly less, 1 significantly more, 0 neither, 9 not tested."""
    p = table["p_recommended"]
    concluded: ndarray = np.where(p.notna(), np.where(p < ALPHA, np.sign(table["difference"]), 0), 9)
    return concluded


def check_exclusions(ds: xr.Dataset, *, by: str = "group", seed: int = 0) -> pd.DataFrame:
    """Test whether the share of excluded scans depends on the group.

    Parameters
    ----------
    ds
        Results after one of the functions that mark ``excluded``; scans that are not done or have no group do not
        count.
    by
        Coordinate that holds the group.
    seed
        Of the random tables that are drawn where an expected count is below 5.

    Returns
    -------
    DataFrame
        A row for all groups at once and, where there are three or more, one for each pair: ``excluded`` of ``scans``
        and ``percent`` in each group, in the order of ``groups``; ``percent_difference`` of a pair, first minus second;
        for all groups ``chi-square`` without continuity correction with Cramer's V, its p from random tables with the
        same margins where an expected count is below 5; for a pair ``fisher`` with the conditional odds ratio and its
        exact 95 % interval, and ``p_holm`` over the pairs; ``reason`` why there is no p.

    Raises
    ------
    ResultsError
        If no rule has marked ``excluded`` yet, or the group column is not there.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"excluded": ("scan", [True] * 3 + [False] * 7)}, coords={"group": ("scan", ["a"] * 5 + ["b"] * 5)}
    ... )
    >>> check_exclusions(ds)[["groups", "excluded", "test"]].values.tolist()
    [['a, b', '3, 0', 'fisher']]
    """
    require(ds, "excluded")
    labels, done = group_labels(ds, by), done_scans(ds)
    names = group_names(labels[done])
    excluded = excluded_scans(ds)
    members = [done & (labels == name) for name in names]
    counts = np.array([((own & excluded).sum(), (own & ~excluded).sum()) for own in members]).reshape(-1, 2)
    pairs = [list(pair) for pair in combinations(range(len(names)), 2)]
    rows = [] if len(names) == 2 else [_row(names, counts) | _chi_square(counts, seed)]
    rows += [_row([names[i] for i in pair], counts[pair]) | _fisher(counts[pair]) for pair in pairs]
    table = pd.DataFrame(rows, columns=[name for name in _COLUMNS if name != "p_holm"])
    paired = np.where(table["test"] == "fisher", table["p"], np.nan).astype(np.float64)
    table.insert(_COLUMNS.index("p_holm"), "p_holm", holm(paired))
    return table


def _row(names: list[str], counts: Int[ndarray, "group 2"]) -> dict[str, object]:
    scans = counts.sum(axis=1)
    percent = 100 * counts[:, 0] / scans
    listed = {
        "groups": ", ".join(names),
        "excluded": ", ".join(map(str, counts[:, 0])),
        "scans": ", ".join(map(str, scans)),
        "percent": ", ".join(f"{share:.1f}" for share in percent),
    }
    return listed | {"percent_difference": percent[0] - percent[1] if len(names) == 2 else np.nan, "reason": ""}


def _untestable(counts: Int[ndarray, "group 2"]) -> str:
    if len(counts) < 2:
        return f"{len(counts)} groups have done scans, a test needs 2"
    if not counts[:, 0].any():
        return "no scan was excluded"
    return "" if counts[:, 1].any() else "every scan was excluded"


def _chi_square(counts: Int[ndarray, "group 2"], seed: int) -> dict[str, object]:
    if reason := _untestable(counts):
        return {"test": "chi-square", "reason": reason}
    result = stats.chi2_contingency(counts, correction=False)
    effect = float(np.sqrt(result.statistic / counts.sum()))
    row = {"test": "chi-square", "statistic": float(result.statistic), "df": int(result.dof), "p": float(result.pvalue)}
    row |= {"effect": effect, "effect_name": "Cramer's V"}
    if result.expected_freq.min() >= _SMALLEST_EXPECTED:
        return row
    note = f"an expected count is {result.expected_freq.min():.1f}: p from {_TABLES} random tables"
    return row | {"p": _drawn_p(counts, float(result.statistic), seed), "reason": note}


def _drawn_p(counts: Int[ndarray, "group 2"], observed: float, seed: int) -> float:
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    drawn = stats.random_table(rows, columns, seed=np.random.default_rng(seed)).rvs(_TABLES)
    expected = np.outer(rows, columns) / counts.sum()
    statistics = ((drawn - expected) ** 2 / expected).sum(axis=(1, 2))
    return float((1 + (statistics >= observed * (1 - 1e-9)).sum()) / (1 + _TABLES))


def _fisher(counts: Int[ndarray, "2 2"]) -> dict[str, object]:
    """Fisher's exact test of two groups: ``counts`` has a row for each group, of excluded scans and of kept ones.

    The effect is the odds of exclusion in the first group over those in the second, with its exact 95 % interval;
    ``reason`` says why there is no test.
    """
    if reason := _untestable(counts):
        return {"test": "fisher", "reason": reason}
    odds = odds_ratio(counts)
    interval = odds.confidence_interval(1 - ALPHA)
    row = {"test": "fisher", "p": float(stats.fisher_exact(counts).pvalue), "effect": float(odds.statistic)}
    return row | {"effect_name": "odds ratio", "effect_low": float(interval.low), "effect_high": float(interval.high)}
