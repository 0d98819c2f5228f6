"""Outliers among the predicted volumes, and which scans they exclude.

The rule of Kassubek et al. 2025: outside ``[Q1 - 1.5 IQR, Q3 + 1.5 IQR]`` of the group, for the hypothalamus and
for the ICV. Quartiles are numpy's linear ones unless another definition is asked for. They are taken over scans that
are done and have a value. Two more rules do not depend on the group: distance from the median, and the quality score.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray

from hypodask.core.errors import ResultsError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.core.variables import LOW_QUALITY, VARIABLES
from hypodask.stats.samples import done_scans, excluded_scans, group_labels, require, values_of

REACH = 1.5
"""Interquartile ranges beyond the quartiles at which an outlier begins (Tukey's, and the paper's)."""

_FARTHEST_Z = 3.5
"""Robust z beyond which a volume is an outlier (Iglewicz and Hoaglin 1993)."""

_MAD_OF_NORMAL = 0.674489750196
"""Median absolute deviation of a standard normal distribution, its upper quartile."""

PAPER_STRUCTURES = (MAIN.name, HEAD_SIZE.name)
"""Structures by whose outliers the paper excludes a scan."""

Quantiles = Literal[
    "linear", "inverted_cdf", "averaged_inverted_cdf", "closest_observation", "interpolated_inverted_cdf", "hazen",
    "weibull", "median_unbiased", "normal_unbiased", "lower", "higher", "midpoint", "nearest",
]  # fmt: skip
"""Definitions of a quantile by numpy's names; SPSS has ``weibull``, R and Excel ``linear``, SAS
``averaged_inverted_cdf``."""

_Limits = Callable[[Float[ndarray, " n"]], tuple[float, float]]
"""From the finite values of one group, which it may reorder, to the lowest and highest that are not outliers."""


def find_outliers(
    ds: xr.Dataset,
    *,
    by: str | None = "group",
    structures: Sequence[str] = PAPER_STRUCTURES,
    variable: str = "volume_mm3",
    quantiles: Quantiles = "linear",
) -> xr.Dataset:
    """Mark volumes that lie outside the fences of their group.

    Parameters
    ----------
    ds
        Results; call this before normalising, because the paper searches the volumes as predicted.
    by
        Coordinate that holds the group; None for the same fences for all scans. Scans without a group have fences of
        their own.
    structures
        Those whose outliers exclude a scan; outliers are marked in every structure.
    variable
        Volumes to search.
    quantiles
        Definition of the quartiles, by the names of ``numpy.quantile``.

    Returns
    -------
    Dataset
        With ``outlier(scan, structure)``, false where there is no volume, and ``excluded(scan)``, true for an
        outlier in ``structures`` and for a scan that is not done.

    Raises
    ------
    ResultsError
        If the group column or one of the structures is not there.

    Examples
    --------
    >>> volumes = np.array([[800.0], [810.0], [820.0], [830.0], [1400.0]])
    >>> ds = xr.Dataset({"volume_mm3": (("scan", "structure"), volumes)}, coords={"structure": ["icv"]})
    >>> find_outliers(ds, by=None, structures=["icv"]).excluded.values.tolist()
    [False, False, False, False, True]
    """
    rule = f"IQR x {REACH}, {quantiles} quantiles"
    attrs: dict[str, object] = {"rule": rule, "quantiles": quantiles}
    return _mark(ds, by, structures, variable, lambda values: _fences(values, quantiles), attrs)


def find_far_outliers(
    ds: xr.Dataset,
    *,
    by: str | None = None,
    structures: Sequence[str] = PAPER_STRUCTURES,
    variable: str = "volume_mm3",
    farthest: float = _FARTHEST_Z,
) -> xr.Dataset:
    """Mark volumes far from the median, in units of the median absolute deviation.

    The robust z of a volume is ``0.6745 (V - median) / MAD`` (Iglewicz and Hoaglin 1993). By default the groups are
    ignored: the same limits hold for all scans.

    Parameters
    ----------
    ds, by, structures, variable
        As in :func:`find_outliers`.
    farthest
        Absolute robust z above which a volume is an outlier. Where more than half of the volumes are equal, every
        volume that differs from them is an outlier.

    Returns
    -------
    Dataset
        With ``outlier`` and ``excluded`` as from :func:`find_outliers`.

    Raises
    ------
    ResultsError
        If the group column or one of the structures is not there, or ``farthest`` is not above zero.

    Examples
    --------
    >>> volumes = np.array([[800.0], [810.0], [820.0], [830.0], [1400.0]])
    >>> ds = xr.Dataset({"volume_mm3": (("scan", "structure"), volumes)}, coords={"structure": ["icv"]})
    >>> find_far_outliers(ds, structures=["icv"]).excluded.values.tolist()
    [False, False, False, False, True]
    """
    if not farthest > 0:
        raise ResultsError(f"farthest is {farthest}, needed a robust z above zero: {_FARTHEST_Z} is usual")
    attrs = {"rule": f"robust z beyond {farthest}", "farthest": farthest}
    return _mark(ds, by, structures, variable, lambda values: _reach_of_median(values, farthest), attrs)


def find_low_quality(ds: xr.Dataset, *, lowest: float = LOW_QUALITY) -> xr.Dataset:
    """Mark scans of low quality as excluded, whatever their volumes and their group.

    Parameters
    ----------
    ds
        Results with ``quality``, 0 to 1.
    lowest
        Quality of the worst scan that is kept.

    Returns
    -------
    Dataset
        With ``excluded(scan)``: quality below ``lowest``, no quality, or not done.

    Raises
    ------
    ResultsError
        If the results have no quality, or no done scan has one.

    Examples
    --------
    >>> find_low_quality(xr.Dataset({"quality": ("scan", [0.9, 0.2])})).excluded.values.tolist()
    [False, True]
    """
    quality, done = values_of(ds, "quality"), done_scans(ds)
    if not np.isfinite(quality[done]).any():
        raise ResultsError("no done scan has a quality, needed one to exclude by: use find_outliers instead")
    description = {"description": VARIABLES["excluded"].description, "rule": f"quality below {lowest}"}
    return ds.assign(excluded=("scan", ~(quality >= lowest) | ~done, description))


def _mark(
    ds: xr.Dataset,
    by: str | None,
    structures: Sequence[str],
    variable: str,
    limits: _Limits,
    attrs: dict[str, object],
) -> xr.Dataset:
    require(ds, variable, "structure")
    unknown = sorted(set(structures) - set(ds["structure"].to_numpy().astype(str)))
    if unknown:
        known = ds["structure"].to_numpy().astype(str).tolist()
        raise ResultsError(f"no structure {unknown} in the results: choose among {known}")
    outlier = _outside(ds, variable, group_labels(ds, by), limits)
    marked = ds.assign(outlier=(("scan", "structure"), outlier, _attrs("outlier") | attrs))
    excluded = marked["outlier"].sel(structure=list(structures)).any("structure").to_numpy() | ~done_scans(ds)
    return marked.assign(excluded=("scan", excluded, _attrs("excluded") | attrs | {"structures": list(structures)}))


def _attrs(name: str) -> dict[str, object]:
    return {"description": VARIABLES[name].description}


def _outside(ds: xr.Dataset, variable: str, labels: ndarray, limits: _Limits) -> Bool[ndarray, "scan structure"]:
    """Whether a volume lies beyond the limits of its group."""
    values = ds[variable].transpose("structure", "scan").to_numpy()
    members = _members(labels, done_scans(ds))
    # One structure at a time: a copy of all volumes of a large study would double the memory.
    outside = np.zeros(values.shape, dtype=bool)
    for volumes, marked in zip(values, outside, strict=True):
        column = np.ascontiguousarray(volumes, dtype=np.float64)
        for scans in members:
            own = column[scans]
            low, high = limits(own[np.isfinite(own)])
            marked[scans] = ((own < low) | (own > high)) & np.isfinite(own)
    return outside.T


def _members(labels: ndarray, counted: Bool[ndarray, " scan"]) -> list[ndarray]:
    """Positions of the counted scans of each group, in order of first appearance; empty for a group without any."""
    codes, names = pd.factorize(labels)
    return [np.flatnonzero((codes == code) & counted) for code in range(len(names))]


def _fences(values: Float[ndarray, " n"], quantiles: Quantiles) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    first, third = _quantile(values, 0.25, quantiles), _quantile(values, 0.75, quantiles)
    reach = REACH * (third - first)
    return first - reach, third + reach


def _reach_of_median(values: Float[ndarray, " n"], farthest: float) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    median = _quantile(values, 0.5, "linear")
    reach = farthest * _quantile(np.abs(values - median), 0.5, "linear") / _MAD_OF_NORMAL
    return median - reach, median + reach


def _quantile(values: Float[ndarray, " n"], fraction: float, definition: Quantiles) -> float:
    """A quantile of finite values, which are reordered.

    ``np.quantile`` asks ``np.partition`` for several positions at once. For a single position numpy has a vectorised
    search, which is five times as fast.
    """
    if definition != "linear":
        return float(np.quantile(values, fraction, method=definition))
    below = int(fraction * (len(values) - 1))
    values.partition(below)
    low = float(values[below])
    high = float(values[below + 1 :].min()) if below + 1 < len(values) else low
    return low + (high - low) * (fraction * (len(values) - 1) - below)


def iqr_fences(
    ds: xr.Dataset, *, by: str | None = "group", variable: str = "volume_mm3", quantiles: Quantiles = "linear"
) -> pd.DataFrame:
    """The limits beyond which a volume is an outlier, by group and structure.

    Parameters
    ----------
    ds, by, variable, quantiles
        As in :func:`find_outliers`.

    Returns
    -------
    DataFrame
        ``group, structure, n, low, high``; ``n`` volumes give the fences, which are NaN without any.
    """
    return _limits_table(ds, by, variable, lambda values: _fences(values, quantiles))


def _limits_table(ds: xr.Dataset, by: str | None, variable: str, limits: _Limits) -> pd.DataFrame:
    require(ds, variable, "structure")
    labels, values = group_labels(ds, by), ds[variable].transpose("structure", "scan").to_numpy()
    rows: list[dict[str, object]] = []
    for name, scans in zip(pd.unique(labels), _members(labels, done_scans(ds)), strict=True):
        for structure, volumes in zip(ds["structure"].to_numpy().astype(str), values, strict=True):
            own = volumes[scans].astype(np.float64)
            own = own[np.isfinite(own)]
            low, high = limits(own)
            rows.append({"group": name, "structure": structure, "n": len(own), "low": low, "high": high})
    table = pd.DataFrame(rows, columns=["group", "structure", "n", "low", "high"])
    return table.sort_values(["group", "structure"], ignore_index=True)


def exclude(ds: xr.Dataset) -> xr.Dataset:
    """Keep only the scans that are not excluded.

    Raises
    ------
    ResultsError
        If :func:`find_outliers` was not run.
    """
    require(ds, "excluded")
    return ds.isel(scan=~excluded_scans(ds))


def list_exclusions(ds: xr.Dataset, *, by: str | None = "group", variable: str = "volume_mm3") -> pd.DataFrame:
    """List every done scan that was excluded, once for each structure in which it is an outlier.

    Parameters
    ----------
    ds
        Results after :func:`find_outliers` or :func:`find_far_outliers`.
    by, variable
        As given to that function.

    Returns
    -------
    DataFrame
        ``scan, group, structure, volume, low, high, side``: the volume, the fences of its group and whether it
        lies ``below`` or ``above`` them.
    """
    require(ds, "excluded", "outlier")
    deciding = list(ds["excluded"].attrs.get("structures", PAPER_STRUCTURES))
    chosen = ds[[variable, "outlier"]].sel(structure=deciding).transpose("scan", "structure")
    scans, columns = np.nonzero(chosen["outlier"].to_numpy() & done_scans(ds)[:, None])
    found = pd.DataFrame(
        {
            "scan": ds["scan"].to_numpy()[scans] if "scan" in ds.coords else scans,
            "group": group_labels(ds, by)[scans],
            "structure": np.array(deciding, dtype=object)[columns],
            "volume": chosen[variable].to_numpy()[scans, columns],
        }
    )
    fences = _limits_table(ds, by, variable, _limits_of(ds)).drop(columns="n")
    listed = found.merge(fences, on=["group", "structure"], how="left")
    return listed.assign(side=np.where(listed["volume"] < listed["low"], "below", "above"))


def _limits_of(ds: xr.Dataset) -> _Limits:
    """The rule by which the outliers of a dataset were found."""
    attrs = ds["outlier"].attrs
    if "farthest" in attrs:
        return lambda values: _reach_of_median(values, attrs["farthest"])
    return lambda values: _fences(values, attrs.get("quantiles", "linear"))
