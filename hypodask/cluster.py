"""Run the method for every scan of a cohort, anywhere that Dask runs.

Workers write stores and return rows; the client keeps a window of scans in flight, appends each row to
the journal as it comes in, and at the end makes the results dataset. Nothing is kept in the cluster:
when a worker, the scheduler or this process is lost, the same call goes on where the last one stopped.

Which scans those are is decided in :mod:`hypodask.planning`. A scan that takes longer than its time limit, or kills
every worker that has it, becomes a failed row and is set aside.

Where the cluster has workers with the resource ``GPU`` and others with the resource ``CPU``, scans are read, aligned,
measured and written by the latter, and the networks run on the former.

``each`` does the same for any function of any items, and keeps no journal.
"""

import hashlib
import logging
import os
import platform
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from math import isnan
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar, cast

import dask.config
import pandas as pd
import xarray as xr
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_client, get_worker
from distributed.client import FutureCancelledError
from distributed.protocol.pickle import dumps, loads
from distributed.system import MEMORY_LIMIT
from numpy import ndarray

from hypodask.accounts import keep_log, kept_record
from hypodask.cohort import Cohort
from hypodask.dataset import assemble, check_columns, finalise, open_results, save_cohort
from hypodask.errors import ClusterError, ModelError, ResultsError, ScanError, ScanTimeoutError, StoreError
from hypodask.journal import Journal, read_journal, sole_writer
from hypodask.location import Location
from hypodask.pipeline import load_models, process_scan
from hypodask.planning import Job, Only, Plan, decide, planned
from hypodask.progress import Progress
from hypodask.row import Row, Stage
from hypodask.segmentation import Segmentation
from hypodask.segmentation.predict import ShippedNetwork
from hypodask.store import read_done, verify_store
from hypodask.watching import Deadlines, PeakMemory, ScanLog

Models = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
Treat = Callable[..., Row]
Load = Callable[[Any], Any] | None
Task = Callable[[Any], Any]
Item = TypeVar("Item")
Value = TypeVar("Value")

PAUSES = (0.2, 1.0)
"""Seconds before a scan is tried again after an error of the disk or the network, and so how often."""

TIME_LIMIT = 1800.0
"""Seconds that a scan may take: some hundred times what it takes."""

OVERDUE = "hypodask-overdue"
"""Topic on which a worker tells the client that a scan takes too long."""

LAST_WORDS_SECONDS = 1.0
"""How long a worker that gives up waits for this to be said."""

ALLOWED_DEATHS = 0
"""Every scan that was on a worker as it died is suspect at once: it is set aside and later tried alone."""

WORKER_BYTES = 3 * 2**30
"""Memory that a worker is taken to need; an estimate, not a measurement."""

BATCH_SECONDS = 1.0
"""Scans that take less go several to a task, as many as are done in this time."""

LARGEST_BATCH = 256
"""Their rows come in one message; a task costs some milliseconds, so more would save little."""

WINDOW_SECONDS = 5.0
"""How often the workers are counted anew; asking each time would cost more than a task."""

KILLED = (
    "the worker process died each time it had this scan, also when it had nothing else; it ran out of memory or "
    "crashed, and the scan was set aside: give the workers more memory and call again with retry_failed=True, or leave "
    "the scan out"
)

LOST_WORKER = "distributed.deploy.lost-worker-timeout"
RESTART_SECONDS = 600
"""How long a worker started here may be away before its place is given up: a new process has to import JAX, which on a
busy machine or a slow disk takes longer than Dask's own 15 seconds. Without workers a run would wait for ever."""

CONNECT_SECONDS = 30
"""How long a scheduler may take to answer."""

log = logging.getLogger(__name__)

_deadlines = Deadlines()


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
    only: Only | None = None,
    time_limit: float | None = TIME_LIMIT,
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
        Tasks in flight at a time; by default two per worker thread and a few. A task is one scan, or several where
        they take far less than a second.
    progress
        Show done, failed, left, rate and time left.
    retry_failed
        Also try scans again that were refused or set aside before.
    only
        ``"failed"`` keeps to the scans that have a failed row, whatever the reason.
    time_limit
        Seconds that a scan may take. One that takes longer becomes a failed row; its worker process is ended, and its
        nanny starts another. ``None`` for no limit.
    treat
        ``treat(path, *, scan, out, store, models, stamp) -> Row``, importable by the workers; ``landmarks`` is given
        too for a scan that has some. A done-mark that holds this ``stamp`` and the ``row`` is taken for the row itself
        where that was lost on its way.
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
        decisions = decide(cohort, out, journal, networks.key, retry_failed=retry_failed, only=only)
        if jobs := [decision.job for decision in decisions if decision.runs]:
            with (
                Progress(len(cohort), **_earlier(cohort, journal, jobs), shown=progress) as bar,
                _connected(client, workers, len(jobs)) as (connected, ours),
                _registered(connected, networks.sharing(ours)) as plugin,
                kept_record(out, len(jobs), networks.key, _workers_of(connected)),
            ):
                _work_off(connected, out, jobs, partial(_treat_job, treat, out, plugin, time_limit), bar, window)
        return _settled(out, assemble(cohort.table, read_journal(out)))


def plan(
    cohort: Cohort,
    url: str,
    client: Client | str | None = None,
    *,
    workers: int | None = None,
    models: Models = None,
    retry_failed: bool = False,
    only: Only | None = None,
    pilot: int = 0,
    treat: Treat = process_scan,
    load: Load = load_models,
) -> Plan:
    """What :func:`process` would do with the same arguments, and how long it would take.

    Nothing is started and nothing written but for a pilot. The estimate is from the scans that were done in this output
    before, the pilot's among them.

    Parameters
    ----------
    pilot
        Process this many of the scans first, from the first to the last of the cohort; their results are kept, and the
        call proper will not do them again.

    Returns
    -------
    Plan
        Print it; ``plan.table`` says for each scan whether it would run, and why.

    Raises
    ------
    CohortError, ClusterError, ModelError
        As :func:`process` does.
    """
    check_columns(cohort.table)
    out = Location(url).url
    networks = Networks.asked_for(models, load)
    decided = partial(decide, cohort, out, key=networks.key, retry_failed=retry_failed, only=only)
    journal = read_journal(out)
    decisions = decided(journal)
    jobs = _spread([decision.job for decision in decisions if decision.runs], pilot)
    if not jobs and client is None:
        return planned(decisions, journal, _workers_here(len(cohort), workers))
    with _connected(client, workers, len(cohort)) as (connected, ours):
        threads = sum(_workers_of(connected).values())
        if not jobs:
            return planned(decisions, journal, threads)
        with (
            sole_writer(out),
            Progress(len(jobs), shown=False) as bar,
            _registered(connected, networks.sharing(ours)) as plugin,
        ):
            _work_off(connected, out, jobs, partial(_treat_job, treat, out, plugin, TIME_LIMIT), bar)
    journal = read_journal(out)
    return planned(decided(journal), journal, threads)


def _work_off(
    client: Client, out: str, jobs: list[Job], task: Callable[..., Any], bar: Progress, window: int | None = None
) -> None:
    """Have every job treated, and keep the rows in the journal as they come in."""
    place = _Window(client, window, on=_side_of(client))
    _keep_rows(out, _rows(client, jobs, partial(task, place.on is not None), place), bar)


def _spread(jobs: list[Job], number: int) -> list[Job]:
    """So many of the jobs, evenly from the first to the last."""
    number = min(number, len(jobs))
    return [jobs[index * len(jobs) // number] for index in range(number)]


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
                yield _outcome(landed)


@dataclass(frozen=True)
class _Numbered:
    """An item, named by its number."""

    number: int
    item: Any

    def __str__(self) -> str:
        return str(self.number)


def _answer(function: Callable[[Any], Any], numbered: _Numbered) -> Outcome[Any, Any]:
    """Run in a worker; no error leaves it."""

    def outcome() -> Outcome[Any, Any]:
        try:
            return Outcome(None, function(numbered.item))
        except OSError:
            raise
        except Exception as err:
            return Outcome(None, error=err)

    answer, _ = _persistent(outcome)
    return Outcome(None, error=answer) if isinstance(answer, OSError) else answer


def _persistent(call: Callable[[], Value]) -> tuple[Value | OSError, int]:
    """What a call gives, tried again after errors of the disk or the network; the last such error; and the attempts."""
    for attempt, pause in enumerate(PAUSES, start=1):
        try:
            return call(), attempt
        except OSError as err:
            log.warning("attempt %d failed (%s); trying again", attempt, err)
            time.sleep(pause)
    try:
        return call(), len(PAUSES) + 1
    except OSError as err:
        return err, len(PAUSES) + 1


def _outcome(landed: "Landed") -> Outcome[Any, Any]:
    item, error = landed.job.item, landed.error
    if error is None:
        return Outcome(item, landed.value.value, landed.value.error)
    return Outcome(item, error=ClusterError(KILLED) if isinstance(error, KilledWorker) else error)


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


def _earlier(cohort: Cohort, journal: pd.DataFrame, jobs: list[Job]) -> dict[str, int]:
    settled = set(cohort.table["scan"]) - {job.entry.scan for job in jobs}
    # Those that nobody asked for may have no row yet.
    status = journal.reindex(index=list(settled), columns=["status"])["status"]
    return {name: int((status == name).sum()) for name in ("done", "failed")}


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
    count = _workers_here(jobs, workers)
    # JAX and fork deadlock.
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn", LOST_WORKER: RESTART_SECONDS}),
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


def _workers_here(jobs: int, workers: int | None) -> int:
    """How many workers are started on this machine."""
    return min(jobs, workers or max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_BYTES)))


def _workers_of(client: Client, having: str | None = None) -> dict[str, int]:
    """Threads of every worker, or of those that have a resource, by its address."""
    try:
        if having is None:
            return {str(address): int(threads) for address, threads in client.nthreads().items()}
        known = client.scheduler_info(n_workers=-1)["workers"]
    except (OSError, TimeoutError) as err:
        raise ClusterError(f"the scheduler is gone ({err}); make the same call again to go on") from err
    return {str(address): int(one["nthreads"]) for address, one in known.items() if having in one["resources"]}


def _side_of(client: Client) -> str | None:
    """Which resource the tasks of scans need: ``CPU`` where others have the networks run on GPUs for them."""
    return "CPU" if _workers_of(client, "GPU") and _workers_of(client, "CPU") else None


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


def _treat_job(
    treat: Treat, out: str, plugin: str, time_limit: float | None, on_gpus: bool, job: Job
) -> dict[str, Any]:
    """Run in a worker: a row, whatever goes wrong."""
    models = _loaded_here(plugin)
    if on_gpus:
        models = tuple(_on_gpu(plugin, number, network) for number, network in enumerate(models))
    placed = {} if job.entry.landmarks is None else {"landmarks": job.entry.landmarks}

    def treated() -> Row:
        if (earlier := _row_in_store(out, job)) is not None:
            return earlier
        try:
            return treat(
                job.entry.path, scan=job.entry.scan, out=out, store=job.store, models=models, stamp=job.stamp, **placed
            )
        except OSError:
            raise
        except ScanError as err:
            return _failed(job, err, stage="read")
        except Exception as err:
            log.exception("%s failed in a way that was not foreseen", job.entry.scan)
            return _failed(job, err)

    worker = get_worker()
    give_up = partial(_give_up, worker, worker.get_current_task())
    with _deadlines.within(time_limit, give_up), ScanLog() as said, PeakMemory() as memory:
        row, attempts = _persistent(treated)
        row = _failed(job, row) if isinstance(row, OSError) else row
    if said.text:
        keep_log(out, job.entry.scan, said.text)
    return replace(row, attempts=attempts, peak_memory_mib=memory.mib).as_dict()


def _loaded_here(plugin: str) -> Any:
    return cast(Networks, get_worker().plugins[plugin]).loaded


def _on_gpu(plugin: str, number: int, network: Any) -> Any:
    """A network as it is, but that it runs on a worker with a GPU; others than ours run here."""
    if not isinstance(network, ShippedNetwork):
        return network
    return _OnGPU(network.members, network.card, network.digest, network.calibrated, plugin, number)


@dataclass(frozen=True, eq=False)
class _OnGPU(ShippedNetwork):
    """A network that a worker with a GPU runs for this one."""

    plugin: str = ""
    number: int = 0

    def outlined(self, image: ndarray) -> Segmentation:
        """Have it outlined elsewhere; a worker that dies of it is as a disk that fails."""
        there: Future[Segmentation] = get_client().submit(
            _outlined_here, self.plugin, self.number, image, resources={"GPU": 1}, pure=False
        )
        try:
            return there.result()
        except KilledWorker as err:
            raise ConnectionError(f"the worker that had the GPU died ({err}); look at its log") from err


def _outlined_here(plugin: str, number: int, image: ndarray) -> Segmentation:
    """Run in a worker with a GPU."""
    return cast(Segmentation, _loaded_here(plugin)[number].outlined(image))


def _give_up(worker: Worker, key: str) -> None:
    """Tell the client which task takes too long and, where a nanny starts another, end this process.

    A thread that hangs cannot be stopped by itself.
    """
    worker.log_event(OVERDUE, {"key": key})
    if worker.nanny is not None:
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(1)


def _row_in_store(out: str, job: Job) -> Row | None:
    """The row of a scan that was done, from the same input with the same networks, but never reached the journal.

    A worker that dies as it hands over a row, or a client that dies with rows in memory, costs no work.
    """
    url = Location(out).child(job.store).url
    with suppress(StoreError, TypeError, ValueError):
        done = read_done(url)
        if done and done.get("stamp") == job.stamp and not verify_store(url, digests=False):
            row = Row.from_dict(done["row"])
            return row if row.scan == job.entry.scan else None
    return None


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


class Landed(NamedTuple):
    """What became of a job: a value, or the error that took its place."""

    job: Any
    value: Any = None
    error: Exception | None = None
    has_company: bool = False
    """Whether other jobs were in its task, so that the error may be theirs."""
    deaths: int = 0
    """How often its worker died before."""

    @property
    def is_suspect(self) -> bool:
        """Whether to try it again by itself before it is blamed."""
        return isinstance(self.error, KilledWorker) or (self.error is not None and self.has_company)


def _rows(client: Client, jobs: list[Job], task: Task, window: "_Window") -> Iterator[dict[str, Any] | None]:
    """The row of each job as it comes in; ``None`` now and then while none does."""
    for landed in _landed(client, jobs, task, window):
        yield _row(landed) if landed else None


def _landed(client: Client, jobs: Sequence[Any], task: Task, window: "_Window") -> Iterator[Landed | None]:
    """Each job as it lands, finished or failed for good; ``None`` now and then while none does.

    Dask blames every job that was on a worker as it died. The suspects are tried again, one for each worker, and those
    that were there at a second death each alone in the cluster: only one that kills its worker twice then is given up.
    """
    rounds = ((window, LARGEST_BATCH), (window.one_each(), 1), (window.alone(), 1), (window.alone(), 1))
    for deaths, (size, largest) in enumerate(rounds):
        suspects: list[Any] = []
        for landed in _stream(client, jobs, task, size, _Batches(largest)):
            if landed is not None and landed.is_suspect and deaths < len(rounds) - 1:
                suspects.append(landed.job)
            else:
                yield landed and landed._replace(deaths=deaths)
        jobs = suspects


def _stream(
    client: Client, jobs: Iterable[Any], task: Task, window: "_Window", batches: "_Batches"
) -> Iterator[Landed | None]:
    """Submit jobs, never more tasks than a window at a time, and yield each job as it lands.

    Dask has no back-pressure of its own, and a finished task whose future is held is run again when its
    worker dies: so futures are let go as they land.
    """
    waiting, run = deque(jobs), uuid.uuid4().hex
    landed: SimpleQueue[tuple[str, bool]] = SimpleQueue()
    flying: dict[str, _Flight] = {}

    def land(future: "Future[Any]") -> None:
        landed.put((str(future.key), False))

    client.subscribe_topic(OVERDUE, lambda event: landed.put((event[1]["key"], True)))
    try:
        while True:
            while waiting and len(flying) < window.size():
                batch = batches.take(waiting, window.size())
                needs = {} if window.on is None else {"resources": {window.on: 1}}
                key = f"treat-{run}-{batch[0]}"
                future = client.submit(_work_through, task, _packed(batch), key=key, pure=False, **needs)
                flying[str(future.key)] = _Flight(batch, future)
                future.add_done_callback(land)
            if not flying:
                return
            try:
                key, overdue = landed.get(timeout=1.0)
            except Empty:
                yield None
                continue
            # One that is overdue lands again as its worker dies; and others on this scheduler may be overdue.
            if key not in flying:
                continue
            if not overdue and flying[key].future.status in ("pending", "lost"):
                # Its worker died before the value was fetched: it runs again, or is blamed.
                flying[key].future.add_done_callback(land)
            else:
                yield from _unloaded(flying.pop(key), batches, waiting, overdue=overdue)
    finally:
        # On a cluster that is gone these fail in many ways, and must not hide the reason.
        with suppress(Exception):
            client.unsubscribe_topic(OVERDUE)
        with suppress(Exception):
            client.cancel([one.future for one in flying.values()])


class _Flight(NamedTuple):
    """Jobs that went in one task, and its future."""

    jobs: list[Any]
    future: "Future[Any]"


def _packed(jobs: list[Any]) -> bytes:
    """Jobs in few bytes: of each worker the scheduler keeps the last thousand tasks it sent, jobs and all."""
    return zlib.compress(dumps(jobs))


def _work_through(task: Task, packed: bytes) -> tuple[list[Any], float]:
    """Run in a worker: what the task gives for each job until the time is up, at least for the first; and the time."""
    began, values = time.monotonic(), []
    for job in loads(zlib.decompress(packed)):
        values.append(task(job))
        if (seconds := time.monotonic() - began) > BATCH_SECONDS:
            break
    return values, seconds


def _unloaded(flight: _Flight, batches: "_Batches", waiting: deque[Any], *, overdue: bool) -> Iterator[Landed]:
    """The jobs of a task that came to an end; those it had no time for wait again, before all others."""
    has_company = len(flight.jobs) > 1
    brought = _brought(flight, overdue=overdue)
    if isinstance(brought, Exception):
        yield from (Landed(job, error=brought, has_company=has_company) for job in flight.jobs)
        return
    values, seconds = brought
    batches.learn(len(flight.jobs), len(values), seconds)
    waiting.extendleft(reversed(flight.jobs[len(values) :]))
    yield from (Landed(job, value) for job, value in zip(flight.jobs, values, strict=False))


def _brought(flight: _Flight, *, overdue: bool) -> tuple[list[Any], float] | Exception:
    """What :func:`_work_through` gave, or the error that took its place."""
    if overdue:
        return ScanTimeoutError(
            "it took longer than its time limit and was set aside; look at the file, and call again with a longer "
            "time_limit and retry_failed=True, or leave the scan out"
        )
    if flight.future.status not in ("finished", "error"):
        raise ClusterError(
            f"the cluster lost {flight.jobs[0]} ({flight.future.status}); make the same call again to go on"
        )
    if (error := flight.future.exception()) is not None:
        return cast(Exception, error)
    try:
        return cast(tuple[list[Any], float], flight.future.result())
    except KilledWorker as err:
        # The worker died between the end of the task and this.
        return err
    except (OSError, FutureCancelledError) as err:
        raise ClusterError(f"the scheduler is gone ({err}); make the same call again to go on") from err


def _row(landed: Landed) -> dict[str, Any]:
    job, error = landed.job, landed.error
    if error is None:
        row = landed.value
    elif isinstance(error, KilledWorker):
        row = _failed(job, error, reason=KILLED).as_dict()
    else:
        row = _failed(job, error).as_dict()
    attempts = 1 if isnan(row["attempts"]) else row["attempts"]
    return {**row, "stamp": job.stamp, "attempts": attempts + landed.deaths}


class _Batches:
    """How many jobs go in one task: as many as are done in :data:`BATCH_SECONDS`, for each task costs Dask some ms."""

    def __init__(self, largest: int) -> None:
        self._size, self._largest = 1, largest

    def take(self, waiting: deque[Any], tasks: int) -> list[Any]:
        """The jobs of the next task; towards the end fewer, so that no worker stands idle."""
        number = max(1, min(self._size, len(waiting) // (2 * tasks)))
        return [waiting.popleft() for _ in range(number)]

    def learn(self, given: int, done: int, seconds: float) -> None:
        """Take account of how many jobs a task was given, how many it did, and in which time."""
        if done < given:
            self._size = done
        elif given >= self._size and seconds < BATCH_SECONDS / 2:
            self._size = min(2 * self._size, self._largest)


class _Window:
    """How many scans may be in flight: two per worker thread and a few, as workers come and go."""

    def __init__(
        self, client: Client, fixed: int | None = None, *, per_thread: int = 2, more: int = 4, on: str | None = None
    ) -> None:
        self.on = on
        """Resource that a worker must have."""
        self._client, self._fixed = client, fixed
        self._per_thread, self._more = per_thread, more
        self._size, self._asked, self._is_deserted = 0, float("-inf"), False

    def one_each(self) -> "_Window":
        """One for each worker, so that a death says which scan it was."""
        return _Window(self._client, self._fixed, per_thread=0, more=0, on=self.on)

    def alone(self) -> "_Window":
        """One in all."""
        return _Window(self._client, 1, on=self.on)

    def size(self) -> int:
        if self._fixed is not None:
            return max(1, self._fixed)
        if time.monotonic() - self._asked > WINDOW_SECONDS:
            workers = _workers_of(self._client, self.on)
            self._size = self._per_thread * sum(workers.values()) + self._more if self._per_thread else len(workers)
            self._asked = time.monotonic()
            if not workers and not self._is_deserted:
                log.warning("the scheduler has no worker; the run goes on as soon as one joins")
            self._is_deserted = not workers
        return max(1, self._size)


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
