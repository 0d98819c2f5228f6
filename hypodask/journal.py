"""The journal of a run: what each scan became, written by one client while the run goes on.

Rows are appended as numbered Parquet parts under ``journal/``, so that a run which is cut off has lost at
most what came in since the last part. A row is flat there: the volume of a structure is the column
``volume_mm3.icv``. Of several rows of one scan the latest is true.
"""

import io
import json
import logging
import math
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from hypodask.errors import ClusterError, StoreError
from hypodask.location import Location
from hypodask.variables import RESULTS

PART_ROWS = 1024
PART_SECONDS = 30.0
"""A part is written when either is reached: few files for a large study, little lost for a slow one. With 256
rows in a part the client takes three times as long for each, since a table costs more for its columns than its rows."""

PER_STRUCTURE = tuple(variable.name for variable in RESULTS if "structure" in variable.dims)
"""Fields of a row that hold one number per structure."""

log = logging.getLogger(__name__)


class Journal:
    """Appends rows to the journal of an output; rows left over are written on leaving the context.

    Examples
    --------
    >>> with Journal("memory://study") as journal:
    ...     journal.append({"scan": "sub-01", "status": "done", "volume_mm3": {"icv": 1.5e6}})
    >>> read_journal("memory://study")["volume_mm3.icv"].tolist()
    [1500000.0]
    >>> Location("memory://study").delete()
    """

    def __init__(self, url: str) -> None:
        self._place = Location(url).child("journal")
        self._next = 1 + max((int(name.partition(".")[0]) for name in _parts(self._place)), default=0)
        self._rows: list[Mapping[str, Any]] = []
        self._last_part = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add ``Row.as_dict()``, with further columns if need be."""
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self.flush()

    def flush_if_due(self) -> None:
        """Write a part when the last one is :data:`PART_SECONDS` old; to be called every now and then."""
        if time.monotonic() - self._last_part >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting."""
        if self._rows:
            self._place.child(f"{self._next:08d}.parquet").write(to_parquet(flat_table(self._rows)))
            self._next += 1
            self._rows = []
        self._last_part = time.monotonic()


def read_journal(url: str) -> pd.DataFrame:
    """The latest row of each scan, flat, indexed by ``scan``; empty when nothing was run yet."""
    place = Location(url).child("journal")
    parts = [read_parquet(place.child(name)) for name in _parts(place)]
    return latest(pd.concat(parts, ignore_index=True)) if parts else flat_table([]).set_index("scan")


def forget_rows(url: str, scans: Collection[str]) -> None:
    """Remove every row of some scans, older ones included."""
    place = Location(url).child("journal")
    for part in map(place.child, _parts(place)):
        table = read_parquet(part)
        kept = table[~table["scan"].isin(list(scans))]
        if kept.empty:
            part.delete()
        elif len(kept) < len(table):
            part.write(to_parquet(kept))


@contextmanager
def sole_writer(url: str) -> Iterator[None]:
    """Keep a second client out of an output while the first one writes there.

    Raises
    ------
    ClusterError
        If another one is at work, or left its lock on another machine.
    """
    lock = Location(url).child("running.json")
    owner = {"host": platform.node(), "pid": os.getpid(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
    try:
        lock.create(json.dumps(owner).encode())
    except FileExistsError:
        _take_over(lock)
        lock.create(json.dumps(owner).encode())
    try:
        yield
    finally:
        lock.delete()


def _take_over(lock: Location) -> None:
    """Remove the lock of a process of this machine that is gone; refuse any other."""
    try:
        owner = json.loads(lock.read())
        host, pid, since = owner["host"], int(owner["pid"]), owner["since"]
    except (ValueError, KeyError):
        host, pid, since = "an unknown host", 0, "an unknown time"
    if host == platform.node() and not _is_alive(pid):
        log.warning("the run of process %s since %s was cut off; going on where it stopped", pid, since)
        lock.delete()
        return
    raise ClusterError(
        f"process {pid} on {host} has been writing here since {since}; wait for it, or, "
        f"if you know that it has ended, delete {lock.url} and call again"
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flat_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table with one column per number: ``volume_mm3.icv`` and so on."""
    rows = list(rows)
    if not rows:
        return pd.DataFrame({"scan": pd.Series([], dtype=str)})
    single = [name for name in _keys(rows) if name not in PER_STRUCTURE]
    columns: dict[str, Any] = {name: [row.get(name, math.nan) for row in rows] for name in single}
    for name in PER_STRUCTURE:
        given = [row.get(name) or {} for row in rows]
        columns |= {f"{name}.{key}": np.array([one.get(key, math.nan) for one in given], float) for key in _keys(given)}
    return pd.DataFrame(columns)


def _keys(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every key that one of them has, in the order in which they come."""
    return list(dict.fromkeys(chain.from_iterable(rows)))


def latest(table: pd.DataFrame) -> pd.DataFrame:
    """The last row of each scan, indexed by ``scan``."""
    return table.drop_duplicates("scan", keep="last").set_index("scan")


def to_parquet(table: pd.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def read_parquet(place: Location) -> pd.DataFrame:
    """A table that :func:`to_parquet` wrote.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    try:
        return pd.read_parquet(io.BytesIO(place.read()))
    except pa.ArrowInvalid as err:
        raise StoreError(f"{place.url} is damaged ({err}); delete it and run the same call again") from err


def _parts(place: Location) -> list[str]:
    return [name for name in place.names() if name.endswith(".parquet") and not name.startswith(".")]
