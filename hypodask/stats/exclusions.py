"""What exclusions do to a comparison, and whether they fall on one group more than on another.

Kassubek et al. 2025 exclude by group: 5 of 107 controls, 21 of 411 ALS, 1 of 46 PLS. A difference that is there with
one rule and gone with another is a finding about the rule.
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

from hypodask.errors import ResultsError
from hypodask.stats.groups import ALPHA, compare_groups
from hypodask.stats.multiplicity import holm
from hypodask.stats.outliers import find_far_outliers, find_low_quality, find_outliers
from hypodask.stats.samples import done_scans, excluded_scans, group_labels, group_names, require

Rule = Callable[[xr.Dataset], xr.Dataset]
"""Marks scans as ``excluded``, as :func:`~hypodask.stats.find_outliers` does."""

SMALLEST_EXPECTED = 5
"""Expected count below which chi-square's own distribution is a poor approximation (Cochran 1954)."""

TABLES = 9999
"""Tables with the same margins that are drawn where chi-square is a poor approximation."""

COLUMNS = (
    *("groups", "excluded", "scans", "percent", "percent_difference", "test", "statistic", "df", "p", "p_holm"),
    *("effect", "effect_name", "effect_low", "effect_high", "reason"),
)


def rules_of(ds: xr.Dataset, by: str) -> dict[str, Rule]:
    """Nobody excluded, the paper's rule, and rules that do not know the groups; quality where there is one."""
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
    """Compare the groups with nobody excluded and under each rule of exclusion.

    Parameters
    ----------
    ds, variable, structure, by, reference
        As in :func:`~hypodask.stats.compare_groups`; an ``excluded`` that is there already is replaced by each rule.
    rules
        Name -> function that marks ``excluded``, such as ``partial(find_outliers, quantiles="weibull")``; the first is
        what the others are held against. By default nobody, IQR and robust z by group and over all, and quality.

    Returns
    -------
    DataFrame
        The columns of ``compare_groups`` after ``rule``, one row per rule and pair; ``reason`` also tells where a rule
        changes which side of 0.05 the p lies on, or the sign of a significant difference.

    Raises
    ------
    ResultsError
        If there are no rules, or a rule or the comparison lacks something.

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
    chosen = rules_of(ds, by) if rules is None else rules
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
    changed = conclusions(table) != conclusions(first)
    note = f"another conclusion than with {first['rule'].iloc[0]!r}" if len(first) else ""
    reasons = [_joined(text, note if new else "") for text, new in zip(table["reason"], changed, strict=True)]
    return table.assign(reason=reasons)


def conclusions(table: pd.DataFrame, p: str = "p_recommended") -> ndarray:
    """Of each comparison: -1 significantly less, 1 significantly more, 0 neither, 9 not tested."""
    sides = np.where(table[p] < ALPHA, np.sign(table["difference"]), 0)
    concluded: ndarray = np.where(table[p].notna(), sides, 9)
    return concluded


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


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
        Of the tables that are drawn where an expected count is below 5.

    Returns
    -------
    DataFrame
        A row for all groups at once and, where there are three or more, one for each pair: ``excluded`` of ``scans``
        and ``percent`` in each group, in the order of ``groups``; ``percent_difference`` of a pair, first minus second;
        for all groups ``chi-square`` without continuity correction with Cramer's V, its p by drawn tables with the same
        margins where an expected count is below 5; for a pair ``fisher`` with the conditional odds ratio and its exact
        95 % interval, and ``p_holm`` over the pairs; ``reason`` why there is no p.

    Raises
    ------
    ResultsError
        If nothing was excluded by a rule yet, or the group column is not there.

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
    counts = np.array([_counts(excluded_scans(ds)[done & (labels == name)]) for name in names]).reshape(-1, 2)
    pairs = [list(pair) for pair in combinations(range(len(names)), 2)]
    rows = [] if len(names) == 2 else [_row(names, counts) | _chi_square(counts, seed)]
    rows += [_row([names[i] for i in pair], counts[pair]) | _fisher(counts[pair]) for pair in pairs]
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "p_holm"])
    paired = np.where(table["test"] == "fisher", table["p"], np.nan).astype(np.float64)
    table.insert(COLUMNS.index("p_holm"), "p_holm", holm(paired))
    return table


def _counts(excluded: ndarray) -> tuple[int, int]:
    return int(excluded.sum()), int((~excluded).sum())


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
        return "nobody was excluded"
    return "" if counts[:, 1].any() else "everybody was excluded"


def _chi_square(counts: Int[ndarray, "group 2"], seed: int) -> dict[str, object]:
    if reason := _untestable(counts):
        return {"test": "chi-square", "reason": reason}
    result = stats.chi2_contingency(counts, correction=False)
    effect = float(np.sqrt(result.statistic / counts.sum()))
    row = {"test": "chi-square", "statistic": float(result.statistic), "df": int(result.dof), "p": float(result.pvalue)}
    row |= {"effect": effect, "effect_name": "Cramer's V"}
    if result.expected_freq.min() >= SMALLEST_EXPECTED:
        return row
    note = f"an expected count is {result.expected_freq.min():.1f}: p by {TABLES} drawn tables"
    return row | {"p": _drawn_p(counts, float(result.statistic), seed), "reason": note}


def _drawn_p(counts: Int[ndarray, "group 2"], observed: float, seed: int) -> float:
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    drawn = stats.random_table(rows, columns, seed=np.random.default_rng(seed)).rvs(TABLES)
    expected = np.outer(rows, columns) / counts.sum()
    statistics = ((drawn - expected) ** 2 / expected).sum(axis=(1, 2))
    return float((1 + (statistics >= observed * (1 - 1e-9)).sum()) / (1 + TABLES))


def _fisher(counts: Int[ndarray, "2 2"]) -> dict[str, object]:
    if reason := _untestable(counts):
        return {"test": "fisher", "reason": reason}
    odds = odds_ratio(counts)
    interval = odds.confidence_interval(1 - ALPHA)
    row = {"test": "fisher", "p": float(stats.fisher_exact(counts).pvalue), "effect": float(odds.statistic)}
    return row | {"effect_name": "odds ratio", "effect_low": float(interval.low), "effect_high": float(interval.high)}
