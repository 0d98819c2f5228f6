"""What there is to do: which scans of a cohort are settled, and what the others will take.

A scan is left alone when its row is in the journal, its input file has the size and modification time it had, its row
was made by the same method, networks, reference ranges and template, and its store still has a done-mark. (Hashing
every input again would read the whole study to find that nothing changed; the done-mark holds the sha256 for whoever
wants to.) A scan that was refused (:class:`~hypodask.errors.ScanError`), or set aside because it killed its workers or
never came to an end, stays failed until its file changes or it is asked for. What went wrong for another reason, a full
disk or a defect, is tried again.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import pandas as pd

from hypodask.cohort import Cohort, Entry
from hypodask.location import Location
from hypodask.progress import clock
from hypodask.row import MadeBy
from hypodask.store import store_path

Only = Literal["failed"]
"""Which scans a call is to keep to."""

SET_ASIDE = ("KilledWorker", "ScanTimeoutError")
"""Errors of the cluster that are a scan's own: it would kill or hold up its workers again."""

LOOKERS = 32
"""Files looked at a time; on an object store each look is a round trip. Not tuned."""

LARGEST_SHARE = 64
"""Entries that one of those has at a time, at most."""

DECISIVE = ("stamp", "status", "stage", "error", "store")
"""What of a row tells whether its scan is settled."""


@dataclass(frozen=True)
class Job:
    """One scan to be treated."""

    entry: Entry
    store: str
    """Where its store goes, relative to the output."""
    stamp: str
    """What its input, landmarks and :class:`~hypodask.row.MadeBy` were at planning time; kept in journal and store."""

    def __str__(self) -> str:
        return self.entry.scan


class Decision(NamedTuple):
    """Whether a scan is to run, and why."""

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
    """For every scan of a cohort, in its order, whether it is to run."""
    known: dict[Any, dict[Any, Any]] = journal.reindex(columns=list(DECISIVE)).to_dict("index")

    def decision(entry: Entry) -> Decision:
        parts = {"input": input_stamp(entry.path), **made_by._asdict(), "landmarks": _landmarks_stamp(entry)}
        job = Job(entry, store_path(entry), ";".join(f"{name}={value}" for name, value in parts.items()))
        row = known.get(entry.scan)
        if only == "failed":
            failed = row is not None and row["status"] == "failed"
            return Decision(job, failed, "failed before" if failed else "not asked for")
        return Decision(job, *_settled(row, job, out, retry_failed=retry_failed))

    def decisions(entries: Sequence[Entry]) -> list[Decision]:
        return [decision(entry) for entry in entries]

    with ThreadPoolExecutor(LOOKERS) as pool:
        return [each for several in pool.map(decisions, _shares(list(cohort.entries()))) for each in several]


def _shares(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Some entries at a time, for to hand one to a thread takes longer than to look at a local file."""
    size = max(1, min(LARGEST_SHARE, len(entries) // (4 * LOOKERS)))
    return (entries[begin : begin + size] for begin in range(0, len(entries), size))


def _settled(row: dict[Any, Any] | None, job: Job, out: str, *, retry_failed: bool) -> tuple[bool, str]:
    if row is None:
        return True, "new"
    if row["stamp"] != job.stamp:
        return True, _what_changed(str(row["stamp"]), job.stamp)
    if row["status"] != "done":
        own_fault = row["stage"] != "cluster" or row["error"] in SET_ASIDE
        return retry_failed or not own_fault, "refused or set aside before" if own_fault else "failed before"
    if row["store"] and not Location(out).child(row["store"], "done.json").exists():
        return True, "its store is not complete"
    return False, "done"


CHANGES = {
    "input": "its file has changed",
    "landmarks": "other landmarks than before",
    "networks": "other networks than before",
    "method": "made by another version of the method",
    "reference": "judged by other reference ranges",
    "template": "aligned to another template",
}
"""Why a scan is made anew, by the part of the stamp that differs."""


def _what_changed(before: str, now: str) -> str:
    """Why a row of another stamp is made anew.

    >>> _what_changed("input=1:2;method=2", "input=1:2;method=3"), _what_changed("1:2:ab", "input=1:2;method=3")
    ('made by another version of the method', 'made by an earlier version of hypodask')
    """
    old, new = (dict(part.partition("=")[::2] for part in stamp.split(";")) for stamp in (before, now))
    if "method" not in old:
        return "made by an earlier version of hypodask"
    return ", ".join(why for part, why in CHANGES.items() if old.get(part) != new.get(part))


def input_stamp(path: str) -> str:
    """Size and modification time of a file, to tell later whether it was changed; without reading it."""
    try:
        size, changed = Location(path).stamp()
    except Exception:
        # What cannot be looked at, for any reason that a store's library has, the worker will refuse.
        return "missing"
    return f"{size}:{changed}"


def _landmarks_stamp(entry: Entry) -> str:
    """What changes when landmarks by hand are added, corrected or withdrawn; empty without any."""
    if entry.landmarks is None:
        return ""
    given = input_stamp(entry.landmarks) if isinstance(entry.landmarks, str) else ""
    return hashlib.sha256(f"{entry.landmarks} {given}".encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a call of :func:`hypodask.process` would do; ``print`` it.

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
    """Median time of a scan on one worker, from scans that were done already; not-a-number without any."""
    memory_mib: float = math.nan
    """Most memory that a worker had while it had one of them."""
    measured_on: int = 0
    """How many scans time and memory are from."""

    @property
    def to_run(self) -> int:
        """Number of scans that would be processed."""
        return int(self.table["runs"].sum())

    @property
    def to_skip(self) -> int:
        """Number of scans that would be left alone."""
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
        """Scans by why they would run or be left alone, most first."""
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
    """The plan of what was decided, its time and memory by the scans of the journal that were done."""
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
