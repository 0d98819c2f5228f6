"""The consensus of many runs of the published network on one scan: what the shipped network learns from.

One run depends on the pose and the voxel grid (its volume varies by 3.6-9.3 % over poses within 15 degrees). Many runs
at exactly 1 mm, in random poses, half of them mirrored with sides swapped and all with a slightly different white
point, are carried back to AC-PC space and averaged. Runs whose volume is far from the median are left out.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial.transform import Rotation

from hypodask.core.grid import Grid, box_grid
from hypodask.core.structures import HYPOTHALAMUS
from hypodask.image.intensity import bright_level, intensity_window, windowed
from hypodask.image.resampling import resample
from hypodask.scan.scan import Scan
from hypodask.segmentation.network import mirrored_channels
from hypodask.segmentation.published import ImportedModel
from hypodask.segmentation.segmentation import Segmentation

_BLOCK = 80
"""Voxels along each side of the block that one run sees: the hypothalamus and, around it, the network's whole
receptive field (21 voxels) at any rotation."""

_BLOCK_CENTRE_MM = (0.0, -5.0, -6.0)
"""Middle of the hypothalamus in AC-PC space."""

_WHITE_POINT = 1.5
"""Intensity that becomes 1, over the white matter around the hypothalamus. In the published preparation it is the
99.5th percentile of the scan, which depends on how much bright scalp and face are in it: 1.4 to 1.9 on whole heads,
1.1 to 1.25 on defaced ones and brains. The volume depends on it in turn: from 1.1 to 1.9 it grows by 3 to 8 % on five
scans and by 23 % on one, while the spread over poses falls from 11.4 to 3.0 % on that one. A volume must not depend on
whether a face was removed, so the value is fixed, at the mean of seven whole heads."""

_NEIGHBOURHOOD = box_grid((48, 25, 48), (1.0, 1.0, 1.0), _BLOCK_CENTRE_MM)
"""Box in which the level of white matter is measured."""


@dataclass(frozen=True)
class ConsensusOptions:
    """How the runs are varied."""

    runs: int = 24
    turn_deg: float = 15.0
    """Largest rotation about each axis."""
    shift_mm: float = 3.0
    white_point: float = 0.07
    """Largest relative change of the intensity that becomes 1."""
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
    """Mean posteriors of the ten subunits over many runs, on ``onto`` in AC-PC space.

    Parameters
    ----------
    scan
        Its air at zero (:func:`hypodask.scan.air.above_air`).
    acpc_from_scanner
        Pose of the head, and its scale too if the network is to see it at another size.
    model
        The published network.
    onto
        Where the posteriors are wanted, in the space that ``acpc_from_scanner`` leads to.
    seed, options
        How runs differ.

    Returns
    -------
    Segmentation
        Protocol ``billot2020-consensus``.
    volumes : array
        Label count of the whole in each run, mm3, dropped runs included.
    """
    rng = np.random.default_rng(seed)
    low, high = _teacher_window(scan, acpc_from_scanner)
    other_side = mirrored_channels(model.labels)
    total, volumes = [], []
    for run in range(options.runs):
        block = _random_block(rng, options, mirrored=run % 2 == 1)
        image = resample(scan.data, scan.grid, block, onto_from_grid=acpc_from_scanner, order=1)
        white = low + (high - low) * (1 + rng.uniform(-1, 1) * options.white_point)
        found = model.posteriors(windowed(image, low, white))
        if run % 2 == 1:
            found = found[other_side]
        volumes.append(float((found[0] < found[1:].max(0)).sum()) * block.voxel_volume_mm3)
        total.append(np.stack([resample(channel, block, onto) for channel in found[1:]]).astype(np.float16))
    kept = np.abs(np.array(volumes) / np.median(volumes) - 1) <= options.trim
    mean = np.mean(np.stack(total)[kept], axis=0, dtype=np.float32)
    return Segmentation(np.concatenate([1 - mean.sum(0, keepdims=True), mean]), onto, HYPOTHALAMUS), np.array(volumes)


def _teacher_window(scan: Scan, acpc_from_scanner: Float[ndarray, "4 4"]) -> tuple[float, float]:
    """Intensities that become 0 and 1."""
    around = resample(scan.data, scan.grid, _NEIGHBOURHOOD, onto_from_grid=acpc_from_scanner)
    return intensity_window(scan.data)[0], _WHITE_POINT * bright_level(around)


def _random_block(rng: np.random.Generator, options: ConsensusOptions, *, mirrored: bool) -> Grid:
    """A 1 mm block around the hypothalamus, rotated and shifted at random."""
    block = box_grid((_BLOCK,) * 3, (1.0, 1.0, 1.0), _BLOCK_CENTRE_MM)
    angles = rng.uniform(-1, 1, 3) * options.turn_deg
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    if mirrored:
        turn[:3, 0] *= -1
    centre = np.array(_BLOCK_CENTRE_MM)
    turn[:3, 3] = centre - turn[:3, :3] @ centre + rng.uniform(-1, 1, 3) * options.shift_mm
    return Grid(block.shape, turn @ block.space_from_vox, "acpc")
