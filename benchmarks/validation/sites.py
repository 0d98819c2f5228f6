"""ComBat on many scans, and how often it finds a difference between groups that do not differ.

    python -m benchmarks.validation.sites            # time and memory at 50,888 scans x 20 structures x 30 sites
    python -m benchmarks.validation.sites --studies 2000

Simulated volumes: sites with their own means and spreads, structures that go along with each other (r = 0.36).
A study is 8 sites of 30; ``even`` has half patients at each, ``uneven`` from a tenth to nine tenths.
"""

import argparse
import resource
import time

import numpy as np
import xarray as xr
from numpy import ndarray
from scipy.stats import ttest_ind

from hypodask import stats

WAYS = {
    "no harmonisation": None,
    "ComBat, group not told": {},
    "ComBat, group kept": {"covariates": ["age", "group"]},
    "ComBat, fitted on controls": {"on": "control"},
}


def simulate(rng: np.random.Generator, site: ndarray, ill: ndarray, structures: int) -> xr.Dataset:
    """Volumes of groups that do not differ."""
    n, sites = len(site), int(site.max()) + 1
    age = rng.uniform(40, 80, n)
    noise = 0.6 * rng.normal(0, 1, (n, 1)) + 0.8 * rng.normal(0, 1, (n, structures))
    spread = np.sqrt(10 / rng.gamma(10, 1, (sites, structures)))[site]
    volumes = 800 - 2 * age[:, None] + 60 * (rng.normal(0, 1, (sites, structures))[site] + spread * noise)
    labels = {"site": np.char.add("s", site.astype(str)), "age": age, "group": np.where(ill, "PLS", "control")}
    names = {"structure": [f"part_{k}" for k in range(structures)]}
    return xr.Dataset(
        {"volume_mm3": (("scan", "structure"), volumes)}, names | {k: ("scan", v) for k, v in labels.items()}
    )


def find_rates(studies: int) -> None:
    """Print the share of studies with p < 0.05, of Student's test on the first structure."""
    site = np.repeat(np.arange(8), 30)
    shares = {"even": np.full(8, 0.5), "uneven": np.linspace(0.1, 0.9, 8)}
    print(f"{studies} studies; Monte Carlo error {100 * np.sqrt(0.05 * 0.95 / studies):.2f} %")
    for design, share in shares.items():
        rng, found, by_site = np.random.default_rng(5), dict.fromkeys(WAYS, 0), 0
        for _ in range(studies):
            ds = simulate(rng, site, rng.random(len(site)) < share[site], 6)
            ill = ds.group.to_numpy() == "PLS"
            for name, options in WAYS.items():
                moved = None if options is None else stats.harmonize(ds, **{"covariates": ["age"], **options})
                y = (ds.volume_mm3 if moved is None else moved.harmonized_volume_mm3).to_numpy()[:, 0]
                found[name] += ttest_ind(y[ill], y[~ill]).pvalue < 0.05
            effects = stats.compare_sites(
                ds, "volume_mm3", structure="part_0", group="PLS", reference="control", covariates=["age"]
            )
            by_site += stats.combine_sites(effects)["p"].iloc[0] < 0.05
        for name, count in (found | {"meta-analysis of the sites": by_site}).items():
            print(f"{design:8} {name:28} {100 * count / studies:5.1f} %")


def measure_combat() -> None:
    """Print seconds and peak memory of a fit and of its use."""
    rng = np.random.default_rng(1)
    ds = simulate(rng, rng.integers(0, 30, 50_888), rng.random(50_888) < 0.5, 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for prior in ("parametric", "nonparametric"):
        start = time.perf_counter()
        model = stats.fit_combat(ds, covariates=["age", "group"], prior=prior)
        fitted = time.perf_counter()
        stats.apply_combat(ds, model)
        print(f"{prior}: fit {fitted - start:.2f} s, apply {time.perf_counter() - fitted:.2f} s")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {after / 1024:.0f} MiB, {(after - before) / 1024:.0f} MiB above the data")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=0)
    asked = parser.parse_args()
    measure_combat() if not asked.studies else find_rates(asked.studies)
