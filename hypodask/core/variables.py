"""Every variable of the results dataset: dimensions, type, unit and meaning."""

from dataclasses import dataclass
from typing import Literal

Dimensions = tuple[Literal["scan"]] | tuple[Literal["scan"], Literal["structure"]]


@dataclass(frozen=True)
class Variable:
    """One variable of the results dataset."""

    name: str
    dims: Dimensions
    dtype: Literal["float64", "str", "bool"]
    units: str
    """``mm3``, ``mm``, ``s``; ``1`` for a ratio; empty for text."""
    description: str


def _per_structure(name: str, description: str) -> Variable:
    return Variable(name, ("scan", "structure"), "float64", "mm3", description)


def _text(name: str, description: str) -> Variable:
    return Variable(name, ("scan",), "str", "", description)


def _number(name: str, units: str, description: str) -> Variable:
    return Variable(name, ("scan",), "float64", units, description)


RESULTS = (
    _per_structure("volume_mm3", "Volume to publish: soft where posteriors are calibrated, else by label count."),
    _per_structure("soft_volume_mm3", "Sum of posteriors times voxel volume."),
    _per_structure("label_volume_mm3", "Voxels that carry the label times voxel volume."),
    _per_structure("volume_low_mm3", "Lower end of the 95 % interval of volume_mm3."),
    _per_structure("volume_high_mm3", "Upper end of the 95 % interval of volume_mm3."),
    _text("status", "done, failed or skipped."),
    _text("stage", "Stage at which a failed scan failed."),
    _text("error", "Class of the error of a failed scan."),
    _text("reason", "What was found, what was needed, what to do."),
    _text("warnings", "What to know before trusting the volumes."),
    Variable("flagged", ("scan",), "bool", "", "Whether the pose could not be trusted, or a part is missing."),
    _number("quality", "1", "Trust in the result, 0 (worthless) to 1 (nothing unusual)."),
    _number("alignment_score", "1", "Local correlation of the aligned brain with the template, -1 to 1."),
    _number("alignment_error_mm", "mm", "Error to expect of a commissure; missing where they were placed by hand."),
    _text("alignment_source", "Where the commissures come from: automatic, or landmarks by hand."),
    _number("acpc_distance_mm", "mm", "Distance between the commissures; 26.6 +- 1.4 in adults."),
    _text("protocol", "Label protocol of the hypothalamic volumes."),
    _text("model", "Networks and the first digits of their sha256."),
    _text("version", "Version of hypodask."),
    _text("store", "Store of the scan, relative to the output."),
    _text("sha256", "Digest of the input file."),
    _number("seconds", "s", "Wall-clock time spent on the scan."),
    _number("peak_memory_mib", "MiB", "Largest resident memory of the worker while it had the scan."),
    _number(
        "attempts",
        "1",
        "Number of tries in the run that completed the scan, also those that ended with the death of the worker.",
    ),
    _text("host", "Machine that processed the scan."),
)
"""What the pipeline measures, one entry per field of :class:`hypodask.core.row.Row` but ``scan``."""

DERIVED = (
    _per_structure("normalized_volume_mm3", "Volume / ICV * mean ICV of the reference group (Kassubek 2025, eq. 1)."),
    _per_structure("adjusted_volume_mm3", "Volume adjusted to the mean ICV of the reference group by another method."),
    _per_structure("harmonized_volume_mm3", "volume_mm3 without the effects of the sites (ComBat)."),
    _per_structure("harmonized_normalized_volume_mm3", "normalized_volume_mm3 without those effects (ComBat)."),
    _text("harmonized_reason", "Why a scan, or which of its volumes, could not be harmonised."),
    Variable(
        "outlier", ("scan", "structure"), "bool", "", "Outside the limits of a rule, by default 1.5 IQR of a group."
    ),
    Variable("excluded", ("scan",), "bool", "", "Left out of analyses: outlier, low quality, or not done."),
)
"""What the analysis adds."""

LOW_QUALITY = 0.5
"""Scans of lower quality are listed in the report. Below it, one measure lies beyond the range of good-quality scans by
half the width of that range, or several lie nearly as far."""

VARIABLES = {variable.name: variable for variable in (*RESULTS, *DERIVED)}
"""Every variable of the results dataset, by its name."""
