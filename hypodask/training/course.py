"""The course of one network: it learns, and is watched on the subjects that it does not see.

At every checkpoint its loss and overlap on them are noted, beside the training loss. With patience it stops once they
have not got better for as many checkpoints, and the best one is taken. What was noted is kept beside the checkpoint,
so that a course gone on from ends as an undisturbed one does.
"""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from numpy import ndarray

from hypodask.agreement import dice
from hypodask.labels import LabelTable
from hypodask.network.architectures import AnyNetwork
from hypodask.network.checkpoints import keep, restored
from hypodask.network.learn import Learnt, learning
from hypodask.network.unet import predictor
from hypodask.network.weights import save_weights
from hypodask.recipes.hypothalamus import CORE, HYPOTHALAMUS_GEOMETRY, outlined_task, scaled
from hypodask.segmentation.losses import segmentation_loss
from hypodask.segmentation.predict import neighbours
from hypodask.segmentation.train import drawer
from hypodask.training.card import card_of, data_of
from hypodask.training.config import Folds, TrainingConfig
from hypodask.training.preparation import load_head
from hypodask.training.start import start_of

log = logging.getLogger(__name__)

WEIGHTS_NAME = "hypothalamus.safetensors"


class Note(NamedTuple):
    """What is noted at a checkpoint; a row of ``metrics.tsv``."""

    fold: int
    step: int
    training_loss: float
    """Mean since the checkpoint before, on varied examples."""
    held_out_loss: float
    """Mean over the subjects held out, not varied."""
    held_out_dice: float
    """Of the whole structure, mean over the subjects held out."""


@dataclass(frozen=True)
class Course:
    """One network to be learnt."""

    fold: int
    """Number of the subjects that are held out; 0 for none."""
    seen: tuple[str, ...]
    """Prepared subjects to learn from."""
    participants: int
    """How many people these are."""
    held_out: tuple[str, ...]
    folder: str
    config: TrainingConfig
    labels: LabelTable

    @property
    def weights(self) -> Path:
        """Written last."""
        return Path(self.folder) / WEIGHTS_NAME


def run_course(course: Course) -> Path:
    """Learn one network, or go on with it; its weights, which are a model of their own."""
    if course.weights.exists():
        return course.weights
    start, watch = start_of(course.config, course.labels), Watch(course)
    heads = [load_head(path) for path in course.seen]
    task = outlined_task(heads, course.labels, course.config.variation, start.geometry)
    schedule = replace(course.config.schedule, seed=course.config.schedule.seed + course.fold)
    stops = learning(
        drawer(task, schedule),
        segmentation_loss,
        start.architecture,
        schedule,
        checkpoint=Path(course.folder) / "checkpoint",
        initial=start.of_fold(course.fold),
    )
    for learnt in stops:
        watch.look(learnt)
        if watch.is_over():
            log.info("fold %d stops: no better for %d checkpoints", course.fold, course.config.folds.patience)
            break
    text = data_of(course.config, start, course.participants, len(course.seen))
    return save_weights(course.weights, watch.chosen(learnt), card_of(course.config, start, course.labels, text))


class Watch:
    """Notes of one course, and its best network so far."""

    def __init__(self, course: Course) -> None:
        self._folder, self._fold, self._folds = Path(course.folder), course.fold, course.config.folds
        self._held_out = [load_head(path) for path in course.held_out]
        self._notes = read_notes(self._folder)

    def look(self, learnt: Learnt) -> None:
        """Note where the network is, unless that was noted before the run was interrupted."""
        if learnt.step in [note.step for note in self._notes]:
            return
        note = Note(self._fold, learnt.step, learnt.loss, *assess(learnt.model, self._held_out))
        log.info("fold %d step %d: held-out loss %.4f, Dice %.3f", *note[:2], *note[3:])
        if self._folds.patience and best_of([*self._notes, note], self._folds) == note:
            keep(self._folder / "best", learnt.step, nnx.state(learnt.model))
        self._notes.append(note)
        write_notes(self._folder / "metrics.tsv", self._notes)

    def is_over(self) -> bool:
        """Whether patience is at its end."""
        if not self._folds.patience:
            return False
        best = best_of(self._notes, self._folds)
        return sum(note.step > best.step for note in self._notes) >= self._folds.patience

    def chosen(self, last: Learnt) -> AnyNetwork:
        """The network to keep: the last one or, with patience, the best one."""
        if self._folds.patience:
            nnx.update(last.model, restored(self._folder / "best", nnx.state(last.model)))
        return last.model


def best_of(notes: Sequence[Note], folds: Folds) -> Note:
    """The first of the best notes."""
    return min(notes, key=lambda note: note.held_out_loss if folds.watch == "loss" else -note.held_out_dice)


def assess(model: AnyNetwork, heads: Sequence[dict[str, ndarray]]) -> tuple[float, float]:
    """Mean loss of heads as they are, and mean overlap of their whole structure; not-a-number without any."""
    if not heads:
        return np.nan, np.nan
    predict = predictor(model, answer=_as_they_are)
    figures = [_assessed(predict(_slices(head)), _truth(head)) for head in heads]
    loss, overlap = np.mean(figures, axis=0).tolist()
    return loss, overlap


def _as_they_are(logits: Float[Array, "h w class_"]) -> Float[Array, "h w class_"]:
    return logits


def _assessed(logits: Float[Array, "n h w class_"], truth: Float[Array, "n h w class_"]) -> tuple[float, float]:
    found, drawn = (np.asarray(values.argmax(axis=-1)) > 0 for values in (logits, truth))
    return float(segmentation_loss(logits, truth)), dice(found, drawn)


def _slices(head: dict[str, ndarray]) -> Float[Array, "y x z slice"]:
    return neighbours(jnp.asarray(scaled(head["image"])[CORE]), HYPOTHALAMUS_GEOMETRY)


def _truth(head: dict[str, ndarray]) -> Float[Array, "y x z class_"]:
    labels = head["truth"][(slice(None), *CORE)].astype(np.float32)
    return jnp.moveaxis(jnp.concatenate([1 - labels.sum(axis=0, keepdims=True), labels]), (2, 1, 3, 0), (0, 1, 2, 3))


def read_notes(folder: Path) -> list[Note]:
    """What a course has noted so far."""
    path = folder / "metrics.tsv"
    if not path.exists():
        return []
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t")
    return [Note(*(kind(row[name]) for name, kind in Note.__annotations__.items())) for row in rows]


def write_notes(path: Path, notes: Sequence[Note]) -> None:
    """Write notes as a table, whole or not at all; numbers as they can be read back exactly."""
    lines = ["\t".join(Note._fields), *("\t".join(map(repr, note)) for note in notes)]
    partial = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
