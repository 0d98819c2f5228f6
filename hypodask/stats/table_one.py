"""Who was scanned: Table 1 of a study.

Coordinates that are read, all optional: ``sex`` (M/F, m/f, male/female), ``age`` (years), ``alsfrs_r`` (revised ALS
functional rating scale, 0 to 48), ``disease_duration_years`` and ``subgroup`` (such as probable and definite PLS).
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from hypodask.core.errors import ResultsError
from hypodask.stats.samples import group_labels, group_names, is_constant, values_of

_BEST_ALSFRS_R = 48
"""Score of a person without any impairment."""

_CHARACTERISTICS = ("age", "progression_per_year", "alsfrs_r", "disease_duration_years")
"""The numbers of Table 1, in its order; the slope of ALSFRS-R is ``progression_per_year``."""

_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}

_FEWEST_EXPECTED = 5
"""Expected count of a sex in a group below which chi-square is a poor approximation (Cochran 1954)."""

_TABLES = 99_999
"""Random tables drawn for Fisher's test of more than two groups."""

_COLUMNS = (
    *("characteristic", "group", "subgroup", "scans", "n", "mean", "sd", "median", "low", "high"),
    *("male", "female", "test", "statistic", "df", "p"),
)


def add_progression_slope(ds: xr.Dataset) -> xr.Dataset:
    """Add the rate of progression of the disease, ``(48 - ALSFRS-R) / disease duration``, in points per year.

    Parameters
    ----------
    ds
        Results with ``alsfrs_r`` (0 to 48) and ``disease_duration_years`` on ``scan``; returned unchanged if one of
        them is absent.

    Returns
    -------
    Dataset
        With the coordinate ``progression_per_year``; NaN where the duration is zero or either value is missing.

    Raises
    ------
    ResultsError
        If a score lies outside 0 to 48 or a duration is negative.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"alsfrs_r": ("scan", [39.0, 47.0]), "disease_duration_years": ("scan", [4.5, 0.0])})
    >>> add_progression_slope(ds).progression_per_year.values.tolist()
    [2.0, nan]
    """
    if not {"alsfrs_r", "disease_duration_years"} <= set(ds.variables):
        return ds
    score, years = values_of(ds, "alsfrs_r"), values_of(ds, "disease_duration_years")
    _refuse(ds, (score < 0) | (score > _BEST_ALSFRS_R), f"alsfrs_r outside 0 to {_BEST_ALSFRS_R}")
    _refuse(ds, years < 0, "a negative disease_duration_years")
    slope = (_BEST_ALSFRS_R - score) / np.where(years > 0, years, np.nan)
    attrs = {"units": "1/year", "description": "(48 - ALSFRS-R) / disease duration."}
    return ds.assign_coords(progression_per_year=("scan", slope, attrs))


def _refuse(ds: xr.Dataset, wrong: Bool[ndarray, " scan"], what: str) -> None:
    if wrong.any():
        scans = ds["scan"].to_numpy()[wrong] if "scan" in ds.coords else np.flatnonzero(wrong)
        listed = ", ".join(map(str, scans[:5].tolist()))
        raise ResultsError(
            f"{what} in {wrong.sum()} scans ({listed}): correct the cohort's table, leave unknown ones empty"
        )


def sexes(ds: xr.Dataset) -> ndarray:
    """``male``, ``female`` or ``""`` (neither) for each scan.

    >>> sexes(xr.Dataset(coords={"sex": ("scan", ["M", "female", "n/a"])})).tolist()
    ['male', 'female', '']
    """
    return np.array([_SEXES.get(label.lower(), "") for label in group_labels(ds, "sex")], dtype=object)


def demographics(ds: xr.Dataset, *, by: str | None = "group", subgroup: str = "subgroup") -> pd.DataFrame:
    """Characteristics of each group and subgroup, and whether the groups differ in them.

    Every scan of the cohort counts, also failed and excluded ones: the table describes who was recruited. To describe
    who was analysed, call ``ds.pipe(stats.exclude)`` first.

    Parameters
    ----------
    ds
        Results with any of the coordinates named above.
    by
        Coordinate that holds the group; None for all scans together.
    subgroup
        Coordinate that divides some of the groups further; may be absent.

    Returns
    -------
    DataFrame
        One row per characteristic (``sex``, ``age`` and the like), group and subgroup (``""`` for the whole group):
        ``scans`` in it, ``n`` with a value, ``mean, sd, median, low, high``, or ``male, female``; then the ``test``
        between the whole groups that have values, with ``statistic``, ``df`` and ``p``, the same in every row of a
        characteristic. Numbers are tested by ``kruskal-wallis``, sex by ``chi-square`` without continuity correction
        or, if an expected count is below 5, by ``fisher``, which has only a p.

    Raises
    ------
    ResultsError
        If the group column is not there, a number is text, or ALSFRS-R or duration is impossible.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"group": ("scan", ["a", "a", "b"]), "sex": ("scan", ["M", "F", "F"])})
    >>> demographics(ds)[["group", "scans", "male", "female"]].values.tolist()
    [['a', 2, 1, 1], ['b', 1, 0, 1]]
    """
    ds = add_progression_slope(ds)
    strata = list(_strata(ds, by, subgroup))
    tables = [_number_table(ds, name, strata) for name in _CHARACTERISTICS if name in ds.variables]
    if "sex" in ds.variables:
        tables.insert(0, _sex_table(ds, strata))
    return pd.DataFrame([row for table in tables for row in table], columns=list(_COLUMNS))


_Stratum = tuple[str, str, Bool[ndarray, " scan"]]


def _strata(ds: xr.Dataset, by: str | None, subgroup: str) -> Iterator[_Stratum]:
    """Every group, each followed by its subgroups: name, subgroup and which scans."""
    labels = group_labels(ds, by)
    parts = group_labels(ds, subgroup) if subgroup in ds.variables else np.full(len(labels), "", dtype=object)
    for name in group_names(labels):
        yield name, "", labels == name
        for part in group_names(parts[labels == name]):
            yield name, part, (labels == name) & (parts == part)


def _number_table(ds: xr.Dataset, characteristic: str, strata: list[_Stratum]) -> list[dict[str, object]]:
    values = values_of(ds, characteristic)
    present = np.isfinite(values)
    compared = [values[members & present] for _, part, members in strata if not part]
    test = _kruskal([group for group in compared if len(group)])
    rows = []
    for name, part, members in strata:
        row = {"characteristic": characteristic, "group": name, "subgroup": part, "scans": int(members.sum())}
        rows.append(row | _describe(values[members & present]) | test)
    return rows


def _describe(values: Float[ndarray, " n"]) -> dict[str, object]:
    if not len(values):
        return {"n": 0}
    sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    low, median, high = np.quantile(values, [0, 0.5, 1]).tolist()
    return {"n": len(values), "mean": float(values.mean()), "sd": sd, "median": median, "low": low, "high": high}


def _kruskal(compared: list[Float[ndarray, " _"]]) -> dict[str, object]:
    if len(compared) < 2 or is_constant(np.concatenate(compared)):
        return {}
    result = stats.kruskal(*compared)
    return _test("kruskal-wallis", result.statistic, len(compared) - 1, result.pvalue)


def _test(name: str, statistic: float, df: int, p: float) -> dict[str, object]:
    return {"test": name, "statistic": float(statistic), "df": int(df), "p": float(p)}


def _sex_table(ds: xr.Dataset, strata: list[_Stratum]) -> list[dict[str, object]]:
    sex = sexes(ds)
    counts = [(int((sex[members] == "male").sum()), int((sex[members] == "female").sum())) for *_, members in strata]
    test = _sex_test(np.array([count for count, (_, part, _) in zip(counts, strata, strict=True) if not part]))
    rows = []
    for (name, part, members), (male, female) in zip(strata, counts, strict=True):
        row = {"characteristic": "sex", "group": name, "subgroup": part, "scans": int(members.sum())}
        rows.append(row | {"n": male + female, "male": male, "female": female} | test)
    return rows


def _sex_test(counts: ndarray) -> dict[str, object]:
    """Pearson's chi-square of groups x sexes, over the groups that are not empty; Fisher's test for small counts."""
    counts = counts[counts.sum(axis=1) > 0] if len(counts) else counts
    if len(counts) < 2 or (counts.sum(axis=0) == 0).any():
        return {}
    result = stats.chi2_contingency(counts, correction=False)
    if result.expected_freq.min() >= _FEWEST_EXPECTED:
        return _test("chi-square", result.statistic, result.dof, result.pvalue)
    # The p is exact for two groups; for more it is estimated from random tables.
    drawn = None if len(counts) == 2 else stats.MonteCarloMethod(n_resamples=_TABLES, rng=np.random.default_rng(0))
    return {"test": "fisher", "p": float(np.squeeze(stats.fisher_exact(counts, method=drawn).pvalue))}
