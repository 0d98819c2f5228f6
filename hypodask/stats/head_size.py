"""Take head size out of a volume: the paper's way and others, side by side.

Kassubek et al. 2025 divide by the intracranial volume (``proportion``), which is right where a volume grows in
proportion to the ICV. Regression (``residual``, Mathalon et al. 1993), a power of the ICV (``power``, Liu et al. 2014)
and analysis of covariance (``covariate``) estimate the relation from the data. The first two estimate it in the
reference group, where no disease has changed it; the covariate has one slope for both groups.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import statsmodels.api as sm
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from hypodask.core.errors import ResultsError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.core.variables import VARIABLES
from hypodask.stats.groups import ALPHA, FEWEST_SCANS, pairs
from hypodask.stats.multiplicity import holm
from hypodask.stats.samples import group_labels, group_names, is_constant, is_in, usable_scans, values_of

Adjustment = Literal["proportion", "residual", "power"]

_METHODS = ("none", "proportion", "residual", "power", "covariate")
"""Rows of the table, in its order; ``none`` is the volume as it was measured."""

_COLUMNS = (
    *("method", "group_a", "group_b", "n_a", "n_b", "missing_a", "missing_b", "mean_a", "mean_b"),
    *("difference", "difference_low", "difference_high", "percent", "t", "df", "p", "p_holm", "cohens_d"),
    *("p_slopes", "reason"),
)


@dataclass(frozen=True, eq=False)
class _Heads:
    """The ICV of each scan, and the scans of the reference group that an adjustment is estimated from."""

    icv_mm3: Float[ndarray, " scan"]
    """NaN where there is none above zero."""
    reference: Bool[ndarray, " scan"]
    """Scans of the reference group that are usable and have an ICV."""
    mean_icv_mm3: float
    """Of these scans."""

    @classmethod
    def of(cls, ds: xr.Dataset, reference: str | None, by: str) -> "_Heads":
        """Raise an error where the reference group has no ICV."""
        icv_mm3 = values_of(ds, "volume_mm3", HEAD_SIZE.name)
        icv_mm3 = np.where(icv_mm3 > 0, icv_mm3, np.nan)
        members = usable_scans(ds) & np.isfinite(icv_mm3) & is_in(ds, reference, by)
        if not members.any():
            raise ResultsError(
                f"no usable ICV in the reference group {reference or 'of all scans'!r}: "
                "check its failed and excluded scans and those without a skull, or choose another reference"
            )
        return cls(icv_mm3, members, float(icv_mm3[members].mean()))

    def adjust(self, volume_mm3: Float[ndarray, " scan"], method: str) -> Float[ndarray, " scan"]:
        """The volumes at the mean ICV of the reference; NaN where the reference gives no slope."""
        if method == "proportion":
            return volume_mm3 / self.icv_mm3 * self.mean_icv_mm3
        line = self.relate(volume_mm3, logarithmic=method == "power")
        if line is None:
            return np.full(len(volume_mm3), np.nan)
        if method == "power":
            return volume_mm3 * (self.mean_icv_mm3 / self.icv_mm3) ** line.slope
        return volume_mm3 - line.slope * (self.icv_mm3 - self.mean_icv_mm3)

    def relate(self, volume_mm3: Float[ndarray, " scan"], *, logarithmic: bool) -> "_Line | None":
        """The line through the volumes of the reference group over ICV; None for too few scans or one ICV."""
        counted = self.reference & np.isfinite(volume_mm3)
        if logarithmic:
            counted &= np.where(np.isfinite(volume_mm3), volume_mm3, 0) > 0
        x, y = self.icv_mm3[counted], volume_mm3[counted]
        if len(x) < FEWEST_SCANS or is_constant(x):
            return None
        return _Line.through(np.log(x), np.log(y)) if logarithmic else _Line.through(x, y)


@dataclass(frozen=True)
class _Line:
    """A straight line with the 95 % interval of its slope."""

    n: int
    slope: float
    slope_low: float
    slope_high: float
    error: float
    """Standard error of the slope."""
    r: float

    @classmethod
    def through(cls, x: Float[ndarray, " n"], y: Float[ndarray, " n"]) -> "_Line":
        """Fit by least squares."""
        fit = stats.linregress(x, y)
        reach = float(stats.t.ppf(1 - ALPHA / 2, len(x) - 2)) * fit.stderr
        ends = float(fit.slope - reach), float(fit.slope + reach)
        return cls(len(x), float(fit.slope), *ends, float(fit.stderr), float(fit.rvalue))

    def p_of_slope(self, slope: float) -> float:
        """Two-sided p of the test that the true slope is this one."""
        if not self.error > 0:
            return float("nan")
        return float(2 * stats.t.sf(abs(self.slope - slope) / self.error, self.n - 2))


def normalize_icv(ds: xr.Dataset, *, reference: str | None, by: str = "group") -> xr.Dataset:
    """Divide every volume by the ICV and multiply it by the mean ICV of the reference group.

    Equation 1 of Kassubek et al. 2025: ``V / V_ICV * mean V_ICV of controls``. The values are those of
    :func:`adjust_icv` with the method ``proportion``, under the name that the paper's analysis uses. The mean is over
    the scans of the reference group that are done and, where :func:`~hypodask.stats.find_outliers` was run before, not
    excluded. It is one factor for all scans: another reference scales all group means alike and changes no test.

    Parameters
    ----------
    ds
        Results with ``volume_mm3`` and the structure ``icv``.
    reference
        Name of the reference group; None for the mean over all scans.
    by
        Coordinate that holds the group.

    Returns
    -------
    Dataset
        With ``normalized_volume_mm3(scan, structure)``. It is NaN where a scan has no ICV, as where the skull was
        stripped (its ``warnings`` say so), and for the ICV itself, which would be the same number in every scan. Its
        ``attrs`` give the reference, its mean ICV and the number of scans in that mean.

    Raises
    ------
    ResultsError
        If there is no ICV, no such group, or no ICV in the group.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), [[800.0, 1.4e6], [900.0, 1.6e6]])},
    ...     coords={"structure": ["hypothalamus", "icv"], "group": ("scan", ["control", "PLS"])},
    ... )
    >>> ds.pipe(normalize_icv, reference="control").normalized_volume_mm3.sel(structure="hypothalamus").values
    array([800. , 787.5])
    """
    return _with_adjusted(ds, "normalized_volume_mm3", "proportion", reference, by)


def adjust_icv(ds: xr.Dataset, *, method: Adjustment, reference: str | None, by: str = "group") -> xr.Dataset:
    """Adjust every volume to the mean ICV of the reference group.

    With ``M`` the mean ICV of the reference group: ``proportion`` is ``V / ICV * M`` (Kassubek 2025, eq. 1);
    ``residual`` is ``V - b (ICV - M)`` with b the slope of V on ICV; ``power`` is ``V (M / ICV)^b`` with b the slope of
    log V on log ICV (Liu et al. 2014). Slopes are estimated in the reference group.

    Parameters
    ----------
    ds
        Results with ``volume_mm3`` and the structure ``icv``. Scans that are not done or ``excluded`` are adjusted too,
        but do not count for the slopes and the mean.
    method
        ``proportion``, ``residual`` or ``power``.
    reference
        Name of the reference group; None for all scans.
    by
        Coordinate that holds the group.

    Returns
    -------
    Dataset
        With ``adjusted_volume_mm3(scan, structure)``. It is NaN without ICV, for the ICV itself, and for a structure
        that fewer than three scans of the reference have. Its ``attrs`` give the method, the reference, its mean ICV
        and the number of scans in that mean.

    Raises
    ------
    ResultsError
        If the method is unknown, there is no ICV, no such group, or no ICV in the group.

    Examples
    --------
    >>> volumes = [[800.0, 1.4e6], [850.0, 1.5e6], [900.0, 1.6e6]]
    >>> ds = xr.Dataset({"volume_mm3": (("scan", "structure"), volumes)}, coords={"structure": ["hypothalamus", "icv"]})
    >>> adjusted = adjust_icv(ds, method="residual", reference=None).adjusted_volume_mm3
    >>> adjusted.sel(structure="hypothalamus").values.round(6).tolist()
    [850.0, 850.0, 850.0]
    """
    if method not in get_args(Adjustment):
        raise ResultsError(f"no adjustment {method!r}: choose proportion, residual or power")
    adjusted = _with_adjusted(ds, "adjusted_volume_mm3", method, reference, by)
    adjusted["adjusted_volume_mm3"].attrs["method"] = method
    return adjusted


def _with_adjusted(ds: xr.Dataset, name: str, method: Adjustment, reference: str | None, by: str) -> xr.Dataset:
    heads = _Heads.of(ds, reference, by)
    adjusted = np.full((ds.sizes["scan"], ds.sizes["structure"]), np.nan)
    for column, structure in enumerate(ds["structure"].to_numpy().astype(str)):
        if structure != HEAD_SIZE.name:
            adjusted[:, column] = heads.adjust(values_of(ds, "volume_mm3", structure), method)
    attrs = {
        "units": VARIABLES[name].units,
        "description": VARIABLES[name].description,
        "reference": reference or "all scans",
        "reference_mean_icv_mm3": heads.mean_icv_mm3,
        "reference_n": int(heads.reference.sum()),
    }
    return ds.assign({name: (("scan", "structure"), adjusted, attrs)})


def relate_to_icv(ds: xr.Dataset, *, reference: str | None, by: str = "group") -> pd.DataFrame:
    """Find how each volume grows with the ICV in the reference group, and whether in proportion to it.

    Parameters
    ----------
    ds, reference, by
        As in :func:`adjust_icv`.

    Returns
    -------
    DataFrame
        One row per structure except the ICV: ``n``; ``slope`` of the volume on ICV, mm3 per mm3, with its 95 %
        interval; ``power``, the slope of log volume on log ICV, with its 95 % interval; ``p_no_relation`` (the power is
        0) and ``p_proportional`` (the power is 1: where this p is small, the paper's equation is wrong); ``r`` of the
        logarithms; ``reason`` why there is no result.

    Raises
    ------
    ResultsError
        If there is no ICV, no such group, or no ICV in the group.

    Examples
    --------
    >>> icv = np.array([1.3e6, 1.4e6, 1.5e6, 1.6e6])
    >>> volumes = np.stack([icv**0.5, icv], axis=1)
    >>> ds = xr.Dataset({"volume_mm3": (("scan", "structure"), volumes)}, coords={"structure": ["hypothalamus", "icv"]})
    >>> relate_to_icv(ds, reference=None)["power"].round(6).tolist()
    [0.5]
    """
    heads = _Heads.of(ds, reference, by)
    rows = []
    for structure in ds["structure"].to_numpy().astype(str):
        if structure != HEAD_SIZE.name:
            rows.append({"structure": structure} | _relation_row(values_of(ds, "volume_mm3", structure), heads))
    names = ("structure", "n", "slope", "slope_low", "slope_high", "power", "power_low", "power_high")
    return pd.DataFrame(rows, columns=[*names, "p_no_relation", "p_proportional", "r", "reason"])


def _relation_row(volume_mm3: Float[ndarray, " scan"], heads: _Heads) -> dict[str, object]:
    plain = heads.relate(volume_mm3, logarithmic=False)
    power = heads.relate(volume_mm3, logarithmic=True)
    if plain is None or power is None:
        n = int((heads.reference & np.isfinite(volume_mm3)).sum())
        return {
            "n": n,
            "reason": f"{n} scans of the reference have both values, needed {FEWEST_SCANS} whose ICVs differ",
        }
    row = {"n": power.n, "slope": plain.slope, "slope_low": plain.slope_low, "slope_high": plain.slope_high}
    row |= {"power": power.slope, "power_low": power.slope_low, "power_high": power.slope_high, "r": power.r}
    return row | {"p_no_relation": power.p_of_slope(0), "p_proportional": power.p_of_slope(1), "reason": ""}


def compare_icv_adjustments(
    ds: xr.Dataset, *, structure: str = MAIN.name, reference: str | None = None, by: str = "group"
) -> pd.DataFrame:
    """Compare the groups under each way to take head size out of a volume.

    Parameters
    ----------
    ds
        Results with ``volume_mm3`` and ICV; scans that are failed, skipped, ``excluded`` or lack volume, ICV or group
        do not count under any method.
    structure
        Such as ``hypothalamus``.
    reference
        Group whose slopes and mean ICV are used and with which the others are compared; None for all scans.
    by
        Coordinate that holds the group.

    Returns
    -------
    DataFrame
        One row per method (``none, proportion, residual, power, covariate``) and pair of groups: ``n`` and ``mean`` of
        both, at the mean ICV of the reference for ``covariate``; ``missing``, usable scans of the group without volume
        or ICV; ``difference`` (a - b) with its 95 % interval in mm3 and ``percent`` of ``mean_b``; ``t, df, p``
        (Student's, or that of the group in ``volume ~ group + ICV``) and ``p_holm`` over the pairs of a method;
        ``cohens_d``, the difference in residual SDs; ``p_slopes``, the test that both groups have the same slope, which
        ``covariate`` assumes; ``reason`` why there is no p, and a warning wherever the methods disagree.

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
    heads, volume = _Heads.of(ds, reference, by), values_of(ds, "volume_mm3", structure)
    volumes = {method: heads.adjust(volume, method) for method in get_args(Adjustment)}
    volumes |= {"none": volume, "covariate": volume}
    icv_above_mean = heads.icv_mm3 - heads.mean_icv_mm3
    compared = _pairs(ds, np.isfinite(heads.icv_mm3) & np.isfinite(volume), reference, by)
    rows: list[dict[str, object]] = []
    for method in _METHODS:
        for a, b in compared:
            row: dict[str, object] = {"method": method, "group_a": a.name, "group_b": b.name}
            row |= {"n_a": int(a.members.sum()), "n_b": int(b.members.sum())}
            row |= {"missing_a": a.missing, "missing_b": b.missing}
            covariate = icv_above_mean if method == "covariate" else None
            rows.append(row | _compare(volumes[method], covariate, a.members, b.members))
    table = pd.DataFrame(rows, columns=[name for name in _COLUMNS if name != "p_holm"])
    adjusted = table.groupby("method", sort=False)["p"].transform(lambda p: holm(p.to_numpy(dtype=np.float64)))
    table.insert(_COLUMNS.index("p_holm"), "p_holm", adjusted)
    return _with_warnings(table)


@dataclass(frozen=True, eq=False)
class _Group:
    name: str
    members: Bool[ndarray, " scan"]
    """Usable scans with volume and ICV."""
    missing: int


def _pairs(
    ds: xr.Dataset, measured: Bool[ndarray, " scan"], reference: str | None, by: str
) -> list[tuple[_Group, _Group]]:
    labels, usable = group_labels(ds, by), usable_scans(ds)
    groups = {}
    for name in group_names(labels, reference):
        own = usable & (labels == name)
        groups[name] = _Group(name, own & measured, int((own & ~measured).sum()))
    return [(groups[a], groups[b]) for a, b in pairs(list(groups), reference)]


def _compare(
    volume: Float[ndarray, " scan"],
    icv_above_mean: Float[ndarray, " scan"] | None,
    a: Bool[ndarray, " scan"],
    b: Bool[ndarray, " scan"],
) -> dict[str, object]:
    """Regress the volume on the group and, where it is given, on the ICV less the mean of the reference."""
    if reason := _reason(volume, icv_above_mean, a, b):
        return {"reason": reason}
    both = a | b
    first = a[both].astype(np.float64)
    columns = [np.ones(len(first)), first]
    if icv_above_mean is not None:
        # Scaled to at most 1, so that a model in mm3 is as well conditioned as one in litres.
        columns.append(icv_above_mean[both] / np.abs(icv_above_mean[both]).max())
    fit = sm.OLS(volume[both], np.stack(columns, axis=1)).fit()
    low, high = fit.conf_int(ALPHA)[1]
    mean_b, difference = fit.params[0], fit.params[1]
    row = {"mean_a": mean_b + difference, "mean_b": mean_b, "difference": difference, "difference_low": low}
    row |= {"difference_high": high, "percent": 100 * difference / mean_b, "t": fit.tvalues[1], "df": fit.df_resid}
    row |= {"p": fit.pvalues[1], "cohens_d": difference / np.sqrt(fit.mse_resid)}
    if icv_above_mean is not None and len(first) > 4:
        crossed = sm.OLS(volume[both], np.stack([*columns, columns[2] * first], axis=1)).fit()
        row["p_slopes"] = crossed.pvalues[3]
    return {name: float(value) for name, value in row.items()} | {"reason": ""}


def _reason(
    volume: Float[ndarray, " scan"],
    icv_above_mean: Float[ndarray, " scan"] | None,
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
    if icv_above_mean is not None and is_constant(icv_above_mean[a]) and is_constant(icv_above_mean[b]):
        return "the ICV does not vary within either group"
    return ""


def _with_warnings(table: pd.DataFrame) -> pd.DataFrame:
    """Add a warning to every row of a comparison whose conclusion depends on the method."""
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
