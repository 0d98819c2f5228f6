"""The intracranial cavity, learnt from label maps of whole heads."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from jaxtyping import Array, PRNGKeyArray, UInt8
from numpy import ndarray

from hypodask.agreement import dice
from hypodask.alignment import align
from hypodask.grid import Grid, box_grid, head_grid
from hypodask.labels import ICV
from hypodask.network.augment import Variation
from hypodask.network.learn import Schedule
from hypodask.network.unet import UNetConfig
from hypodask.network.weights import InputGeometry, ModelCard, save_weights
from hypodask.recipes.figures import Figures, made, summary, whole_card, write_figures
from hypodask.scan import Scan
from hypodask.segmentation.predict import ShippedNetwork, input_grid
from hypodask.segmentation.synth import T1_MEAN, TISSUES, image_of, tissue_means, tissue_shares
from hypodask.segmentation.train import Head, Task, train

log = logging.getLogger(__name__)

ICV_GEOMETRY = InputGeometry(
    spacing_mm=(2.0, 2.0, 2.0),
    shape=head_grid(2.0).shape,
    slices=5,
    slice_axis=1,
    intensity="head_median",
    centre_mm=tuple(head_grid(2.0).centre_mm.tolist()),
)

ICV_NETWORK = UNetConfig(in_channels=5, out_channels=2, widths=(12, 24, 48, 96))


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


def train_icv(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...]) -> None:
    """Learn the intracranial cavity from label maps, but those whose names are in ``leave_out``."""
    folder = made(work / "icv")
    paths = sorted((data / "label_maps").glob("*.nii.gz"))
    maps = {path.name.split(".")[0]: icv_head(path, folder) for path in paths}
    run = made(work / "icv-all")
    task = icv_task([own for name, own in maps.items() if name not in leave_out])
    model = train(
        task, ICV_NETWORK, Schedule(steps=steps, heads=3, slices=5), checkpoint=run / "checkpoint.safetensors"
    )
    card = _icv_card(len(maps) - len(leave_out), steps, {})
    figures = _icv_agreement(ShippedNetwork((model,), card, ""), [maps[name] for name in leave_out])
    write_figures(run / "held-out.json", figures)
    save_weights(run / "icv.safetensors", model, _icv_card(len(maps) - len(leave_out), steps, figures))


def _icv_card(heads: int, steps: int, figures: Figures) -> ModelCard:
    measured_on = (
        f"{len(figures)} synthetic images of label maps that were not trained on, at their known pose; no real scan "
        "with a known intracranial volume was at hand"
    )
    training_data = (
        f"{heads} whole-head label maps (FreeSurfer numbering with CSF and extracerebral tissue) imaged with random "
        f"contrasts, poses, shapes, bias, noise and skull-stripping; {steps} steps"
    )
    return whole_card(ICV, ICV_NETWORK, ICV_GEOMETRY, training_data, summary(figures, measured_on))


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
