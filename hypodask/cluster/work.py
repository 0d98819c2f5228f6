"""What a worker does with one scan: a row, whatever goes wrong."""

import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from distributed import Worker, get_worker

from hypodask.accounts import keep_log
from hypodask.cluster.networks import loaded_here, on_gpu
from hypodask.cluster.window import OVERDUE
from hypodask.errors import ClusterError, LocationError, ScanError, StoreError
from hypodask.leases import Lease, held
from hypodask.location import Location
from hypodask.planning import Job
from hypodask.row import Row, Stage
from hypodask.store import read_done, verify_store
from hypodask.watching import Deadlines, PeakMemory, ScanLog

Treat = Callable[..., Row]
Value = TypeVar("Value")

PAUSES = (0.2, 1.0)
"""Seconds before a scan is tried again after an error of the disk or the network, and so how often."""

LAST_WORDS_SECONDS = 1.0
"""How long a worker that gives up waits for this to be said."""

_deadlines = Deadlines()

log = logging.getLogger(__name__)


def treat_job(treat: Treat, out: str, plugin: str, time_limit: float | None, on_gpus: bool, job: Job) -> dict[str, Any]:
    """Run in a worker: a row, whatever goes wrong."""
    models = loaded_here(plugin)
    if on_gpus:
        models = tuple(on_gpu(plugin, number, network) for number, network in enumerate(models))
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
            return failed_row(job, err, stage="read")
        except Exception as err:
            log.exception("%s failed in a way that was not foreseen", job.entry.scan)
            return failed_row(job, err)

    worker = get_worker()
    key = worker.get_current_task()
    # Another call may have this scan: it is waited for, and its row is then in the store.
    with ExitStack() as stack, ScanLog() as said, PeakMemory() as memory:
        try:
            claim, _ = persistent(lambda: stack.enter_context(held(Location(out), f"scan-{job.entry.scan}")))
            if isinstance(claim, OSError):
                raise claim
            with _deadlines.within(time_limit, partial(_give_up, worker, key, claim)):
                found, attempts = persistent(treated)
            row = failed_row(job, found) if isinstance(found, OSError) else found
            _keep_what_was_said(out, job, said)
            claim.check()
        except (ClusterError, OSError) as err:
            row, attempts = failed_row(job, err), 1
    return replace(row, attempts=attempts, peak_memory_mib=memory.mib).as_dict()


def _keep_what_was_said(out: str, job: Job, said: ScanLog) -> None:
    if not said.text:
        return
    try:
        keep_log(out, job.entry.scan, said.text)
    except (OSError, LocationError):
        # A log that cannot be written must not cost the row.
        log.exception("the log of %s could not be written", job.entry.scan)


def persistent(call: Callable[[], Value]) -> tuple[Value | OSError, int]:
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


def _row_in_store(out: str, job: Job) -> Row | None:
    """The row of a scan that was done, from the same input with the same networks, but never reached the journal.

    A worker that dies as it hands over a row, or a client that dies with rows in memory, costs no work.
    """
    place = Location(out).child(job.store)
    with suppress(StoreError, TypeError, ValueError):
        done = read_done(place)
        if done and done.get("stamp") == job.stamp and not verify_store(place, digests=False):
            row = Row.from_dict(done["row"])
            return row if row.scan == job.entry.scan else None
    return None


def _give_up(worker: Worker, key: object, claim: Lease) -> None:
    """Tell the client which task takes too long and, where a nanny starts another, end this process.

    A thread that hangs cannot be stopped by itself; without its claim it holds up nobody, and writes nothing more.
    """
    worker.log_event(OVERDUE, {"key": key})
    claim.release()
    if worker.nanny is not None:
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(1)


def failed_row(job: Job, err: BaseException, *, stage: Stage = "cluster", reason: str = "") -> Row:
    return Row(
        job.entry.scan,
        "failed",
        stage=stage,
        error=type(err).__name__,
        reason=reason or "; ".join([str(err), *getattr(err, "__notes__", [])]),
        version=version("hypodask"),
        host=platform.node(),
    )
