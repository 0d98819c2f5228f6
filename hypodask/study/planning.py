"""Which scans of a cohort are up to date, which are to be processed, and how long that will take.

A scan is up to date when its row is in the journal, its input file has the size and modification time that it had, its
row was made by the same method, networks, reference ranges and template, and its store has a done-mark. (Inputs are not
hashed again, since that would read the whole study to find that nothing changed; the done-mark holds their sha256.)

A scan that was refused (:class:`~hypodask.core.errors.ScanError`) stays failed until its file changes or the user asks
for it. The same holds for a scan that was set aside because it killed its workers or exceeded the time limit. A scan
that failed for another reason, such as a full disk or a defect, is tried again.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import pandas as pd

from hypodask.core.progress import clock
from hypodask.core.row import MadeBy
from hypodask.files.digests import sha256_of
from hypodask.files.location import Location
from hypodask.study.cohort import Cohort, Entry, store_path

Only = Literal["failed"]
"""Which scans a call processes, if not all."""

_SET_ASIDE = ("KilledWorker", "ScanTimeoutError")
"""Errors of the cluster that a scan causes: it would kill or hold up its workers again."""

_LOOKERS = 32
"""Threads that look at input files; on an object store each look is a round trip. Not tuned."""

_LARGEST_SHARE = 64
"""Most entries that a thread gets at a time."""

_DECISIVE = ("stamp", "status", "stage", "error", "store")
"""Columns of a row that tell whether its scan is up to date."""


@dataclass(frozen=True)
class Job:
    """One scan to be processed."""

    entry: Entry
    store: str
    """Where its store goes, relative to the output."""
    stamp: str
    """Input, landmarks and :class:`~hypodask.core.row.MadeBy` at planning time; kept in journal and store."""

    def __str__(self) -> str:
        return self.entry.scan


class Decision(NamedTuple):
    """Whether a scan is to be processed, and why."""

    job: Job
    runs: bool
    why: str


def decide(
    cohort: Cohort,
    out: str,
    journal: pd.DataFrame,
    made_by: MadeBy,
    *,
    retry_failed: bool = False,
    only: Only | None = None,
) -> list[Decision]:
    """For every scan of a cohort, in its order, whether it is to be processed."""
    known: dict[Any, dict[Any, Any]] = journal.reindex(columns=list(_DECISIVE)).to_dict("index")

    def decision(entry: Entry) -> Decision:
        parts = {"input": input_stamp(entry.path), **made_by._asdict(), "landmarks": _landmarks_stamp(entry)}
        job = Job(entry, store_path(entry), ";".join(f"{name}={value}" for name, value in parts.items()))
        row = known.get(entry.scan)
        if only == "failed":
            failed = row is not None and row["status"] == "failed"
            return Decision(job, failed, "failed before" if failed else "not asked for")
        return Decision(job, *_whether_to_run(row, job, out, retry_failed=retry_failed))

    def decisions(entries: Sequence[Entry]) -> list[Decision]:
        return [decision(entry) for entry in entries]

    with ThreadPoolExecutor(_LOOKERS) as pool:
        return [each for several in pool.map(decisions, _shares(list(cohort.entries()))) for each in several]


def _shares(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Several entries at a time, since giving one to a thread takes longer than looking at a local file."""
    size = max(1, min(_LARGEST_SHARE, len(entries) // (4 * _LOOKERS)))
    return (entries[begin : begin + size] for begin in range(0, len(entries), size))


def _whether_to_run(row: dict[Any, Any] | None, job: Job, out: str, *, retry_failed: bool) -> tuple[bool, str]:
    if row is None:
        return True, "new"
    if row["stamp"] != job.stamp:
        return True, _what_changed(str(row["stamp"]), job.stamp)
    if row["status"] != "done":
        own_fault = row["stage"] != "cluster" or row["error"] in _SET_ASIDE
        return retry_failed or not own_fault, "refused or set aside before" if own_fault else "failed before"
    if row["store"] and not Location(out).child(row["store"], "done.json").exists():
        return True, "its store is not complete"
    return False, "done"


_CHANGES = {
    "input": "its file has changed",
    "landmarks": "other landmarks than before",
    "networks": "other networks than before",
    "method": "made by another version of the method",
    "reference": "judged by other reference ranges",
    "template": "aligned to another template",
}
"""Why a scan is processed again, by the part of the stamp that differs."""


def _what_changed(before: str, now: str) -> str:
    """Why the scan of a row with another stamp is processed again.

    >>> _what_changed("input=1:2;method=2", "input=1:2;method=3"), _what_changed("1:2:ab", "input=1:2;method=3")
    ('made by another version of the method', 'made by an earlier version of hypodask')
    """
    old, new = (dict(part.partition("=")[::2] for part in stamp.split(";")) for stamp in (before, now))
    if "method" not in old:
        return "made by an earlier version of hypodask"
    return ", ".join(why for part, why in _CHANGES.items() if old.get(part) != new.get(part))


def input_stamp(path: str) -> str:
    """Size and modification time of a file, which tell later whether it was changed; the file is not read."""
    try:
        size, changed = Location(path).stamp()
    except Exception:
        # A file that cannot be looked at, for whatever reason of the store's library, is refused by the worker.
        return "missing"
    return f"{size}:{changed}"


def _landmarks_stamp(entry: Entry) -> str:
    """Text that changes when manual landmarks are added, corrected or withdrawn; empty without any."""
    if entry.landmarks is None:
        return ""
    given = input_stamp(entry.landmarks) if isinstance(entry.landmarks, str) else ""
    return sha256_of(f"{entry.landmarks} {given}".encode())[:12]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a call of :func:`hypodask.process` would do, for ``print``.

    Examples
    --------
    >>> table = pd.DataFrame({"scan": ["a", "b"], "runs": [True, False], "why": ["new", "done"], "bytes": 1})
    >>> plan = Plan(table, workers=1, seconds_each=8.0, measured_on=5)
    >>> plan.to_run, plan.to_skip, plan.seconds
    (1, 1, 8.0)
    """

    table: pd.DataFrame
    """One row per scan: ``scan, path, runs, why, bytes`` (0 for a file that is missing)."""
    workers: int
    """Worker threads that the estimate is for."""
    seconds_each: float = math.nan
    """Median time of a scan on one worker, from the scans that are done; not-a-number without any."""
    memory_mib: float = math.nan
    """Largest memory of a worker while it processed one of these scans."""
    measured_on: int = 0
    """Number of scans that time and memory come from."""

    @property
    def to_run(self) -> int:
        """Number of scans that would be processed."""
        return int(self.table["runs"].sum())

    @property
    def to_skip(self) -> int:
        """Number of scans that would be skipped."""
        return len(self.table) - self.to_run

    @property
    def input_bytes(self) -> int:
        """Bytes of the files that would be read."""
        return int(self.table.loc[self.table["runs"], "bytes"].sum())

    @property
    def seconds(self) -> float:
        """Time that the run is expected to take; not-a-number before any scan was done."""
        return self.seconds_each * math.ceil(self.to_run / self.workers) if self.to_run else 0.0

    @cached_property
    def reasons(self) -> dict[str, int]:
        """Number of scans for each reason to process or skip them, largest first."""
        return {str(why): int(count) for why, count in self.table["why"].value_counts().items()}

    def __str__(self) -> str:
        gigabytes = self.input_bytes / 1e9
        lines = [
            f"{len(self.table)} scans: {self.to_run} to process ({gigabytes:.2f} GB), {self.to_skip} to skip",
            *(f"  {count} {why}" for why, count in self.reasons.items()),
        ]
        missing = int((self.table["bytes"] == 0).sum())
        if missing:
            lines.append(f"{missing} of the files are missing or empty")
        if self.measured_on:
            basis = f"the {self.measured_on} scans done in this output" if self.measured_on > 1 else "the one scan done"
            lines.append(
                f"about {clock(self.seconds)} on {self.workers} workers: {self.seconds_each:.1f} s a scan and at most "
                f"{self.memory_mib:,.0f} MiB a worker, by {basis}"
            )
        else:
            lines.append("time and memory are not known before a scan was done here: ask for a pilot of a few scans")
        return "\n".join(lines)


def planned(decisions: Iterable[Decision], journal: pd.DataFrame, workers: int) -> Plan:
    """The plan of these decisions; time and memory come from the scans of the journal that are done."""
    rows = [
        (decision.job.entry.scan, decision.job.entry.path, decision.runs, decision.why, _size(decision.job.stamp))
        for decision in decisions
    ]
    table = pd.DataFrame(rows, columns=["scan", "path", "runs", "why", "bytes"])
    done = journal[journal["status"] == "done"] if len(journal) else journal
    if not len(done):
        return Plan(table, workers)
    memory = done["peak_memory_mib"].max() if "peak_memory_mib" in done else math.nan
    return Plan(table, workers, float(done["seconds"].median()), float(memory), len(done))


def _size(stamp: str) -> int:
    size = stamp.removeprefix("input=").partition(":")[0]
    return int(size) if size.isdecimal() else 0
