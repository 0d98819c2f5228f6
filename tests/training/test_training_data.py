"""Manual label maps: which belongs to which scan, what is learnt from them, and every kind that is refused."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hypodask.core.errors import OutlineError, TrainingError, TruncatedScanError
from hypodask.core.grid import Grid, box_grid, transform_points
from hypodask.core.structures import Label, LabelTable
from hypodask.training.config import Data
from hypodask.training.folds import fold_of
from hypodask.training.manual_labels import ManualLabels, check_grid, check_inside, check_sides, soft_labels
from hypodask.training.pairs import find_pairs, label_table_path
from hypodask.training.protocol import read_label_table

TABLE = LabelTable(
    "ulm-2024",
    "hypothalamus",
    (
        Label(801, "hypothalamus_left", "left", "L-Hyp", "#ff0000"),
        Label(802, "hypothalamus_right", "right", "R-Hyp", "#00ff00"),
    ),
)
DSEG = "index\tname\themisphere\tabbreviation\tcolor\n0\tBackground\tboth\t\t\n"


@pytest.fixture
def map_file(tmp_path):
    """``map_file(label_map, affine)`` writes a label map; by default an ellipsoid on each side of x = 0."""

    def write(numbers=None, affine=None, *, name="sub-01_dseg.nii.gz", code=1):
        numbers = label_map() if numbers is None else numbers
        image = nib.Nifti1Image(numbers, ras(numbers.shape) if affine is None else affine)
        image.set_sform(image.affine, code)
        image.set_qform(None, 0)
        nib.save(image, tmp_path / name)
        return str(tmp_path / name)

    return write


def ras(shape):
    """1 mm voxels, the middle of the block at 0."""
    affine = np.eye(4)
    affine[:3, 3] = -(np.array(shape) - 1) / 2
    return affine


def label_map(shape=(40, 40, 40), dtype=np.int16):
    """A ball of 5 mm on each side, 7 mm from the middle: 801 where x < 0."""
    x, y, z = transform_points(ras(shape), np.moveaxis(np.indices(shape), 0, -1)).transpose(3, 0, 1, 2)
    left, right = ((x - middle) ** 2 + y**2 + z**2 < 25 for middle in (-7, 7))
    return (801 * left + 802 * right).astype(dtype)


def scan_grid(shape=(40, 40, 40), affine=None):
    return Grid(shape, ras(shape) if affine is None else affine, "scanner")


# The label table


def test_a_label_table_is_read_with_sides_colours_and_names_for_the_results(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text(DSEG + "801\tLeft Hypothalamus\tL\tL-Hyp\t#FF0000\n802\tHypothalamus\tR\t\tred\n")
    table = read_label_table(str(path), "ulm-2024")
    assert table.structures == ("hypothalamus_left", "hypothalamus_right")
    assert [label.index for label in table] == [801, 802]
    assert (table["hypothalamus_left"].colour, table["hypothalamus_left"].abbreviation) == ("#ff0000", "L-Hyp")
    assert table["hypothalamus_right"].colour.startswith("#")
    assert (table.protocol, table["hypothalamus_right"].hemisphere) == ("ulm-2024", "right")


def test_a_label_without_a_name_of_its_own_is_named_after_the_structure(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text(DSEG + "1\tL\tL\t\t\n2\tR\tR\t\t\n")
    table = read_label_table(str(path), "p", "third_ventricle")
    assert (table.whole, table.structures) == ("third_ventricle", ("third_ventricle_left", "third_ventricle_right"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tname\n1\tx\n", "lacks hemisphere; a row for each label"),
        (DSEG, "has no row with an index above 0"),
        (DSEG + "1.5\tx\tL\t\t\n", "line 3: index '1.5'"),
        (DSEG + "1\tx\tmiddle\t\t\n", "hemisphere 'middle'; .* one of L, R and both are needed"),
        (DSEG + "1\tx\tL\t\t\n1\tx\tR\t\t\n", "has index 1 in several rows"),
        (DSEG + "1\tx\tL\t\t\n2\tX left\tL\t\t\n", "has structure x_left in several rows"),
        (DSEG + "1\tx\tL\t\t\n", "has x_left but not the same structure on the right"),
    ],
)
def test_a_label_table_that_cannot_be_used_says_which_line_and_what_is_needed(tmp_path, text, message):
    path = tmp_path / "dseg.tsv"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        read_label_table(str(path), "p")


def test_a_missing_label_table_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"no table .*dseg.tsv; correct the path; a BIDS dseg.tsv"):
        read_label_table(str(tmp_path / "dseg.tsv"), "p")


# Which label map belongs to which scan


@pytest.fixture
def bids(tmp_path):
    """``bids(scans, outlines)`` makes empty files of these names and gives the run's data."""

    def make(scans, outlines, **options):
        for root, names in (("study", scans), ("study/derivatives/manual", outlines)):
            for name in names:
                parts = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
                folder = tmp_path / root / f"sub-{parts['sub']}" / (f"ses-{parts['ses']}" if "ses" in parts else ".")
                (folder / "anat").mkdir(parents=True, exist_ok=True)
                (folder / "anat" / name).touch()
        (tmp_path / "study/derivatives/manual").mkdir(parents=True, exist_ok=True)
        return Data("p", bids=str(tmp_path / "study"), outlines=str(tmp_path / "study/derivatives/manual"), **options)

    return make


def test_label_maps_find_their_scan_by_participant_and_session_and_unlabelled_scans_are_passed_over(bids):
    data = bids(
        ["sub-01_T1w.nii.gz", "sub-02_ses-1_T1w.nii.gz", "sub-02_ses-2_T1w.nii.gz", "sub-03_T1w.nii.gz"],
        ["sub-01_dseg.nii.gz", "sub-02_ses-2_space-orig_dseg.nii.gz"],
    )
    pairs = {pair.scan: pair for pair in find_pairs(data)}
    assert {scan: Path(pair.labels_path).name for scan, pair in pairs.items()} == {
        "sub-01": "sub-01_dseg.nii.gz",
        "sub-02_ses-2": "sub-02_ses-2_space-orig_dseg.nii.gz",
    }
    assert (pairs["sub-02_ses-2"].participant_id, pairs["sub-02_ses-2"].session) == ("sub-02", "2")
    assert not any(pair.problem for pair in pairs.values())


def test_entities_choose_among_label_maps_and_runs_tell_scans_apart(bids):
    data = bids(
        ["sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz"],
        ["sub-01_run-2_desc-anna_dseg.nii.gz", "sub-01_run-2_desc-ben_dseg.nii.gz"],
        entities={"desc": "ben"},
    )
    (pair,) = find_pairs(data)
    assert (pair.scan, Path(pair.labels_path).name) == ("sub-01_run-2", "sub-01_run-2_desc-ben_dseg.nii.gz")


@pytest.mark.parametrize(
    ("scans", "outlines", "problem"),
    [
        (["sub-01_T1w.nii"], ["sub-02_dseg.nii"], "no T1w scan of sub-02 for this label map; exactly one is needed"),
        (["sub-01_run-1_T1w.nii", "sub-01_run-2_T1w.nii"], ["sub-01_dseg.nii"], "what tells the scan from the others"),
        (["sub-01_T1w.nii"], ["sub-01_desc-a_dseg.nii", "sub-01_desc-b_dseg.nii"], "has 2 label maps, .* entities"),
        (["sub-01_T1w.nii"], ["sub-01_space-MNI152NLin6Asym_dseg.nii"], "is in space MNI152NLin6Asym; the scan's own"),
        (["sub-01_T1w.nii"], ["sub-01_space-ACPC_dseg.nii"], "the pose that it was aligned with is not known; put"),
    ],
)
def test_a_label_map_without_its_one_scan_or_in_another_space_is_a_row_with_a_reason(bids, scans, outlines, problem):
    (pair,) = find_pairs(bids(scans, outlines))
    assert pair.problem.replace("\n", " ") != ""
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(pair.problem)


def test_a_label_map_in_acpc_space_comes_with_its_transform(bids, tmp_path):
    data = bids(["sub-01_T1w.nii"], ["sub-01_space-ACPC_dseg.nii"])
    transform = tmp_path / "study/derivatives/manual/sub-01/anat/sub-01_from-T1w_to-ACPC_mode-image_xfm.txt"
    transform.touch()
    (pair,) = find_pairs(data)
    assert (pair.space, pair.transform, pair.problem) == ("ACPC", str(transform), "")


def test_pairs_may_be_listed_in_a_table_with_paths_from_its_folder(tmp_path):
    table = tmp_path / "pairs.tsv"
    table.write_text(
        "scan\tlabels\tparticipant_id\n"
        "a/sub-01_ses-1_T1w.nii\tb/one.nii\t\n/x/head7.nii\tb/two.nii\tperson7\n\tb/three.nii\t\n"
    )
    first, second, third = find_pairs(Data("p", table=str(table), labels="dseg.tsv"))
    assert (first.scan, first.participant_id) == ("sub-01_ses-1", "sub-01")
    assert (first.scan_path, first.labels_path) == (
        str(tmp_path / "a/sub-01_ses-1_T1w.nii"),
        str(tmp_path / "b/one.nii"),
    )
    assert (second.scan, second.participant_id, second.scan_path) == ("head7", "person7", "/x/head7.nii")
    assert "line 4: scan ''" in third.problem


def test_no_label_map_at_all_no_table_and_a_repeated_scan_stop_the_run(bids, tmp_path):
    data = bids(["sub-01_T1w.nii"], [])
    with pytest.raises(TrainingError, match=r"no label map in .* searched"):
        find_pairs(data)
    with pytest.raises(TrainingError, match=r"has 0 label tables at its root .*add dseg.tsv"):
        label_table_path(data)
    (tmp_path / "pairs.csv").write_text("scan,labels\na.nii,b.nii\na.nii,c.nii\n")
    with pytest.raises(TrainingError, match="several label maps are of a; one of each"):
        find_pairs(Data("p", table=str(tmp_path / "pairs.csv"), labels="x"))


# What a label map must be


def test_a_label_map_knows_its_volumes_and_places(map_file):
    manual = ManualLabels.read(map_file(), TABLE)
    ball = np.count_nonzero(label_map() == 801)
    np.testing.assert_allclose(manual.volumes_mm3, [ball, ball])
    np.testing.assert_allclose(manual.centre_mm([801]), [-7, 0, 0], atol=0.5)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.zeros((20, 20, 20), np.int16), "no voxel has a label; a segmentation is needed"),
        (
            np.where(label_map() == 802, 807, label_map()).astype(np.int16),
            r"labels 807 are not in the label table, which has 801 \(hypoth",
        ),
        (
            label_map() * (label_map() == 801),
            r"no voxel of the right side; it has 801, and .* needed: segment the other",
        ),
        (label_map().astype(np.float32) * 0.5, r"values are no whole numbers, the first is 40[01].*; a label map"),
        (np.where(label_map() == 801, np.nan, 1).astype(np.float32), "values are no whole numbers, the first is nan"),
    ],
)
def test_a_map_that_lacks_labels_of_the_protocol_is_refused_with_a_cure(map_file, numbers, message):
    path = map_file(numbers)
    with pytest.raises(OutlineError, match=message) as refused:
        ManualLabels.read(path, TABLE)
    assert str(refused.value).startswith(path)


def test_a_structure_that_was_forgotten_is_named(map_file):
    more = LabelTable("p", "hypothalamus", (*TABLE.labels, Label(3, "chiasm", "both", "OX", "#000000")))
    with pytest.raises(OutlineError, match=r"no voxel of 3 \(chiasm\)"):
        ManualLabels.read(map_file(), more)


def test_a_map_in_template_space_is_refused(map_file):
    with pytest.raises(OutlineError, match="the header says that it is in MNI152 space; the scan's own is needed"):
        ManualLabels.read(map_file(code=4), TABLE)


def test_a_map_that_is_cut_short_is_refused_as_a_scan_is(map_file, tmp_path):
    whole = map_file(name="whole.nii")
    (tmp_path / "short.nii").write_bytes(Path(whole).read_bytes()[:5000])
    with pytest.raises(TruncatedScanError):
        ManualLabels.read(str(tmp_path / "short.nii"), TABLE)


# Where a label map must be


def test_the_scans_own_grid_and_another_grid_in_its_place_are_both_taken(map_file):
    check_grid(ManualLabels.read(map_file(), TABLE), scan_grid(), "")
    check_grid(ManualLabels.read(map_file(), TABLE), scan_grid((90, 80, 70)), "")


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (
            scan_grid((40, 40, 48), ras((40, 40, 40))),
            "40 x 40 x 40 voxels with the affine of the scan, which has 40 x 40 x",
        ),
        (scan_grid((40, 40, 40), np.eye(4)), r"as many voxels as the scan, .* up to 33.8 mm apart; .* say space-orig"),
        (scan_grid((60, 60, 60), ras((200, 60, 60))), "the labels lie outside the scan, about its voxel"),
    ],
)
def test_a_grid_that_contradicts_the_scans_is_refused_with_both(map_file, scan, message):
    with pytest.raises(OutlineError, match=message):
        check_grid(ManualLabels.read(map_file(), TABLE), scan, "")


def test_space_orig_vouches_for_a_header_that_differs_from_the_scans(map_file):
    shifted = ras((40, 40, 40))
    shifted[:3, 3] += 2.0
    manual = ManualLabels.read(map_file(), TABLE)
    with pytest.raises(OutlineError, match="another affine"):
        check_grid(manual, scan_grid(affine=shifted), "")
    check_grid(manual, scan_grid(affine=shifted), "orig")


def test_left_for_right_is_found_by_where_the_sides_lie(map_file):
    manual = ManualLabels.read(map_file(), TABLE)
    check_sides(manual, np.eye(4))
    mirrored = np.diag([-1.0, 1.0, 1.0, 1.0])
    with pytest.raises(OutlineError, match=r"left and right are exchanged: .* \[801\] lies at x = \+7.0 mm"):
        check_sides(manual, mirrored)


def test_soft_labels_keep_the_volume_whatever_grid_the_label_map_is_on(map_file):
    onto = box_grid((60, 50, 50), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    for shape in ((40, 40, 40), (30, 20, 60)):
        manual = ManualLabels.read(map_file(label_map(shape)), TABLE)
        soft = soft_labels(manual, onto, turned)
        assert soft.shape == (2, *onto.shape)
        assert soft.sum(axis=0).max() <= 1 + 1e-6
        np.testing.assert_allclose(soft.sum((1, 2, 3)) / 8, manual.volumes_mm3, rtol=0.01)
        np.testing.assert_allclose(mean_place(soft[0], onto), turned[:3, :3] @ manual.centre_mm([801]), atol=0.1)


def mean_place(mass, grid):
    places = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    return (places * mass[..., None]).sum((0, 1, 2)) / mass.sum()


def test_a_label_map_outside_the_networks_box_is_refused_with_both_places(map_file):
    manual = ManualLabels.read(map_file(), TABLE)
    box = box_grid((50, 40, 40), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
    away = np.eye(4)
    away[2, 3] = -9.0
    check_inside(manual, soft_labels(manual, box, np.eye(4)), box, np.eye(4))
    with pytest.raises(
        OutlineError, match=r"[3-6]\d % of the labels lie in the network's box; 95 % is needed. .*-9.0 mm"
    ):
        check_inside(manual, soft_labels(manual, box, away), box, away)


# Who is held out


def test_sessions_of_a_participant_are_never_split_and_folds_come_out_even():
    participants = [f"sub-{number % 10:02d}" for number in range(23)]
    folds = fold_of(participants, 3, seed=4)
    assert all(
        len({fold for fold, who in zip(folds, participants, strict=True) if who == name}) == 1 for name in participants
    )
    sizes = np.bincount(folds)[1:]
    assert len(sizes) == 3
    assert sizes.max() - sizes.min() <= 2
    assert folds == fold_of(participants, 3, seed=4)
    assert folds != fold_of(participants, 3, seed=5)


def test_more_folds_than_participants_are_refused():
    with pytest.raises(TrainingError, match="2 participants can be learnt from; 3 folds need at least 3"):
        fold_of(["a", "b", "a"], 3)
