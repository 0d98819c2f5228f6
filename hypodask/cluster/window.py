"""Jobs through a cluster: never more than a window of tasks at a time, each job yielded as it lands.

What befalls a task is blamed on a job only where nothing else can have been the cause.
"""

import logging
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, cast

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError
from distributed.protocol.pickle import dumps, loads

from hypodask.cluster.connection import submit, workers_of
from hypodask.errors import ClusterError, ScanTimeoutError

Task = Callable[[Any], Any]

LARGEST_BATCH = 256
"""Their rows come in one message; a task costs some milliseconds, so more would save little."""

BATCH_SECONDS = 1.0
"""Scans that take less go several to a task, as many as are done in this time."""

PER_THREAD, MORE = 2, 4
"""Tasks in flight: so many for each thread of a worker, and a few, as workers come and go."""

WINDOW_SECONDS = 5.0
"""How often the workers are counted anew; asking each time would cost more than a task."""

KILLED = (
    "the worker process died each time it had this scan, also when it had nothing else; it ran out of memory or "
    "crashed, and the scan was set aside: give the workers more memory and call again with retry_failed=True, or leave "
    "the scan out"
)

log = logging.getLogger(__name__)


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


def landing(client: Client, jobs: Sequence[Any], task: Task, window: "Window") -> Iterator[Landed | None]:
    """Each job as it lands, finished or failed for good; ``None`` now and then while none does.

    Dask blames every job that was on a worker as it died. The suspects are tried again, one for each worker, and those
    that were there at a second death each alone in the cluster: only one that kills its worker twice then is given up.
    """
    rounds = ((window, LARGEST_BATCH), (window.one_each(), 1), (window.alone(), 1), (window.alone(), 1))
    for deaths, (size, largest) in enumerate(rounds):
        suspects: list[Any] = []
        for landed in _stream(client, jobs, task, size, Batches(largest)):
            if landed is not None and landed.is_suspect and deaths < len(rounds) - 1:
                suspects.append(landed.job)
            else:
                yield landed._replace(deaths=deaths) if landed and deaths else landed
        jobs = suspects


def _stream(
    client: Client, jobs: Iterable[Any], task: Task, window: "Window", batches: "Batches"
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
                key = f"treat-{run}-{batch[0]}"
                future = submit(client, window.on, _work_through, task, _packed(batch), key=key)
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


def _unloaded(flight: _Flight, batches: "Batches", waiting: deque[Any], *, overdue: bool) -> Iterator[Landed]:
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


OVERDUE = "hypodask-overdue"
"""Topic on which a worker tells the client that a scan takes too long."""


class Batches:
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


class Window:
    """How many tasks may be in flight, by the threads of those workers that there are."""

    def __init__(
        self,
        client: Client,
        fixed: int | None = None,
        *,
        per_thread: int = PER_THREAD,
        more: int = MORE,
        on: str | None = None,
    ) -> None:
        self.on = on
        """Resource that a worker must have."""
        self._client, self._fixed = client, fixed
        self._per_thread, self._more = per_thread, more
        self._size, self._asked, self._is_deserted = 0, float("-inf"), False

    def one_each(self) -> "Window":
        """One for each worker, so that a death says which scan it was."""
        return Window(self._client, self._fixed, per_thread=0, more=0, on=self.on)

    def alone(self) -> "Window":
        """One in all."""
        return Window(self._client, 1, on=self.on)

    def size(self) -> int:
        if self._fixed is not None:
            return max(1, self._fixed)
        if time.monotonic() - self._asked > WINDOW_SECONDS:
            workers = workers_of(self._client, self.on)
            self._size = self._per_thread * sum(workers.values()) + self._more if self._per_thread else len(workers)
            self._asked = time.monotonic()
            if not workers and not self._is_deserted:
                log.warning("the scheduler has no worker; the run goes on as soon as one joins")
            self._is_deserted = not workers
        return max(1, self._size)
