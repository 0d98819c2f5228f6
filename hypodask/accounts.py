"""The accounts of an output: what became of every scan, what was run with what, and how a participant leaves.

Beside the results (:mod:`hypodask.dataset`) an output holds::

    runs/<time>.json    versions, networks, workers and counts of each call that had something to do
    logs/<scan>.log     what was logged while a scan was processed, where anything was

All of it can be read while a run goes on.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version

import pandas as pd

from hypodask.cohort.ids import participant_of
from hypodask.dataset import assemble, finalise, read_cohort, save_cohort, stores_in
from hypodask.errors import CohortError
from hypodask.journal import forget_rows, read_journal, sole_writer
from hypodask.location import Location
from hypodask.row import Row
from hypodask.store import delete_store

ACCOUNT = ("stage", "error", "reason", "warnings", "host", "seconds", "peak_memory_mib", "attempts", "version", "model")
"""What :func:`status` tells of a scan beside its status."""

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
        If no run was started there.
    """
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
    with sole_writer(place.url):
        cohort, journal = read_cohort(url), read_journal(url)
        gone = _scans_of(participant, cohort, journal, url)
        for store in stores_in(url):
            if store.rpartition("/")[2].removesuffix(".nii.zarr") in gone:
                delete_store(place.child(store).url)
        for scan in gone:
            place.child("logs", f"{scan}.log").delete()
        forget_rows(url, set(gone))
        place.child("report.html").delete()
        rest = cohort[~cohort["scan"].isin(gone)]
        save_cohort(url, rest)
        if place.child("results.json").exists():
            finalise(url, assemble(rest, read_journal(url)))
    return gone


def _scans_of(participant: str, cohort: pd.DataFrame, journal: pd.DataFrame, url: str) -> list[str]:
    """Scans by their own id or by the participant's; those that left the cohort but not the journal, too."""
    names = {participant, f"sub-{participant}"}
    of_cohort = cohort.loc[cohort["scan"].isin(names) | cohort["participant_id"].isin(names), "scan"]
    others = [str(scan) for scan in journal.index if scan in names or participant_of(str(scan)) in names]
    if not (gone := sorted({*of_cohort, *others})):
        shown = ", ".join(cohort["scan"].head(3))
        raise CohortError(
            f"neither a participant nor a scan of {url} is called {participant!r}; its scans are {shown} ..."
        )
    return gone


def keep_log(url: str, scan: str, text: str) -> None:
    """Keep what was logged while a scan was processed, in place of what an earlier run left."""
    Location(url).child("logs", f"{scan}.log").write(f"{text}\n".encode())


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
    place = Location(url).child("runs", f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z.json")
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
    place.write(_json(record))
    try:
        yield
    except BaseException as err:
        place.write(_json({**record, "ended": _now(), "stopped_by": type(err).__name__}))
        raise
    place.write(_json({**record, "ended": _now()}))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _json(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, indent=1).encode()
