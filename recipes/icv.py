"""The intracranial volume (ICV), learnt from label maps of whole heads."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment import align
from hypodask.alignment.pose import Alignment
from hypodask.core.grid import Grid
from hypodask.core.structures import ICV
from hypodask.image.agreement import dice
from hypodask.image.resampling import resample
from hypodask.learning.augmentation import Variation
from hypodask.learning.loop import Precision, Schedule, learn
from hypodask.learning.losses import cross_entropy
from hypodask.learning.synthetic_heads import (
    HeadMap,
    contrast,
    head_map,
    icv_mask,
    stacked,
    tissue_numbers,
    volume_drawer,
)
from hypodask.networks.cards import ModelCard
from hypodask.networks.volume_unet import VolumeUNetConfig
from hypodask.networks.weights import load_weights, save_weights
from hypodask.scan import Scan
from hypodask.segmentation.icv_border import BOUNDARY_GEOMETRY
from hypodask.segmentation.network import Ensemble, Network
from recipes.figures import Figures, made, name_of, summary, whole_card, write_figures

log = logging.getLogger(__name__)

_ICV_NETWORK = VolumeUNetConfig(out_channels=2, backgrounds=2)
"""Venous sinuses are learnt apart from the rest outside the ICV."""

ICV_VARIATION = Variation(turn_deg=6, shift_mm=4, size=0.07, warp_mm=3, warp_spacing_mm=30, local_size=0)
"""Errors of the alignment, and other shapes of heads; contrast and noise are those of ``synthetic_heads``."""

BATCH = 8

LEARNING_RATE = 2e-3

_IMAGES_OF_A_MAP = 4
"""Synthetic scans of every label map that was left out."""


def train_icv(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...], initial: Path | None = None) -> None:
    """Learn the ICV from label maps, except those whose names are in ``leave_out``.

    ``initial`` are weights to start from. A step takes 0.17 s on a GPU (H100), and minutes on a CPU.
    """
    folder, run = made(work / "icv"), made(work / "icv-all")
    maps, held_out = learnt_and_left_out(data, folder, leave_out)
    drawn = volume_drawer(stacked(maps), BOUNDARY_GEOMETRY.grid, ICV_VARIATION, BATCH)
    start, origin = None, None
    if initial:
        (start, *_), origin = load_weights(initial)
    precision: Precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    schedule = Schedule(steps=steps, heads=BATCH, slices=1, learning_rate=LEARNING_RATE, precision=precision)
    model = learn(drawn, cross_entropy, _ICV_NETWORK, schedule, checkpoint=run / "checkpoint", initial=start)
    card = partial(icv_card, len(maps), steps, origin=origin)
    # Measured as it is written, in half precision.
    written = save_weights(run / "icv.safetensors", model, card({}), half=True)
    members, _ = load_weights(written)
    network = Ensemble(members, card({}), "")
    figures = icv_agreement(network, held_out)
    write_figures(run / "held-out.json", figures)
    save_weights(written, members, card(figures), half=True)


def learnt_and_left_out(data: Path, folder: Path, leave_out: tuple[str, ...]) -> tuple[list[HeadMap], list[Path]]:
    """The label maps to learn from, kept in ``folder``, and the files of those to measure on."""
    paths = {name_of(path): path for path in sorted((data / "label_maps").glob("*.nii.gz"))}
    maps = [stored_map(path, folder) for name, path in paths.items() if name not in leave_out]
    return maps, [path for name, path in paths.items() if name in leave_out]


def read_labels(path: Path) -> tuple[Integer[ndarray, "i j k"], Grid]:
    """A label map and its grid."""
    image: Any = nib.load(path)
    labels = np.asarray(image.dataobj).astype(np.int16)
    return labels, Grid(labels.shape, image.affine, "scanner")


def stored_map(path: Path, folder: Path) -> HeadMap:
    """A label map ready for training, aligned as hypodask aligns a scan of it; kept in ``folder``."""
    kept = folder / f"{name_of(path)}.npz"
    if not kept.exists():
        labels, grid = read_labels(path)
        pose = _map_pose(labels, grid).acpc_from_scanner
        np.savez_compressed(kept, **head_map(labels, grid, pose, BOUNDARY_GEOMETRY.grid)._asdict())
    return HeadMap(**np.load(kept))


def _map_pose(labels: Integer[ndarray, "i j k"], grid: Grid) -> Alignment:
    """Pose of a label map, from a synthetic scan of its ICV alone: some contrasts of the skull hide the brain."""
    return align(synthetic_scan(np.where(icv_mask(labels), labels, 0), grid, seed=0))


def synthetic_scan(labels: Integer[ndarray, "i j k"], grid: Grid, *, seed: int) -> Scan:
    """A T1-weighted scan of a label map: an intensity for each tissue, grain, blur, 2 % noise."""
    random = np.random.default_rng(seed)
    means = np.asarray(contrast(jax.random.key(seed), t1_weighted=True))
    image = means[tissue_numbers(labels)].astype(np.float32)
    image *= 1 + 0.06 * random.standard_normal(image.shape, np.float32)
    image = ndimage.gaussian_filter(image, random.uniform(0.3, 0.7))
    noise = 0.02 * random.standard_normal((2, *image.shape), np.float32)
    return Scan(1000 * np.hypot(image + noise[0], noise[1]), grid, source=f"label map imaged with seed {seed}")


def icv_agreement(network: Network, paths: list[Path]) -> Figures:
    """Volume and overlap of label maps that were not trained on, from several synthetic scans of each."""
    figures = {}
    for number, path in enumerate(paths):
        labels, grid = read_labels(path)
        alignment, truth = _map_pose(labels, grid), icv_mask(labels)
        for image in range(_IMAGES_OF_A_MAP):
            scan = synthetic_scan(labels, grid, seed=1000 + _IMAGES_OF_A_MAP * number + image)
            figures[f"{name_of(path)} {image}"] = _agreement(network, scan, alignment, truth)
    return figures


def _agreement(network: Network, scan: Scan, alignment: Alignment, truth: Float[ndarray, "i j k"]) -> dict[str, float]:
    found = network.segment(scan, alignment)
    wanted = resample(truth.astype(np.float32), scan.grid, found.grid, onto_from_grid=alignment.acpc_from_scanner)
    return {
        "dice": dice(found.posteriors[1] > 0.5, wanted > 0.5),
        "volume_mm3": float(found.posteriors[1].sum() * found.grid.voxel_volume_mm3),
        "consensus_mm3": float(truth.sum() * scan.grid.voxel_volume_mm3),
    }


def icv_card(heads: int, steps: int, figures: Figures, origin: ModelCard | None = None) -> ModelCard:
    """The card of the network, which may have started from weights with the card ``origin``."""
    went_on = (
        f", going on from {origin.name} {origin.version} ({origin.training_data.split('; ')[-1]})" if origin else ""
    )
    measured_on = (
        f"{len(figures)} synthetic T1-weighted scans of label maps that were not trained on, in the pose that was "
        "found for each map; no real scan with a known intracranial volume was at hand"
    )
    training_data = (
        f"{heads} whole-head label maps (FreeSurfer numbering with fluid, bone and other tissues of the head) imaged "
        "with random contrasts, poses, shapes, sizes of the brain within the skull, point spread, cut fields of view, "
        f"skull-stripping, bias fields, ghosts and noise; {steps} steps{went_on}"
    )
    card = whole_card(ICV, _ICV_NETWORK, BOUNDARY_GEOMETRY, training_data, summary(figures, measured_on))
    learnt = "learnt from skulls that move and brains that draw back from them; cross-entropy alone"
    same = "the same weights, which see every head at the size of an average adult's"
    changes = (
        f"0.7.0: {same}; the figures are those of 0.6.0",
        "0.6.0: learnt from twice as many heads",
        "0.5.0: sees the whole head at once, at 1 mm, and tells venous sinuses apart",
        "0.4.0: the border of the cavity moves as far out as in; twice as many steps",
        f"0.3.0: sees 1 mm in plane; {learnt}",
        "0.2.0: learnt from maps of 1 mm in which brains of any size lie in a skull; larger network",
    )
    return replace(card, version="0.7.0", changelog=(*changes, *card.changelog))
