"""Scans an hour with a GPU that runs the networks for CPU workers, and without: for real, on simulated heads.

    python -m benchmarks.validation.gpu_throughput OUT --devices 0 --cpu-workers 15 --scans 60

The workers are those of ``examples/gpu_workers.py``, each kind of them warmed up by some scans of its own; then the
same scans are processed by all, with the GPU and without, and volumes are compared. Without a GPU, ``--devices ""``
tries the script: its worker then has no device.
"""

import argparse
import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import xarray as xr

import hypodask
from benchmarks.validation.workers_efficiency import timed
from hypodask import phantom

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpu_workers.py"


def with_warm_workers(
    cohort: hypodask.Cohort, first: hypodask.Cohort, out: Path, devices: Sequence[str], cpu_workers: int
) -> tuple[float, xr.Dataset]:
    """Seconds of a call that processes every scan on workers that have compiled all, and its results."""
    cluster: Any = runpy.run_path(str(EXAMPLE))["cluster"]
    with cluster(devices, cpu_workers) as client:
        timed(first, str(out / "first"), client)
        return timed(cohort, str(out / "all"), client)


def differences(one: xr.Dataset, other: xr.Dataset) -> xr.DataArray:
    """Largest difference of each structure's volume, as a share of it."""
    return np.abs(one["volume_mm3"] / other["volume_mm3"] - 1).max("scan")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--devices", nargs="+", default=["0"])
    parser.add_argument("--cpu-workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--scans", type=int, default=60)
    options = parser.parse_args()
    # The memory of the GPU is its worker's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    began = perf_counter()
    bids = phantom.simulate_cohort(options.out / "bids", options.scans, workers=os.cpu_count() or 1)
    cohort = hypodask.Cohort.from_bids(bids)
    print(f"simulated {len(cohort)} heads in {perf_counter() - began:.0f} s", flush=True)
    first = hypodask.Cohort(cohort.table.iloc[: options.cpu_workers])
    found = {}
    for kind, devices in (("gpu", options.devices), ("cpu", [])):
        seconds, found[kind] = with_warm_workers(cohort, first, options.out / kind, devices, options.cpu_workers)
        print(
            f"{kind}: {options.cpu_workers} CPU workers and {len(devices)} GPUs: {3600 * len(cohort) / seconds:.0f} "
            f"scans an hour, {float(found[kind]['seconds'].median()):.2f} s a scan (median)",
            flush=True,
        )
    print("largest difference of a volume:")
    for structure, share in differences(found["gpu"], found["cpu"]).to_series().items():
        print(f"  {structure}: {100 * share:.3f} %")


if __name__ == "__main__":
    main()
