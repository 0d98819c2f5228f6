"""How well AC-PC alignment does: accuracy, repeatability, hard cases, speed, pictures.

::

    python -m benchmarks.validation.alignment_accuracy DATA OUT [--only accuracy repeatability hard speed pictures]

DATA is the folder of validation scans (``scans/``, ``template/``, ``landmarks/``, ...). Each part writes a table
``OUT/<part>.tsv`` with a row for every alignment, row by row, and goes on where an earlier run was stopped; its
summary goes to ``OUT/<part>_summary.tsv`` and ``OUT/summary.md``. Every worker has one core and one thread.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray

import hypodask
from benchmarks.validation import ants_peer
from benchmarks.validation.alignment_hard import hard_figures, hard_tasks, run_hard, summarize_hard
from benchmarks.validation.alignment_pictures import picture_tasks, run_pictures
from benchmarks.validation.alignment_speed import run_speed, speed_tasks, summarize_speed
from benchmarks.validation.posing import (
    COLIN,
    IMAGES,
    MILD,
    MNI,
    Head,
    Ranges,
    draw_pose,
    published_head,
    real_head,
    repose,
    tilt_deg,
)
from benchmarks.validation.results import add_record_option, write_results
from benchmarks.validation.scoring import ERRORS, Clock, Found, Task, align, carried, compared, is_gross, markdown
from hypodask.core.grid import transform_points
from recipes.commissures import rated_commissures_mm

PARTS = ("accuracy", "repeatability", "hard", "speed", "pictures")

REAL_SCANS = ("scans/*", "scans_stripped/*", "scans_thick/*.nii.gz", "scans_2mm/*.nii.gz")

ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}


# --- Accuracy --------------------------------------------------------------------------------------------------------


def accuracy_tasks(options: argparse.Namespace) -> list[Task]:
    """Poses of both published heads, those that ANTs is run on too spread among them."""
    every = max(1, 2 * options.poses // options.ants) if options.ants and ants_peer.installed() else 0
    return [
        Task("accuracy", name, number, ants=bool(every) and (2 * number + which) % every == 0)
        for number in range(options.poses)
        for which, name in enumerate((COLIN, MNI))
    ]


def run_accuracy(folder: Path, task: Task) -> Iterator[dict[str, object]]:
    """Align one pose; the peer takes the same scan right after."""
    head = published_head(folder, task.head)
    pose = draw_pose(head, Ranges(), task.number)
    scan, moved_from_scanner = repose(head, pose)
    shape = {"shape": "x".join(map(str, scan.grid.shape))}
    found, said = align(scan)
    errors = errors_of(found, head, moved_from_scanner) if found else {}
    yield {"method": "hypodask", **said, **errors, **shape, **pose.row()}
    if task.ants:
        clock = Clock()
        found = Found(*ants_peer.find_commissures(scan, folder, task.head, task.number))
        said = {"failed": "", **clock.row(), "flagged": False}
        errors = errors_of(found, head, moved_from_scanner)
        yield {"method": "ants affine", **said, **errors, **shape, **pose.row()}


def errors_of(found: Found, head: Head, moved_from_scanner: ndarray) -> dict[str, object]:
    """Against the truth carried over; roll and yaw against the plane of the midline's structures alone as well."""
    errors = compared(found, *carried(head, moved_from_scanner))
    true_from_found = head.midline_from_scanner @ np.linalg.inv(found.acpc_from_scanner @ moved_from_scanner)
    _, roll, yaw = tilt_deg(true_from_found)
    return {**errors, "roll_from_midline_deg": round(roll, 4), "yaw_from_midline_deg": round(yaw, 4)}


OTHER_ERRORS = ("ac_from_raters_mm", "pc_from_raters_mm", "roll_from_midline_deg", "yaw_from_midline_deg")
"""Errors against another truth than the published landmarks."""


def summarize_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Median, 95th percentile and maximum of every error, and how much was flagged, refused or silently wrong."""
    groups = [(keys, group) for keys, group in table.groupby(["method", "head"])]
    groups += [((method, "all"), group) for method, group in table.groupby("method")]
    return pd.DataFrame([_accuracy_line(*keys, group) for keys, group in groups])


def against_raters(table: pd.DataFrame, data: Path) -> pd.DataFrame:
    """Distances from the marks of the two raters as well, who looked at these very images."""
    for name in table["head"].unique():
        head, of_head = published_head(data, name), table["head"] == name
        for landmark, rated, published in zip(
            ("ac", "pc"), rated_commissures_mm(Path(IMAGES[name]).name), (head.ac_mm, head.pc_mm), strict=True
        ):
            columns = [f"{landmark}_{axis}_mm" for axis in "xyz"]
            apart = table.loc[of_head, columns] - head.acpc_from_scanner[:3, :3] @ (rated - published)
            table.loc[of_head, f"{landmark}_from_raters_mm"] = np.linalg.norm(apart, axis=1)
    return table


def _accuracy_line(method: str, head: str, group: pd.DataFrame) -> dict[str, object]:
    answered = group[group["failed"] == ""]
    flagged = answered["flagged"].astype(bool)
    line: dict[str, object] = {"method": method, "head": head, "poses": len(group)}
    for name in (*ERRORS, *OTHER_ERRORS):
        sizes = answered[name].abs()
        line[name] = f"{sizes.median():.2f} / {sizes.quantile(0.95):.2f} / {sizes.max():.2f}"
    unflagged = answered[~flagged]
    line["ac_max_unflagged_mm"] = round(unflagged["ac_error_mm"].max(), 2)
    line["pc_max_unflagged_mm"] = round(unflagged["pc_error_mm"].max(), 2)
    for landmark in ("ac", "pc"):
        middle = answered[[f"{landmark}_{axis}_mm" for axis in "xyz"]].median()
        line[f"{landmark}_bias_xyz_mm"] = " ".join(f"{shift:+.2f}" for shift in middle)
    line["flagged_percent"] = round(100 * len(answered[flagged]) / len(group), 1)
    line["failed_percent"] = round(100 * (1 - len(answered) / len(group)), 1)
    line["gross"] = int(is_gross(answered).sum())
    line["silent_gross"] = int((is_gross(answered) & ~flagged).sum())
    line["seconds_median"], line["cpu_seconds_median"] = group[["seconds", "cpu_seconds"]].median().round(2).tolist()
    return line


def accuracy_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show of hypodask's errors, by head."""
    figures: dict[str, float] = {}
    for head, group in table[table["method"] == "hypodask"].groupby("head"):
        answered = group[group["failed"] == ""]
        for name in (*ERRORS, *OTHER_ERRORS):
            sizes = answered[name].abs()
            figures |= {f"{head}_{name}_median": sizes.median(), f"{head}_{name}_largest": sizes.max()}
            figures[f"{head}_{name}_p95"] = sizes.quantile(0.95)
        for landmark in ("ac", "pc"):
            points = answered[[f"{landmark}_{axis}_mm" for axis in "xyz"]].to_numpy(float)
            spread = np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean())
            figures[f"{head}_{landmark}_sd_mm"] = float(spread)
        figures[f"{head}_flagged"] = int(answered["flagged"].astype(bool).sum())
        figures[f"{head}_refused"] = len(group) - len(answered)
        figures[f"{head}_gross"] = int(is_gross(answered).sum())
    return figures


# --- Repeatability ---------------------------------------------------------------------------------------------------


def repeatability_tasks(options: argparse.Namespace) -> list[Task]:
    """The scan as it is (number 0), then its re-poses."""
    names = real_scans(options)
    return [Task("repeatability", name, number) for name in names for number in range(options.repeats + 1)]


def real_scans(options: argparse.Namespace) -> list[str]:
    """Paths below the data folder."""
    paths = [path for pattern in REAL_SCANS for path in sorted(options.data.glob(pattern))]
    names = [str(path.relative_to(options.data)) for path in paths]
    return [name for name in names if options.match in name]


def run_repeatability(folder: Path, task: Task) -> Iterator[dict[str, object]]:
    """Where the landmarks lie in the scan as it was, and how its frame is turned against the scanner."""
    head = unposed_head(folder / task.head)
    pose = draw_pose(head, MILD, task.number)
    if task.number:
        scan, moved_from_scanner = repose(head, pose)
    else:
        scan, moved_from_scanner = hypodask.read_scan(folder / task.head), np.eye(4)
    found, said = align(scan)
    row = {**said, **pose.row()} if task.number else said
    yield {**row, **_carried_back(found, moved_from_scanner)} if found else row


@lru_cache(maxsize=1)
def unposed_head(path: Path) -> Head:
    """A real scan; kept, since a worker gets the poses of one scan mostly one after the other."""
    return real_head(path)


def _carried_back(found: Found, moved_from_scanner: ndarray) -> dict[str, object]:
    points = transform_points(np.linalg.inv(moved_from_scanner), np.array([found.ac_mm, found.pc_mm]))
    acpc_from_scanner = found.acpc_from_scanner @ moved_from_scanner
    names = [f"{landmark}_{axis}_mm" for landmark in ("ac", "pc") for axis in "xyz"]
    columns = dict(zip(names, points.ravel(), strict=True))
    columns |= {f"turn_{number}": value for number, value in enumerate(acpc_from_scanner[:3, :3].ravel())}
    return {name: round(float(value), 6) for name, value in columns.items()}


def summarize_repeatability(table: pd.DataFrame) -> pd.DataFrame:
    """Spread over the poses of each scan, then over all scans of each folder."""
    scans = pd.DataFrame([_repeatability_line(name, group) for name, group in table.groupby("head", sort=False)])
    spreads = [name for name in scans.columns if name.endswith(("_mm", "_deg"))]
    folders = scans["head"].str.split("/").str[0]
    lines = []
    for folder, group in [*scans.groupby(folders, sort=False), ("all", scans)]:
        counts = {name: int(group[name].sum()) for name in ("poses", "answered", "flagged", "failed")}
        for statistic in ("median", "max"):
            sizes = group[spreads].agg(statistic).round(3).to_dict()
            lines.append({"head": f"{statistic} of {folder} ({len(group)})", **counts, **sizes})
    return pd.concat([pd.DataFrame(lines), scans], ignore_index=True)


def repeatability_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show of the spread, by folder."""
    scans = pd.DataFrame([_repeatability_line(name, group) for name, group in table.groupby("head", sort=False)])
    figures: dict[str, float] = {}
    for folder, group in scans.groupby(scans["head"].str.split("/").str[0]):
        figures |= {f"{folder}_{name}": int(group[name].sum()) for name in ("poses", "answered", "flagged")}
        figures[f"{folder}_refused"] = int(group["failed"].sum())
        for name in ("ac_sd_mm", "pc_sd_mm", "pitch_sd_deg", "roll_sd_deg", "yaw_sd_deg"):
            if len(known := group[name].dropna()):
                figures |= {f"{folder}_{name}_median": known.median(), f"{folder}_{name}_largest": known.max()}
    return figures


def _repeatability_line(name: str, group: pd.DataFrame) -> dict[str, object]:
    answered = group[(group["failed"] == "") & (group["number"] > 0)]
    unposed = group[(group["failed"] == "") & (group["number"] == 0)]
    poses = int((group["number"] > 0).sum())
    line: dict[str, object] = {"head": name, "poses": poses, "answered": len(answered)}
    line["flagged"], line["failed"] = int(answered["flagged"].astype(bool).sum()), poses - len(answered)
    line["unposed"] = "failed" if unposed.empty else "flagged" if unposed["flagged"].astype(bool).any() else "fine"
    if answered.empty:
        return line
    for landmark in ("ac", "pc"):
        points = answered[[f"{landmark}_{axis}_mm" for axis in "xyz"]].to_numpy(float)
        line[f"{landmark}_sd_mm"] = np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean())
        line[f"{landmark}_worst_mm"] = np.linalg.norm(points - np.median(points, axis=0), axis=1).max()
        if len(unposed):
            start = unposed[[f"{landmark}_{axis}_mm" for axis in "xyz"]].to_numpy(float)[0]
            line[f"{landmark}_from_unposed_mm"] = np.linalg.norm(points - start, axis=1).mean()
    line |= _angle_spread(answered)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}


def _angle_spread(answered: pd.DataFrame) -> dict[str, float]:
    """SD of pitch, roll and yaw against the mean frame."""
    turns = answered[[f"turn_{number}" for number in range(9)]].to_numpy(float).reshape(-1, 3, 3)
    left, _, right = np.linalg.svd(turns.mean(axis=0))
    angles = np.array([tilt_deg((left @ right) @ turn.T) for turn in turns])
    return {f"{name}_sd_deg": float(sd) for name, sd in zip(("pitch", "roll", "yaw"), angles.std(axis=0), strict=True)}


# --- Workers and tables ----------------------------------------------------------------------------------------------

RUNNERS: dict[str, Callable[[Path, Task], Iterator[dict[str, object]]]] = {
    "accuracy": run_accuracy,
    "repeatability": run_repeatability,
    "hard": run_hard,
    "speed": run_speed,
}
TASKS: dict[str, Callable[[argparse.Namespace], list[Task]]] = {
    "accuracy": accuracy_tasks,
    "repeatability": repeatability_tasks,
    "hard": lambda options: hard_tasks(options.hard, options.match),
    "speed": lambda options: speed_tasks(ants=options.ants > 0),
    "pictures": lambda options: picture_tasks(real_scans(options)),
}
SUMMARIES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "accuracy": summarize_accuracy,
    "repeatability": summarize_repeatability,
    "hard": summarize_hard,
    "speed": summarize_speed,
}


FIGURES: dict[str, tuple[Callable[[pd.DataFrame], dict[str, float]], str]] = {
    "accuracy": (accuracy_figures, "Errors of AC-PC alignment over poses of heads that the network never saw"),
    "repeatability": (repeatability_figures, "Spread of AC-PC alignment over re-poses of real scans"),
    "hard": (hard_figures, "What becomes of scans that are meant to go wrong"),
}
"""What ``--record`` writes of a part, and what that is."""


def run_part(part: str, options: argparse.Namespace) -> None:
    """Do what is missing of a part, and summarize all of it."""
    path = options.out / f"{part}.tsv"
    done = {tuple(key) for key in _keys(path)}
    tasks = [task for task in TASKS[part](options) if task.key not in done]
    print(f"{part}: {len(done)} done, {len(tasks)} to do", flush=True)
    for count, (task, rows) in enumerate(worked(tasks, options), start=1):
        append(path, [{"head": task.head, "number": task.number, "case": task.case, **row} for row in rows])
        print(f"\r{part}: {count}/{len(tasks)}", end="", flush=True)
    print()
    if part in SUMMARIES and path.exists():
        summarize(part, path, options)


def _keys(path: Path) -> list[tuple[str, int, str]]:
    if not path.exists():
        return []
    table = pd.read_csv(path, sep="\t", usecols=["head", "number", "case"], keep_default_na=False)
    return list(table[["head", "number", "case"]].itertuples(index=False, name=None))


def worked(tasks: list[Task], options: argparse.Namespace) -> Iterator[tuple[Task, list[dict[str, object]]]]:
    """Results as they come, from spawned processes of one core each: a fork of JAX deadlocks."""
    if not tasks:
        return
    os.environ.update(ONE_THREAD)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = sorted(os.sched_getaffinity(0))
    for number in range(options.workers):
        cores.put(available[number % len(available)])
    with context.Pool(options.workers, initializer=pin, initargs=(cores,)) as pool:
        yield from pool.imap_unordered(partial(work, options.data, options.out), tasks)


def pin(cores: Any) -> None:
    """Keep this process on one core."""
    os.sched_setaffinity(0, {cores.get()})


def work(data: Path, out: Path, task: Task) -> tuple[Task, list[dict[str, object]]]:
    """All rows of one task."""
    run = RUNNERS.get(task.part, partial(run_pictures, out=out))
    try:
        return task, list(run(data, task))
    except Exception as err:
        err.add_note(f"in {task}")
        raise


def append(path: Path, rows: list[dict[str, object]]) -> None:
    """Add rows to a table at once; a later row may have columns that the first one lacks."""
    new = pd.DataFrame(rows).astype(object)
    old = path.read_text().partition("\n")[0].split("\t") if path.exists() else []
    if not old or set(new.columns) - set(old):
        old = pd.read_csv(path, sep="\t", dtype=object, keep_default_na=False) if path.exists() else pd.DataFrame()
        pd.concat([old, new]).to_csv(path, sep="\t", index=False)
        return
    new.reindex(columns=old).to_csv(path, sep="\t", index=False, header=False, mode="a")


def summarize(part: str, path: Path, options: argparse.Namespace) -> None:
    """Write the summary of a part, and all summaries as one page."""
    out = options.out
    table = pd.read_csv(path, sep="\t", dtype=dict.fromkeys(TEXTS, object))
    table = table.assign(**{name: table[name].fillna("") for name in TEXTS})
    table = against_raters(table, options.data) if part == "accuracy" else table
    summary = SUMMARIES[part](table.sort_values(["head", "number"], kind="stable"))
    summary.to_csv(out / f"{part}_summary.tsv", sep="\t", index=False)
    if options.record and part in FIGURES:
        figures, what = FIGURES[part]
        data = f"{table['head'].nunique()} heads, {len(table)} rows"
        write_results(f"alignment_{part}", figures(table), what=what, data=data, networks=("commissures",))
    sections = ["# AC-PC alignment\n"]
    for name in PARTS:
        if (out / f"{name}_summary.tsv").exists():
            lines = pd.read_csv(out / f"{name}_summary.tsv", sep="\t", dtype=str, keep_default_na=False)
            sections.append(f"## {name.capitalize()}\n\n{NOTES[name]}\n\n{markdown(lines)}\n")
    (out / "summary.md").write_text("\n".join(sections))
    print(summary.to_string(index=False))


TEXTS = ("case", "failed", "warnings")
"""Columns in which empty means that there is nothing to say."""

NOTES = {
    "accuracy": "Errors are median / 95th percentile / maximum over what was answered; bias is the median along "
    "x, y, z of the true AC-PC frame; from_raters: against the two raters of recipes/commissures_marks.tsv instead of "
    "the published landmarks. Gross: more than 3 mm or 3 degrees; silent: not flagged either.",
    "repeatability": "Spread over the re-poses of each scan, flagged ones included, in its own space: the sd of a "
    "landmark is its root mean square distance from the mean place, worst is the greatest distance from the median.",
    "hard": "Right: within 3 mm and 3 degrees of the published landmarks, or, for real scans, of the alignment of the "
    "scan as it is. Heads whose left and right were exchanged look like any other. SILENT: wrong and not flagged.",
    "speed": "Twenty scans of different shapes on one core: as they come, and again with everything compiled.",
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of validation scans")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--poses", type=int, default=200, help="poses of each published head")
    parser.add_argument("--ants", type=int, default=20, help="how many of all poses ANTs is run on too, if installed")
    parser.add_argument("--repeats", type=int, default=12, help="re-poses of each real scan")
    parser.add_argument("--hard", type=int, default=2, help="mild poses in which each hard case is tried")
    parser.add_argument("--match", default="", help="only real scans and hard cases with this in their name")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    add_record_option(parser)
    options = parser.parse_args(words)
    options.data = options.data.resolve()
    return options


def main() -> None:
    """Run the parts one after the other."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.ants and not ants_peer.installed():
        print("antspyx is not installed, so ANTs is left out: pip install antspyx")
    for part in options.only:
        run_part(part, options)


if __name__ == "__main__":
    main()
