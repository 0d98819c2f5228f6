"""Small scans, a stand-in for the pipeline that really reads and writes them, and what can go wrong meanwhile.

A module of its own, so that workers and other processes can import it.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

import hypodask.storage.journal
from hypodask.cluster.processing import _process
from hypodask.core.row import Row
from hypodask.scan import read_scan
from hypodask.storage.store import mark_done, write_scan
from hypodask.study.cohort import Cohort

STORE_ERRORS = 0.05
"""Share of attempts that end in an error of the disk, in the middle of a store."""

SEED = 10
"""One with which no more and no fewer first attempts end so, of the first 60 scans as of 200."""

OUT_OF_MEMORY = "sub-017"
"""This scan asks for more memory than its worker has, the first time."""

WORKER_BYTES = 1200 * 2**20
PATIENCE_SECONDS = 300.0
UNSTEADY = ("seconds", "host", "attempts", "peak_memory_mib")
"""What may differ between two runs of the same scans."""


def small_study(folder: Path, scans: int) -> Cohort:
    """Heads of 32 x 32 x 32 voxels, each with noise of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"sub-{number:03d}" for number in range(scans)]
    for number, name in enumerate(names):
        nib.save(nib.Nifti1Image(_head(number), np.diag([6.0, 6.0, 6.0, 1.0])), folder / f"{name}_T1w.nii")
    paths = [str(folder / f"{name}_T1w.nii") for name in names]
    given = {"participant_id": names, "session": "", "run": "", "site": "", "group": "control"}
    return Cohort(pd.DataFrame({"scan": names, "path": paths, **given}))


def _head(seed: int) -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij")
    ball = sum(axis**2 for axis in axes) < 0.6
    return (ball * 150 + np.random.default_rng(seed).integers(0, 50, ball.shape)).astype(np.uint8)


class Call(NamedTuple):
    """One call of the stand-in."""

    scan: str
    process: int
    was_done: bool
    """Whether the store of the scan had its done-mark as the call began."""


def calls(out: str | Path) -> list[Call]:
    """What the stand-in was called for, in order."""
    log = Path(out, "calls.txt")
    lines = log.read_text().splitlines() if log.exists() else []
    return [Call(scan, int(process), was_done == "True") for scan, process, was_done in map(str.split, lines)]


def stand_in(
    path: str, *, scan: str, out: str, store: str, models: object, stamp: str = "", disturbed: bool = False
) -> Row:
    """Read the scan, write its store, and take volumes that depend on every voxel."""
    url = f"{out}/{store}"
    with Path(out, "calls.txt").open("a") as log:
        log.write(f"{scan} {os.getpid()} {Path(url, 'done.json').exists()}\n")
    attempt = sum(call.scan == scan for call in calls(out))
    if disturbed and scan == OUT_OF_MEMORY and attempt == 1:
        _hoard()
    found = read_scan(path)
    write_scan(url, found)
    if disturbed and disk_fails(scan, attempt):
        raise OSError(errno.EIO, "Input/output error")
    tissue = np.tanh(found.data / 100)
    volumes = {"icv": float(tissue.sum()), "hypothalamus": float((tissue**2).mean())}
    row = Row(scan, "done", volume_mm3=volumes, store=store, sha256=found.sha256, seconds=time.perf_counter())
    mark_done(url, {"scan": scan, "stamp": stamp, "row": row.as_dict()})
    return row


def disk_fails(scan: str, attempt: int) -> bool:
    """Whether this attempt at a scan ends in an error of the disk."""
    return bool(np.random.default_rng([SEED, int(scan[4:]), attempt]).random() < STORE_ERRORS)


def _hoard() -> None:
    """Take more memory than the worker has, and wait for its end."""
    hoard = np.ones(WORKER_BYTES // 8)
    time.sleep(PATIENCE_SECONDS)
    raise AssertionError(f"nobody ended a worker with {hoard.nbytes} bytes too many")


def steady(results: xr.Dataset) -> xr.Dataset:
    """Results without what may differ between two runs."""
    return results.drop_vars([name for name in UNSTEADY if name in results])


@contextmanager
def killer(out: str, kills: int, scans: int, seed: int = 0) -> Iterator[list[int]]:
    """Kill workers at random moments of the first two thirds, never twice while they have the same scan; whom."""
    chance, over = np.random.default_rng(seed), threading.Event()
    killed: list[int] = []

    def kill() -> None:
        hit = set()
        for moment in sorted(chance.choice(scans * 2 // 3, kills, replace=False)):
            while not over.wait(chance.uniform(0.005, 0.05)):
                begun = calls(out)
                if len(begun) > moment and begun[-1].scan not in hit and begun[-1].process not in killed:
                    hit.add(begun[-1].scan)
                    killed.append(begun[-1].process)
                    os.kill(begun[-1].process, signal.SIGKILL)
                    break

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait, but not for ever."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_SECONDS} s"
        time.sleep(0.01)


def run_client(table: str, out: str, part_rows: int) -> None:
    """What a client in a process of its own does: a run on a worker of its own, with small parts of the journal."""
    hypodask.storage.journal.PART_ROWS = part_rows
    _process(Cohort(pd.read_parquet(table)), out, workers=1, progress=False, method=stand_in, load=None)


@contextmanager
def python(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Python that finds this module, ended with the context."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    begun = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield begun
    finally:
        begun.kill()
        begun.wait()


disturbed_stand_in = partial(stand_in, disturbed=True)
