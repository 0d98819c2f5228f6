"""Every scan of a cohort: what is missing is done, each row kept as it comes in, and the results written.

Which scans those are is decided in :mod:`hypodask.planning`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from math import isnan
from typing import Any

import pandas as pd
import xarray as xr
from distributed import Client, KilledWorker

from hypodask.accounts import kept_record
from hypodask.cluster.connection import reached_cluster, side_of, workers_here, workers_of
from hypodask.cluster.networks import Load, Models, Networks, registered
from hypodask.cluster.window import KILLED, Landed, Task, Window, landing
from hypodask.cluster.work import Treat, failed_row, treat_job
from hypodask.cohort import Cohort
from hypodask.dataset import assemble, check_columns, finalise, open_results, save_cohort
from hypodask.errors import ResultsError
from hypodask.journal import Journal, read_journal, sole_writer
from hypodask.location import Location
from hypodask.pipeline import load_models, process_scan
from hypodask.planning import Job, Only, Plan, decide, planned
from hypodask.progress import Progress

TIME_LIMIT = 1800.0
"""Seconds that a scan may take: some hundred times what it takes."""


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
                reached_cluster(client, workers, len(jobs)) as (connected, ours),
                registered(connected, networks.sharing(ours)) as plugin,
                kept_record(out, len(jobs), networks.key, workers_of(connected)),
            ):
                _work_off(connected, out, jobs, partial(treat_job, treat, out, plugin, time_limit), bar, window)
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
        return planned(decisions, journal, workers_here(len(cohort), workers))
    with reached_cluster(client, workers, len(cohort)) as (connected, ours):
        threads = sum(workers_of(connected).values())
        if not jobs:
            return planned(decisions, journal, threads)
        with (
            sole_writer(out),
            Progress(len(jobs), shown=False) as bar,
            registered(connected, networks.sharing(ours)) as plugin,
        ):
            _work_off(connected, out, jobs, partial(treat_job, treat, out, plugin, TIME_LIMIT), bar)
    journal = read_journal(out)
    return planned(decided(journal), journal, threads)


def _work_off(
    client: Client, out: str, jobs: list[Job], task: Callable[..., Any], bar: Progress, window: int | None = None
) -> None:
    """Have every job treated, and keep the rows in the journal as they come in."""
    place = Window(client, window, on=side_of(client))
    _keep_rows(out, _rows(client, jobs, partial(task, place.on is not None), place), bar)


def _spread(jobs: list[Job], number: int) -> list[Job]:
    """So many of the jobs, evenly from the first to the last."""
    number = min(number, len(jobs))
    return [jobs[index * len(jobs) // number] for index in range(number)]


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


def _keep_rows(out: str, rows: Iterable[dict[str, Any] | None], bar: Progress) -> None:
    with Journal(out) as journal:
        for row in rows:
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
