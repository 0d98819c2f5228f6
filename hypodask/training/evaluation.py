"""A network's segmentations of subjects that it has not learnt from, compared with the manual ones."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from hypodask.core.errors import SegmentationError
from hypodask.core.structures import LabelTable
from hypodask.image.agreement import FEWEST_SCANS, dice, surface_distances, volume_agreement
from hypodask.learning.training_box import seen_image, seen_labels, with_background
from hypodask.segmentation.load import load_network
from hypodask.segmentation.network import Ensemble
from hypodask.segmentation.segmentation import Segmentation
from hypodask.segmentation.volumes import measure
from hypodask.training.preparation import Prepared, load_head

COLUMNS = ("scan", "fold", "structure", "dice", "hd95_mm", "mean_distance_mm", "volume_mm3", "manual_mm3")
"""Columns of ``structures.tsv``: one row per subject and structure."""


@dataclass(frozen=True)
class HeldOut:
    """A subject, and the network that has not learnt from it."""

    prepared: Prepared
    fold: int
    weights: str


def evaluate(held_out: HeldOut) -> list[dict[str, object]]:
    """Overlap, distances and volumes of each structure of one subject.

    The segmentations are compared on the network's grid, to which the manual one is resampled; the manual volume is
    that of the label map as it was drawn. A network that finds nothing has an overlap and a volume of 0, and no
    distance.
    """
    network = load_network(held_out.weights)
    assert isinstance(network, Ensemble)  # noqa: S101 - weights that this package wrote
    head, table = load_head(held_out.prepared.path), network.labels
    grid = network.card.geometry.grid_for(float(head["head_size"]))
    drawn = Segmentation(with_background(seen_labels(head["truth"])), grid, table).label_map
    segmentation = replace(network.segment_image(seen_image(head["image"])), grid=grid)
    try:
        volumes = measure(segmentation)
        found, volumes_mm3 = volumes.cleaned.label_map, volumes.soft_mm3
    except SegmentationError:
        found, volumes_mm3 = np.zeros(segmentation.grid.shape, np.uint8), {}
    as_drawn = dict(zip(table.structures, held_out.prepared.volumes_mm3, strict=True))
    rows: list[dict[str, object]] = []
    for structure, numbers in _structures_of(table).items():
        masks = np.isin(found, numbers), np.isin(drawn, numbers)
        distances = surface_distances(*masks, grid.spacing_mm)
        rows.append(
            {
                "scan": held_out.prepared.pair.scan,
                "fold": held_out.fold,
                "structure": structure,
                "dice": dice(*masks),
                "hd95_mm": distances.hd95_mm,
                "mean_distance_mm": distances.mean_mm,
                "volume_mm3": volumes_mm3.get(structure, 0.0),
                "manual_mm3": sum(as_drawn[label.structure] for label in table if label.index in numbers),
            }
        )
    return rows


def _structures_of(table: LabelTable) -> dict[str, list[int]]:
    """The whole, its sides and its parts, each once, with the numbers of their labels.

    >>> from hypodask.core.structures import HYPOTHALAMUS_SIDES
    >>> _structures_of(HYPOTHALAMUS_SIDES)
    {'hypothalamus': [1, 2], 'hypothalamus_left': [1], 'hypothalamus_right': [2]}
    """
    sides = {
        f"{table.whole}_{side}": [label.index for label in table.of(side)]
        for side in ("left", "right")
        if table.of(side)
    }
    parts = {label.structure: [label.index] for label in table}
    return {table.whole: [label.index for label in table], **sides} | parts


def agreement_of(structures: pd.DataFrame) -> pd.DataFrame:
    """ICC, bias and limits of agreement of the volumes of each structure over subjects.

    Parameters
    ----------
    structures
        Rows of :func:`evaluate`. Subjects in whom nothing was found are left out.

    Returns
    -------
    DataFrame
        One row per structure with at least three subjects: ``structure`` and the fields of
        :class:`hypodask.image.agreement.VolumeAgreement`.
    """
    rows = []
    for structure, of_one in structures.groupby("structure", sort=False):
        known = of_one[of_one["volume_mm3"] > 0]
        if len(known) >= FEWEST_SCANS:
            agreement = volume_agreement(known["volume_mm3"].to_numpy(), known["manual_mm3"].to_numpy())
            rows.append({"structure": structure, **asdict(agreement)})
    return pd.DataFrame(rows)
