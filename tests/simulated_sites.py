"""Volumes of several sites, simulated."""

import numpy as np
import xarray as xr


def dataset(volumes, **coords) -> xr.Dataset:
    names = [f"part_{k}" for k in range(np.shape(volumes)[1])]
    coords = {name: ("scan", np.asarray(values)) for name, values in coords.items()}
    attrs = {"units": "mm3"}
    return xr.Dataset({"volume_mm3": (("scan", "structure"), volumes, attrs)}, {"structure": names} | coords)


def simulate(rng, sites, n, parts=6, effect=0.0) -> xr.Dataset:
    """Sites with their own means and spreads, patients and controls in equal parts in expectation."""
    site, age = np.repeat(np.arange(sites), n), rng.uniform(40, 80, sites * n)
    ill = rng.random(sites * n) < 0.5
    shared = rng.normal(0, 1, (sites * n, 1))
    noise = 0.6 * shared + 0.8 * rng.normal(0, 1, (sites * n, parts))
    spread = np.sqrt(10 / rng.gamma(10, 1, (sites, parts)))[site]
    volumes = 800 - 2 * age[:, None] + 60 * (rng.normal(0, 1, (sites, parts))[site] + spread * noise)
    volumes -= effect * ill[:, None]
    labels = {"site": [f"s{j:02d}" for j in site], "age": age, "group": np.where(ill, "PLS", "control")}
    return dataset(volumes, **labels)
