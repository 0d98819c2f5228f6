"""Groups and associations adjusted for covariates: analysis of covariance and partial correlation.

The model is linear, with one mean for each group and the same slope of each covariate in all groups; whether the slopes
are the same is tested too. It is fitted by ordinary least squares (statsmodels).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats
from statsmodels.regression.linear_model import OLS

from hypodask.stats.covariates import covariate_columns, covariate_values, is_category, is_full_rank, known_covariates
from hypodask.stats.groups import ALPHA, FEWEST_SCANS, pairs, repeated_notes
from hypodask.stats.multiplicity import add_holm
from hypodask.stats.samples import Sample, group_labels, group_names, is_constant, samples, usable_scans, values_of

_WHOLE_LEVERAGE = 1 - 1e-9
"""Leverage of a scan that a column of its own explains, such as the only scan of a site: HC3 is not defined for it."""

_ADJUSTED_COLUMNS = (
    *("group_a", "group_b", "n_a", "n_b"),
    *("mean_a", "mean_a_low", "mean_a_high", "mean_b", "mean_b_low", "mean_b_high"),
    *("difference", "difference_low", "difference_high", "percent", "t", "df", "p", "p_holm"),
    *("f_slopes", "p_slopes", "adjusted_for", "missing_a", "missing_b", "excluded_a", "excluded_b", "reason"),
)

_PARTIAL_COLUMNS = (
    *("group", "variable", "covariate", "given", "n", "missing", "r", "r_low", "r_high", "t", "df", "p", "p_holm"),
    "reason",
)


def compare_adjusted(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    by: str = "group",
    covariates: Sequence[str] = ("age", "sex"),
    reference: str | None = None,
    robust: bool = False,
) -> pd.DataFrame:
    """Compare every pair of groups at equal age, sex or other covariates.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or lack the value, the group or a covariate do not count.
    variable
        Such as ``volume_mm3``.
    structure
        Such as ``hypothalamus``; needed when the variable has one value per structure.
    by
        Coordinate that holds the group.
    covariates
        Coordinates with one value per scan; text, ``sex`` and ``site`` are categories, ``icv`` is the intracranial
        volume. Do not adjust for ``icv`` a volume that is divided by it already.
    reference
        Name of the reference group, as in :func:`~hypodask.stats.compare_groups`.
    robust
        Use the standard errors HC3 of MacKinnon and White, which are valid if the groups vary differently.

    Returns
    -------
    DataFrame
        One row per pair:

        - ``mean_a``, ``mean_b``: means at the mean of every covariate over all scans of the model, each with its 95 %
          interval; ``difference`` with interval, ``percent`` of ``mean_b``, ``t, df, p`` and ``p_holm``;
        - ``f_slopes, p_slopes``: test whether the slope of any covariate that is a number differs between the groups;
          the same in every row. If it does, the difference depends on the covariate, and no single number describes it;
        - ``adjusted_for``: the columns of the model; a covariate that is the same in all scans has none;
        - ``missing`` and ``excluded`` scans of both groups and the ``reason`` why there is no result.

    Raises
    ------
    ResultsError
        If the variable, structure, group column, reference or a covariate is not there.

    References
    ----------
    MacKinnon & White, Journal of Econometrics 1985; Long & Ervin, The American Statistician 2000 (HC3).

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"volume": ("scan", [9.1, 8.0, 7.1, 8.0, 7.0, 6.1])},
    ...     coords={"age": ("scan", [40, 50, 60, 40, 50, 60]), "group": ("scan", ["a"] * 3 + ["b"] * 3)},
    ... )
    >>> compare_adjusted(ds, "volume", covariates=["age"])[["difference", "df"]].round(2).values.tolist()
    [[1.03, 3.0]]
    """
    y = np.where(known_covariates(ds, covariates), values_of(ds, variable, structure), np.nan)
    found = samples(ds.assign({variable: ("scan", y)}), variable, structure=None, by=by)
    names = group_names(np.array(list(found), dtype=object), reference)
    labels = np.where(usable_scans(ds) & np.isfinite(y), group_labels(ds, by), "")
    tested = [name for name in sorted(names) if found[name].n >= FEWEST_SCANS]
    model = _fit_groups(ds, y, labels, tested, covariates, robust)
    rows = [_adjusted_row(found[a], found[b], model) for a, b in pairs(names, reference)]
    return add_holm(pd.DataFrame(rows, columns=list(_ADJUSTED_COLUMNS)))


@dataclass(frozen=True, eq=False)
class _GroupModel:
    """A mean for each group and common slopes, or the reason why there are none."""

    groups: list[str]
    columns: list[str]
    fit: Any
    slopes: dict[str, object]
    reason: str


def _fit_groups(
    ds: xr.Dataset,
    y: Float[ndarray, " scan"],
    labels: ndarray,
    groups: list[str],
    covariates: Sequence[str],
    robust: bool,
) -> _GroupModel:
    counted = np.isin(labels, groups) if groups else np.zeros(len(labels), dtype=bool)
    columns = covariate_columns(ds, covariates, counted)
    names = [str(name) for name in columns]
    members = (labels[counted, None] == np.array(groups, dtype=object)).astype(float)
    design, values = np.hstack([members, columns.to_numpy()]), y[counted]
    reason = _why_no_fit(design, values, robust) if len(groups) > 1 else ""
    if reason or len(groups) < 2:
        return _GroupModel(groups, names, None, {}, reason)
    sloped = [name for name in names if not is_category(ds, name.partition("=")[0])]
    slopes = _slopes(design, values, members, columns[sloped].to_numpy(), robust)
    return _GroupModel(groups, names, _ols(values, design, robust), slopes, "")


def _ols(y: Float[ndarray, " scan"], design: Float[ndarray, "scan column"], robust: bool) -> Any:
    return OLS(y, design).fit(cov_type="HC3", use_t=True) if robust else OLS(y, design).fit()


def _why_no_fit(design: Float[ndarray, "scan column"], y: Float[ndarray, " scan"], robust: bool) -> str:
    scans, columns = design.shape
    if scans <= columns:
        return f"{scans} scans for {columns} coefficients of the model: adjust for fewer covariates"
    if not is_full_rank(design):
        return "covariates and groups are collinear: adjust for fewer covariates"
    basis = np.linalg.qr(design)[0]
    if np.linalg.norm(y - basis @ (basis.T @ y)) <= 1e-10 * np.linalg.norm(y):
        return "groups and covariates explain the values completely: no residual is left to test against"
    if robust and ((basis**2).sum(axis=1) > _WHOLE_LEVERAGE).any():
        return "a scan is the only one of its category: leave it out or merge the category for robust errors"
    return ""


def _slopes(
    design: Float[ndarray, "scan column"],
    y: Float[ndarray, " scan"],
    members: Float[ndarray, "scan group"],
    covariates: Float[ndarray, "scan covariate"],
    robust: bool,
) -> dict[str, object]:
    """F test that every other group has the slopes of the first."""
    apart = np.einsum("sg,sc->sgc", members[:, 1:], covariates).reshape(len(y), -1)
    whole = np.hstack([design, apart])
    if not apart.shape[1] or _why_no_fit(whole, y, robust):
        return {}
    test = _ols(y, whole, robust).f_test(np.eye(whole.shape[1])[design.shape[1] :])
    return {"f_slopes": float(test.fvalue), "p_slopes": float(test.pvalue)}


def _adjusted_row(a: Sample, b: Sample, model: _GroupModel) -> dict[str, object]:
    row: dict[str, object] = {"group_a": a.group, "group_b": b.group, "n_a": a.n, "n_b": b.n}
    row |= {"missing_a": a.missing, "missing_b": b.missing, "excluded_a": a.excluded, "excluded_b": b.excluded}
    row |= {"adjusted_for": ", ".join(model.columns), **model.slopes}
    small = [f"{s.group} has {s.n} usable scans with every covariate, a test needs {FEWEST_SCANS}" for s in (a, b)]
    notes = [note for note, s in zip(small, (a, b), strict=True) if s.n < FEWEST_SCANS] or [model.reason]
    if not any(notes):
        row |= _estimates(model, a.group, b.group)
    notes += repeated_notes(a, b)
    return row | {"reason": "; ".join(filter(None, notes))}


def _estimates(model: _GroupModel, a: str, b: str) -> dict[str, float]:
    unit = np.eye(len(model.groups) + len(model.columns))
    first, second = unit[model.groups.index(a)], unit[model.groups.index(b)]
    found = model.fit.t_test(np.stack([first, second, first - second]))
    (mean_a, mean_b, difference), ends = found.effect, found.conf_int(ALPHA)
    row = {"difference": difference, "percent": 100 * difference / mean_b if mean_b else np.nan}
    row |= {"t": found.tvalue[2], "df": model.fit.df_resid, "p": found.pvalue[2], "mean_a": mean_a, "mean_b": mean_b}
    for name, (low, high) in zip(("mean_a", "mean_b", "difference"), ends, strict=True):
        row |= {f"{name}_low": low, f"{name}_high": high}
    return {name: float(value) for name, value in row.items()}


def partial_correlate(
    ds: xr.Dataset,
    variable: str,
    covariate: str,
    *,
    given: Sequence[str],
    structure: str | None = None,
    by: str | None = None,
) -> pd.DataFrame:
    """Correlate a variable with a covariate at equal other covariates, over all scans or within each group.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or lack one of the values do not count.
    variable
        Such as ``volume_mm3``.
    covariate
        Coordinate or variable with one number per scan, such as ``disease_duration_years``.
    given
        Covariates that are held equal, such as ``["age", "sex", "icv"]``; text, ``sex`` and ``site`` are categories.
    structure
        Such as ``hypothalamus``; needed when the variable has one value per structure.
    by
        Coordinate that holds the group; None for all scans together.

    Returns
    -------
    DataFrame
        One row per group: ``n``; ``missing``, the usable scans without one of the values; the partial ``r`` of
        Pearson with its 95 % interval (Fisher's z, whose error is that of ``n - k`` scans, for k columns of ``given``)
        and ``t, df, p``; ``p_holm`` over the rows; ``reason`` why there is no result.

    Raises
    ------
    ResultsError
        If one of the names is not there, or the covariate is text.

    References
    ----------
    Fisher, Metron 1924 (distribution of the partial correlation).

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"volume": ("scan", [9.0, 7.0, 8.0, 5.0, 6.0])},
    ...     coords={"years": ("scan", [1, 2, 2, 4, 3]), "age": ("scan", [50, 60, 40, 70, 60])},
    ... )
    >>> partial_correlate(ds, "volume", "years", given=["age"])["r"].round(3).item()
    -0.958
    """
    x, y = covariate_values(ds, covariate), values_of(ds, variable, structure)
    labels, usable = group_labels(ds, by), usable_scans(ds)
    known = usable & np.isfinite(x) & np.isfinite(y) & known_covariates(ds, given)
    rows = []
    for name in group_names(labels):
        counted = known & (labels == name)
        missing = int((usable & (labels == name)).sum() - counted.sum())
        row = {"group": name, "variable": variable, "covariate": covariate, "given": ", ".join(given)}
        rows.append(row | {"missing": missing} | _partial(ds, x, y, given, counted))
    return add_holm(pd.DataFrame(rows, columns=list(_PARTIAL_COLUMNS)))


def _partial(
    ds: xr.Dataset,
    x: Float[ndarray, " scan"],
    y: Float[ndarray, " scan"],
    given: Sequence[str],
    counted: Bool[ndarray, " scan"],
) -> dict[str, object]:
    x, y, n = x[counted], y[counted], int(counted.sum())
    if n < FEWEST_SCANS or is_constant(x) or is_constant(y):
        return {"n": n, "reason": f"{n} usable scans have every value, or one of the two is the same in all"}
    columns = covariate_columns(ds, given, counted).to_numpy()
    design = np.column_stack([np.ones(n), columns, (x - x.mean()) / x.std()])
    if reason := _why_no_fit(design, y, robust=False):
        return {"n": n, "reason": reason}
    fit = OLS(y, design).fit()
    t, df = float(fit.tvalues[-1]), float(fit.df_resid)
    r = t / np.sqrt(t**2 + df)
    row = {"n": n, "r": r, "t": t, "df": df, "p": float(fit.pvalues[-1]), "reason": ""}
    return row | _fisher_interval(r, n - columns.shape[1])


def _fisher_interval(r: float, scans: int) -> dict[str, float]:
    if scans <= FEWEST_SCANS:
        return {"r_low": np.nan, "r_high": np.nan}
    reach = stats.norm.ppf(1 - ALPHA / 2) / np.sqrt(scans - 3)
    low, high = np.tanh(np.arctanh(r) + np.array([-reach, reach]))
    return {"r_low": float(low), "r_high": float(high)}
