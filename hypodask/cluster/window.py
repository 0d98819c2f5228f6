"""Jobs on a cluster: a limited number of tasks at a time, and the result of each job as soon as it is there.

A failed task counts against a job only if that job was alone in it.
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
from hypodask.core.errors import ClusterError, ScanTimeoutError

_Task = Callable[[Any], Any]
"""What a worker does with one job."""

OVERDUE = "hypodask-overdue"
"""Topic on which a worker tells the client that a scan takes too long."""

_LARGEST_BATCH = 256
"""Jobs in one task at most. Their results come in one message. A task costs some milliseconds, so larger batches would
save little."""

_BATCH_SECONDS = 1.0
"""A task takes as many jobs as are done in about this time."""

PER_THREAD, MORE = 2, 4
"""Tasks on the cluster at a time: so many for each thread of a worker, and a few more because workers come and go."""

_WINDOW_SECONDS = 5.0
"""How often the workers are counted; counting them for each task would cost more than a task."""

KILLED = (
    "the worker process died each time it had this scan, also when it had nothing else; it ran out of memory or "
    "crashed, and the scan was set aside: give the workers more memory and call again with retry_failed=True, or leave "
    "the scan out"
)

_GO_ON = "make the same call again to go on"

log = logging.getLogger(__name__)


class Completed(NamedTuple):
    """The result of a job: a value or an error."""

    job: Any
    value: Any = None
    error: Exception | None = None
    has_company: bool = False
    """Whether other jobs were in the same task, so that one of them may have caused the error."""
    deaths: int = 0
    """How often a worker died with this job before."""

    @property
    def is_suspect(self) -> bool:
        """Whether the job must be tried again by itself before it counts as failed."""
        return isinstance(self.error, KilledWorker) or (self.error is not None and self.has_company)


def completed_jobs(client: Client, jobs: Sequence[Any], task: _Task, window: "Window") -> Iterator[Completed | None]:
    """Run a task for each job, and yield each job when it is completed or has failed for good.

    ``None`` is yielded now and then while no job is completed.

    When a worker dies, Dask blames every job that was on it. These jobs are tried again, one for each worker. Those
    that were on a worker when it died a second time are tried again alone on the cluster. Only a job that then kills
    its worker twice has failed.
    """
    rounds = ((window, _LARGEST_BATCH), (window.one_each(), 1), (window.alone(), 1), (window.alone(), 1))
    for deaths, (size, largest) in enumerate(rounds):
        suspects: list[Any] = []
        for completed in _stream(client, jobs, task, size, _Batches(largest)):
            if completed is not None and completed.is_suspect and deaths < len(rounds) - 1:
                suspects.append(completed.job)
            else:
                yield completed._replace(deaths=deaths) if completed and deaths else completed
        jobs = suspects


def _stream(
    client: Client, jobs: Iterable[Any], task: _Task, window: "Window", batches: "_Batches"
) -> Iterator[Completed | None]:
    """Submit jobs, never more tasks than a window at a time, and yield each job when its task ends.

    Dask itself does not limit how many tasks are submitted. And it runs a finished task again if its worker dies while
    the client still holds the future, so futures are dropped as soon as their results are here.
    """
    waiting, run = deque(jobs), uuid.uuid4().hex
    ended: SimpleQueue[tuple[str, bool]] = SimpleQueue()
    submitted: dict[str, _Submitted] = {}

    def note_end(future: "Future[Any]") -> None:
        ended.put((str(future.key), False))

    client.subscribe_topic(OVERDUE, lambda event: ended.put((event[1]["key"], True)))
    try:
        while True:
            while waiting and len(submitted) < window.size():
                batch = batches.take(waiting, window.size())
                key = f"process-{run}-{batch[0]}"
                future = submit(client, window.on, _work_through, task, _packed(batch), key=key)
                submitted[str(future.key)] = _Submitted(batch, future)
                future.add_done_callback(note_end)
            if not submitted:
                return
            try:
                key, overdue = ended.get(timeout=1.0)
            except Empty:
                yield None
                continue
            # A task that is overdue ends a second time when its worker dies. Tasks of other clients may be overdue too.
            if key not in submitted:
                continue
            if not overdue and submitted[key].future.status in ("pending", "lost"):
                # Its worker died before the value was fetched: Dask runs it again, or gives up.
                submitted[key].future.add_done_callback(note_end)
            else:
                yield from _results_of(submitted.pop(key), batches, waiting, overdue=overdue)
    finally:
        # If the cluster is gone, these calls fail in many ways, which must not hide the first error.
        with suppress(Exception):
            client.unsubscribe_topic(OVERDUE)
        with suppress(Exception):
            client.cancel([one.future for one in submitted.values()])


class _Submitted(NamedTuple):
    """The jobs of one task, and its future."""

    jobs: list[Any]
    future: "Future[Any]"


def _packed(jobs: list[Any]) -> bytes:
    """Jobs as few bytes, because the scheduler keeps the last thousand tasks of each worker with their arguments."""
    return zlib.compress(dumps(jobs))


def _work_through(task: _Task, packed: bytes) -> tuple[list[Any], float]:
    """Run in a worker: the results of at least one job and of as many as fit into the time, and the seconds taken."""
    began, values = time.monotonic(), []
    for job in loads(zlib.decompress(packed)):
        values.append(task(job))
        if (seconds := time.monotonic() - began) > _BATCH_SECONDS:
            break
    return values, seconds


def _results_of(
    submitted: _Submitted, batches: "_Batches", waiting: deque[Any], *, overdue: bool
) -> Iterator[Completed]:
    """The jobs of a task that ended; jobs that it had no time for are put back in front of all others."""
    has_company = len(submitted.jobs) > 1
    result = _result_or_error(submitted, overdue=overdue)
    if isinstance(result, Exception):
        yield from (Completed(job, error=result, has_company=has_company) for job in submitted.jobs)
        return
    values, seconds = result
    batches.learn(len(submitted.jobs), len(values), seconds)
    waiting.extendleft(reversed(submitted.jobs[len(values) :]))
    yield from (Completed(job, value) for job, value in zip(submitted.jobs, values, strict=False))


def _result_or_error(submitted: _Submitted, *, overdue: bool) -> tuple[list[Any], float] | Exception:
    """What :func:`_work_through` returned, or the error that took its place."""
    future = submitted.future
    if overdue:
        return ScanTimeoutError(
            "it took longer than its time limit and was set aside; look at the file, and call again with a longer "
            "time_limit and retry_failed=True, or leave the scan out"
        )
    if future.status not in ("finished", "error"):
        raise ClusterError(f"the cluster lost {submitted.jobs[0]} ({future.status}); {_GO_ON}")
    if (error := future.exception()) is not None:
        return cast(Exception, error)
    try:
        return cast(tuple[list[Any], float], future.result())
    except KilledWorker as err:
        # The worker died between the end of the task and this line.
        return err
    except (OSError, FutureCancelledError) as err:
        raise ClusterError(f"the scheduler is gone ({err}); {_GO_ON}") from err


class _Batches:
    """How many jobs go into one task: as many as are done in about a second, because each task costs Dask some ms."""

    def __init__(self, largest: int) -> None:
        self._size, self._largest = 1, largest

    def take(self, waiting: deque[Any], tasks: int) -> list[Any]:
        """The jobs of the next task; fewer towards the end, so that no worker is idle."""
        number = max(1, min(self._size, len(waiting) // (2 * tasks)))
        return [waiting.popleft() for _ in range(number)]

    def learn(self, given: int, done: int, seconds: float) -> None:
        """Adapt the size of a batch: how many jobs a task was given, how many it did, and in which time."""
        if done < given:
            self._size = done
        elif given >= self._size and seconds < _BATCH_SECONDS / 2:
            self._size = min(2 * self._size, self._largest)


class Window:
    """How many tasks may be on the cluster at a time, by the number of its threads at the moment.

    Parameters
    ----------
    client
        The cluster.
    fixed
        Take this number instead.
    per_thread, more
        So many tasks for each thread, and so many more. With 0 for each thread, one task for each worker.
    on
        Count only workers that have this resource, and run tasks there.
    """

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
        self._client, self._fixed = client, fixed
        self._per_thread, self._more = per_thread, more
        self._size, self._counted_at, self._has_workers = 0, float("-inf"), True

    def one_each(self) -> "Window":
        """One task for each worker, so that the death of a worker shows which job caused it."""
        return Window(self._client, self._fixed, per_thread=0, more=0, on=self.on)

    def alone(self) -> "Window":
        """One task on the whole cluster."""
        return Window(self._client, 1, on=self.on)

    def size(self) -> int:
        """The number of tasks."""
        if self._fixed is not None:
            return max(1, self._fixed)
        if time.monotonic() - self._counted_at > _WINDOW_SECONDS:
            workers = workers_of(self._client, self.on)
            self._size = self._per_thread * sum(workers.values()) + self._more if self._per_thread else len(workers)
            self._counted_at = time.monotonic()
            if not workers and self._has_workers:
                log.warning("the scheduler has no worker; the run goes on as soon as one joins")
            self._has_workers = bool(workers)
        return max(1, self._size)
