"""The consensus of many runs of the published network on one head: what the shipped network learns from.

One run depends on the pose and the voxel grid (its volume varies by 3.6-9.3 % over poses within 15
degrees). Many runs at exactly 1 mm, in random poses, half of them mirrored with sides swapped and all with
a slightly different white point, are carried back to AC-PC space and averaged; runs whose volume is far
from the median are left out.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial.transform import Rotation

from hypodask.grid import Grid, box_grid
from hypodask.labels import HYPOTHALAMUS, Hemisphere, LabelTable
from hypodask.resample import resample
from hypodask.scan import Scan
from hypodask.segmentation.keras_import import ImportedModel, intensity_window
from hypodask.segmentation.segmentation import Segmentation

BLOCK = 80
"""Voxels along each side of what one run sees: the hypothalamus and, around it, the network's whole
receptive field (21 voxels) at any turn."""

BLOCK_CENTRE_MM = (0.0, -5.0, -6.0)
"""Middle of the hypothalamus in AC-PC space."""

HEMISPHERES: tuple[Hemisphere, Hemisphere] = ("left", "right")


@dataclass(frozen=True)
class ConsensusOptions:
    """How the runs are varied."""

    runs: int = 24
    turn_deg: float = 15.0
    """Largest turn about each axis."""
    shift_mm: float = 3.0
    white_point: float = 0.07
    """Largest relative change of the intensity that becomes 1."""
    bright: float = 1.0
    """Factor on the intensity that becomes 1; above 1 for a brain without the scalp that sets it in heads."""
    trim: float = 0.07
    """Runs whose volume is further than this from the median, relatively, are left out."""


def consensus(
    scan: Scan,
    acpc_from_scanner: Float[ndarray, "4 4"],
    model: ImportedModel,
    onto: Grid,
    *,
    seed: int = 0,
    options: ConsensusOptions = ConsensusOptions(),
) -> tuple[Segmentation, Float[ndarray, "run"]]:
    """Mean posteriors of left and right hypothalamus over many runs, on ``onto`` in AC-PC space.

    Returns
    -------
    Segmentation
        Protocol ``billot2020-consensus``: background, left, right.
    volumes : array
        Label count of each run in mm3, dropped runs included.
    """
    rng = np.random.default_rng(seed)
    low, high = intensity_window(scan.data)
    high *= options.bright
    posteriors, volumes = [], []
    for run in range(options.runs):
        block = _random_block(rng, options, mirrored=run % 2 == 1)
        image = resample(scan.data, scan.grid, block, onto_from_grid=acpc_from_scanner, order=1)
        white = low + (high - low) * (1 + rng.uniform(-1, 1) * options.white_point)
        sides = _sides(model.posteriors(np.clip((image - low) / (white - low), 0, 1)), model.labels)
        if run % 2 == 1:
            sides = sides[[0, 2, 1]]
        volumes.append(float((sides.argmax(0) > 0).sum()) * block.voxel_volume_mm3)
        posteriors.append(np.stack([resample(side, block, onto) for side in sides[1:]]))
    kept = np.abs(np.array(volumes) / np.median(volumes) - 1) <= options.trim
    mean = np.mean([p for p, keep in zip(posteriors, kept, strict=True) if keep], axis=0)
    return Segmentation(np.stack([1 - mean.sum(0), *mean]), onto, HYPOTHALAMUS), np.array(volumes)


def _random_block(rng: np.random.Generator, options: ConsensusOptions, *, mirrored: bool) -> Grid:
    """A 1 mm block about the hypothalamus, turned and shifted at random."""
    block = box_grid((BLOCK,) * 3, (1.0, 1.0, 1.0), BLOCK_CENTRE_MM)
    angles = rng.uniform(-1, 1, 3) * options.turn_deg
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    if mirrored:
        turn[:3, 0] *= -1
    centre = np.array(BLOCK_CENTRE_MM)
    turn[:3, 3] = centre - turn[:3, :3] @ centre + rng.uniform(-1, 1, 3) * options.shift_mm
    return Grid(block.shape, turn @ block.space_from_vox, "acpc")


def _sides(posteriors: Float[ndarray, "channel i j k"], labels: LabelTable) -> Float[ndarray, "3 i j k"]:
    """Background, left and right from the posteriors of subunits."""
    number = {label.structure: channel for channel, label in enumerate(labels, start=1)}
    channels = [[number[label.structure] for label in labels.of(side)] for side in HEMISPHERES]
    return np.stack([posteriors[0], *(posteriors[side].sum(0) for side in channels)])
