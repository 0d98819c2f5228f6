"""The hypothalamus, learnt from the consensus of the published network on real heads."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy import ndarray

from hypodask.agreement import dice
from hypodask.alignment import align
from hypodask.grid import Grid, box_grid
from hypodask.intensity import scale_by
from hypodask.labels import HYPOTHALAMUS
from hypodask.network.augment import Variation
from hypodask.network.learn import Schedule
from hypodask.network.unet import UNetConfig
from hypodask.network.weights import InputGeometry, ModelCard, save_weights
from hypodask.recipes.figures import Figures, held_out, made, summary, whole_card, write_figures
from hypodask.recipes.versions import BLUR_SHARES, BLURS_MM, versions_of
from hypodask.resample import resample
from hypodask.scan import read_scan
from hypodask.segmentation.keras_import import import_hypothalamus_seg
from hypodask.segmentation.predict import ShippedNetwork, input_grid
from hypodask.segmentation.teacher import consensus
from hypodask.segmentation.train import Head, Task, train

log = logging.getLogger(__name__)

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

CORE = np.s_[16:-16, 15:-15, 16:-16]
"""What the network sees of the hypothalamic training grid."""

HYPOTHALAMUS_NETWORK = UNetConfig(in_channels=5, out_channels=3, widths=(16, 32, 64, 96))


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
    images = jnp.asarray(
        np.stack([versions_of(head["image"], BLURS_MM, HYPOTHALAMUS_GEOMETRY, CORE) for head in heads])
    )
    truths = jnp.asarray(np.stack([head["truth"] for head in heads]))

    def make(key: PRNGKeyArray) -> Head:
        of_head, of_blur = jax.random.split(key)
        head = jax.random.randint(of_head, (), 0, len(images))
        blur = jax.random.choice(of_blur, len(BLURS_MM), p=jnp.array(BLUR_SHARES))
        return Head(images[head, blur].astype(jnp.float32), truths[head].astype(jnp.float32))

    grid = input_grid(HYPOTHALAMUS_GEOMETRY)
    return Task(make, hypothalamus_stored_grid(), grid, HYPOTHALAMUS_GEOMETRY, Variation(), lambda t: t[::-1])


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
    network = ShippedNetwork(model, card, "")
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
    posteriors = network.posteriors(scale_by(head["image"], head["image"][CORE])[CORE])[1:]
    truth = head["truth"][(slice(None), *CORE)].astype(np.float32)
    voxel_mm3 = float(np.prod(HYPOTHALAMUS_GEOMETRY.spacing_mm))
    return {
        "dice": dice(posteriors.sum(0) > 0.5, truth.sum(0) > 0.5),
        "volume_mm3": float(posteriors.sum() * voxel_mm3),
        "consensus_mm3": float(truth.sum() * voxel_mm3),
    }
