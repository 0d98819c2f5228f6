"""Every file of an output changed, cut short, swapped with its older version or removed, against every reader.

A module of its own, so that workers can import the stand-in for the method.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed import Client

from hypodask.cluster.processing import _process
from hypodask.core.errors import HypodaskError
from hypodask.core.grid import Grid, slab_grid
from hypodask.core.row import Row
from hypodask.core.structures import HYPOTHALAMUS_SIDES, ICV
from hypodask.report import page
from hypodask.scan import Scan
from hypodask.storage.store import mark_done, write_label_map, write_record, write_scan
from hypodask.study.cohort import Cohort
from hypodask.study.results import open_results, verify
from hypodask.study.runs import keep_log, status

SCANS = 2

WRITERS = ("report", "process")
"""Readers that write too."""


def stand_in(path: str, *, scan: str, out: str, store: str, models: object, stamp: str) -> Row:
    """A stand-in for the method: a store with everything in it that one has, small."""
    url, number = f"{out}/{store}", int(scan[4:])
    grid = Grid((12, 12, 12), np.diag([16.0, 16.0, 16.0, 1.0]), "scanner")
    voxels = np.random.default_rng(number).integers(0, 100, grid.shape).astype(np.uint8)
    write_scan(url, Scan(voxels, grid))
    slab = Grid((8, 8, 8), slab_grid().space_from_vox, "acpc")
    write_label_map(url, "hypothalamus_slab", (voxels[:8, :8, :8] % 3).astype(np.uint8), slab, HYPOTHALAMUS_SIDES)
    write_label_map(url, "icv_scan", (voxels > 20).astype(np.uint8), grid, ICV)
    write_record(url, "alignment", {"acpc_from_scanner": np.eye(4)})
    volumes = {"hypothalamus": 900.0 + number, "icv": 1.5e6 + number}
    row = Row(scan, "done", volume_mm3=volumes, store=store, quality=0.9, model=Path(path).read_text())
    mark_done(url, {"scan": scan, "stamp": stamp, "row": row.as_dict()})
    keep_log(out, scan, f"{scan} was done")
    return row


class Output:
    """A finished output, its older state, and what every reader says of it."""

    def __init__(self, folder: Path, client: Client, patch: pytest.MonkeyPatch) -> None:
        self.client, self.out = client, folder / "out"
        self._spoilt = folder / "spoilt"
        patch.setattr(page, "render", shown)
        self.cohort = cohort_in(folder / "scans", "first")
        self._process(self.out)
        page.write_report(str(self.out))
        self.older = folder / "older"
        shutil.copytree(self.out, self.older)
        # Other files, so that every scan is made anew, its store and log too; and other covariates.
        table = cohort_in(folder / "scans", "second").table
        self.cohort = Cohort(table.assign(age=table["age"] + 1))
        self._process(self.out)
        page.write_report(str(self.out))
        self.readers: dict[str, Callable[[Path], Any]] = {
            "open_results": lambda out: open_results(str(out)),
            "status": lambda out: status(str(out)),
            "report": self._report,
            "verify": lambda out: verify(str(out)),
            "process": self._process,
        }
        self.sound = {name: read(self._copy()) for name, read in self.readers.items()}
        assert self.sound["verify"] == []

    def _process(self, out: Path) -> xr.Dataset:
        return _process(self.cohort, str(out), self.client, progress=False, method=stand_in, load=None)

    @staticmethod
    def _report(out: Path) -> str:
        page.write_report(str(out))
        return (out / "report.html").read_text()

    def _copy(self) -> Path:
        """The output anew, as links: nothing of ours writes into a file that is there."""
        shutil.rmtree(self._spoilt, ignore_errors=True)
        return Path(shutil.copytree(self.out, self._spoilt, copy_function=os.link))

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.out).as_posix() for path in self.out.rglob("*") if path.is_file())

    def spoil(self, flips: int, seed: int) -> Iterator["Spoilt"]:
        """Each file in each way, one at a time."""
        chance = np.random.default_rng(seed)
        for name in self.files():
            content, older = (self.out / name).read_bytes(), self.older / name
            ways: dict[str, bytes | None] = {
                f"bit {n}": flipped(content, chance) for n in range(flips if content else 0)
            }
            ways |= {"cut short": content[: len(content) // 2], "removed": None}
            if older.exists() and older.read_bytes() != content:
                ways["older"] = older.read_bytes()
            for way, spoilt in ways.items():
                if spoilt != content:
                    yield Spoilt(name, way, spoilt)

    def judge(self, spoilt: "Spoilt", reader: str) -> str:
        """``same``, ``error``, ``told`` (of a page or a list of problems), ``silent difference`` or ``traceback``."""
        copy = self._copy() if reader in WRITERS or not self._spoilt.exists() else self._spoilt
        file, sound = copy / spoilt.name, self.out / spoilt.name
        file.unlink(missing_ok=True)
        if spoilt.content is not None:
            file.write_bytes(spoilt.content)
        try:
            return self._verdict(copy, reader)
        finally:
            if reader in WRITERS:
                shutil.rmtree(copy)
            else:
                file.unlink(missing_ok=True)
                os.link(sound, file)

    def _verdict(self, copy: Path, reader: str) -> str:
        try:
            found = self.readers[reader](copy)
        except HypodaskError as err:
            return "error" if str(err) else "traceback"
        except Exception:
            return "traceback"
        if reader == "verify":
            return "told" if found else "silent difference"
        if equal(found, self.sound[reader]):
            return "same"
        return "told" if reader == "report" and "no pictures: " in found else "silent difference"


class Spoilt(NamedTuple):
    """One file that is not as it was."""

    name: str
    way: str
    content: bytes | None


def sweep(output: Output, readers: tuple[str, ...], *, flips: int, every: int = 1) -> Counter[tuple[str, str]]:
    """How often each reader said what; prints what was wrong."""
    counts: Counter[tuple[str, str]] = Counter()
    for number, spoilt in enumerate(output.spoil(flips, seed=0)):
        if number % 500 == 0:
            print(f"{number} spoilt so far, the next is {spoilt.name}", flush=True)
        for reader in readers if number % every == 0 else ():
            verdict = output.judge(spoilt, reader)
            counts[reader, verdict] += 1
            if verdict in ("silent difference", "traceback"):
                print(f"{reader}: {verdict} where {spoilt.name} was spoilt ({spoilt.way})")
    return counts


def shown(ds: xr.Dataset, pictures: Any, *, reference: str | None = None) -> str:
    """In place of the page: all that it is made of, as text, without the figures that take their time."""
    seen = [text if isinstance(text, str) else repr((text.slices, text.planes)) for text in pictures.values()]
    digits = [
        str([array.tobytes().hex() for array in (one.slices.image, one.slices.label_map)])
        for one in pictures.values()
        if not isinstance(one, str)
    ]
    return "\n".join([ds.to_dataframe().to_csv(), *seen, *digits])


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, xr.Dataset):
        volatile = ["peak_memory_mib", "attempts"]
        return bool(one.drop_vars(volatile).identical(other.drop_vars(volatile)))
    if isinstance(one, pd.DataFrame):
        volatile = ["peak_memory_mib", "attempts"]
        return bool(one.drop(columns=volatile).equals(other.drop(columns=volatile)))
    return bool(one == other)


def flipped(content: bytes, chance: np.random.Generator) -> bytes:
    position = int(chance.integers(8 * len(content)))
    changed = bytearray(content)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def cohort_in(folder: Path, content: str) -> Cohort:
    folder.mkdir(exist_ok=True)
    scans = [f"sub-{number:02d}" for number in range(SCANS)]
    paths = [folder / f"{scan}.nii" for scan in scans]
    for path in paths:
        path.write_text(content)
    given = {"participant_id": scans, "session": "", "run": "", "site": "", "age": range(60, 60 + SCANS)}
    return Cohort(pd.DataFrame({"scan": scans, "path": [str(path) for path in paths], **given}))
