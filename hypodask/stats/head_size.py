"""Ways to take the size of the head out of a volume, side by side.

Kassubek et al. 2025 divide by the intracranial volume (``proportion``), which is right where a volume grows in
proportion to the head. Regression (``residual``, Mathalon et al. 1993), analysis of covariance (``covariate``) and a
power of the ICV (``power``, Liu et al. 2014) take the relation from the data: from the reference group, whom no disease
has moved, except for the covariate, whose slope is common to both groups.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pandas as pd
import statsmodels.api as sm
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from hypodask.errors import ResultsError
from hypodask.stats.groups import ALPHA, FEWEST_SCANS, pairs
from hypodask.stats.icv import normalize_icv
from hypodask.stats.multiplicity import holm
from hypodask.stats.samples import group_labels, group_names, is_constant, is_in, usable_scans, values_of
from hypodask.variables import VARIABLES

Adjustment = Literal["proportion", "residual", "power"]

METHODS = ("none", "proportion", "residual", "power", "covariate")
"""Rows of the table, in its order; ``none`` is the volume as it was measured."""

COLUMNS = (
    *("method", "group_a", "group_b", "n_a", "n_b", "missing_a", "missing_b", "mean_a", "mean_b"),
    *("difference", "difference_low", "difference_high", "percent", "t", "df", "p", "p_holm", "cohens_d"),
    *("p_slopes", "reason"),
)


@dataclass(frozen=True)
class Line:
    """A straight line through the volumes of the reference group, with its 95 % interval."""

    n: int
    intercept: float
    slope: float
    slope_low: float
    slope_high: float
    error: float
    """Standard error of the slope."""
    r: float

    @classmethod
    def through(cls, x: Float[ndarray, " n"], y: Float[ndarray, " n"]) -> Self:
        """Fit by least squares."""
        fit = stats.linregress(x, y)
        reach = float(stats.t.ppf(1 - ALPHA / 2, len(x) - 2)) * fit.stderr
        ends = float(fit.slope - reach), float(fit.slope + reach)
        return cls(len(x), float(fit.intercept), float(fit.slope), *ends, float(fit.stderr), float(fit.rvalue))

    def p_of_slope(self, slope: float) -> float:
        """P of the slope being this one, two-sided."""
        if not self.error > 0:
            return float("nan")
        return float(2 * stats.t.sf(abs(self.slope - slope) / self.error, self.n - 2))


def adjust_icv(ds: xr.Dataset, *, method: Adjustment, reference: str | None, by: str = "group") -> xr.Dataset:
    """Adjust every volume to the mean ICV of the reference group.

    With ``M`` the mean ICV of the reference group: ``proportion`` is ``V / ICV * M`` (Kassubek 2025, eq. 1);
    ``residual`` is ``V - b (ICV - M)``, b the slope of V on ICV; ``power`` is ``V (M / ICV)^b``, b the slope of log V
    on log ICV (Liu et al. 2014). Slopes are those of the reference group.

    Parameters
    ----------
    ds
        Results with ``volume_mm3`` and the structure ``icv``; scans that are not done or ``excluded`` do not count
        for the slopes and are adjusted by them.
    method
        ``proportion``, ``residual`` or ``power``.
    reference
        Name of the reference group; None for all scans.
    by
        Coordinate that holds the group.

    Returns
    -------
    Dataset
        With ``adjusted_volume_mm3(scan, structure)``; NaN without ICV, for the ICV itself, and for a structure whose
        slope cannot be found from fewer than three scans. Its ``attrs`` name method and reference.

    Raises
    ------
    ResultsError
        If the method is unknown, or ICV or reference group are not there.

    Examples
    --------
    >>> volumes = [[800.0, 1.4e6], [850.0, 1.5e6], [900.0, 1.6e6]]
    >>> ds = xr.Dataset({"volume_mm3": (("scan", "structure"), volumes)}, coords={"structure": ["hypothalamus", "icv"]})
    >>> adjusted = adjust_icv(ds, method="residual", reference=None).adjusted_volume_mm3
    >>> adjusted.sel(structure="hypothalamus").values.round(6).tolist()
    [850.0, 850.0, 850.0]
    """
    if method not in ("proportion", "residual", "power"):
        raise ResultsError(f"no adjustment {method!r}: choose proportion, residual or power")
    attrs = normalize_icv(ds, reference=reference, by=by)["normalized_volume_mm3"].attrs
    icv, behind = _icv(ds), usable_scans(ds) & is_in(ds, reference, by)
    adjusted = xr.full_like(ds["volume_mm3"].transpose("scan", "structure"), np.nan, dtype=np.float64)
    for place, structure in enumerate(ds["structure"].to_numpy().astype(str)):
        if structure != "icv":
            adjusted[:, place] = _adjust(values_of(ds, "volume_mm3", structure), icv, behind, method)
    adjusted.attrs = {**attrs, "description": VARIABLES["adjusted_volume_mm3"].description, "method": method}
    return ds.assign(adjusted_volume_mm3=adjusted)


def _adjust(
    volume: Float[ndarray, " scan"], icv: Float[ndarray, " scan"], behind: Bool[ndarray, " scan"], method: str
) -> Float[ndarray, " scan"]:
    mean_icv = float(icv[behind & np.isfinite(icv)].mean())
    if method == "proportion":
        return volume / icv * mean_icv
    line = _relation(volume, icv, behind, logarithmic=method == "power")
    if line is None:
        return np.full(len(volume), np.nan)
    if method == "power":
        return volume * (mean_icv / icv) ** line.slope
    return volume - line.slope * (icv - mean_icv)


def _icv(ds: xr.Dataset) -> Float[ndarray, " scan"]:
    icv = values_of(ds, "volume_mm3", "icv")
    return np.where(icv > 0, icv, np.nan)


def _relation(
    volume: Float[ndarray, " scan"],
    icv: Float[ndarray, " scan"],
    behind: Bool[ndarray, " scan"],
    *,
    logarithmic: bool,
) -> Line | None:
    counted = behind & np.isfinite(icv) & np.isfinite(volume)
    if logarithmic:
        counted &= np.where(np.isfinite(volume), volume, 0) > 0
    x, y = icv[counted], volume[counted]
    if len(x) < FEWEST_SCANS or is_constant(x):
        return None
    return Line.through(np.log(x), np.log(y)) if logarithmic else Line.through(x, y)


def relate_to_icv(ds: xr.Dataset, *, reference: str | None, by: str = "group") -> pd.DataFrame:
    """Find how each volume grows with the ICV in the reference group, and whether in proportion to it.

    Parameters
    ----------
    ds, reference, by
        As in :func:`adjust_icv`.

    Returns
    -------
    DataFrame
        One row per structure but the ICV: ``n``; ``slope`` of the volume on ICV, mm3 per mm3, with its 95 % interval;
        ``power``, the slope of log volume on log ICV, with its 95 % interval, ``p_no_relation`` (power 0) and
        ``p_proportional`` (power 1: the paper's equation is right where this is not small); ``r`` of the logarithms;
        ``reason`` why there is none.

    Raises
    ------
    ResultsError
        If ICV or reference group are not there.

    Examples
    --------
    >>> icv = np.array([1.3e6, 1.4e6, 1.5e6, 1.6e6])
    >>> volumes = np.stack([icv**0.5, icv], axis=1)
    >>> ds = xr.Dataset({"volume_mm3": (("scan", "structure"), volumes)}, coords={"structure": ["hypothalamus", "icv"]})
    >>> relate_to_icv(ds, reference=None)["power"].round(6).tolist()
    [0.5]
    """
    icv, behind = _icv(ds), usable_scans(ds) & is_in(ds, reference, by)
    rows = []
    for structure in ds["structure"].to_numpy().astype(str):
        if structure != "icv":
            volume = values_of(ds, "volume_mm3", structure)
            rows.append({"structure": structure} | _relation_row(volume, icv, behind))
    names = ("structure", "n", "slope", "slope_low", "slope_high", "power", "power_low", "power_high")
    return pd.DataFrame(rows, columns=[*names, "p_no_relation", "p_proportional", "r", "reason"])


def _relation_row(
    volume: Float[ndarray, " scan"], icv: Float[ndarray, " scan"], behind: Bool[ndarray, " scan"]
) -> dict[str, object]:
    plain = _relation(volume, icv, behind, logarithmic=False)
    power = _relation(volume, icv, behind, logarithmic=True)
    if plain is None or power is None:
        n = int((behind & np.isfinite(icv) & np.isfinite(volume)).sum())
        return {
            "n": n,
            "reason": f"{n} scans of the reference have both values, needed {FEWEST_SCANS} heads that differ",
        }
    row = {"n": power.n, "slope": plain.slope, "slope_low": plain.slope_low, "slope_high": plain.slope_high}
    row |= {"power": power.slope, "power_low": power.slope_low, "power_high": power.slope_high, "r": power.r}
    return row | {"p_no_relation": power.p_of_slope(0), "p_proportional": power.p_of_slope(1), "reason": ""}


def compare_icv_adjustments(
    ds: xr.Dataset, *, structure: str = "hypothalamus", reference: str | None = None, by: str = "group"
) -> pd.DataFrame:
    """Compare the groups under each way to take out the size of the head.

    Parameters
    ----------
    ds
        Results with ``volume_mm3`` and ICV; scans that are failed, skipped, ``excluded`` or lack volume, ICV or group
        do not count under any method.
    structure
        Such as ``hypothalamus``.
    reference
        Group whose slopes and mean ICV are used and against which the others are compared; None for all scans.
    by
        Coordinate that holds the group.

    Returns
    -------
    DataFrame
        One row per method (``none, proportion, residual, power, covariate``) and pair of groups: ``n`` and ``mean`` of
        both, at the mean ICV of the reference for ``covariate``; ``missing``, usable scans of the group without volume
        or ICV; ``difference`` (a - b) with its 95 % interval in mm3 and ``percent`` of ``mean_b``; ``t, df, p``
        (Student's, or that of the group in ``volume ~ group + ICV``) and ``p_holm`` over the pairs of a method;
        ``cohens_d``, the difference in residual SDs; ``p_slopes`` of equal slopes in both groups, which the covariate
        assumes; ``reason`` why there is no p, and a warning wherever the methods disagree.

    Raises
    ------
    ResultsError
        If structure, ICV, group column or reference group are not there.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> icv = rng.normal(1.5e6, 1e5, 40)
    >>> volumes = np.stack([8e-5 * icv + 700 + rng.normal(0, 20, 40), icv], axis=1)
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volumes)},
    ...     coords={"structure": ["hypothalamus", "icv"], "group": ("scan", ["PLS", "control"] * 20)},
    ... )
    >>> compare_icv_adjustments(ds, reference="control")["method"].tolist()
    ['none', 'proportion', 'residual', 'power', 'covariate']
    """
    normalize_icv(ds, reference=reference, by=by)  # tells what lacks
    volume, icv, behind = values_of(ds, "volume_mm3", structure), _icv(ds), usable_scans(ds) & is_in(ds, reference, by)
    volumes = {method: _adjust(volume, icv, behind, method) for method in ("proportion", "residual", "power")}
    volumes |= {"none": volume, "covariate": volume}
    head = icv - icv[behind & np.isfinite(icv)].mean()
    rows = []
    for method in METHODS:
        for a, b in _pairs(ds, volume, icv, reference, by):
            found = _compare(volumes[method], head if method == "covariate" else None, a.members, b.members)
            rows.append({"method": method} | _counts(a, b) | found)
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "p_holm"])
    adjusted = table.groupby("method", sort=False)["p"].transform(lambda p: holm(p.to_numpy(dtype=np.float64)))
    table.insert(COLUMNS.index("p_holm"), "p_holm", adjusted)
    return _with_warnings(table)


@dataclass(frozen=True, eq=False)
class _Group:
    name: str
    members: Bool[ndarray, " scan"]
    """Usable scans with volume and ICV."""
    missing: int


def _pairs(
    ds: xr.Dataset, volume: Float[ndarray, " scan"], icv: Float[ndarray, " scan"], reference: str | None, by: str
) -> list[tuple[_Group, _Group]]:
    labels, usable = group_labels(ds, by), usable_scans(ds)
    measured = np.isfinite(icv) & np.isfinite(volume)
    groups = {}
    for name in group_names(labels, reference):
        own = usable & (labels == name)
        groups[name] = _Group(name, own & measured, int((own & ~measured).sum()))
    return [(groups[a], groups[b]) for a, b in pairs(list(groups), reference)]


def _counts(a: _Group, b: _Group) -> dict[str, object]:
    row: dict[str, object] = {"group_a": a.name, "group_b": b.name}
    row |= {"n_a": int(a.members.sum()), "n_b": int(b.members.sum())}
    return row | {"missing_a": a.missing, "missing_b": b.missing}


def _compare(
    volume: Float[ndarray, " scan"],
    head: Float[ndarray, " scan"] | None,
    a: Bool[ndarray, " scan"],
    b: Bool[ndarray, " scan"],
) -> dict[str, object]:
    """Regress the volume on the group and, where it is given, the size of the head above the reference's mean."""
    if reason := _reason(volume, head, a, b):
        return {"reason": reason}
    both = a | b
    first = a[both].astype(np.float64)
    columns = [np.ones(len(first)), first] + ([] if head is None else [head[both] / np.abs(head[both]).max()])
    fit = sm.OLS(volume[both], np.stack(columns, axis=1)).fit()
    low, high = fit.conf_int(ALPHA)[1]
    mean_b, difference = fit.params[0], fit.params[1]
    row = {"mean_a": mean_b + difference, "mean_b": mean_b, "difference": difference, "difference_low": low}
    row |= {"difference_high": high, "percent": 100 * difference / mean_b, "t": fit.tvalues[1], "df": fit.df_resid}
    row |= {"p": fit.pvalues[1], "cohens_d": difference / np.sqrt(fit.mse_resid)}
    if head is not None and len(first) > 4:
        crossed = sm.OLS(volume[both], np.stack([*columns, columns[2] * first], axis=1)).fit()
        row["p_slopes"] = crossed.pvalues[3]
    return {name: float(value) for name, value in row.items()} | {"reason": ""}


def _reason(
    volume: Float[ndarray, " scan"],
    head: Float[ndarray, " scan"] | None,
    a: Bool[ndarray, " scan"],
    b: Bool[ndarray, " scan"],
) -> str:
    fewest = min(int(a.sum()), int(b.sum()))
    if fewest < FEWEST_SCANS:
        return f"a group has {fewest} usable scans with volume and ICV, a test needs {FEWEST_SCANS}"
    if not np.isfinite(volume[a | b]).all():
        return "the reference gives no slope: see relate_to_icv"
    if is_constant(volume[a]) and is_constant(volume[b]):
        return "the values do not vary within either group"
    return "" if head is None or not (is_constant(head[a]) and is_constant(head[b])) else "all heads are of one size"


def _with_warnings(table: pd.DataFrame) -> pd.DataFrame:
    """Say it in every row of a comparison whose conclusion depends on the method."""
    warnings = pd.Series("", index=table.index)
    for _, rows in table.groupby(["group_a", "group_b"], sort=False):
        tested = rows[rows["p"].notna() & (rows["method"] != "none")]
        significant = tested["p"] < ALPHA
        signs = set(np.sign(tested["difference"][significant]))
        if len(signs) == 2 or 0 < significant.sum() < len(tested):
            yes, no = ", ".join(tested["method"][significant]), ", ".join(tested["method"][~significant])
            opposite = "; with opposite signs" if len(signs) == 2 else ""
            warnings[rows.index] = f"methods disagree: p < {ALPHA} by {yes}, not by {no or 'none'}{opposite}"
    reasons = [f"{said}; {warning}".strip("; ") for said, warning in zip(table["reason"], warnings, strict=True)]
    return table.assign(reason=reasons)
