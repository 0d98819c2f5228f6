"""The true segmentation of a simulated head as a rater would draw it: a label map in the grid of its scan.

A voxel belongs to the side that fills most of it, or to neither. Partial volumes are lost, as they are to a rater.
"""

from pathlib import Path

import numpy as np
from isal import igzip
from jaxtyping import Int16
from numpy import ndarray

from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SIDES
from hypodask.phantom.imaging import nifti_image
from hypodask.phantom.truth import Truth

LABEL_MAPS_FOLDER = Path("derivatives", "outlines")

_REACH_MM = 32.0
"""No part of the hypothalamus is further than this from the AC along any voxel axis; it is 22 mm long."""


def label_map_path(folder: Path, participant_id: str) -> Path:
    """Where the label map of a participant is."""
    return folder / LABEL_MAPS_FOLDER / participant_id / "anat" / f"{participant_id}_dseg.nii.gz"


def label_map_file(truth: Truth, grid: Grid) -> bytes:
    """The label map of the hypothalamus on the grid of a scan, as ``.nii.gz``; numbered as ``HYPOTHALAMUS_SIDES``."""
    return igzip.compress(nifti_image(_label_map(truth, grid), grid).to_bytes(), 1)


def _label_map(truth: Truth, grid: Grid) -> Int16[ndarray, "i j k"]:
    middle = transform_points(np.linalg.inv(grid.space_from_vox), truth.ac_mm)
    reach = _REACH_MM / np.array(grid.spacing_mm)
    low = np.clip(np.floor(middle - reach), 0, grid.shape).astype(int)
    high = np.clip(np.ceil(middle + reach), 0, grid.shape).astype(int)
    part = grid.block(low, tuple((high - low).tolist()))
    sides = np.stack([truth.posterior(label.structure, part) for label in HYPOTHALAMUS_SIDES])
    numbers = np.array([0, *(label.index for label in HYPOTHALAMUS_SIDES)], np.int16)
    label_map = np.zeros(grid.shape, np.int16, order="F")
    place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    label_map[place] = numbers[np.concatenate([1 - sides.sum(axis=0, keepdims=True), sides]).argmax(axis=0)]
    return label_map


def label_table() -> bytes:
    """``dseg.tsv`` of the label maps."""
    lines = ["\t".join(("index", "name", "hemisphere", "abbreviation", "color"))]
    for label in HYPOTHALAMUS_SIDES:
        side = label.hemisphere[0].upper()
        lines.append("\t".join((str(label.index), label.structure, side, label.abbreviation, label.colour)))
    return ("\n".join(lines) + "\n").encode()
