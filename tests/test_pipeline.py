"""One scan in, one row out: volumes when all is well, the stage and the reason when it is not."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from scipy import stats
from segmentations import ellipsoid, labelled

from hypodask import pipeline
from hypodask.alignment import Alignment
from hypodask.core.errors import AlignmentError, ModelError, StoreError
from hypodask.core.grid import box_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SIDES, HYPOTHALAMUS_SUBUNITS, ICV
from hypodask.networks.cards import InputGeometry, ModelCard
from hypodask.networks.unet import UNet, UNetConfig
from hypodask.networks.weights import save_weights
from hypodask.pipeline import load_models, process_scan
from hypodask.quality import judge
from hypodask.segmentation import Segmentation
from hypodask.segmentation.network import UNMEASURED, VolumeError
from hypodask.storage.store import read_done, read_label_map, read_record, read_stored_scan, verify_store
from hypodask.storage.transforms import load_transform
from hypodask.study.cohort import Cohort

BOX = box_grid((40, 32, 32), (1.0, 1.0, 1.0), (0.0, -5.0, -6.0))
HEAD = box_grid((44, 52, 44), (4.0, 4.0, 4.0), (0.0, -16.0, 8.0))
CAVITY = ((0.0, -18.0, 12.0), (64.0, 78.0, 62.0))
SIDES = [ellipsoid(BOX, (x, -5.0, -6.0), (4.0, 6.0, 4.0)) for x in (-6.0, 6.0)]
POSE = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.5, 0]), np.eye(4), score=0.7, flagged=False)


@dataclass(frozen=True)
class Fake:
    """A network that finds the same in every head."""

    found: Segmentation
    task: str = "hypothalamus"
    name: str = "fake:1"
    protocol: str = "fake protocol"
    volume_error: VolumeError = UNMEASURED

    def segment(self, scan, alignment):
        return self.found

    def on(self, elsewhere):
        return self


HYP = Fake(
    labelled(BOX, HYPOTHALAMUS_SIDES, SIDES),
    volume_error=VolumeError(0.05, 11, {"hypothalamus_left": 0.08}),
)
CRANIUM = Fake(labelled(HEAD, ICV, [ellipsoid(HEAD, *CAVITY)]), "icv", "fake icv:2", ICV.protocol)
FAKES = (HYP, CRANIUM)


@pytest.fixture
def aligned(monkeypatch):
    """``aligned(pose)`` makes every alignment give this one."""

    def give(pose):
        monkeypatch.setattr(pipeline, "align", lambda scan, landmarks=None: pose)

    give(POSE)
    return give


@pytest.fixture
def scan_file(tmp_path):
    """``scan_file()`` writes a head of 4 mm voxels: brain in a cavity, and tissue around it."""

    def write(name="sub-01_T1w.nii.gz", *, skull=True, right=1.0, shape=(56, 60, 56), centre=(0.0, -16.0, 8.0)):
        grid = box_grid(shape, (4.0, 4.0, 4.0), centre)
        at = transform_points(grid.space_from_vox, np.moveaxis(np.indices(shape), 0, -1)) - np.array(CAVITY[0])
        radius = np.linalg.norm(at / CAVITY[1], axis=-1)
        tissue = np.where(np.sin(at[..., 1] / 9) < -0.6, 30, 100)
        voxels = tissue * (radius < 1) + 60 * skull * ((radius > 1) & (radius < 1.4))
        voxels = np.where(at[..., 0] > 0, right * voxels, voxels)
        nib.save(nib.Nifti1Image(voxels.astype(np.uint8), grid.space_from_vox), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def raising(error):
    def refuse(*_, **__):
        raise error

    return refuse


def stores(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file()]


def test_a_scan_becomes_a_row_of_volumes(aligned, scan_file):
    row = process_scan(scan_file(), models=FAKES)
    assert (row.status, row.stage, row.scan, row.reason) == ("done", "", "sub-01", "")
    assert row["hypothalamus"] == pytest.approx(2 * 4 / 3 * np.pi * 4 * 6 * 4, rel=0.02)
    assert row["icv"] == pytest.approx(4 / 3 * np.pi * 64 * 78 * 62, rel=0.02)
    assert row["hypothalamus"] == row.soft_volume_mm3["hypothalamus"]
    assert row["hypothalamus_left"] == pytest.approx(row["hypothalamus_right"], rel=1e-3)
    assert (row.model, row.protocol) == ("fake:1 fake icv:2", "fake protocol")
    assert (row.alignment_score, row.acpc_distance_mm, row.flagged) == (0.7, 26.5, False)
    assert row.alignment_source == "automatic"
    assert 0 <= row.quality <= 1
    assert len(row.sha256) == 64
    assert row.seconds > 0
    assert row.store == ""


def test_only_structures_with_a_measured_error_have_an_interval(aligned, scan_file):
    row = process_scan(scan_file(), models=FAKES)
    assert list(row.volume_low_mm3) == list(row.volume_high_mm3) == ["hypothalamus", "hypothalamus_left"]
    for structure, known_sd in (("hypothalamus", 0.05), ("hypothalamus_left", 0.08)):
        low, high = row.volume_low_mm3[structure], row.volume_high_mm3[structure]
        assert high / row[structure] == pytest.approx(row[structure] / low)
        assert high / row[structure] >= np.exp(stats.t.ppf(0.975, 10) * known_sd) - 1e-9


def test_the_interval_of_a_doubtful_pose_is_wider(aligned, scan_file):
    sure = process_scan(scan_file(), models=FAKES)
    aligned(replace(POSE, error_mm=5.0))
    unsure = process_scan(scan_file(), models=FAKES)
    assert unsure.volume_high_mm3["hypothalamus"] > sure.volume_high_mm3["hypothalamus"]
    assert unsure["hypothalamus"] == sure["hypothalamus"]


def test_a_flagged_pose_has_no_interval(aligned, scan_file):
    aligned(replace(POSE, flagged=True))
    row = process_scan(scan_file(), models=FAKES)
    assert row.flagged
    assert row.volume_low_mm3 == row.volume_high_mm3 == {}


def test_a_segmentation_that_lacks_a_side_flags_the_row_and_has_no_interval(aligned, scan_file):
    one_side = [SIDES[0], 0 * SIDES[1]]
    row = process_scan(scan_file(), models=(Fake(labelled(BOX, HYPOTHALAMUS_SIDES, one_side)), CRANIUM))
    assert (row.status, row.flagged) == ("done", True)
    assert "The left hypothalamus is 148.41 times as large as the right one (usual: " in row.warnings
    assert row.quality < 0.1
    assert "hypothalamus" not in row.volume_low_mm3


def test_quality_is_kept_with_what_it_was_judged_by(aligned, scan_file, out):
    row = process_scan(scan_file(), out=out, models=FAKES)
    measures = read_record(str(out / row.store), "quality")
    assert measures["acpc_mm"] == 26.5
    assert measures["member_spread"] is None
    assert judge({name: np.nan if v is None else v for name, v in measures.items()}).score == row.quality


def test_a_head_without_signal_on_one_side_has_a_low_quality_that_the_warnings_explain(aligned, scan_file):
    sound, half = process_scan(scan_file(), models=FAKES), process_scan(scan_file(right=0.05), models=FAKES)
    assert half.quality < 0.5
    assert "times that right of it" in half.warnings
    assert "times that right of it" not in sound.warnings


def test_in_a_protocol_whose_posteriors_are_not_calibrated_labels_are_counted(aligned, scan_file):
    table = replace(HYPOTHALAMUS_SIDES, protocol=HYPOTHALAMUS_SUBUNITS.protocol)
    row = process_scan(scan_file(), models=(replace(HYP, found=labelled(BOX, table, SIDES)), CRANIUM))
    assert row["hypothalamus"] == row.label_volume_mm3["hypothalamus"] != row.soft_volume_mm3["hypothalamus"]


def test_everything_is_kept_in_a_store_that_is_marked_as_done(aligned, scan_file, out):
    path = scan_file()
    row = process_scan(path, scan="sub-01", out=out, store="scans/Ulm/sub-01.nii.zarr", models=FAKES)
    url = str(out / row.store)
    assert row.store == "scans/Ulm/sub-01.nii.zarr"
    assert verify_store(url) == []
    done = read_done(url)
    assert (done["scan"], done["sha256"], done["model"]) == ("sub-01", row.sha256, row.model)
    assert read_record(url, "alignment")["acpc_from_scanner"] == np.eye(4).tolist()
    assert read_record(url, "alignment")["source"] == "automatic"
    np.testing.assert_array_equal(load_transform(f"{url}/sub-01_from-T1w_to-ACPC_mode-image_xfm.txt"), np.eye(4))
    np.testing.assert_array_equal(read_stored_scan(url).stored, nib.load(path).get_fdata())
    for name, expected in (("icv_scan", row["icv"]), ("hypothalamus_slab", row["hypothalamus"])):
        label_map, grid = read_label_map(url, name)
        assert (label_map > 0).sum() * grid.voxel_volume_mm3 == pytest.approx(expected, rel=0.05)
    assert read_label_map(url, "hypothalamus_scan")[1].shape == (56, 60, 56)


def test_label_maps_of_a_network_in_scanner_space_are_carried_to_the_slab(aligned, scan_file, out):
    pose = np.eye(4)
    pose[:3, 3] = (0.0, 3.0, -4.0)
    aligned(replace(POSE, acpc_from_scanner=pose))
    parts = [side if n == 0 else np.zeros_like(side) for side in SIDES for n in range(5)]
    moved = BOX.moved(np.linalg.inv(pose), "scanner")
    subunits = Fake(labelled(moved, HYPOTHALAMUS_SUBUNITS, parts))
    row = process_scan(scan_file(), out=out, models=(subunits, CRANIUM))
    label_map, grid = read_label_map(str(out / row.store), "hypothalamus_slab")
    left = transform_points(grid.space_from_vox, np.argwhere(label_map == 1)).mean(axis=0)
    np.testing.assert_allclose(left, (-6.0, -5.0, -6.0), atol=0.1)
    assert row["anterior_inferior_left"] == row["hypothalamus_left"]


def test_a_pose_from_landmarks_by_hand_is_told_in_row_and_record(aligned, scan_file, out):
    aligned(replace(POSE, score=float("nan"), source="landmarks"))
    row = process_scan(scan_file(), out=out, models=FAKES)
    record = read_record(str(out / row.store), "alignment")
    assert (row.alignment_source, record["source"], record["score"]) == ("landmarks", "landmarks", None)


def test_a_file_that_is_missing_is_a_failed_row(out):
    row = process_scan("nowhere/sub-09.nii.gz", out=out, models=FAKES)
    assert (row.status, row.stage, row.error, row.scan) == ("failed", "read", "MissingScanError", "sub-09")
    assert "there is no such file" in row.reason
    assert not stores(out)


def test_a_file_that_was_cut_short_is_a_failed_row(scan_file, tmp_path):
    whole = scan_file("whole.nii").read_bytes()
    (tmp_path / "cut.nii").write_bytes(whole[: len(whole) // 2])
    row = process_scan(tmp_path / "cut.nii", models=FAKES)
    assert (row.status, row.stage, row.error) == ("failed", "read", "TruncatedScanError")


def test_what_is_no_head_fails_when_it_is_aligned_and_leaves_no_store(monkeypatch, scan_file, out):
    error = AlignmentError("no human head was found")
    error.add_note("It may be a fruit.")
    monkeypatch.setattr(pipeline, "align", raising(error))
    row = process_scan(scan_file(), out=out, models=FAKES)
    assert (row.status, row.stage, row.error) == ("failed", "align", "AlignmentError")
    assert row.reason == "no human head was found It may be a fruit."
    assert row.store == ""
    assert not stores(out)


def test_a_network_that_finds_nothing_fails_the_scan(aligned, scan_file, out):
    nothing = Fake(labelled(BOX, HYPOTHALAMUS_SIDES, [np.zeros(BOX.shape)] * 2))
    row = process_scan(scan_file(), out=out, models=(nothing, CRANIUM))
    assert (row.status, row.stage, row.error) == ("failed", "measure", "SegmentationError")
    assert not stores(out)


@pytest.mark.parametrize("step", ["read_scan", "write_scan", "mark_done"])
def test_a_disk_that_fails_is_an_error_and_no_verdict_on_the_scan(aligned, scan_file, out, monkeypatch, step):
    monkeypatch.setattr(pipeline, step, raising(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        process_scan(scan_file(), out=out, models=FAKES)


def test_a_stripped_skull_is_said(aligned, scan_file):
    assert "The skull has been stripped" in process_scan(scan_file(skull=False), models=FAKES).warnings


def test_a_cavity_that_was_not_wholly_scanned_is_said(aligned, scan_file):
    row = process_scan(scan_file(shape=(56, 60, 28), centre=(0.0, -16.0, -44.0)), models=FAKES)
    assert row.status == "done"
    assert "50 % of the intracranial volume lies outside the field of view" in row.warnings


def test_a_pose_that_leaves_the_field_of_view_is_said(aligned, scan_file):
    away = np.eye(4)
    away[0, 3] = 900.0
    aligned(replace(POSE, acpc_from_scanner=away, flagged=True, warnings=("The pose is odd.",)))
    row = process_scan(scan_file(), models=FAKES)
    assert row.warnings.startswith("The pose is odd. The intracranial volume lies outside the field of view. ")
    assert "100.0% of the hypothalamus was not imaged" in row.warnings
    assert row.flagged
    assert row.quality < 0.01


def test_an_outline_that_the_box_of_its_network_cuts_is_said(aligned, scan_file):
    near_the_front = [ellipsoid(BOX, (x, 10.0, -6.0), (4.0, 6.0, 4.0)) for x in (-6.0, 6.0)]
    row = process_scan(scan_file(), models=(Fake(labelled(BOX, HYPOTHALAMUS_SIDES, near_the_front)), CRANIUM))
    assert "The segmentation of the hypothalamus ends at the front of the box" in row.warnings


def test_a_cavity_may_leave_its_box_down_the_spinal_canal_but_nowhere_else(aligned, scan_file):
    cavity = ellipsoid(HEAD, *CAVITY)
    for radius, told in ((8.0, False), (40.0, True)):
        canal = ellipsoid(HEAD, (0.0, -30.0, -60.0), (radius, radius, 60.0))
        cranium = labelled(HEAD, ICV, [np.maximum(cavity, canal)])
        row = process_scan(scan_file(), models=(HYP, Fake(cranium, "icv", "fake icv:2", ICV.protocol)))
        assert ("The segmentation of the ICV ends at the bottom of the box" in row.warnings) == told


def test_an_outline_in_scanner_space_that_the_slab_cuts_is_said(aligned, scan_file):
    beyond = [ellipsoid(BOX, (x, 5.0, -6.0), (4.0, 6.0, 4.0)) for x in (-6.0, 6.0)]
    in_scanner = Fake(labelled(BOX.moved(np.eye(4), "scanner"), HYPOTHALAMUS_SIDES, beyond))
    row = process_scan(scan_file(), models=(in_scanner, CRANIUM))
    assert (
        "The segmentation of the hypothalamus reaches the front of the slab; "
        "its label map on the slab is cut off there." in row.warnings
    )


def test_an_unusual_volume_is_said(aligned, scan_file):
    tiny = Fake(labelled(BOX, HYPOTHALAMUS_SIDES, [ellipsoid(BOX, (x, -5, -6), (3.0, 3.0, 3.0)) for x in (-6, 6)]))
    assert "is outside the usual 500-1400 mm3" in process_scan(scan_file(), models=(tiny, CRANIUM)).warnings


@pytest.mark.parametrize("path", ["a/sub-03_T1w.nii.gz", "C:\\a\\sub-03_T1w.nii", "s3/b/sub-03_T1w/"])
def test_a_scan_is_named_after_its_file_or_folder(path, monkeypatch):
    monkeypatch.setattr(pipeline, "read_scan", raising(AlignmentError("never mind")))
    assert process_scan(path, models=FAKES).scan == "sub-03"


def test_scans_that_differ_after_a_dot_in_their_names_have_stores_of_their_own(aligned, scan_file, out):
    names = ["s_0.9mm_a.nii.gz", "s_0.8mm_b.nii.gz"]
    rows = [process_scan(scan_file(name), out=out, models=FAKES) for name in names]
    assert [row.scan for row in rows] == ["s_0.9mm_a", "s_0.8mm_b"]
    assert [row.scan for row in rows] == Cohort.from_files([scan_file(name) for name in names]).table["scan"].tolist()
    assert [verify_store(str(out / row.store)) for row in rows] == [[], []]


def test_the_store_of_another_scan_is_never_written_over(aligned, scan_file, out, tmp_path):
    row = process_scan(scan_file(), out=out, models=FAKES)
    before = {path: path.read_bytes() for path in (out / row.store).rglob("*") if path.is_file()}
    (tmp_path / "elsewhere").mkdir()
    namesake = shutil.copy(scan_file(right=0.9), tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="holds another file of the same name"):
        process_scan(namesake, out=out, models=FAKES)
    with pytest.raises(StoreError, match="holds the scan 'sub-01', not 'sub-02'"):
        process_scan(namesake, scan="sub-02", out=out, store=row.store, models=FAKES)
    assert {path: path.read_bytes() for path in (out / row.store).rglob("*") if path.is_file()} == before
    assert process_scan(scan_file(right=0.9), out=out, models=FAKES).status == "done"
    assert process_scan(namesake, scan="sub-01", out=out, models=FAKES).status == "done"


@pytest.mark.parametrize("scan", ["../sub-01", "a/b", ".sub-01", "下" * 66])
def test_a_name_that_cannot_be_that_of_a_store_is_refused_before_anything_is_read(scan_file, out, scan):
    with pytest.raises(StoreError, match="cannot name its store"):
        process_scan(scan_file(), scan=scan, out=out, models=FAKES)
    assert not out.exists()


@pytest.fixture
def weights(tmp_path):
    """``weights(task)`` writes a tiny network."""

    def write(task, name):
        config = UNetConfig(in_channels=1, out_channels=3 if task == "hypothalamus" else 2, widths=(2, 2))
        geometry = InputGeometry((8.0,) * 3, (8, 8, 8), slices=1, slice_axis=1, intensity="head_median")
        card = ModelCard(name, task, "trial", config, geometry, "nothing", "BSD-3-Clause")
        return save_weights(tmp_path / f"{name}.safetensors", UNet(config, rngs=nnx.Rngs(0)), card)

    return write


@pytest.fixture
def shipped(monkeypatch, weights):
    """Stand-ins for the weights that come with hypodask."""
    own = {task: weights(task, f"shipped-{task}") for task in pipeline.SHIPPED}
    load = pipeline.load_network
    monkeypatch.setattr(pipeline, "load_network", lambda name: load(own.get(name, name)))


def names(networks):
    return [network.name.partition(":")[0] for network in networks]


def test_shipped_networks_are_used_where_none_is_named(shipped):
    assert names(load_models()) == ["shipped-hypothalamus", "shipped-icv"]


def test_a_named_network_takes_the_place_of_the_shipped_one_for_its_task(shipped, weights):
    assert names(load_models(weights("icv", "mine"))) == ["shipped-hypothalamus", "mine"]
    assert names(load_models(["icv", str(weights("hypothalamus", "mine"))])) == ["mine", "shipped-icv"]


def test_two_networks_for_one_task_are_refused(shipped, weights):
    with pytest.raises(ModelError, match=r"one:\w+ and two:\w+ are both for icv; name one"):
        load_models([weights("icv", "one"), weights("icv", "two")])


def test_networks_that_are_loaded_are_taken_as_they_are(shipped):
    assert load_models(FAKES) == FAKES
    assert load_models(CRANIUM)[1] is CRANIUM


def test_weights_that_do_not_exist_are_refused_before_the_scan_is_read(shipped):
    with pytest.raises(ModelError, match="no model is called 'amygdala'"):
        process_scan("nowhere.nii", models="amygdala")
