"""How shipped weights are made: examples, figures and cards, on a few voxels of made-up heads."""

import sys
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from clusters import local_client
from scipy import ndimage

from hypodask.alignment import Alignment
from hypodask.core.errors import UnreadableScanError
from hypodask.core.grid import Grid
from hypodask.core.structures import HYPOTHALAMUS, ICV
from hypodask.image.resampling import resample
from hypodask.learning import labelled_scans
from hypodask.learning.scanner_versions import SCANNERS, sharp, softer
from hypodask.learning.training_box import SEEN
from hypodask.scan import Scan
from hypodask.segmentation.icv_border import BOUNDARY_GEOMETRY
from hypodask.segmentation.segmentation import Segmentation
from recipes import __main__ as command_line
from recipes import commissures, hypothalamus, icv
from recipes.__main__ import main
from recipes.border import border_card
from recipes.figures import held_out, summary, write_figures
from recipes.hypothalamus import (
    HYPOTHALAMUS_GEOMETRY,
    TRAINING_GRID,
    hypothalamus_card,
    hypothalamus_task,
    sharpened,
)
from recipes.icv import icv_agreement, stored_map, synthetic_scan

FIGURES = {
    name: {
        "dice": overlap,
        "volume_mm3": volume,
        "consensus_mm3": 1000.0,
        "parts_mm3": {"posterior_left": [110.0, 100.0]},
    }
    for name, overlap, volume in (("a", 0.9, 1000.0), ("b", 0.92, 1100.0), ("c", 0.94, 900.0))
}


@pytest.fixture
def pose(monkeypatch):
    """Heads of any kind are found where they are."""
    pose = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.0, 0]), np.eye(4), score=0.7, flagged=False)
    monkeypatch.setattr(icv, "align", lambda scan: pose)


def layered():
    """Brain, skin and air in layers of 8 mm voxels along x, from the left of the head to beyond its right."""
    labels = np.zeros((20, 20, 20), np.int16)
    labels[4:12], labels[12:16] = 2, 511
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = -76.0
    return labels, Grid(labels.shape, affine, "scanner")


def test_a_hypothalamic_example_is_a_head_in_units_of_white_matter_with_its_truth(monkeypatch):
    monkeypatch.setattr(labelled_scans, "SCANNERS", {sharp: 0.5, softer: 0.5})
    shape = TRAINING_GRID.shape
    truth = np.zeros((10, *shape), np.float16)
    truth[0, 40:50], truth[5, 62:72] = 1, 1
    task = hypothalamus_task([{"image": np.full(shape, 400.0, np.float32), "truth": truth}])
    head = task.make(jax.random.key(0))
    np.testing.assert_allclose(head.image, 1.0, atol=1e-3)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(head.truth), -1, 0), truth)
    np.testing.assert_array_equal(task.mirror(head.truth)[..., 5], truth[0])
    assert head.growth.fields.shape == (4, 3, *(n // 2 for n in shape))


@pytest.mark.parametrize("scanners", [SCANNERS, commissures.COMMISSURE_SCANNERS])
def test_shares_of_the_scanners_that_show_a_head_add_up(scanners):
    assert sum(scanners.values()) == pytest.approx(1)
    assert sharp in scanners


def test_workers_make_the_consensus_of_heads_that_are_not_kept_yet(monkeypatch, tmp_path):
    made = []
    labels, grid = layered()
    pose = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.0, 0]), np.eye(4), score=0.7, flagged=False)

    def consensus(scan, acpc_from_scanner, model, onto):
        made.append(scan.source)
        background = np.ones((1, *onto.shape), np.float32)
        posteriors = np.concatenate([background, np.zeros((10, *onto.shape), np.float32)])
        return Segmentation(posteriors, onto, HYPOTHALAMUS), np.array([900.0, 950.0])

    monkeypatch.setattr(hypothalamus, "read_scan", lambda path: Scan(labels, grid, source=path.name))
    monkeypatch.setattr(hypothalamus, "align", lambda scan: pose)
    monkeypatch.setattr(hypothalamus, "import_hypothalamus_seg", lambda path: None)
    monkeypatch.setattr(hypothalamus, "consensus", consensus)
    data, kept = tmp_path / "data", tmp_path / "kept"
    for name in ("scans/whole.nii.gz", "scans_stripped/brain.nii.gz", "models/published.h5"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    kept.mkdir()
    with local_client(1, processes=False) as client:
        heads = hypothalamus.hypothalamus_heads(data, kept, client=client)
        assert list(heads) == ["whole", "brain"]
        assert heads["brain"]["truth"].shape == (10, *TRAINING_GRID.shape)
        assert heads["whole"]["volumes"].tolist() == [900, 950]
        (kept / "brain.npz").unlink()
        hypothalamus.hypothalamus_heads(data, kept, client=client)
    assert sorted(made) == ["brain.nii.gz", "brain.nii.gz", "whole.nii.gz"]


def test_a_head_without_a_consensus_stops_the_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr(hypothalamus, "import_hypothalamus_seg", lambda path: None)
    for name in ("scans", "scans_stripped", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "published.h5").touch()
    (tmp_path / "scans" / "empty.nii.gz").touch()
    with local_client(1, processes=False) as client, pytest.raises(UnreadableScanError, match="empty"):
        hypothalamus.hypothalamus_heads(tmp_path, tmp_path, client=client)


def test_every_head_is_left_out_by_one_fold():
    left_out = [name for fold in hypothalamus.FOLDS for name in fold]
    assert len(left_out) == len(set(left_out)) == 9


def test_a_head_whose_consensus_is_unsure_is_neither_learnt_from_nor_measured_against(caplog):
    sure = np.zeros((10, 20, 20, 20), np.float16)
    sure[3, 5:15, 5:15, 5:15] = 1
    blurred = ndimage.gaussian_filter(sure.astype(np.float32), (0, 3, 3, 3)).astype(np.float16)
    heads = hypothalamus.trusted({"sure": {"truth": sure}, "blurred": {"truth": blurred}})
    assert list(heads) == ["sure"]
    assert "blurred is left out" in caplog.text


def test_a_label_map_is_posed_and_kept(pose, tmp_path):
    path = tmp_path / "seg_01.nii.gz"
    labels, grid = layered()
    nib.save(nib.Nifti1Image(labels, np.array(grid.space_from_vox)), path)
    stored = stored_map(path, tmp_path)
    assert stored.codes.shape == (12, 20, 20)  # trimmed to the head
    np.testing.assert_allclose(stored.vox_from_acpc @ [-44.0, -76.0, -76.0, 1], [0, 0, 0, 1])
    path.unlink()
    np.testing.assert_array_equal(stored_map(path, tmp_path).codes, stored.codes)


def test_a_synthetic_scan_shows_every_tissue_where_its_label_is():
    labels, grid = layered()
    data = synthetic_scan(labels, grid, seed=1).data
    white, skin, air = data[6:10].mean(), data[13:15].mean(), data[17:].mean()
    assert white == pytest.approx(1000, rel=0.06)
    assert 200 < skin < 1700
    assert air < 50
    assert data[6:10].std() > 10


def test_volume_and_overlap_of_a_network_that_outlines_the_label_map_itself(pose, tmp_path):
    path = tmp_path / "seg_13.nii.gz"
    labels, grid = layered()
    nib.save(nib.Nifti1Image(labels, np.array(grid.space_from_vox)), path)

    class Right:
        def segment(self, scan, alignment):
            onto = BOUNDARY_GEOMETRY.grid
            inside = resample((labels == 2).astype(np.float32), grid, onto)
            return Segmentation(np.stack([1 - inside, inside]), onto, ICV)

    figures = icv_agreement(Right(), [path])
    assert list(figures) == [f"seg_13 {image}" for image in range(4)]
    for figure in figures.values():
        assert figure["dice"] == 1
        assert figure["volume_mm3"] == pytest.approx(figure["consensus_mm3"], rel=0.02)


def test_a_network_that_says_what_the_consensus_says_agrees_with_it():
    shape = TRAINING_GRID.shape
    truth = np.zeros((10, *shape), np.float32)
    truth[0, 36:46, 30:50, 40:60], truth[7, 66:76, 30:50, 40:60] = 1, 1
    labels = truth[(slice(None), *SEEN)]
    right = Segmentation(np.stack([1 - labels.sum(0), *labels]), HYPOTHALAMUS_GEOMETRY.grid, HYPOTHALAMUS)
    figures = hypothalamus.agreement(right, {"truth": truth})
    parts = figures.pop("parts_mm3")
    assert figures == pytest.approx({"dice": 1.0, "volume_mm3": 1000.0, "consensus_mm3": 1000.0})
    assert parts["hypothalamus_left"] == parts["anterior_inferior_left"] == pytest.approx((500.0, 500.0))
    assert parts["posterior_right"] == pytest.approx((500.0, 500.0))


def test_the_outline_of_a_sharpened_consensus_is_where_it_was_and_its_sum_is_what_it_encloses():
    ramp = np.clip((10 - np.abs(np.arange(64) - 31.5)) / 12 + 0.5, 0, 1).astype(np.float16)
    truth = np.stack([0.7 * ramp, 0.3 * ramp])[:, :, None, None].astype(np.float16)
    truth[:, :15] = 0.04  # what single runs leak
    sharp = sharpened(truth).astype(np.float32).sum(0)
    np.testing.assert_array_equal(sharp > 0.5, truth.astype(np.float32).sum(0) > 0.5)
    assert sharp.sum() == pytest.approx((sharp > 0.5).sum(), rel=0.02)
    assert truth.sum() > 1.05 * (sharp > 0.5).sum()


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
    card = hypothalamus_card(12, 3, 4000, FIGURES)
    assert (card.members, card.volume_heads, card.part_volume_sd) == (3, 3, {"posterior_left": pytest.approx(0.1)})
    assert (card.protocol, card.geometry) == (HYPOTHALAMUS.protocol, HYPOTHALAMUS_GEOMETRY)
    assert "pseudo-labels" in str(card.metrics["measured_on"])
    assert "12 public T1-weighted heads" in card.training_data
    cavity = icv.icv_card(13, 1500, {})
    assert (cavity.protocol, cavity.metrics, cavity.relative_volume_sd) == (ICV.protocol, {}, None)


def test_the_command_line_runs_the_recipe_that_is_named(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(command_line, "train_icv", lambda data, work, **options: calls.append((data, work, options)))
    arguments = ["recipes", "icv", str(tmp_path), str(tmp_path / "work"), "--steps", "7", "--leave-out", "a", "b"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert calls == [(tmp_path, tmp_path / "work", {"steps": 7, "leave_out": ("a", "b")})]
    monkeypatch.setattr(sys, "argv", [*arguments[:4], "--initial", "icv.safetensors"])
    main()
    assert calls[1][2] == {"steps": 1200, "leave_out": (), "initial": Path("icv.safetensors")}
    monkeypatch.setattr(sys, "argv", ["recipes", "commissures", *arguments[2:4], "--initial", "icv.safetensors"])
    with pytest.raises(SystemExit):
        main()


def test_the_consensus_is_made_on_the_cluster_that_is_named(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(command_line, "train_hypothalamus", lambda data, work, **options: calls.append(options))
    arguments = ["recipes", "hypothalamus", str(tmp_path), str(tmp_path), "--scheduler", "tcp://there:8786"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert calls == [{"steps": 1200, "leave_out": (), "client": "tcp://there:8786"}]
    monkeypatch.setattr(sys, "argv", ["recipes", "icv", *arguments[2:]])
    with pytest.raises(SystemExit):
        main()


def test_a_border_that_was_measured_on_one_head_has_a_card_all_the_same():
    one = {f"a {image}": figure for image, figure in enumerate(FIGURES.values())}
    assert border_card(3, 10, one).volume_heads is None
    assert border_card(3, 10, FIGURES).volume_heads == len(FIGURES)
