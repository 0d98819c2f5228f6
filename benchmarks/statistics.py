"""Time and peak memory of the statistics on large studies: simulated volumes, three groups.

Run as a program it takes outliers of a million scans by turns with polars, where that is installed: on a machine that
has other work, only what ran in the same minute can be compared. Each is timed by the CPU time of its one thread too.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from time import perf_counter, process_time

import numpy as np
import xarray as xr

from hypodask import stats

GROUPS = ("control", "PLS", "ALS")
SHARES = (0.19, 0.08, 0.73)
"""Of the paper's groups."""

LARGEST_STUDY = 50_888
"""Scans of the largest study of the hypothalamus, Rhineland Study and UK Biobank together."""


def study(scans: int, structures: int, *, failed: float = 0.01) -> xr.Dataset:
    """Volumes of a study, the hypothalamus and ICV first; a share of the scans failed."""
    random = np.random.default_rng(0)
    names = ["hypothalamus", "icv", *(f"structure_{number}" for number in range(2, structures))]
    icv = random.normal(1.5e6, 1.3e5, scans)
    volumes = random.normal(850, 77, (scans, structures)) * (icv[:, None] / 1.5e6) ** 0.6
    volumes[:, 1] = icv
    status = np.where(random.random(scans) < failed, "failed", "done")
    volumes[status == "failed"] = np.nan
    return xr.Dataset(
        {"volume_mm3": (("scan", "structure"), volumes), "status": ("scan", status)},
        {"structure": names, "group": ("scan", random.choice(GROUPS, scans, p=SHARES))},
    )


def permute(ds: xr.Dataset) -> object:
    """A thousand permutations of each pair of groups."""
    return stats.permute_groups(ds, "volume_mm3", structure="hypothalamus", reference="control", resamples=999)


ANALYSES: dict[str, Callable[[xr.Dataset], object]] = {
    "iqr outliers": stats.find_outliers,
    "robust z outliers": stats.find_far_outliers,
    "residual adjustment": lambda ds: stats.adjust_icv(ds, method="residual", reference="control"),
    "icv adjustments compared": lambda ds: stats.compare_icv_adjustments(ds, reference="control"),
    "group tests": lambda ds: stats.compare_groups(ds, "volume_mm3", structure="hypothalamus", reference="control"),
    "exclusions compared": lambda ds: stats.compare_exclusions(ds, "volume_mm3", structure="hypothalamus"),
    "permutations": permute,
    "paper": stats.paper,
}


class Outliers:
    """The IQR rule by group on 20 structures of a million scans."""

    timeout = 300

    def setup_cache(self) -> xr.Dataset:
        """The study, made once."""
        return study(10**6, 20)

    def time_outliers(self, ds: xr.Dataset) -> None:
        """Wall-clock time of one call."""
        stats.find_outliers(ds)

    def peakmem_study(self, ds: xr.Dataset) -> None:
        """Peak memory of a process that only holds the study."""

    def peakmem_outliers(self, ds: xr.Dataset) -> None:
        """Peak memory of a process that finds outliers in it."""
        stats.find_outliers(ds)


class LargestStudy:
    """Each analysis of 50,888 scans with 12 structures."""

    params = tuple(ANALYSES)
    param_names = ("analysis",)
    timeout = 300

    def setup_cache(self) -> xr.Dataset:
        """The study, made once."""
        return study(LARGEST_STUDY, 12)

    def time_analysis(self, ds: xr.Dataset, analysis: str) -> None:
        """Wall-clock time of one call."""
        ANALYSES[analysis](ds)

    def peakmem_analysis(self, ds: xr.Dataset, analysis: str) -> None:
        """Peak memory of a process that does only this."""
        ANALYSES[analysis](ds)


def polars_outliers(ds: xr.Dataset) -> Callable[[], object]:
    """The same rule in polars, from a table that is in its memory already; NaN are nulls there."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    pl = importlib.import_module("polars")
    names = ds["structure"].to_numpy().tolist()
    columns = {name: np.ascontiguousarray(ds["volume_mm3"].sel(structure=name)) for name in names}
    frame = pl.DataFrame({"group": ds["group"].to_numpy().tolist(), **columns}).with_columns(
        pl.col(names).fill_nan(None)
    )
    quartiles = [pl.col(n).quantile(q, "linear").alias(f"{n} {q}") for n in names for q in (0.25, 0.75)]

    def beyond(name: str) -> object:
        first, third = pl.col(f"{name} 0.25"), pl.col(f"{name} 0.75")
        reach = stats.outliers.REACH * (third - first)
        return ((pl.col(name) < first - reach) | (pl.col(name) > third + reach)).fill_null(False)

    def outliers() -> object:
        fences = frame.group_by("group").agg(quartiles)
        return frame.join(fences, on="group", how="left", maintain_order="left").select(map(beyond, names))

    return outliers


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU time of one call."""
    wall, cpu = perf_counter(), process_time()
    work()
    return perf_counter() - wall, process_time() - cpu


def main() -> None:
    """Take outliers by turns with polars, then each analysis of the largest study."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scans", type=int, default=10**6)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--failed", type=float, default=0.01, help="share of the scans that failed")
    chosen = arguments.parse_args()
    ds = study(chosen.scans, 20, failed=chosen.failed)
    works: dict[str, Callable[[], object]] = {"hypodask": lambda: stats.find_outliers(ds)}
    if importlib.util.find_spec("polars"):
        works["polars"] = polars_outliers(ds)
        ours = stats.find_outliers(ds)["outlier"].to_numpy()
        print("the same outliers:", bool((works["polars"]().to_numpy() == ours).all()))
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(chosen.rounds):
        for name, work in works.items():
            times.setdefault(name, []).append(seconds(work))
    for name, found in times.items():
        wall, cpu = np.min(found, axis=0)
        print(f"{name}: {chosen.scans} scans x 20 structures in {wall:.2f} s, CPU {cpu:.2f} s (least of {len(found)})")
    largest = study(LARGEST_STUDY, 12)
    for name, analysis in ANALYSES.items():
        wall, cpu = seconds(lambda analysis=analysis: analysis(largest))
        print(f"{name}: {LARGEST_STUDY} scans in {wall:.2f} s, CPU {cpu:.2f} s")


if __name__ == "__main__":
    main()
