"""Two groups compared: difference, interval, effect size and the tests of the paper.

Kassubek et al. 2025: Shapiro-Wilk in each group, then Student's unpaired t-test with pooled variance. Welch's
t-test and Mann-Whitney's U are given too; the latter is recommended where a group is not normal.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import special, stats

from hypodask.stats.multiplicity import add_holm
from hypodask.stats.samples import Sample, group_names, is_constant, samples

ALPHA = 0.05
"""Significance level of the paper; intervals are 95 %."""

FEWEST_SCANS = 3
"""Smallest group that is tested: Shapiro-Wilk needs three values."""

MOST_FOR_SHAPIRO = 5000
"""Above this the p of Shapiro-Wilk is not accurate (Royston 1995), and the mean is normal for any distribution."""

_COLUMNS = (
    *("group_a", "group_b", "n_a", "n_b", "mean_a", "mean_b", "sd_a", "sd_b"),
    *("difference", "difference_low", "difference_high", "percent"),
    *("t", "df", "p", "t_welch", "df_welch", "p_welch", "u", "p_mannwhitney"),
    *("p_shapiro_a", "p_shapiro_b", "normal", "test", "p_recommended", "p_holm"),
    *("hedges_g", "hedges_g_low", "hedges_g_high"),
    *("missing_a", "missing_b", "excluded_a", "excluded_b", "reason"),
)


def compare_groups(
    ds: xr.Dataset, variable: str, *, structure: str | None = None, by: str = "group", reference: str | None = None
) -> pd.DataFrame:
    """Compare every pair of groups.

    A difference is ``group_a - group_b``. With a reference, the first rows compare every other group with it, so that
    ``percent`` is relative to the reference; then follow the pairs of the other groups, in alphabetical order.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or without value or group do not count.
    variable
        Such as ``normalized_volume_mm3``.
    structure
        Such as ``hypothalamus``; needed when the variable has one value per structure.
    by
        Coordinate that holds the group.
    reference
        Name of the reference group.

    Returns
    -------
    DataFrame
        One row per pair:

        - ``n``, ``mean``, ``sd`` of both groups; ``difference`` with its 95 % interval (pooled variance) in the unit
          of the variable and ``percent`` of the mean of ``group_b``;
        - ``t, df, p`` Student; ``t_welch, df_welch, p_welch``; ``u, p_mannwhitney``; all two-sided;
        - ``p_shapiro_a``, ``p_shapiro_b``, ``normal`` (neither is below 0.05) and the recommended ``test``,
          ``student`` or ``mann-whitney``, with its p as ``p_recommended``, and as ``p_holm`` adjusted over the rows;
        - ``hedges_g`` with its exact 95 % interval (noncentral t);
        - ``missing`` (failed, skipped or no value) and ``excluded`` scans of both groups;
        - ``reason``: why there is no p, or what limits it.

        A pair with a group of fewer than three scans, or with two constant groups, has NaN for p and a reason.

    Raises
    ------
    ResultsError
        If the variable, structure, group column or reference group is not there.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"age": ("scan", [61.0, 58.0, 66.0, 70.0, 50.0, 55.0, 49.0, 53.0])},
    ...     coords={"group": ("scan", ["PLS"] * 4 + ["control"] * 4)},
    ... )
    >>> compare_groups(ds, "age", reference="control").round(3)[["group_a", "group_b", "difference", "t"]]
      group_a  group_b  difference      t
    0     PLS  control        12.0  4.009
    """
    found = samples(ds, variable, structure=structure, by=by)
    names = group_names(np.array(list(found), dtype=object), reference)
    rows = [_compare(found[a], found[b]) for a, b in pairs(names, reference)]
    return add_holm(pd.DataFrame(rows, columns=list(_COLUMNS)), "p_recommended")


def pairs(names: list[str], reference: str | None) -> list[tuple[str, str]]:
    """Every pair of groups that is compared; ``names`` start with the reference if there is one.

    >>> pairs(["control", "ALS", "PLS"], "control")
    [('ALS', 'control'), ('PLS', 'control'), ('ALS', 'PLS')]
    """
    if reference is None:
        return list(combinations(names, 2))
    others = names[1:]
    return [(name, reference) for name in others] + list(combinations(others, 2))


def _compare(a: Sample, b: Sample) -> dict[str, object]:
    row: dict[str, object] = {"group_a": a.group, "group_b": b.group}
    row |= compare_summaries(a.mean, a.sd, a.n, b.mean, b.sd, b.n)
    row |= _mann_whitney(a, b)
    p_a, p_b = shapiro_p(a.values), shapiro_p(b.values)
    normal = looks_normal(a.values, p_a) and looks_normal(b.values, p_b)
    row |= {"p_shapiro_a": p_a, "p_shapiro_b": p_b, "normal": normal}
    row |= {"test": "student" if normal else "mann-whitney", "p_recommended": row["p" if normal else "p_mannwhitney"]}
    row |= {"missing_a": a.missing, "missing_b": b.missing, "excluded_a": a.excluded, "excluded_b": b.excluded}
    return row | {"reason": _reason(a, b)}


def compare_summaries(mean_a: float, sd_a: float, n_a: int, mean_b: float, sd_b: float, n_b: int) -> dict[str, float]:
    """Compare two groups of which only mean, standard deviation (n - 1) and number are known.

    Returns
    -------
    dict
        ``n_a`` to ``sd_b``, ``difference`` (a - b) with ``difference_low`` and ``difference_high``, ``percent`` of
        the mean of b, ``t, df, p`` (Student, pooled), ``t_welch, df_welch, p_welch`` and ``hedges_g`` with its
        interval; NaN where a group has fewer than three members or nothing varies.

    Examples
    --------
    The paper's PLS group against its controls:

    >>> row = compare_summaries(818, 73, 45, 852, 77, 102)
    >>> round(row["t"], 3), round(row["p"], 4), round(row["percent"], 2)
    (-2.506, 0.0133, -3.99)
    """
    difference = mean_a - mean_b
    row = {"n_a": n_a, "n_b": n_b, "mean_a": mean_a, "mean_b": mean_b, "sd_a": sd_a, "sd_b": sd_b}
    row |= {"difference": difference, "percent": 100 * difference / mean_b if mean_b else float("nan")}
    if min(n_a, n_b) < FEWEST_SCANS or not max(sd_a / abs(mean_a or 1), sd_b / abs(mean_b or 1)) > 1e-12:
        return row | dict.fromkeys(_TESTED, float("nan"))
    return row | _student(difference, sd_a, n_a, sd_b, n_b) | _welch(difference, sd_a**2 / n_a, n_a, sd_b**2 / n_b, n_b)


_TESTED = (
    *("difference_low", "difference_high", "t", "df", "p", "t_welch", "df_welch", "p_welch"),
    *("hedges_g", "hedges_g_low", "hedges_g_high"),
)


def _two_sided(t: float, df: float) -> float:
    return float(2 * stats.t.sf(abs(t), df))


def _student(difference: float, sd_a: float, n_a: int, sd_b: float, n_b: int) -> dict[str, float]:
    df = n_a + n_b - 2
    pooled_sd = float(np.sqrt(((n_a - 1) * sd_a**2 + (n_b - 1) * sd_b**2) / df))
    error = pooled_sd * float(np.sqrt(1 / n_a + 1 / n_b))
    reach = error * float(stats.t.ppf(1 - ALPHA / 2, df))
    t = difference / error
    row = {"difference_low": difference - reach, "difference_high": difference + reach}
    return row | {"t": t, "df": df, "p": _two_sided(t, df)} | _hedges(t, n_a, n_b)


def _welch(difference: float, error2_a: float, n_a: int, error2_b: float, n_b: int) -> dict[str, float]:
    """Welch's test, from the squared standard errors of both means."""
    t = difference / float(np.sqrt(error2_a + error2_b))
    df = (error2_a + error2_b) ** 2 / (error2_a**2 / (n_a - 1) + error2_b**2 / (n_b - 1))
    return {"t_welch": t, "df_welch": df, "p_welch": _two_sided(t, df)}


def _hedges(t: float, n_a: int, n_b: int) -> dict[str, float]:
    """Hedges' g; its interval holds the effects for which t is not in a 2.5 % tail of the noncentral t."""
    df = n_a + n_b - 2
    correction = float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2))
    scale = correction * float(np.sqrt(1 / n_a + 1 / n_b))
    low, high = special.nctdtrinc(df, 1 - ALPHA / 2, t), special.nctdtrinc(df, ALPHA / 2, t)
    return {"hedges_g": scale * t, "hedges_g_low": scale * float(low), "hedges_g_high": scale * float(high)}


def _mann_whitney(a: Sample, b: Sample) -> dict[str, float]:
    # Where both groups are the same constant, all ranks are tied.
    if min(a.n, b.n) < FEWEST_SCANS or (a.constant and b.constant and a.mean == b.mean):
        return {"u": float("nan"), "p_mannwhitney": float("nan")}
    result = stats.mannwhitneyu(a.values, b.values)
    return {"u": float(result.statistic), "p_mannwhitney": float(result.pvalue)}


def shapiro_p(values: Float[ndarray, " n"]) -> float:
    """P of the Shapiro-Wilk test; NaN for fewer than 3 or more than 5000 values, or for a constant.

    >>> round(shapiro_p(np.array([148.0, 154, 158, 160, 161, 162, 166, 170, 182, 195, 236])), 4)
    0.0067
    """
    if not FEWEST_SCANS <= len(values) <= MOST_FOR_SHAPIRO or is_constant(values):
        return float("nan")
    return float(stats.shapiro(values).pvalue)


def looks_normal(values: Float[ndarray, " n"], p: float) -> bool:
    """Whether a test that assumes normal values may be used: Shapiro-Wilk does not object, or n is in the thousands."""
    return len(values) > MOST_FOR_SHAPIRO or p >= ALPHA


def _reason(a: Sample, b: Sample) -> str:
    notes = [f"{s.group} has {s.n} usable scans, a test needs {FEWEST_SCANS}" for s in (a, b) if s.n < FEWEST_SCANS]
    if not notes and a.constant and b.constant:
        notes.append("the values do not vary within either group")
    notes += repeated_notes(a, b)
    notes += [f"{s.group} is too large for Shapiro-Wilk" for s in (a, b) if s.n > MOST_FOR_SHAPIRO]
    return "; ".join(notes)


def repeated_notes(*compared: Sample) -> list[str]:
    """A note for each group in which a participant has more than one scan."""
    return [
        f"{s.repeated} participants of {s.group} have more than one scan: the values are not independent, "
        "keep one scan each"
        for s in compared
        if s.repeated
    ]
