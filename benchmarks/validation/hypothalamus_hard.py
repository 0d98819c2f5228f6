"""How much the volume changes when the image gets worse: noise, thick slices, another contrast, a bias field."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.validation.hypothalamus_heads import (
    ALL_OF_IT,
    VOLUMES,
    Effort,
    RealHead,
    measured_by_all_of_it,
    measured_in_known_pose,
)
from benchmarks.validation.posing import Head, Pose, acquired
from hypodask.core.grid import Grid
from hypodask.scan import Scan

UNDEGRADED = "undegraded"

INTENSITIES = {
    UNDEGRADED: Pose(),
    "noise 5 %": Pose(noise=0.05),
    "gamma 0.75": Pose(gamma=0.75),
    "gamma 1.3": Pose(gamma=1.3),
    "bias field 30 %": Pose(bias=0.30),
}
"""What happens to intensities on the scan's own voxels."""

SLICE_MM = 3.0


def run_hard(real: RealHead, effort: Effort) -> Iterator[dict[str, object]]:
    """The scan as it is and degraded, by all of hypodask, by the network in the known pose and by the published one."""
    for number in range(effort.cases):
        for case, scan in degraded(real.head, number):
            yield {"case": case, "number": number, **measured_by_all_of_it(real, scan, real.pose)}
            for row in measured_in_known_pose(real, scan, real.pose, with_teacher=number < effort.teacher):
                yield {"case": case, "number": number, **row}


def degraded(head: Head, seed: int) -> Iterator[tuple[str, Scan]]:
    """Every case, by name; the seed is that of noise and bias field."""
    for name, pose in INTENSITIES.items():
        yield name, stored(head, replace(pose, seed=seed))
    for axis, along in enumerate(np.abs(head.grid.space_from_vox[:3, :3]).argmax(axis=0)):
        yield f"3 mm slices along {'xyz'[along]}", stored(thickened(head, axis), Pose(seed=seed))


def stored(head: Head, pose: Pose) -> Scan:
    """The head as a scanner would store it, on its own voxels."""
    image = acquired(head.data, pose, np.random.default_rng([pose.seed, 2]))
    return Scan(np.asfortranarray(image), head.grid, source=head.name)


def thickened(head: Head, axis: int) -> Head:
    """The mean of each few slices along an axis, so that they are as near to 3 mm as whole slices allow."""
    count = max(1, round(SLICE_MM / head.grid.spacing_mm[axis]))
    data, matrix = np.moveaxis(head.data, axis, 0), np.array(head.grid.space_from_vox)
    data = data[: len(data) // count * count]
    thick = np.moveaxis(data.reshape(-1, count, *data.shape[1:]).mean(axis=1), 0, axis)
    matrix[:3, 3] += matrix[:3, axis] * (count - 1) / 2
    matrix[:3, axis] *= count
    return replace(head, data=thick, grid=Grid(thick.shape, matrix, head.grid.space))


def changes_of(table: pd.DataFrame) -> pd.DataFrame:
    """Degraded scans, with the change of both volumes against the undegraded scan in percent."""
    same, before = ["method", "head", "number"], table["case"] == UNDEGRADED
    start = table[before].set_index(same)[list(VOLUMES)]
    changed = table[~before].join(start.add_suffix("_before"), on=same)
    for kind in ("soft", "outline"):
        changed[f"{kind}_percent"] = 100 * (changed[f"{kind}_mm3"] / changed[f"{kind}_mm3_before"] - 1)
    return changed


def hard_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show: changes of soft volumes by all of hypodask."""
    changed = changes_of(table)
    changed = changed[(changed["method"] == ALL_OF_IT) & (changed["failed"] == "")]
    figures: dict[str, float] = {}
    for case, key in FIGURE_NAMES.items():
        change = changed.loc[changed["case"] == case, "soft_percent"]
        figures |= {f"{key}_percent_mean": change.mean(), f"{key}_percent_largest": change.abs().max()}
    slices = changed[changed["case"].str.startswith("3 mm slices")]
    spread = slices.groupby("case")["soft_percent"].std().max()
    return figures | {"slices_percent_sd": spread, "slices_percent_largest": slices["soft_percent"].abs().max()}


FIGURE_NAMES = {
    "noise 5 %": "noise",
    "gamma 0.75": "gamma_075",
    "gamma 1.3": "gamma_130",
    "bias field 30 %": "bias_field",
    **{f"3 mm slices along {axis}": f"slices_{axis}" for axis in "xyz"},
}
"""Cases by the name that their figures have."""


def summarize_hard(table: pd.DataFrame) -> pd.DataFrame:
    """Change of the volume against the undegraded scan, over heads."""
    groups = changes_of(table).groupby(["method", "case"], sort=False)
    return pd.DataFrame([{"method": method, "case": case, **_line(group)} for (method, case), group in groups])


def _line(group: pd.DataFrame) -> dict[str, object]:
    line: dict[str, object] = {"rows": len(group), "flagged": int(group["flagged"].eq(True).sum())}
    line["failed"] = int((group["failed"] != "").sum())
    for kind in ("soft", "outline"):
        change = group[f"{kind}_percent"]
        shown = f"{change.mean():+.1f} / {change.std():.1f} / {change.abs().max():.1f}"
        line[f"{kind}: mean / SD / largest change, %"] = shown
    return line
