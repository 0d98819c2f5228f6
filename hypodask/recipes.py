"""How the shipped weights are made, from the data to the model card.

::

    python -m hypodask.recipes hypothalamus DATA WORK [--steps N] [--leave-out NAME ...]
    python -m hypodask.recipes icv DATA WORK [--steps N] [--leave-out NAME ...]
    python -m hypodask.recipes commissures DATA WORK [--steps N] [--leave-out NAME ...]
    python -m hypodask.recipes template DATA WORK

``DATA`` holds ``scans/``, ``scans_stripped/`` and ``scans_thick/`` (T1-weighted heads), ``models/`` (the published
network's weights) and ``label_maps/`` (whole-head label maps in FreeSurfer's numbering). ``WORK`` receives what is
computed on the way, one file a head, checkpoints, and the weights with their card. Run again, it goes on.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from numpy import ndarray
from scipy.ndimage import gaussian_filter

from hypodask.alignment import acpc_frame, align
from hypodask.alignment.brain import register_template
from hypodask.alignment.commissures import GEOMETRY as COMMISSURE_GEOMETRY
from hypodask.alignment.commissures import NETWORK as COMMISSURE_NETWORK
from hypodask.alignment.commissures import Looker, find_commissures, looker, refined_frame
from hypodask.alignment.search import ADULT_STRETCH
from hypodask.alignment.train import MarkedHeads, place_loss
from hypodask.alignment.train import drawer as commissure_drawer
from hypodask.alignment.train import stored_grid as marked_grid
from hypodask.grid import Grid, box_grid, head_grid, transform_points
from hypodask.intensity import scale_by
from hypodask.labels import HYPOTHALAMUS, ICV, LabelTable
from hypodask.network.augment import Variation
from hypodask.network.learn import Schedule, learn
from hypodask.network.unet import UNetConfig
from hypodask.network.weights import InputGeometry, ModelCard, save_weights
from hypodask.network.weights import Task as TaskName
from hypodask.resample import resample
from hypodask.scan import Scan, read_scan
from hypodask.segmentation.keras_import import import_hypothalamus_seg
from hypodask.segmentation.losses import dice
from hypodask.segmentation.predict import ShippedNetwork, input_grid
from hypodask.segmentation.synth import T1_MEAN, TISSUES, image_of, tissue_means, tissue_shares
from hypodask.segmentation.teacher import ConsensusOptions, consensus
from hypodask.segmentation.train import Head, Task, train
from hypodask.template import AC_MNI_MM, PC_MNI_MM, mni152_brain

log = logging.getLogger(__name__)

Figures = dict[str, dict[str, float]]
"""Dice overlap and volumes of each head that was left out."""
Blurs = tuple[tuple[float, float, float], ...]
Measured = tuple[dict[str, float | str], float | None]
"""Metrics of a model card, and the relative standard deviation of the volume."""

HYPOTHALAMUS_GEOMETRY = InputGeometry(
    spacing_mm=(0.5, 0.5, 0.5),
    shape=(96, 50, 96),
    slices=5,
    slice_axis=1,
    intensity="box_bright",
    slice_step=2,
    centre_mm=(0.0, -4.5, -6.0),
)
"""25 mm from front to back, the slab but 1 mm further to the front, and 48 x 48 mm, 6 mm below the AC."""

ICV_GEOMETRY = InputGeometry(
    spacing_mm=(2.0, 2.0, 2.0),
    shape=head_grid(2.0).shape,
    slices=5,
    slice_axis=1,
    intensity="head_median",
    centre_mm=tuple(head_grid(2.0).centre_mm.tolist()),
)

WHOLE_HEAD_BRIGHT, TEMPLATE_BRIGHT = 1.51, 1.11
"""The 99.5th percentile of a scan over the white matter around its hypothalamus: mean of seven whole heads
(1.11 to 1.93), and the template."""

BLURS_MM = ((0.0, 0.0, 0.0), (0.6, 0.6, 0.6), (1.27, 0.0, 0.0), (0.0, 1.27, 0.0), (0.0, 0.0, 1.27))
"""Blurred versions of each head: none, a softer scanner, 3 mm slices along x, y or z."""

BLUR_SHARES = (0.6, 0.2, 0.066, 0.067, 0.067)


COMMISSURE_BLURS_MM = (*BLURS_MM[:2], (1.2, 1.2, 1.2), *BLURS_MM[2:])
COMMISSURE_BLUR_SHARES = (0.45, 0.2, 0.11, 0.08, 0.08, 0.08)
"""As for the hypothalamus, and voxels of 2 mm."""

MARKED_CORE = np.s_[14:-14, 24:-24, 20:-20]
"""What the commissure network sees of its training grid."""

MARKS = Path(__file__).parent / "weights" / "commissures_marks.tsv"
"""Commissures of public scans, marked by two raters, scanner RAS+ mm, and how unsure each was."""

NEVER_LEARNT = ("colin27_ch2.nii.gz", "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz")
"""Heads with published landmarks, kept for measuring."""

CORE = np.s_[16:-16, 15:-15, 16:-16]
"""What the network sees of the hypothalamic training grid."""

HYPOTHALAMUS_NETWORK = UNetConfig(in_channels=5, out_channels=3, widths=(16, 32, 64, 96))
ICV_NETWORK = UNetConfig(in_channels=5, out_channels=2, widths=(12, 24, 48, 96))


def hypothalamus_head(path: Path, weights: Path, folder: Path) -> dict[str, ndarray]:
    """Image versions and consensus of one real head on the training grid; kept in ``folder``."""
    kept = folder / f"{path.name.split('.')[0]}.npz"
    if not kept.exists():
        scan = read_scan(path)
        pose = align(scan).acpc_from_scanner
        grid = hypothalamus_stored_grid()
        outlines, volumes = consensus(scan, pose, import_hypothalamus_seg(weights), grid)
        image = resample(scan.data, scan.grid, grid, onto_from_grid=pose, order=3)
        np.savez_compressed(kept, image=image, truth=outlines.posteriors[1:].astype(np.float16), volumes=volumes)
    return dict(np.load(kept))


def hypothalamus_stored_grid() -> Grid:
    """The training grid: what the network sees and 8 mm around it."""
    return box_grid((128, 80, 128), HYPOTHALAMUS_GEOMETRY.spacing_mm, HYPOTHALAMUS_GEOMETRY.centre_mm)


def hypothalamus_task(heads: list[dict[str, ndarray]]) -> Task:
    """Real heads with the consensus of the published network."""
    images = jnp.asarray(np.stack([_versions(head["image"], BLURS_MM, HYPOTHALAMUS_GEOMETRY, CORE) for head in heads]))
    truths = jnp.asarray(np.stack([head["truth"] for head in heads]))

    def make(key: PRNGKeyArray) -> Head:
        of_head, of_blur = jax.random.split(key)
        head = jax.random.randint(of_head, (), 0, len(images))
        blur = jax.random.choice(of_blur, len(BLURS_MM), p=jnp.array(BLUR_SHARES))
        return Head(images[head, blur].astype(jnp.float32), truths[head].astype(jnp.float32))

    grid = input_grid(HYPOTHALAMUS_GEOMETRY)
    return Task(make, hypothalamus_stored_grid(), grid, HYPOTHALAMUS_GEOMETRY, Variation(), lambda t: t[::-1])


def _versions(
    image: Float[ndarray, "i j k"], blurs_mm: Blurs, geometry: InputGeometry, core: tuple[slice, ...]
) -> ndarray:
    """The versions of one head, each scaled as the network's own box would be."""
    versions = [gaussian_filter(image, np.divide(blur, geometry.spacing_mm)) for blur in blurs_mm]
    return np.stack([scale_by(version, version[core]) for version in versions]).astype(np.float16)


def icv_head(path: Path, folder: Path) -> tuple[ndarray, list[str]]:
    """Tissue shares of one label map on the training grid, posed as hypodask poses a scan of it."""
    kept = folder / f"{path.name.split('.')[0]}.npz"
    if not kept.exists():
        image: Any = nib.load(path)
        labels = np.asarray(image.dataobj).astype(np.int16)
        grid = Grid(labels.shape, image.affine, "scanner")
        pose = align(_t1w_of(labels, grid, str(path))).acpc_from_scanner
        shares, names = tissue_shares(labels, grid, icv_stored_grid(), pose)
        np.savez_compressed(kept, shares=shares, names=np.array(names), icv_mm3=_icv_mm3(labels, grid))
    stored = np.load(kept)
    return stored["shares"], stored["names"].tolist()


def icv_stored_grid() -> Grid:
    """The training grid: the head box and 12 mm around it."""
    i, j, k = ICV_GEOMETRY.shape
    return box_grid((i + 12, j + 12, k + 12), ICV_GEOMETRY.spacing_mm, ICV_GEOMETRY.centre_mm)


def icv_task(maps: list[tuple[ndarray, list[str]]]) -> Task:
    """Label maps imaged with random contrasts; every head has the tissues of all, most of them empty."""
    names = sorted({name for _, own in maps for name in own})
    means, inside = (jnp.asarray(a) for a in tissue_means(names))
    shares = np.zeros((len(maps), len(names), *icv_stored_grid().shape), np.uint8)
    for head, (own_shares, own) in enumerate(maps):
        shares[head, [names.index(name) for name in own]] = own_shares

    @jax.jit
    def image(key: PRNGKeyArray, own: UInt8[Array, "tissue x y z"]) -> Head:
        parts = own.astype(jnp.float32) / 255
        return Head(image_of(key, parts, means, inside), jnp.tensordot(inside, parts, axes=1)[None])

    def make(key: PRNGKeyArray) -> Head:
        of_head, of_image = jax.random.split(key)
        return image(of_image, shares[int(jax.random.randint(of_head, (), 0, len(shares)))])

    variation = Variation(
        turn_deg=5, shift_mm=4, size=0.07, warp_mm=3, warp_spacing_mm=30, local_size=0, bias=0.25, noise=0.06
    )
    return Task(make, icv_stored_grid(), input_grid(ICV_GEOMETRY), ICV_GEOMETRY, variation, lambda t: t)


def _t1w_of(labels: ndarray, grid: Grid, source: str) -> Scan:
    """A plain T1-weighted image of a label map without its skull, only good for finding its pose."""
    numbers = np.unique(labels)
    table = np.zeros(numbers.max() + 1, np.float32)
    for number in numbers[numbers > 0]:
        name = next((n for n, group in TISSUES.items() if number in group), str(number))
        table[number] = T1_MEAN.get(name, 0.6) if number < 500 else 0.0
    return Scan(table[labels] * 1000, grid, source=source)


def _icv_mm3(labels: ndarray, grid: Grid) -> float:
    return float(((labels > 0) & (labels < 500)).sum() * grid.voxel_volume_mm3)


def train_hypothalamus(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...]) -> None:
    """Learn the hypothalamus from the real heads in ``data``, but those whose names are in ``leave_out``.

    With heads left out this measures: their overlap and volumes go to the log and to ``held-out.json``.
    """
    folder = _made(work / "hypothalamus")
    weights = next((data / "models").glob("*.h5"))
    paths = sorted([*(data / "scans").iterdir(), *(data / "scans_stripped").iterdir()])
    heads = {path.name.split(".")[0]: hypothalamus_head(path, weights, folder) for path in paths}
    kept = [head for name, head in heads.items() if name not in leave_out]
    run = _made(work / f"hypothalamus-{'without-' + '-'.join(leave_out) if leave_out else 'all'}"[:120])
    schedule = Schedule(steps=steps)
    model = train(hypothalamus_task(kept), HYPOTHALAMUS_NETWORK, schedule, checkpoint=run / "checkpoint.safetensors")
    card = _hypothalamus_card(len(kept), steps, _held_out(work, "hypothalamus"))
    save_weights(run / "hypothalamus.safetensors", model, card)
    network = ShippedNetwork(model, card, "")
    figures = {name: _agreement(network, heads[name]) for name in leave_out}
    _write_figures(run / "held-out.json", figures)


def outline_template(data: Path, work: Path) -> None:
    """Outline the hypothalamus of the MNI152 template, for phantoms: ``hypothalamus_mni152.npz``.

    The template is larger than adult heads and has no scalp. The published network is shown it at adult size
    and as bright as brains are in whole heads: as it is, volumes would vary three times as much between runs.
    No network is trained on this head, so that phantoms made of it are new to those shipped.
    """
    brain = mni152_brain()
    pose = align(Scan(brain.data, Grid(brain.grid.shape, brain.grid.space_from_vox, "scanner"))).acpc_from_scanner
    adult = np.diag([*ADULT_STRETCH, 1.0]) @ pose
    corner = np.diag([0.5, 0.5, 0.5, 1.0])
    corner[:3, 3] = (-15.75, -20.75, -24.75)
    grid = Grid((64, 64, 64), adult @ corner, "acpc")
    weights = next((data / "models").glob("*.h5"))
    options = ConsensusOptions(bright=WHOLE_HEAD_BRIGHT / TEMPLATE_BRIGHT)
    outlines, volumes = consensus(brain, adult, import_hypothalamus_seg(weights), grid, options=options)
    log.info("runs %s mm3, consensus %.0f mm3", volumes.round(), outlines.posteriors[1:].sum() * 0.125)
    posteriors = np.round(255 * outlines.posteriors[1:]).astype(np.uint8)
    np.savez_compressed(_made(work) / "hypothalamus_mni152.npz", posteriors=posteriors, mni_from_vox=corner)


def marked_head(path: Path, folder: Path) -> dict[str, ndarray]:
    """One real head in the AC-PC space that the raters' marks say, on the training grid; kept in ``folder``."""
    kept = folder / f"{path.name.split('.')[0]}.npz"
    if not kept.exists():
        scan = read_scan(path)
        found = register_template(scan).acpc_from_scanner
        ac, pc = rated_commissures_mm(path.name)
        pose = acpc_frame(ac, pc, found[0, :3])
        image = resample(scan.data, scan.grid, marked_grid(), onto_from_grid=pose, order=3)
        np.savez_compressed(kept, image=image, pose=pose, found=found, distance_mm=np.linalg.norm(ac - pc))
    return dict(np.load(kept))


def rated_commissures_mm(image: str) -> Float[ndarray, "2 3"]:
    """AC and PC of a public scan, scanner RAS+ mm: mean of the two raters of ``weights/commissures_marks.tsv``."""
    rows = pd.read_csv(MARKS, sep="\t").query("image == @image")
    columns = [f"{name}_{axis}_mm" for name in ("ac", "pc") for axis in "xyz"]
    return rows[columns].mean().to_numpy(float).reshape(2, 3)


def marked_template() -> dict[str, ndarray]:
    """The template's brain as one more head."""
    brain, ac, pc = mni152_brain(), np.array(AC_MNI_MM), np.array(PC_MNI_MM)
    pose = acpc_frame(ac, pc, np.array([1.0, 0.0, 0.0]))
    image = resample(brain.data, brain.grid, marked_grid(), onto_from_grid=pose, order=3)
    return {"image": image, "distance_mm": np.asarray(np.linalg.norm(ac - pc))}


def marked_heads(heads: list[dict[str, ndarray]]) -> MarkedHeads:
    """Heads ready to be drawn from, each as it is and as blurrier scanners would give it."""
    versions = [_versions(head["image"], COMMISSURE_BLURS_MM, COMMISSURE_GEOMETRY, MARKED_CORE) for head in heads]
    distances = [float(head["distance_mm"]) for head in heads]
    return MarkedHeads(
        jnp.asarray(np.stack(versions)), jnp.asarray(distances, jnp.float32), jnp.array(COMMISSURE_BLUR_SHARES)
    )


def train_commissures(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...]) -> None:
    """Learn the commissures from the heads that raters marked, but those whose names are in ``leave_out``.

    Colin27 and MNI152 2009c are never learnt from: published landmarks exist for them, and they measure. With heads
    left out this measures: the distances to the raters' marks go to the log and to ``held-out.json``.
    """
    folder, paths = _made(work / "commissures"), _marked_paths(data)
    heads = {path.name.split(".")[0]: marked_head(path, folder) for path in paths}
    kept = [head for name, head in heads.items() if name not in leave_out]
    run = _made(work / f"commissures-{'without-' + '-'.join(leave_out) if leave_out else 'all'}"[:120])
    draw = commissure_drawer(marked_heads([*kept, marked_template()]), batch=24)
    checkpoint = run / "checkpoint.safetensors"
    model = learn(draw, place_loss, COMMISSURE_NETWORK, Schedule(steps=steps), checkpoint=checkpoint)
    save_weights(run / "commissures.safetensors", model, _commissure_card(len(kept), steps, work))
    look = looker(model)
    figures = {
        path.name.split(".")[0]: _distances(path, heads, look) for path in paths if path.name.split(".")[0] in leave_out
    }
    (run / "held-out.json").write_text(json.dumps(figures, indent=1))
    for name, figure in figures.items():
        log.info("%s: AC %.2f mm, PC %.2f mm", name, figure["ac_mm"], figure["pc_mm"])


def _marked_paths(data: Path) -> list[Path]:
    """The scans that raters marked and that are learnt from."""
    marked = set(pd.read_csv(MARKS, sep="\t")["image"]) - set(NEVER_LEARNT)
    folders = ("scans", "scans_stripped", "scans_thick")
    return sorted(path for folder in folders for path in (data / folder).iterdir() if path.name in marked)


def _distances(path: Path, heads: dict[str, dict[str, ndarray]], look: Looker) -> dict[str, float]:
    """Distances of the commissures found in a head from the raters' marks, after two looks."""
    scan, pose = read_scan(path), heads[path.name.split(".")[0]]["found"]
    for _ in range(2):
        found = find_commissures(scan.data, scan.grid, pose, look=look)
        places = transform_points(np.linalg.inv(pose), np.array([found.ac_mm, found.pc_mm]))
        pose = refined_frame(pose, found)
    ac, pc = np.linalg.norm(places - rated_commissures_mm(path.name), axis=1)
    return {"ac_mm": float(ac), "pc_mm": float(pc)}


def _commissure_card(heads: int, steps: int, work: Path) -> ModelCard:
    """The card, with what every run that left heads out has measured."""
    files = sorted(work.glob("commissures-without-*/held-out.json"))
    figures = {name: figure for file in files for name, figure in json.loads(file.read_text()).items()}
    metrics: dict[str, float | str] = {}
    for name in ("ac_mm", "pc_mm") if figures else ():
        values = np.array([figure[name] for figure in figures.values()])
        metrics |= {
            f"{name}_median": round(float(np.median(values)), 2),
            f"{name}_largest": round(float(values.max()), 2),
        }
    if figures:
        metrics["measured_on"] = (
            f"{len(figures)} real heads ({', '.join(figures)}) that a network of the same recipe had not learnt from, "
            "against the mean of two raters; the shipped weights learnt from all of them"
        )
    return ModelCard(
        name="commissures",
        task="commissures",
        protocol="afids",
        architecture=COMMISSURE_NETWORK,
        geometry=COMMISSURE_GEOMETRY,
        training_data=(
            f"{heads} public T1-weighted heads, whole, skull-stripped and of 3 mm slices, whose commissures two raters "
            "marked on magnified slices, blind to each other (no trained neuroanatomists; marks 0.2 mm apart "
            "on average), and the MNI152 2009a template; varied in pose, shape, contrast, bias, noise and blur; "
            f"{steps} steps"
        ),
        licence="BSD-3-Clause",
        version="0.2.0",
        metrics=metrics,
        changelog=("0.2.0: first version",),
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_figures(path: Path, figures: Figures) -> None:
    path.write_text(json.dumps(figures, indent=1))
    for name, figure in figures.items():
        error = 100 * (figure["volume_mm3"] / figure["consensus_mm3"] - 1)
        log.info("%s: Dice %.3f, volume %+.1f %%", name, figure["dice"], error)


def _held_out(work: Path, network: str) -> Figures:
    """Figures of every head that some run left out."""
    files = sorted(work.glob(f"{network}-without-*/held-out.json"))
    return {name: figure for file in files for name, figure in json.loads(file.read_text()).items()}


def _metrics(figures: Figures, measured_on: str) -> Measured:
    """Summary of held-out figures for a model card, and the relative standard deviation of the volume."""
    if len(figures) < 3:
        return {}, None
    ratios = np.array([f["volume_mm3"] / f["consensus_mm3"] for f in figures.values()])
    overlaps = np.array([f["dice"] for f in figures.values()])
    metrics: dict[str, float | str] = {
        "dice_mean": round(float(overlaps.mean()), 4),
        "dice_lowest": round(float(overlaps.min()), 4),
        "volume_bias_percent": round(100 * float(ratios.mean() - 1), 2),
        "volume_sd_percent": round(100 * float(ratios.std(ddof=1)), 2),
        "measured_on": measured_on,
    }
    return metrics, float(np.sqrt(np.mean((ratios - 1) ** 2)))


def _hypothalamus_card(heads: int, steps: int, figures: Figures) -> ModelCard:
    measured_on = (
        f"{len(figures)} real heads ({', '.join(figures)}) that a network of the same recipe had not learnt from, only "
        "the other heads; against the consensus of the published network on them (pseudo-labels of another tool, not "
        "manual outlines). The shipped weights learnt from all heads"
    )
    training_data = (
        f"{heads} public T1-weighted heads, whole and skull-stripped, with the consensus of 24 runs of the published "
        "subunit network (Billot et al. 2020) as soft labels; varied in pose, shape, local size, contrast, bias, noise "
        f"and blur; {steps} steps"
    )
    return _card(
        HYPOTHALAMUS, HYPOTHALAMUS_NETWORK, HYPOTHALAMUS_GEOMETRY, training_data, _metrics(figures, measured_on)
    )


def _icv_card(heads: int, steps: int, figures: Figures) -> ModelCard:
    measured_on = (
        f"{len(figures)} synthetic images of label maps that were not trained on, at their known pose; no real scan "
        "with a known intracranial volume was at hand"
    )
    training_data = (
        f"{heads} whole-head label maps (FreeSurfer numbering with CSF and extracerebral tissue) imaged with random "
        f"contrasts, poses, shapes, bias, noise and skull-stripping; {steps} steps"
    )
    return _card(ICV, ICV_NETWORK, ICV_GEOMETRY, training_data, _metrics(figures, measured_on))


def _card(
    labels: LabelTable, network: UNetConfig, geometry: InputGeometry, training_data: str, measured: Measured
) -> ModelCard:
    """What both cards share: the network is named after the structure it outlines."""
    metrics, relative_sd = measured
    return ModelCard(
        name=labels.whole,
        task=cast(TaskName, labels.whole),
        protocol=labels.protocol,
        architecture=network,
        geometry=geometry,
        training_data=training_data,
        licence="BSD-3-Clause",
        version="0.1.0",
        metrics=metrics,
        relative_volume_sd=relative_sd,
        changelog=("0.1.0: first version",),
    )


def _agreement(network: ShippedNetwork, head: dict[str, ndarray]) -> dict[str, float]:
    """Overlap and volumes of one head against its consensus."""
    posteriors = network.posteriors(scale_by(head["image"], head["image"][CORE])[CORE])[1:]
    truth = head["truth"][(slice(None), *CORE)].astype(np.float32)
    voxel_mm3 = float(np.prod(HYPOTHALAMUS_GEOMETRY.spacing_mm))
    return {
        "dice": dice(posteriors.sum(0) > 0.5, truth.sum(0) > 0.5),
        "volume_mm3": float(posteriors.sum() * voxel_mm3),
        "consensus_mm3": float(truth.sum() * voxel_mm3),
    }


def train_icv(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...]) -> None:
    """Learn the intracranial cavity from label maps, but those whose names are in ``leave_out``."""
    folder = _made(work / "icv")
    paths = sorted((data / "label_maps").glob("*.nii.gz"))
    maps = {path.name.split(".")[0]: icv_head(path, folder) for path in paths}
    run = _made(work / "icv-all")
    task = icv_task([own for name, own in maps.items() if name not in leave_out])
    model = train(
        task, ICV_NETWORK, Schedule(steps=steps, heads=3, slices=5), checkpoint=run / "checkpoint.safetensors"
    )
    card = _icv_card(len(maps) - len(leave_out), steps, {})
    figures = _icv_agreement(ShippedNetwork(model, card, ""), [maps[name] for name in leave_out])
    _write_figures(run / "held-out.json", figures)
    save_weights(run / "icv.safetensors", model, _icv_card(len(maps) - len(leave_out), steps, figures))


def _icv_agreement(network: ShippedNetwork, maps: list[tuple[ndarray, list[str]]]) -> Figures:
    """Volume and overlap of label maps that were not trained on, each imaged four times."""
    task, figures = icv_task(maps), {}
    core = np.s_[6:-6, 6:-6, 6:-6]
    for number in range(4 * len(maps)):
        head = task.make(jax.random.key(1000 + number))
        posteriors = network.posteriors(np.clip(np.asarray(head.image)[core], 0, 1.5))
        truth = np.asarray(head.truth[0])[core]
        figures[f"image {number}"] = {
            "dice": dice(posteriors[1] > 0.5, truth > 0.5),
            "volume_mm3": float(posteriors[1].sum() * 8),
            "consensus_mm3": float(truth.sum() * 8),
        }
    return figures


def main() -> None:
    """Run one recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["hypothalamus", "icv", "commissures", "template"])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--leave-out", nargs="*", default=())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.network == "template":
        outline_template(options.data, options.work)
        return
    recipes = {"hypothalamus": train_hypothalamus, "icv": train_icv, "commissures": train_commissures}
    recipes[options.network](options.data, options.work, steps=options.steps, leave_out=tuple(options.leave_out))


if __name__ == "__main__":
    main()
