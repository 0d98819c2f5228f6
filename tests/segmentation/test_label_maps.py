"""Label maps on the slab and on the scan: an ellipsoid comes back with its volume, on its side."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation
from segmentations import ellipsoid, labelled

from hypodask.core.grid import Grid, box_grid, slab_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SIDES, HYPOTHALAMUS_SUBUNITS, ICV
from hypodask.segmentation import Segmentation
from hypodask.segmentation.label_maps import label_map_on, slab_label_map
from hypodask.segmentation.volumes import clean

GRID = box_grid((48, 32, 32), (1.0, 1.0, 1.0), (0.0, -5.0, -6.0))
RADII_MM = (8.0, 11.0, 9.0)
LEFT, RIGHT = (-10.0, -5.0, -6.0), (10.0, -5.0, -6.0)
MM3 = 4 / 3 * np.pi * 8 * 11 * 9
SEGMENTATION = labelled(GRID, HYPOTHALAMUS_SIDES, [ellipsoid(GRID, side, RADII_MM) for side in (LEFT, RIGHT)])


def turned(angles, shift=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def scan_grid(order, flips, spacing, scanner_from_acpc):
    """A field of view of about 72 mm around the head, its axes in any order and direction."""
    linear = (np.eye(3)[:, order] * np.where(flips, -1.0, 1.0)) @ np.diag(spacing)
    matrix = np.eye(4)
    matrix[:3, :3] = scanner_from_acpc[:3, :3] @ linear
    shape = tuple(int(72 / s) for s in spacing)
    centre = transform_points(scanner_from_acpc, np.array([0.0, -5.0, -6.0]))
    matrix[:3, 3] = centre - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix, "scanner")


def volume_and_middle(label_map, grid, index, acpc_from_space=None):
    """Volume of one label in mm3, and the mean of its voxels in AC-PC space."""
    at = transform_points(grid.space_from_vox, np.argwhere(label_map == index))
    acpc = at if acpc_from_space is None else transform_points(acpc_from_space, at)
    return len(at) * grid.voxel_volume_mm3, acpc.mean(axis=0)


@settings(max_examples=20)
@given(
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (0.7, 0.9, 1.2)]),
)
def test_a_label_map_keeps_volume_and_side_on_any_scan(order, flips, angles, spacing):
    scanner_from_acpc = turned(angles, (3.0, -20.0, 40.0))
    grid = scan_grid(order, flips, spacing, scanner_from_acpc)
    label_map = label_map_on(SEGMENTATION, grid, scanner_from_acpc)
    for index, middle in ((1, LEFT), (2, RIGHT)):
        volume, found = volume_and_middle(label_map, grid, index, np.linalg.inv(scanner_from_acpc))
        assert volume == pytest.approx(MM3, rel=0.02)
        np.testing.assert_allclose(found, middle, atol=0.15)


def test_thick_slices_do_not_shrink_a_structure():
    grid = scan_grid([0, 1, 2], (False,) * 3, (0.9, 0.9, 3.0), np.eye(4))
    volume, _ = volume_and_middle(label_map_on(SEGMENTATION, grid, np.eye(4)), grid, 1)
    assert volume == pytest.approx(MM3, rel=0.03)


def test_on_its_own_grid_a_label_map_is_that_of_the_segmentation():
    np.testing.assert_array_equal(label_map_on(SEGMENTATION, GRID, np.eye(4)), SEGMENTATION.label_map)


def test_what_lies_outside_the_field_of_view_is_left_out():
    half = Grid((24, 32, 32), GRID.space_from_vox, "scanner")  # x < 0
    label_map = label_map_on(SEGMENTATION, half, np.eye(4))
    assert volume_and_middle(label_map, half, 1)[0] == pytest.approx(MM3, rel=0.02)
    assert not (label_map == 2).any()


@pytest.mark.parametrize("away_mm", [60.0, -60.0, 1000.0])
def test_a_scan_that_does_not_hold_the_structure_gets_an_empty_map(away_mm):
    label_map = label_map_on(SEGMENTATION, GRID, turned((0, 0, 0), (away_mm, 0, 0)))
    assert label_map.shape == GRID.shape
    assert not label_map.any()


def test_a_segmentation_that_found_nothing_gives_an_empty_map():
    nothing = labelled(GRID, HYPOTHALAMUS_SIDES, [np.zeros(GRID.shape)] * 2)
    assert not label_map_on(nothing, GRID, np.eye(4)).any()


def enclosed(mask):
    """Voxels of background from which no path through faces leads out."""
    return np.count_nonzero(ndimage.binary_fill_holes(np.pad(mask, 1)) & ~np.pad(mask, 1))


@pytest.mark.parametrize("angle_deg", [0.0, 10.0, 33.0])
@pytest.mark.parametrize("spacing", [(0.7, 0.9, 1.2), (1.3, 1.3, 1.3), (0.9, 0.9, 3.0)])
def test_a_structure_without_holes_has_none_on_any_scan_and_is_one_piece(angle_deg, spacing):
    """Tunnels that are open between the voxels of the segmentation close between those of the scan."""
    random = np.random.default_rng(0)
    ball = ellipsoid(GRID, (0.0, -5.0, -6.0), (14.0, 13.0, 13.0))
    rough = np.clip(ball + ndimage.gaussian_filter(random.standard_normal(GRID.shape), 0.8) * 1.5, 0, 1)
    posterior = np.where(ball > 0.2, rough, 0).astype(np.float32)
    scanner_from_acpc = turned((angle_deg, 0, angle_deg))
    grid = scan_grid([0, 1, 2], (False,) * 3, spacing, scanner_from_acpc)
    rules = {}
    for table in (ICV, HYPOTHALAMUS_SIDES):
        posteriors = [posterior] if len(table) == 1 else [posterior, np.zeros_like(posterior)]
        mask = label_map_on(clean(labelled(GRID, table, posteriors)), grid, scanner_from_acpc) > 0
        rules[table.whole] = enclosed(mask), ndimage.label(mask, np.ones((3, 3, 3)))[1]
    assert rules["icv"] == (0, 1)
    assert rules["hypothalamus"] != (0, 1)  # the test can fail


def test_labels_carry_the_numbers_of_their_table():
    posteriors = [np.zeros(GRID.shape, np.float32)] * 10
    posteriors[6] = ellipsoid(GRID, RIGHT, RADII_MM)
    label_map = label_map_on(labelled(GRID, HYPOTHALAMUS_SUBUNITS, posteriors), GRID, np.eye(4))
    assert np.unique(label_map).tolist() == [0, HYPOTHALAMUS_SUBUNITS.labels[6].index]


def test_the_slab_holds_the_structure_in_the_papers_voxels():
    fine = box_grid((64, 48, 48), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
    sides = [ellipsoid(fine, (x, -5.0, -6.0), (4.0, 6.0, 5.0)) for x in (-6.0, 6.0)]
    label_map = slab_label_map(labelled(fine, HYPOTHALAMUS_SIDES, sides), np.eye(4))
    assert label_map.shape == (512, 50, 512)
    volume, middle = volume_and_middle(label_map, slab_grid(), 1)
    assert volume == pytest.approx(4 / 3 * np.pi * 4 * 6 * 5, rel=0.015)
    np.testing.assert_allclose(middle, (-6.0, -5.0, -6.0), atol=0.05)


def test_the_slab_is_in_acpc_space_wherever_the_segmentation_was():
    scanner_from_acpc = turned((20, -5, 8), (10.0, 4.0, -7.0))
    moved = GRID.moved(scanner_from_acpc, "scanner")
    in_scanner = labelled(moved, HYPOTHALAMUS_SIDES, list(SEGMENTATION.posteriors[1:]))
    there, here = slab_label_map(in_scanner, np.linalg.inv(scanner_from_acpc)), slab_label_map(SEGMENTATION, np.eye(4))
    assert (there != here).mean() < 1e-5


def test_a_border_that_two_labels_share_belongs_to_the_structure_unless_one_label_must_win_alone():
    shared = np.array([0.4, 0.3, 0.3], np.float32)[:, None, None, None] * np.ones((1, 4, 4, 4), np.float32)
    together = Segmentation(shared, box_grid((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), HYPOTHALAMUS_SIDES)
    alone = replace(together, whole_first=False)
    assert (together.label_map == 1).all()
    assert (alone.label_map == 0).all()
    for segmentation, share in ((together, 1.0), (alone, 0.0)):
        inner = label_map_on(segmentation, segmentation.grid, np.eye(4))[1:-1, 1:-1, 1:-1]
        assert (inner > 0).mean() == share
