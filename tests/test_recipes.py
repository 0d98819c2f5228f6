"""How shipped weights are made: examples, figures and cards, on a few voxels of made-up heads."""

import sys

import jax
import nibabel as nib
import numpy as np
import pytest

from hypodask.alignment import Alignment
from hypodask.grid import Grid
from hypodask.labels import HYPOTHALAMUS, ICV
from hypodask.recipes import __main__ as command_line
from hypodask.recipes import hypothalamus, icv
from hypodask.recipes.__main__ import main
from hypodask.recipes.figures import held_out, summary, write_figures
from hypodask.recipes.hypothalamus import CORE, HYPOTHALAMUS_GEOMETRY, hypothalamus_stored_grid, hypothalamus_task
from hypodask.recipes.icv import ICV_GEOMETRY, icv_head, icv_stored_grid, icv_task
from hypodask.segmentation.predict import input_grid

FIGURES = {
    name: {"dice": overlap, "volume_mm3": volume, "consensus_mm3": 1000.0}
    for name, overlap, volume in (("a", 0.9, 1000.0), ("b", 0.92, 1100.0), ("c", 0.94, 900.0))
}


@pytest.fixture
def pose(monkeypatch):
    """Heads of any kind are found where they are."""
    pose = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.0, 0]), np.eye(4), score=0.7, flagged=False)
    monkeypatch.setattr(icv, "align", lambda scan: pose)


def test_training_grids_hold_what_the_networks_will_see():
    stored, seen = hypothalamus_stored_grid(), input_grid(HYPOTHALAMUS_GEOMETRY)
    assert np.empty(stored.shape)[CORE].shape == seen.shape
    np.testing.assert_allclose(stored.centre_mm, seen.centre_mm)
    np.testing.assert_allclose(icv_stored_grid().centre_mm, input_grid(ICV_GEOMETRY).centre_mm)


def test_a_hypothalamic_example_is_a_head_in_units_of_white_matter_with_its_truth(monkeypatch):
    monkeypatch.setattr(hypothalamus, "BLURS_MM", ((0.0, 0.0, 0.0), (0.6, 0.6, 0.6)))
    monkeypatch.setattr(hypothalamus, "BLUR_SHARES", (0.5, 0.5))
    shape = hypothalamus_stored_grid().shape
    truth = np.zeros((2, *shape), np.float16)
    truth[0, 40:60], truth[1, 68:88] = 1, 1
    task = hypothalamus_task([{"image": np.full(shape, 400.0, np.float32), "truth": truth}])
    head = task.make(jax.random.key(0))
    np.testing.assert_allclose(head.image, 1.0, atol=1e-3)
    np.testing.assert_array_equal(head.truth, truth)
    np.testing.assert_array_equal(task.mirror(head.truth), truth[::-1])


def test_an_icv_example_is_true_inside_the_skull_whatever_tissues_its_head_has():
    half = icv_stored_grid().shape[0] // 2
    brain, skin = np.zeros((2, *icv_stored_grid().shape), np.uint8)
    brain[:half], skin[half:] = 255, 255
    task = icv_task([(np.stack([brain, skin]), ["white", "507"]), (brain[None], ["fluid"])])
    for key in range(3):
        head = task.make(jax.random.key(key))
        np.testing.assert_allclose(head.truth[0], brain / 255, atol=1e-6)


def test_a_label_map_is_posed_and_kept(pose, tmp_path):
    labels = np.zeros((20, 20, 20), np.int16)
    labels[4:12], labels[12:16] = 2, 507
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -76.0
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "seg_01.nii.gz")
    shares, names = icv_head(tmp_path / "seg_01.nii.gz", tmp_path)
    assert names == ["white", "507"]
    assert shares.shape == (2, *icv_stored_grid().shape)
    assert np.load(tmp_path / "seg_01.npz")["icv_mm3"] == pytest.approx(8 * 20 * 20 * 8.0**3)
    (tmp_path / "seg_01.nii.gz").unlink()
    np.testing.assert_array_equal(icv_head(tmp_path / "seg_01.nii.gz", tmp_path)[0], shares)


def test_the_image_that_finds_the_pose_shows_tissues_inside_the_skull_only():
    labels = np.array([[[0, 2, 24, 507]]], np.int16)
    scan = icv._t1w_of(labels, Grid(labels.shape, np.eye(4), "scanner"), "seg_01")
    assert scan.data.round().ravel().tolist() == [0, 1000, 200, 0]


def test_a_network_that_says_what_the_consensus_says_agrees_with_it():
    shape = hypothalamus_stored_grid().shape
    truth = np.zeros((2, *shape), np.float32)
    truth[0, 50:60, 30:50, 50:70], truth[1, 68:78, 30:50, 50:70] = 1, 1

    class Right:
        def posteriors(self, image):
            assert image.shape == HYPOTHALAMUS_GEOMETRY.shape
            labels = truth[(slice(None), *CORE)]
            return np.stack([1 - labels.sum(0), *labels])

    figures = hypothalamus._agreement(Right(), {"image": np.ones(shape, np.float32), "truth": truth})
    assert figures == {"dice": 1.0, "volume_mm3": 1000.0, "consensus_mm3": 1000.0}


def test_figures_of_held_out_heads_give_the_error_of_the_volume():
    metrics, relative_sd = summary(FIGURES, "three heads")
    assert (metrics["dice_mean"], metrics["dice_lowest"]) == (0.92, 0.9)
    assert (metrics["volume_bias_percent"], metrics["volume_sd_percent"]) == (0.0, 10.0)
    assert metrics["measured_on"] == "three heads"
    assert relative_sd == pytest.approx(np.sqrt(0.02 / 3))


def test_fewer_than_three_held_out_heads_measure_nothing():
    assert summary({"a": FIGURES["a"]}, "one head") == ({}, None)


def test_figures_of_all_folds_are_gathered(tmp_path):
    for fold, names in (("a", ["a"]), ("b-c", ["b", "c"])):
        (tmp_path / f"hypothalamus-without-{fold}").mkdir()
        write_figures(
            tmp_path / f"hypothalamus-without-{fold}" / "held-out.json", {name: FIGURES[name] for name in names}
        )
    assert held_out(tmp_path, "hypothalamus") == FIGURES
    assert held_out(tmp_path, "icv") == {}


def test_cards_say_what_was_measured_on_what():
    card = hypothalamus._hypothalamus_card(12, 4000, FIGURES)
    assert (card.protocol, card.geometry) == (HYPOTHALAMUS.protocol, HYPOTHALAMUS_GEOMETRY)
    assert "pseudo-labels" in str(card.metrics["measured_on"])
    assert "12 public T1-weighted heads" in card.training_data
    cavity = icv._icv_card(13, 1500, {})
    assert (cavity.protocol, cavity.metrics, cavity.relative_volume_sd) == (ICV.protocol, {}, None)


def test_the_command_line_runs_the_recipe_that_is_named(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(command_line, "train_icv", lambda data, work, **options: calls.append((data, work, options)))
    arguments = ["recipes", "icv", str(tmp_path), str(tmp_path / "work"), "--steps", "7", "--leave-out", "a", "b"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert calls == [(tmp_path, tmp_path / "work", {"steps": 7, "leave_out": ("a", "b")})]
