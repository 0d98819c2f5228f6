"""A cluster on this machine for tests: on loopback alone, without a dashboard, quiet, and quick to start."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from typing import Any

import dask.config
from distributed import Client, LocalCluster

from hypodask.cluster import LOST_WORKER, RESTART_SECONDS

START_METHOD = "distributed.worker.multiprocessing-method"
SPAWNED = {START_METHOD: "spawn"}


@contextmanager
def local_client(workers: int = 2, *, processes: bool = True, forks: bool = True, **options: Any) -> Iterator[Client]:
    """A client of so many workers of one thread; each scan on a worker that dies is suspect at once.

    Without ``forks`` they are spawned, as hypodask has them.
    """
    with (
        dask.config.set({LOST_WORKER: RESTART_SECONDS, **(forked() if processes and forks else SPAWNED)}),
        LocalCluster(
            n_workers=workers,
            processes=processes,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False, "allowed_failures": 0},
            silence_logs=60,
            **{"threads_per_worker": 1, **options},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@cache
def forked() -> dict[str, str]:
    """Dask's setting for workers that are forks of a process which imported hypodask and ran nothing.

    One that is spawned takes seconds to import JAX, and many tests end their workers. The forks inherit the environment
    as it is at the first call.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return SPAWNED
    multiprocessing.get_context("forkserver").set_forkserver_preload(["hypodask.cluster", "pytest"])
    forkserver.ensure_running()
    return {START_METHOD: "forkserver"}
