"""What an analysis is adjusted for: numbers such as age or ICV, and categories such as sex or site.

Every model encodes covariates in the same way: a number is one column, and a category has one column for each level
except the first. The sums that sites send (``sites.moments``) use these columns as they are. If the rows of all scans
are available (``ancova``), columns are centred and scaled over the scans that count. The model is then as well
conditioned in mm3 as in litres, and its group means are those at the mean of every covariate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray

from hypodask.core.errors import ResultsError
from hypodask.core.structures import HEAD_SIZE
from hypodask.stats.samples import group_labels, group_names, is_constant, values_of
from hypodask.stats.table_one import sexes

CATEGORIES = ("sex", "site", "scanner", "group", "subgroup", "protocol", "model", "version")
"""Covariates that are categories even if the cohort's table numbers them; text is always a category."""


def is_category(ds: xr.Dataset, name: str) -> bool:
    """Whether a covariate is a category rather than a number.

    >>> is_category(xr.Dataset(coords={"site": ("scan", [1, 2]), "age": ("scan", [60, 70])}), "site")
    True
    """
    return name in CATEGORIES or (name in ds.variables and ds[name].dtype.kind in "OUSTb")


def category_labels(ds: xr.Dataset, name: str) -> ndarray:
    """Level of each scan as text, ``""`` where it has none; sexes are ``male`` and ``female``.

    Raises
    ------
    ResultsError
        If there is no such coordinate, or sexes are numbers.
    """
    labels = group_labels(ds, name)
    if name != "sex":
        return labels
    named = sexes(ds)
    if (labels != "").any() and not (named != "").any():
        # Cohorts differ in which of 0, 1 and 2 stand for men, women and unknown.
        raise ResultsError(
            f"'sex' holds {group_names(labels)[:5]}, needed male and female, or M and F: write these in the "
            "cohort's table, and leave unknown ones empty"
        )
    return named


def covariate_values(ds: xr.Dataset, name: str) -> Float[ndarray, " scan"]:
    """One number per scan; ``icv`` is the intracranial volume in mm3.

    Raises
    ------
    ResultsError
        If there is no such covariate.

    Examples
    --------
    >>> ds = xr.Dataset({"volume_mm3": (("scan", "structure"), [[1.5e6]])}, coords={"structure": ["icv"]})
    >>> covariate_values(ds, "icv").tolist()
    [1500000.0]
    """
    if name == HEAD_SIZE.name and name not in ds.variables:
        return values_of(ds, "volume_mm3", HEAD_SIZE.name)
    return values_of(ds, name)


def known_covariates(ds: xr.Dataset, names: Sequence[str]) -> Bool[ndarray, " scan"]:
    """Which scans have a value of every covariate.

    >>> ds = xr.Dataset(coords={"age": ("scan", [60.0, np.nan]), "sex": ("scan", ["F", "M"])})
    >>> known_covariates(ds, ["age", "sex"]).tolist()
    [True, False]
    """
    known = np.ones(ds.sizes["scan"], dtype=bool)
    for name in names:
        known &= category_labels(ds, name) != "" if is_category(ds, name) else np.isfinite(covariate_values(ds, name))
    return known


@dataclass(frozen=True)
class Covariate:
    """A covariate as it enters a model: a number, or a category with its levels."""

    name: str
    levels: tuple[str, ...] = ()
    """Levels of a category, first the one that the others are compared with; empty for a number."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: ``age``, or one such as ``sex=male`` for each level except the first."""
        return tuple(f"{self.name}={level}" for level in self.levels[1:]) if self.levels else (self.name,)

    def encode(self, ds: xr.Dataset) -> Float[ndarray, "scan column"]:
        """Values of the columns; NaN where a scan has no value, or a level that is not one of ``levels``."""
        if not self.levels:
            return covariate_values(ds, self.name)[:, None]
        labels = category_labels(ds, self.name)
        coded = (labels[:, None] == np.array(self.levels[1:], dtype=object)).astype(np.float64)
        coded[~np.isin(labels, self.levels)] = np.nan
        return coded


def read_covariate(
    ds: xr.Dataset, name: str, reference: str | None = None, *, among: Bool[ndarray, " scan"] | None = None
) -> Covariate:
    """Numbers as they are, a category with its levels in alphabetical order, the reference first.

    Parameters
    ----------
    name
        Coordinate or variable with one value per scan, or ``icv``.
    reference
        Level that the others are compared with; None for the first in the alphabet.
    among
        Scans that count; levels that none of them has are left out. None for all scans.

    Raises
    ------
    ResultsError
        If it is a category with a single level or without the reference, or ``sex`` holds numbers.
    """
    if not is_category(ds, name):
        return Covariate(name)
    labels = category_labels(ds, name)
    # If no scan counts, take the levels of all: the caller then says that no scan counts.
    levels = tuple(group_names(labels if among is None or not among.any() else labels[among], reference))
    if len(levels) < 2:
        raise ResultsError(f"the covariate {name!r} has the levels {list(levels)}, needed two: leave it out")
    return Covariate(name, levels)


def encode(ds: xr.Dataset, covariates: Sequence[Covariate]) -> Float[ndarray, "scan column"]:
    """Columns of all covariates side by side."""
    return np.concatenate([np.empty((ds.sizes["scan"], 0)), *(each.encode(ds) for each in covariates)], axis=1)


def covariate_columns(ds: xr.Dataset, names: Sequence[str], counted: Bool[ndarray, " scan"]) -> pd.DataFrame:
    """Columns of a linear model, each with mean 0 and standard deviation 1 over the scans that count.

    Parameters
    ----------
    names
        Coordinates or variables with one value per scan, or ``icv``.
    counted
        The scans of the model, which know every covariate.

    Returns
    -------
    DataFrame
        One row per counted scan; columns are named by covariate and level. A covariate that is the same in all of
        these scans has no column.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"age": ("scan", [60.0, 70.0]), "site": ("scan", ["ulm", "bonn"])})
    >>> covariate_columns(ds, ["age", "site"], np.array([True, True])).round(1).to_dict("list")
    {'age': [-0.7, 0.7], 'site=ulm': [0.7, -0.7]}
    """
    columns: dict[str, ndarray] = {}
    for name in names if counted.any() else ():
        levels = group_names(category_labels(ds, name)[counted]) if is_category(ds, name) else ()
        covariate = Covariate(name, tuple(levels))
        columns |= dict(zip(covariate.columns, covariate.encode(ds)[counted].T, strict=True))
    varying = {name: values for name, values in columns.items() if not is_constant(values)}
    return pd.DataFrame(
        {name: (v - v.mean()) / v.std(ddof=1) for name, v in varying.items()}, index=range(counted.sum())
    )


def is_full_rank(design: Float[ndarray, "scan column"]) -> bool:
    """Whether no column is a linear combination of the others.

    >>> is_full_rank(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))
    False
    """
    return bool(np.linalg.matrix_rank(design) == design.shape[1])
