"""The network that moves the ICV boundary: learnt from label maps, measured on others."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, PRNGKeyArray
from numpy import ndarray
from scipy import ndimage

from hypodask.core.structures import ICV
from hypodask.image.intensity import spread_dark
from hypodask.learning import scanner
from hypodask.learning.loop import Drawer, Schedule, learn
from hypodask.learning.synthetic_heads import SINUS, Heads, Whole, stacked, whole
from hypodask.networks.cards import ModelCard
from hypodask.networks.weights import resolve_model, save_weights
from hypodask.segmentation.icv_border import (
    BOUNDARY_ARCHITECTURE,
    BOUNDARY_GEOMETRY,
    LARGEST_MOVE_MM,
    LOCATION_SCALE_MM,
    OFFSETS_MM,
    REACH_MM,
    SKULL_BASE_MM,
    SMOOTH_GUESS_MM,
    STEP_MM,
    BoundaryNetwork,
    Normals,
    location_features,
    network_input,
    normals_at,
    profiles,
    signed_distance,
    surface_voxels,
)
from hypodask.segmentation.load import load_network
from hypodask.segmentation.network import Ensemble
from recipes.figures import Figures, made, summary, whole_card, write_figures
from recipes.icv import ICV_VARIATION, icv_agreement, learnt_and_left_out

log = logging.getLogger(__name__)

_IMAGES, _NORMALS_OF_AN_IMAGE = 400, 4000
"""Synthetic images, each with another head, boundary and contrast, and normals taken from each."""

BATCH, _LEARNING_RATE = 512, 2e-3

_SHIFT_MM = 1.0
"""Standard deviation of the error of a guess as a whole."""

_BULGES = ((1.5, 24.0), (0.7, 7.0))
"""Largest local error of a guess, and the length over which it varies: like the errors of a network."""

SINUS_RIM_MM = 6.0
"""Outer rim of a venous sinus that a guess leaves out at most: with its walls a sinus looks like the inside."""

_FEET_JITTER = 12 / LOCATION_SCALE_MM
"""Standard deviation of the noise on the position of a normal: the part of the skull helps, but with the exact position
the network would guess the boundary from where skulls usually are."""

_MEASURED_AGAIN = (("0.1.2", "0.6.0"), ("0.1.1", "0.5.0"))
"""Versions whose weights are those of 0.1.0, and the versions of ``icv`` whose boundary they moved."""

GRID = BOUNDARY_GEOMETRY.grid


class Examples(NamedTuple):
    """Normals and the place of the boundary on each."""

    lines: Float16[ndarray, "n line place"]
    around: Float32[ndarray, "n 6"]
    places_mm: Float32[ndarray, "n"]


def train_border(data: Path, work: Path, *, steps: int, leave_out: tuple[str, ...]) -> None:
    """Learn where on its normals the ICV boundary is, from all label maps but those named in ``leave_out``."""
    folder, run = made(work / "icv"), made(work / "border")
    maps, held_out = learnt_and_left_out(data, folder, leave_out)
    examples = _drawn(stacked(maps), made(run / "examples"))
    schedule = Schedule(steps=steps, heads=BATCH, slices=1, learning_rate=_LEARNING_RATE)
    model = learn(batches(examples), unlikeliness, BOUNDARY_ARCHITECTURE, schedule, checkpoint=run / "checkpoint")
    card = partial(border_card, len(maps), steps)
    # Loaded by its path it comes without the network that moves its boundary.
    first = cast(Ensemble, load_network(resolve_model("icv")))
    network = BoundaryNetwork(first, Ensemble((model,), card({}), ""))
    figures = icv_agreement(network, held_out)
    write_figures(run / "held-out.json", figures)
    save_weights(run / "icv-border.safetensors", model, card(figures))


def _drawn(heads: Heads, folder: Path) -> Examples:
    """Examples of every image, kept in a file per image, so that a run that was interrupted goes on."""
    image_of = jax.jit(partial(_image_and_error, heads=heads))
    parts = []
    for number in range(_IMAGES):
        kept = folder / f"{number:04d}.npz"
        if not kept.exists():
            head, off = image_of(jax.random.key(number))
            np.savez(kept, **examples_of(head, np.asarray(off), number)._asdict())
            log.info("image %d of %d", number + 1, _IMAGES)
        parts.append(Examples(**np.load(kept)))
    return Examples(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _image_and_error(key: PRNGKeyArray, heads: Heads) -> tuple[Whole, Array]:
    """A head, and the error of a guess of its ICV."""
    of_image, of_guess = jax.random.split(key)
    return whole(of_image, heads, GRID, ICV_VARIATION), wrong_by(of_guess, GRID.shape)


def wrong_by(key: PRNGKeyArray, shape: tuple[int, int, int]) -> Float[Array, "x y z"]:
    """How far outside of the boundary a guess is, mm: a common and a local error."""
    of_shift, *keys = jax.random.split(key, 1 + 2 * len(_BULGES))
    off = _SHIFT_MM * jax.random.normal(of_shift) + jnp.zeros(shape)
    for (most, length), of_size, of_field in zip(_BULGES, keys[::2], keys[1::2], strict=True):
        x, y, z = (int(np.ceil(size / length)) + 1 for size in shape)
        off += most * jax.random.uniform(of_size) * scanner.smooth_noise(of_field, shape, (x, y, z))
    return jnp.clip(off, -LARGEST_MOVE_MM, LARGEST_MOVE_MM)


def guessed(head: Whole, off: Float[ndarray, "x y z"], sinus_mm: float) -> Float32[ndarray, "x y z"]:
    """Distance from a guess, which counts venous sinuses as inside except for so much of their outer rim."""
    beyond = np.asarray(head.beyond_mm)
    taken = signed_distance((beyond <= 0) | np.asarray(head.tissues == SINUS)) + sinus_mm
    return np.asarray(ndimage.gaussian_filter(np.minimum(beyond, taken), SMOOTH_GUESS_MM) - off, np.float32)


def examples_of(head: Whole, off: Float[ndarray, "x y z"], seed: int) -> Examples:
    """Normals of a guess that is off by so many mm, and the place of the boundary on each."""
    random = np.random.default_rng(seed)
    guess = guessed(head, off, random.uniform(0, SINUS_RIM_MM))
    normals = normals_at(guess, random.permutation(surface_voxels(guess))[:_NORMALS_OF_AN_IMAGE])
    turns = random.uniform(0, 2 * np.pi, len(normals.feet))
    lines = profiles(spread_dark(np.asarray(head.image)), normals, turns).astype(np.float16)
    places = border_along(np.asarray(head.beyond_mm), normals)
    height = GRID.space_from_vox[2, 3] + normals.feet[:, 2]
    known = np.isfinite(places) & (height > SKULL_BASE_MM)
    return Examples(lines[known], location_features(normals, GRID)[known], places[known])


def border_along(beyond: Float[ndarray, "x y z"], normals: Normals) -> Float32[ndarray, "n"]:
    """Where each normal leaves the ICV, nearest to its foot, mm; NaN where it does not."""
    places = normals.feet[:, None] + OFFSETS_MM[:, None] * normals.directions[:, None]
    along = ndimage.map_coordinates(beyond, places.reshape(-1, 3).T, order=1, mode="nearest").reshape(len(places), -1)
    here, there = along[:, :-1], along[:, 1:]
    leaves = (here <= 0) & (there > 0)
    where = OFFSETS_MM[:-1] + STEP_MM * -here / np.where(leaves, there - here, 1)
    where = np.where(leaves, where, np.nan)
    nearest = np.where(leaves, np.abs(where), np.inf).argmin(axis=1)
    return where[np.arange(len(where)), nearest].astype(np.float32)


def batches(examples: Examples) -> Drawer:
    """Draws a batch: normals with noise on their position, and the share of the boundary at each place."""
    lines, around, places = (jnp.asarray(part) for part in examples)

    @jax.jit
    def batch(key: PRNGKeyArray) -> tuple[Array, Array]:
        of_rows, of_jitter = jax.random.split(key)
        rows = jax.random.randint(of_rows, (BATCH,), 0, len(places))
        feet_told = around[rows].at[:, :3].add(_FEET_JITTER * jax.random.normal(of_jitter, (BATCH, 3)))
        return network_input(lines[rows].astype(jnp.float32), feet_told), shares(places[rows])

    return batch


def shares(places_mm: Float[Array, "n"]) -> Float[Array, "n place"]:
    """A place as shares of the two samples that it lies between.

    >>> shares(jnp.array([-8.0, 0.125]))[:, [0, 16, 17]].tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.75, 0.25]]
    """
    steps = (jnp.clip(places_mm, -REACH_MM, REACH_MM) + REACH_MM) / STEP_MM
    return jnp.clip(1 - jnp.abs(steps[:, None] - jnp.arange(len(OFFSETS_MM))), 0.0, 1.0)


def unlikeliness(answer: Float[Array, "n place"], truth: Float[Array, "n place"]) -> Float[Array, ""]:
    """Cross-entropy over the places of a normal."""
    return -(truth * jax.nn.log_softmax(answer)).sum(axis=-1).mean()


def border_card(heads: int, steps: int, figures: Figures) -> ModelCard:
    """The card of the network, with figures of ICV masks whose boundary it moved."""
    measured_on = (
        f"{len(figures)} synthetic T1-weighted scans of label maps that were not trained on, outlined by the network "
        "icv and moved by this one; no real scan with a known intracranial volume was at hand"
    )
    training_data = (
        f"normals of {_IMAGES} synthetic images of {heads} whole-head label maps, as those that the network icv learns "
        f"from, whose border was guessed wrong by some millimetres; {steps} steps of {BATCH} normals"
    )
    measured = summary(figures, measured_on)
    card = whole_card(ICV, BOUNDARY_ARCHITECTURE, BOUNDARY_GEOMETRY, training_data, measured, task="icv-border")
    heads_measured = len({name.split()[0] for name in figures})
    again = [f"{mine}: the same weights, measured with the outlines of icv {its}" for mine, its in _MEASURED_AGAIN]
    sized = "0.2.0: the same weights, for heads at the size of an average adult's; the figures are those of 0.1.2"
    changes = (sized, *again, *card.changelog)
    # One head says nothing about the variation between heads.
    return replace(
        card, version="0.2.0", changelog=changes, volume_heads=heads_measured if heads_measured > 1 else None
    )
