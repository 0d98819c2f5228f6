"""A study of 100,000 scans whose work takes no time: what the engine itself costs, and whether its memory is flat.

Scheduler and workers are processes of their own on this machine. The scans are empty files, since planning looks at
each; a stand-in gives a row as large as a real one without reading anything. Memory is looked at every second, and the
scans done are those whose rows are in the journal, so in steps of one of its parts. CPU time is kept too: on a machine
that has other work it says more than the time of day.
"""

import argparse
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil

import hypodask
from benchmarks.validation.standins import quick_row, separate_cluster
from hypodask import stats
from hypodask.cluster.processing import _process
from hypodask.storage.journal import PART_ROWS, read_journal
from hypodask.study.results import assemble, finalise, open_results

SECONDS_BETWEEN_LOOKS = 1.0
GROUPS = ("control", "PLS", "ALS")
FOLDER_FILES = 1000
MIB = 2**20


def study(folder: Path, scans: int) -> hypodask.Cohort:
    """Empty files, a thousand in a folder, and what a table of participants says of them."""
    names = [f"sub-{number:06d}" for number in range(scans)]
    paths = [folder / f"{number // FOLDER_FILES:03d}" / f"{name}.nii" for number, name in enumerate(names)]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    random = np.random.default_rng(0)
    return hypodask.Cohort(
        pd.DataFrame(
            {
                "scan": names,
                "path": [str(path) for path in paths],
                "participant_id": names,
                "session": "",
                "run": "",
                "site": "",
                "group": random.choice(GROUPS, scans),
                "sex": random.choice(["F", "M"], scans),
                "age_years": random.normal(60, 10, scans).round(1),
            }
        )
    )


class Watch:
    """Looks at memory and CPU time of processes and at the journal once a second, in a thread."""

    def __init__(self, processes: dict[str, psutil.Process], journal: Path) -> None:
        self._processes, self._journal = processes, journal
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_again_and_again, daemon=True)
        self._began = perf_counter()
        self.seen: list[dict[str, float]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look from now on, until the context is left."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            self._look()

    def _look_again_and_again(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        parts = len(list(self._journal.glob("*.parquet")))
        memory = {f"{name}_mib": process.memory_info().rss / MIB for name, process in self._processes.items()}
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        busy = {f"{name}_cpu_seconds": one.user + one.system for name, one in times.items()}
        self.seen.append({"seconds": perf_counter() - self._began, "scans": parts * PART_ROWS, **memory, **busy})


class Stopwatch:
    """Seconds of each named step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What the function returns; its time is kept."""
        began = perf_counter()
        result = function(*args, **options)
        self.seconds[name] = perf_counter() - began
        print(f"{name}: {self.seconds[name]:.2f} s", flush=True)
        return result


def measured(folder: Path, scans: int, workers: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Memory over time, and the seconds of each step."""
    clock, out = Stopwatch(), str(folder / "out")
    cohort = clock.time("make the study", study, folder / "scans", scans)
    with separate_cluster(workers) as (client, scheduler, others):
        started = {f"worker_{number}": process for number, process in enumerate(others)}
        watch = Watch({"client": psutil.Process(), "scheduler": scheduler, **started}, Path(out, "journal"))
        options = {"method": quick_row, "load": None, "progress": False}
        with watch.watching():
            results = clock.time("process", _process, cohort, out, client, **options)
        again = clock.time("process again (nothing to do)", _process, cohort, out, client, **options)
    if not (results["status"] == "done").all() or not again.identical(results):
        raise RuntimeError(f"not every scan is done, or the second call differs: {results['reason'].to_numpy()[:3]}")
    rows = clock.time("read the journal", read_journal, out)
    dataset = clock.time("assemble", assemble, cohort.table, rows)
    clock.time("finalise", finalise, str(folder / "copy"), dataset)
    clock.time("open the results", open_results, out)
    clock.time("statistics of the paper", stats.paper, dataset)
    return pd.DataFrame(watch.seen), clock.seconds


def draw(looks: pd.DataFrame, path: Path) -> None:
    """Memory over scans done, one line for each process."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    running = looks[looks["scans"] < looks["scans"].max()]
    for column in [name for name in looks if name.endswith("_mib")]:
        axes.plot(running["scans"], running[column], label=column.removesuffix("_mib").replace("_", " "))
    axes.set(xlabel="scans done", ylabel="resident memory, MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summary(looks: pd.DataFrame, seconds: dict[str, float], scans: int, workers: int) -> str:
    """The figures that count, one line each."""
    growth, names = growth_per_scan(looks), [name.removesuffix("_mib") for name in looks if name.endswith("_mib")]
    lines = [
        f"{scans} scans, {workers} workers, {psutil.cpu_count()} cores, {platform.machine()}",
        f"the whole call: {1000 * seconds['process'] / scans:.3f} ms a scan",
        f"while scans run: {each(looks, 'seconds'):.3f} ms a scan",
        *(f"{name}: {each(looks, f'{name}_cpu_seconds'):.3f} ms of CPU time a scan" for name in names),
        *(f"{name}: {value:.2f} s" for name, value in seconds.items()),
        *(f"{name}: grows by {value:.3f} KiB a scan in the second half" for name, value in growth.items()),
        *(f"{name}: at most {looks[name].max():.0f} MiB" for name in growth),
    ]
    return "\n".join(lines)


def each(looks: pd.DataFrame, column: str) -> float:
    """Thousandths of a column's seconds for each scan, from the first part of the journal that was seen to the last.

    The time of day is that of a machine which may have other work; CPU time is not.
    """
    first, last = (looks[looks["scans"] >= scans].iloc[0] for scans in (1, looks["scans"].max()))
    return float(1000 * (last[column] - first[column]) / max(1, last["scans"] - first["scans"]))


def growth_per_scan(looks: pd.DataFrame) -> dict[str, float]:
    """KiB of memory for each further scan, by a line through the second half of the run; NaN for a short run."""
    late = looks[(looks["scans"] >= looks["scans"].max() / 2) & (looks["scans"] < looks["scans"].max())]
    names = [name for name in looks if name.endswith("_mib")]
    if late["scans"].nunique() < 3:
        return dict.fromkeys(names, float("nan"))
    return {name: 1024 * float(np.polyfit(late["scans"], late[name], 1)[0]) for name in names}


def main() -> None:
    """Measure, write table and picture, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--scans", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="hypodask-bench-") as folder:
        looks, seconds = measured(Path(folder), options.scans, options.workers)
    looks.to_csv(options.out / "scale_memory.tsv", sep="\t", index=False, float_format="%.2f")
    draw(looks, options.out / "scale_memory.png")
    text = summary(looks, seconds, options.scans, options.workers)
    (options.out / "scale_summary.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
