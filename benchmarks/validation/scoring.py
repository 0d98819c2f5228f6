"""What a method said of a scan, against the truth."""

from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np
import pandas as pd
from numpy import ndarray

import hypodask
from benchmarks.validation.posing import Head, frame, tilt_deg
from hypodask.core.errors import HypodaskError
from hypodask.core.grid import transform_points
from hypodask.scan import Scan

GROSS_MM, GROSS_DEG = 3.0, 3.0
"""An AC, PC or angle further off is a gross failure; one that is not flagged is a silent one."""


@dataclass(frozen=True)
class Task:
    """One call of a worker: all methods on one pose."""

    part: str
    head: str
    """Name of a published head, or path of a real scan below the data folder."""
    number: int
    """Of the pose; it is the seed too."""
    ants: bool = False
    case: str = ""
    """What was done to the head, for hard cases."""

    @property
    def key(self) -> tuple[str, int, str]:
        """What a row of this task is found by."""
        return self.head, self.number, self.case


@dataclass(frozen=True, eq=False)
class Found:
    """What a method said of one scan."""

    ac_mm: ndarray
    pc_mm: ndarray
    acpc_from_scanner: ndarray


def align(scan: Scan) -> tuple[Found | None, dict[str, object]]:
    """The alignment of a scan, None if it is refused, and the columns that say so."""
    clock = Clock()
    try:
        alignment = hypodask.align(scan)
    except HypodaskError as err:
        said = str(err).removeprefix(f"{scan.source}: ")
        return None, {"failed": type(err).__name__, "warnings": said, **clock.row()}
    row: dict[str, object] = {"failed": "", **clock.row(), "flagged": bool(alignment.flagged)}
    row |= {"warnings": " ".join(alignment.warnings), "score": round(alignment.score, 4)}
    if hasattr(alignment, "error_mm"):
        row["error_mm"] = round(float(alignment.error_mm), 4)
    return Found(alignment.ac_mm, alignment.pc_mm, alignment.acpc_from_scanner), row


class Clock:
    """Seconds since it was made: on the wall, and of this process's cores, which a busy machine does not stretch."""

    def __init__(self) -> None:
        self.start = perf_counter(), process_time()

    def row(self) -> dict[str, object]:
        """Both, as columns."""
        now = perf_counter(), process_time()
        wall, cpu = (round(b - a, 3) for a, b in zip(self.start, now, strict=True))
        return {"seconds": wall, "cpu_seconds": cpu}


def compared(found: Found, ac_mm: ndarray, pc_mm: ndarray, acpc_from_scanner: ndarray) -> dict[str, object]:
    """Errors against the truth: distances, their components in the true frame, and signed angles."""
    columns: dict[str, float] = {}
    for name, here, there in (("ac", found.ac_mm, ac_mm), ("pc", found.pc_mm, pc_mm)):
        error = acpc_from_scanner[:3, :3] @ (here - there)
        columns[f"{name}_error_mm"] = float(np.linalg.norm(error))
        columns |= {f"{name}_{axis}_mm": float(e) for axis, e in zip("xyz", error, strict=True)}
    angles = tilt_deg(acpc_from_scanner @ np.linalg.inv(found.acpc_from_scanner))
    columns |= {f"{name}_error_deg": angle for name, angle in zip(("pitch", "roll", "yaw"), angles, strict=True)}
    return {name: round(value, 4) for name, value in columns.items()}


ERRORS = ("ac_error_mm", "pc_error_mm", "pitch_error_deg", "roll_error_deg", "yaw_error_deg")


def is_gross(table: pd.DataFrame) -> pd.Series:
    """Which rows are further off than 3 mm or 3 degrees; False where nothing was answered."""
    gross = [table[name].abs() > (GROSS_MM if name.endswith("mm") else GROSS_DEG) for name in ERRORS]
    return pd.concat(gross, axis=1).any(axis=1)


def carried(head: Head, moved_from_scanner: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """AC, PC and frame of a head after a move, which may be a reflection: then left and right change names."""
    above = transform_points(np.linalg.inv(head.acpc_from_scanner), np.array([0.0, 0.0, 50.0]))
    ac, pc, above = transform_points(moved_from_scanner, np.array([head.ac_mm, head.pc_mm, above]))
    anterior = transform_points(np.linalg.inv(head.acpc_from_scanner), np.array([0.0, 50.0, 0.0]))
    anterior = transform_points(moved_from_scanner, anterior)
    return ac, pc, frame(ac, pc, np.cross(anterior - ac, above - ac))


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines = [table.columns.tolist(), ["---"] * len(table.columns), *table.to_numpy(str).tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
