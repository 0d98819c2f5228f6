"""What a second worker brings: the whole method on one worker and on two, each with one core of its own.

The same scans are processed again and again, on one worker and on two in turn, so that whatever else the machine does
befalls both. Both clusters stand all the while, and have compiled everything before the clock starts. A time is that of
a whole call of ``hypodask.process``: planning, loading of the networks, stores, journal and results included.
Efficiency is ``t1 / (2 t2)`` of the median times; that of the scans alone, which compete for memory and caches, is the
ratio of the median times of a scan.
"""

import argparse
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import pandas as pd
import xarray as xr
from distributed import Client

import hypodask
from benchmarks.validation.standins import separate_cluster
from hypodask import phantom

COUNTS = (1, 2)


@contextmanager
def pinned_workers(count: int) -> Iterator[Client]:
    """A client of so many workers, each kept to one core: XLA takes all that it sees."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    if len(cores) < count:
        raise RuntimeError(f"{count} workers need as many cores, and there are {len(cores)}")
    with separate_cluster(count) as (client, _, _):
        for worker, core in zip(client.nthreads(), cores, strict=True):
            client.run(keep_to, core, workers=[worker])
        yield client


def keep_to(core: int) -> None:
    """Run in a worker, before XLA counts the cores."""
    # An affinity is a thread's own.
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def timed(cohort: hypodask.Cohort, out: str, client: Client) -> tuple[float, xr.Dataset]:
    """Seconds of a call that processes every scan, and its results."""
    began = perf_counter()
    results = hypodask.process(cohort, out, client, progress=False)
    seconds = perf_counter() - began
    if not (results["status"] == "done").all():
        raise RuntimeError(f"not every scan is done: {sorted(set(results['reason'].to_numpy()))}")
    return seconds, results


def timed_anew(cohort: hypodask.Cohort, client: Client) -> tuple[float, float]:
    """Seconds of a call that processes every scan, into a folder that is not kept, and the median of a scan."""
    with TemporaryDirectory(prefix="hypodask-bench-") as out:
        seconds, results = timed(cohort, out, client)
        return seconds, float(results["seconds"].median())


def measured(cohort: hypodask.Cohort, rounds: int) -> pd.DataFrame:
    """One row for each call: round, workers, seconds of the call and of a scan."""
    rows = []
    with pinned_workers(1) as one, pinned_workers(2) as two:
        clients = dict(zip(COUNTS, (one, two), strict=True))
        for client in clients.values():
            timed_anew(cohort, client)
        for number in range(rounds):
            # Now the one first and now the other, for a machine may grow slower with time.
            for workers in COUNTS if number % 2 == 0 else COUNTS[::-1]:
                seconds, of_a_scan = timed_anew(cohort, clients[workers])
                rows.append({"round": number, "workers": workers, "seconds": seconds, "seconds_of_a_scan": of_a_scan})
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def summary(calls: pd.DataFrame, scans: int) -> str:
    """The figures that count, one line each."""
    medians = calls.groupby("workers")[["seconds", "seconds_of_a_scan"]].median()
    call, scan = medians["seconds"], medians["seconds_of_a_scan"]
    lines = [
        f"{scans} scans, {calls['round'].nunique()} rounds, {os.cpu_count()} cores, {platform.machine()}",
        *(f"{workers} workers: {3600 * scans / call[workers]:.0f} scans an hour" for workers in COUNTS),
        f"efficiency of the call: {call[1] / (2 * call[2]):.3f}",
        f"efficiency of the scans alone: {scan[1] / scan[2]:.3f}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, write the table, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--bids", type=Path, help="BIDS folder of scans; by default heads are simulated")
    parser.add_argument("--scans", type=int, default=12, help="an even number, so that no worker waits at the end")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bids = options.bids or phantom.simulate_cohort(options.out / "bids", options.scans)
    cohort = hypodask.Cohort(hypodask.Cohort.from_bids(bids).table.iloc[: options.scans])
    calls = measured(cohort, options.rounds)
    calls.to_csv(options.out / "workers_efficiency.tsv", sep="\t", index=False, float_format="%.2f")
    text = summary(calls, len(cohort))
    (options.out / "workers_efficiency.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
