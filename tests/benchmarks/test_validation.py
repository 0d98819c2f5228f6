"""Real heads: whole, stripped and thick-sliced ones through the whole pipeline, and a fruit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from hypodask import align, process_scan, read_scan
from hypodask.core.grid import transform_points
from hypodask.segmentation import load_network
from hypodask.segmentation.volumes import measure
from recipes.commissures import NEVER_LEARNT, rated_commissures_mm

pytestmark = pytest.mark.validation

WHOLE_HEADS = (
    "scans/colin27_ch2.nii.gz",
    "scans/dcmqa_uih_uMR770_a.nii.gz",
    "scans/myconnectome_ds000031_3T_face.nii.gz",
    "scans/pycortex_S1_conformed.nii.gz",
    "scans/seecog_wide_ventricles_defaced.nii.gz",
    "scans/studyforrest_3T_philips_067mm_defaced.nii.gz",
    "scans/visualqc_id001_orig.mgz",
)

PUBLISHED_MM3 = {
    "scans/colin27_ch2.nii.gz": (1082, 0.03),
    "scans/pycortex_S1_conformed.nii.gz": (936, 0.03),
    "scans/seecog_wide_ventricles_defaced.nii.gz": (755, 0.03),
    "scans/visualqc_id001_orig.mgz": (806, 0.03),
    "scans/myconnectome_ds000031_3T_face.nii.gz": (957, 0.08),
    "scans/studyforrest_3T_philips_067mm_defaced.nii.gz": (871, 0.08),
    "scans_stripped/fnndsc_eun.nii.gz": (934, 0.03),
}
"""Label count of one run of the published network, and how near ours must be: heads stored at 1 mm are shown
as they are, others are resampled first."""

TEMPLATE = "template/tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"


@pytest.mark.parametrize("name", WHOLE_HEADS)
def test_a_real_head_gets_plausible_volumes(name, validation_data):
    row = process_scan(validation_data / name)
    assert (row.status, row.reason, row.flagged) == ("done", "", False)
    assert 500 < row["hypothalamus"] < 1400
    assert 1.2e6 < row["icv"] < 2.1e6
    assert abs(row["hypothalamus_left"] / row["hypothalamus_right"] - 1) < 0.25


def test_a_fruit_is_refused_where_the_head_is_looked_for(validation_data):
    (path,) = (validation_data / "not_a_head").glob("*.nii.gz")
    row = process_scan(path)
    assert (row.status, row.stage, row.error) == ("failed", "align", "AlignmentError")
    assert "no human head" in row.reason


@pytest.mark.parametrize("name", PUBLISHED_MM3)
def test_the_published_network_finds_the_volumes_it_is_known_for(name, validation_data):
    (weights,) = (validation_data / "models").glob("*.h5")
    scan = read_scan(validation_data / name)
    segmentation = load_network(weights).segment(scan, align(scan))
    published, tolerance = PUBLISHED_MM3[name]
    counted = (segmentation.label_map > 0).sum() * segmentation.grid.voxel_volume_mm3
    assert counted == pytest.approx(published, rel=tolerance)
    assert measure(segmentation).label_mm3["hypothalamus"] == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(("name", "worst_mm"), [(TEMPLATE, 0.8), ("scans/colin27_ch2.nii.gz", 1.5)])
def test_commissures_are_where_raters_put_them(name, worst_mm, validation_data):
    table = pd.read_csv(validation_data / "landmarks/acpc.tsv", sep="\t").query("image == @name").set_index("landmark")
    alignment = align(read_scan(validation_data / name))
    for landmark, found in (("AC", alignment.ac_mm), ("PC", alignment.pc_mm)):
        rated = table.loc[landmark, ["x_mm", "y_mm", "z_mm"]].to_numpy(float)
        assert np.linalg.norm(found - rated) < worst_mm


def test_a_stripped_brain_is_measured_and_says_so(validation_data):
    row = process_scan(validation_data / "scans_stripped/plot_atlas_brain.mgz")
    assert row.status == "done"
    assert "skull has been stripped" in row.warnings
    assert 500 < row["hypothalamus"] < 1400


@pytest.mark.parametrize("name", NEVER_LEARNT)
def test_commissures_are_where_raters_of_this_very_image_put_them(name, validation_data):
    """On two heads that the network never saw."""
    (path,) = validation_data.glob(f"*/{name}")
    alignment = align(read_scan(path))
    found = np.array([alignment.ac_mm, alignment.pc_mm])
    assert np.linalg.norm(found - rated_commissures_mm(name), axis=1).max() < 0.9


@pytest.mark.parametrize("name", WHOLE_HEADS)
def test_a_real_head_that_is_moved_has_its_commissures_moved(name, validation_data):
    """Through a header that says that the head was turned and shifted, nothing but the pose changes."""
    scan = read_scan(validation_data / name)
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", (12, -6, 8), degrees=True).as_matrix()
    move[:3, 3] = 15, -20, 30
    still, moved = align(scan), align(replace(scan, grid=scan.grid.moved(move, "scanner")))
    assert np.linalg.norm(moved.ac_mm - transform_points(move, still.ac_mm)) < 0.3
    assert np.linalg.norm(moved.pc_mm - transform_points(move, still.pc_mm)) < 0.3
    turned = moved.acpc_from_scanner @ move @ np.linalg.inv(still.acpc_from_scanner)
    assert np.degrees(Rotation.from_matrix(turned[:3, :3]).magnitude()) < 0.5
