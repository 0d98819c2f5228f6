"""Run the method for every scan of a cohort, anywhere that Dask runs.

Workers write stores and return rows; the client keeps a window of scans in flight, appends each row to
the journal as it comes in, and at the end makes the results dataset. Nothing is kept in the cluster:
when a worker, the scheduler or this process is lost, the same call goes on where the last one stopped.

A scan is left alone by a later call when its row is in the journal, its input file has the size and
modification time it had, the same networks are asked for, and its store still has a done-mark. (Hashing
every input again would read the whole study to find that nothing changed; the done-mark holds the sha256
for whoever wants to.) A scan that was refused (:class:`~hypodask.errors.ScanError`) stays failed until
its file changes or ``retry_failed`` is set. What went wrong for another reason, a killed worker, a full
disk or a defect, is tried again.

``each`` does the same for any function of any items, and keeps no journal.
"""

import hashlib
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

import dask.config
import fsspec
import pandas as pd
import xarray as xr
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker
from distributed.system import MEMORY_LIMIT

from hypodask.cohort import Cohort, Entry
from hypodask.dataset import assemble, check_columns, finalise, open_results, save_cohort
from hypodask.errors import ClusterError, ModelError, ResultsError, ScanError
from hypodask.journal import Journal, read_journal, sole_writer
from hypodask.location import Location
from hypodask.pipeline import load_models, process_scan
from hypodask.progress import Progress
from hypodask.row import Row, Stage
from hypodask.store import store_path

Models = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
Treat = Callable[..., Row]
Load = Callable[[Any], Any] | None
Landed = tuple[Any, "Future[Any]"]
"""A job and its future, which is finished or failed."""
Task = Callable[[Any], Any]
Item = TypeVar("Item")
Value = TypeVar("Value")

RETRIES = 2
"""How often a scan is tried again after an error of the disk or the network."""

ALLOWED_DEATHS = 0
"""Every scan that was on a worker as it died is suspect at once: it is set aside and later tried alone."""

WORKER_BYTES = 3 * 2**30
"""Memory that a worker is taken to need; an estimate, not a measurement."""

WINDOW_SECONDS = 5.0
"""How often the workers are counted anew; asking each time would cost more than a task."""

KILLED = (
    "the worker process died each time it had this scan, also when it had nothing else; it ran out of memory or "
    "crashed: give the workers more memory, or leave the scan out, and make the same call again"
)

TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "created")
"""Each file system has its own name for the time of the last change; an ETag serves as well."""

CONNECT_SECONDS = 30
"""How long a scheduler may take to answer."""

PLANNERS = 32
"""Files looked at a time while planning; on an object store each look is a round trip. Not tuned."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One scan to be treated."""

    entry: Entry
    store: str
    """Where its store goes, relative to the output."""
    stamp: str
    """What its input and the networks were at planning time; kept in the journal."""

    def __str__(self) -> str:
        return self.entry.scan


def process(
    cohort: Cohort,
    url: str,
    client: Client | str | None = None,
    *,
    workers: int | None = None,
    models: Models = None,
    window: int | None = None,
    progress: bool = True,
    retry_failed: bool = False,
    treat: Treat = process_scan,
    load: Load = load_models,
) -> xr.Dataset:
    """Process every scan of a cohort that is not processed yet, and return the results of all.

    A script that lets this start its own workers needs ``if __name__ == "__main__":`` around the call,
    since they are new processes that import the script.

    Parameters
    ----------
    cohort
        The scans. The results have one row for each of them.
    url
        Output folder or any fsspec URL. The workers must reach it, and the scans, by the same name.
    client
        Any Dask cluster: SLURM, Kubernetes, a cloud; or the address of its scheduler. By default the
        current client, else workers are started on this machine, one process per core, and stopped at the end.
    workers
        How many to start here; without effect on a given client.
    models
        Name or path of weights, or several; by default the networks that come with hypodask.
    window
        Scans in flight at a time; by default two per worker thread and a few.
    progress
        Show done, failed, left, rate and time left.
    retry_failed
        Also try scans again that were refused before.
    treat
        ``treat(path, *, scan, out, store, models) -> Row``, importable by the workers; ``landmarks`` is given too for a
        scan that has some.
    load
        Called once in each worker with ``models``; what it returns is given to ``treat``.

    Returns
    -------
    xr.Dataset
        See :func:`hypodask.dataset.assemble`; also written into ``url``.

    Raises
    ------
    CohortError
        If the cohort has a column with the name of a result.
    ClusterError
        If another process works on ``url``, or the cluster is lost; then call it again.
    ModelError
        If weights cannot be loaded.
    """
    check_columns(cohort.table)
    out = Location(url).url
    networks = Networks.asked_for(models, load)
    with sole_writer(out):
        save_cohort(out, cohort.table)
        journal = read_journal(out)
        jobs = _unfinished(cohort, out, journal, networks.key, retry_failed=retry_failed)
        if jobs:
            with (
                Progress(len(cohort), **_earlier(cohort, journal, jobs), shown=progress) as bar,
                _connected(client, workers, len(jobs)) as (connected, ours),
                _registered(connected, networks.sharing(ours)) as plugin,
            ):
                task = partial(_treat_job, treat, out, plugin)
                _keep_rows(out, _rows(connected, jobs, task, _Window(connected, window)), bar)
        return _settled(out, assemble(cohort.table, read_journal(out)))


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """What became of one item: a value, or the error that took its place."""

    item: Item
    value: Value | None = None
    error: Exception | None = None

    def get(self) -> Value:
        """The value; raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return cast(Value, self.value)


def each(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    *,
    client: Client | str | None = None,
    workers: int | None = None,
    window: int | None = None,
) -> Iterator[Outcome[Item, Value]]:
    """Call a function with every item, anywhere that Dask runs.

    Parameters
    ----------
    function
        Importable by the workers. An ``OSError`` is tried again, any other error is not. It writes what is large and
        returns what is small: values pass through this process.
    items
        Small descriptions, such as paths.
    client, workers, window
        As for :func:`process`; nothing is started where there are no items.

    Yields
    ------
    Outcome
        One for every item, in the order in which they come in. An item that failed, or killed its worker each time it
        was tried, is an outcome with an error, and stops no other.

    Raises
    ------
    ClusterError
        If the cluster is lost.

    Examples
    --------
    >>> list(each(len, []))
    []
    """
    numbered = [_Numbered(number, item) for number, item in enumerate(items)]
    if not numbered:
        return
    nothing = Networks(None, None, {})
    with (
        _connected(client, workers, len(numbered)) as (connected, ours),
        _registered(connected, nothing.sharing(ours)),
    ):
        task = partial(_answer, function)
        for landed in _landed(connected, numbered, task, _Window(connected, window)):
            if landed is not None:
                yield _outcome(*landed)


@dataclass(frozen=True)
class _Numbered:
    """An item, named by its number."""

    number: int
    item: Any

    def __str__(self) -> str:
        return str(self.number)


def _answer(function: Callable[[Any], Any], numbered: _Numbered) -> Outcome[Any, Any]:
    """Run in a worker: as with scans, only errors of the disk or the network leave it."""
    try:
        return Outcome(None, function(numbered.item))
    except OSError:
        raise
    except Exception as err:
        return Outcome(None, error=err)


def _outcome(numbered: _Numbered, future: "Future[Any]") -> Outcome[Any, Any]:
    error = _error_of(numbered, future)
    if error is None:
        answer = future.result()
        return Outcome(numbered.item, answer.value, answer.error)
    return Outcome(numbered.item, error=ClusterError(KILLED) if isinstance(error, KilledWorker) else error)


class Networks(WorkerPlugin):
    """What each worker loads once, from names or paths: weights are never pickled."""

    loaded: Any
    """What ``load`` returned; there only once :meth:`setup` has succeeded."""

    def __init__(self, models: Models, load: Load, digests: dict[str, str]) -> None:
        self._models, self._load, self._digests = models, load, digests
        self._version = version("hypodask")
        self._workers_here = 0

    @classmethod
    def asked_for(cls, models: Models, load: Load) -> "Networks":
        """The networks a user named, with the digests of those that are files here."""
        named = [models] if isinstance(models, str | os.PathLike) else list(models or ())
        paths = [Path(os.fspath(name)) for name in named]
        return cls(models, load, {str(path): _sha256(path) for path in paths if path.is_file()})

    @property
    def key(self) -> str:
        """Short digest that changes with the weights: those named and those that come with hypodask."""
        known = hashlib.sha256(repr((self._models, sorted(self._digests.items()))).encode())
        for weights in sorted(_shipped_weights()):
            known.update(_sha256(weights).encode())
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
        for path, digest in self._digests.items():
            if not Path(path).is_file() or _sha256(Path(path)) != digest:
                raise ModelError(f"{path} is missing or another file on {worker.address}; put the same weights there")
        self.loaded = self._load(self._models) if self._load else None


def input_stamp(path: str) -> str:
    """Size and modification time of a file, to tell later whether it was changed; without reading it."""
    filesystem, name = fsspec.core.url_to_fs(path)
    try:
        known = filesystem.info(name)
    except OSError:
        return "missing"
    times = [
        known[key] for key in ("mtime", "LastModified", "last_modified", "updated", "ETag", "created") if key in known
    ]
    return f"{known['size']}:{times[0] if times else ''}"


def _unfinished(cohort: Cohort, out: str, journal: pd.DataFrame, key: str, *, retry_failed: bool) -> list[Job]:
    known: dict[Any, dict[Any, Any]] = journal.to_dict("index")

    def job_of(entry: Entry) -> Job | None:
        job = Job(entry, store_path(entry), f"{input_stamp(entry.path)}:{key}{_landmarks_stamp(entry)}")
        return None if _is_settled(known.get(entry.scan), job, out, retry_failed=retry_failed) else job

    with ThreadPoolExecutor(PLANNERS) as pool:
        return [job for job in pool.map(job_of, cohort.entries()) if job is not None]


def _landmarks_stamp(entry: Entry) -> str:
    """What changes when landmarks by hand are added, corrected or withdrawn; empty without any."""
    if entry.landmarks is None:
        return ""
    given = input_stamp(entry.landmarks) if isinstance(entry.landmarks, str) else ""
    return ":" + hashlib.sha256(f"{entry.landmarks} {given}".encode()).hexdigest()[:12]


def _is_settled(row: dict[Any, Any] | None, job: Job, out: str, *, retry_failed: bool) -> bool:
    if row is None or row["stamp"] != job.stamp:
        return False
    if row["status"] != "done":
        return not retry_failed and row["stage"] != "cluster"
    return not row["store"] or Location(out).child(row["store"], "done.json").exists()


def _earlier(cohort: Cohort, journal: pd.DataFrame, jobs: list[Job]) -> dict[str, int]:
    settled = set(cohort.table["scan"]) - {job.entry.scan for job in jobs}
    done = int((journal.loc[list(settled), "status"] == "done").sum()) if settled else 0
    return {"done": done, "failed": len(settled) - done}


def _settled(out: str, dataset: xr.Dataset) -> xr.Dataset:
    """The dataset, written unless that is what is there."""
    with suppress(ResultsError):
        if open_results(out).identical(dataset):
            return dataset
    finalise(out, dataset)
    return dataset


@contextmanager
def _connected(client: Client | str | None, workers: int | None, jobs: int) -> Iterator[tuple[Client, int]]:
    """A client, and the number of workers that were started here for it (0 on a cluster of the user's)."""
    if isinstance(client, str):
        with _reached(client) as found:
            yield found, 0
        return
    with suppress(ValueError):
        client = client or Client.current()
    if client is not None:
        yield client, 0
        return
    count = min(jobs, workers or max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_BYTES)))
    # JAX and fork deadlock.
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False, "allowed_failures": ALLOWED_DEATHS},
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as own,
    ):
        yield own, count


@contextmanager
def _reached(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address."""
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as err:
        raise ClusterError(
            f"no Dask scheduler answers at {address!r} ({err}); give the address that `dask scheduler` printed, such "
            "as tcp://10.0.0.1:8786"
        ) from err
    with client:
        yield client


@contextmanager
def _registered(client: Client, networks: Networks) -> Iterator[str]:
    """Load the networks in every worker, those that join later included; the plugin's name."""
    name = f"hypodask-{uuid.uuid4().hex[:8]}"
    client.register_plugin(networks, name=name)
    try:
        yield name
    finally:
        # On a cluster that is gone this fails in many ways, and must not hide the reason.
        with suppress(Exception):
            client.unregister_worker_plugin(name)


def _treat_job(treat: Treat, out: str, plugin: str, job: Job) -> dict[str, Any]:
    """Run in a worker. Only errors of the disk or the network leave it, since only they are worth a retry."""
    models = cast(Networks, get_worker().plugins[plugin]).loaded
    placed = {} if job.entry.landmarks is None else {"landmarks": job.entry.landmarks}
    try:
        row = treat(job.entry.path, scan=job.entry.scan, out=out, store=job.store, models=models, **placed)
    except OSError:
        raise
    except ScanError as err:
        row = _failed(job, err, stage="read")
    except Exception as err:
        log.exception("%s failed in a way that was not foreseen", job.entry.scan)
        row = _failed(job, err)
    return row.as_dict()


def _failed(job: Job, err: BaseException, *, stage: Stage = "cluster", reason: str = "") -> Row:
    return Row(
        job.entry.scan,
        "failed",
        stage=stage,
        error=type(err).__name__,
        reason=reason or "; ".join([str(err), *getattr(err, "__notes__", [])]),
        version=version("hypodask"),
        host=platform.node(),
    )


def _keep_rows(out: str, rows: Iterable[dict[str, Any] | None], bar: Progress) -> None:
    with Journal(out) as journal:
        for row in rows:
            if row is not None:
                journal.append(row)
                bar.count(row["status"])
            journal.flush_if_due()
            bar.refresh()


def _rows(client: Client, jobs: list[Job], task: Task, window: "_Window") -> Iterator[dict[str, Any] | None]:
    """The row of each job as it comes in; ``None`` now and then while none does."""
    for landed in _landed(client, jobs, task, window):
        yield _row(*landed) if landed else None


def _landed(client: Client, jobs: Sequence[Any], task: Task, window: "_Window") -> Iterator[Landed | None]:
    """Each job as it lands, finished or failed for good; ``None`` now and then while none does.

    Dask blames every job that was on a worker as it died. The suspects are tried again, each alone in
    the cluster, and the second time too: only one that kills its worker then as well is given up.
    """
    alone = _Window(client, 1)
    for size, is_last in ((window, False), (alone, False), (alone, True)):
        suspects: list[Any] = []
        for landed in _stream(client, jobs, task, size):
            if landed is not None and not is_last and _was_killed(landed[1]):
                suspects.append(landed[0])
            else:
                yield landed
        jobs = suspects


def _stream(client: Client, jobs: Iterable[Any], task: Task, window: "_Window") -> Iterator[Landed | None]:
    """Submit jobs, never more than a window at a time, and yield each as it lands.

    Dask has no back-pressure of its own, and a finished task whose future is held is run again when its
    worker dies: so futures are let go as they land.
    """
    waiting, run = iter(jobs), uuid.uuid4().hex
    landed: SimpleQueue[Future[Any]] = SimpleQueue()
    flying: dict[str, Landed] = {}
    try:
        while True:
            for job in islice(waiting, max(0, window.size() - len(flying))):
                future = client.submit(task, job, key=f"treat-{run}-{job}", pure=False, retries=RETRIES)
                flying[str(future.key)] = (job, future)
                future.add_done_callback(landed.put)
            if not flying:
                return
            try:
                future = landed.get(timeout=1.0)
            except Empty:
                yield None
            else:
                yield flying.pop(str(future.key))
    finally:
        with suppress(Exception):
            client.cancel([future for _, future in flying.values()])


def _was_killed(future: "Future[Any]") -> bool:
    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _row(job: Job, future: "Future[Any]") -> dict[str, Any]:
    error = _error_of(job, future)
    if error is None:
        row = future.result()
    elif isinstance(error, KilledWorker):
        row = _failed(job, error, reason=KILLED).as_dict()
    else:
        row = _failed(job, error).as_dict()
    return {**row, "stamp": job.stamp}


def _error_of(job: object, future: "Future[Any]") -> Any:
    """The error that left a job's task, if any."""
    if future.status not in ("finished", "error"):
        raise ClusterError(f"the cluster lost {job} ({future.status}); make the same call again to go on")
    return future.exception()


class _Window:
    """How many scans may be in flight: two per worker thread and a few, as workers come and go."""

    def __init__(self, client: Client, fixed: int | None) -> None:
        self._client, self._fixed = client, fixed
        self._size, self._asked = 0, float("-inf")

    def size(self) -> int:
        if self._fixed is not None:
            return max(1, self._fixed)
        if time.monotonic() - self._asked > WINDOW_SECONDS:
            try:
                self._size = 2 * sum(self._client.nthreads().values()) + 4
            except (OSError, TimeoutError) as err:
                raise ClusterError(f"the scheduler is gone ({err}); make the same call again to go on") from err
            self._asked = time.monotonic()
        return self._size


def _keep_to_own_cores(worker: int, workers: int) -> None:
    """Give a worker its share of the cores: XLA takes all it sees and ignores OMP_NUM_THREADS."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[worker % len(cores) :: workers]
        # An affinity is a thread's own; those that run already keep the one they have.
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), own)


def _shipped_weights() -> list[Path]:
    return [
        Path(str(file))
        for file in files("hypodask").joinpath("weights").iterdir()
        if file.name.endswith(".safetensors")
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
