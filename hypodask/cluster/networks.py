"""The networks in every worker: loaded once from their files, or run by another worker that has a GPU."""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from distributed import Client, KilledWorker, Worker, WorkerPlugin, get_client, get_worker
from numpy import ndarray

from hypodask.cluster.connection import submit
from hypodask.core.errors import ClusterError, ModelError
from hypodask.files.digests import sha256_of, sha256_of_file
from hypodask.files.location import absolute
from hypodask.segmentation.network import Network

Models = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None

Load = Callable[[Any], Any] | None
"""Loads networks from what the user named; called once in each worker."""


class NetworksPlugin(WorkerPlugin):
    """Loads the networks in each worker, from names or paths: weights are never pickled."""

    loaded: Any
    """What ``load`` returned; set once :meth:`setup` has succeeded."""

    def __init__(self, models: Models, load: Load, digests: dict[str, str]) -> None:
        self._models, self._load, self._digests = models, load, digests
        self._shipped = {path.name: sha256_of_file(path) for path in sorted(_shipped_weights())}
        self._version = version("hypodask")
        self._workers_here = 0

    @classmethod
    def asked_for(cls, models: Models, load: Load) -> "NetworksPlugin":
        """The networks that a user named, with the digests of those that are files here."""
        is_one = isinstance(models, str | os.PathLike)
        several = [models] if isinstance(models, str | os.PathLike) else list(models or ())
        named = [_located(name) for name in several]
        digests = {name: sha256_of_file(name) for name in named if Path(name).is_file()}
        return cls(named[0] if is_one else named or None, load, digests)

    @property
    def key(self) -> str:
        """Short digest that changes with the weights: those that were named, and those that come with hypodask."""
        named = repr((self._models, sorted(self._digests.items())))
        return sha256_of("".join([named, *self._shipped.values()]).encode())[:12]

    def sharing(self, workers: int) -> "NetworksPlugin":
        """For so many workers that share the cores of this machine; 0 leaves the cores to the cluster."""
        self._workers_here = workers
        return self

    def setup(self, worker: Worker) -> None:
        """Run in each worker when it starts."""
        if self._workers_here:
            _keep_to_own_cores(int(worker.name), self._workers_here)
        if version("hypodask") != self._version:
            raise ClusterError(
                f"{worker.address} has hypodask {version('hypodask')}, the client {self._version}; "
                "install the same version on both"
            )
        for weights in _shipped_weights():
            if self._shipped.get(weights.name) != sha256_of_file(weights):
                raise ModelError(f"{weights} on {worker.address} is not the file of the client; install hypodask anew")
        for path, digest in self._digests.items():
            if not Path(path).is_file() or sha256_of_file(path) != digest:
                raise ModelError(f"{path} is missing or another file on {worker.address}; put the same weights there")
        self.loaded = self._load(self._models) if self._load else None


@contextmanager
def registered(client: Client, networks: NetworksPlugin) -> Iterator[str]:
    """Load the networks in every worker, also in workers that join later; yields the name of the plugin."""
    name = f"hypodask-{uuid.uuid4().hex[:8]}"
    client.register_plugin(networks, name=name)
    try:
        yield name
    finally:
        # If the cluster is gone, this fails in many ways, which must not hide the first error.
        with suppress(Exception):
            client.unregister_worker_plugin(name)


def loaded_here(plugin: str) -> Any:
    """What a plugin loaded in this worker."""
    return cast(NetworksPlugin, get_worker().plugins[plugin]).loaded


def on_gpu(plugin: str, number: int, network: Network) -> Network:
    """The same network, with its heavy step run by a worker that has a GPU."""

    def run(method: str, image: ndarray, **options: Any) -> Any:
        client = get_client()
        # Scattered, the image stays here until the other worker fetches it; as an argument it would pass through the
        # scheduler.
        there = submit(client, "GPU", _run_here, plugin, number, method, client.scatter(image, hash=False), options)
        try:
            return there.result()
        except KilledWorker as err:
            # For the scan this is like an error of the disk: worth another attempt.
            raise ConnectionError(f"the worker that had the GPU died ({err}); look at its log") from err

    return network.on(run)


def _run_here(plugin: str, number: int, method: str, image: ndarray, options: dict[str, Any]) -> Any:
    """Run in a worker that has a GPU: a method of a loaded network."""
    return attrgetter(method)(loaded_here(plugin)[number])(image, **options)


def _keep_to_own_cores(worker: int, workers: int) -> None:
    """Give a worker its share of the cores: XLA uses all cores that it sees, and ignores OMP_NUM_THREADS."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[worker % len(cores) :: workers]
        # Each thread has its own affinity, and threads that run already keep theirs.
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), own)


def _located(name: str | os.PathLike[str]) -> str:
    """The absolute path of a file of weights, because workers have other working folders; the name of shipped ones."""
    path = absolute(name)
    return path if Path(path).is_file() else os.fspath(name)


def _shipped_weights() -> list[Path]:
    return [
        Path(str(file))
        for file in files("hypodask").joinpath("weights").iterdir()
        if file.name.endswith(".safetensors")
    ]
