"""What a comparison is adjusted for: age, sex, site, size of the head, as columns of a linear model.

Numbers are centred and scaled, so that a model is as well conditioned in mm3 as in litres and its group means are
those at the mean of every covariate. Categories have one column for each level but the first.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray

from hypodask.stats.demographics import sexes
from hypodask.stats.samples import group_labels, is_constant, values_of

CATEGORIES = ("sex", "site", "scanner", "group", "subgroup", "protocol", "model", "version")
"""Never numbers, although the cohort's table may number them; text is a category whatever its name."""


def is_category(ds: xr.Dataset, name: str) -> bool:
    """Whether a covariate names what a scan belongs to, and measures nothing.

    >>> is_category(xr.Dataset(coords={"site": ("scan", [1, 2]), "age": ("scan", [60, 70])}), "site")
    True
    """
    return name in CATEGORIES or (name in ds.variables and ds[name].dtype.kind in "OUSTb")


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
    if name == "icv" and name not in ds.variables:
        return values_of(ds, "volume_mm3", "icv")
    return values_of(ds, name)


def _levels(ds: xr.Dataset, name: str) -> ndarray:
    return sexes(ds) if name == "sex" else group_labels(ds, name)


def known_covariates(ds: xr.Dataset, names: Sequence[str]) -> Bool[ndarray, " scan"]:
    """Which scans have a value of every covariate.

    >>> ds = xr.Dataset(coords={"age": ("scan", [60.0, np.nan]), "sex": ("scan", ["F", "M"])})
    >>> known_covariates(ds, ["age", "sex"]).tolist()
    [True, False]
    """
    known = np.ones(ds.sizes["scan"], dtype=bool)
    for name in names:
        known &= _levels(ds, name) != "" if is_category(ds, name) else np.isfinite(covariate_values(ds, name))
    return known


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
        One row per counted scan, named by covariate and level. What is the same in all of them has no column.

    Examples
    --------
    >>> ds = xr.Dataset(coords={"age": ("scan", [60.0, 70.0]), "site": ("scan", ["ulm", "bonn"])})
    >>> covariate_columns(ds, ["age", "site"], np.array([True, True])).round(1).to_dict("list")
    {'age': [-0.7, 0.7], 'site=ulm': [0.7, -0.7]}
    """
    columns: dict[str, ndarray] = {}
    for name in names:
        if is_category(ds, name):
            labels = _levels(ds, name)[counted]
            columns |= {f"{name}={level}": (labels == level).astype(float) for level in sorted(set(labels))[1:]}
        else:
            columns[name] = covariate_values(ds, name)[counted]
    varying = {name: values for name, values in columns.items() if not is_constant(values)}
    return pd.DataFrame(
        {name: (v - v.mean()) / v.std(ddof=1) for name, v in varying.items()}, index=range(counted.sum())
    )


def is_full_rank(design: Float[ndarray, "scan column"]) -> bool:
    """Whether every column says something that the others do not.

    >>> is_full_rank(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))
    False
    """
    return bool(np.linalg.matrix_rank(design) == design.shape[1])
