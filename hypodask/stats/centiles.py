"""What norms are used for: z and centile of a scan, curves to draw, and a check that the norms fit."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import special, stats

from hypodask.core.errors import ResultsError
from hypodask.stats.groups import ALPHA
from hypodask.stats.norms import Norms, People, StructureNorm, design_of, response_of
from hypodask.stats.samples import is_constant, is_in, require, usable_scans

_FEWEST_FOR_SHAPE = 20
"""The test of D'Agostino and Pearson is not valid for fewer."""

_REACH = float(stats.norm.ppf(1 - ALPHA / 2))
"""Standard errors on either side of an estimate that make its 95 % interval."""


def apply_norms(ds: xr.Dataset, norms: Norms) -> xr.Dataset:
    """Find z and centile of every scan.

    Parameters
    ----------
    ds
        Results with what the norms are adjusted for; scans of every group get a z.
    norms
        Of :func:`~hypodask.stats.fit_norms` or :func:`~hypodask.stats.adapt_norms`.

    Returns
    -------
    Dataset
        With ``z`` and ``centile`` (0 to 100), each with the ends of a 95 % interval, ``z_low``, ``z_high``,
        ``centile_low``, ``centile_high``; NaN for structures without a norm. ``norm_reason(scan)`` says why a scan has
        none: not usable, a covariate missing, or an age outside those of the reference. The interval is the error of
        the norm itself, which comes from the size of the reference and the controls of a site. It does not include how
        well the volume was measured.

    Raises
    ------
    ResultsError
        If the variable, a structure or a covariate of the norms is not there.
    """
    require(ds, norms.variable, "age", "structure")
    reasons = _reasons(ds, norms)
    within = reasons == ""
    known = ds["structure"].to_numpy().astype(str).tolist()
    z, error = np.full((2, ds.sizes["scan"], len(known)), np.nan)
    for norm in norms.structures:
        own_z, own_error = _z_and_error(ds, norms, norm, within)
        column = known.index(norm.structure)
        z[within, column], error[within, column] = own_z, own_error
    ends = {"": z, "_low": z - _REACH * error, "_high": z + _REACH * error}
    dims = ("scan", "structure")
    found = {f"z{end}": (dims, values, {"units": "1"}) for end, values in ends.items()}
    found |= {f"centile{end}": (dims, 100 * special.ndtr(values), {"units": "%"}) for end, values in ends.items()}
    return ds.assign(found).assign(norm_reason=("scan", reasons))


def _reasons(ds: xr.Dataset, norms: Norms) -> ndarray:
    """Why a scan has no norm: one sentence each, empty where it has one."""
    columns = sorted({name for norm in norms.structures for name in norm.columns})
    people = People.of(ds, columns)
    age = people.age_years
    conditions = {
        "not done, or excluded": ~usable_scans(ds),
        "no age": ~np.isfinite(age),
        f"age outside the norms: the reference is {norms.age_low_years:g} to {norms.age_high_years:g} years": (
            (age < norms.age_low_years) | (age > norms.age_high_years)
        ),
        "no sex": ~np.isfinite(people.male) & ("sex" in columns),
        "no ICV": ~np.isfinite(people.icv_mm3),
    }
    return np.select(list(conditions.values()), np.array(list(conditions), dtype=object), default="")


def _z_and_error(
    ds: xr.Dataset, norms: Norms, norm: StructureNorm, within: Bool[ndarray, " scan"]
) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
    """The z of the scans that have one, and its standard error.

    By the delta method from the errors of mean and standard deviation, and of shift and scale of the site.
    """
    design, spread = design_of(norms, norm.columns, norm.centre, People.of(ds, norm.columns).only(within))
    sd = np.exp(spread @ np.array(norm.log_sd))
    plain = (response_of(ds, norms, norm.structure)[within] - design @ np.array(norm.mean)) / sd
    mean_error2 = _quadratic(design, norm.mean_covariance) / sd**2
    sd_error2 = _quadratic(spread, norm.log_sd_covariance) * plain**2
    shrink = np.exp(-norm.log_scale)
    z = (plain - norm.shift) * shrink
    variance = (mean_error2 + sd_error2 + norm.shift_sd**2) * shrink**2 + (z * norm.log_scale_sd) ** 2
    return z, np.sqrt(variance)


def _quadratic(columns: Float[ndarray, "scan column"], covariance: Sequence[Sequence[float]]) -> ndarray:
    """Variance of a linear combination, for each row of its columns."""
    return np.einsum("si,ij,sj->s", columns, np.array(covariance), columns, optimize=True)


def centile_curves(
    norms: Norms,
    structure: str,
    ages_years: Sequence[float],
    *,
    sex: Literal["male", "female"] = "female",
    icv_mm3: float = 1.5e6,
    centiles: Sequence[float] = (2.5, 10, 25, 50, 75, 90, 97.5),
) -> pd.DataFrame:
    """Volumes of chosen centiles over age, to draw or to print.

    Parameters
    ----------
    norms
        Of :func:`~hypodask.stats.fit_norms` or :func:`~hypodask.stats.adapt_norms`.
    structure
        Such as ``hypothalamus``.
    ages_years
        Ages within those of the reference.
    sex, icv_mm3
        Of the person that the curves are for, if the norms are adjusted for them.
    centiles
        Above 0 and below 100.

    Returns
    -------
    DataFrame
        One row per age and centile: ``age, centile, value`` in the unit of the variable with the 95 % interval
        ``value_low, value_high`` (delta method).

    Raises
    ------
    ResultsError
        If there is no such norm, an age lies outside those of the reference, or a centile is not between 0 and 100.
    """
    norm, age, share = norms.of(structure), np.asarray(ages_years, np.float64), np.asarray(centiles, np.float64)
    if (age < norms.age_low_years).any() or (age > norms.age_high_years).any():
        raise ResultsError(
            f"ages {age.tolist()}, needed {norms.age_low_years:g} to {norms.age_high_years:g} years as in the "
            "reference: leave the others out"
        )
    if ((share <= 0) | (share >= 100)).any():
        raise ResultsError(f"centiles {share.tolist()}, needed numbers above 0 and below 100: leave the others out")
    people = People(age, np.full(len(age), float(sex == "male")), np.full(len(age), icv_mm3))
    design, spread = design_of(norms, norm.columns, norm.centre, people)
    sd = np.exp(spread @ np.array(norm.log_sd))[:, None]
    site = np.exp(norm.log_scale) * special.ndtri(share / 100)
    plain = norm.shift + site
    middle = (design @ np.array(norm.mean))[:, None] + sd * plain
    variance = _quadratic(design, norm.mean_covariance)[:, None] + sd**2 * (
        plain**2 * _quadratic(spread, norm.log_sd_covariance)[:, None]
        + norm.shift_sd**2
        + (site * norm.log_scale_sd) ** 2
    )
    undo = np.exp if norms.scale == "log" else np.asarray
    ends = {"value": 0.0, "value_low": -_REACH, "value_high": _REACH}
    values = {name: undo(middle + reach * np.sqrt(variance)).ravel() for name, reach in ends.items()}
    return pd.DataFrame({"age": np.repeat(age, len(share)), "centile": np.tile(share, len(age))} | values)


def check_norms(ds: xr.Dataset, norms: Norms, *, reference: str | None = "control", by: str = "group") -> pd.DataFrame:
    """Check that norms fit: on the reference itself or, better, on controls that were not in the fit.

    Parameters
    ----------
    ds
        Results with what the norms are adjusted for.
    norms
        Of :func:`~hypodask.stats.fit_norms` or :func:`~hypodask.stats.adapt_norms`.
    reference
        Name of the group to check; None for all scans.
    by
        Coordinate that holds the group.

    Returns
    -------
    DataFrame
        One row per structure: ``n``; ``mean, sd, skewness, kurtosis`` (excess) of z, which are 0, 1, 0 and 0 where the
        norms fit; ``below_5``, ``below_95``: percent of scans below these centiles; ``p_mean`` (t-test that the mean is
        0) and ``p_normal`` (D'Agostino and Pearson); ``reason`` why there is no result.

    Raises
    ------
    ResultsError
        As :func:`apply_norms` does, or if there is no such group.
    """
    members = is_in(ds, reference, by)
    z = apply_norms(ds, norms)["z"]
    rows = []
    for norm in norms.structures:
        own = z.sel(structure=norm.structure).to_numpy()[members]
        rows.append({"structure": norm.structure} | _check_z(own[np.isfinite(own)]))
    columns = ("structure", "n", "mean", "sd", "skewness", "kurtosis", "below_5", "below_95", "p_mean", "p_normal")
    return pd.DataFrame(rows, columns=[*columns, "reason"])


def _check_z(z: Float[ndarray, " n"]) -> dict[str, object]:
    if len(z) < _FEWEST_FOR_SHAPE or is_constant(z):
        return {"n": len(z), "reason": f"{len(z)} scans have a z, needed {_FEWEST_FOR_SHAPE} that vary"}
    low, high = special.ndtri([0.05, 0.95])
    found = {"mean": z.mean(), "sd": z.std(ddof=1), "skewness": stats.skew(z), "kurtosis": stats.kurtosis(z)}
    found |= {"below_5": 100 * (z < low).mean(), "below_95": 100 * (z < high).mean()}
    found |= {"p_mean": stats.ttest_1samp(z, 0.0).pvalue, "p_normal": stats.normaltest(z).pvalue}
    return {"n": len(z), **{name: float(value) for name, value in found.items()}, "reason": ""}
