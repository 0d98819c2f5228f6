"""Metamorphic tests on real scans: change what must not matter, and the volumes stay; scale, and they follow.

Every scan of the folders is measured as it is and after each change of ``invariance_changes.py``. Rows are appended to
OUT/invariance.tsv while it goes on, and a second call with the same OUT goes on where the first one ended. Then two
tables are printed: by change the median and the largest difference, and by scan the exponent of its volumes over the
cube of the factor by which its voxels were made larger.

To measure another version of hypodask with the same changes, run it from a folder that holds nothing but a link to
``benchmarks``, with PYTHONPATH=OTHER, and with another OUT.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

import hypodask
from benchmarks.validation.invariance_changes import CHANGES, EXPONENTS, GROUPS, UNCHANGED
from benchmarks.validation.invariance_outcome import (
    ANSWERED,
    CRASHED,
    DONE,
    FLAGGED,
    REFUSED,
    SKIPPED,
    Task,
    held,
    listed_rows,
    rows_of,
)
from benchmarks.validation.results import add_record_option, write_results
from hypodask.cluster import each

FOLDERS = ("scans", "scans_stripped", "scans_thick", "scans_2mm", "scans_ds000011", "scans_stripped_ds002748")
SUFFIXES = (".nii", ".nii.gz", ".mgz")

COLUMNS = ("folder", "scan", "change", "status", "before", "held")
COLUMNS += ("hypothalamus_percent", "left_percent", "right_percent", "icv_percent", "ac_mm", "pc_mm")
COLUMNS += ("hypothalamus_mm3", "icv_mm3", "quality", "quality_before", "reason", "new_warnings", "cpu_seconds")

FEWEST_SIZES = 3
"""Sizes of a scan that an exponent is computed from."""


def scans_in(data: Path, folders: list[str], most: int | None) -> list[Path]:
    """Scans of the folders in turn, so that a run that is ended early has seen each of them."""
    lists = [sorted(path for path in (data / folder).iterdir() if path.name.endswith(SUFFIXES)) for folder in folders]
    return [path for turn in zip_longest(*(paths[:most] for paths in lists)) for path in turn if path is not None]


def chosen(only: list[str], *, alignment_only: bool) -> list[str]:
    """Names of the changes that were asked for by name or group; the unchanged scan is always one of them."""
    if unknown := set(only) - CHANGES.keys() - set(GROUPS):
        raise SystemExit(f"no change or group {', '.join(sorted(unknown))}; there are {', '.join([*GROUPS, *CHANGES])}")
    asked = [c.name for c in CHANGES.values() if not only or {c.name, c.group, c.group.partition("-")[0]} & set(only)]
    asked = [name for name in asked if not (alignment_only and CHANGES[name].needs_icv)]
    return [UNCHANGED, *(name for name in asked if name != UNCHANGED)]


def tasks_left(paths: list[Path], names: list[str], table: Path, *, alignment_only: bool) -> list[Task]:
    """What is not in the table yet."""
    known = set(read_rows(table)[["folder", "scan", "change"]].itertuples(index=False, name=None))
    tasks = []
    for path in paths:
        left = tuple(name for name in names if (path.parent.name, path.name, name) not in known)
        tasks += [Task(str(path), path.parent.name, left, alignment_only)] if left else []
    return tasks


def read_rows(table: Path) -> pd.DataFrame:
    """The rows that were written so far."""
    if not table.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.read_csv(table, sep="\t", keep_default_na=False, na_values=dict.fromkeys(_numbers(), ""))


def _numbers() -> list[str]:
    return [name for name in COLUMNS if name.endswith(("_percent", "_mm", "_mm3", "_seconds")) or "quality" in name]


def measured_rows(tasks: list[Task], workers: int) -> Iterator[dict[str, object]]:
    """Rows as they come: scan by scan in this process, or several scans at once in workers."""
    if workers <= 1:
        for task in tasks:
            yield from rows_of(task)
    else:
        for outcome in each(listed_rows, tasks, workers=workers):
            yield from outcome.get()


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows judged by today's table of changes, so that another tolerance needs no new measurement."""
    found = [held(CHANGES[str(row["change"])], row) for row in rows.to_dict("records")]
    return rows.assign(held=found)


def append(table: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write each row as soon as it is there."""
    table.parent.mkdir(parents=True, exist_ok=True)
    is_new = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", delimiter="\t", lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})
            file.flush()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if np.isnan(value) else round(value, 4)
    return " ".join(value.split()) if isinstance(value, str) else value


def by_change(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each change: how many scans, what became of them, how much their volumes and commissures moved."""
    lines = []
    for change in CHANGES.values():
        part = rows[rows["change"] == change.name]
        if len(part):
            lines.append({"change": change.name, "goal": change.goal, **_summary(part)})
    return pd.DataFrame(lines)


def _summary(part: pd.DataFrame) -> dict[str, object]:
    """Counts, median and largest difference of some rows."""
    counts = {status: int((part["status"] == status).sum()) for status in (DONE, FLAGGED, REFUSED, CRASHED)}
    line: dict[str, object] = {"n": int((part["status"] != SKIPPED).sum()), **counts}
    line["flagged_before"] = int((part["before"] == FLAGGED).sum())
    line["refused_before"] = int((part["before"] == REFUSED).sum())
    for name in ("hypothalamus", "icv"):
        size = part[f"{name}_percent"].abs()
        line |= {f"{name}_percent_median": size.median(), f"{name}_percent_largest": size.max()}
    line |= {f"{name}_mm_largest": part[f"{name}_mm"].max() for name in ("ac", "pc")}
    judged = part[part["held"] != ""]
    return line | {"held": int((judged["held"] == "yes").sum()), "of": len(judged)}


def exponents(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each scan: the slope of the logarithm of each volume on that of the cube of the factor."""
    sizes = {name: change.volume_factor for name, change in CHANGES.items() if change.group in ("size", UNCHANGED)}
    part = rows[rows["change"].isin(sizes) & rows["status"].isin(ANSWERED)]
    part = part[part["hypothalamus_mm3"].notna()]
    lines = []
    for (folder, scan), one in part.groupby(["folder", "scan"], sort=False):
        if len(one) >= FEWEST_SIZES:
            cube = np.log([sizes[name] for name in one["change"]])
            slopes = {name: _slope(cube, one[f"{name}_mm3"].to_numpy(float)) for name in ("hypothalamus", "icv")}
            lines.append({"folder": folder, "scan": scan, "sizes": len(one), **slopes})
    return pd.DataFrame(lines, columns=["folder", "scan", "sizes", "hypothalamus", "icv"])


def _slope(cube: np.ndarray, volume_mm3: np.ndarray) -> float:
    """Not-a-number unless the volume is known at :data:`FEWEST_SIZES`."""
    known = np.isfinite(volume_mm3)
    return float(np.polyfit(cube[known], np.log(volume_mm3[known]), 1)[0]) if known.sum() >= FEWEST_SIZES else np.nan


def figures_of(rows: pd.DataFrame) -> dict[str, float]:
    """What the pages show: by group of changes, and the exponents. What nobody could measure has no figure."""
    figures: dict[str, float] = {}
    for group in GROUPS:
        part = rows[rows["change"].map(lambda name, group=group: CHANGES[name].group == group)]
        stem = group.replace("-", "_")
        figures |= {f"{stem}_{name}": float(value) for name, value in _summary(part).items()} if len(part) else {}
    table = exponents(rows)
    for name in ("hypothalamus", "icv"):
        slopes = table[name].dropna()
        low, high = EXPONENTS
        figures |= {f"exponent_{name}_{what}": slopes.agg(what) for what in ("median", "min", "max")}
        figures |= {f"exponent_{name}_held": int(slopes.between(low, high).sum()), f"exponent_{name}_of": len(slopes)}
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def show(rows: pd.DataFrame) -> None:
    """Print both tables, and what is not plainly done."""
    table, slopes = by_change(rows), exponents(rows)
    with pd.option_context("display.width", 300, "display.max_columns", None, "display.max_colwidth", 100):
        print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep=""))
        print()
        print(slopes.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep=""))
    print()
    for row in rows[rows["status"].isin([FLAGGED, REFUSED, CRASHED])].itertuples():
        print(f"{row.folder}/{row.scan} {row.change}: {row.status} {row.reason}{row.new_warnings}")


def main() -> None:
    """Measure what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of validation scans")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), help="folders of DATA with scans")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHANGE", help="names or groups of changes")
    parser.add_argument("--scans", type=int, help="only the first so many scans of each folder")
    parser.add_argument("--alignment-only", action="store_true", help="align, and measure no volume")
    parser.add_argument("--workers", type=int, default=1, help="scans at once")
    add_record_option(parser)
    options = parser.parse_args()
    print(f"measures {hypodask.__file__}", flush=True)
    table = options.out / ("invariance_alignment.tsv" if options.alignment_only else "invariance.tsv")
    names = chosen(options.only, alignment_only=options.alignment_only)
    paths = scans_in(options.data, options.folders, options.scans)
    tasks = tasks_left(paths, names, table, alignment_only=options.alignment_only)
    append(table, measured_rows(tasks, options.workers))
    rows = judged(read_rows(table))
    show(rows)
    if options.record:
        seen = rows.drop_duplicates(["folder", "scan"])["folder"].value_counts(sort=False)
        data = ", ".join(f"{count} of {folder}" for folder, count in seen.items())
        what = "Volumes and poses after changes that must not matter, and after rescaled headers"
        write_results(table.stem, figures_of(rows), what=what, data=data)


if __name__ == "__main__":
    main()
