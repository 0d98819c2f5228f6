"""Results datasets with known volumes, as a finished cohort would give them."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy import ndarray
from scipy.stats import norm

from hypodask.core.variables import RESULTS

STRUCTURES = ("hypothalamus", "icv", "hypothalamus_left", "hypothalamus_right")

PAPER_GROUPS = {"control": (852.0, 77.0, 102), "PLS": (818.0, 73.0, 45), "ALS": (823.0, 84.0, 390)}
"""Mean, SD and number of normalised volumes after exclusions (Kassubek et al. 2025), mm3."""


def exact_sample(rng: np.random.Generator, mean: float, sd: float, n: int) -> ndarray:
    """Normal quantiles in random order, whose mean and SD (n - 1) are exactly these."""
    values = rng.permutation(norm.ppf((np.arange(n) + 0.5) / n))
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


def make_results(
    hypothalamus_mm3: Sequence[float],
    icv_mm3: Sequence[float] | float = 1.5e6,
    *,
    covariates: Mapping[str, Sequence[object]] | None = None,
    failed: Sequence[int] = (),
) -> xr.Dataset:
    """One scan per volume; ``failed`` positions have no volumes and a reason."""
    n = len(hypothalamus_mm3)
    whole = np.asarray(hypothalamus_mm3, dtype=float)
    volumes = np.stack([whole, np.broadcast_to(icv_mm3, n), 0.49 * whole, 0.51 * whole], axis=1)
    volumes[list(failed)] = np.nan
    variables = {v.name: (v.dims, _empty(v.dtype, (n, len(STRUCTURES))[: len(v.dims)])) for v in RESULTS}
    ds = xr.Dataset(
        variables | {"volume_mm3": (("scan", "structure"), volumes)},
        coords={"scan": [f"sub-{i:03d}" for i in range(n)], "structure": list(STRUCTURES)},
    )
    return _with_status(ds, failed).assign_coords({k: ("scan", list(v)) for k, v in (covariates or {}).items()})


def _empty(dtype: str, shape: tuple[int, ...]) -> ndarray:
    fill = {"float64": np.nan, "str": "", "bool": False}[dtype]
    return np.full(shape, fill, dtype=object if dtype == "str" else dtype)


def _with_status(ds: xr.Dataset, failed: Sequence[int]) -> xr.Dataset:
    wrong = np.isin(np.arange(ds.sizes["scan"]), list(failed))
    text = {"status": ("done", "failed"), "stage": ("", "read"), "error": ("", "TruncatedScanError")}
    text["reason"] = ("", "the file ends at byte 1024 of 5000: copy it again")
    text["version"], text["protocol"] = ("0.1.0", ""), ("billot2020-consensus", "")
    return ds.assign({name: ("scan", np.where(wrong, bad, good)) for name, (good, bad) in text.items()})


def grouped_results(
    groups: Mapping[str, ndarray], icv_mm3: float = 1.5e6, **covariates: Sequence[object]
) -> xr.Dataset:
    """One scan per hypothalamic volume of each group."""
    labels = [name for name, values in groups.items() for _ in values]
    volumes = np.concatenate(list(groups.values()))
    return make_results(volumes, icv_mm3, covariates={"group": labels, **covariates})


def paper_results(seed: int = 0) -> xr.Dataset:
    """Groups with exactly the published means, SDs and numbers; heads of different sizes."""
    rng = np.random.default_rng(seed)
    normalized = {name: exact_sample(rng, *numbers) for name, numbers in PAPER_GROUPS.items()}
    ds = grouped_results(normalized)
    head = rng.uniform(0.85, 1.15, ds.sizes["scan"])
    controls = ds.group.to_numpy() == "control"
    head /= head[controls].mean()
    return ds.assign(volume_mm3=ds.volume_mm3 * xr.DataArray(head, dims="scan"))
