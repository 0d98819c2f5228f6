"""Seconds of one alignment on one core, and how often XLA compiles, over scans of twenty shapes."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pandas as pd

import hypodask
from benchmarks.validation import ants_peer
from benchmarks.validation.posing import COLIN, MNI, Ranges, draw_pose, published_head, repose
from benchmarks.validation.scoring import Clock, Task, align
from hypodask.scan import Scan

POSED = 6
"""Re-posed heads in the cohort, of voxel sizes from 0.7 to 1.5 mm."""

REAL_SCANS = ("scans/*", "scans_stripped/*", "scans_thick/*.nii.gz")
OF_2_MM = "scans_2mm/*.nii.gz"
COHORT = 20
FIRST = 5
"""Scans after which a cohort should compile no more."""

BY_ANTS = 3
"""Re-posed heads that ANTs registers too; it takes a minute for each on one core."""

COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """How often, and how long, XLA compiled in this process since it was made."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_: object) -> None:
        if event == COMPILED:
            self.count, self.seconds = self.count + 1, self.seconds + seconds


def speed_tasks(*, ants: bool) -> list[Task]:
    """One task for the whole cohort, since compilations are a process's own."""
    return [Task("speed", "cohort", 0, ants=ants and ants_peer.installed())]


def cohort(folder: Path) -> Iterator[tuple[str, Scan]]:
    """Scans one after the other, as a mixed cohort has them."""
    for number in range(POSED):
        name = (COLIN, MNI)[number % 2]
        head = published_head(folder, name)
        yield f"{name} re-posed {number}", repose(head, draw_pose(head, Ranges(), number))[0]
    paths = [path for pattern in REAL_SCANS for path in sorted(folder.glob(pattern))]
    paths = [path for path in paths if path.suffix != ".txt"] + sorted(folder.glob(OF_2_MM))
    for path in paths[: COHORT - POSED]:
        yield path.name, hypodask.read_scan(path)


def run_speed(folder: Path, task: Task) -> Iterator[dict[str, object]]:
    """The cohort twice: as it comes, then again with everything compiled; there ANTs takes some of the scans too."""
    compilations = Compilations()
    for run in ("first", "second"):
        for place, (name, scan) in enumerate(cohort(folder)):
            _ = scan.data
            before = compilations.count, compilations.seconds
            _, said = align(scan)
            new, seconds = compilations.count - before[0], compilations.seconds - before[1]
            shape = {
                "shape": "x".join(map(str, scan.grid.shape)),
                "compiled": new,
                "compile_seconds": round(seconds, 2),
            }
            yield {"method": "hypodask", "run": run, "place": place, "scan": name, **said, **shape}
            if task.ants and run == "second" and place < BY_ANTS:
                clock = Clock()
                ants_peer.find_commissures(scan, folder, name.partition(" ")[0], place)
                yield {"method": "ants affine", "run": run, "place": place, "scan": name, "failed": "", **clock.row()}


def summarize_speed(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each run, and compilations before and after the first five scans."""
    return pd.DataFrame(
        [
            {
                "method": method,
                "run": run,
                "scans": len(group),
                "first_call_seconds": round(group["seconds"].iloc[0], 2),
                "seconds_median": round(group["seconds"].median(), 2),
                "seconds_max": round(group["seconds"].max(), 2),
                "cpu_seconds_median": round(group["cpu_seconds"].median(), 2),
                "cpu_seconds_max": round(group["cpu_seconds"].max(), 2),
                "compilations": int(group["compiled"].fillna(0).sum()),
                "compile_seconds": round(group["compile_seconds"].fillna(0).sum(), 1),
                f"compilations_after_{FIRST}": int(group.loc[group["place"] >= FIRST, "compiled"].fillna(0).sum()),
            }
            for (method, run), group in table.groupby(["method", "run"], sort=False)
        ]
    )
