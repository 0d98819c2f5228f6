"""A whole run of training on made-up heads: what it writes, what it says, and that it goes on where it stopped.

The heads are two balls on the training grid, and examples are their slices as they are: what a slice is varied by has
tests of its own, and takes long to compile.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

import hypodask
from hypodask.alignment import Alignment
from hypodask.cluster import Outcome
from hypodask.core.errors import OutlineError, TrainingError
from hypodask.core.grid import transform_points
from hypodask.core.structures import MAIN, STRUCTURES
from hypodask.learning.labelled_scans import unvaried
from hypodask.learning.loop import Schedule
from hypodask.learning.losses import cross_entropy_jaccard_loss
from hypodask.learning.training_box import training_geometry, training_grid
from hypodask.networks.weights import load_weights, sha256
from hypodask.phantom import HeadOptions, simulate_cohort
from hypodask.segmentation import load_network
from hypodask.training import course as course_module
from hypodask.training import preparation
from hypodask.training import run as run_module
from hypodask.training.card import _written_labels
from hypodask.training.config import Architecture, Data, Folds, TrainingConfig, read_config
from hypodask.training.course import Note, _best_of, _Monitor, read_notes, write_notes
from hypodask.training.evaluation import agreement_of
from hypodask.training.pairs import find_pairs, label_table_path
from hypodask.training.preparation import Prepared, prepare
from hypodask.training.protocol import read_label_table
from hypodask.training.start import start_of

GEOMETRY = training_geometry(MAIN)
SCHEDULE = Schedule(steps=30, heads=1, slices=4, learning_rate=0.03, average=0.5, checkpoint_every=10)
BAD = "sub-03"


def made_up(pair, table, geometry, folder):
    """In place of ``prepare``: two balls whose size is the subject's; one subject is bad."""
    if pair.scan == BAD:
        raise OutlineError(f"{pair.labels_path}: no voxel has a label; a segmentation is needed: draw it")
    radius = 6.0 + 0.3 * int(pair.scan[-1])
    grid = training_grid(geometry)
    places = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.centre_mm
    sides = [np.linalg.norm(places - [x, 0, 0], axis=-1) < radius for x in (-8, 8)]
    truth, volume = np.stack(sides).astype(np.float16), 4 / 3 * np.pi * radius**3
    # A network this small sees no further than a ball: sides differ in brightness.
    image = (1 - 0.4 * truth[0] - 0.8 * truth[1]).astype(np.float32)
    path = Path(folder) / f"{pair.scan}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, image=image, truth=truth, head_size=1.0)
    return Prepared(pair, str(path), (volume, volume), stamp=str(radius))


def one_by_one(function, items, **options):
    """In place of ``each``."""
    for item in items:
        try:
            yield Outcome(item, function(item))
        except OutlineError as err:
            yield Outcome(item, error=err)


def plain_drawer(task, schedule):
    """Slices of scans as they are."""
    scans, geometry = task
    inputs, truths = map(jnp.concatenate, zip(*(unvaried(scan, geometry) for scan in scans), strict=True))

    def drawn(key):
        chosen = jax.random.randint(key, (schedule.heads * schedule.slices,), 0, len(inputs))
        return inputs[chosen], truths[chosen]

    return drawn


@pytest.fixture(scope="module")
def light():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "prepare", made_up)
        patch.setattr(run_module, "each", one_by_one)
        patch.setattr(course_module, "labelled_task", lambda scans, labels, variation, geometry: (scans, geometry))
        patch.setattr(course_module, "drawer", plain_drawer)
        yield


def config_in(folder):
    """Five subjects, one of whom is bad."""
    rows = [f"sub-{number:02d}_T1w.nii\tsub-{number:02d}_dseg.nii" for number in range(1, 6)]
    (folder / "pairs.tsv").write_text("\n".join(["scan\tlabels", *rows]) + "\n")
    (folder / "dseg.tsv").write_text("index\tname\themisphere\n900\tLeft\tL\n901\tRight\tR\n")
    return TrainingConfig(
        str(folder / "trained"),
        Data("ulm-2024", table=str(folder / "pairs.tsv"), labels=str(folder / "dseg.tsv"), licence="CC0"),
        network=Architecture(widths=(4, 8)),
        schedule=SCHEDULE,
        folds=Folds(count=2),
    )


@pytest.fixture
def config(tmp_path):
    return config_in(tmp_path)


@pytest.fixture(scope="module")
def trained(light, tmp_path_factory):
    return hypodask.train(config_in(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def same(trained):
    """The configuration that ``trained`` was made with."""
    return read_config(trained.folder / "config.toml")


def test_a_run_leaves_weights_tables_pictures_and_itself(trained):
    out = trained.folder
    names = {"hypothalamus.safetensors", "hypothalamus.json", "hypothalamus.md", "subjects.tsv", "structures.tsv"}
    names |= {"agreement.tsv", "metrics.tsv", "course.png", "volumes.png", "config.toml", "run.json"}
    assert names <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part"))
    assert all(imread(out / name).shape[1] > 300 for name in ("course.png", "volumes.png"))
    record = json.loads((out / "run.json").read_text())
    assert record["versions"]["hypodask"] == hypodask.__version__
    assert record["subjects"] == {"used": 4, "left out": 1}
    assert record["weights_sha256"] == sha256(trained.weights)
    assert read_config(out / "config.toml") == config_in(out.parent)


def test_a_bad_subject_is_a_row_with_its_reason_and_the_others_are_held_out_once(trained):
    subjects = pd.read_csv(trained.folder / "subjects.tsv", sep="\t", index_col="scan")
    assert subjects["status"].to_dict() == {f"sub-0{n}": "left out" if n == 3 else "used" for n in range(1, 6)}
    assert "no voxel has a label; a segmentation is needed" in subjects.loc[BAD, "reason"]
    assert subjects.loc[BAD, "error"] == "OutlineError"
    used = subjects[subjects["status"] == "used"]
    assert sorted(used["fold"]) == [1, 1, 2, 2]
    assert list(trained.left_out["scan"]) == [BAD]


def test_what_is_told_of_held_out_subjects_is_what_the_weights_do(trained):
    structures = trained.structures
    assert sorted(structures["structure"].unique()) == ["hypothalamus", "hypothalamus_left", "hypothalamus_right"]
    assert len(structures) == 12
    whole = of_whole(trained).set_index("scan")
    assert whole["dice"].min() > 0.5
    sides = structures[structures["structure"] != "hypothalamus"].groupby("scan")[["volume_mm3", "manual_mm3"]].sum()
    np.testing.assert_allclose(whole[["volume_mm3", "manual_mm3"]], sides.loc[whole.index], rtol=1e-3)
    (row,) = agreement_of(of_whole(trained)).to_dict("records")
    assert row["scans"] == 4
    bias = (whole["volume_mm3"] / whole["manual_mm3"] - 1).mean() * 100
    assert row["bias_percent"] == pytest.approx(bias)


def of_whole(trained):
    return trained.structures[trained.structures["structure"] == "hypothalamus"]


def test_the_weights_are_the_folds_together_and_say_what_they_are(trained):
    members, card = load_weights(trained.weights)
    assert (len(members), card.members, card.protocol, card.licence) == (2, 2, "ulm-2024", "CC0")
    # 900 and 901 do not fit into the bytes of a label map.
    assert [(label.index, label.structure) for label in card.labels] == [
        (1, "hypothalamus_left"),
        (2, "hypothalamus_right"),
    ]
    ratio = of_whole(trained).eval("volume_mm3 / manual_mm3 - 1")
    assert card.relative_volume_sd == pytest.approx(np.sqrt((ratio**2).mean()))
    assert "each by a network that had not learnt from its participant" in card.metrics["measured_on"]
    network = load_network(trained.weights)
    assert (network.protocol, network.labels.structures) == ("ulm-2024", ("hypothalamus_left", "hypothalamus_right"))


def test_notes_are_kept_of_every_checkpoint_and_the_loss_falls(trained):
    notes = read_notes(trained.folder)
    assert [(note.fold, note.step) for note in notes] == [(fold, step) for fold in (1, 2) for step in (10, 20, 30)]
    for first, last in ((0, 2), (3, 5)):
        assert notes[last].held_out_loss < notes[first].held_out_loss
    assert list(trained.metrics.columns) == list(Note._fields)


def test_the_same_call_again_learns_nothing_and_gives_the_same(trained, monkeypatch):
    monkeypatch.setattr(course_module, "learning", None)
    before = sha256(trained.weights)
    again = hypodask.train(trained.folder / "config.toml")
    assert sha256(again.weights) == before
    pd.testing.assert_frame_equal(again.structures, trained.structures)


def test_a_run_that_was_killed_goes_on_to_the_weights_of_an_undisturbed_one(trained, config, monkeypatch):
    class KilledError(Exception):
        pass

    def note(self, learnt):
        true_note(self, learnt)
        if learnt.step == 20:
            raise KilledError

    true_note = _Monitor.note
    with monkeypatch.context() as patch:
        patch.setattr(_Monitor, "note", note)
        with pytest.raises(KilledError):
            hypodask.train(config)
    resumed = hypodask.train(config)
    assert json.dumps(load_weights(resumed.weights)[1].metrics) == json.dumps(load_weights(trained.weights)[1].metrics)
    for ours, theirs in zip(tensors(resumed), tensors(trained), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert read_notes(Path(resumed.folder)) == read_notes(Path(trained.folder))


def tensors(trained):
    return jax.tree.leaves([jax.tree.leaves(course_module.nnx.state(m)) for m in load_weights(trained.weights)[0]])


def test_another_configuration_or_other_subjects_in_the_same_folder_are_refused(same, monkeypatch):
    with pytest.raises(TrainingError, match=r"asked for with schedule.steps = 30 \(now 40\); give another out"):
        hypodask.train(replace(same, schedule=replace(SCHEDULE, steps=40)))
    monkeypatch.setattr(run_module, "prepare", lambda pair, **options: replace(made_up(pair, **options), stamp="new"))
    with pytest.raises(TrainingError, match=r"learnt from other subjects: sub-01, sub-02, .* delete its folder folds"):
        hypodask.train(same)


def test_a_bad_subject_stops_the_run_where_that_is_asked_for(light, config):
    with pytest.raises(TrainingError, match=r"(?s)1 subjects cannot be learnt from:\nsub-03: .*on_bad = 'skip'"):
        hypodask.train(replace(config, on_bad="stop"))
    assert (Path(config.out) / "subjects.tsv").exists()


def test_more_folds_than_participants_that_can_be_used_stop_the_run(light, config):
    with pytest.raises(TrainingError, match="4 participants can be learnt from; 5 folds need"):
        hypodask.train(replace(config, folds=Folds(count=5)))


def test_one_network_of_all_subjects_is_measured_by_those_of_the_folds(light, config):
    trained = hypodask.train(replace(config, folds=Folds(count=2, final="single")))
    members, card = load_weights(trained.weights)
    assert (len(members), len(trained.structures)) == (1, 12)
    assert card.metrics["dice_mean"] == pytest.approx(of_whole(trained)["dice"].mean(), abs=1e-4)
    assert "4 T1-weighted scans of 4 participants" in card.training_data


def test_without_folds_a_network_is_learnt_and_nothing_is_claimed(light, config):
    trained = hypodask.train(replace(config, folds=Folds(count=0), schedule=replace(SCHEDULE, steps=2)))
    _, card = load_weights(trained.weights)
    assert (card.metrics, card.relative_volume_sd, len(trained.structures)) == ({}, None, 0)


def test_training_goes_on_from_weights_and_says_so(trained, config):
    onward = replace(config, out=config.out + "-2", network=Architecture(start=str(trained.weights)))
    labels = read_label_table(config.data.labels, "other")
    start = start_of(onward, labels)
    assert start.architecture.widths == (4, 8)
    np.testing.assert_array_equal(tensors(trained)[0], jax.tree.leaves(course_module.nnx.state(start.of_fold(2)))[0])
    assert start.name == "hypothalamus 1"


def test_weights_of_another_task_are_no_start(config):
    with pytest.raises(
        TrainingError, match=r"start = 'icv' sees .* start from a network of hypothalamus, or from scratch"
    ):
        start_of(replace(config, network=Architecture(start="icv")), read_label_table(config.data.labels, "x"))


def test_an_efficientnet_sees_a_box_that_it_can_halve_evenly_and_starts_from_its_own_kind(trained, config):
    labels = read_label_table(config.data.labels, "x")
    start = start_of(replace(config, network=Architecture(kind="efficientnet-b0")), labels)
    assert start.geometry.shape == (96, 50, 96)
    assert start.architecture.in_channels == start.geometry.slices
    with pytest.raises(TrainingError, match=r"is a 2D U-Net, widths \[4, 8\], and kind = 'efficientnet-b0'"):
        start_of(replace(config, network=Architecture(kind="efficientnet-b0", start=str(trained.weights))), labels)


def test_labels_keep_their_numbers_where_a_byte_holds_them(config):
    labels = read_label_table(config.data.labels, "x")
    assert [label.index for label in _written_labels(labels)] == [1, 2]
    kept = replace(labels, labels=tuple(replace(label, index=label.index - 700) for label in labels))
    assert _written_labels(kept) == kept


# Patience


NOTES = [
    Note(1, step, 0.1, loss, dice)
    for step, loss, dice in ((5, 0.9, 0.1), (10, 0.5, 0.6), (15, 0.6, 0.7), (20, 0.7, 0.7))
]


@pytest.mark.parametrize(("watch", "best"), [("loss", 10), ("dice", 15)])
def test_the_best_checkpoint_is_the_first_of_lowest_loss_or_highest_overlap(watch, best):
    assert _best_of(NOTES, Folds(watch=watch)).step == best


@pytest.mark.parametrize(("patience", "over"), [(0, False), (2, True), (3, False)])
def test_patience_ends_when_as_many_checkpoints_were_no_better(config, tmp_path, patience, over):
    write_notes(tmp_path / "metrics.tsv", NOTES)
    asked = replace(config, folds=Folds(patience=patience))
    course = course_module.Course(1, (), 0, (), str(tmp_path), asked, read_label_table(config.data.labels, "x"))
    assert _Monitor(course, GEOMETRY).is_over() == over


def test_a_course_that_ran_out_of_patience_keeps_its_best_network(light, config):
    impatient = replace(config, folds=Folds(count=2, patience=1), schedule=replace(SCHEDULE, learning_rate=1.0))
    trained = hypodask.train(impatient)
    notes = [note for note in read_notes(Path(config.out)) if note.fold == 1]
    best = _best_of(notes, impatient.folds)
    assert len(notes) == 3 or notes[-1].step == best.step + 10
    _, card = load_weights(trained.weights)
    assert "chose when each network stopped" in card.metrics["measured_on"]
    heads = [dict(np.load(path)) for path in sorted((Path(config.out) / "prepared").glob("*.npz"))]
    held_out = [
        head for head, fold in zip(heads, trained.subjects.dropna(subset="fold")["fold"], strict=True) if fold == 1
    ]
    model = load_weights(Path(config.out) / "folds" / "1" / "hypothalamus.safetensors")[0][0]
    loss = course_module.LOSSES[impatient.network.loss]
    assert course_module._assess(model, held_out, GEOMETRY, loss)[0] == pytest.approx(best.held_out_loss, rel=1e-5)


# A simulated head with its outline


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    options = HeadOptions(spacing_mm=(2.0, 2.0))
    return simulate_cohort(tmp_path_factory.mktemp("phantoms"), 3, options=options, outlines=True)


@pytest.fixture
def true_pose(phantoms, monkeypatch):
    """``true_pose(name)`` is a phantom's ``acpc_from_scanner``, in which every scan is found."""

    def pose(name):
        truth = json.loads((phantoms / "derivatives/phantom" / name / f"{name}_desc-truth.json").read_text())
        return np.array(truth["acpc_from_scanner"])

    def aligned(scan):
        acpc_from_scanner = pose(Path(scan.source).parents[1].name)
        return Alignment(acpc_from_scanner, np.zeros(3), np.array([0, -26.0, 0]), np.eye(4), score=0.7, flagged=False)

    monkeypatch.setattr(preparation, "align", aligned)
    return pose


def test_label_maps_of_phantoms_are_a_derivative_that_is_learnt_from(phantoms, true_pose, tmp_path):
    data = Data("phantom-sides", bids=str(phantoms), outlines=str(phantoms / "derivatives/outlines"))
    table, pairs = read_label_table(label_table_path(data), data.protocol), find_pairs(data)
    assert [pair.problem for pair in pairs] == ["", "", ""]
    first = prepare(pairs[0], table, GEOMETRY, tmp_path)
    true = pd.read_csv(phantoms / "participants.tsv", sep="\t", index_col="participant_id")["true_hypothalamus_mm3"]
    # Voxels that are mostly hypothalamus: less than all of it, whose border is soft.
    assert 0.75 < sum(first.volumes_mm3) / true[first.pair.participant_id] < 1.0
    before = Path(first.path).stat().st_mtime_ns
    assert prepare(pairs[0], table, GEOMETRY, tmp_path) == first
    assert Path(first.path).stat().st_mtime_ns == before
    swapped = replace(table, labels=tuple(replace(x, index=3 - x.index) for x in table))
    with pytest.raises(OutlineError, match="left and right are exchanged"):
        prepare(pairs[0], swapped, GEOMETRY, tmp_path)


# Another loss


def test_a_run_minimises_and_notes_the_loss_that_it_is_asked_for(light, config):
    asked = replace(config, network=Architecture(widths=(4, 8), loss="cross_entropy_jaccard"), folds=Folds(count=2))
    trained = hypodask.train(replace(asked, schedule=replace(SCHEDULE, steps=10)))
    (first, *_), folds = read_notes(trained.folder), trained.subjects.set_index("scan")["fold"]
    held_out = [preparation.load_head(trained.folder / "prepared" / f"{scan}.npz") for scan in folds[folds == 1].index]
    model = load_weights(trained.folder / "folds" / "1" / "hypothalamus.safetensors")[0][0]
    figures = course_module._assess(model, held_out, GEOMETRY, cross_entropy_jaccard_loss)
    assert figures[0] == pytest.approx(first.held_out_loss, rel=1e-5)
    # The usual loss starts at about 10 ln 3, ten times the cross-entropy of three classes.
    assert first.training_loss < 2


# A further structure


@pytest.fixture
def ventricles(phantoms, true_pose, tmp_path):
    """Configuration of a run on label maps of phantoms: a box at the midline stands for the third ventricle."""
    folder = tmp_path / "ventricles"
    folder.mkdir()
    (folder / "dseg.tsv").write_text("index\tname\themisphere\n1\tThird ventricle\tboth\n")
    for path in sorted(phantoms.glob("sub-*/anat/*_T1w.nii.gz")):
        image, name = nib.load(path), path.name.split("_")[0]
        places = transform_points(true_pose(name) @ image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
        inside = (np.abs(places - (0.0, -12.0, -4.0)) < (3.0, 12.0, 8.0)).all(axis=-1)
        (folder / name / "anat").mkdir(parents=True)
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), image.affine), folder / name / "anat" / f"{name}_dseg.nii.gz")
    return TrainingConfig(
        str(tmp_path / "trained"),
        Data("ventricle-boxes", structure="third_ventricle", bids=str(phantoms), outlines=str(folder)),
        network=Architecture(widths=(4, 8), loss="cross_entropy_jaccard"),
        schedule=Schedule(steps=3, heads=1, slices=2, checkpoint_every=3),
        folds=Folds(count=2),
    )


@pytest.fixture
def quick(monkeypatch):
    """One process, and slices as they are."""
    monkeypatch.setattr(run_module, "prepare", prepare)
    monkeypatch.setattr(run_module, "each", one_by_one)
    monkeypatch.setattr(course_module, "labelled_task", lambda scans, labels, variation, geometry: (scans, geometry))
    monkeypatch.setattr(course_module, "drawer", plain_drawer)


def test_a_network_of_a_further_structure_is_trained_measured_and_loaded(ventricles, quick):
    trained = hypodask.train(ventricles)
    assert trained.weights.name == "third_ventricle.safetensors"
    _, card = load_weights(trained.weights)
    assert (card.task, card.name, card.labels.whole) == ("third_ventricle",) * 3
    assert card.labels.structures == ("third_ventricle",)
    record = STRUCTURES["third_ventricle"]
    assert card.geometry.centre_mm == record.box_centre_mm
    np.testing.assert_allclose(np.multiply(card.geometry.shape, card.geometry.spacing_mm), record.box_mm)
    network = load_network(trained.weights)
    assert (network.task, network.protocol) == ("third_ventricle", "ventricle-boxes")
    assert list(trained.structures["structure"]) == ["third_ventricle"] * 3
    assert "loss cross_entropy_jaccard" in card.training_data
    np.testing.assert_allclose(trained.structures["manual_mm3"], 6 * 24 * 16, rtol=0.3)
    assert read_config(trained.folder / "config.toml") == ventricles


def test_a_further_structure_starts_from_the_shipped_network_as_far_as_that_sees_the_same(ventricles):
    labels = read_label_table(label_table_path(ventricles.data), "p", "third_ventricle")
    start = start_of(replace(ventricles, network=Architecture(start=MAIN.network)), labels)
    assert start.architecture.out_channels == 2
    assert start.geometry.centre_mm == STRUCTURES["third_ventricle"].box_centre_mm
    head_size = replace(labels, whole="icv")
    with pytest.raises(
        TrainingError, match=r"start = 'hypothalamus' sees .* start from a network of icv, or from scratch"
    ):
        start_of(replace(ventricles, network=Architecture(start=MAIN.network)), head_size)
    assert start_of(ventricles, head_size).geometry.spacing_mm == (1.0, 1.0, 1.0)


def test_as_many_classes_of_another_structure_start_anew(trained, ventricles):
    labels = read_label_table(label_table_path(ventricles.data), "p", "third_ventricle")
    two = replace(labels, labels=(labels.labels[0], replace(labels.labels[0], index=2, structure="other")))
    models = start_of(replace(ventricles, network=Architecture(start=str(trained.weights))), two).models
    assert not any(leaf.any() for leaf in jax.tree.leaves(course_module.nnx.state(models[0].classify)))
    assert any(leaf.any() for leaf in jax.tree.leaves(course_module.nnx.state(models[0].down)))
    (own, *_), _ = load_weights(trained.weights)
    assert any(leaf.any() for leaf in jax.tree.leaves(course_module.nnx.state(own.classify)))
