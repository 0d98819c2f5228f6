"""The course of one network: it learns, and is monitored on the subjects that it does not learn from.

At every checkpoint its loss and overlap on them are noted, beside the training loss. With patience it stops once they
have not improved for as many checkpoints, and its best state is kept. The notes are kept beside the checkpoint, so that
a course that is resumed ends as an undisturbed one does.
"""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from numpy import ndarray

from hypodask.core.structures import LabelTable
from hypodask.files.location import Location
from hypodask.image.agreement import dice
from hypodask.learning.checkpoints import keep, restored
from hypodask.learning.labelled_scans import labelled_task, unvaried
from hypodask.learning.loop import Learnt, learning
from hypodask.learning.losses import LOSSES, Loss
from hypodask.learning.slices import drawer
from hypodask.networks.architectures import AnyNetwork
from hypodask.networks.cards import InputGeometry
from hypodask.networks.unet import predictor
from hypodask.networks.weights import SUFFIX, save_weights
from hypodask.training.card import card_of, data_of
from hypodask.training.config import Folds, TrainingConfig
from hypodask.training.preparation import load_head
from hypodask.training.start import start_of

log = logging.getLogger(__name__)


class Note(NamedTuple):
    """What is noted at a checkpoint; a row of ``metrics.tsv``."""

    fold: int
    step: int
    training_loss: float
    """Mean since the checkpoint before, on varied examples."""
    held_out_loss: float
    """Mean over the held-out subjects, not varied."""
    held_out_dice: float
    """Overlap of the whole structure, mean over the held-out subjects."""


@dataclass(frozen=True)
class Course:
    """One network to be learnt."""

    fold: int
    """Number of the fold that is held out; 0 for none."""
    seen: tuple[str, ...]
    """Files of the prepared subjects to learn from."""
    participants: int
    """How many people these are."""
    held_out: tuple[str, ...]
    """Files of the prepared subjects that are held out."""
    folder: str
    config: TrainingConfig
    labels: LabelTable

    @property
    def weights(self) -> Path:
        """The weights of the network, written last."""
        return Path(self.folder) / weights_name(self.labels)


def weights_name(labels: LabelTable) -> str:
    """Name of the file of a network's weights."""
    return f"{labels.whole}{SUFFIX}"


def run_course(course: Course) -> Path:
    """Learn one network, or go on with it, and write its weights with a card of their own."""
    if course.weights.exists():
        return course.weights
    config, start = course.config, start_of(course.config, course.labels)
    monitor = _Monitor(course, start.geometry)
    scans = [load_head(path) for path in course.seen]
    task = labelled_task(scans, course.labels, config.variation, start.geometry)
    schedule = replace(config.schedule, seed=config.schedule.seed + course.fold)
    stops = learning(
        drawer(task, schedule),
        LOSSES[config.network.loss],
        start.architecture,
        schedule,
        checkpoint=Path(course.folder) / "checkpoint",
        initial=start.of_fold(course.fold),
    )
    for learnt in stops:
        monitor.note(learnt)
        if monitor.is_over():
            log.info("fold %d stops: no improvement for %d checkpoints", course.fold, config.folds.patience)
            break
    text = data_of(config, start, course.participants, len(course.seen))
    return save_weights(course.weights, monitor.chosen(learnt), card_of(config, start, course.labels, text))


class _Monitor:
    """Notes of one course, and its best network so far."""

    def __init__(self, course: Course, geometry: InputGeometry) -> None:
        self._folder, self._fold, self._folds = Path(course.folder), course.fold, course.config.folds
        self._geometry, self._loss = geometry, LOSSES[course.config.network.loss]
        self._held_out = [load_head(path) for path in course.held_out]
        self._notes = read_notes(self._folder)

    def note(self, learnt: Learnt) -> None:
        """Note the state of the network, unless that was noted before the run was interrupted."""
        if learnt.step in [note.step for note in self._notes]:
            return
        measured = _assess(learnt.model, self._held_out, self._geometry, self._loss)
        note = Note(self._fold, learnt.step, learnt.loss, *measured)
        log.info("fold %d step %d: held-out loss %.4f, Dice %.3f", *note[:2], *note[3:])
        if self._folds.patience and _best_of([*self._notes, note], self._folds) == note:
            keep(self._folder / "best", learnt.step, nnx.state(learnt.model))
        self._notes.append(note)
        write_notes(self._folder / "metrics.tsv", self._notes)

    def is_over(self) -> bool:
        """Whether patience has run out."""
        if not self._folds.patience:
            return False
        best = _best_of(self._notes, self._folds)
        return sum(note.step > best.step for note in self._notes) >= self._folds.patience

    def chosen(self, last: Learnt) -> AnyNetwork:
        """The network to keep: the last one or, with patience, the best one."""
        if self._folds.patience:
            nnx.update(last.model, restored(self._folder / "best", nnx.state(last.model)))
        return last.model


def _best_of(notes: Sequence[Note], folds: Folds) -> Note:
    """The first of the best notes."""
    return min(notes, key=lambda note: note.held_out_loss if folds.watch == "loss" else -note.held_out_dice)


def _assess(
    model: AnyNetwork, scans: Sequence[dict[str, ndarray]], geometry: InputGeometry, loss: Loss
) -> tuple[float, float]:
    """Mean loss on scans as they are, and mean overlap of their whole structure; not-a-number without any."""
    if not scans:
        return np.nan, np.nan
    predict, figures = predictor(model, answer=_as_they_are), []
    for scan in scans:
        slices, truth = unvaried(scan, geometry)
        logits = predict(slices)
        found, drawn = (np.asarray(values.argmax(axis=-1)) > 0 for values in (logits, truth))
        figures.append((float(loss(logits, truth)), dice(found, drawn)))
    mean_loss, overlap = np.mean(figures, axis=0).tolist()
    return mean_loss, overlap


def _as_they_are(logits: Float[Array, "h w class_"]) -> Float[Array, "h w class_"]:
    return logits


def read_notes(folder: Path) -> list[Note]:
    """The notes of a course so far."""
    path = folder / "metrics.tsv"
    if not path.exists():
        return []
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t")
    return [Note(*(kind(row[name]) for name, kind in Note.__annotations__.items())) for row in rows]


def write_notes(path: Path, notes: Sequence[Note]) -> None:
    """Write notes as a table, whole or not at all; numbers are written so that they are read back exactly."""
    lines = ["\t".join(Note._fields), *("\t".join(map(repr, note)) for note in notes)]
    Location(path).write(("\n".join(lines) + "\n").encode())
