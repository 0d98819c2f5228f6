"""Adjustment of a volume to the size of the head."""

import numpy as np
import xarray as xr

from hypodask.errors import ResultsError
from hypodask.stats.samples import is_in, usable_scans, values_of
from hypodask.variables import VARIABLES


def normalize_icv(ds: xr.Dataset, *, reference: str | None, by: str = "group") -> xr.Dataset:
    """Divide every volume by the ICV and multiply it by the mean ICV of the reference group.

    Equation 1 of Kassubek et al. 2025: ``V / V_ICV * mean V_ICV of controls``. The mean is over the scans of the
    reference group that are done and, where :func:`~hypodask.stats.find_outliers` was run before, not excluded.
    It is one factor for all scans: which scans it is taken over shifts all means alike and no test statistic.

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
        With ``normalized_volume_mm3(scan, structure)``: NaN where a scan has no ICV, and for the ICV itself, which
        would be one constant. Its ``attrs`` name the reference, its mean ICV and the number of scans behind it.

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
    icv_mm3 = values_of(ds, "volume_mm3", "icv")
    icv_mm3 = np.where(icv_mm3 > 0, icv_mm3, np.nan)
    behind = usable_scans(ds) & np.isfinite(icv_mm3) & is_in(ds, reference, by)
    if not behind.any():
        raise ResultsError(
            f"no usable ICV in the reference group {reference or 'of all scans'!r}: "
            "check its failed and excluded scans, or choose another reference"
        )
    mean_icv_mm3 = float(icv_mm3[behind].mean())
    normalized = ds["volume_mm3"] / xr.DataArray(icv_mm3, dims="scan") * mean_icv_mm3
    normalized = normalized.where(ds["structure"] != "icv")
    variable = VARIABLES["normalized_volume_mm3"]
    normalized.attrs = {
        "units": variable.units,
        "description": variable.description,
        "reference": reference or "all scans",
        "reference_mean_icv_mm3": mean_icv_mm3,
        "reference_n": int(behind.sum()),
    }
    return ds.assign(normalized_volume_mm3=normalized)
