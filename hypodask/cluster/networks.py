"""The networks in every worker: loaded once from their files, or run for it by a worker that has a GPU."""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from distributed import Client, KilledWorker, Worker, WorkerPlugin, get_client, get_worker
from numpy import ndarray

from hypodask.cluster.connection import submit
from hypodask.errors import ClusterError, ModelError
from hypodask.location import absolute, is_url
from hypodask.segmentation import Segmentation
from hypodask.segmentation.border import BorderedNetwork
from hypodask.segmentation.predict import ShippedNetwork

Models = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None

Load = Callable[[Any], Any] | None


class Networks(WorkerPlugin):
    """What each worker loads once, from names or paths: weights are never pickled."""

    loaded: Any
    """What ``load`` returned; there only once :meth:`setup` has succeeded."""

    def __init__(self, models: Models, load: Load, digests: dict[str, str]) -> None:
        self._models, self._load, self._digests = models, load, digests
        self._shipped = {path.name: _sha256(path) for path in sorted(_shipped_weights())}
        self._version = version("hypodask")
        self._workers_here = 0

    @classmethod
    def asked_for(cls, models: Models, load: Load) -> "Networks":
        """The networks a user named, with the digests of those that are files here."""
        is_one = isinstance(models, str | os.PathLike)
        several = [models] if isinstance(models, str | os.PathLike) else list(models or ())
        named = [_located(name) for name in several]
        digests = {name: _sha256(Path(name)) for name in named if Path(name).is_file()}
        return cls(named[0] if is_one else named or None, load, digests)

    @property
    def key(self) -> str:
        """Short digest that changes with the weights: those named and those that come with hypodask."""
        known = hashlib.sha256(repr((self._models, sorted(self._digests.items()))).encode())
        for digest in self._shipped.values():
            known.update(digest.encode())
        return known.hexdigest()[:12]

    def sharing(self, workers: int) -> "Networks":
        """For workers that have this machine's cores to themselves; 0 leaves the cores to the cluster."""
        self._workers_here = workers
        return self

    def setup(self, worker: Worker) -> None:
        """Run in each worker as it starts."""
        if self._workers_here:
            _keep_to_own_cores(int(worker.name), self._workers_here)
        if version("hypodask") != self._version:
            raise ClusterError(
                f"{worker.address} has hypodask {version('hypodask')}, the client {self._version}; "
                "install the same version on both"
            )
        for weights in _shipped_weights():
            if self._shipped.get(weights.name) != _sha256(weights):
                raise ModelError(f"{weights} on {worker.address} is not the file of the client; install hypodask anew")
        for path, digest in self._digests.items():
            if not Path(path).is_file() or _sha256(Path(path)) != digest:
                raise ModelError(f"{path} is missing or another file on {worker.address}; put the same weights there")
        self.loaded = self._load(self._models) if self._load else None


@contextmanager
def registered(client: Client, networks: Networks) -> Iterator[str]:
    """Load the networks in every worker, those that join later included; the plugin's name."""
    name = f"hypodask-{uuid.uuid4().hex[:8]}"
    client.register_plugin(networks, name=name)
    try:
        yield name
    finally:
        # On a cluster that is gone this fails in many ways, and must not hide the reason.
        with suppress(Exception):
            client.unregister_worker_plugin(name)


def loaded_here(plugin: str) -> Any:
    return cast(Networks, get_worker().plugins[plugin]).loaded


def on_gpu(plugin: str, number: int, network: Any) -> Any:
    """A network as it is, but that it runs on a worker with a GPU; others than ours run here."""
    if isinstance(network, BorderedNetwork):
        # Its outlines are what costs; the border is looked at where the scan is.
        return replace(network, first=on_gpu(plugin, number, network.first))
    if not isinstance(network, ShippedNetwork):
        return network
    return _OnGPU(network.members, network.card, network.digest, network.calibrated, plugin, number)


@dataclass(frozen=True, eq=False)
class _OnGPU(ShippedNetwork):
    """A network that a worker with a GPU runs for this one."""

    plugin: str = ""
    number: int = 0

    def outlined(self, image: ndarray, *, sketch: bool = False) -> Segmentation:
        """Have it outlined elsewhere; a worker that dies of it is as a disk that fails."""
        client = get_client()
        # Kept here until the other worker fetches it: as an argument it would go through the scheduler.
        kept = client.scatter(image, hash=False)
        there = submit(client, "GPU", _outlined_here, self.plugin, self.number, kept, sketch)
        try:
            return there.result()
        except KilledWorker as err:
            raise ConnectionError(f"the worker that had the GPU died ({err}); look at its log") from err


def _outlined_here(plugin: str, number: int, image: ndarray, sketch: bool) -> Segmentation:
    """Run in a worker with a GPU."""
    network = loaded_here(plugin)[number]
    first = network.first if isinstance(network, BorderedNetwork) else network
    return cast(Segmentation, first.outlined(image, sketch=sketch))


def _keep_to_own_cores(worker: int, workers: int) -> None:
    """Give a worker its share of the cores: XLA takes all it sees and ignores OMP_NUM_THREADS."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[worker % len(cores) :: workers]
        # An affinity is a thread's own; those that run already keep the one they have.
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), own)


def _located(name: str | os.PathLike[str]) -> str:
    """The absolute path of a file of weights, for workers have other working folders and homes; a name as it is."""
    text = os.fspath(name)
    path = text if is_url(text) else absolute(text)
    return path if Path(path).is_file() else text


def _shipped_weights() -> list[Path]:
    return [
        Path(str(file))
        for file in files("hypodask").joinpath("weights").iterdir()
        if file.name.endswith(".safetensors")
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
