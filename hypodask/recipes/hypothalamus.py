"""The hypothalamus, learnt from the consensus of the published network on real heads."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float16, PRNGKeyArray
from numpy import ndarray

from hypodask.agreement import dice
from hypodask.alignment import align
from hypodask.grid import SLAB_CENTRE_MM, Grid, box_grid, transform_points
from hypodask.intensity import scale_by
from hypodask.labels import HYPOTHALAMUS, LabelTable
from hypodask.network.augment import Variation
from hypodask.network.learn import Schedule
from hypodask.network.unet import UNetConfig
from hypodask.network.weights import InputGeometry, ModelCard, save_weights
from hypodask.recipes.figures import Figures, held_out, made, summary, whole_card, write_figures
from hypodask.recipes.versions import BLUR_SHARES, BLURS_MM, versions_of
from hypodask.resample import resample
from hypodask.scan import read_scan
from hypodask.segmentation.growth import growth_field, halved, halved_grid, third_ventricle
from hypodask.segmentation.keras_import import import_hypothalamus_seg
from hypodask.segmentation.predict import ShippedNetwork, input_grid, mirrored_channels
from hypodask.segmentation.teacher import consensus
from hypodask.segmentation.train import Head, Task, train

log = logging.getLogger(__name__)

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

PLAIN = Variation()
"""How far examples are varied."""

UNSURE = (0.2, 0.8)
"""Posteriors of the consensus that become 0 and 1."""

GROWTH_SD = {"both": 0.12, "left": 0.05, "right": 0.05, "ventricle": 0.3}
"""Standard deviations of relative volume by which examples differ from the head they are made of."""


def hypothalamus_head(path: Path, weights: Path, folder: Path) -> dict[str, ndarray]:
    """Image and consensus of one real head on the training grid, and the runs' volumes; kept in ``folder``."""
    kept = folder / f"{path.name.split('.')[0]}.npz"
    if not kept.exists():
        scan = read_scan(path)
        pose = align(scan).acpc_from_scanner
        grid = hypothalamus_stored_grid()
        outlines, volumes = consensus(scan, pose, import_hypothalamus_seg(weights), grid)
        image = resample(scan.data, scan.grid, grid, onto_from_grid=pose, order=3)
        np.savez_compressed(
            kept, image=image, truth=outlines.posteriors[1:].astype(np.float16), volumes=volumes, pose=pose
        )
    return dict(np.load(kept))


def hypothalamus_stored_grid() -> Grid:
    """The training grid: what the network sees and 8 mm around it."""
    i, j, k = HYPOTHALAMUS_GEOMETRY.shape
    return box_grid((i + 32, j + 30, k + 32), HYPOTHALAMUS_GEOMETRY.spacing_mm, HYPOTHALAMUS_GEOMETRY.centre_mm)


def hypothalamus_task(heads: list[dict[str, ndarray]]) -> Task:
    """Real heads with the consensus of the published network."""
    return outlined_task([head | {"truth": sharpened(head["truth"])} for head in heads], HYPOTHALAMUS)


def outlined_task(heads: list[dict[str, ndarray]], labels: LabelTable, variation: Variation = PLAIN) -> Task:
    """Heads on the training grid: ``image``, and as ``truth`` the soft labels without background."""
    versions = [versions_of(head["image"], BLURS_MM, HYPOTHALAMUS_GEOMETRY, CORE) for head in heads]
    images = jnp.asarray(np.stack(versions))
    truths = jnp.asarray(np.stack([np.moveaxis(head["truth"], 0, -1) for head in heads]))
    growths = jnp.asarray(np.stack([growth_of(head, labels) for head in heads]))
    exchanged = np.array(mirrored_channels(labels))[1:] - 1

    def make(key: PRNGKeyArray) -> Head:
        of_head, of_blur = jax.random.split(key)
        head = jax.random.randint(of_head, (), 0, len(images))
        blur = jax.random.choice(of_blur, len(BLURS_MM), p=jnp.array(BLUR_SHARES))
        return Head(images[head, blur], truths[head], growths[head])

    return Task(
        jax.jit(make),
        hypothalamus_stored_grid(),
        input_grid(HYPOTHALAMUS_GEOMETRY),
        HYPOTHALAMUS_GEOMETRY,
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


def growth_of(head: dict[str, ndarray], labels: LabelTable) -> Float[ndarray, "field 3 x y z"]:
    """Displacements of one standard deviation by which both sides, each side and the third ventricle grow, mm."""
    grid = halved_grid(hypothalamus_stored_grid())
    image, *parts = (halved(volume) for volume in (scaled(head["image"]), *head["truth"]))
    sides = {
        side: np.sum([part * (label.hemisphere == side) for part, label in zip(parts, labels, strict=True)], axis=0)
        for side in ("left", "right")
    }
    places = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    structures = sides | {"both": np.sum(parts, axis=0), "ventricle": third_ventricle(image, places)}
    return np.stack([sd * growth_field(structures[name], grid.spacing_mm) for name, sd in GROWTH_SD.items()])


def scaled(image: Float[ndarray, "i j k"]) -> Float[ndarray, "i j k"]:
    """An image on the training grid in units of white matter, as the network's own box would be."""
    return scale_by(image, image[CORE])


def train_hypothalamus(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...]) -> None:
    """Learn the hypothalamus from the real heads in ``data``, but those whose names are in ``leave_out``.

    With heads left out this measures: their overlap and volumes go to the log and to ``held-out.json``.
    """
    folder = made(work / "hypothalamus")
    weights = next((data / "models").glob("*.h5"))
    paths = sorted([*(data / "scans").iterdir(), *(data / "scans_stripped").iterdir()])
    heads = {path.name.split(".")[0]: hypothalamus_head(path, weights, folder) for path in paths}
    kept = [head for name, head in heads.items() if name not in leave_out]
    run = made(work / f"hypothalamus-{'without-' + '-'.join(leave_out) if leave_out else 'all'}"[:120])
    schedule = Schedule(steps=steps)
    model = train(hypothalamus_task(kept), HYPOTHALAMUS_NETWORK, schedule, checkpoint=run / "checkpoint.safetensors")
    card = _hypothalamus_card(len(kept), steps, held_out(work, "hypothalamus"))
    save_weights(run / "hypothalamus.safetensors", model, card)
    network = ShippedNetwork((model,), card, "")
    figures = {name: _agreement(network, heads[name]) for name in leave_out}
    write_figures(run / "held-out.json", figures)


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
    return whole_card(
        HYPOTHALAMUS, HYPOTHALAMUS_NETWORK, HYPOTHALAMUS_GEOMETRY, training_data, summary(figures, measured_on)
    )


def _agreement(network: ShippedNetwork, head: dict[str, ndarray]) -> dict[str, float]:
    """Overlap and volumes of one head against its consensus."""
    posteriors = network.posteriors(scaled(head["image"])[CORE])[1:]
    truth = head["truth"][(slice(None), *CORE)].astype(np.float32)
    voxel_mm3 = float(np.prod(HYPOTHALAMUS_GEOMETRY.spacing_mm))
    return {
        "dice": dice(posteriors.sum(0) > 0.5, truth.sum(0) > 0.5),
        "volume_mm3": float(posteriors.sum() * voxel_mm3),
        "consensus_mm3": float(truth.sum() * voxel_mm3),
    }
