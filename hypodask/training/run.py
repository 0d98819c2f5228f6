"""A run of training: prepare every subject, learn the folds, measure each on the subjects it left out, write weights.

Everything is written to one folder, and the same call goes on where the last one stopped::

    OUT/
      STRUCTURE.safetensors, .json, .md    the weights and their model card, such as hypothalamus.safetensors
      subjects.tsv       one row per subject: used or left out, why, and the agreement of the whole structure
      structures.tsv     one row per subject and structure: overlap, distances, volumes
      agreement.tsv      ICC, bias and limits of agreement of the volumes of each structure
      metrics.tsv        one row per network and checkpoint: losses and overlap
      course.png, volumes.png
      config.toml        the configuration with its defaults written out: it can be run again
      run.json           versions, machine, time, sha256 of the weights
      prepared/          one file per subject, on the training grid
      folds/             the networks of the folds, with their checkpoints and notes
"""

import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from hypodask.cluster.connection import AnyCluster
from hypodask.cluster.items import Outcome, each
from hypodask.core.documents import to_toml
from hypodask.core.errors import TrainingError
from hypodask.core.progress import Progress
from hypodask.core.structures import LabelTable
from hypodask.files.encoding import to_json
from hypodask.files.location import Location
from hypodask.networks.weights import load_weights, save_weights, sha256
from hypodask.training.card import card_of, data_of, measured
from hypodask.training.config import TrainingConfig, read_config, resolved
from hypodask.training.course import Course, Note, read_notes, run_course, weights_name, write_notes
from hypodask.training.evaluation import COLUMNS, HeldOut, agreement_of, evaluate
from hypodask.training.figures import course_figure, save_figure, volume_figure
from hypodask.training.folds import fold_of
from hypodask.training.pairs import Pair, find_pairs, label_table_path
from hypodask.training.preparation import Prepared, prepare
from hypodask.training.protocol import read_label_table
from hypodask.training.start import Start, start_of

_FREE = frozenset({"on_bad", "folds.at_once", "data.description", "data.licence"})
"""Values that may change between two calls of one run: none of them changes what is learnt."""

_SHOWN = 10
"""Subjects or values that an error names at most."""

_MEASURES = COLUMNS[3:]

_PACKAGES = ("hypodask", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


@dataclass(frozen=True)
class Trained:
    """What a run has made: the weights, and how good they are."""

    folder: Path
    weights: Path
    """Run them with ``hypodask run BIDS OUT --model``, or :func:`hypodask.process` and ``models``."""
    subjects: pd.DataFrame
    """One row per subject: ``status`` is ``used`` or ``left out``, ``reason`` says why."""
    structures: pd.DataFrame
    """One row per held-out subject and structure: overlap, distances and volumes."""
    agreement: pd.DataFrame
    """Agreement of the volumes of each structure, over subjects."""
    metrics: pd.DataFrame
    """One row per network and checkpoint: losses and overlap."""

    def mean_dice(self, structure: str) -> float:
        """Mean overlap of a structure over held-out subjects."""
        return float(self.structures.loc[self.structures["structure"] == structure, "dice"].mean())

    @property
    def left_out(self) -> pd.DataFrame:
        """The subjects that could not be used."""
        return self.subjects[self.subjects["status"] == "left out"]


def train(
    config: TrainingConfig | str | PathLike[str],
    *,
    client: AnyCluster = None,
    workers: int | None = None,
) -> Trained:
    """Train a network on manual label maps of one's own, and measure it on subjects it has not learnt from.

    A script that lets this start its own workers needs ``if __name__ == "__main__":`` around the call, as for
    :func:`hypodask.process`.

    Parameters
    ----------
    config
        The run, or the path of a TOML file that holds it. See ``docs/training.md``.
    client
        A Dask client or the address of its scheduler, for preparation and evaluation, and for learning where
        ``folds.at_once`` is more than 1; by default workers on this machine. It must reach ``out`` by the same name.
    workers
        How many workers to start on this machine.

    Raises
    ------
    TrainingError
        If the configuration cannot be used, too few subjects can, or one cannot and ``on_bad`` is ``stop``.
    ClusterError
        If the cluster is lost; make the same call again.
    """
    if isinstance(config, str | PathLike):
        config = read_config(config)
    began = time.time()
    run = _Run(resolved(config, Path.cwd()), client, workers)
    run.begin()
    prepared = run.prepare()
    folds = run.deal_out(prepared)
    courses = run.learn(prepared, folds)
    structures = run.evaluate(prepared, folds, courses)
    return run.finish(structures, courses, prepared, began)


class _Run:
    """One run and its folder; the methods are its stages, in their order."""

    def __init__(self, config: TrainingConfig, client: AnyCluster, workers: int | None) -> None:
        self.config, self.out = config, Path(config.out)
        self.client, self.workers = client, workers
        table = label_table_path(config.data)
        self.labels: LabelTable = read_label_table(table, config.data.protocol, config.data.structure)
        self.start: Start = start_of(config, self.labels)
        self.pairs = find_pairs(config.data)
        self.rows: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Make the folder, or check that it belongs to the same run."""
        path = self.out / "config.toml"
        if path.exists():
            now, then = _flat(asdict(self.config)), _flat(asdict(read_config(path)))
            names = sorted((now.keys() | then.keys()) - _FREE)
            changed = [name for name in names if now.get(name) != then.get(name)]
            if changed:
                raise TrainingError(
                    f"{self.out} holds a run that was asked for with "
                    + ", ".join(f"{name} = {then.get(name)!r} (now {now.get(name)!r})" for name in changed[:_SHOWN])
                    + "; give another out, or delete it to begin anew"
                )
        self._write("config.toml", to_toml(self.config).encode())

    def prepare(self) -> list[Prepared]:
        """Read, align and resample every subject; one that cannot be used becomes a row with the reason."""
        task = partial(prepare, table=self.labels, geometry=self.start.geometry, folder=self.out / "prepared")
        prepared = []
        with Progress(len(self.pairs)) as bar:
            for outcome in each(task, self.pairs, client=self.client, workers=self.workers):
                self.rows[outcome.item.scan] = _row(outcome)
                prepared += [outcome.get()] if outcome.error is None else []
                bar.count("done" if outcome.error is None else "failed")
        self._write("subjects.tsv", _tsv(self._subjects()).encode())
        bad = [row for row in self.rows.values() if row["status"] != "used"]
        lines = [f"{row['scan']}: {row['reason']}" for row in bad[:_SHOWN]]
        rest = [f"and {len(bad) - _SHOWN} more, see subjects.tsv"] if len(bad) > _SHOWN else []
        listed = "\n".join([f"{len(bad)} subjects cannot be learnt from:", *lines, *rest])
        if bad and self.config.on_bad == "stop":
            raise TrainingError(f"{listed}\ncorrect them, or say on_bad = 'skip' to go on without them")
        if not prepared:
            raise TrainingError(f"no subject can be learnt from:\n{listed}")
        return sorted(prepared, key=lambda one: one.pair.scan)

    def deal_out(self, prepared: list[Prepared]) -> list[int]:
        """The fold that holds out each subject; kept, so that a run goes on with the same ones."""
        count, seed = self.config.folds.count, self.config.schedule.seed
        participants = [one.pair.participant_id for one in prepared]
        folds = fold_of(participants, count, seed=seed) if count else [0] * len(prepared)
        known = {one.pair.scan: [fold, one.stamp] for one, fold in zip(prepared, folds, strict=True)}
        path = self.out / "folds" / "subjects.json"
        before = json.loads(path.read_text()) if path.exists() else known
        changed = sorted(scan for scan in before.keys() | known.keys() if before.get(scan) != known.get(scan))
        if changed:
            raise TrainingError(
                f"{self.out} holds networks that learnt from other subjects: {', '.join(changed[:_SHOWN])} were added, "
                "changed or taken away since; delete its folder folds to learn anew, or give another out"
            )
        self._write("folds/subjects.json", to_json(known))
        return folds

    def learn(self, prepared: list[Prepared], folds: list[int]) -> list[Course]:
        """One network for each fold, and one of all subjects if it is asked for."""
        numbers = [*range(1, self.config.folds.count + 1)]
        if self.config.folds.final == "single" or not numbers:
            numbers.append(0)
        courses = [self._course(number, prepared, folds) for number in numbers]
        at_once = self.config.folds.at_once
        if at_once == 1 and self.client is None:
            for course in courses:
                run_course(course)
                self._write_notes(courses)
        else:
            for outcome in each(run_course, courses, client=self.client, workers=at_once, window=at_once):
                outcome.get()
                self._write_notes(courses)
        return courses

    def _course(self, number: int, prepared: list[Prepared], folds: list[int]) -> Course:
        """The course of the network of a fold, or of all subjects: then the number is 0."""
        placed = list(zip(prepared, folds, strict=True))
        seen = [one for one, fold in placed if fold != number or not number]
        held_out = [one for one, fold in placed if fold == number and number]
        config = self.config
        if not number:
            # Nothing is held out that could decide when to stop.
            config = replace(config, folds=replace(config.folds, patience=0))
        return Course(
            number,
            seen=tuple(one.path for one in seen),
            participants=len({one.pair.participant_id for one in seen}),
            held_out=tuple(one.path for one in held_out),
            folder=str(self.out / "folds" / (str(number) if number else "all")),
            config=config,
            labels=self.labels,
        )

    def evaluate(self, prepared: list[Prepared], folds: list[int], courses: list[Course]) -> pd.DataFrame:
        """Measure every subject by the network that has not learnt from it."""
        weights = {course.fold: str(course.weights) for course in courses if course.fold}
        held_out = [HeldOut(one, fold, weights[fold]) for one, fold in zip(prepared, folds, strict=True) if fold]
        outcomes = each(evaluate, held_out, client=self.client, workers=self.workers)
        rows = [row for outcome in outcomes for row in outcome.get()]
        structures = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("scan", kind="stable", ignore_index=True)
        for row in self._of_whole(structures).to_dict("records"):
            self.rows[row["scan"]] |= {name: row[name] for name in ("fold", *_MEASURES)}
        return structures

    def finish(
        self, structures: pd.DataFrame, courses: list[Course], prepared: list[Prepared], began: float
    ) -> Trained:
        """Write the weights with their card, the tables and the pictures."""
        agreement, whole = agreement_of(structures), self._of_whole(structures)
        weights = self._save_weights(whole, agreement, courses, prepared)
        if len(whole):
            save_figure(self.out / "volumes.png", volume_figure(whole))
        subjects, statuses = self._subjects(), [row["status"] for row in self.rows.values()]
        record = {
            "weights_sha256": sha256(weights),
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
            "seconds": round(time.time() - began, 1),
            "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
            "machine": {"system": platform.platform(), "backend": jax.default_backend()},
            "subjects": {status: statuses.count(status) for status in ("used", "left out")},
        }
        for name, table in (("structures", structures), ("agreement", agreement), ("subjects", subjects)):
            self._write(f"{name}.tsv", _tsv(table).encode())
        self._write("run.json", to_json(record))
        metrics = pd.DataFrame(self._write_notes(courses))
        return Trained(self.out, weights, subjects, structures, agreement, metrics)

    def _save_weights(
        self, whole: pd.DataFrame, agreement: pd.DataFrame, courses: list[Course], prepared: list[Prepared]
    ) -> Path:
        single = [course for course in courses if not course.fold]
        models = [load_weights(course.weights)[0][0] for course in single or courses]
        participants = {one.pair.participant_id for one in prepared}
        text = data_of(self.config, self.start, len(participants), len(prepared))
        if not single:
            text += f" {len(models)} members, each of which learnt without its share of the participants."
        icc = float(self._of_whole(agreement)["icc"].iloc[0]) if len(agreement) else None
        known = measured(whole, icc, chosen=self.config.folds.patience > 0)
        card = card_of(self.config, self.start, self.labels, text, members=len(models), **known)
        return save_weights(self.out / weights_name(self.labels), models, card)

    def _of_whole(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of the whole structure."""
        return table[table["structure"] == self.labels.whole]

    def _subjects(self) -> pd.DataFrame:
        first = ["scan", "participant_id", "session", "status", "error", "reason", "warnings", "fold", *_MEASURES]
        rows = sorted(self.rows.values(), key=lambda row: str(row["scan"]))
        table = pd.DataFrame(rows).reindex(columns=[*first, "scan_path", "labels_path"])
        return table.assign(fold=table["fold"].astype("Int64"))

    def _write_notes(self, courses: list[Course]) -> list[Note]:
        notes = [note for course in courses for note in read_notes(Path(course.folder))]
        if notes:
            write_notes(self.out / "metrics.tsv", notes)
            save_figure(self.out / "course.png", course_figure(notes))
        return notes

    def _write(self, name: str, content: bytes) -> None:
        Location(self.out / name).write(content)


def _row(outcome: Outcome[Pair, Prepared]) -> dict[str, Any]:
    """The row of a subject that was prepared, or could not be."""
    pair, error = outcome.item, outcome.error
    known = {name: getattr(pair, name) for name in ("scan", "participant_id", "session", "scan_path", "labels_path")}
    if error is None:
        return known | {"status": "used", "warnings": outcome.get().warnings}
    reason = " ".join([str(error), *getattr(error, "__notes__", ())])
    return known | {"status": "left out", "error": type(error).__name__, "reason": reason}


def _flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{place}{name}.") if isinstance(value, dict) else {place + name: value}
    return flat


def _tsv(table: pd.DataFrame) -> str:
    return str(table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))
