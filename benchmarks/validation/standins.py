"""Stand-ins for the pipeline, and a cluster of separate processes: what is measured then is the engine itself.

They live in a module of their own since workers must be able to import them.
"""

import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from distributed import Client

from hypodask.core.row import Row

MEANS_MM3 = {"hypothalamus": 850.0, "hypothalamus_left": 417.0, "hypothalamus_right": 433.0, "icv": 1.5e6}
"""As large as in adults; each scan has them times one factor of its own."""

START_SECONDS = 120
"""How long scheduler and workers may take to start on a busy machine."""

STOP_SECONDS = 20


def quick_row(path: str, *, scan: str, **_: object) -> Row:
    """A row as large as a real one, from the name of the scan alone; touches no disk."""
    factor = np.random.default_rng(int(scan.rpartition("-")[2])).normal(1.0, 0.08)
    volumes = {name: float(mean * factor) for name, mean in MEANS_MM3.items()}
    return Row(
        scan,
        "done",
        warnings="The alignment is unsure: compare the picture of the slab with the scan." if factor > 1.1 else "",
        volume_mm3=volumes,
        soft_volume_mm3=volumes,
        label_volume_mm3=volumes,
        volume_low_mm3={name: 0.9 * value for name, value in volumes.items()},
        volume_high_mm3={name: 1.1 * value for name, value in volumes.items()},
        quality=0.9,
        alignment_score=0.8,
        alignment_error_mm=0.6,
        alignment_source="automatic",
        acpc_distance_mm=26.6,
        protocol="stand-in",
        model="hypothalamus-0123456789ab icv-0123456789ab",
        version="0",
        sha256=hashlib.sha256(path.encode()).hexdigest(),
        seconds=0.0,
        host="stand-in",
    )


async def wait(seconds: float, *_: object) -> float:
    """Work that takes so long, of what it is given."""
    await asyncio.sleep(seconds)
    return seconds


@contextmanager
def separate_cluster(workers: int, *options: str) -> Iterator[tuple[Client, psutil.Process, list[psutil.Process]]]:
    """A scheduler and workers of one thread, each in a process of its own: client, scheduler, workers."""
    with TemporaryDirectory(prefix="hypodask-bench-") as folder:
        file = Path(folder, "scheduler.json")
        begin = ["--host", "127.0.0.1", "--scheduler-file", str(file), "--no-dashboard"]
        commands = [["dask_scheduler", "--port", "0", *begin]]
        commands += [["dask_worker", *begin, "--nthreads", "1", "--no-nanny", *options] for _ in range(workers)]
        started = [_start(command, Path(folder, f"{number}.log")) for number, command in enumerate(commands)]
        try:
            with Client(scheduler_file=str(file), timeout=START_SECONDS, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=START_SECONDS)
                scheduler, *others = [psutil.Process(process.pid) for process in started]
                yield client, scheduler, others
        finally:
            for process in reversed(started):
                _stop(process)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    module, *options = command
    with log.open("wb") as file:
        begun = subprocess.Popen(  # noqa: S603 - the interpreter that runs this
            [sys.executable, "-m", f"distributed.cli.{module}", *options], stdout=file, stderr=subprocess.STDOUT
        )
    if module == "dask_scheduler":
        _wait_for(Path(options[options.index("--scheduler-file") + 1]))
    return begun


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it; a worker that waits for others as it ends is not waited for."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no scheduler wrote {file.name} within {START_SECONDS} s")
        time.sleep(0.05)
