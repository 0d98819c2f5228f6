"""The accounts of an output: what became of every scan, what was run with what, and how a participant leaves.

Beside the results (:mod:`hypodask.dataset`) an output holds::

    runs/<time>.json    versions, networks, workers and counts of each call that had something to do
    logs/<scan>.log     what was logged while a scan was processed, where anything was
    locks/              who works here now, see :mod:`hypodask.leases`

All of it can be read while a run goes on. Logs and records have their digests beside them.
"""

import logging
import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version

import pandas as pd

from hypodask.cohort.ids import participant_of
from hypodask.dataset import (
    TABLES,
    assemble,
    drop_results,
    finalise,
    open_results,
    read_cohort,
    save_cohort,
    scans_in_old_results,
    stores_in,
)
from hypodask.digests import SEAL, delete_sealed, encoded, write_sealed
from hypodask.errors import ClusterError, CohortError, HypodaskError, OutputError, ResultsError, StoreError
from hypodask.journal import forget_rows, of_this_method, parsed_parquet, read_journal, scans_in_parts, seal_parts
from hypodask.leases import (
    FOLDER,
    FORGETTING,
    PATIENCE_SECONDS,
    RESULTS,
    Lease,
    drop_ended,
    drop_legacy_lock,
    held,
    holders,
)
from hypodask.location import TEMPORARY, Location, writing
from hypodask.row import Row
from hypodask.store import SUFFIX as STORE_SUFFIX
from hypodask.store import delete_store

ACCOUNT = ("stage", "error", "reason", "warnings", "host", "seconds", "peak_memory_mib", "attempts", "version", "model")
"""What :func:`status` tells of a scan beside its status."""

UNFINISHED = re.compile(rf"{TEMPORARY.pattern}|\.\d{{8}}\.parquet\..*")
"""Names of unfinished files where only hypodask writes."""

STATUSES = ("done", "failed", "waiting")

log = logging.getLogger(__name__)

PACKAGES = (
    *("hypodask", "dask", "distributed", "zarr", "xarray", "fsspec", "nibabel"),
    *("jax", "jaxlib", "flax", "numpy", "scipy", "pandas"),
)
"""Those whose version may matter for a result."""


def status(url: str, *, only: str | None = None) -> pd.DataFrame:
    """What became of every scan of an output so far; also while a run goes on.

    Parameters
    ----------
    url
        Output folder or URL.
    only
        Keep to one status: ``done``, ``failed`` or ``waiting``.

    Returns
    -------
    DataFrame
        One row per scan of the cohort, indexed by ``scan``: ``status`` (``waiting`` for those without a row yet),
        ``stage``, ``error``, ``reason``, ``warnings``, ``host``, ``seconds``, ``peak_memory_mib``, ``attempts``,
        ``version``, ``model``.

    Raises
    ------
    ResultsError
        If no run was started there, or ``only`` is none of these.
    StoreError
        If the table of scans or the journal is not as it was written.
    """
    if only not in (None, *STATUSES):
        raise ResultsError(f"no scan can be {only!r}; give one of {', '.join(STATUSES)}")
    scans = read_cohort(url)["scan"].to_numpy()
    table = read_journal(url).reindex(index=scans, columns=["status", *ACCOUNT])
    table.index.name = "scan"
    table["status"] = table["status"].astype(object).fillna("waiting")
    text = [name for name in ACCOUNT if isinstance(getattr(Row("", "done"), name), str)]
    table[text] = table[text].astype(object).fillna("")
    return table if only is None else table[table["status"] == only]


def forget(url: str, participant: str) -> list[str]:
    """Remove a participant, or one scan, from an output: stores, journal, results, tables, logs and report.

    The report shows pictures of participants and is deleted whole: write it anew. Take the scans out of the input as
    well, or a later call processes them again.

    Parameters
    ----------
    url
        Output folder or URL.
    participant
        ``participant_id``, with or without ``sub-``, for all of their scans; or the id of one scan.

    Returns
    -------
    list of str
        The scans that were removed.

    Raises
    ------
    CohortError
        If nobody of that name is there.
    ClusterError
        If a run is under way there.
    ResultsError
        If no run was started there.
    """
    place = Location(url)
    if not place.child("cohort.parquet").exists() and not place.child("journal").names():
        raise ResultsError(f"no run was started in {url}: it has no cohort.parquet; give the output of a run")
    # A run that begins now sees this lease and stands back; one that goes on is seen here.
    with writing(place), held(place, FORGETTING, patience=0), held(place, RESULTS, patience=PATIENCE_SECONDS):
        if busy := holders(place, "run-") + holders(place, "scan-"):
            raise ClusterError(
                f"a run goes on in {url}: {busy[0]} is at work; wait for it, or, if you know that it has ended, call "
                "again with --unlock (in Python: hypodask.unlock(OUT))"
            )
        drop_legacy_lock(place)
        cohort = _cohort_as_it_is(place)
        gone = _scans_of(participant, place, cohort)
        _remove(place, gone)
        rest = cohort[~cohort["scan"].isin(gone)]
        if place.child("results.json").exists() or place.child(TABLES[0]).exists():
            finalise(url, assemble(rest, of_this_method(read_journal(url))))
            drop_results(url, but_those_in_force=True)
        else:
            drop_results(url, but_those_in_force=False)
        # The last of all, so that the same call finds the same scans where this one is cut off.
        save_cohort(url, rest)
    return gone


def _remove(place: Location, gone: list[str]) -> None:
    """Everything of some scans but the results and their place in the cohort."""
    delete_sealed(place.child("report.html"))
    for store in stores_in(place.url):
        if store.rpartition("/")[2].removesuffix(STORE_SUFFIX) in gone:
            delete_store(place.child(store))
    for name in place.child("logs").names():
        if name.removesuffix(SEAL).removesuffix(".log") in gone:
            place.child("logs", name).delete()
    for name in place.child(FOLDER).names():
        if any(name.startswith(f"scan-{scan}.") for scan in gone):
            place.child(FOLDER, name).delete()
    forget_rows(place.url, gone)
    clean(place)


def clean(place: Location) -> None:
    """Remove the unfinished files of processes that were killed; nobody else may be at work here."""
    _delete_files(_unfinished(place))
    _remove_empty_sites(place.child("scans"))


def _delete_files(files: list[Location]) -> None:
    for file in files:
        if not file.is_folder():
            file.delete()


def _unfinished(place: Location) -> list[Location]:
    """Files that were never given their names; those in stores go with their stores."""
    sites = [place.child("scans", name) for name in place.child("scans").names() if not name.endswith(".zarr")]
    folders = [place, place.child("scans"), *sites]
    found = [folder.child(name) for folder in folders for name in folder.names() if TEMPORARY.fullmatch(name)]
    ours = [place.child(name) for name in ("journal", "logs", "runs", FOLDER)]
    return found + [folder.child(name) for folder in ours for name in folder.names() if UNFINISHED.fullmatch(name)]


def _remove_empty_sites(scans: Location) -> None:
    if scans.folder is not None and scans.folder.is_dir() and not scans.folder.is_symlink():
        for site in scans.folder.iterdir():
            if not site.is_symlink() and site.is_dir() and not any(site.iterdir()):
                site.rmdir()


def _cohort_as_it_is(place: Location) -> pd.DataFrame:
    """The table of scans, also where its digest is missing or it is of version 0.1.0; empty where it cannot be read."""
    with suppress(ResultsError, StoreError):
        return read_cohort(place.url)
    with suppress(FileNotFoundError, StoreError):
        return parsed_parquet(place.child("cohort.parquet").read(), place.url, "")
    with suppress(ResultsError):
        # The results have every column of it as a coordinate.
        results = open_results(place.url)
        columns = [str(name) for name in results.coords if name != "structure"]
        return pd.DataFrame({name: results[name].to_numpy() for name in ["scan", *columns]})
    if place.child("cohort.parquet").exists():
        log.warning("%s/cohort.parquet cannot be read: process the cohort again to make the table anew", place.url)
    return pd.DataFrame({"scan": pd.Series(dtype=object), "participant_id": pd.Series(dtype=object)})


def _scans_of(participant: str, place: Location, cohort: pd.DataFrame) -> list[str]:
    """Scans by their own id or by the participant's, wherever one is named: table, journal, stores, logs, leases."""
    if not participant.strip():
        raise CohortError("no participant was named; give a participant_id, or the id of a scan")
    names = {participant, f"sub-{participant}"}
    of_cohort = cohort.loc[cohort["scan"].isin(names) | cohort["participant_id"].isin(names), "scan"]
    others = {scan for scan in _scans_there(place) if scan in names or participant_of(scan) in names}
    others |= scans_in_old_results(place.url, names)
    if not (gone := sorted({*of_cohort, *others})):
        shown = ", ".join(cohort["scan"].head(3))
        raise CohortError(
            f"neither a participant nor a scan of {place.url} is called {participant!r}; its scans are {shown} ..."
        )
    return gone


def _scans_there(place: Location) -> Iterator[str]:
    """Ids of scans by what is in an output, rather than by what should be."""
    yield from scans_in_parts(place.url)
    with suppress(ResultsError):
        yield from open_results(place.url)["scan"].to_numpy().tolist()
    yield from (store.rpartition("/")[2].removesuffix(STORE_SUFFIX) for store in stores_in(place.url))
    yield from (name.removesuffix(SEAL).removesuffix(".log") for name in place.child("logs").names())
    for name in place.child(FOLDER).names():
        if name.startswith("scan-"):
            yield name.removeprefix("scan-").rpartition(".")[0].rpartition(".")[0]


@contextmanager
def at_work(place: Location) -> Iterator[Lease]:
    """Be known to work in an output, as any number of calls may at a time; what killed ones left is cleaned up.

    Raises
    ------
    OutputError
        If the output cannot be written.
    ClusterError
        If a participant is being removed from it.
    """
    # By functions that do not raise for names that are too long.
    if place.folder is not None and os.path.exists(place.folder) and not os.path.isdir(place.folder):  # noqa: PTH110, PTH112
        raise OutputError(f"{place.url} is a file; give a folder for the output, or the URL of one")
    with ExitStack() as stack:
        with writing(place):
            run = stack.enter_context(held(place, f"run-{uuid.uuid4().hex[:12]}"))
        if busy := holders(place, FORGETTING):
            raise ClusterError(
                f"a participant is being removed from {place.url} by {busy[0]}; call again when it is done"
            )
        with writing(place):
            drop_legacy_lock(place)
            drop_ended(place)
            seal_parts(place.url)
            # What is there before the others are counted is nobody's who begins afterwards.
            if (unfinished := _unfinished(place)) and len(holders(place, "run-")) == 1:
                _delete_files(unfinished)
        yield run


def keep_log(url: str, scan: str, text: str) -> None:
    """Keep what was logged while a scan was processed, in place of what an earlier run left."""
    write_sealed(Location(url).child("logs", f"{scan}.log"), f"{text}\n".encode())


@contextmanager
def kept_record(url: str, scans: int, networks: str, workers: Mapping[str, int]) -> Iterator[None]:
    """Keep a record of a call: when, with which versions and networks, on how many workers.

    It is written at the beginning, without ``ended``, and again at the end: a call that was killed leaves the first.

    Parameters
    ----------
    scans
        How many are to be processed.
    networks
        Digest of the weights and of what was asked for.
    workers
        Threads of each worker at the beginning, by its address.
    """
    place = Location(url).child("runs", f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{uuid.uuid4().hex[:6]}.json")
    record = {
        "began": _now(),
        "scans": scans,
        "networks": networks,
        "workers": len(workers),
        "threads": sum(workers.values()),
        "client": platform.node(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_sealed(place, encoded(record))
    try:
        yield
    except BaseException as err:
        # What stopped the call counts more than a record of it that cannot be written any more.
        with suppress(OSError, HypodaskError):
            write_sealed(place, encoded({**record, "ended": _now(), "stopped_by": type(err).__name__}))
        raise
    write_sealed(place, encoded({**record, "ended": _now()}))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
