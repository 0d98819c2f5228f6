"""What a worker does with one scan: it returns a row, whatever goes wrong."""

import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar, cast

from distributed import Worker, get_worker

from hypodask.cluster.monitoring import Deadlines, PeakMemory, ScanLog
from hypodask.cluster.networks import loaded_here, on_gpu
from hypodask.cluster.window import OVERDUE
from hypodask.core.errors import ClusterError, LocationError, ScanError, StoreError
from hypodask.core.row import Row, Stage
from hypodask.files.leases import Lease, held
from hypodask.files.location import Location
from hypodask.storage.store import read_done, verify_store
from hypodask.study.planning import Job
from hypodask.study.runs import keep_log

Method = Callable[..., Row]
"""``method(path, *, scan, out, store, models, stamp) -> Row``, with ``landmarks`` too for a scan that has some."""

_Value = TypeVar("_Value")

_PAUSES = (0.2, 1.0)
"""Seconds before a scan is tried again after an error of the disk or the network; so many times it is tried again."""

_LAST_MESSAGE_SECONDS = 1.0
"""How long a worker waits before it ends itself, so that its last message is sent."""

_deadlines = Deadlines()

log = logging.getLogger(__name__)


def process_job(
    method: Method, out: str, plugin: str, time_limit: float | None, on_gpus: bool, job: Job
) -> dict[str, Any]:
    """Run in a worker: the row of a scan, whatever goes wrong."""
    models = loaded_here(plugin)
    if on_gpus:
        models = tuple(on_gpu(plugin, number, network) for number, network in enumerate(models))
    worker = get_worker()
    key = worker.get_current_task()
    with ExitStack() as stack, ScanLog() as scan_log, PeakMemory() as memory:
        try:
            # Another run may have this scan. Then this run waits for it, and finds the row in the store.
            lease, _ = with_retries(lambda: stack.enter_context(held(Location(out), f"scan-{job.entry.scan}")))
            if isinstance(lease, OSError):
                raise lease
            with _deadlines.within(time_limit, partial(_give_up, worker, key, lease)):
                found, attempts = with_retries(lambda: _row_of(method, out, models, job))
            row = failed_row(job, found) if isinstance(found, OSError) else found
            if scan_log.text:
                try:
                    keep_log(out, job.entry.scan, scan_log.text)
                except (OSError, LocationError):
                    # The row counts more than its log.
                    log.exception("the log of %s could not be written", job.entry.scan)
            lease.check()
        except (ClusterError, OSError) as err:
            row, attempts = failed_row(job, err), 1
    return replace(row, attempts=attempts, peak_memory_mib=memory.mib).as_dict()


def _row_of(method: Method, out: str, models: Any, job: Job) -> Row:
    """The row of a scan: from its store if it is done already, otherwise from the method."""
    if (earlier := _row_in_store(out, job)) is not None:
        return earlier
    entry = job.entry
    options: dict[str, Any] = {"out": out, "store": job.store, "models": models, "stamp": job.stamp}
    if entry.landmarks is not None:
        options["landmarks"] = entry.landmarks
    try:
        return method(entry.path, scan=entry.scan, **options)
    except OSError:
        raise
    except ScanError as err:
        return failed_row(job, err, stage=cast(Stage, err.stage))
    except Exception as err:
        log.exception("%s failed in a way that was not foreseen", entry.scan)
        return failed_row(job, err)


def with_retries(call: Callable[[], _Value]) -> tuple[_Value | OSError, int]:
    """Make a call, and again after errors of the disk or the network: its value or the last error, and the attempts."""
    for attempt, pause in enumerate(_PAUSES, start=1):
        try:
            return call(), attempt
        except OSError as err:
            log.warning("attempt %d failed (%s); trying again", attempt, err)
            time.sleep(pause)
    try:
        return call(), len(_PAUSES) + 1
    except OSError as err:
        return err, len(_PAUSES) + 1


def _row_in_store(out: str, job: Job) -> Row | None:
    """The row of a scan that is done with the same input and the same networks, but whose row is not in the journal.

    So no work is lost when a worker dies while it returns a row, or when the client dies before it wrote the row.
    """
    place = Location(out).child(job.store)
    with suppress(StoreError, TypeError, ValueError):
        done = read_done(place)
        if done and done.get("stamp") == job.stamp and not verify_store(place, digests=False):
            row = Row.from_dict(done["row"])
            return row if row.scan == job.entry.scan else None
    return None


def _give_up(worker: Worker, key: object, lease: Lease) -> None:
    """Tell the client which task takes too long and, if a nanny will start another process, end this one.

    A thread that hangs cannot be stopped. But without its lease it does not block other runs, and it writes nothing
    more.
    """
    worker.log_event(OVERDUE, {"key": key})
    lease.release()
    if worker.nanny is not None:
        time.sleep(_LAST_MESSAGE_SECONDS)
        os._exit(1)


def failed_row(job: Job, err: BaseException, *, stage: Stage = "cluster", reason: str = "") -> Row:
    """The row of a scan that failed; by default its reason is the message of the error with its notes."""
    return Row(
        job.entry.scan,
        "failed",
        stage=stage,
        error=type(err).__name__,
        reason=reason or "; ".join([str(err), *getattr(err, "__notes__", [])]),
        version=version("hypodask"),
        host=platform.node(),
    )
