"""The commissures, learnt from two raters' marks."""

import json
import logging
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from hypodask.alignment import acpc_frame
from hypodask.alignment.brain import register_template
from hypodask.alignment.commissures import GEOMETRY as COMMISSURE_GEOMETRY
from hypodask.alignment.commissures import NETWORK as COMMISSURE_NETWORK
from hypodask.alignment.commissures import CommissureNetwork, commissure_network, find_commissures, refined_frame
from hypodask.core.grid import transform_points
from hypodask.image.resampling import resample
from hypodask.learning.commissures import MarkedHeads, marked_grid, place_loss
from hypodask.learning.commissures import drawer as commissure_drawer
from hypodask.learning.loop import Schedule, learn
from hypodask.learning.scanner_versions import Scanner, blurred, sharp, softer, versions_of
from hypodask.networks.cards import ModelCard
from hypodask.networks.weights import save_weights
from hypodask.scan import read_scan
from hypodask.scan.template import MNI152
from recipes.figures import made, name_of

log = logging.getLogger(__name__)

COMMISSURE_SCANNERS: dict[Scanner, float] = {
    sharp: 0.45,
    softer: 0.2,
    partial(blurred, sd_mm=(1.2, 1.2, 1.2)): 0.11,
    **{partial(blurred, sd_mm=sd_mm): 0.08 for sd_mm in ((1.27, 0, 0), (0, 1.27, 0), (0, 0, 1.27))},
}
"""Scanners that show a head, each with its share of the examples; voxels of 2 mm and slices of 3 mm among them."""

_MARKED_CORE = np.s_[14:-14, 24:-24, 20:-20]
"""The part of its training grid that the commissure network sees."""

MARKS = Path(__file__).parent / "commissures_marks.tsv"
"""Commissures of public scans, marked by two raters, scanner RAS+ mm, and how unsure each was."""

NEVER_LEARNT = ("colin27_ch2.nii.gz", "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz")
"""Scans with published landmarks, kept for measuring."""


def _marked_head(path: Path, folder: Path) -> dict[str, ndarray]:
    """One scan in the AC-PC space of the raters' marks, on the training grid; kept in ``folder``."""
    kept = folder / f"{name_of(path)}.npz"
    if not kept.exists():
        scan = read_scan(path)
        found = register_template(scan).acpc_from_scanner
        ac, pc = rated_commissures_mm(path.name)
        pose = acpc_frame(ac, pc, found[0, :3])
        image = resample(scan.data, scan.grid, marked_grid(), onto_from_grid=pose, order=3)
        np.savez_compressed(kept, image=image, pose=pose, found=found, distance_mm=np.linalg.norm(ac - pc))
    return dict(np.load(kept))


def rated_commissures_mm(image: str) -> Float[ndarray, "2 3"]:
    """AC and PC of a public scan, scanner RAS+ mm: mean of the two raters in ``recipes/commissures_marks.tsv``."""
    rows = pd.read_csv(MARKS, sep="\t").query("image == @image")
    columns = [f"{name}_{axis}_mm" for name in ("ac", "pc") for axis in "xyz"]
    return rows[columns].mean().to_numpy(float).reshape(2, 3)


def _marked_template() -> dict[str, ndarray]:
    """The template's brain as one more head."""
    brain, (ac, pc) = MNI152.brain, MNI152.commissures_mm
    pose = acpc_frame(ac, pc, np.array([1.0, 0.0, 0.0]))
    image = resample(brain.data, brain.grid, marked_grid(), onto_from_grid=pose, order=3)
    return {"image": image, "distance_mm": np.asarray(np.linalg.norm(ac - pc))}


def _marked_heads(heads: list[dict[str, ndarray]]) -> MarkedHeads:
    """Scans for the drawing of examples, each as it is and as blurrier scanners would give it."""
    scanners = tuple(COMMISSURE_SCANNERS)
    versions = [versions_of(head["image"], scanners, COMMISSURE_GEOMETRY, _MARKED_CORE) for head in heads]
    distances = [float(head["distance_mm"]) for head in heads]
    shares = jnp.array(list(COMMISSURE_SCANNERS.values()))
    return MarkedHeads(jnp.asarray(np.stack(versions)), jnp.asarray(distances, jnp.float32), shares)


def train_commissures(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...]) -> None:
    """Learn the commissures from the scans that raters marked, except those whose names are in ``leave_out``.

    Colin27 and MNI152 2009c are never learnt from: they have published landmarks and are kept for measuring. On the
    scans that are left out the distances to the raters' marks are measured; they go to the log and to
    ``held-out.json``.
    """
    folder, paths = made(work / "commissures"), _marked_paths(data)
    heads = {name_of(path): _marked_head(path, folder) for path in paths}
    kept = [head for name, head in heads.items() if name not in leave_out]
    run = made(work / f"commissures-{'without-' + '-'.join(leave_out) if leave_out else 'all'}"[:120])
    draw = commissure_drawer(_marked_heads([*kept, _marked_template()]), batch=24)
    checkpoint = run / "checkpoint"
    model = learn(draw, place_loss, COMMISSURE_NETWORK, Schedule(steps=steps), checkpoint=checkpoint)
    save_weights(run / "commissures.safetensors", model, _commissure_card(len(kept), steps, work))
    network = commissure_network(model)
    figures = {name_of(path): _distances(path, heads, network) for path in paths if name_of(path) in leave_out}
    (run / "held-out.json").write_text(json.dumps(figures, indent=1))
    for name, figure in figures.items():
        log.info("%s: AC %.2f mm, PC %.2f mm", name, figure["ac_mm"], figure["pc_mm"])


def _marked_paths(data: Path) -> list[Path]:
    """The scans that raters marked, except those kept for measuring."""
    marked = set(pd.read_csv(MARKS, sep="\t")["image"]) - set(NEVER_LEARNT)
    folders = ("scans", "scans_stripped", "scans_thick")
    return sorted(path for folder in folders for path in (data / folder).iterdir() if path.name in marked)


def _distances(path: Path, heads: dict[str, dict[str, ndarray]], network: CommissureNetwork) -> dict[str, float]:
    """Distances of the commissures found in a head from the raters' marks, by the network applied twice."""
    scan, pose = read_scan(path), heads[name_of(path)]["found"]
    for _ in range(2):
        found = find_commissures(scan.data, scan.grid, pose, network=network)
        places = transform_points(np.linalg.inv(pose), np.array([found.ac_mm, found.pc_mm]))
        pose = refined_frame(pose, found)
    ac, pc = np.linalg.norm(places - rated_commissures_mm(path.name), axis=1)
    return {"ac_mm": float(ac), "pc_mm": float(pc)}


def _commissure_card(heads: int, steps: int, work: Path) -> ModelCard:
    """The card, with the figures of every run that left scans out."""
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
