"""Outliers of the predicted volumes, per group, and who is excluded for what.

The rule of Kassubek et al. 2025: outside ``[Q1 - 1.5 IQR, Q3 + 1.5 IQR]`` of the group, for the hypothalamus and
for the ICV. Quartiles are numpy's linear ones. They are taken over scans that are done and have a value.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from hypodask.errors import ResultsError
from hypodask.stats.samples import done_scans, excluded_scans, group_labels, require
from hypodask.variables import VARIABLES

REACH = 1.5
"""Interquartile ranges beyond the quartiles at which an outlier begins (Tukey's, and the paper's)."""

PAPER_STRUCTURES = ("hypothalamus", "icv")
"""Structures whose outliers exclude a scan in the paper."""


def find_outliers(
    ds: xr.Dataset,
    *,
    by: str | None = "group",
    structures: Sequence[str] = PAPER_STRUCTURES,
    variable: str = "volume_mm3",
) -> xr.Dataset:
    """Mark volumes that lie outside the fences of their group.

    Parameters
    ----------
    ds
        Results; call this before normalising, the paper looks at the volumes as predicted.
    by
        Coordinate that holds the group; None for one set of fences over all scans. Scans without a group share
        one set of their own.
    structures
        Those whose outliers exclude a scan; every structure is marked.
    variable
        Volumes to look at.

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
    require(ds, variable, "structure")
    unknown = sorted(set(structures) - set(ds["structure"].to_numpy().astype(str)))
    if unknown:
        known = ds["structure"].to_numpy().astype(str).tolist()
        raise ResultsError(f"no structure {unknown} in the results: choose among {known}")
    outlier = _outside(ds, variable, group_labels(ds, by))
    marked = ds.assign(outlier=(("scan", "structure"), outlier, _attrs("outlier")))
    excluded = marked["outlier"].sel(structure=list(structures)).any("structure").to_numpy() | ~done_scans(ds)
    return marked.assign(excluded=("scan", excluded, _attrs("excluded") | {"structures": list(structures)}))


def _attrs(name: str) -> dict[str, object]:
    return {"description": VARIABLES[name].description, "rule": f"IQR x {REACH}, linear quantiles"}


def _outside(ds: xr.Dataset, variable: str, labels: ndarray) -> ndarray:
    """Boolean (scan, structure): beyond the fences of its group."""
    values = _done_values(ds, variable)
    outside = np.zeros(values.shape, dtype=bool)
    for members in _members(labels):
        own = values[members]
        low, high = _fences(own)
        outside[members] = (own < low) | (own > high)
    return outside


def _done_values(ds: xr.Dataset, variable: str) -> Float[ndarray, "scan structure"]:
    values = ds[variable].transpose("scan", "structure").to_numpy().astype(np.float64)
    return np.where(done_scans(ds)[:, None] & np.isfinite(values), values, np.nan)


def _members(labels: ndarray) -> list[ndarray]:
    """Positions of the scans of each group, from one stable sort."""
    codes, names = pd.factorize(labels)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])


def _fences(
    values: Float[ndarray, "scan structure"],
) -> tuple[Float[ndarray, " structure"], Float[ndarray, " structure"]]:
    first, third = _quantile(values, (0.25, 0.75))
    reach = REACH * (third - first)
    return first - reach, third + reach


def _quantile(
    values: Float[ndarray, "scan structure"], fractions: Sequence[float]
) -> Float[ndarray, "fraction structure"]:
    """Linear quantiles of each column without its NaN; NaN for an empty column.

    ``np.nanquantile`` sorts column by column in Python; one sort of all columns puts NaN last and is enough.
    """
    by_structure = np.sort(values.T, axis=1)
    count = np.isfinite(by_structure).sum(axis=1)
    position = np.multiply.outer(np.asarray(fractions), np.maximum(count - 1, 0))
    below = np.floor(position).astype(int)
    columns = np.arange(len(by_structure))
    low = by_structure[columns, below]
    high = by_structure[columns, np.minimum(below + 1, np.maximum(count - 1, 0))]
    quantiles: ndarray = low + (high - low) * (position - below)
    return quantiles


def iqr_fences(ds: xr.Dataset, *, by: str | None = "group", variable: str = "volume_mm3") -> pd.DataFrame:
    """Find the limits beyond which a volume is an outlier, by group and structure.

    Returns
    -------
    DataFrame
        ``group, structure, n, low, high``; ``n`` volumes stand behind the fences, which are NaN without any.
    """
    require(ds, variable, "structure")
    labels, values = group_labels(ds, by), _done_values(ds, variable)
    tables = [_fence_table(labels[members[0]], values[members], ds) for members in _members(labels)]
    return pd.concat(tables, ignore_index=True).sort_values(["group", "structure"], ignore_index=True)


def _fence_table(group: str, values: Float[ndarray, "scan structure"], ds: xr.Dataset) -> pd.DataFrame:
    low, high = _fences(values)
    structures = ds["structure"].to_numpy().astype(str)
    counted = np.isfinite(values).sum(axis=0)
    return pd.DataFrame({"group": group, "structure": structures, "n": counted, "low": low, "high": high})


def exclude(ds: xr.Dataset) -> xr.Dataset:
    """Only the scans that are not excluded.

    Raises
    ------
    ResultsError
        If :func:`find_outliers` was not run.
    """
    require(ds, "excluded")
    return ds.isel(scan=~excluded_scans(ds))


def list_exclusions(ds: xr.Dataset, *, by: str | None = "group", variable: str = "volume_mm3") -> pd.DataFrame:
    """Every done scan that was excluded, once per structure in which it is an outlier.

    Parameters
    ----------
    ds
        Results after :func:`find_outliers`; give the same ``by`` and ``variable`` as there.
    by, variable
        As in :func:`find_outliers`.

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
    fences = iqr_fences(ds, by=by, variable=variable).drop(columns="n")
    listed = found.merge(fences, on=["group", "structure"], how="left")
    return listed.assign(side=np.where(listed["volume"] < listed["low"], "below", "above"))
