"""Outlines and volumes against the consensus, also those of the published network's single runs."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy import ndarray

from benchmarks.validation.hypothalamus_heads import (
    KNOWN_POSE,
    LEARNT,
    PUBLISHED,
    VOLUMES,
    Effort,
    RealHead,
    known,
    volumes_of,
    whole_on,
)
from hypodask.image.agreement import FEWEST_SCANS, dice, surface_distances, volume_agreement
from hypodask.learning.teacher import ConsensusOptions, consensus
from hypodask.segmentation import Segmentation

ONE_RUN = "one run of the consensus"
"""In another pose than those of the consensus itself, at 1 mm and with the same white point."""


def run_overlap(real: RealHead, effort: Effort) -> Iterator[dict[str, object]]:
    """Ours, the published network as published, and further single runs, on the grid of the consensus."""
    kept = {"consensus_runs_kept": runs_kept(real.run_volumes_mm3)}
    for method, segmentation in _contenders(real, effort):
        yield {"method": method, **kept, **compared(segmentation, real.consensus, real.pose)}


def runs_kept(volumes_mm3: ndarray) -> int:
    """Runs of the published network that agree well enough to be a consensus; of few, it is none."""
    return int((np.abs(volumes_mm3 / np.median(volumes_mm3) - 1) <= ConsensusOptions().trim).sum())


def _contenders(real: RealHead, effort: Effort) -> Iterator[tuple[str, Segmentation]]:
    yield KNOWN_POSE, real.network.segment(real.scan, known(real.pose))
    yield PUBLISHED, real.teacher.segment(real.scan, known(real.pose))
    for run in range(effort.teacher):
        options = ConsensusOptions(runs=1)
        # Seed 0 is the consensus's own.
        yield (
            ONE_RUN,
            consensus(real.scan, real.pose, real.teacher.model, real.consensus.grid, seed=1 + run, options=options)[0],
        )


def compared(found: Segmentation, truth: Segmentation, pose: ndarray) -> dict[str, object]:
    """Overlap, surface distances and volumes of the whole."""
    a, b = (whole_on(segmentation, truth.grid, pose) > 0.5 for segmentation in (found, truth))
    distances = surface_distances(a, b, truth.grid.spacing_mm)
    volumes, wanted = volumes_of(found), volumes_of(truth)
    return {
        "failed": "",
        "dice": round(dice(a, b), 4),
        "hd95_mm": round(distances.hd95_mm, 3),
        "surface_mean_mm": round(distances.mean_mm, 3),
        "surface_largest_mm": round(distances.largest_mm, 3),
        **volumes,
        **{f"consensus_{name}": volume for name, volume in wanted.items()},
        **{name.replace("mm3", "bias_percent"): _percent(volumes[name], wanted[name]) for name in VOLUMES},
    }


def _percent(found: float, wanted: float) -> float:
    return round(100 * (found / wanted - 1), 3)


def summarize_overlap(table: pd.DataFrame) -> pd.DataFrame:
    """By method, over the heads of the recipe and over the others, folder by folder."""
    learnt = table["folder"].isin([pattern.split("/")[0] for pattern in LEARNT])
    groups = table.groupby([table["folder"].mask(learnt, "heads of the recipe"), "method"], sort=False)
    return pd.DataFrame([{"heads": heads, "method": method, **_line(group)} for (heads, method), group in groups])


def _line(group: pd.DataFrame) -> dict[str, object]:
    line: dict[str, object] = {"n": group["head"].nunique(), "rows": len(group)}
    line["fewest runs in a consensus"] = group["consensus_runs_kept"].min()
    line["dice mean / SD / lowest"] = (
        f"{group['dice'].mean():.3f} / {group['dice'].std():.3f} / {group['dice'].min():.3f}"
    )
    line["HD95 mean / largest, mm"] = f"{group['hd95_mm'].mean():.2f} / {group['hd95_mm'].max():.2f}"
    line["surfaces apart, mean mm"] = f"{group['surface_mean_mm'].mean():.2f}"
    for kind in ("soft", "outline"):
        bias = group[f"{kind}_bias_percent"]
        line[f"{kind} volume bias mean / SD over heads, %"] = f"{bias.mean():+.1f} / {bias.std():.1f}"
    volumes = group.groupby("head")[["soft_mm3", "consensus_soft_mm3"]].mean()
    if len(volumes) >= FEWEST_SCANS:
        agreement = volume_agreement(volumes["soft_mm3"].to_numpy(), volumes["consensus_soft_mm3"].to_numpy())
        line["ICC(2,1)"], line["limits of agreement, mm3"] = (
            f"{agreement.icc:.3f}",
            f"{agreement.low_mm3:+.0f} to {agreement.high_mm3:+.0f}",
        )
    return line
