"""One worker for each GPU of this machine, and no two on one device.

    python gpu_workers.py BIDS_DIR OUT --devices 0 1 2 3

It needs ``pip install 'hypodask[cuda]'``. What a GPU worker sees is settled before it starts, in the environment of its
process: JAX looks once, and cannot be told later. On other machines start the same command by hand for each device::

    CUDA_VISIBLE_DEVICES=0 dask worker tls://HOST:PORT --nthreads 1 --resources GPU=1 --tls-ca-file ...
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from distributed import Client, LocalCluster

import hypodask

ONLY_HERE = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
"""Without these a worker listens on every network of the machine."""


def main() -> None:
    """Process the study on the GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", help="BIDS folder with T1w scans")
    parser.add_argument("out", help="folder or URL for the results; run again to do only what is missing")
    parser.add_argument(
        "--devices", nargs="+", default=["0"], help="numbers or UUIDs, as nvidia-smi --list-gpus has them"
    )
    arguments = parser.parse_args()

    cohort = hypodask.Cohort.from_bids(arguments.bids_dir)
    with cluster(arguments.devices) as client:
        results = hypodask.process(cohort, arguments.out, client)
    print(results["status"].to_series().value_counts().to_string())


@contextmanager
def cluster(devices: Sequence[str]) -> Iterator[Client]:
    """A scheduler in this process, and a worker process for each device."""
    here = {"host": "127.0.0.1", "scheduler_kwargs": {"dashboard": False, "allowed_failures": 0}}
    with ExitStack() as running:
        scheduler = running.enter_context(LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", **here))
        for device in devices:
            command = [sys.executable, "-m", "dask", "worker", scheduler.scheduler_address, *ONLY_HERE]
            options = ["--nthreads", "1", "--resources", "GPU=1", "--name", f"gpu-{device}"]
            environment = os.environ | environment_of(device)
            process = running.enter_context(subprocess.Popen(command + options, env=environment))  # noqa: S603
            running.callback(process.terminate)
        client = running.enter_context(Client(scheduler, set_as_default=False))
        client.wait_for_workers(len(devices), timeout=120)
        yield client


def environment_of(device: str) -> dict[str, str]:
    """What a GPU worker has besides the environment of this process.

    What Dask itself sets before a worker starts (``distributed.nanny.pre-spawn-environ``) stays as it is: had the
    device been set there, the first worker's would have become that of all.
    """
    return {
        "CUDA_VISIBLE_DEVICES": device,
        # The device belongs to this worker: memory taken once is not taken piece by piece.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    }


# Workers are new processes, which may import this file again: only the first may run main().
if __name__ == "__main__":
    main()
