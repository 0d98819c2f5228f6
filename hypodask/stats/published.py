"""The analysis of Kassubek et al. 2025 in its own order, in one call."""

from dataclasses import dataclass

import pandas as pd
import xarray as xr

from hypodask.stats.associations import correlate
from hypodask.stats.groups import compare_groups
from hypodask.stats.head_size import normalize_icv
from hypodask.stats.multiplicity import Adjustment, adjust_p
from hypodask.stats.outliers import PAPER_STRUCTURES, Quantiles, find_outliers, list_exclusions
from hypodask.stats.permutation import RESAMPLES, permute_groups
from hypodask.stats.samples import done_scans, excluded_scans, group_labels, group_names, summarize_groups
from hypodask.stats.table_one import add_progression_slope, demographics, sexes

_NORMALIZED = "normalized_volume_mm3"

_CLINICAL = ("disease_duration_years", "progression_per_year")
"""What the paper correlates the volumes of its patients with."""


@dataclass(frozen=True, eq=False)
class PaperResult:
    """The tables of the paper; see the function that makes each for its columns."""

    dataset: xr.Dataset
    """The results with ``outlier``, ``excluded`` and ``normalized_volume_mm3``."""
    demographics: pd.DataFrame
    """Table 1, of all scans of the cohort."""
    exclusions: pd.DataFrame
    """The scans excluded as outliers, with the fences that they are outside of."""
    exclusion_counts: pd.DataFrame
    """``group, scans, done, excluded`` and ``percent`` of the done scans."""
    summaries: pd.DataFrame
    """Volumes of each group after exclusions: rows for ``volume_mm3`` and ``normalized_volume_mm3``."""
    comparisons: pd.DataFrame
    """Normalised volumes of each pair of groups, without the outliers."""
    comparisons_with_outliers: pd.DataFrame
    """The same with no scan excluded."""
    subgroup_comparisons: pd.DataFrame
    """Within each group that has subgroups, with the column ``group``; empty without any."""
    associations: pd.DataFrame
    """Normalised volumes with age (over all scans and in each group), disease duration and progression."""
    sex_comparisons: pd.DataFrame
    """Normalised volumes of men and women, over all scans; empty if no sex is known."""
    permutations: pd.DataFrame
    """The comparisons by permutation of the groups; empty without ``permute``."""


def paper(
    ds: xr.Dataset,
    *,
    reference: str | None = "control",
    by: str | None = "group",
    structure: str = "hypothalamus",
    subgroup: str = "subgroup",
    quantiles: Quantiles = "linear",
    adjust: Adjustment = "holm",
    permute: int | None = None,
    resamples: int = RESAMPLES,
) -> PaperResult:
    """Outliers, normalisation, group and subgroup tests, Table 1 and associations as the paper does them.

    Parameters
    ----------
    ds
        Results of a cohort.
    reference
        The group whose mean ICV is the common head size and with which the others are compared; None for the mean
        over all scans and no order among the groups.
    by
        Coordinate that holds the group; None if there are no groups: then nothing is compared.
    structure
        The structure that is compared.
    subgroup
        Coordinate that divides some groups further; may be absent.
    quantiles
        Definition of the quartiles for the exclusions, by the names of ``numpy.quantile``. The paper does not say which
        it used.
    adjust
        Adjustment for many comparisons that is added to Holm's in comparisons and associations, such as ``fdr_bh`` in
        the column ``p_fdr_bh``.
    permute
        Seed of the permutation tests; None for none.
    resamples
        Permutations that are drawn where there are more than these.

    Raises
    ------
    ResultsError
        If the group column or the reference group is not there, or no reference scan has an ICV.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> volumes = np.stack([rng.normal(800, 70, 40), rng.normal(1.5e6, 1e5, 40)], axis=1)
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volumes)},
    ...     coords={"structure": ["hypothalamus", "icv"], "group": ("scan", ["PLS", "control"] * 20)},
    ... )
    >>> paper(ds).comparisons[["group_a", "group_b"]].values.tolist()
    [['PLS', 'control']]
    """
    deciding = tuple(dict.fromkeys((structure, *PAPER_STRUCTURES[1:])))
    ds = ds.pipe(add_progression_slope).pipe(find_outliers, by=by, structures=deciding, quantiles=quantiles)
    ds = ds.pipe(normalize_icv, reference=reference, by=by or "group")
    return PaperResult(
        dataset=ds,
        demographics=_reference_first(demographics(ds, by=by, subgroup=subgroup), reference),
        exclusions=list_exclusions(ds, by=by),
        exclusion_counts=_reference_first(_count_exclusions(ds, by=by), reference),
        summaries=_reference_first(_summaries(ds, structure, by), reference),
        comparisons=_adjusted(_compare(ds, structure, by, reference), adjust),
        comparisons_with_outliers=_adjusted(_compare(ds.drop_vars("excluded"), structure, by, reference), adjust),
        subgroup_comparisons=_adjusted(_compare_subgroups(ds, structure, by, subgroup), adjust),
        associations=_adjusted(_associate(ds, structure, by), adjust),
        sex_comparisons=_compare_sexes(ds, structure),
        permutations=_permute(ds, structure, by, reference, permute, resamples),
    )


def _count_exclusions(ds: xr.Dataset, *, by: str | None = "group") -> pd.DataFrame:
    """How many scans of each group were done and then excluded: ``group, scans, done, excluded, percent``."""
    done, outliers = done_scans(ds), done_scans(ds) & excluded_scans(ds)
    counted = pd.DataFrame({"group": group_labels(ds, by), "scans": 1, "done": done, "excluded": outliers})
    table = counted[counted["group"] != ""].groupby("group", as_index=False).sum()
    return table.assign(percent=100 * table["excluded"] / table["done"].where(table["done"] > 0))


def _reference_first(table: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Move the rows of the reference group to the front."""
    first = table["group"] == reference
    return pd.concat([table[first], table[~first]], ignore_index=True) if first.any() else table


def _summaries(ds: xr.Dataset, structure: str, by: str | None) -> pd.DataFrame:
    wanted = [("volume_mm3", structure), ("volume_mm3", "icv"), (_NORMALIZED, structure)]
    tables = []
    for variable, part in wanted:
        table = summarize_groups(ds, variable, structure=part, by=by)
        table.insert(0, "structure", part)
        table.insert(0, "variable", variable)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _compare(ds: xr.Dataset, structure: str, by: str | None, reference: str | None) -> pd.DataFrame:
    if by is None:
        return pd.DataFrame()
    return compare_groups(ds, _NORMALIZED, structure=structure, by=by, reference=reference)


def _adjusted(table: pd.DataFrame, adjust: Adjustment) -> pd.DataFrame:
    return table if adjust == "holm" or table.empty else adjust_p(table, adjust)


def _permute(
    ds: xr.Dataset, structure: str, by: str | None, reference: str | None, seed: int | None, resamples: int
) -> pd.DataFrame:
    if by is None or seed is None:
        return pd.DataFrame()
    return permute_groups(
        ds, _NORMALIZED, structure=structure, by=by, reference=reference, resamples=resamples, seed=seed
    )


def _compare_subgroups(ds: xr.Dataset, structure: str, by: str | None, subgroup: str) -> pd.DataFrame:
    if subgroup not in ds.variables:
        return pd.DataFrame()
    labels = group_labels(ds, by)
    tables = []
    for name in group_names(labels):
        table = compare_groups(ds.isel(scan=labels == name), _NORMALIZED, structure=structure, by=subgroup)
        table.insert(0, "group", name)
        tables.append(table)
    return pd.concat([table for table in tables if len(table)] or [pd.DataFrame()], ignore_index=True)


def _associate(ds: xr.Dataset, structure: str, by: str | None) -> pd.DataFrame:
    tables = []
    if "age" in ds.variables:
        tables.append(correlate(ds, _NORMALIZED, "age", structure=structure))
    for covariate in ("age", *_CLINICAL):
        if by is not None and covariate in ds.variables:
            within = correlate(ds, _NORMALIZED, covariate, structure=structure, by=by)
            tables.append(within[within["n"] > 0])
    return pd.concat([table for table in tables if len(table)] or [pd.DataFrame()], ignore_index=True)


def _compare_sexes(ds: xr.Dataset, structure: str) -> pd.DataFrame:
    if "sex" not in ds.variables:
        return pd.DataFrame()
    return compare_groups(ds.assign_coords(sex=("scan", sexes(ds))), _NORMALIZED, structure=structure, by="sex")
