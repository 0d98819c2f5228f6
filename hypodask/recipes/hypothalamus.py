"""The hypothalamus, learnt from the consensus of the published network on real heads."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float16, PRNGKeyArray
from numpy import ndarray

from hypodask.agreement import dice
from hypodask.alignment import align
from hypodask.cluster import each
from hypodask.grid import SLAB_CENTRE_MM, Grid, box_grid, transform_points
from hypodask.intensity import scale_by
from hypodask.labels import HYPOTHALAMUS, LabelTable
from hypodask.network.architectures import AnyNetwork
from hypodask.network.augment import Variation
from hypodask.network.learn import Schedule
from hypodask.network.unet import UNetConfig
from hypodask.network.weights import InputGeometry, ModelCard, save_weights
from hypodask.recipes.calibration import calibrated, fitted_offset, shifted
from hypodask.recipes.figures import (
    Figures,
    held_out,
    made,
    name_of,
    relative_error,
    summary,
    whole_card,
    write_figures,
)
from hypodask.recipes.versions import SLICE_MM, Scanner, in_slices, sharp, softer, versions_of
from hypodask.resample import resample
from hypodask.scan import read_scan
from hypodask.segmentation.growth import growth_field, halved, halved_grid, third_ventricle
from hypodask.segmentation.keras_import import import_hypothalamus_seg
from hypodask.segmentation.predict import ShippedNetwork, mirrored_channels
from hypodask.segmentation.segmentation import Segmentation
from hypodask.segmentation.teacher import consensus
from hypodask.segmentation.train import Growth, Head, Task, train
from hypodask.volumes import measure

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

Heads = dict[str, dict[str, ndarray]]
"""Images and consensus by the head's name."""

HYPOTHALAMUS_GEOMETRY = InputGeometry(
    spacing_mm=(0.5, 0.5, 0.5),
    shape=(80, 50, 72),
    slices=5,
    slice_axis=1,
    intensity="box_bright",
    slice_step=2,
    centre_mm=(0.0, SLAB_CENTRE_MM[1], -6.0),
)
"""The slab from front to back, and 40 x 36 mm about the hypothalamus, which reaches 10 mm to the sides and from 0 to
15 mm below the AC (14 heads)."""

CORE = np.s_[16:-16, 15:-15, 16:-16]
"""What the network sees of the hypothalamic training grid."""

HYPOTHALAMUS_NETWORK = UNetConfig(in_channels=5, out_channels=1 + len(HYPOTHALAMUS), widths=(16, 32, 64, 96))

FOLDS = (
    ("colin27_ch2", "fnndsc_eun", "seecog_wide_ventricles_defaced"),
    ("dcmqa_uih_uMR770_a", "plot_atlas_brain", "studyforrest_3T_philips_067mm_defaced"),
    ("myconnectome_ds000031_3T_face", "freesurferformats_brain", "pycortex_S1_conformed"),
)
"""Heads that each member leaves out, whole heads, stripped and defaced ones among them."""

SCANNERS: dict[Scanner, float] = {
    sharp: 0.45,
    softer: 0.15,
    **{
        partial(in_slices, axis=axis, first=first): share
        for axis, share in enumerate((0.1, 0.05, 0.05))
        for first in (0.0, 0.5)
    },
}
"""What shows a head in an example, and in which share of them. Slices along x blur the walls of the third ventricle,
which is a sheet across it: they are seen twice as often."""

VOXEL_MM3 = float(np.prod(HYPOTHALAMUS_GEOMETRY.spacing_mm))

UNSURE = (0.2, 0.8)
"""Posteriors of the consensus that become 0 and 1."""

MOST_UNSURE = 1.2
"""Voxels between these, as a share of those that the consensus outlines, in a head that can be learnt from. On nine
public heads they are 0.90 to 1.07; on a tenth, a blurred one, 1.31, and there a part of one side is missing (by
eye)."""

GROWTH_SD = {"both": 0.4, "left": 0.08, "right": 0.08, "ventricle": 0.3}
"""Standard deviations of the logarithm of relative volume by which examples differ from the head they are made of: half
to twice the hypothalamus. The narrower they are, the more a change is understated: volumes are drawn to the mean."""


def hypothalamus_head(path: Path, weights: Path, folder: Path) -> dict[str, ndarray]:
    """Image and consensus of one real head on the training grid, and the runs' volumes; kept in ``folder``."""
    kept = _kept_head(path, folder)
    if not kept.exists():
        scan = read_scan(path)
        pose = align(scan).acpc_from_scanner
        grid = hypothalamus_stored_grid()
        outlines, volumes = consensus(scan, pose, import_hypothalamus_seg(weights), grid)
        image = resample(scan.data, scan.grid, grid, onto_from_grid=pose, order=3)
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(
            part, image=image, truth=outlines.posteriors[1:].astype(np.float16), volumes=volumes, pose=pose
        )
        part.replace(kept)
    return dict(np.load(kept))


def _kept_head(path: Path, folder: Path) -> Path:
    return folder / f"{name_of(path)}.npz"


def _keep_head(path: Path, weights: Path, folder: Path) -> None:
    """Run by a worker: what is large stays in ``folder``."""
    hypothalamus_head(path, weights, folder)


def hypothalamus_heads(
    data: Path, folder: Path, *, client: "Client | str | None" = None, workers: int | None = None
) -> Heads:
    """All real heads in ``data``; the consensus of those that ``folder`` does not hold yet is made by Dask workers."""
    weights = next((data / "models").glob("*.h5")).absolute()
    paths = [path.absolute() for name in ("scans", "scans_stripped") for path in (data / name).iterdir()]
    missing = [path for path in paths if not _kept_head(path, folder).exists()]
    task = partial(_keep_head, weights=weights, folder=folder.absolute())
    for outcome in each(task, missing, client=client, workers=workers):
        outcome.get()
        log.info("consensus of %s", name_of(outcome.item))
    return {name_of(path): hypothalamus_head(path, weights, folder) for path in sorted(paths)}


def hypothalamus_stored_grid(geometry: InputGeometry = HYPOTHALAMUS_GEOMETRY) -> Grid:
    """The training grid: what the network sees and 8 mm around it."""
    i, j, k = geometry.shape
    return box_grid((i + 32, j + 30, k + 32), geometry.spacing_mm, geometry.centre_mm)


def hypothalamus_task(heads: list[dict[str, ndarray]]) -> Task:
    """Real heads with the consensus of the published network."""
    return outlined_task([head | {"truth": sharpened(head["truth"])} for head in heads], HYPOTHALAMUS, Variation())


def outlined_task(
    heads: list[dict[str, ndarray]],
    labels: LabelTable,
    variation: Variation,
    geometry: InputGeometry = HYPOTHALAMUS_GEOMETRY,
) -> Task:
    """Heads on the training grid: ``image``, and as ``truth`` the soft labels without background."""
    stored = hypothalamus_stored_grid(geometry)
    versions = [versions_of(head["image"], tuple(SCANNERS), geometry, CORE) for head in heads]
    images = jnp.asarray(np.stack(versions))
    truths = jnp.asarray(np.stack([np.moveaxis(head["truth"], 0, -1) for head in heads]))
    growths = jnp.asarray(np.stack([growth_of(head, labels, stored) for head in heads]))
    log_sd, shares = jnp.array(list(GROWTH_SD.values())), jnp.array(list(SCANNERS.values()))
    exchanged = np.array(mirrored_channels(labels))[1:] - 1

    def make(key: PRNGKeyArray) -> Head:
        of_head, of_scanner = jax.random.split(key)
        head = jax.random.randint(of_head, (), 0, len(images))
        scanner = jax.random.choice(of_scanner, len(shares), p=shares)
        return Head(images[head, scanner], truths[head], Growth(growths[head], log_sd))

    return Task(
        jax.jit(make),
        stored,
        geometry.grid,
        geometry,
        variation,
        mirror=lambda truth: truth[..., exchanged],
    )


def sharpened(truth: Float16[ndarray, "label i j k"]) -> Float16[ndarray, "label i j k"]:
    """Soft labels of a consensus, whose sum becomes the volume that their outline encloses.

    The mean of many runs has a tail: 7 to 13 % of its sum are voxels below 0.1, where single runs leak, so that a soft
    volume would be 9 to 21 % larger than the outlined one (14 heads). Stretched between ``UNSURE``, it is larger by
    0.8 to 1.8 %, and its border is about as wide as one that runs through voxels.
    """
    whole = truth.sum(axis=0, dtype=np.float32)
    low, high = UNSURE
    sure = np.clip((whole - low) / (high - low), 0, 1)
    return (truth * (sure / np.maximum(whole, low))).astype(np.float16)


def growth_of(head: dict[str, ndarray], labels: LabelTable, stored: Grid) -> Float[ndarray, "field 3 x y z"]:
    """Displacements that double both sides, each side and the third ventricle, mm."""
    grid = halved_grid(stored)
    image, *parts = (halved(volume) for volume in (scaled(head["image"]), *head["truth"]))
    sides = {
        side: np.sum([part * (label.hemisphere == side) for part, label in zip(parts, labels, strict=True)], axis=0)
        for side in ("left", "right")
    }
    places = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    structures = sides | {"both": np.sum(parts, axis=0), "ventricle": third_ventricle(image, places)}
    return np.stack([growth_field(structures[name], grid.spacing_mm) for name in GROWTH_SD])


def scaled(image: Float[ndarray, "i j k"]) -> Float[ndarray, "i j k"]:
    """An image on the training grid in units of white matter, as the network's own box would be."""
    return scale_by(image, image[CORE])


def train_hypothalamus(
    data: Path,
    work: Path,
    *,
    steps: int,
    leave_out: tuple[str, ...],
    client: "Client | str | None" = None,
    workers: int | None = None,
) -> None:
    """Learn the hypothalamus from the real heads in ``data``, in folds that each leave some of them out.

    The networks of all ``FOLDS`` together, calibrated on the heads that each has not seen, are the shipped one. With
    ``leave_out`` only that one fold is learnt, so that folds may run on different machines that share ``work``. The
    consensus of each head is made by a worker: ``client`` and ``workers`` as for :func:`hypodask.process`.
    """
    heads = trusted(hypothalamus_heads(data, made(work / "hypothalamus"), client=client, workers=workers))
    members = {fold: fold_member(heads, fold, work, steps) for fold in ((leave_out,) if leave_out else FOLDS)}
    if not leave_out:
        join_folds(members, heads, work, steps)


def trusted(heads: Heads) -> Heads:
    """Heads whose consensus is sure enough to be learnt from, and to be measured against."""
    shares = {name: _unsure_share(head["truth"]) for name, head in heads.items()}
    for name in (name for name, share in shares.items() if share > MOST_UNSURE):
        log.warning("%s is left out: unsure voxels are %.2f of its consensus", name, shares[name])
    return {name: head for name, head in heads.items() if shares[name] <= MOST_UNSURE}


def _unsure_share(truth: Float16[ndarray, "label i j k"]) -> float:
    whole = truth.sum(axis=0, dtype=np.float32)
    low, high = UNSURE
    return float(((whole > low) & (whole < high)).sum() / (whole > 0.5).sum())


def fold_member(heads: Heads, left_out: tuple[str, ...], work: Path, steps: int) -> AnyNetwork:
    """The network of one fold, learnt from the heads that are not left out."""
    kept = [head for name, head in heads.items() if name not in left_out]
    schedule = Schedule(steps=steps, seed=FOLDS.index(left_out) if left_out in FOLDS else 0)
    checkpoint = made(fold_folder(work, left_out)) / "checkpoint"
    return train(hypothalamus_task(kept), HYPOTHALAMUS_NETWORK, schedule, checkpoint=checkpoint)


def fold_folder(work: Path, left_out: tuple[str, ...]) -> Path:
    """Where the run that leaves some heads out keeps what it makes."""
    return work / f"hypothalamus-without-{'-'.join(left_out)}"[:200]


def join_folds(members: dict[tuple[str, ...], AnyNetwork], heads: Heads, work: Path, steps: int) -> None:
    """Calibrate the networks of all folds, measure each on the heads that it has not seen, and write all as one.

    What measures a head is calibrated without it; the shipped networks are calibrated on all.
    """
    found = {
        name: (_outlined(model, heads[name]), _outline(heads[name]).sum() * VOXEL_MM3)
        for fold, model in members.items()
        for name in fold
    }
    for fold, model in members.items():
        offset = fitted_offset({name: one for name, one in found.items() if name not in fold})
        card = hypothalamus_card(len(heads) - len(fold), 1, steps, {})
        save_weights(fold_folder(work, fold) / "hypothalamus.safetensors", calibrated(model, offset), card)
        figures = {name: agreement(shifted(found[name][0], offset), heads[name]) for name in fold}
        write_figures(fold_folder(work, fold) / "held-out.json", figures)
    offset = fitted_offset(found)
    log.info("log-odds of the background: %+.3f", offset)
    card = hypothalamus_card(len(heads), len(members), steps, held_out(work, "hypothalamus"))
    together = [calibrated(model, offset) for model in members.values()]
    save_weights(made(work / "hypothalamus-all") / "hypothalamus.safetensors", together, card)


def _outlined(model: AnyNetwork, head: dict[str, ndarray]) -> Segmentation:
    """What a network says of a head on the training grid."""
    network = ShippedNetwork((model,), hypothalamus_card(1, 1, 0, {}), "")
    return network.outlined(scaled(head["image"])[CORE])


def _outline(head: dict[str, ndarray]) -> Bool[ndarray, "x y z"]:
    """The consensus of a head, where the network sees it."""
    return head["truth"][(slice(None), *CORE)].sum(axis=0, dtype=np.float32) > 0.5


def hypothalamus_card(heads: int, members: int, steps: int, figures: Figures) -> ModelCard:
    """What is known of the network, or of the networks of all folds together."""
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
        HYPOTHALAMUS, HYPOTHALAMUS_NETWORK, HYPOTHALAMUS_GEOMETRY, training_data, summary(figures, measured_on)
    )
    changes = (
        (
            "0.4.0: every head was left out by one member, and one whose consensus is unsure by all; slices of 3 mm as "
            "scans have them; contrasts and noise vary further"
        ),
        "0.3.0: cross-entropy alone; half to twice the hypothalamus; variation of any strength",
        "0.2.0: subunits, sharper soft labels, heads that shrink and grow, the networks of all folds together",
    )
    return replace(
        card,
        version="0.4.0",
        members=members,
        volume_heads=len(figures) if card.relative_volume_sd else None,
        part_volume_sd=_part_spread(figures),
        changelog=(*changes, *card.changelog),
    )


def agreement(found: Segmentation, head: dict[str, ndarray]) -> dict[str, Any]:
    """Overlap and volumes of one head against its consensus: of the whole, and of every structure."""
    truth = sharpened(head["truth"][(slice(None), *CORE)].astype(np.float32))
    measured, outline = measure(found).soft_mm3, _outline(head)
    parts = {
        label.structure: (measured[label.structure], float(channel.sum(dtype=np.float32) * VOXEL_MM3))
        for label, channel in zip(HYPOTHALAMUS, truth, strict=True)
    }
    for side in ("left", "right"):
        ours, theirs = np.sum([parts[label.structure] for label in HYPOTHALAMUS.of(side)], axis=0).tolist()
        parts[f"hypothalamus_{side}"] = (ours, theirs)
    return {
        "dice": dice(found.posteriors[0] < 0.5, outline),
        "volume_mm3": measured["hypothalamus"],
        "consensus_mm3": float(outline.sum() * VOXEL_MM3),
        "parts_mm3": parts,
    }


def _part_spread(figures: Figures) -> dict[str, float]:
    """Relative error of the volume of every side and subunit over the heads that were left out."""
    if len(figures) < 3:
        return {}
    return {
        part: relative_error(np.array([np.divide(*figure["parts_mm3"][part]) for figure in figures.values()]))
        for part in next(iter(figures.values()))["parts_mm3"]
    }
