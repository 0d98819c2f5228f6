"""One worker process for each GPU of this machine, and CPU workers that prepare scans for them.

    python gpu_workers.py BIDS_DIR OUT --devices 0 1 2 3 --cpu-workers 32

Workers with the resource ``CPU`` read, align, measure and write; those with the resource ``GPU`` run the networks for
them. Without CPU workers, each GPU worker does everything, and its device is idle most of the time.

It needs ``pip install 'hypodask[cuda]'``. The devices that a GPU worker can use are set in the environment of its
process before it starts, because JAX reads them only once. On other machines start the same command by hand for each
device::

    CUDA_VISIBLE_DEVICES=0 dask worker tls://HOST:PORT --nthreads 1 --resources GPU=1 --tls-ca-file ...
    JAX_PLATFORMS=cpu dask worker tls://HOST:PORT --nthreads 1 --nworkers 32 --resources CPU=1 --tls-ca-file ...
"""

import argparse
import os
import shutil
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
    parser.add_argument("--cpu-workers", type=int, default=0, help="worker processes that feed the GPUs")
    arguments = parser.parse_args()

    cohort = hypodask.Cohort.from_bids(arguments.bids_dir)
    with cluster(arguments.devices, arguments.cpu_workers) as client:
        results = hypodask.process(cohort, arguments.out, client)
    print(results["status"].to_series().value_counts().to_string())


@contextmanager
def cluster(devices: Sequence[str], cpu_workers: int = 0) -> Iterator[Client]:
    """A scheduler in this process, a worker process for each device, and ``cpu_workers`` without one."""
    kinds = [(f"gpu-{device}", "GPU=1", environment_of(device), []) for device in devices]
    for number in range(cpu_workers):
        kinds.append((f"cpu-{number}", "CPU=1", {"JAX_PLATFORMS": "cpu"}, on_one_core(number)))
    here = {"host": "127.0.0.1", "scheduler_kwargs": {"dashboard": False, "allowed_failures": 0}}
    with ExitStack() as running:
        scheduler = running.enter_context(LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", **here))
        for name, resource, environment, before in kinds:
            command = [*before, sys.executable, "-m", "dask", "worker", scheduler.scheduler_address, *ONLY_HERE]
            options = ["--nthreads", "1", "--resources", resource, "--name", name]
            process = running.enter_context(subprocess.Popen(command + options, env=os.environ | environment))  # noqa: S603
            running.callback(process.terminate)
        client = running.enter_context(Client(scheduler, set_as_default=False))
        client.wait_for_workers(len(kinds), timeout=120)
        yield client


def on_one_core(number: int) -> list[str]:
    """Start of the command of a CPU worker, which keeps it to one core: XLA would use every core that it sees."""
    cores = sorted(os.sched_getaffinity(0)) if shutil.which("taskset") else []
    return ["taskset", "--cpu-list", str(cores[number % len(cores)])] if cores else []


def environment_of(device: str) -> dict[str, str]:
    """Environment variables of a GPU worker, in addition to those of this process.

    The device is not set in Dask's own variables (``distributed.nanny.pre-spawn-environ``): there, the device of the
    first worker would become that of all.
    """
    return {
        # This process may have been told not to use a GPU.
        "JAX_PLATFORMS": "",
        "CUDA_VISIBLE_DEVICES": device,
        # The device belongs to this worker alone, so it can reserve most of the memory at once.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    }


# Workers are new processes, which may import this file again: only the first may run main().
if __name__ == "__main__":
    main()
