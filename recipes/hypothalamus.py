"""The hypothalamus, learnt from the consensus of the published network on public scans."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float16
from numpy import ndarray

from hypodask.alignment import align
from hypodask.cluster import each
from hypodask.core.structures import HYPOTHALAMUS, MAIN
from hypodask.image.agreement import dice
from hypodask.image.resampling import resample
from hypodask.learning.augmentation import Variation
from hypodask.learning.labelled_scans import labelled_task
from hypodask.learning.loop import Schedule
from hypodask.learning.scanner_versions import SLICE_MM
from hypodask.learning.slices import Task, train
from hypodask.learning.teacher import consensus
from hypodask.learning.training_box import seen_image, seen_labels, training_geometry, training_grid
from hypodask.networks.architectures import AnyNetwork
from hypodask.networks.cards import ModelCard
from hypodask.networks.unet import UNetConfig
from hypodask.networks.weights import save_weights
from hypodask.scan.air import above_air
from hypodask.scan.read import read_scan
from hypodask.segmentation.network import Ensemble
from hypodask.segmentation.published import import_hypothalamus_seg
from hypodask.segmentation.segmentation import Segmentation
from hypodask.segmentation.volumes import measure
from recipes.calibration import calibrated, fitted_offset, shifted
from recipes.figures import (
    FEWEST_HEADS,
    Figures,
    held_out,
    made,
    name_of,
    relative_error,
    summary,
    whole_card,
    write_figures,
)

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

Heads = dict[str, dict[str, ndarray]]
"""Image and consensus of each scan by its name."""

HYPOTHALAMUS_GEOMETRY = training_geometry(MAIN)

TRAINING_GRID = training_grid(HYPOTHALAMUS_GEOMETRY)

_VOXEL_MM3 = TRAINING_GRID.voxel_volume_mm3

_HYPOTHALAMUS_NETWORK = UNetConfig(in_channels=5, out_channels=1 + len(HYPOTHALAMUS), widths=(16, 32, 64, 96))

FOLDS = (
    ("colin27_ch2", "fnndsc_eun", "seecog_wide_ventricles_defaced"),
    ("dcmqa_uih_uMR770_a", "plot_atlas_brain", "studyforrest_3T_philips_067mm_defaced"),
    ("myconnectome_ds000031_3T_face", "freesurferformats_brain", "pycortex_S1_conformed"),
)
"""Scans that each member leaves out: whole, skull-stripped and defaced ones in every fold."""

_UNSURE = (0.2, 0.8)
"""Posteriors of the consensus that become 0 and 1."""

_MOST_UNSURE = 1.2
"""Voxels between these, as a share of those that the consensus segments, in a scan that can be learnt from. On nine
public scans they are 0.90 to 1.07; on a tenth, a blurred one, 1.31, and there a part of one side is missing (by
eye)."""


def hypothalamus_head(path: Path, weights: Path, folder: Path) -> dict[str, ndarray]:
    """Image and consensus of one scan on the training grid, and the runs' volumes; kept in ``folder``.

    The published network sees the head at the size of an average adult's too, so that what it learnt of sizes does not
    enter the labels; volumes are those of the head at that size.
    """
    kept = _kept_file(path, folder)
    if not kept.exists():
        scan = above_air(read_scan(path))
        alignment = align(scan)
        average_from_scanner = np.diag([1 / alignment.head_size] * 3 + [1.0]) @ alignment.acpc_from_scanner
        found, volumes = consensus(scan, average_from_scanner, import_hypothalamus_seg(weights), TRAINING_GRID)
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(
            part,
            image=resample(scan.data, scan.grid, TRAINING_GRID, onto_from_grid=average_from_scanner, order=3),
            truth=found.posteriors[1:].astype(np.float16),
            volumes=volumes,
            pose=alignment.acpc_from_scanner,
            head_size=alignment.head_size,
        )
        part.replace(kept)
    return dict(np.load(kept))


def _kept_file(path: Path, folder: Path) -> Path:
    return folder / f"{name_of(path)}.npz"


def _keep_head(path: Path, weights: Path, folder: Path) -> None:
    """Run by a worker, which returns nothing: the arrays are large and stay in ``folder``."""
    hypothalamus_head(path, weights, folder)


def hypothalamus_heads(
    data: Path, folder: Path, *, client: "Client | str | None" = None, workers: int | None = None
) -> Heads:
    """All scans in ``data``; Dask workers make the consensus of those that ``folder`` does not hold yet."""
    weights = next((data / "models").glob("*.h5")).absolute()
    paths = [path.absolute() for name in ("scans", "scans_stripped") for path in (data / name).iterdir()]
    missing = [path for path in paths if not _kept_file(path, folder).exists()]
    task = partial(_keep_head, weights=weights, folder=folder.absolute())
    for outcome in each(task, missing, client=client, workers=workers):
        outcome.get()
        log.info("consensus of %s", name_of(outcome.item))
    return {name_of(path): hypothalamus_head(path, weights, folder) for path in sorted(paths)}


def hypothalamus_task(heads: list[dict[str, ndarray]]) -> Task:
    """What is learnt from scans with the consensus of the published network."""
    sharper = [head | {"truth": sharpened(head["truth"])} for head in heads]
    return labelled_task(sharper, HYPOTHALAMUS, Variation(), HYPOTHALAMUS_GEOMETRY)


def sharpened(truth: Float16[ndarray, "label i j k"]) -> Float16[ndarray, "label i j k"]:
    """Soft labels of a consensus, stretched so that their sum is the volume where they exceed one half.

    The mean of many runs has a tail: 7 to 13 % of its sum are voxels below 0.1, where single runs leak, so that a soft
    volume would be 9 to 21 % larger than that of the segmentation (14 scans). Stretched between ``_UNSURE``, it is
    larger by 0.8 to 1.8 %, and its edge is about as wide as that of a boundary that runs through voxels.
    """
    whole = truth.sum(axis=0, dtype=np.float32)
    low, high = _UNSURE
    sure = np.clip((whole - low) / (high - low), 0, 1)
    return (truth * (sure / np.maximum(whole, low))).astype(np.float16)


def train_hypothalamus(
    data: Path,
    work: Path,
    *,
    steps: int,
    leave_out: tuple[str, ...],
    client: "Client | str | None" = None,
    workers: int | None = None,
) -> None:
    """Learn the hypothalamus from the scans in ``data``, in folds that each leave some of them out.

    The networks of all ``FOLDS`` form the shipped ensemble, calibrated on the scans that each has not seen. With
    ``leave_out`` only that one fold is learnt, so that folds may run on different machines that share ``work``. Dask
    workers make the consensus of each scan: ``client`` and ``workers`` as for :func:`hypodask.process`.
    """
    heads = trusted(hypothalamus_heads(data, made(work / "hypothalamus"), client=client, workers=workers))
    members = {}
    for fold in (leave_out,) if leave_out else FOLDS:
        kept = [head for name, head in heads.items() if name not in fold]
        schedule = Schedule(steps=steps, seed=FOLDS.index(fold) if fold in FOLDS else 0)
        checkpoint = made(_fold_folder(work, fold)) / "checkpoint"
        members[fold] = train(hypothalamus_task(kept), _HYPOTHALAMUS_NETWORK, schedule, checkpoint=checkpoint)
    if not leave_out:
        _join_folds(members, heads, work, steps)


def trusted(heads: Heads) -> Heads:
    """Scans whose consensus is sure enough to learn from, and to measure against."""
    low, high = _UNSURE
    shares = {}
    for name, head in heads.items():
        whole = head["truth"].sum(axis=0, dtype=np.float32)
        shares[name] = float(((whole > low) & (whole < high)).sum() / (whole > 0.5).sum())
        if shares[name] > _MOST_UNSURE:
            log.warning("%s is left out: unsure voxels are %.2f of its consensus", name, shares[name])
    return {name: head for name, head in heads.items() if shares[name] <= _MOST_UNSURE}


def _fold_folder(work: Path, left_out: tuple[str, ...]) -> Path:
    """Where the run that leaves some scans out keeps what it makes."""
    return work / f"hypothalamus-without-{'-'.join(left_out)}"[:200]


def _join_folds(members: dict[tuple[str, ...], AnyNetwork], heads: Heads, work: Path, steps: int) -> None:
    """Calibrate the networks of all folds, measure each on the scans that it has not seen, and write all as one.

    The network that measures a scan is calibrated without it; the shipped networks are calibrated on all.
    """
    found = {
        name: (_segmented(model, heads[name]), _consensus_mask(heads[name]).sum() * _VOXEL_MM3)
        for fold, model in members.items()
        for name in fold
    }
    for fold, model in members.items():
        offset = fitted_offset({name: one for name, one in found.items() if name not in fold})
        card = hypothalamus_card(len(heads) - len(fold), 1, steps, {})
        save_weights(_fold_folder(work, fold) / "hypothalamus.safetensors", calibrated(model, offset), card)
        figures = {name: agreement(shifted(found[name][0], offset), heads[name]) for name in fold}
        write_figures(_fold_folder(work, fold) / "held-out.json", figures)
    offset = fitted_offset(found)
    log.info("log-odds of the background: %+.3f", offset)
    card = hypothalamus_card(len(heads), len(members), steps, held_out(work, "hypothalamus"))
    together = [calibrated(model, offset) for model in members.values()]
    save_weights(made(work / "hypothalamus-all") / "hypothalamus.safetensors", together, card)


def _segmented(model: AnyNetwork, head: dict[str, ndarray]) -> Segmentation:
    """What a network makes of a scan on the training grid."""
    return Ensemble((model,), hypothalamus_card(1, 1, 0, {}), "").segment_image(seen_image(head["image"]))


def _consensus_mask(head: dict[str, ndarray]) -> Bool[ndarray, "x y z"]:
    """The consensus of a scan in the network's box."""
    return seen_labels(head["truth"]).sum(axis=0) > 0.5


def hypothalamus_card(heads: int, members: int, steps: int, figures: Figures) -> ModelCard:
    """What is known of the network of one fold, or of the ensemble of all."""
    measured_on = (
        f"{len(figures)} real heads ({', '.join(figures)}), each by one member that had not learnt from it and was "
        "calibrated without it; against the consensus of the published network on them (pseudo-labels of another tool, "
        "not manual outlines). All members together are not measured: every head was learnt from by some"
    )
    training_data = (
        f"{heads} public T1-weighted heads, whole and skull-stripped, with the consensus of 24 runs of the published "
        "subunit network (Billot et al. 2020) as soft labels; varied in pose, shape, size of the hypothalamus (half to "
        f"twice) and of the third ventricle, contrast, bias, noise, blur and slices of {SLICE_MM:g} mm; {steps} steps"
    )
    if members > 1:
        training_data = f"Each of {members} members left some heads out. {training_data}"
    card = whole_card(
        HYPOTHALAMUS, _HYPOTHALAMUS_NETWORK, HYPOTHALAMUS_GEOMETRY, training_data, summary(figures, measured_on)
    )
    part_volume_sd = {}
    if len(figures) >= FEWEST_HEADS:
        parts = [figure["parts_mm3"] for figure in figures.values()]
        part_volume_sd = {part: relative_error(np.array([np.divide(*one[part]) for one in parts])) for part in parts[0]}
    same = "the same weights, which see every head at the size of an average adult's"
    changes = (
        f"0.5.0: {same}; the figures are those of 0.4.0",
        (
            "0.4.0: every head was left out by one member, and one whose consensus is unsure by all; slices of 3 mm as "
            "scans have them; contrasts and noise vary further"
        ),
        "0.3.0: cross-entropy alone; half to twice the hypothalamus; variation of any strength",
        "0.2.0: subunits, sharper soft labels, heads that shrink and grow, the networks of all folds together",
    )
    return replace(
        card,
        version="0.5.0",
        members=members,
        volume_heads=len(figures) if card.relative_volume_sd else None,
        part_volume_sd=part_volume_sd,
        changelog=(*changes, *card.changelog),
    )


def agreement(found: Segmentation, head: dict[str, ndarray]) -> dict[str, Any]:
    """Overlap and volumes of one scan against its consensus: of the whole, and of every part."""
    truth = sharpened(seen_labels(head["truth"]))
    measured, consensus_mask = measure(found).soft_mm3, _consensus_mask(head)
    parts = {
        label.structure: (measured[label.structure], float(channel.sum(dtype=np.float32) * _VOXEL_MM3))
        for label, channel in zip(HYPOTHALAMUS, truth, strict=True)
    }
    for side in ("left", "right"):
        ours, theirs = np.sum([parts[label.structure] for label in HYPOTHALAMUS.of(side)], axis=0).tolist()
        parts[f"hypothalamus_{side}"] = (ours, theirs)
    return {
        "dice": dice(found.posteriors[0] < 0.5, consensus_mask),
        "volume_mm3": measured["hypothalamus"],
        "consensus_mm3": float(consensus_mask.sum() * _VOXEL_MM3),
        "parts_mm3": parts,
    }
