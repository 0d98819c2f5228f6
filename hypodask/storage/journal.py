"""The journal of an output: the result of each scan, written while runs go on.

Rows are appended as Parquet files (parts) under ``journal/``, so that a run which is cut off loses at most the rows
since the last part. A row is flat there: the volume of a structure is the column ``volume_mm3.icv``. If a scan has
several rows, the latest counts.

A part is called ``<number>-<writer>.<sha256>.parquet``. Any number of runs may write into one output, and every reader
compares a part with the digest in its name. A second file beside the part (its seal) shows that the part was written,
so that a lost part is noticed. A new part has the number after the highest one that exists, so that the order of rows
does not depend on clocks.
"""

import io
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from hypodask.core.errors import StoreError
from hypodask.core.variables import RESULTS
from hypodask.files.digests import ATTEMPTS, PAUSE_SECONDS, SEAL, delete_sealed, is_sealed_by, seal, sha256_of
from hypodask.files.location import Location, writing

PART_ROWS = 1024
_PART_SECONDS = 30.0
"""A part is written when either is reached: few files for a large study, few lost rows for a slow one. With 256 rows in
a part the client takes three times as long for each row, because writing a table costs more for its columns than for
its rows."""

_PER_STRUCTURE = tuple(variable.name for variable in RESULTS if "structure" in variable.dims)
"""Fields of a row that hold one number per structure."""

_PART = re.compile(r"(\d{8})(?:-[0-9a-f]{8}\.([0-9a-f]{64}))?\.parquet")
"""Name of a part: its number and its digest; parts of version 0.1.0 have no digest."""

_READERS = 16
"""Parts that are read at the same time; not tuned."""

_REST = (
    "then make the same call again: rows of scans that are done are taken from their stores, other scans are tried "
    "again"
)

_CURE = f"delete it and the file {SEAL} beside it, {_REST}"

log = logging.getLogger(__name__)


class Journal:
    """Appends rows to the journal of an output; remaining rows are written at the end of the context.

    Parameters
    ----------
    url
        The output.
    check
        Called before anything is written; it raises an error if this process may not write any more.

    Examples
    --------
    >>> with Journal("memory://journal-example") as journal:
    ...     journal.append({"scan": "sub-01", "status": "done", "volume_mm3": {"icv": 1.5e6}})
    >>> read_journal("memory://journal-example")["volume_mm3.icv"].tolist()
    [1500000.0]
    >>> Location("memory://journal-example").child("journal").delete()
    """

    def __init__(self, url: str, *, check: Callable[[], None] = lambda: None) -> None:
        self._place = _folder(url)
        self._check = check
        self._writer = uuid.uuid4().hex[:8]
        self._rows: list[Mapping[str, Any]] = []
        self._last_part = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row: ``Row.as_dict()``, with further columns if need be."""
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self.flush()

    def flush_if_due(self) -> None:
        """Write a part if the last one is 30 s old; to be called regularly."""
        if time.monotonic() - self._last_part >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting."""
        if self._rows:
            rows, self._rows = self._rows, []
            self._check()
            with writing(self._place):
                # Above the highest number now: another run may have written meanwhile.
                number = 1 + max((int(name[:8]) for name in _parts(self._place)), default=0)
                _write_part(self._place, f"{number:08d}-{self._writer}", flat_table(rows))
        self._last_part = time.monotonic()


def read_journal(url: str) -> pd.DataFrame:
    """The latest row of each scan, flat, indexed by ``scan``; empty if nothing was run yet.

    Raises
    ------
    StoreError
        If a part is missing or not as it was written.
    """
    for attempt in range(ATTEMPTS):
        try:
            tables = _read_parts(_folder(url))
            break
        except StoreError:
            # At this moment the rows of a participant may be removed from all parts.
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_SECONDS)
    return latest(pd.concat(tables, ignore_index=True)) if tables else flat_table([]).set_index("scan")


def _read_parts(place: Location) -> list[pd.DataFrame]:
    names = place.names()
    parts = [name for name in names if _PART.fullmatch(name)]
    sealed = [name.removesuffix(SEAL) for name in names if name.endswith(SEAL)]
    for name in sealed:
        if _PART.fullmatch(name) and name not in parts:
            raise StoreError(f"{place.url}/{name} is missing, though its digest is there; {_without(name)}")
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_read_part, map(place.child, parts)))


def of_this_method(journal: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of version 0.1.0, which have no method version: such scans count as not run."""
    if "stamp" not in journal:
        return journal
    stamps = journal["stamp"].astype(object).fillna("").astype(str)
    return journal[(stamps == "") | stamps.str.contains("method=", regex=False)]


def scans_in_parts(url: str) -> set[str]:
    """Ids of all scans in the journal; parts that cannot be read are skipped."""
    place, found = _folder(url), set()
    for name in _parts(place):
        with suppress(StoreError):
            found |= set(_read_part(place.child(name))["scan"])
    return found


def journal_problems(url: str) -> list[str]:
    """What is wrong with the files of the journal, in words; foreign files are listed too, but readers ignore them."""
    place, problems = _folder(url), []
    names = place.names()
    for name in names:
        if not _PART.fullmatch(name.removesuffix(SEAL)):
            problems.append(f"journal/{name}: not a part of the journal; move it elsewhere")
        elif not name.endswith(SEAL):
            try:
                _read_part(place.child(name))
            except StoreError as err:
                problems.append(f"journal/{name}: {err}")
            if _is_legacy(name):
                problems.append(f"journal/{name}: it is of hypodask 0.1.0, without a digest; process the cohort again")
            elif name + SEAL not in names:
                problems.append(f"journal/{name}: its digest beside it is missing; the next call makes it again")
        elif name.removesuffix(SEAL) not in names:
            part = name.removesuffix(SEAL)
            problems.append(f"journal/{part}: it is missing, though its digest is there; {_without(part)}")
        elif not is_sealed_by(place.child(name.removesuffix(SEAL)), name.split(".")[1]):
            problems.append(f"journal/{name}: it is damaged; {_CURE}")
    return problems


def _without(name: str) -> str:
    return f"delete {name}{SEAL}, {_REST}"


def seal_parts(url: str) -> None:
    """Write the seals that are missing because a process was killed; the digest is in the name of each part."""
    place = _folder(url)
    names = set(place.names())
    for name in names:
        known = _PART.fullmatch(name)
        if known and known[2] and name + SEAL not in names:
            seal(place.child(name), known[2])


def drop_legacy_parts(url: str) -> None:
    """Remove parts of version 0.1.0, which have no digests, if all their scans have newer rows."""
    place = _folder(url)
    legacy = [name for name in _parts(place) if _is_legacy(name)]
    if not legacy:
        return
    renewed = set().union(*(_read_part(place.child(name))["scan"] for name in _parts(place) if not _is_legacy(name)))
    for name in legacy:
        if set(_read_part(place.child(name))["scan"]) <= renewed:
            place.child(name).delete()


def _is_legacy(name: str) -> bool:
    known = _PART.fullmatch(name)
    return known is not None and known[2] is None


def forget_rows(url: str, scans: Collection[str]) -> None:
    """Remove every row of some scans, older rows included; a part that cannot be read is removed whole."""
    place = _folder(url)
    for name in sorted({name.removesuffix(SEAL) for name in place.names()}):
        if not _PART.fullmatch(name):
            continue
        part = place.child(name)
        try:
            table = _read_part(part)
        except StoreError:
            log.warning("%s cannot be read and is removed whole", part.url)
            delete_sealed(part)
            continue
        kept = table[~table["scan"].isin(list(scans))]
        if len(kept) == len(table):
            continue
        if not kept.empty:
            # With the number of the old part, so that the order of rows stays.
            stem = part.name.partition(".")[0]
            _write_part(place, stem if "-" in stem else f"{stem}-00000000", kept)
        delete_sealed(part)


def _folder(url: str) -> Location:
    return Location(url).child("journal")


def _write_part(place: Location, name: str, table: pd.DataFrame) -> None:
    """Write a part, then its seal: without a seal, the digest in its name still shows that it is whole."""
    content = to_parquet(table)
    digest = sha256_of(content)
    part = place.child(f"{name}.{digest}.parquet")
    part.write(content)
    seal(part, digest)


def _read_part(place: Location) -> pd.DataFrame:
    try:
        content = place.read()
    except FileNotFoundError:
        raise StoreError(f"{place.url} is missing; {_CURE}") from None
    known = _PART.fullmatch(place.name)
    if known is None or known[2] not in (None, sha256_of(content)):
        raise StoreError(f"{place.url} is damaged: it does not match the digest in its name; {_CURE}")
    return parsed_parquet(content, place.url, _CURE)


def flat_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table with one column per number, such as ``volume_mm3.icv``."""
    rows = list(rows)
    if not rows:
        return pd.DataFrame({"scan": pd.Series([], dtype=str)})
    single = [name for name in _keys(rows) if name not in _PER_STRUCTURE]
    columns: dict[str, Any] = {name: [row.get(name, math.nan) for row in rows] for name in single}
    for name in _PER_STRUCTURE:
        given = [row.get(name) or {} for row in rows]
        columns |= {f"{name}.{key}": np.array([one.get(key, math.nan) for one in given], float) for key in _keys(given)}
    return pd.DataFrame(columns)


def _keys(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every key of any of them, in the order in which they come."""
    return list(dict.fromkeys(chain.from_iterable(rows)))


def latest(table: pd.DataFrame) -> pd.DataFrame:
    """The last row of each scan, indexed by ``scan``."""
    return table.drop_duplicates("scan", keep="last").set_index("scan")


def to_parquet(table: pd.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def parsed_parquet(content: bytes, name: str, cure: str) -> pd.DataFrame:
    """The table in the bytes of a Parquet file.

    Raises
    ------
    StoreError
        If they are damaged.
    """
    try:
        return pd.read_parquet(io.BytesIO(content))
    except (pa.ArrowException, ValueError, OSError, KeyError) as err:
        raise StoreError(f"{name} is damaged ({err}); {cure}") from err


def _parts(place: Location) -> list[str]:
    return [name for name in place.names() if _PART.fullmatch(name)]
