"""Scans that must not go wrong silently: odd poses, wrong headers, cropped heads, bad images, and what is no head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pandas as pd
from numpy import ndarray
from numpy.random import Generator

import hypodask
from benchmarks.validation.posing import COLIN, IMAGES, MILD, MNI, Head, draw_pose, published_head, real_head, repose
from benchmarks.validation.scoring import Task, align, carried, compared, is_gross
from hypodask.core.errors import HypodaskError
from hypodask.core.grid import Grid, transform_points
from hypodask.scan import Scan

HEADS = (
    COLIN,
    MNI,
    "scans/myconnectome_ds000031_3T_face.nii.gz",
    "scans/studyforrest_3T_philips_067mm_defaced.nii.gz",
    "scans/dcmqa_uih_uMR770_a.nii.gz",
)
"""Of the real ones the truth is the alignment of the scan as it is, which must itself be looked at."""

FRUIT = "not_a_head/dcmqa_deident_GE_IRSPGR_fruit_not_human.nii.gz"
LABEL_MAP = "label_maps/training_seg_01.nii.gz"

Changed = tuple[Scan, ndarray]
"""A scan, and the affine that leads to its scanner space from that of the scan before."""


@dataclass(frozen=True)
class Case:
    """One way to make alignment hard."""

    pose: dict[str, object] = field(default_factory=dict)
    """What is other than in a mild pose."""
    change: Callable[[Scan, ndarray, Generator], Changed] = lambda scan, ac_mm, random: (scan, np.eye(4))
    """What is done to the posed scan, given its AC."""


def header(matrix: ndarray) -> Case:
    """The same voxels under a header that is wrong by a matrix."""

    def change(scan: Scan, _ac_mm: ndarray, _random: Generator) -> Changed:
        wrong_from_right = np.eye(4)
        wrong_from_right[:3, :3] = matrix
        return replace(scan, grid=scan.grid.moved(wrong_from_right, "scanner")), wrong_from_right

    return Case(change=change)


def crop(axis: int, low_mm: float, high_mm: float) -> Case:
    """Only what lies between two distances from the AC along an axis of the scanner (right, front, up)."""

    def change(scan: Scan, ac_mm: ndarray, _random: Generator) -> Changed:
        directions = scan.grid.space_from_vox[:3, :3] / scan.grid.spacing_mm
        along = int(np.abs(directions[axis]).argmax())
        at = (transform_points(np.linalg.inv(scan.grid.space_from_vox), ac_mm))[along]
        step = scan.grid.spacing_mm[along] * np.sign(directions[axis, along])
        ends = np.sort(at + np.array([low_mm, high_mm]) / step)
        first, last = np.clip(np.round(ends), 0, scan.grid.shape[along]).astype(int).tolist()
        room = [slice(None)] * 3
        room[along] = slice(first, last)
        matrix = np.array(scan.grid.space_from_vox)
        matrix[:3, 3] += matrix[:3, along] * first
        part = np.asfortranarray(scan.stored[tuple(room)])
        return replace(scan, stored=part, grid=Grid(part.shape, matrix, "scanner")), np.eye(4)

    return Case(change=change)


def image(make: Callable[[ndarray, Generator], ndarray]) -> Case:
    """Other intensities on the same voxels."""

    def change(scan: Scan, _ac_mm: ndarray, random: Generator) -> Changed:
        made = make(scan.stored.astype(np.float32), random)
        return replace(scan, stored=np.asfortranarray(np.clip(made, 0, 32_000).astype(np.int16))), np.eye(4)

    return Case(change=change)


def ghosted(data: ndarray, _random: Generator) -> ndarray:
    """Two ghosts of 30 % each, a third of the field of view away along the second axis."""
    shift = data.shape[1] // 3
    return data + 0.3 * (np.roll(data, shift, axis=1) + np.roll(data, -shift, axis=1))


def inverted(data: ndarray, _random: Generator) -> ndarray:
    """Dark where it was bright, within the head: about what T2 weighting does."""
    bright = np.percentile(data, 99)
    return np.where(data > 0.1 * bright, 1.1 * bright - data, 0)


def ball(data: ndarray, _random: Generator) -> ndarray:
    """An even ball of the size of a head."""
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in data.shape], indexing="ij"))
    return 1000.0 * ((places**2).sum(axis=0) < 0.64)


def air(data: ndarray, random: Generator) -> ndarray:
    """Nothing but noise."""
    return 300 * np.hypot(random.standard_normal(data.shape), random.standard_normal(data.shape))


CASES: dict[str, Case] = {
    **{f"pitch {angle:+d}": Case({"pitch_deg": angle}) for angle in (-90, -60, 60, 90, 180)},
    **{f"roll {angle}": Case({"roll_deg": angle}) for angle in (45, 90, 180)},
    **{f"yaw {angle}": Case({"yaw_deg": angle}) for angle in (45, 90, 180)},
    "header mirrors left and right": header(np.diag([-1, 1, 1])),
    "header mirrors front and back": header(np.diag([1, -1, 1])),
    "header mirrors top and bottom": header(np.diag([1, 1, -1])),
    "header turns the head upside down": header(np.diag([-1, 1, -1])),
    "header swaps front and top": header(np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]])),
    "header says voxels twice as high": header(np.diag([1, 1, 2])),
    "header says voxels 25 % too long": header(np.diag([1, 1.25, 1])),
    "header says voxels half as large": header(np.diag([0.5, 0.5, 0.5])),
    "only 45 mm above the AC and up": crop(2, 45, np.inf),
    "only 20 mm above the AC and up": crop(2, 20, np.inf),
    "only from the AC up": crop(2, 0, np.inf),
    "only 10 mm below the AC and up": crop(2, -10, np.inf),
    "only 25 mm below the AC and up": crop(2, -25, np.inf),
    "only below the AC": crop(2, -np.inf, 0),
    "only 20 mm below the AC and down": crop(2, -np.inf, -20),
    "top cut 20 mm above the AC": crop(2, -np.inf, 20),
    "top cut 45 mm above the AC": crop(2, -np.inf, 45),
    "axial slab of 40 mm around the AC": crop(2, -20, 20),
    "axial slab of 90 mm around the AC": crop(2, -45, 45),
    "left half": crop(0, -np.inf, 0),
    "left half and 20 mm": crop(0, -np.inf, 20),
    "sagittal slab of 90 mm": crop(0, -45, 45),
    "front, from the AC": crop(1, 0, np.inf),
    "front, from 15 mm behind the AC": crop(1, -15, np.inf),
    "front, from 45 mm behind the AC": crop(1, -45, np.inf),
    "back, from 30 mm behind the AC": crop(1, -np.inf, -30),
    "back, from the AC": crop(1, -np.inf, 0),
    "back, from 20 mm in front of the AC": crop(1, -np.inf, 20),
    **{f"noise {percent} %": Case({"noise": percent / 100}) for percent in (10, 20, 40)},
    "bias field 60 %": Case({"bias": 0.6}),
    "gamma 0.4": Case({"gamma": 0.4}),
    "gamma 2": Case({"gamma": 2.0}),
    "slices of 5 mm, sagittal": Case({"spacing_mm": (5.0, 1.0, 1.0)}),
    "slices of 5 mm, coronal": Case({"spacing_mm": (1.0, 5.0, 1.0)}),
    "slices of 5 mm, axial": Case({"spacing_mm": (1.0, 1.0, 5.0)}),
    "voxels of 4 mm": Case({"spacing_mm": (4.0, 4.0, 4.0)}),
    "ghosts": image(ghosted),
    "inverted contrast": image(inverted),
    "a ball": image(ball),
    "air": image(air),
    "a fruit": Case(),
    "a label map": Case(),
}
NO_TRUTH = ("a ball", "air", "a fruit", "a label map")
"""Any answer that is not flagged is wrong."""

ONLY_OF = {"a ball": COLIN, "air": COLIN, "a fruit": FRUIT, "a label map": LABEL_MAP}
"""Cases of one image."""


def hard_tasks(poses: int, match: str) -> list[Task]:
    """Every case on every head in a few mild poses."""
    named = [(case, head) for case in CASES for head in ([ONLY_OF[case]] if case in ONLY_OF else HEADS)]
    chosen = [(case, head) for case, head in named if match in case or match in head]
    return [Task("hard", head, number, case=case) for number in range(poses) for case, head in chosen]


def run_hard(folder: Path, task: Task) -> Iterator[dict[str, object]]:
    """Make the scan, write it, read it as a user would, and align it."""
    head = hard_head(folder, task.head)
    case = CASES[task.case]
    pose = replace(draw_pose(head, MILD, task.number), oblique_deg=(0.0, 0.0, 0.0), axes=0)
    scan, moved_from_scanner = repose(head, replace(pose, **case.pose))
    ac_mm = transform_points(moved_from_scanner, head.ac_mm)
    scan, changed_from_moved = case.change(scan, ac_mm, np.random.default_rng([task.number, 2]))
    truth = carried(head, changed_from_moved @ moved_from_scanner)
    found, said = read_and_align(scan)
    errors = compared(found, *truth) if found else {}
    row = {**said, **errors, "shape": "x".join(map(str, scan.grid.shape)), "in_view": _in_view(scan.grid, *truth[:2])}
    yield {"outcome": outcome(task.case, row), **row}


@lru_cache(maxsize=1)
def hard_head(folder: Path, name: str) -> Head:
    """A head with published landmarks, or a scan with those of its own alignment, or, for no head, with none."""
    if name in IMAGES:
        return published_head(folder, name)
    path = folder / name
    return real_head(path) if name in (FRUIT, LABEL_MAP) else real_head(path, hypodask.align(hypodask.read_scan(path)))


def read_and_align(scan: Scan) -> tuple[object, dict[str, object]]:
    """By way of a file, so that the checks of reading have their say."""
    with TemporaryDirectory(prefix="alignment-hard-") as scratch:
        path = Path(scratch, "scan.nii")
        nib.save(nib.Nifti1Image(scan.stored, scan.grid.space_from_vox), path)
        try:
            read = hypodask.read_scan(path)
        except HypodaskError as err:
            return None, {"failed": type(err).__name__, "warnings": str(err).partition(": ")[2] or str(err)}
        return align(read)


def _in_view(grid: Grid, ac_mm: ndarray, pc_mm: ndarray) -> bool:
    vox = transform_points(np.linalg.inv(grid.space_from_vox), np.array([ac_mm, pc_mm]))
    return bool(((vox >= 0) & (vox <= np.array(grid.shape) - 1)).all())


def outcome(case: str, row: dict[str, object]) -> str:
    """What became of a scan."""
    if row["failed"]:
        return "refused"
    wrong = case in NO_TRUTH or bool(is_gross(pd.DataFrame([row])).iloc[0])
    if row["flagged"]:
        return "flagged, wrong" if wrong else "flagged, right"
    return "SILENT" if wrong else "right"


OUTCOMES = ("right", "flagged, right", "flagged, wrong", "refused", "SILENT")


def summarize_hard(table: pd.DataFrame) -> pd.DataFrame:
    """How often each case ended how, the worst that was not flagged, and the commonest thing that was said."""
    lines = [_hard_line(case, group) for case, group in table.groupby("case", sort=False)]
    summary = pd.DataFrame(lines)
    order = {case: number for number, case in enumerate(CASES)}
    summary = summary.sort_values("case", key=lambda cases: cases.map(order), kind="stable")
    return pd.concat([summary, pd.DataFrame([_hard_line("all", table)])], ignore_index=True)


def hard_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show: how many scans ended how, and the largest error of an AC or PC that was trusted."""
    counts = table["outcome"].value_counts()
    right, wrong, refused, silent = (
        int(counts.get(name, 0)) for name in ("flagged, right", "flagged, wrong", "refused", "SILENT")
    )
    trusted = table[table["outcome"] == "right"]
    return {
        "right": len(trusted),
        "right_error_mm_largest": float(trusted[["ac_error_mm", "pc_error_mm"]].max().max()),
        "flagged": right + wrong,
        "flagged_right": right,
        "refused": refused,
        "silent": silent,
    }


def _hard_line(case: str, group: pd.DataFrame) -> dict[str, object]:
    counts = group["outcome"].value_counts()
    line: dict[str, object] = {"case": case, "scans": len(group)}
    line |= {name: int(counts.get(name, 0)) for name in OUTCOMES}
    trusted = group[group["outcome"].isin(["right", "SILENT"])]
    for name in ("ac_error_mm", "pc_error_mm", "pitch_error_deg"):
        worst = trusted[name].abs().max() if len(trusted) and case not in NO_TRUTH else np.nan
        line[f"worst_unflagged_{name}"] = "" if np.isnan(worst) else round(float(worst), 2)
    said = group.loc[group["warnings"] != "", "warnings"]
    line["said"] = said.mode().iloc[0][:110] if len(said) and case != "all" else ""
    return line
