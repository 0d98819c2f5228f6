"""How near a cluster comes to its ideal rate with work of realistic times, on one fused plan and on one with GPUs.

Scheduler, workers and client are Dask's own, all in one process on one core. What is simulated is the work, and time:
the clock is the CPU time that this process has used, and where all of it waits the clock is put forward. So
what the engine does costs as much as it costs, the work costs nothing, and other work on the machine does not matter.
With many workers it is too strict, since in life each worker has its own core for what Dask does there; what workers
watch of themselves is turned down.

The plans are the product's: how a scan is sent off and how it asks for its networks is :func:`submit` of
:mod:`hypodask.cluster.connection`, and the window has the product's size. Only what takes time stands in: a scan is 8 s
on a CPU (fused), or 4 s on a CPU, which then waits while each of two networks takes 0.2 s on a GPU (split), so that ten
CPU workers keep one GPU busy. Throughput is counted between the first and the last tenth of the scans, when every
worker has work.
"""

import argparse
import asyncio
import logging
import math
import selectors
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import distributed.metrics
import numpy as np
import pandas as pd
from distributed import Client, Future, Scheduler, SpecCluster, Worker, as_completed, get_client

from benchmarks.validation.standins import wait
from hypodask.cluster.connection import submit
from hypodask.cluster.window import MORE, PER_THREAD

FUSED_SECONDS, PREPARE_SECONDS, NETWORK_SECONDS = 8.0, 4.0, 0.2
"""Times of one scan: of the order of those of the pipeline, chosen and not measured."""

NETWORKS = 2
INFER_SECONDS = NETWORKS * NETWORK_SECONDS

CPU_WORKERS = (1, 8, 64)
SCANS_EACH = 20
"""Scans for each worker, so that a run takes as long whatever the size of the cluster."""

HOUSEKEEPING = {
    "distributed.admin.tick.interval": "10s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.profile.enabled": False,
}
"""What workers watch of themselves many times a second; here one core would do it for all of them."""

Plan = Callable[[Client], Future]


class Skipping(selectors.DefaultSelector):
    """Does not wait for a time to come, but counts it as passed."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """What is ready now; without a time, what comes first."""
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self.skipped += timeout
        return ready


class SimulatedTime(asyncio.SelectorEventLoop):
    """A loop whose clock is the CPU time used and the time skipped; threads are done without, since none can skip."""

    def __init__(self) -> None:
        self._skipping = Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Seconds."""
        return time.process_time() + self._skipping.skipped

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run it here and now."""
        done = self.create_future()
        done.set_result(func(*args))
        return done


def set_clocks(clock: Callable[[], float]) -> None:
    """Dask takes the times of tasks by a clock of its own, and plans by them."""
    own = distributed.metrics.time
    for name, module in list(sys.modules.items()):
        if name.startswith("distributed") and getattr(module, "time", None) is own:
            module.time = clock


def fused(client: Client) -> Future:
    """A scan as one task."""
    return submit(client, None, wait, FUSED_SECONDS)


def split(client: Client) -> Future:
    """A scan on a CPU worker that has its networks run by a worker with a GPU."""
    return submit(client, "CPU", prepared_and_outlined)


async def prepared_and_outlined() -> None:
    """Run in a CPU worker, which is kept from other scans while it waits."""
    client = await get_client()
    await wait(PREPARE_SECONDS)
    for _ in range(NETWORKS):
        await submit(client, "GPU", wait, NETWORK_SECONDS)


async def moments(client: Client, plan: Plan, scans: int, window: int) -> AsyncIterator[float]:
    """Keep a window of scans in flight; the moment at which each is done."""
    clock = asyncio.get_running_loop().time
    landed = as_completed([plan(client) for _ in range(min(window, scans))], loop=client.loop)
    begun = min(window, scans)
    async for future in landed:
        await future
        yield clock()
        if begun < scans:
            landed.add(plan(client))
            begun += 1


@dataclass(frozen=True)
class Case:
    """A plan on a cluster."""

    plan: Plan
    cpus: int
    gpus: int

    @property
    def ideal_per_second(self) -> float:
        """Scans a second if no worker ever waited, not even for a GPU, and nothing but the work took time."""
        if not self.gpus:
            return self.cpus / FUSED_SECONDS
        return min(self.cpus / PREPARE_SECONDS, self.gpus / INFER_SECONDS)


def cases(sizes: Sequence[int]) -> list[Case]:
    """Both plans for each size, with as many GPUs as keep up with the CPUs."""
    gpus = {cpus: math.ceil(cpus * INFER_SECONDS / PREPARE_SECONDS) for cpus in sizes}
    return [case for cpus in sizes for case in (Case(fused, cpus, 0), Case(split, cpus, gpus[cpus]))]


def cluster_of(case: Case) -> SpecCluster:
    """A scheduler and workers of one thread each; those of GPUs do nothing else."""
    kinds = ["CPU"] * case.cpus + ["GPU"] * case.gpus
    quiet = {"protocol": "inproc://", "dashboard": False}
    workers = {
        number: {"cls": Worker, "options": {"nthreads": 1, "resources": {kind: 1}, "memory_limit": 0, **quiet}}
        for number, kind in enumerate(kinds)
    }
    here = quiet | {"dashboard_address": "127.0.0.1:0"}
    return SpecCluster(
        workers=workers, scheduler={"cls": Scheduler, "options": here}, asynchronous=True, silence_logs=logging.ERROR
    )


async def measured(case: Case) -> dict[str, object]:
    """Throughput of a case against the ideal."""
    dask.config.set(HOUSEKEEPING)
    set_clocks(asyncio.get_running_loop().time)
    scans, window = max(40, SCANS_EACH * case.cpus), PER_THREAD * case.cpus + MORE
    async with cluster_of(case) as cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
        busy = time.process_time()
        done = [moment async for moment in moments(client, case.plan, scans, window)]
        busy = time.process_time() - busy
    if len(done) != scans:
        raise RuntimeError(f"{len(done)} of {scans} scans were done")
    middle = range(scans // 10, scans - scans // 10)
    # A line through all of them, since scans that began together land together.
    rate = float(np.polyfit(np.array(done)[middle], middle, 1)[0])
    return {
        "plan": case.plan.__name__,
        "cpu_workers": case.cpus,
        "gpu_workers": case.gpus,
        "scans": scans,
        "scans_per_hour": 3600 * rate,
        "ideal_per_hour": 3600 * case.ideal_per_second,
        "share_of_ideal": rate / case.ideal_per_second,
        "engine_ms_a_scan": 1000 * busy / scans,
    }


def main() -> None:
    """Simulate, write the table, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--workers", type=int, nargs="+", default=CPU_WORKERS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases(options.workers):
        with asyncio.Runner(loop_factory=SimulatedTime) as runner:
            rows.append(runner.run(measured(case)))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "plan_simulation.tsv", sep="\t", index=False, float_format="%.3f")
    print(table.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
