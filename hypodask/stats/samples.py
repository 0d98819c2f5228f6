"""Which scans enter an analysis, and in which group each one is.

A scan counts if it is done, is not excluded (where a function has marked exclusions), has a finite value and, for a
comparison, belongs to a group. Every table says how many scans were left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray

from hypodask.core.errors import ResultsError

_EVERYBODY = "all"
"""Name of the only group if no groups were asked for."""


def require(ds: xr.Dataset, *names: str) -> None:
    """Raise an error that says what to do if the dataset lacks one of these variables and coordinates."""
    missing = [name for name in names if name not in ds.variables]
    if missing:
        raise ResultsError(
            f"the results have no {', '.join(map(repr, missing))}; they have {sorted(map(str, ds.variables))}. "
            f"{_cure(missing[0])}"
        )


def _cure(name: str) -> str:
    if name == "normalized_volume_mm3":
        return "Run stats.normalize_icv(ds, reference=...) first."
    if name in ("outlier", "excluded"):
        return "Run stats.find_outliers(ds) first."
    if name.startswith("harmonized_"):
        return "Run stats.harmonize(ds, ...) first."
    return "Covariates come from the cohort's table (participants.tsv): add the column there, or name another one."


def values_of(ds: xr.Dataset, variable: str, structure: str | None = None) -> Float[ndarray, " scan"]:
    """One number per scan; NaN where there is none.

    Raises
    ------
    ResultsError
        If there is no such variable or structure, or if the variable is text.
    """
    require(ds, variable)
    array = ds[variable]
    if "structure" in array.dims:
        array = array.sel(structure=_known_structure(ds, structure))
    try:
        values = array.to_numpy().astype(np.float64)
    except (TypeError, ValueError):
        raise ResultsError(
            f"{variable!r} holds {array.dtype} values that are not numbers, needed one number per scan: "
            "use a category as by=, or correct the column in the cohort's table"
        ) from None
    return np.where(np.isfinite(values), values, np.nan)


def volumes_of(
    ds: xr.Dataset, variable: str, structures: Sequence[str] | None = None
) -> Float[ndarray, "scan structure"]:
    """Volumes of these structures, or of all; NaN where there is none."""
    require(ds, variable, "structure")
    if "structure" not in ds[variable].dims:
        raise ResultsError(f"{variable!r} has one value per scan, needed one per structure: name a volume")
    array, known = ds[variable].transpose("scan", "structure"), ds["structure"].to_numpy().astype(str).tolist()
    if structures is not None:
        unknown = sorted(set(structures) - set(known))
        if unknown:
            raise ResultsError(f"no structure {unknown} in the results: choose among {known}")
        array = array.isel(structure=[known.index(structure) for structure in structures])
    values = array.to_numpy().astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _known_structure(ds: xr.Dataset, structure: str | None) -> str:
    known: list[str] = ds["structure"].to_numpy().astype(str).tolist()
    if structure is None or structure not in known:
        raise ResultsError(f"no structure {structure!r} in the results: choose one of {known}")
    return structure


def done_scans(ds: xr.Dataset) -> Bool[ndarray, " scan"]:
    """Which scans were measured; all of them where the dataset does not say."""
    if "status" not in ds.variables:
        return np.ones(ds.sizes["scan"], dtype=bool)
    done: ndarray = ds["status"].to_numpy() == "done"
    return done


def excluded_scans(ds: xr.Dataset) -> Bool[ndarray, " scan"]:
    """Which scans ``find_outliers`` excluded; none where it was not run."""
    if "excluded" not in ds.variables:
        return np.zeros(ds.sizes["scan"], dtype=bool)
    excluded: ndarray = ds["excluded"].to_numpy().astype(bool)
    return excluded


def usable_scans(ds: xr.Dataset) -> Bool[ndarray, " scan"]:
    """Which scans are done and not excluded."""
    usable: ndarray = done_scans(ds) & ~excluded_scans(ds)
    return usable


def group_labels(ds: xr.Dataset, by: str | None) -> ndarray:
    """Group of each scan as text, ``""`` where the cohort's table has none; one group for all if ``by`` is None.

    Whole numbers are written without the ``.0`` that pandas adds to a column with missing values.
    """
    if by is None:
        return np.full(ds.sizes["scan"], _EVERYBODY, dtype=object)
    require(ds, by)
    codes, names = pd.factorize(ds[by].to_numpy())
    # Only the few distinct labels are converted to text. A missing label has the code -1: the last of the texts.
    text = np.append(_label_text(pd.Series(names)), "").astype(object)
    labels: ndarray = text[codes]
    return labels


def _label_text(labels: "pd.Series[Any]") -> ndarray:
    if pd.api.types.is_float_dtype(labels) and np.all(labels % 1 == 0):
        labels = labels.astype("Int64")
    text = labels.astype(str).str.strip().to_numpy(dtype=object)
    named: ndarray = np.where((text != "nan") & (text != "n/a"), text, "")
    return named


def group_names(labels: ndarray, reference: str | None = None) -> list[str]:
    """Names of the groups in alphabetical order, the reference first.

    Raises
    ------
    ResultsError
        If the reference is not one of them.
    """
    names = sorted(set(labels.tolist()) - {""})
    if reference is None:
        return names
    if reference not in names:
        raise ResultsError(f"no scan is in the reference group {reference!r}: choose one of the groups {names}")
    return [reference, *(name for name in names if name != reference)]


def is_in(ds: xr.Dataset, group: str | None, by: str) -> Bool[ndarray, " scan"]:
    """Which scans are of a group; all of them if it is None.

    Raises
    ------
    ResultsError
        If there is no such column or group.
    """
    if group is None:
        return np.ones(ds.sizes["scan"], dtype=bool)
    labels = group_labels(ds, by)
    group_names(labels, group)
    inside: ndarray = labels == group
    return inside


@dataclass(frozen=True, eq=False)
class Sample:
    """The values of one group that enter an analysis, and how many scans were left out."""

    group: str
    values: Float[ndarray, " n"]
    missing: int
    """Scans that failed, were skipped or have no value."""
    excluded: int
    """Scans that are done but excluded as outliers."""
    repeated: int
    """Participants with more than one scan among ``values``."""

    @property
    def n(self) -> int:
        """Scans that count."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean; NaN without values."""
        return float(self.values.mean()) if self.n else float("nan")

    @property
    def sd(self) -> float:
        """Standard deviation with n - 1; NaN for fewer than two values."""
        return float(self.values.std(ddof=1)) if self.n > 1 else float("nan")

    @property
    def constant(self) -> bool:
        """Whether the values do not differ by more than rounding."""
        return is_constant(self.values)


def is_constant(values: Float[ndarray, " n"]) -> bool:
    """Whether no two values differ by more than rounding.

    >>> is_constant(np.array([0.1 + 0.2, 0.3])), is_constant(np.array([0.3, 0.4]))
    (True, False)
    """
    return len(values) == 0 or bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def samples(ds: xr.Dataset, variable: str, *, structure: str | None, by: str | None) -> dict[str, Sample]:
    """The values of every group, by its name; scans without a group are in none of them."""
    values = values_of(ds, variable, structure)
    labels = group_labels(ds, by)
    return {name: _sample(ds, name, values, labels == name) for name in group_names(labels)}


def _sample(ds: xr.Dataset, group: str, values: Float[ndarray, " scan"], members: Bool[ndarray, " scan"]) -> Sample:
    outliers = members & done_scans(ds) & excluded_scans(ds)
    counted = members & usable_scans(ds) & np.isfinite(values)
    return Sample(
        group=group,
        values=values[counted],
        missing=int(members.sum() - counted.sum() - outliers.sum()),
        excluded=int(outliers.sum()),
        repeated=_repeated_participants(ds, counted),
    )


def _repeated_participants(ds: xr.Dataset, counted: Bool[ndarray, " scan"]) -> int:
    if "participant_id" not in ds.variables:
        return 0
    scans_each = pd.Series(ds["participant_id"].to_numpy()[counted]).value_counts()
    return int((scans_each > 1).sum())


def summarize_groups(
    ds: xr.Dataset, variable: str, *, structure: str | None = None, by: str | None = "group"
) -> pd.DataFrame:
    """Number of scans, mean and spread of one variable in each group.

    Parameters
    ----------
    ds
        Results; scans that are not done or ``excluded`` do not count.
    variable
        Such as ``normalized_volume_mm3``.
    structure
        Such as ``hypothalamus``; needed when the variable has one value per structure.
    by
        Coordinate that holds the group; None for all scans together.

    Returns
    -------
    DataFrame
        One row per group: ``group, n, mean, sd, median, low, high, missing, excluded``, the numbers in the unit
        of the variable.

    Raises
    ------
    ResultsError
        If the variable, structure or group column is not there.

    Examples
    --------
    >>> ds = xr.Dataset({"age": ("scan", [50.0, 60.0, np.nan])}, coords={"group": ("scan", ["a", "a", "a"])})
    >>> summarize_groups(ds, "age")[["group", "n", "mean", "missing"]].to_dict("records")
    [{'group': 'a', 'n': 2, 'mean': 55.0, 'missing': 1}]
    """
    found = samples(ds, variable, structure=structure, by=by)
    columns = ["group", "n", "mean", "sd", "median", "low", "high", "missing", "excluded"]
    return pd.DataFrame([_summary(sample) for sample in found.values()], columns=columns)


def _summary(sample: Sample) -> dict[str, object]:
    middle, low, high = np.quantile(sample.values, [0.5, 0, 1]) if sample.n else (np.nan, np.nan, np.nan)
    return {
        "group": sample.group,
        "n": sample.n,
        "mean": sample.mean,
        "sd": sample.sd,
        "median": float(middle),
        "low": float(low),
        "high": float(high),
        "missing": sample.missing,
        "excluded": sample.excluded,
    }
