"""Process every scan of a cohort: only what is missing is done, each row is kept at once, and the results are written.

Which scans these are is decided in :mod:`hypodask.study.planning`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import isnan
from typing import Any

import xarray as xr
from distributed import Client, KilledWorker

from hypodask.cluster.connection import (
    AnyCluster,
    has_client,
    reached_cluster,
    refuse_unguarded_script,
    resource_for_scans,
    workers_here,
    workers_of,
)
from hypodask.cluster.networks import Load, Models, NetworksPlugin, registered
from hypodask.cluster.window import KILLED, Completed, Window, completed_jobs
from hypodask.cluster.work import Method, failed_row, process_job
from hypodask.core.errors import ResultsError
from hypodask.core.progress import Progress
from hypodask.files.leases import PATIENCE_SECONDS, RESULTS, Lease, held
from hypodask.files.location import Location, writing
from hypodask.pipeline import load_models, made_by, process_scan
from hypodask.storage.journal import Journal, drop_legacy_parts, of_this_method, read_journal
from hypodask.storage.manifest import tables_are_whole
from hypodask.study.cohort import Cohort
from hypodask.study.planning import Job, Only, Plan, decide, planned
from hypodask.study.results import assemble, check_columns, finalise, open_results, save_cohort
from hypodask.study.runs import at_work, kept_record

_TIME_LIMIT = 1800.0
"""Seconds that a scan may take: some hundred times as long as it usually takes."""

_INTERRUPTED = "interrupted; what was done is kept: make the same call again to go on where it stopped"


def process(
    cohort: Cohort,
    url: str,
    client: AnyCluster = None,
    *,
    workers: int | None = None,
    models: Models = None,
    window: int | None = None,
    progress: bool = True,
    retry_failed: bool = False,
    only: Only | None = None,
    time_limit: float | None = _TIME_LIMIT,
    **deprecated: Any,
) -> xr.Dataset:
    """Process every scan of a cohort that is not processed yet, and return the results of all.

    A script that lets this function start its own workers needs ``if __name__ == "__main__":`` around the call, because
    workers are new processes that import the script.

    Parameters
    ----------
    cohort
        The scans. The results have one row for each of them.
    url
        Output folder, or URL of an object store. The workers must reach it, and the scans, by the same name.
    client
        Any Dask cluster: SLURM, Kubernetes, a cloud; or the address of its scheduler. By default the current client. If
        there is none, workers are started on this machine, one process per core, and stopped at the end.
    workers
        How many to start here; without effect on a given client.
    models
        Name or path of weights, or several; by default the networks that come with hypodask.
    window
        Tasks on the cluster at a time; by default two per worker thread and a few more. A task is one scan, or several
        if each takes far less than a second.
    progress
        Show how many scans are done, failed and left, the rate and the remaining time.
    retry_failed
        Also try scans again that were refused or set aside before.
    only
        ``"failed"``: process only the scans that have a failed row, whatever the reason.
    time_limit
        Seconds that a scan may take. A scan that takes longer becomes a failed row; its worker process is ended, and
        its nanny starts another. ``None`` for no limit.
    **deprecated
        ``treat`` and ``load``, which earlier versions took, still work and give a ``DeprecationWarning``: another
        method for one scan, and another function that loads its networks.

    Returns
    -------
    xr.Dataset
        See :func:`hypodask.study.results.assemble`; also written into ``url``.

    Raises
    ------
    CohortError
        If the cohort has a column with the name of a result.
    ClusterError
        If a participant is being removed from ``url``, or if the cluster or the output is lost meanwhile; then call
        again. Also if a script without ``if __name__ == "__main__":`` would start itself again in each worker.
    ModelError
        If weights cannot be loaded.
    LocationError, OutputError
        If ``url`` must not or cannot be written.
    StoreError
        If the journal in ``url`` is not as it was written.

    Notes
    -----
    Any number of calls may work into one ``url`` at the same time. If another call has a scan, this call waits for it
    and takes the row from its store. Each call writes its own parts of the journal. The results are written by one call
    after the other.
    """
    return _process(
        cohort,
        url,
        client,
        workers=workers,
        models=models,
        window=window,
        progress=progress,
        retry_failed=retry_failed,
        only=only,
        time_limit=time_limit,
        **_renamed(deprecated, "process"),
    )


def plan(
    cohort: Cohort,
    url: str,
    client: AnyCluster = None,
    *,
    workers: int | None = None,
    models: Models = None,
    retry_failed: bool = False,
    only: Only | None = None,
    pilot: int = 0,
    **deprecated: Any,
) -> Plan:
    """What :func:`process` would do with the same arguments, and how long it would take.

    Nothing is started and nothing is written, except for a pilot. The estimate is made from the scans that were done in
    this output before, those of the pilot included.

    Parameters
    ----------
    cohort, url, client, workers, models, retry_failed, only
        As for :func:`process`.
    pilot
        Process so many of the scans first, evenly spread over the cohort. Their results are kept, so that
        :func:`process` does not do them again.
    **deprecated
        As for :func:`process`.

    Returns
    -------
    Plan
        Print it; ``plan.table`` says for each scan whether it would run, and why.

    Raises
    ------
    CohortError, ClusterError, ModelError, LocationError, OutputError, StoreError
        As :func:`process` does.
    """
    return _plan(
        cohort,
        url,
        client,
        workers=workers,
        models=models,
        retry_failed=retry_failed,
        only=only,
        pilot=pilot,
        **_renamed(deprecated, "plan"),
    )


def _renamed(deprecated: dict[str, Any], caller: str) -> dict[str, Any]:
    """Keywords of an earlier version by their present names.

    Raises
    ------
    TypeError
        If there are others.
    """
    names = {"treat": "method", "load": "load"}
    if unknown := sorted(deprecated.keys() - names.keys()):
        raise TypeError(f"{caller}() got an unexpected keyword argument {unknown[0]!r}")
    if deprecated:
        warnings.warn(
            f"{' and '.join(sorted(deprecated))} of hypodask.{caller}() will be removed; to call a function of your "
            "own for each scan use hypodask.cluster.each",
            DeprecationWarning,
            stacklevel=3,
        )
    return {names[name]: value for name, value in deprecated.items()}


def _process(
    cohort: Cohort,
    url: str,
    client: AnyCluster = None,
    *,
    workers: int | None = None,
    models: Models = None,
    window: int | None = None,
    progress: bool = True,
    retry_failed: bool = False,
    only: Only | None = None,
    time_limit: float | None = _TIME_LIMIT,
    method: Method = process_scan,
    load: Load = load_models,
) -> xr.Dataset:
    """:func:`process`, with any method for one scan. A done-mark with the stamp and the row replaces a lost row."""
    check_columns(cohort.table)
    if client is None and not has_client():
        refuse_unguarded_script()
    place = Location(url)
    networks = NetworksPlugin.asked_for(models, load)
    with _interruptible(), at_work(place) as run:
        with held(place, RESULTS, patience=PATIENCE_SECONDS), writing(place):
            save_cohort(place.url, cohort.table)
        journal = read_journal(place.url)
        decisions = decide(cohort, place.url, journal, made_by(networks.key), retry_failed=retry_failed, only=only)
        if jobs := [decision.job for decision in decisions if decision.runs]:
            up_to_date = set(cohort.table["scan"]) - {job.entry.scan for job in jobs}
            # With only="failed", other scans may have no row yet.
            status = journal.reindex(index=list(up_to_date), columns=["status"])["status"]
            earlier = {name: int((status == name).sum()) for name in ("done", "failed")}
            with (
                Progress(len(cohort), **earlier, shown=progress) as bar,
                reached_cluster(client, workers, len(jobs)) as (connected, started),
                registered(connected, networks.sharing(started)) as plugin,
                kept_record(place.url, len(jobs), networks.key, workers_of(connected)),
            ):
                task = partial(process_job, method, place.url, plugin, time_limit)
                _run_jobs(connected, place.url, jobs, task, bar, run, window)
        return _write_results(place, cohort, run)


def _plan(
    cohort: Cohort,
    url: str,
    client: AnyCluster = None,
    *,
    workers: int | None = None,
    models: Models = None,
    retry_failed: bool = False,
    only: Only | None = None,
    pilot: int = 0,
    method: Method = process_scan,
    load: Load = load_models,
) -> Plan:
    """:func:`plan`, with any method for one scan."""
    check_columns(cohort.table)
    if client is None and pilot and not has_client():
        refuse_unguarded_script()
    place = Location(url)
    networks = NetworksPlugin.asked_for(models, load)
    decided = partial(decide, cohort, place.url, made_by=made_by(networks.key), retry_failed=retry_failed, only=only)
    journal = read_journal(place.url)
    decisions = decided(journal)
    jobs = [decision.job for decision in decisions if decision.runs]
    # The pilot's scans are evenly spread, from the first to the last.
    pilot = min(pilot, len(jobs))
    jobs = [jobs[index * len(jobs) // pilot] for index in range(pilot)]
    if not jobs and client is None:
        return planned(decisions, journal, workers_here(len(cohort), workers))
    with reached_cluster(client, workers, len(cohort)) as (connected, started):
        threads = sum(workers_of(connected).values())
        if not jobs:
            return planned(decisions, journal, threads)
        with (
            _interruptible(),
            at_work(place) as run,
            Progress(len(jobs), shown=False) as bar,
            registered(connected, networks.sharing(started)) as plugin,
        ):
            task = partial(process_job, method, place.url, plugin, _TIME_LIMIT)
            _run_jobs(connected, place.url, jobs, task, bar, run)
    journal = read_journal(place.url)
    return planned(decided(journal), journal, threads)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Tell a user who interrupts a run that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt as err:
        err.add_note(_INTERRUPTED)
        raise


def _run_jobs(
    client: Client,
    out: str,
    jobs: list[Job],
    task: Callable[..., Any],
    bar: Progress,
    run: Lease,
    window: int | None = None,
) -> None:
    """Run a task for every job, and write the rows into the journal as they come in."""
    size = Window(client, window, on=resource_for_scans(client))
    has_gpu_workers = size.on is not None
    with Journal(out, check=run.check) as journal:
        for completed in completed_jobs(client, jobs, partial(task, has_gpu_workers), size):
            if run.is_lost:
                run.check()
            if completed is not None:
                row = _row(completed)
                journal.append(row)
                bar.count(row["status"])
            journal.flush_if_due()
            bar.refresh()


def _row(completed: Completed) -> dict[str, Any]:
    """The row of a job, which may have killed its worker before."""
    job, error = completed.job, completed.error
    if error is None:
        row = completed.value
    else:
        row = failed_row(job, error, reason=KILLED if isinstance(error, KilledWorker) else "").as_dict()
    attempts = 1 if isnan(row["attempts"]) else row["attempts"]
    return {**row, "stamp": job.stamp, "attempts": attempts + completed.deaths}


def _write_results(place: Location, cohort: Cohort, run: Lease) -> xr.Dataset:
    """The results of a cohort by what the journal says now; written, unless they are there already."""
    run.check()
    with held(place, RESULTS, patience=PATIENCE_SECONDS) as lease:
        dataset = assemble(cohort.table, of_this_method(read_journal(place.url)))
        with writing(place):
            # Another call may have written its own table since this call began.
            save_cohort(place.url, cohort.table)
        with suppress(ResultsError):
            if open_results(place.url).identical(dataset) and tables_are_whole(place.url):
                return dataset
        with writing(place):
            finalise(place.url, dataset, check=lease.check)
            drop_legacy_parts(place.url)
    return dataset
