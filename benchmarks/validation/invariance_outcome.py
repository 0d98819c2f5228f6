"""What hypodask says of a scan after a change, beside what it said before."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from numpy import ndarray

import hypodask
from benchmarks.validation.invariance_changes import CHANGES, EXPONENTS, SIDES_PERCENT, UNCHANGED, Change, Subject

HYPOTHALAMUS, ICV = "hypothalamus", "icv"
SIDES = ("hypothalamus_left", "hypothalamus_right")

DONE, FLAGGED, REFUSED, CRASHED, SKIPPED = "done", "flagged", "refused", "crashed", "skipped"
ANSWERED = (DONE, FLAGGED)

NAN_MM = (float("nan"),) * 3


@dataclass(frozen=True, eq=False)
class Outcome:
    """What hypodask says of one scan."""

    status: str
    """``done``, ``flagged``, ``refused``, ``crashed`` (an error that is not one of hypodask's own) or ``skipped``."""
    reason: str = ""
    """Why there is no result."""
    volume_mm3: dict[str, float] | None = None
    """By structure and side; None where it was only aligned, or there is no result."""
    ac_mm: ndarray | tuple[float, ...] = NAN_MM
    pc_mm: ndarray | tuple[float, ...] = NAN_MM
    quality: float = float("nan")
    warnings: tuple[str, ...] = ()
    icv: ndarray | None = None
    """Mask on the voxels of the scan."""


@dataclass(frozen=True)
class Task:
    """One scan and the changes that are still to be made to it."""

    path: str
    folder: str
    changes: tuple[str, ...]
    alignment_only: bool = False


def outcome_of(scan: hypodask.Scan, networks: Sequence[Any] | None) -> Outcome:
    """Measure a scan, or only align it where no networks are given."""
    try:
        if networks is None:
            alignment, measured = hypodask.align(scan), None
        else:
            measured = hypodask.measure_scan(scan, networks)
            alignment = measured.alignment
    except hypodask.HypodaskError as err:
        return Outcome(REFUSED, f"{type(err).__name__}: {str(err).removeprefix(f'{scan.source}: ')}")
    except Exception as err:  # a bare traceback is a finding too
        return Outcome(CRASHED, f"{type(err).__name__}: {err}")
    status, ac_mm, pc_mm = FLAGGED if alignment.flagged else DONE, alignment.ac_mm, alignment.pc_mm
    if measured is None:
        return Outcome(status, "", None, ac_mm, pc_mm, warnings=alignment.warnings)
    volumes, icv = dict(measured.volume_mm3), measured.label_maps[ICV] > 0
    return Outcome(status, "", volumes, ac_mm, pc_mm, measured.quality.score, measured.warnings, icv)


def compared(change: Change, grid: hypodask.Grid, before: Outcome, after: Outcome) -> dict[str, object]:
    """The columns of one change: status, changes in %, movements in mm, quality, new warnings, whether it held."""
    back = np.eye(4) if change.move is None else np.linalg.inv(change.move(grid))
    row: dict[str, object] = {
        "status": after.status,
        "before": before.status,
        "hypothalamus_percent": _percent(change, before, after, HYPOTHALAMUS),
        "left_percent": _percent(change, before, after, SIDES[0]),
        "right_percent": _percent(change, before, after, SIDES[1]),
        "icv_percent": _percent(change, before, after, ICV),
        "ac_mm": _distance(back, before.ac_mm, after.ac_mm),
        "pc_mm": _distance(back, before.pc_mm, after.pc_mm),
        "hypothalamus_mm3": (after.volume_mm3 or {}).get(HYPOTHALAMUS, np.nan),
        "icv_mm3": (after.volume_mm3 or {}).get(ICV, np.nan),
        "quality": after.quality,
        "quality_before": before.quality,
        "reason": after.reason,
        "new_warnings": " ".join(new_sentences(before.warnings, after.warnings)),
    }
    return row | {"held": held(change, row)}


def held(change: Change, row: dict[str, Any]) -> str:
    """``yes``, or what did not hold; empty where there is nothing to compare with."""
    if row["before"] not in ANSWERED or row["status"] == SKIPPED or change.name == UNCHANGED:
        return ""
    if row["status"] == REFUSED and change.may_refuse:
        return "yes"
    if row["status"] not in ANSWERED:
        return str(row["status"])
    wrong = [FLAGGED] if row["status"] == FLAGGED and row["before"] == DONE else []
    if change.within_mm is not None and max(row["ac_mm"], row["pc_mm"]) > change.within_mm:
        wrong.append("pose")
    if change.is_measured and np.isfinite(row["hypothalamus_mm3"]):
        wrong += [] if _follows(change, row["hypothalamus_percent"]) else [HYPOTHALAMUS]
        explained = change.icv_may_be_missing and np.isnan(row["icv_mm3"]) and row["new_warnings"]
        wrong += [] if explained or _follows(change, row["icv_percent"]) else [ICV]
        sides = max(abs(row["left_percent"]), abs(row["right_percent"]))
        wrong += ["sides"] if change.swaps_sides and not sides <= SIDES_PERCENT else []
    return ", ".join(wrong) or "yes"


def _follows(change: Change, percent: float) -> bool:
    """Whether a volume, after what is expected of it, differs by no more than is allowed; not-a-number does not."""
    if change.percent is not None:
        return abs(percent) <= change.percent
    low, high = EXPONENTS
    return low <= 1 + np.log1p(percent / 100) / np.log(change.volume_factor) <= high


def new_sentences(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Warnings that appeared; a sentence with other numbers is not a new one."""
    known = {_without_numbers(sentence) for sentence in before}
    return [sentence for sentence in after if _without_numbers(sentence) not in known]


def _without_numbers(sentence: str) -> str:
    return re.sub(r"-?\d+(\.\d+)?", "#", sentence)


def _percent(change: Change, before: Outcome, after: Outcome, name: str) -> float:
    """Change of a volume against what the change should make of it."""
    other = dict(zip(SIDES, SIDES[::-1], strict=True)).get(name, name) if change.swaps_sides else name
    if not before.volume_mm3 or not after.volume_mm3:
        return float("nan")
    expected = change.volume_factor * before.volume_mm3.get(other, np.nan)
    return round(100 * (after.volume_mm3.get(name, np.nan) / expected - 1), 4)


def _distance(back: ndarray, before_mm: Sequence[float] | ndarray, after_mm: Sequence[float] | ndarray) -> float:
    """Distance of two points after the second was carried back, mm."""
    carried = back[:3, :3] @ np.asarray(after_mm) + back[:3, 3]
    return round(float(np.linalg.norm(carried - np.asarray(before_mm))), 4)


@lru_cache(maxsize=1)
def _networks() -> tuple[Any, ...]:
    return hypodask.load_models()


def rows_of(task: Task) -> Iterator[dict[str, object]]:
    """One row for each change of a scan; a scan that was begun before is measured unchanged once more."""
    names = {"folder": task.folder, "scan": Path(task.path).name}
    try:
        scan = hypodask.read_scan(task.path)
    except hypodask.HypodaskError as err:
        yield {**names, "change": UNCHANGED, "status": REFUSED, "before": REFUSED, "held": "", "reason": str(err)}
        return
    networks = None if task.alignment_only else _networks()
    before = outcome_of(scan, networks)
    subject = Subject(scan, before.icv)
    for change in (CHANGES[name] for name in task.changes):
        start = process_time()
        if change.name == UNCHANGED:
            after = before
        elif change.needs_icv and before.icv is None:
            after = Outcome(SKIPPED, "the unchanged scan has no ICV mask")
        else:
            after = outcome_of(change.apply(subject), networks if change.is_measured else None)
        columns = compared(change, scan.grid, before, after)
        yield names | {"change": change.name} | columns | {"cpu_seconds": round(process_time() - start, 2)}


def listed_rows(task: Task) -> list[dict[str, object]]:
    """The rows of a scan at once, for a worker."""
    return list(rows_of(task))
