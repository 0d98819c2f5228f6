"""Every scan of a cohort: what is missing is done, each row kept as it comes in, and the results written.

Which scans those are is decided in :mod:`hypodask.planning`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import isnan
from typing import Any

import pandas as pd
import xarray as xr
from distributed import Client, KilledWorker

from hypodask.accounts import at_work, kept_record
from hypodask.cluster.connection import (
    has_client,
    reached_cluster,
    refuse_unguarded_script,
    side_of,
    workers_here,
    workers_of,
)
from hypodask.cluster.networks import Load, Models, Networks, registered
from hypodask.cluster.window import KILLED, Landed, Task, Window, landing
from hypodask.cluster.work import Treat, failed_row, treat_job
from hypodask.cohort import Cohort
from hypodask.dataset import assemble, check_columns, finalise, open_results, save_cohort, tables_are_whole
from hypodask.errors import ResultsError
from hypodask.journal import Journal, drop_legacy_parts, of_this_method, read_journal
from hypodask.leases import PATIENCE_SECONDS, RESULTS, Lease, held
from hypodask.location import Location, writing
from hypodask.pipeline import load_models, made_by, process_scan
from hypodask.planning import Job, Only, Plan, decide, planned
from hypodask.progress import Progress

TIME_LIMIT = 1800.0
"""Seconds that a scan may take: some hundred times what it takes."""

INTERRUPTED = "interrupted; what was done is kept: make the same call again to go on where it stopped"


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
        Output folder, or URL of an object store. The workers must reach it, and the scans, by the same name.
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
        If a participant is being removed from ``url``, or the cluster or the output is lost meanwhile; then call it
        again. Also where a script without ``if __name__ == "__main__":`` would start itself again in each worker.
    ModelError
        If weights cannot be loaded.
    LocationError, OutputError
        If ``url`` must not or cannot be written.
    StoreError
        If the journal in ``url`` is not as it was written.

    Notes
    -----
    Any number of calls may work into one ``url`` at a time: a scan that another call has is waited for, and taken from
    its store; each call has journal parts of its own; the results are written by one after the other.
    """
    check_columns(cohort.table)
    if client is None and not has_client():
        refuse_unguarded_script()
    place = Location(url)
    networks = Networks.asked_for(models, load)
    with _going_on(), at_work(place) as run:
        with held(place, RESULTS, patience=PATIENCE_SECONDS), writing(place):
            save_cohort(place.url, cohort.table)
        journal = read_journal(place.url)
        decisions = decide(cohort, place.url, journal, made_by(networks.key), retry_failed=retry_failed, only=only)
        if jobs := [decision.job for decision in decisions if decision.runs]:
            with (
                Progress(len(cohort), **_earlier(cohort, journal, jobs), shown=progress) as bar,
                reached_cluster(client, workers, len(jobs)) as (connected, ours),
                registered(connected, networks.sharing(ours)) as plugin,
                kept_record(place.url, len(jobs), networks.key, workers_of(connected)),
            ):
                task = partial(treat_job, treat, place.url, plugin, time_limit)
                _work_off(connected, place.url, jobs, task, bar, run, window)
        return _written(place, cohort, run)


@contextmanager
def _going_on() -> Iterator[None]:
    """Say to whoever interrupts a run that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt as err:
        err.add_note(INTERRUPTED)
        raise


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
    CohortError, ClusterError, ModelError, LocationError, OutputError, StoreError
        As :func:`process` does.
    """
    check_columns(cohort.table)
    if client is None and pilot and not has_client():
        refuse_unguarded_script()
    place = Location(url)
    networks = Networks.asked_for(models, load)
    decided = partial(decide, cohort, place.url, made_by=made_by(networks.key), retry_failed=retry_failed, only=only)
    journal = read_journal(place.url)
    decisions = decided(journal)
    jobs = _spread([decision.job for decision in decisions if decision.runs], pilot)
    if not jobs and client is None:
        return planned(decisions, journal, workers_here(len(cohort), workers))
    with reached_cluster(client, workers, len(cohort)) as (connected, ours):
        threads = sum(workers_of(connected).values())
        if not jobs:
            return planned(decisions, journal, threads)
        with (
            _going_on(),
            at_work(place) as run,
            Progress(len(jobs), shown=False) as bar,
            registered(connected, networks.sharing(ours)) as plugin,
        ):
            _work_off(connected, place.url, jobs, partial(treat_job, treat, place.url, plugin, TIME_LIMIT), bar, run)
    journal = read_journal(place.url)
    return planned(decided(journal), journal, threads)


def _work_off(
    client: Client,
    out: str,
    jobs: list[Job],
    task: Callable[..., Any],
    bar: Progress,
    run: Lease,
    window: int | None = None,
) -> None:
    """Have every job treated, and keep the rows in the journal as they come in."""
    place = Window(client, window, on=side_of(client))
    _keep_rows(out, _rows(client, jobs, partial(task, place.on is not None), place), bar, run)


def _spread(jobs: list[Job], number: int) -> list[Job]:
    """So many of the jobs, evenly from the first to the last."""
    number = min(number, len(jobs))
    return [jobs[index * len(jobs) // number] for index in range(number)]


def _earlier(cohort: Cohort, journal: pd.DataFrame, jobs: list[Job]) -> dict[str, int]:
    settled = set(cohort.table["scan"]) - {job.entry.scan for job in jobs}
    # Those that nobody asked for may have no row yet.
    status = journal.reindex(index=list(settled), columns=["status"])["status"]
    return {name: int((status == name).sum()) for name in ("done", "failed")}


def _written(place: Location, cohort: Cohort, run: Lease) -> xr.Dataset:
    """The results of a cohort by what the journal says now, written unless that is what is there."""
    run.check()
    with held(place, RESULTS, patience=PATIENCE_SECONDS) as lease:
        dataset = assemble(cohort.table, of_this_method(read_journal(place.url)))
        with writing(place):
            # Another call may have written its own since this one began.
            save_cohort(place.url, cohort.table)
        with suppress(ResultsError):
            if open_results(place.url).identical(dataset) and tables_are_whole(place.url):
                return dataset
        with writing(place):
            finalise(place.url, dataset, check=lease.check)
            drop_legacy_parts(place.url)
    return dataset


def _keep_rows(out: str, rows: Iterable[dict[str, Any] | None], bar: Progress, run: Lease) -> None:
    with Journal(out, check=run.check) as journal:
        for row in rows:
            if run.is_lost:
                run.check()
            if row is not None:
                journal.append(row)
                bar.count(row["status"])
            journal.flush_if_due()
            bar.refresh()


def _rows(client: Client, jobs: list[Job], task: Task, window: Window) -> Iterator[dict[str, Any] | None]:
    """The row of each job as it comes in; ``None`` now and then while none does."""
    for landed in landing(client, jobs, task, window):
        yield _row(landed) if landed else None


def _row(landed: Landed) -> dict[str, Any]:
    job, error = landed.job, landed.error
    if error is None:
        row = landed.value
    elif isinstance(error, KilledWorker):
        row = failed_row(job, error, reason=KILLED).as_dict()
    else:
        row = failed_row(job, error).as_dict()
    attempts = 1 if isnan(row["attempts"]) else row["attempts"]
    return {**row, "stamp": job.stamp, "attempts": attempts + landed.deaths}
