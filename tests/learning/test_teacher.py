"""The consensus of many runs, with a stand-in for the published network that sees what is bright."""

import numpy as np
import pytest
from segmentations import ellipsoid

from hypodask.core.grid import Grid, box_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SUBUNITS
from hypodask.image.intensity import intensity_window
from hypodask.learning import teacher
from hypodask.learning.teacher import ConsensusOptions, _teacher_window, consensus
from hypodask.scan import Scan
from hypodask.segmentation.published import ImportedModel

ONTO = box_grid((48, 28, 28), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
LEFT, RIGHT = (-6.0, -5.0, -6.0), (6.0, -7.0, -6.0)
RADII_MM = (3.0, 4.0, 4.0)
MM3 = 2 * 4 / 3 * np.pi * 3 * 4 * 4


class Threshold(ImportedModel):
    """Bright voxels belong to one subunit on the left or one on the right, by the half of the block they are in."""

    labels = HYPOTHALAMUS_SUBUNITS

    def __init__(self, blind=()):
        self.blind, self.runs = blind, 0
        self.images = []

    def posteriors(self, image):
        self.images.append(image)
        found = (image > 0.5) & (self.runs not in self.blind)
        self.runs += 1
        posteriors = np.zeros((11, *image.shape), np.float32)
        half = image.shape[0] // 2
        posteriors[3, :half], posteriors[9, half:] = found[:half], found[half:]
        posteriors[0] = 1 - posteriors.sum(0)
        return posteriors


@pytest.fixture(autouse=True)
def small_block(monkeypatch):
    monkeypatch.setattr(teacher, "_BLOCK", 40)
    # Most of the tissue around is of intensity 20 here, and what is to be found is of 100.
    monkeypatch.setattr(teacher, "_WHITE_POINT", 5.0)


@pytest.fixture
def pose():
    acpc_from_scanner = np.eye(4)
    acpc_from_scanner[:3, 3] = (4.0, -12.0, 30.0)
    return acpc_from_scanner


@pytest.fixture
def scan(pose):
    """Two bright ellipsoids in grey tissue, the right one further back."""
    acpc = box_grid((40, 32, 32), (1.0, 1.0, 1.0), (0.0, -5.0, -6.0))
    bright = ellipsoid(acpc, LEFT, RADII_MM) + ellipsoid(acpc, RIGHT, RADII_MM)
    stored = np.round(20 + 80 * bright).astype(np.uint8)
    return Scan(stored, acpc.moved(np.linalg.inv(pose), "scanner"))


def middle(posterior):
    at = transform_points(ONTO.space_from_vox, np.moveaxis(np.indices(ONTO.shape), 0, -1))
    return (at * posterior[..., None]).sum((0, 1, 2)) / posterior.sum()


def test_runs_in_many_poses_agree_on_the_place_and_the_side(scan, pose):
    outlines, volumes = consensus(scan, pose, Threshold(), ONTO, options=ConsensusOptions(runs=6, trim=0.2))
    np.testing.assert_allclose(middle(outlines.posteriors[1:6].sum(0)), LEFT, atol=0.25)
    np.testing.assert_allclose(middle(outlines.posteriors[6:].sum(0)), RIGHT, atol=0.25)
    np.testing.assert_allclose(outlines.posteriors.sum(0), 1, atol=1e-5)
    assert volumes.mean() == pytest.approx(MM3, rel=0.1)
    assert outlines.labels.protocol == "billot2020-consensus"


def test_runs_whose_volume_is_far_from_the_median_are_left_out(scan, pose):
    network = Threshold(blind={2})
    outlines, volumes = consensus(scan, pose, network, ONTO, options=ConsensusOptions(runs=5, trim=0.2))
    assert volumes[2] == 0
    assert (volumes > 0).sum() == 4
    assert outlines.posteriors[1:6].sum(0).max() == pytest.approx(1, abs=1e-3)


def test_every_run_sees_another_pose_and_a_seed_gives_the_same_ones(scan, pose):
    first, second = Threshold(), Threshold()
    for network in (first, second):
        consensus(scan, pose, network, ONTO, seed=4, options=ConsensusOptions(runs=2, trim=1.0))
    np.testing.assert_array_equal(first.images, second.images)
    assert np.abs(first.images[0] - first.images[1]).max() > 0.5


def test_the_white_point_is_that_of_the_tissue_around_whatever_else_is_in_the_scan(scan, pose):
    with_fat = np.array(scan.data, np.float32)
    with_fat[:1] = 4000
    low, high = _teacher_window(scan, pose)
    assert _teacher_window(Scan(with_fat, scan.grid), pose)[1] == pytest.approx(high, rel=0.02)
    assert intensity_window(with_fat)[1] > 10 * intensity_window(scan.data)[1]
    assert low < high < 200


def test_every_other_block_is_a_mirror_image():
    rng = np.random.default_rng(0)
    for mirrored in (False, True):
        block = teacher._random_block(rng, ConsensusOptions(), mirrored=mirrored)
        assert isinstance(block, Grid)
        assert np.linalg.det(block.space_from_vox[:3, :3]) == pytest.approx(-1 if mirrored else 1)
