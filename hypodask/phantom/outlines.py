"""The true outline of a simulated head, as a person would draw it: a label map in the scan's grid, a BIDS derivative.

A voxel belongs to the side that fills most of it, or to neither: partial volumes are lost, as they are to a person.
"""

from pathlib import Path

import numpy as np
from isal import igzip
from jaxtyping import Int16
from numpy import ndarray

from hypodask.grid import Grid, transform_points
from hypodask.labels import HYPOTHALAMUS_SIDES
from hypodask.phantom.imaging import nifti_image
from hypodask.phantom.truth import Truth

OUTLINES_FOLDER = Path("derivatives", "outlines")

PROTOCOL = "phantom-sides"
"""The phantom's two sides, which are those of its template."""

REACH_MM = 32.0
"""No part of the hypothalamus is further than this from the AC along any voxel axis; it is 22 mm long."""


def outline_path(folder: Path, participant_id: str) -> Path:
    """Where the outline of a participant is."""
    return folder / OUTLINES_FOLDER / participant_id / "anat" / f"{participant_id}_dseg.nii.gz"


def outline_of(truth: Truth, grid: Grid) -> Int16[ndarray, "i j k"]:
    """Label map of the hypothalamus on the grid of a scan: 1 left, 2 right, as ``HYPOTHALAMUS_SIDES``."""
    middle = transform_points(np.linalg.inv(grid.space_from_vox), truth.ac_mm)
    reach = REACH_MM / np.array(grid.spacing_mm)
    low = np.clip(np.floor(middle - reach), 0, grid.shape).astype(int)
    high = np.clip(np.ceil(middle + reach), 0, grid.shape).astype(int)
    part = grid.block(low, tuple((high - low).tolist()))
    sides = np.stack([truth.posterior(label.structure, part) for label in HYPOTHALAMUS_SIDES])
    numbers = np.array([0, *(label.index for label in HYPOTHALAMUS_SIDES)], np.int16)
    label_map = np.zeros(grid.shape, np.int16, order="F")
    place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    label_map[place] = numbers[np.concatenate([1 - sides.sum(axis=0, keepdims=True), sides]).argmax(axis=0)]
    return label_map


def outline_file(truth: Truth, grid: Grid) -> bytes:
    """The label map as ``.nii.gz``."""
    return igzip.compress(nifti_image(outline_of(truth, grid), grid).to_bytes(), 1)


def label_table() -> bytes:
    """``dseg.tsv`` of the outlines."""
    lines = ["\t".join(("index", "name", "hemisphere", "abbreviation", "color"))]
    for label in HYPOTHALAMUS_SIDES:
        side = label.hemisphere[0].upper()
        lines.append("\t".join((str(label.index), label.structure, side, label.abbreviation, label.colour)))
    return ("\n".join(lines) + "\n").encode()
