"""The runs of an output: who works there now, what each call was made with, and what became of every scan.

Beside the results (:mod:`hypodask.study.results`) an output holds::

    runs/<time>.json    versions, networks, workers and counts of each call that processed scans
    logs/<scan>.log     what was logged while a scan was processed, if anything was
    locks/              who works here now, see :mod:`hypodask.files.leases`

All of it can be read while a run goes on. Logs and records have their digests beside them.
"""

import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version

import pandas as pd

from hypodask.core.errors import ClusterError, HypodaskError, OutputError, ResultsError
from hypodask.core.row import Row
from hypodask.files.digests import write_sealed
from hypodask.files.encoding import to_json
from hypodask.files.leases import FOLDER, FORGETTING, Lease, drop_ended, drop_legacy_lock, held, holders
from hypodask.files.location import TEMPORARY, Location, writing
from hypodask.storage.journal import read_journal, seal_parts
from hypodask.study.results import read_cohort

_TOLD = ("stage", "error", "reason", "warnings", "host", "seconds", "peak_memory_mib", "attempts", "version", "model")
"""Columns of :func:`status` beside the status itself."""

_STATUSES = ("done", "failed", "waiting")

_UNFINISHED = re.compile(rf"{TEMPORARY.pattern}|\.\d{{8}}\.parquet\..*")
"""Names of unfinished files in folders where only hypodask writes."""

_PACKAGES = (
    *("hypodask", "dask", "distributed", "zarr", "xarray", "fsspec", "nibabel"),
    *("jax", "jaxlib", "flax", "numpy", "scipy", "pandas"),
)
"""Packages whose version can change a result."""


def status(url: str, *, only: str | None = None) -> pd.DataFrame:
    """Status of every scan of an output so far; also while a run goes on.

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
    if only not in (None, *_STATUSES):
        raise ResultsError(f"no scan can be {only!r}; give one of {', '.join(_STATUSES)}")
    scans = read_cohort(url)["scan"].to_numpy()
    table = read_journal(url).reindex(index=scans, columns=["status", *_TOLD])
    table.index.name = "scan"
    table["status"] = table["status"].astype(object).fillna("waiting")
    text = [name for name in _TOLD if isinstance(getattr(Row("", "done"), name), str)]
    table[text] = table[text].astype(object).fillna("")
    return table if only is None else table[table["status"] == only]


@contextmanager
def at_work(place: Location) -> Iterator[Lease]:
    """Register as one of the calls that work in an output, and delete unfinished files of killed calls.

    Any number of calls may work in an output at a time.

    Raises
    ------
    OutputError
        If the output cannot be written.
    ClusterError
        If a participant is being removed from it.
    """
    # Functions of os.path, since those of Path raise for names that are too long.
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
            # Listed before the other runs are counted, so that no file is of a run that begins afterwards.
            if (unfinished := unfinished_files(place)) and len(holders(place, "run-")) == 1:
                for file in unfinished:
                    file.delete()
        yield run


def keep_log(url: str, scan: str, text: str) -> None:
    """Keep what was logged while a scan was processed, in place of the log of an earlier run."""
    write_sealed(Location(url).child("logs", f"{scan}.log"), f"{text}\n".encode())


@contextmanager
def kept_record(url: str, scans: int, networks: str, workers: Mapping[str, int]) -> Iterator[None]:
    """Keep a record of a call: when, with which versions and networks, on how many workers.

    The record is written at the beginning, without ``ended``, and again at the end: a call that was killed leaves the
    first one.

    Parameters
    ----------
    scans
        How many are to be processed.
    networks
        Digest of the weights and of the options of the call.
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
        "versions": {name: version(name) for name in _PACKAGES},
    }
    write_sealed(place, to_json(record))
    try:
        yield
    except BaseException as err:
        # The error that stopped the call must be raised, also where the record cannot be written any more.
        with suppress(OSError, HypodaskError):
            write_sealed(place, to_json({**record, "ended": _now(), "stopped_by": type(err).__name__}))
        raise
    write_sealed(place, to_json({**record, "ended": _now()}))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def unfinished_files(place: Location) -> list[Location]:
    """Files that a process began and never finished, outside of stores, which are deleted whole."""
    sites = [place.child("scans", name) for name in place.child("scans").names() if not name.endswith(".zarr")]
    folders = [place, place.child("scans"), *sites]
    found = [folder.child(name) for folder in folders for name in folder.names() if TEMPORARY.fullmatch(name)]
    ours = [place.child(name) for name in ("journal", "logs", "runs", FOLDER)]
    found += [folder.child(name) for folder in ours for name in folder.names() if _UNFINISHED.fullmatch(name)]
    return [file for file in found if not file.is_folder()]
