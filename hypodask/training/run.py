"""A run of training: prepare every subject, learn the folds, measure each on what it left out, keep the weights.

Everything is kept in one folder, and the same call goes on where the last one stopped::

    OUT/
      hypothalamus.safetensors, .json, .md    the weights, and their model card
      subjects.tsv       one row per subject: used or left out, why, and how well its outline was met
      structures.tsv     one row per subject and structure: overlap, distances, volumes
      agreement.tsv      ICC, bias and limits of agreement of the volumes of each structure
      metrics.tsv        one row per network and checkpoint: losses and overlap
      course.png, volumes.png
      config.toml        the run as it was asked for, defaults written out: it can be run again
      run.json           versions, machine, time, sha256 of the weights
      prepared/          one file per subject, on the training grid
      folds/             the networks of the folds, with their checkpoints and notes
"""

import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import pandas as pd

from hypodask.cluster import Outcome, each
from hypodask.errors import TrainingError
from hypodask.labels import LabelTable
from hypodask.network.weights import load_weights, save_weights, sha256
from hypodask.progress import Progress
from hypodask.training.card import card_of, data_of, measured
from hypodask.training.config import RecipeConfig, TrainingConfig, read_config, resolved, to_toml
from hypodask.training.course import WEIGHTS_NAME, Course, Note, read_notes, run_course, write_notes
from hypodask.training.evaluation import COLUMNS, Examination, agreement_of, examine
from hypodask.training.figures import course_figure, save_figure, volume_figure
from hypodask.training.folds import fold_of
from hypodask.training.pairs import Pair, find_pairs, label_table_path
from hypodask.training.preparation import Prepared, prepare
from hypodask.training.protocol import read_label_table
from hypodask.training.recipe import run_recipe
from hypodask.training.start import Start, start_of

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

FREE = frozenset({"on_bad", "folds.at_once", "data.description", "data.licence"})
"""What may change between two calls of one run: none of it changes what is learnt."""

SHOWN = 10
"""Bad subjects that an error names; the rest are in ``subjects.tsv``."""

MEASURES = COLUMNS[3:]

PACKAGES = ("hypodask", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


@dataclass(frozen=True)
class Trained:
    """What a run has made."""

    folder: Path
    weights: Path
    """Run them with ``hypodask run BIDS OUT --model``, or :func:`hypodask.process` and ``models``."""
    subjects: pd.DataFrame
    """One row per subject: ``status`` is ``used`` or ``left out``, ``reason`` says why."""
    structures: pd.DataFrame
    """One row per held-out subject and structure."""
    agreement: pd.DataFrame
    """Of the volumes of each structure, over subjects."""
    metrics: pd.DataFrame
    """One row per network and checkpoint."""

    def mean_dice(self, structure: str) -> float:
        """Mean overlap of a structure over held-out subjects."""
        return float(self.structures.loc[self.structures["structure"] == structure, "dice"].mean())

    @property
    def left_out(self) -> pd.DataFrame:
        """The subjects that could not be used."""
        return self.subjects[self.subjects["status"] == "left out"]


def train(
    config: TrainingConfig | RecipeConfig | str | PathLike[str],
    *,
    client: "Client | str | None" = None,
    workers: int | None = None,
) -> Trained | None:
    """Train a hypothalamus network on outlines of one's own, and measure it on subjects it did not see.

    A script that lets this start its own workers needs ``if __name__ == "__main__":`` around the call, as for
    :func:`hypodask.process`.

    Parameters
    ----------
    config
        The run, or the path of a TOML file that holds it. See ``docs/training.md``.
    client
        A Dask cluster or the address of its scheduler, for preparation and evaluation, and for learning where
        ``folds.at_once`` is more than 1; by default workers on this machine. It must reach ``out`` by the same name.
    workers
        How many to start here.

    Returns
    -------
    Trained or None
        None for a recipe, which leaves its weights in its folder ``work``.

    Raises
    ------
    TrainingError
        If the configuration cannot be used, too few subjects can, or one cannot and ``on_bad`` is ``stop``.
    ClusterError
        If the cluster is lost; make the same call again.
    """
    if isinstance(config, str | PathLike):
        config = read_config(config)
    if isinstance(config, RecipeConfig):
        run_recipe(config.recipe, client=client, workers=workers)
        return None
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

    def __init__(self, config: TrainingConfig, client: "Client | str | None", workers: int | None) -> None:
        self.config, self.out = config, Path(config.out)
        self.client, self.workers = client, workers
        self.labels: LabelTable = read_label_table(label_table_path(config.data), config.data.protocol)
        self.start: Start = start_of(config, self.labels)
        self.pairs = find_pairs(config.data)
        self.rows: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Make the folder, or see that it is of the same run."""
        path = self.out / "config.toml"
        if path.exists():
            _check_same(self.config, read_config(path), self.out)
        self._write("config.toml", to_toml(self.config))

    def prepare(self) -> list[Prepared]:
        """Read, align and resample every subject; a bad one becomes a row."""
        task = partial(prepare, table=self.labels, geometry=self.start.geometry, folder=self.out / "prepared")
        prepared = []
        with Progress(len(self.pairs)) as bar:
            for outcome in each(task, self.pairs, client=self.client, workers=self.workers):
                self.rows[outcome.item.scan] = _row(outcome)
                prepared += [outcome.get()] if outcome.error is None else []
                bar.count("done" if outcome.error is None else "failed")
        self._write_subjects()
        bad = [row for row in self.rows.values() if row["status"] != "used"]
        if bad and self.config.on_bad == "stop":
            raise TrainingError(f"{_listed(bad)}\ncorrect them, or say on_bad = 'skip' to go on without them")
        if not prepared:
            raise TrainingError(f"no subject can be learnt from:\n{_listed(bad)}")
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
                f"{self.out} holds networks that learnt from other subjects: {', '.join(changed[:SHOWN])} were added, "
                "changed or taken away since; delete its folder folds to learn anew, or give another out"
            )
        self._write("folds/subjects.json", json.dumps(known, indent=1))
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

    def evaluate(self, prepared: list[Prepared], folds: list[int], courses: list[Course]) -> pd.DataFrame:
        """Every subject by the network that did not learn from it."""
        weights = {course.fold: str(course.weights) for course in courses if course.fold}
        asked = [Examination(one, fold, weights[fold]) for one, fold in zip(prepared, folds, strict=True) if fold]
        rows = [
            row for outcome in each(examine, asked, client=self.client, workers=self.workers) for row in outcome.get()
        ]
        structures = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("scan", kind="stable", ignore_index=True)
        for row in whole_of(structures, self.labels).to_dict("records"):
            self.rows[row["scan"]] |= {name: row[name] for name in ("fold", *MEASURES)}
        return structures

    def finish(
        self, structures: pd.DataFrame, courses: list[Course], prepared: list[Prepared], began: float
    ) -> Trained:
        """Write the weights with their card, the tables and the pictures."""
        agreement = agreement_of(structures)
        weights = self._save_weights(structures, agreement, courses, prepared)
        whole = whole_of(structures, self.labels)
        if len(whole):
            save_figure(self.out / "volumes.png", volume_figure(whole))
        self._write("structures.tsv", _tsv(structures))
        self._write("agreement.tsv", _tsv(agreement))
        self._write_subjects()
        self._write("run.json", json.dumps(self._record(weights, began), indent=1))
        return Trained(
            self.out, weights, self._subjects(), structures, agreement, pd.DataFrame(self._write_notes(courses))
        )

    def _course(self, number: int, prepared: list[Prepared], folds: list[int]) -> Course:
        seen = [one for one, fold in zip(prepared, folds, strict=True) if fold != number or not number]
        held_out = [one for one, fold in zip(prepared, folds, strict=True) if fold == number and number]
        folder = self.out / "folds" / (str(number) if number else "all")
        config = self.config
        if not number:
            # Nothing is held out that could say when to stop.
            config = replace(config, folds=replace(config.folds, patience=0))
        return Course(
            number,
            tuple(one.path for one in seen),
            len({one.pair.participant_id for one in seen}),
            tuple(one.path for one in held_out),
            str(folder),
            config,
            self.labels,
        )

    def _save_weights(
        self, structures: pd.DataFrame, agreement: pd.DataFrame, courses: list[Course], prepared: list[Prepared]
    ) -> Path:
        single = [course for course in courses if not course.fold]
        models = [load_weights(course.weights)[0][0] for course in single or courses]
        participants = {one.pair.participant_id for one in prepared}
        text = data_of(self.config, self.start, len(participants), len(prepared))
        if not single:
            text += f" {len(models)} members, each of which learnt without its share of the participants."
        of_whole = agreement[agreement["structure"] == self.labels.whole].to_dict("records") if len(agreement) else []
        icc = float(of_whole[0]["icc"]) if of_whole else None
        known = measured(whole_of(structures, self.labels), icc, chosen=self.config.folds.patience > 0)
        card = card_of(self.config, self.start, self.labels, text, members=len(models), **known)
        return save_weights(self.out / WEIGHTS_NAME, models, card)

    def _record(self, weights: Path, began: float) -> dict[str, Any]:
        return {
            "weights_sha256": sha256(weights),
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
            "seconds": round(time.time() - began, 1),
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "machine": {"system": platform.platform(), "backend": jax.default_backend()},
            "subjects": {
                status: sum(row["status"] == status for row in self.rows.values()) for status in ("used", "left out")
            },
        }

    def _subjects(self) -> pd.DataFrame:
        first = ["scan", "participant_id", "session", "status", "error", "reason", "warnings", "fold", *MEASURES]
        rows = sorted(self.rows.values(), key=lambda row: str(row["scan"]))
        table = pd.DataFrame(rows).reindex(columns=[*first, "scan_path", "labels_path"])
        return table.assign(fold=table["fold"].astype("Int64"))

    def _write_subjects(self) -> None:
        self._write("subjects.tsv", _tsv(self._subjects()))

    def _write_notes(self, courses: list[Course]) -> list[Note]:
        notes = [note for course in courses for note in read_notes(Path(course.folder))]
        if notes:
            write_notes(self.out / "metrics.tsv", notes)
            save_figure(self.out / "course.png", course_figure(notes))
        return notes

    def _write(self, name: str, text: str) -> None:
        """Write a whole file or none."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(".part")
        partial_file.write_text(text, encoding="utf-8")
        partial_file.replace(path)


def whole_of(structures: pd.DataFrame, labels: LabelTable) -> pd.DataFrame:
    """The rows of the whole structure."""
    return structures[structures["structure"] == labels.whole]


def _row(outcome: Outcome[Pair, Prepared]) -> dict[str, Any]:
    """The row of a subject that was prepared, or could not be."""
    pair, error = outcome.item, outcome.error
    known = {name: getattr(pair, name) for name in ("scan", "participant_id", "session", "scan_path", "labels_path")}
    if error is None:
        return known | {"status": "used", "warnings": outcome.get().warnings}
    reason = " ".join([str(error), *getattr(error, "__notes__", ())])
    return known | {"status": "left out", "error": type(error).__name__, "reason": reason}


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{row['scan']}: {row['reason']}" for row in rows[:SHOWN]]
    rest = [f"and {len(rows) - SHOWN} more, see subjects.tsv"] if len(rows) > SHOWN else []
    return "\n".join([f"{len(rows)} subjects cannot be learnt from:", *lines, *rest])


def _check_same(config: TrainingConfig, before: TrainingConfig | RecipeConfig, out: Path) -> None:
    now, then = _flat(asdict(config)), _flat(asdict(before))
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name) and name not in FREE)
    if changed:
        raise TrainingError(
            f"{out} holds a run that was asked for with "
            + ", ".join(f"{name} = {then.get(name)!r} (now {now.get(name)!r})" for name in changed[:SHOWN])
            + "; give another out, or delete it to begin anew"
        )


def _flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{place}{name}.") if isinstance(value, dict) else {place + name: value}
    return flat


def _tsv(table: pd.DataFrame) -> str:
    return str(table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))
