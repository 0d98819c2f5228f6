"""What a network makes of subjects that it did not learn from, structure by structure, beside what a person drew."""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8
from numpy import ndarray

from hypodask.agreement import FEWEST_SCANS, dice, surface_distances, volume_agreement
from hypodask.errors import SegmentationError
from hypodask.labels import LabelTable
from hypodask.recipes.hypothalamus import CORE, scaled
from hypodask.segmentation import Segmentation
from hypodask.segmentation.predict import ShippedNetwork, load_network
from hypodask.training.preparation import Prepared, load_head
from hypodask.volumes import measure

COLUMNS = ("scan", "fold", "structure", "dice", "hd95_mm", "mean_distance_mm", "volume_mm3", "manual_mm3")
"""Of ``structures.tsv``: one row per subject and structure."""


@dataclass(frozen=True)
class Examination:
    """A subject, and the network that did not learn from it."""

    prepared: Prepared
    fold: int
    weights: str


def examine(examination: Examination) -> list[dict[str, object]]:
    """Overlap, distances and volumes of each structure of one subject.

    Outlines are compared on the network's grid, the drawn one resampled to it; the drawn volume is that of the label
    map as it was drawn. A network that finds nothing has an overlap and a volume of 0, and no distance.
    """
    network = load_network(examination.weights)
    assert isinstance(network, ShippedNetwork)  # noqa: S101 - weights that this package wrote
    head, table = load_head(examination.prepared.path), network.labels
    drawn = Segmentation(_with_background(head["truth"]), network.card.geometry.grid, table).label_map
    found, volumes_mm3 = _found(network, head["image"])
    spacing_mm = network.card.geometry.spacing_mm
    as_drawn = dict(zip(table.structures, examination.prepared.volumes_mm3, strict=True))
    return [
        {
            "scan": examination.prepared.pair.scan,
            "fold": examination.fold,
            "structure": structure,
            **_compared(np.isin(found, numbers), np.isin(drawn, numbers), spacing_mm),
            "volume_mm3": volumes_mm3.get(structure, 0.0),
            "manual_mm3": sum(as_drawn[label.structure] for label in table if label.index in numbers),
        }
        for structure, numbers in structures_of(table).items()
    ]


def structures_of(table: LabelTable) -> dict[str, list[int]]:
    """The whole, its sides and its parts, each once, with the numbers of their labels.

    >>> from hypodask.labels import HYPOTHALAMUS_SIDES
    >>> structures_of(HYPOTHALAMUS_SIDES)
    {'hypothalamus': [1, 2], 'hypothalamus_left': [1], 'hypothalamus_right': [2]}
    """
    sides = {
        f"{table.whole}_{side}": [label.index for label in table.of(side)]
        for side in ("left", "right")
        if table.of(side)
    }
    parts = {label.structure: [label.index] for label in table}
    return {table.whole: [label.index for label in table], **sides} | parts


def _found(network: ShippedNetwork, image: ndarray) -> tuple[UInt8[ndarray, "i j k"], dict[str, float]]:
    """Label map and volumes as results have them."""
    segmentation = network.outlined(scaled(image)[CORE])
    try:
        volumes = measure(segmentation)
    except SegmentationError:
        return np.zeros(segmentation.grid.shape, np.uint8), {}
    return volumes.tidied.label_map, volumes.soft_mm3


def _with_background(truth: ndarray) -> ndarray:
    labels = truth[(slice(None), *CORE)].astype(np.float32)
    return np.concatenate([1 - labels.sum(axis=0, keepdims=True), labels])


def _compared(
    found: Bool[ndarray, "i j k"], drawn: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]
) -> dict[str, float]:
    distances = surface_distances(found, drawn, spacing_mm)
    return {"dice": dice(found, drawn), "hd95_mm": distances.hd95_mm, "mean_distance_mm": distances.mean_mm}


def agreement_of(structures: pd.DataFrame) -> pd.DataFrame:
    """ICC, bias and limits of agreement of the volumes of each structure over subjects.

    Parameters
    ----------
    structures
        Rows of :func:`examine`. Subjects in whom nothing was found are left out.

    Returns
    -------
    DataFrame
        One row per structure with at least three subjects: ``structure`` and the fields of
        :class:`hypodask.agreement.VolumeAgreement`.
    """
    rows = []
    for structure, of_one in structures.groupby("structure", sort=False):
        known = of_one[of_one["volume_mm3"] > 0]
        if len(known) >= FEWEST_SCANS:
            agreement = volume_agreement(known["volume_mm3"].to_numpy(), known["manual_mm3"].to_numpy())
            rows.append({"structure": structure, **asdict(agreement)})
    return pd.DataFrame(rows)
