"""The model card of weights that a run has made."""

from dataclasses import replace

import numpy as np
import pandas as pd

from hypodask.core.structures import LabelTable
from hypodask.networks.cards import ModelCard
from hypodask.training.config import TrainingConfig
from hypodask.training.start import Start

_LARGEST_INDEX = 255
"""Label maps are written as bytes."""

_FEWEST_SUBJECTS = 3
"""No figures are given of fewer."""


def _written_labels(labels: LabelTable) -> LabelTable:
    """The labels as label maps will have them: numbered from 1 where a byte does not hold their own numbers."""
    if max(label.index for label in labels) <= _LARGEST_INDEX:
        return labels
    return replace(labels, labels=tuple(replace(x, index=number) for number, x in enumerate(labels, start=1)))


def card_of(config: TrainingConfig, start: Start, labels: LabelTable, training_data: str, **known: object) -> ModelCard:
    """The card of one network or of an ensemble; ``known`` are other fields of :class:`ModelCard`, such as metrics."""
    return ModelCard(
        name=labels.whole,
        task=labels.whole,
        protocol=labels.protocol,
        architecture=start.architecture,
        geometry=start.geometry,
        training_data=training_data,
        licence=config.data.licence,
        version="1",
        labels=_written_labels(labels),
        **known,  # type: ignore[arg-type]
    )


def data_of(config: TrainingConfig, start: Start, subjects: int, scans: int) -> str:
    """The card's sentences on what a network has learnt from."""
    source = config.data.table or config.data.outlines
    schedule = config.schedule
    return " ".join(
        [
            f"{scans} T1-weighted scans of {subjects} participants with manual label maps of protocol",
            config.data.protocol,
            f"({source}).",
            *([config.data.description.rstrip(".") + "."] if config.data.description else []),
            "Varied in pose, shape, local size, contrast, bias, noise, blur and thick slices; at most",
            f"{schedule.steps} steps of {schedule.heads * schedule.slices} slices, seed {schedule.seed},",
            f"{schedule.precision}, loss {config.network.loss};",
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
        Intraclass correlation of the volumes, if it was computed.
    chosen
        Whether the held-out subjects decided when a network stopped.
    """
    if len(whole) < _FEWEST_SUBJECTS:
        return {}
    ratio = (whole["volume_mm3"] / whole["manual_mm3"]).to_numpy()
    measured_on = (
        f"{len(whole)} scans of this run's own data, each by a network that had not learnt from its participant, one "
        "network at a time, on the network's grid; the ensemble in this file was not measured"
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
    # Around the manual volume, not around the mean error: a bias is part of the error of a single volume.
    return {"metrics": metrics, "relative_volume_sd": float(np.sqrt(np.mean((ratio - 1) ** 2)))}
