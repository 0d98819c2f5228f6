"""Remove a participant from an output: a participant may withdraw consent at any time.

Scans are found by what is in the output, not only by its table: rows and results of earlier calls, stores, logs and
leases. A call that was killed is completed by the same call made again.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress

import pandas as pd
import xarray as xr

from hypodask.core.errors import ClusterError, CohortError, ResultsError, StoreError
from hypodask.files.digests import SEAL, delete_sealed
from hypodask.files.leases import FOLDER, FORGETTING, PATIENCE_SECONDS, RESULTS, drop_legacy_lock, held, holders
from hypodask.files.location import Location, writing
from hypodask.storage.journal import forget_rows, of_this_method, parsed_parquet, read_journal, scans_in_parts
from hypodask.storage.manifest import TABLES, drop_old_results, drop_results, names_of_results
from hypodask.storage.store import delete_store
from hypodask.study.cohort import STORE_SUFFIX, stores_in
from hypodask.study.ids import participant_of
from hypodask.study.results import assemble, finalise, open_results, read_cohort, save_cohort
from hypodask.study.runs import unfinished_files

_log = logging.getLogger(__name__)


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
    # A run that begins now sees this lease and gives up; a run that goes on is found below.
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
            drop_old_results(place)
        else:
            drop_results(place)
        # Last, so that the same call finds the same scans if this one is killed.
        save_cohort(url, rest)
    return gone


def _remove(place: Location, gone: list[str]) -> None:
    """Delete everything of some scans but their results and their rows in the table of the cohort."""
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
    for file in unfinished_files(place):
        file.delete()
    scans = place.child("scans").folder
    if scans is not None and scans.is_dir() and not scans.is_symlink():
        for site in scans.iterdir():
            if not site.is_symlink() and site.is_dir() and not any(site.iterdir()):
                site.rmdir()


def _cohort_as_it_is(place: Location) -> pd.DataFrame:
    """The table of scans, also where its digest is missing or it is of version 0.1.0; empty if it cannot be read."""
    with suppress(ResultsError, StoreError):
        return read_cohort(place.url)
    with suppress(FileNotFoundError, StoreError):
        return parsed_parquet(place.child("cohort.parquet").read(), place.url, "")
    with suppress(ResultsError):
        # The results have every column of the table as a coordinate.
        results = open_results(place.url)
        columns = [str(name) for name in results.coords if name != "structure"]
        return pd.DataFrame({name: results[name].to_numpy() for name in ["scan", *columns]})
    if place.child("cohort.parquet").exists():
        _log.warning("%s/cohort.parquet cannot be read: process the cohort again to make the table anew", place.url)
    return pd.DataFrame({"scan": pd.Series(dtype=object), "participant_id": pd.Series(dtype=object)})


def _scans_of(participant: str, place: Location, cohort: pd.DataFrame) -> list[str]:
    """Scans by their own id or by the participant's, in table, journal, results, stores, logs and leases."""
    if not participant.strip():
        raise CohortError("no participant was named; give a participant_id, or the id of a scan")
    names = {participant, f"sub-{participant}"}
    of_cohort = cohort.loc[cohort["scan"].isin(names) | cohort["participant_id"].isin(names), "scan"]
    others = {scan for scan in _scans_there(place) if scan in names or participant_of(scan) in names}
    others |= _scans_in_results(place, names)
    if not (gone := sorted({*of_cohort, *others})):
        shown = ", ".join(cohort["scan"].head(3))
        raise CohortError(
            f"neither a participant nor a scan of {place.url} is called {participant!r}; its scans are {shown} ..."
        )
    return gone


def _scans_there(place: Location) -> Iterator[str]:
    """Ids of all scans that have a file in the output."""
    yield from scans_in_parts(place.url)
    with suppress(ResultsError):
        yield from open_results(place.url)["scan"].to_numpy().tolist()
    yield from (store.rpartition("/")[2].removesuffix(STORE_SUFFIX) for store in stores_in(place.url))
    yield from (name.removesuffix(SEAL).removesuffix(".log") for name in place.child("logs").names())
    for name in place.child(FOLDER).names():
        if name.startswith("scan-"):
            yield name.removeprefix("scan-").rpartition(".")[0].rpartition(".")[0]


def _scans_in_results(place: Location, names: set[str]) -> set[str]:
    """Scans by their own id or by the participant's in any results that can be read, old ones included."""
    found = set()
    for name in names_of_results(place):
        with suppress(Exception):  # results that cannot be read are removed whole
            stored = xr.open_zarr(place.child(name).zarr_store(read_only=True), chunks=None, zarr_format=3).load()
            scans = [str(scan) for scan in stored["scan"].to_numpy().tolist()]
            people = stored["participant_id"].to_numpy().tolist() if "participant_id" in stored else scans
            found |= {scan for scan, person in zip(scans, people, strict=True) if scan and {scan, str(person)} & names}
    return found
