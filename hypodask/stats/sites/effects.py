"""A difference between groups at each site, and over all sites.

Two ways that need no harmonised volumes: a random-effects meta-analysis of the differences at each site (DerSimonian
and Laird 1986; Paule and Mandel 1982; Hartung and Knapp 2001), and a mixed model with a random intercept for each site.
Neither mistakes a difference between scanners for one between groups.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from hypodask.core.errors import ResultsError
from hypodask.stats.covariates import Covariate, encode, read_covariate
from hypodask.stats.groups import ALPHA, FEWEST_SCANS
from hypodask.stats.samples import (
    done_scans,
    excluded_scans,
    group_labels,
    group_names,
    is_constant,
    usable_scans,
    values_of,
)
from hypodask.stats.sites.mixed import RandomIntercept, fit_random_intercept
from hypodask.stats.sites.moments import Moments, is_singular, moments_of, regress

Method = Literal["paule-mandel", "dersimonian-laird"]
"""How the variance between sites is estimated; the first is better where sites differ in size (Veroniki 2016)."""

_METHODS: dict[str, str] = {"paule-mandel": "pm", "dersimonian-laird": "dl"}

_FEWEST_DF = 0.5
"""Fewer degrees of freedom than this are rounding error: there are as many sites as columns that only vary between
sites, and nothing is left to test on."""

EFFECT_COLUMNS = ("site", "n", "estimate", "se", "low", "high", "t", "df", "p", "reason")

_COMPARE_COLUMNS = (
    *("site", "n", "n_group", "n_reference", "estimate", "se", "low", "high", "t", "df", "p"),
    *("missing", "excluded", "reason"),
)

_COMBINED_COLUMNS = (
    *("method", "sites", "estimate", "se", "low", "high", "t", "df", "p"),
    *("se_normal", "low_normal", "high_normal", "p_normal", "prediction_low", "prediction_high"),
    *("tau2", "i2", "q", "p_q", "reason"),
)

_MIXED_COLUMNS = (
    *("term", "n", "sites", "missing", "estimate", "se", "low", "high", "t", "df", "p"),
    *("site_sd", "residual_sd", "reason"),
)


def compare_sites(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    group: str,
    reference: str,
    by: str = "group",
    covariates: Sequence[str] = (),
    site: str = "site",
) -> pd.DataFrame:
    """Difference between two groups at each site, adjusted for covariates within the site.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or lack the volume, site or a covariate do not count.
    variable, structure
        Such as ``normalized_volume_mm3`` of the ``hypothalamus``.
    group, reference
        The groups: ``estimate`` is group - reference.
    by
        Coordinate that holds the group.
    covariates
        Numbers, or categories (text; ``sex``, ``scanner`` and the like also if they are numbered). A covariate that
        does not vary at a site is left out there.
    site
        Coordinate that holds the site.

    Returns
    -------
    DataFrame
        One row per site: ``n`` of both groups, ``estimate`` with ``se`` and its 95 % interval in the unit of the
        variable, ``t, df, p`` of the regression (Student's test if there are no covariates), ``missing`` and
        ``excluded`` scans of both groups, and the ``reason`` why there is no estimate.

    Raises
    ------
    ResultsError
        If a column, structure or group is not there.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"age": ("scan", [61.0, 58, 66, 50, 55, 49])},
    ...     coords={"group": ("scan", ["PLS"] * 3 + ["control"] * 3), "site": ("scan", ["Ulm"] * 6)},
    ... )
    >>> compare_sites(ds, "age", group="PLS", reference="control")[["site", "n", "estimate"]].round(2)
      site  n  estimate
    0  Ulm  6     10.33
    """
    groups, sites = group_labels(ds, by), group_labels(ds, site)
    for name in (group, reference):
        group_names(groups, name)
    asked = np.isin(groups, [group, reference])
    counted = asked & usable_scans(ds)
    known = [Covariate(by, (reference, group)), *(read_covariate(ds, name, among=counted) for name in covariates)]
    x, y = encode(ds, known), values_of(ds, variable, structure)
    counted &= np.isfinite(x).all(axis=1) & np.isfinite(y)
    outliers = asked & done_scans(ds) & excluded_scans(ds)
    rows = []
    for name in group_names(sites[asked]):
        here = sites == name
        moments = moments_of(x[counted & here], y[counted & here, None])
        in_group = int((counted & here & (groups == group)).sum())
        in_reference, out = int((counted & here).sum()) - in_group, int((outliers & here).sum())
        row = {"site": name, "n_group": in_group, "n_reference": in_reference, "excluded": out}
        row |= {"missing": int((asked & here).sum()) - in_group - in_reference - out}
        rows.append(row | effect_at(moments, 0, 0, 0) | _few({group: in_group, reference: in_reference}))
    return pd.DataFrame(rows, columns=list(_COMPARE_COLUMNS))


def _few(counts: dict[str, int]) -> dict[str, object]:
    """No estimate from a site where a group has too few scans."""
    few = [
        f"{name} has {n} usable scans, a test needs {FEWEST_SCANS}" for name, n in counts.items() if n < FEWEST_SCANS
    ]
    return {**_nothing(), "reason": "; ".join(few)} if few else {}


def _nothing() -> dict[str, float]:
    return dict.fromkeys(("estimate", "se", "low", "high", "t", "df", "p"), float("nan"))


def effect_at(moments: Moments, site: int, structure: int, column: int, *, intercepts: int = 1) -> dict[str, object]:
    """One slope of a regression as a row ``n, estimate, se, low, high, t, df, p, reason``."""
    found = regress(moments, site, structure, intercepts=intercepts)
    n = int(moments.n[site, structure])
    estimate, se = float(found.slopes[column]), float(found.errors[column])
    if not np.isfinite(estimate):
        return {"n": n, **_nothing(), "reason": found.reason or "the covariate or group is the same in every scan"}
    reach = se * float(stats.t.ppf(1 - ALPHA / 2, found.df))
    t = estimate / se
    row = {"n": n, "estimate": estimate, "se": se, "low": estimate - reach, "high": estimate + reach}
    return row | {"t": t, "df": found.df, "p": float(2 * stats.t.sf(abs(t), found.df)), "reason": ""}


def combine_sites(effects: pd.DataFrame, *, method: Method = "paule-mandel") -> pd.DataFrame:
    """Random-effects meta-analysis of the estimates of the sites.

    Parameters
    ----------
    effects
        Table of :func:`compare_sites` or :func:`~hypodask.stats.pool_effects`; sites without an estimate do not count.
    method
        See :data:`Method`.

    Returns
    -------
    DataFrame
        One row: ``sites`` that count; ``estimate`` with ``se``, 95 % interval, ``t, df, p`` by Hartung and Knapp;
        ``se_normal`` to ``p_normal`` by the normal distribution, too narrow for few sites; ``prediction_low`` and
        ``prediction_high``, the interval for the true effect at a new site (Higgins 2009; three sites or more);
        ``tau2``, the variance between sites in the squared unit of the variable; ``i2``, its share of the total
        variance, 0 to 1; Cochran's ``q`` with ``p_q``; ``reason`` why there is no result.

    Raises
    ------
    ResultsError
        If there is no such method, or the table lacks one of the columns ``site``, ``estimate`` and ``se``.

    Examples
    --------
    >>> effects = pd.DataFrame({"site": ["a", "b", "c"], "estimate": [-30.0, -50, -10], "se": [10.0, 12, 9]})
    >>> combine_sites(effects)[["sites", "estimate", "se", "tau2"]].round(2)
       sites  estimate     se    tau2
    0      3    -28.96  11.47  288.34
    """
    if method not in get_args(Method):
        raise ResultsError(f"no method {method!r}: choose one of {list(get_args(Method))}")
    lacking = {"site", "estimate", "se"} - set(effects.columns)
    if lacking:
        raise ResultsError(f"the table has no columns {sorted(lacking)}: give that of stats.compare_sites")
    used = effects[np.isfinite(effects["estimate"]) & (effects["se"] > 0)]
    estimates, errors = (used[name].to_numpy(dtype=np.float64) for name in ("estimate", "se"))
    row: dict[str, object] = {"method": method, "sites": len(used), "reason": ""}
    if len(used) < 2:
        row["reason"] = f"{len(used)} sites have an estimate, a meta-analysis needs two"
    elif np.ptp(estimates) <= 1e-12 * np.abs(estimates).max():
        row["reason"] = "all sites have the same estimate: the error of their mean is not known"
    else:
        row |= _combine(estimates, errors**2, _METHODS[method])
    return pd.DataFrame([row], columns=list(_COMBINED_COLUMNS))


def _combine(estimates: Float[ndarray, " site"], variances: Float[ndarray, " site"], method: str) -> dict[str, object]:
    # In units of a typical error, so that the unit of the volume does not change where the iteration stops.
    unit = float(np.sqrt(np.median(variances)))
    with np.errstate(invalid="ignore", divide="ignore"):
        # It takes the square root of a negative variance for results that are not used here.
        found = combine_effects(estimates / unit, variances / unit**2, method_re=method)
    df, q = len(estimates) - 1, float(found.q)
    # A negative variance by DerSimonian and Laird means zero: the fixed-effect model.
    kind = "re" if found.tau2 > 0 else "fe"
    tau2 = max(float(found.tau2), 0.0) * unit**2
    estimate = float(getattr(found, f"mean_effect_{kind}")) * unit
    se = float(np.sqrt(getattr(found, f"var_hksj_{kind}"))) * unit
    normal = float(getattr(found, f"sd_eff_w_{kind}")) * unit
    row = {"estimate": estimate, "tau2": tau2, "q": q, "p_q": float(stats.chi2.sf(q, df)), "i2": max(0.0, (q - df) / q)}
    row |= {"se": se, "t": estimate / se, "df": df, "p": float(2 * stats.t.sf(abs(estimate / se), df))}
    row |= _interval(estimate, se * float(stats.t.ppf(1 - ALPHA / 2, df)), "low", "high")
    row |= {"se_normal": normal, "p_normal": float(2 * stats.norm.sf(abs(estimate / normal)))}
    row |= _interval(estimate, normal * float(stats.norm.ppf(1 - ALPHA / 2)), "low_normal", "high_normal")
    reach = np.sqrt(tau2 + normal**2) * stats.t.ppf(1 - ALPHA / 2, df - 1) if df > 1 else np.nan
    return {**row, **_interval(estimate, float(reach), "prediction_low", "prediction_high")}


def _interval(middle: float, reach: float, low: str, high: str) -> dict[str, float]:
    return {low: middle - reach, high: middle + reach}


def leave_one_site_out(effects: pd.DataFrame, *, method: Method = "paule-mandel") -> pd.DataFrame:
    """Repeat the meta-analysis without each site in turn, to see whether the result depends on a single site.

    Parameters
    ----------
    effects, method
        As in :func:`combine_sites`.

    Returns
    -------
    DataFrame
        One row per site with an estimate: ``left_out``, then the columns of :func:`combine_sites`.
    """
    used = effects[np.isfinite(effects["estimate"])]
    tables = [combine_sites(used[used["site"] != name], method=method) for name in used["site"]]
    if not tables:
        return pd.DataFrame(columns=["left_out", *_COMBINED_COLUMNS])
    table = pd.DataFrame([one.iloc[0].to_dict() for one in tables], columns=list(_COMBINED_COLUMNS))
    table.insert(0, "left_out", used["site"].to_list())
    return table


def mixed_model(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    covariates: Sequence[str] = ("group", "age", "sex"),
    reference: str | None = None,
    by: str = "group",
    site: str = "site",
) -> pd.DataFrame:
    """Fit a linear model with a random intercept for each site, by restricted maximum likelihood.

    Tests are those of Kenward and Roger. A covariate that varies only between sites has about as many degrees of
    freedom as there are sites; one that varies within sites has those of the scans. The p is therefore not too small if
    there are few sites.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or lack a value do not count.
    variable, structure
        Such as ``normalized_volume_mm3`` of the ``hypothalamus``.
    covariates
        Numbers, or categories, whose levels are compared with the first in the alphabet.
    reference, by
        Group that the others are compared with, and the covariate that holds the group.
    site
        Coordinate that holds the site.

    Returns
    -------
    DataFrame
        One row per ``term``, such as ``age`` or ``group=PLS``: ``n`` scans of ``sites``, ``missing`` (usable, but
        without one of the values), ``estimate`` in the unit of the variable per unit of the covariate with ``se``,
        95 % interval, ``t, df`` and ``p``; ``site_sd`` and ``residual_sd`` in the unit of the variable, the same in
        each row; ``reason`` why there is no result, or what limits it.

    Raises
    ------
    ResultsError
        If a column is not there, there are fewer than two sites, or a covariate is constant or a linear combination of
        the others.

    References
    ----------
    Patterson & Thompson, Biometrika 1971; Kenward & Roger, Biometrics 1997.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"volume": ("scan", [8.0, 10, 9, 11, 14, 12, 5, 7])},
    ...     coords={"dose": ("scan", [0] * 4 + [1] * 4), "site": ("scan", list("aabbccdd"))},
    ... )
    >>> mixed_model(ds, "volume", covariates=["dose"])[["sites", "df", "p"]].round(3).values.tolist()
    [[4.0, 2.0, 1.0]]
    """
    usable = usable_scans(ds)
    known = [read_covariate(ds, name, reference if name == by else None, among=usable) for name in covariates]
    if not known:
        raise ResultsError("covariates=(), needed at least one: name one, such as 'group'")
    x, y, labels = encode(ds, known), values_of(ds, variable, structure), group_labels(ds, site)
    counted = usable & np.isfinite(x).all(axis=1) & np.isfinite(y) & (labels != "")
    terms = [column for covariate in known for column in covariate.columns]
    sites = group_names(labels[counted])
    if len(sites) < 2:
        raise ResultsError(
            f"usable scans at the sites {sites}, a random intercept needs two sites or more: check the column {site!r}"
        )
    _refuse_singular(moments_of(x[counted], y[counted, None]), terms)
    shared = {"n": int(counted.sum()), "sites": len(sites), "missing": int((usable & ~counted).sum())}
    rows = _mixed_rows(y[counted], x[counted], pd.factorize(labels[counted], sort=True)[0])
    named = [{"term": term, **shared, **row} for term, row in zip(terms, rows, strict=True)]
    return pd.DataFrame(named, columns=list(_MIXED_COLUMNS))


def _refuse_singular(moments: Moments, terms: list[str]) -> None:
    fixed = np.diagonal(moments.xx[0, 0]) <= 0
    if fixed.any() or is_singular(moments.xx[0])[0]:
        found = [term for term, same in zip(terms, fixed, strict=True) if same]
        what = f"{found} are the same in every scan" if found else f"{terms} are collinear"
        raise ResultsError(f"{what}: leave out those that follow from the others")


def _mixed_rows(y: Float[ndarray, " n"], x: Float[ndarray, "n column"], site: ndarray) -> list[dict[str, object]]:
    """The estimates of each column of ``x``."""
    if reason := _why_not_mixed(y, x, site):
        return [{"reason": reason}] * x.shape[1]
    found = fit_random_intercept(y, x, site)
    return [_term(found, column) for column in range(x.shape[1])]


def _why_not_mixed(y: Float[ndarray, " n"], x: Float[ndarray, "n column"], site: ndarray) -> str:
    if is_constant(y):
        return "the variable is the same in every scan"
    n = np.bincount(site)
    y_within, *x_within = (values - (np.bincount(site, values) / n)[site] for values in (y - y.mean(), *x.T))
    left = y_within - np.stack(x_within, 1) @ np.linalg.lstsq(np.stack(x_within, 1), y_within)[0]
    return "" if left.std() > 1e-10 * y.std() else "sites and covariates explain the values completely"


def _term(found: RandomIntercept, column: int) -> dict[str, object]:
    row: dict[str, object] = {"site_sd": found.site_sd, "residual_sd": found.residual_sd}
    estimate, se, df = (float(values[column]) for values in (found.slopes, found.errors, found.df))
    if not df > _FEWEST_DF:
        return row | {"estimate": estimate, "reason": "there are too few sites to separate the covariate from them"}
    t = estimate / se
    row |= {"estimate": estimate, "se": se, "t": t, "df": df, "p": float(2 * stats.t.sf(abs(t), df))}
    row |= _interval(estimate, se * float(stats.t.ppf(1 - ALPHA / 2, df)), "low", "high")
    return row | {"reason": "" if found.site_sd else "the sites do not differ: the model is an ordinary regression"}
