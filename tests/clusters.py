"""A cluster on this machine for tests: on loopback alone, without a dashboard, quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.config
from distributed import Client, LocalCluster

from hypodask.cluster import LOST_WORKER, RESTART_SECONDS


@contextmanager
def local_client(workers: int = 2, **options: Any) -> Iterator[Client]:
    """A client of so many workers of one thread; each scan on a worker that dies is suspect at once."""
    with (
        dask.config.set({LOST_WORKER: RESTART_SECONDS}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False, "allowed_failures": 0},
            silence_logs=60,
            **options,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
