"""How near a cluster comes to its ideal rate with work of realistic times, on one fused plan and on one with GPUs.

Scheduler and workers are Dask's own, all in one process; what is simulated is the work, which sleeps. A scan takes 8 s
on a CPU (fused), or 4 s of preparation on a CPU and then 0.4 s on a GPU, so that ten CPU workers keep one GPU busy; all
of it goes faster by a factor, which makes what the engine costs count as much more. Throughput is counted between the
first and the last tenth of the scans, when every worker has work.
"""

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pandas as pd
from distributed import Client, Future, Scheduler, SpecCluster, Worker

FUSED_SECONDS, PREPARE_SECONDS, INFER_SECONDS = 8.0, 4.0, 0.4
"""Times of one scan: estimates of the order of those of the pipeline, not measurements."""

CPU_WORKERS = (1, 8, 64)
SCANS_EACH = 12
"""Scans for each worker, so that a run takes as long whatever the size of the cluster."""

Plan = Callable[[Client, int, int, float], Iterator[float]]


def work(seconds: float, *_: object) -> float:
    """Take so long."""
    time.sleep(seconds)
    return seconds


def fused(client: Client, scans: int, window: int, scale: float) -> Iterator[float]:
    """One task for a scan; the moments at which scans are done."""
    return _moments(scans, window, lambda: _submitted(client, FUSED_SECONDS * scale, "CPU"))


def split(client: Client, scans: int, window: int, scale: float) -> Iterator[float]:
    """One task that prepares a scan on a CPU, and one after it on a GPU; the moments at which scans are done."""

    def chained() -> Future:
        prepared = _submitted(client, PREPARE_SECONDS * scale, "CPU")
        return _submitted(client, INFER_SECONDS * scale, "GPU", prepared)

    return _moments(scans, window, chained)


def _submitted(client: Client, seconds: float, kind: str, *after: Future) -> Future:
    return client.submit(work, seconds, *after, resources={kind: 1}, pure=False)


def _moments(scans: int, window: int, begin: Callable[[], Future]) -> Iterator[float]:
    """Keep a window of scans in flight; the moment at which each is done."""
    landed: SimpleQueue[Future] = SimpleQueue()
    flying: set[Future] = set()

    def one_landed() -> float:
        future = landed.get()
        future.result()
        flying.discard(future)
        return time.perf_counter()

    for _ in range(scans):
        if len(flying) == window:
            yield one_landed()
        future = begin()
        flying.add(future)
        future.add_done_callback(landed.put)
    while flying:
        yield one_landed()


@dataclass(frozen=True)
class Case:
    """A plan on a cluster."""

    name: str
    plan: Plan
    cpus: int
    gpus: int

    @property
    def ideal_per_second(self) -> float:
        """Scans a second at full scale, if no worker ever waited and nothing but the work took time."""
        if not self.gpus:
            return self.cpus / FUSED_SECONDS
        return min(self.cpus / PREPARE_SECONDS, self.gpus / INFER_SECONDS)


def cases(sizes: Sequence[int]) -> list[Case]:
    """Both plans for each size, with as many GPUs as keep up with the CPUs."""
    gpus = {cpus: math.ceil(cpus * INFER_SECONDS / PREPARE_SECONDS) for cpus in sizes}
    return [case for cpus in sizes for case in (Case("fused", fused, cpus, 0), Case("split", split, cpus, gpus[cpus]))]


@contextmanager
def cluster_of(case: Case) -> Iterator[Client]:
    """A scheduler and workers of one thread each; those of GPUs do nothing else."""
    kinds = ["CPU"] * case.cpus + ["GPU"] * case.gpus
    local = {"host": "127.0.0.1", "dashboard": False}
    workers = {
        number: {"cls": Worker, "options": {"nthreads": 1, "resources": {kind: 1}, "memory_limit": 0, **local}}
        for number, kind in enumerate(kinds)
    }
    scheduler = {"cls": Scheduler, "options": {"port": 0, **local}}
    with (
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(len(kinds))
        yield client


def measured(case: Case, scale: float) -> dict[str, object]:
    """Throughput of a case against the ideal."""
    scans = max(20, SCANS_EACH * case.cpus)
    window = 2 * (case.cpus + case.gpus) + 4
    with cluster_of(case) as client:
        moments = list(case.plan(client, scans, window, scale))
    if len(moments) != scans:
        raise RuntimeError(f"{len(moments)} of {scans} scans were done")
    first, last = scans // 10, scans - 1 - scans // 10
    rate = (last - first) / (moments[last] - moments[first]) * scale
    return {
        "plan": case.name,
        "cpu_workers": case.cpus,
        "gpu_workers": case.gpus,
        "scans": scans,
        "scans_per_hour": 3600 * rate,
        "ideal_per_hour": 3600 * case.ideal_per_second,
        "share_of_ideal": rate / case.ideal_per_second,
    }


def main() -> None:
    """Simulate, write the table, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--workers", type=int, nargs="+", default=CPU_WORKERS)
    parser.add_argument("--faster", type=float, default=4.0, help="how much faster than life")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases(options.workers):
        rows.append(measured(case, 1 / options.faster))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "plan_simulation.tsv", sep="\t", index=False, float_format="%.3f")
    print(table.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
