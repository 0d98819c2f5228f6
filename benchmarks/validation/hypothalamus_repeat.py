"""How much the volume varies when the same head is scanned again."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.validation.hypothalamus_heads import (
    ALL_OF_IT,
    KNOWN_POSE,
    PUBLISHED,
    VOLUMES,
    Effort,
    RealHead,
    erring,
    measured_by_all_of_it,
    measured_in_known_pose,
    volumes_of,
)
from benchmarks.validation.posing import Pose, repose

TURN_DEG, SHIFT_MM, VOXEL_MM, NOISE = 15.0, 10.0, (0.8, 1.2), 0.01
"""What re-posed heads are drawn from: turns about each axis, shifts along each, cubic voxels; noise is that of all."""


# --- Poses -----------------------------------------------------------------------------------------------------------


def draw_repeat(name: str, number: int) -> Pose:
    """A pose and a voxel size of a head; the same number gives the same."""
    random = np.random.default_rng([number, *name.encode()])
    pitch, roll, yaw = random.uniform(-TURN_DEG, TURN_DEG, 3).tolist()
    shift, voxel = random.uniform(-SHIFT_MM, SHIFT_MM, 3).tolist(), float(random.uniform(*VOXEL_MM))
    return Pose(pitch, roll, yaw, shift_mm=tuple(shift), spacing_mm=(voxel,) * 3, noise=NOISE, seed=number)


def run_repeat(real: RealHead, effort: Effort) -> Iterator[dict[str, object]]:
    """Re-posed scans by all of hypodask, by the network in a pose off by the usual error, and by the published one."""
    for number in range(effort.cases):
        pose = draw_repeat(real.name, number)
        scan, moved_from_scanner = repose(real.head, pose)
        true_pose = real.pose @ np.linalg.inv(moved_from_scanner)
        off = erring(true_pose, np.random.default_rng([number, 1]))
        case = {"case": number, "pitch_deg": round(pose.pitch_deg, 2), "voxel_mm": round(pose.spacing_mm[0], 3)}
        yield {**case, **measured_by_all_of_it(real, scan, true_pose)}
        for row in measured_in_known_pose(real, scan, off, with_teacher=number < effort.teacher):
            yield {**case, **row}


def summarize_repeat(table: pd.DataFrame) -> pd.DataFrame:
    """Coefficient of variation of each head and over heads; trends with voxel size and pitch."""
    table = table[table["failed"] == ""]
    heads = [
        {"method": m, "head": h, **_spread(group)} for (m, h), group in table.groupby(["method", "head"], sort=False)
    ]
    heads = pd.DataFrame(heads)
    lines = []
    for method, group in table.groupby("method", sort=False):
        of_method = heads[heads["method"] == method]
        covs = {f"{kind} CoV, %": _mean_and_largest(of_method[f"{kind} CoV, %"]) for kind in ("soft", "outline")}
        lines.append({"method": method, "head": "all: mean / largest", **_spread(group), **covs})
    return pd.concat([pd.DataFrame(lines), heads], ignore_index=True)


def repeat_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show: coefficients of variation of soft volumes over heads."""
    table, figures = table[table["failed"] == ""], {}
    for method, prefix in ((ALL_OF_IT, ""), (KNOWN_POSE, "known_pose_")):
        volumes = table[table["method"] == method].groupby("head")["soft_mm3"]
        cov = 100 * volumes.std() / volumes.mean()
        figures |= {f"{prefix}cov_percent_mean": float(cov.mean()), f"{prefix}cov_percent_lowest": float(cov.min())}
        figures[f"{prefix}cov_percent_largest"] = float(cov.max())
    return figures


def _mean_and_largest(values: pd.Series) -> str:
    sizes = values.astype(float)
    return f"{sizes.mean():.2f} / {sizes.max():.2f}"


def _spread(group: pd.DataFrame) -> dict[str, object]:
    """Spread of volumes about each head's mean, and how it goes with voxel size and pitch."""
    relative = group[list(VOLUMES)] / group.groupby("head")[list(VOLUMES)].transform("mean")
    line: dict[str, object] = {"cases": len(group), "flagged": int(group["flagged"].eq(True).sum())}
    for kind in ("soft", "outline"):
        line[f"{kind} CoV, %"] = f"{100 * relative[f'{kind}_mm3'].std():.2f}"
    for name, unit, step in (("voxel_mm", "0.4 mm", 0.4), ("pitch_deg", "30 deg", 30.0)):
        line[f"r with {name}"], line[f"% in {unit}"] = _trend(group[name], 100 * relative["soft_mm3"], step)
    return line


def _trend(x: pd.Series, percent: pd.Series, step: float) -> tuple[str, str]:
    """Correlation with a condition, and the change over its whole range by regression."""
    if len(x) < 3 or not percent.std():
        return "", ""
    return f"{np.corrcoef(x, percent)[0, 1]:+.2f}", f"{step * np.polyfit(x, percent, 1)[0]:+.2f}"


# --- Two visits ------------------------------------------------------------------------------------------------------

VISITS = ("scans_thick/patient01_study1*", "scans_thick/patient01_study2*")
"""One person, scanned twice with slices of 3 mm."""


def run_visit(real: RealHead, _effort: Effort) -> Iterator[dict[str, object]]:
    """All of hypodask, the network in the consensus's pose, the published network, and the consensus."""
    yield measured_by_all_of_it(real, real.scan, real.pose)
    yield from measured_in_known_pose(real, real.scan, real.pose, with_teacher=True)
    yield {"method": "consensus", **volumes_of(real.consensus)}


def summarize_visits(table: pd.DataFrame) -> pd.DataFrame:
    """Second visit against the first."""
    volumes = table.pivot_table(index="method", columns="head", values=list(VOLUMES), sort=False)
    lines = []
    for method, row in volumes.iterrows():
        line: dict[str, object] = {"method": method}
        for kind in ("soft", "outline"):
            first, second = row[f"{kind}_mm3"]
            line[f"{kind}, mm3"] = f"{first:.0f}, {second:.0f}"
            line[f"{kind} difference, %"] = f"{100 * (second / first - 1):+.1f}"
        lines.append(line)
    return pd.DataFrame(lines)


def visit_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show: both soft volumes, and the change between the visits by each method."""
    volumes = table.pivot_table(index="method", columns="head", values="soft_mm3", sort=False)
    first, second = volumes.loc[ALL_OF_IT]
    change = 100 * (volumes.iloc[:, 1] / volumes.iloc[:, 0] - 1)
    return {
        "first_mm3": float(first),
        "second_mm3": float(second),
        "difference_percent": float(change[ALL_OF_IT]),
        "published_difference_percent": float(change[PUBLISHED]),
        "consensus_difference_percent": float(change["consensus"]),
    }
