"""What is known of weights that a run has made: their model card."""

from dataclasses import replace

import numpy as np
import pandas as pd

from hypodask.labels import LabelTable
from hypodask.network.weights import ModelCard
from hypodask.training.config import TrainingConfig
from hypodask.training.start import Start

LARGEST_INDEX = 255
"""Label maps are written as bytes."""

FEWEST_SUBJECTS = 3
"""Of fewer no standard deviation is told."""


def written_labels(labels: LabelTable) -> LabelTable:
    """The labels as they will be in label maps: with numbers of their own, where a byte does not hold theirs."""
    if max(label.index for label in labels) <= LARGEST_INDEX:
        return labels
    return replace(labels, labels=tuple(replace(x, index=number) for number, x in enumerate(labels, start=1)))


def card_of(config: TrainingConfig, start: Start, labels: LabelTable, training_data: str, **known: object) -> ModelCard:
    """The card of one network or of several; ``known`` are metrics and the like."""
    return ModelCard(
        name=labels.whole,
        task="hypothalamus",
        protocol=labels.protocol,
        architecture=start.architecture,
        geometry=start.geometry,
        training_data=training_data,
        licence=config.data.licence,
        version="1",
        labels=written_labels(labels),
        **known,  # type: ignore[arg-type]
    )


def data_of(config: TrainingConfig, start: Start, subjects: int, scans: int) -> str:
    """What a network has learnt from, in sentences."""
    source = config.data.table or config.data.outlines
    schedule = config.schedule
    return " ".join(
        [
            f"{scans} T1-weighted scans of {subjects} participants with outlines by protocol {config.data.protocol}",
            f"({source}).",
            *([config.data.description.rstrip(".") + "."] if config.data.description else []),
            "Varied in pose, shape, local size, contrast, bias, noise, blur and thick slices; at most",
            f"{schedule.steps} steps of {schedule.heads * schedule.slices} slices, seed {schedule.seed},",
            f"{schedule.precision};",
            f"started from {start.name or 'random weights'}.",
        ]
    )


def measured(whole: pd.DataFrame, icc: float | None, *, chosen: bool) -> dict[str, object]:
    """Metrics and the relative standard deviation of the volume, from the subjects that folds left out.

    Parameters
    ----------
    whole
        One row per subject: ``dice``, ``hd95_mm``, ``mean_distance_mm``, ``volume_mm3``, ``manual_mm3``.
    icc
        Of the volumes, if it was worked out.
    chosen
        Whether the held-out subjects had a say in when a network stopped.
    """
    if len(whole) < FEWEST_SUBJECTS:
        return {}
    ratio = (whole["volume_mm3"] / whole["manual_mm3"]).to_numpy()
    measured_on = (
        f"{len(whole)} scans of this run's own data, each by a network that had not learnt from its participant, one "
        "network at a time, on the network's grid; the weights in this file together were not measured"
    )
    if chosen:
        measured_on += (
            "; the held-out scans also chose when each network stopped, so that figures are a little too good"
        )
    metrics: dict[str, float | str] = {
        "dice_mean": round(float(whole["dice"].mean()), 4),
        "dice_lowest": round(float(whole["dice"].min()), 4),
        "hd95_mm_mean": round(float(whole["hd95_mm"].mean()), 3),
        "mean_distance_mm": round(float(whole["mean_distance_mm"].mean()), 3),
        "volume_bias_percent": round(100 * float(ratio.mean() - 1), 2),
        "volume_sd_percent": round(100 * float(ratio.std(ddof=1)), 2),
        **({} if icc is None else {"volume_icc": round(icc, 3)}),
        "measured_on": measured_on,
    }
    # About the drawn volume, not about the mean error: a bias is part of what a single volume is off by.
    return {"metrics": metrics, "relative_volume_sd": float(np.sqrt(np.mean((ratio - 1) ** 2)))}
