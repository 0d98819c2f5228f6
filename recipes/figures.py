"""What a training run has measured on scans that it left out, and how that gets into the model card."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.structures import LabelTable
from hypodask.networks.architectures import Architecture
from hypodask.networks.cards import InputGeometry, ModelCard

log = logging.getLogger(__name__)

FEWEST_HEADS = 3
"""No mean and no standard deviation is given of fewer."""

Figures = dict[str, dict[str, Any]]
"""Dice overlap and volumes of each scan that was left out."""

Measured = tuple[dict[str, float | str], float | None]
"""Metrics of a model card, and the relative standard deviation of the volume."""


def made(folder: Path) -> Path:
    """The folder, which is made where it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def name_of(path: Path) -> str:
    """A scan's name: that of its file without suffixes."""
    return path.name.split(".")[0]


def write_figures(path: Path, figures: Figures) -> None:
    """Write figures as JSON, and log each."""
    path.write_text(json.dumps(figures, indent=1))
    for name, figure in figures.items():
        error = 100 * (figure["volume_mm3"] / figure["consensus_mm3"] - 1)
        log.info("%s: Dice %.3f, volume %+.1f %%", name, figure["dice"], error)


def held_out(work: Path, network: str) -> Figures:
    """Figures of every scan that some run left out."""
    files = sorted(work.glob(f"{network}-without-*/held-out.json"))
    return {name: figure for file in files for name, figure in json.loads(file.read_text()).items()}


def summary(figures: Figures, measured_on: str) -> Measured:
    """Summary of held-out figures for a model card, and the relative standard deviation of the volume."""
    if len(figures) < FEWEST_HEADS:
        return {}, None
    ratios = np.array([f["volume_mm3"] / f["consensus_mm3"] for f in figures.values()])
    overlaps = np.array([f["dice"] for f in figures.values()])
    metrics: dict[str, float | str] = {
        "dice_mean": round(float(overlaps.mean()), 4),
        "dice_lowest": round(float(overlaps.min()), 4),
        "volume_bias_percent": round(100 * float(ratios.mean() - 1), 2),
        "volume_sd_percent": round(100 * float(ratios.std(ddof=1)), 2),
        "measured_on": measured_on,
    }
    return metrics, relative_error(ratios)


def relative_error(ratios: Float[ndarray, "head"]) -> float:
    """Root mean square error of volumes, from ratios of measured to true volume: bias and spread together."""
    return float(np.sqrt(np.mean((ratios - 1) ** 2)))


def whole_card(
    labels: LabelTable,
    network: Architecture,
    geometry: InputGeometry,
    training_data: str,
    measured: Measured,
    *,
    task: str | None = None,
) -> ModelCard:
    """What all cards share. The network is named after its task, by default after the structure it segments."""
    metrics, relative_sd = measured
    task = task or labels.whole
    return ModelCard(
        name=task,
        task=task,
        protocol=labels.protocol,
        architecture=network,
        geometry=geometry,
        training_data=training_data,
        licence="BSD-3-Clause",
        version="0.1.0",
        metrics=metrics,
        relative_volume_sd=relative_sd,
        changelog=("0.1.0: first version",),
    )
