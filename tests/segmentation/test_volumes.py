"""Posteriors to volumes, on ellipsoids whose volumes are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from segmentations import ellipsoid, labelled

from hypodask.core.errors import SegmentationError
from hypodask.core.grid import Grid, box_grid
from hypodask.core.structures import HYPOTHALAMUS_SIDES, HYPOTHALAMUS_SUBUNITS, ICV, THIRD_VENTRICLE
from hypodask.segmentation.volumes import clean, faces_reached, measure

GRID = box_grid((48, 40, 40), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
RADII_MM = (3.0, 6.0, 5.0)
MM3 = 4 / 3 * np.pi * 3 * 6 * 5
LEFT, RIGHT = (-5.0, -5.0, -6.0), (5.0, -5.0, -6.0)


@pytest.fixture
def both():
    return [ellipsoid(GRID, side, RADII_MM) for side in (LEFT, RIGHT)]


def test_volumes_of_both_sides_and_of_the_whole(both):
    volumes = measure(labelled(GRID, HYPOTHALAMUS_SIDES, both))
    for kind in (volumes.soft_mm3, volumes.label_mm3):
        assert list(kind) == ["hypothalamus", "hypothalamus_left", "hypothalamus_right"]
        assert kind["hypothalamus_left"] == pytest.approx(MM3, rel=0.02)
        assert kind["hypothalamus"] == pytest.approx(2 * MM3, rel=0.02)


def test_soft_volume_of_a_half_filled_grid_counts_half_a_voxel():
    halved = ellipsoid(GRID, LEFT, RADII_MM) > 0.5
    posterior = np.where(halved, 0.75, 0.0).astype(np.float32)
    volumes = measure(labelled(GRID, HYPOTHALAMUS_SIDES, [posterior, np.zeros_like(posterior)]))
    assert volumes.soft_mm3["hypothalamus"] == pytest.approx(0.75 * volumes.label_mm3["hypothalamus"])
    assert volumes.islands_mm3 == 0


def test_subunits_add_up_to_their_side_and_the_sides_to_the_whole(both):
    parts = [side / 5 for side in both for _ in range(5)]
    parts[0], parts[5] = parts[0] + 1e-3, parts[5] + 1e-3  # one of them is the most probable
    volumes = measure(
        labelled(GRID, HYPOTHALAMUS_SUBUNITS, [3 * p if n % 5 == 0 else p / 2 for n, p in enumerate(parts)])
    )
    left = [volumes.soft_mm3[label.structure] for label in HYPOTHALAMUS_SUBUNITS.of("left")]
    assert volumes.soft_mm3["hypothalamus_left"] == pytest.approx(sum(left))
    assert volumes.soft_mm3["hypothalamus"] == pytest.approx(2 * sum(left), rel=0.01)
    assert volumes.label_mm3["hypothalamus_left"] == volumes.label_mm3["anterior_inferior_left"]


def test_a_leak_elsewhere_in_the_image_does_not_count(both):
    clean = measure(labelled(GRID, HYPOTHALAMUS_SIDES, both))
    leak = ellipsoid(GRID, (-11.0, 4.0, 3.0), (1.5, 1.5, 1.5))
    leaking = measure(labelled(GRID, HYPOTHALAMUS_SIDES, [both[0] + leak, both[1]]))
    assert leaking.label_mm3 == clean.label_mm3
    assert leaking.islands_mm3 == (leak > 0.5).sum() * GRID.voxel_volume_mm3
    assert leaking.soft_mm3["hypothalamus"] == pytest.approx(clean.soft_mm3["hypothalamus"], rel=1e-3)


def test_partial_volumes_beside_the_segmentation_count_however_large_the_voxels():
    coarse = box_grid((44, 52, 44), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    icv = labelled(coarse, ICV, [ellipsoid(coarse, (0.0, 0.0, 0.0), (64.0, 78.0, 62.0))])
    assert measure(icv).soft_mm3["icv"] == pytest.approx(4 / 3 * np.pi * 64 * 78 * 62, rel=0.01)


def test_a_structure_at_the_border_of_the_grid_is_measured():
    icv = ellipsoid(GRID, (-12.0, -15.0, -16.0), (8.0, 8.0, 8.0))
    assert measure(labelled(GRID, ICV, [icv])).soft_mm3["icv"] == pytest.approx(4 / 3 * np.pi * 8**3 / 8, rel=0.05)


def test_label_volumes_are_those_of_the_cleaned_label_map(both):
    both[1] = both[1] + ellipsoid(GRID, (-11.0, 4.0, 3.0), (1.5, 1.5, 1.5))
    volumes = measure(labelled(GRID, HYPOTHALAMUS_SIDES, both))
    label_map = volumes.cleaned.label_map
    assert volumes.label_mm3["hypothalamus_right"] == (label_map == 2).sum() * GRID.voxel_volume_mm3
    assert ndimage.label(label_map == 2)[1] == 1
    np.testing.assert_allclose(volumes.cleaned.posteriors.sum(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize(("voxels", "filled"), [(7, True), (9, False)])
def test_a_hole_of_less_than_one_cubic_millimetre_is_filled_and_a_larger_one_is_the_fornix(both, voxels, filled):
    i, j, k = (round(v) for v in np.linalg.solve(GRID.space_from_vox, (*LEFT, 1.0))[:3])
    whole = measure(labelled(GRID, HYPOTHALAMUS_SIDES, both)).label_mm3["hypothalamus_left"]
    hole = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (2, 0, 0)]
    for a, b, c in hole[:voxels]:
        both[0][i + a, j + b, k + c] = 0.2
    volumes = measure(labelled(GRID, HYPOTHALAMUS_SIDES, both))
    missing = 0 if filled else voxels * GRID.voxel_volume_mm3
    assert volumes.label_mm3["hypothalamus_left"] == pytest.approx(whole - missing)


def test_no_hole_stays_in_the_icv_even_where_the_network_is_certain_of_background():
    inside = ellipsoid(GRID, (0.0, -5.0, -6.0), (9.0, 8.0, 8.0))
    holed = inside.copy()
    holed[22:26, 18:22, 18:21] = 0.0
    whole, filled = (measure(labelled(GRID, ICV, [one])) for one in (inside, holed))
    assert filled.label_mm3 == whole.label_mm3
    assert filled.soft_mm3["icv"] == pytest.approx(whole.soft_mm3["icv"], rel=1e-6)
    np.testing.assert_allclose(filled.cleaned.posteriors[1], whole.cleaned.posteriors[1], atol=1e-6)


def test_a_hole_about_which_the_network_says_nothing_gets_the_label_that_is_nearest():
    sides = [ellipsoid(GRID, side, (4.0, 6.0, 5.0)) for side in (LEFT, RIGHT)]
    sides = [side / 5 for side in sides for _ in range(5)]
    upper = np.indices(GRID.shape)[2] >= 20
    for number, share in ((0, ~upper), (4, upper)):
        sides[number] = sides[number] * np.where(share, 4.8, 0.05)
    where = (slice(12, 15), slice(19, 21), slice(19, 21))
    for side in sides[:5]:
        side[where] = 0.0
    table = replace(THIRD_VENTRICLE, labels=HYPOTHALAMUS_SUBUNITS.labels)  # of a structure that has no holes
    found = clean(labelled(GRID, table, sides)).label_map[where]
    assert np.unique(found[..., 0]).tolist() == [HYPOTHALAMUS_SUBUNITS.labels[0].index]
    assert np.unique(found[..., 1]).tolist() == [HYPOTHALAMUS_SUBUNITS.labels[4].index]


@pytest.mark.parametrize("size", [0.92, 1.08])
def test_volumes_grow_with_the_voxels(both, size):
    """A larger head is shown to a network on a grid that is coarser by as much."""
    scaled = box_grid(GRID.shape, (0.5 * size,) * 3, (0.0, -5.0, -6.0))
    one, other = (measure(labelled(grid, HYPOTHALAMUS_SIDES, both)).soft_mm3["hypothalamus"] for grid in (GRID, scaled))
    assert other == pytest.approx(one * size**3, rel=1e-6)


def test_what_is_clean_stays_as_it_is(both):
    both[0] = both[0] + ellipsoid(GRID, (-11.0, 4.0, 3.0), (1.5, 1.5, 1.5))
    once = clean(labelled(GRID, HYPOTHALAMUS_SIDES, both))
    np.testing.assert_allclose(clean(once).posteriors, once.posteriors, atol=1e-6)


def test_a_segmentation_at_the_border_of_the_box_names_the_face():
    icv = ellipsoid(GRID, (-12.0, -5.0, -6.0), (3.0, 3.0, 3.0)) > 0.5
    assert faces_reached(icv, GRID, GRID, np.eye(4)) == ("left",)
    assert faces_reached(np.roll(icv, 12, axis=0), GRID, GRID, np.eye(4)) == ()


def test_faces_are_named_by_direction_whatever_the_order_of_the_axes():
    # Array axes point down, left and forward.
    turned = np.array([[0, -1.0, 0, 2], [0, 0, 1, -2], [-1, 0, 0, 2], [0, 0, 0, 1]])
    grid = Grid((5, 5, 5), turned, "scanner")
    mask = np.zeros(grid.shape, bool)
    mask[0, 4, 2] = True
    assert faces_reached(mask, grid, grid, np.eye(4)) == ("left", "top")
    around = box_grid((3, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert faces_reached(mask, grid, around, np.eye(4)) == ("left",)


@pytest.mark.parametrize("radius_mm", [0.0, 1.0])
def test_next_to_nothing_is_refused(radius_mm):
    posterior = ellipsoid(GRID, LEFT, (radius_mm,) * 3) if radius_mm else np.zeros(GRID.shape, np.float32)
    with pytest.raises(SegmentationError, match=r"no icv was found: \d mm3, at least 50 mm3 are needed; look at"):
        measure(labelled(GRID, ICV, [posterior]))


def test_soft_volumes_are_published_unless_the_posteriors_of_a_protocol_are_not_calibrated(both):
    for protocol, soft in ((HYPOTHALAMUS_SIDES.protocol, True), (HYPOTHALAMUS_SUBUNITS.protocol, False)):
        volumes = measure(labelled(GRID, replace(HYPOTHALAMUS_SIDES, protocol=protocol), both))
        assert volumes.to_publish() == (volumes.soft_mm3 if soft else volumes.label_mm3)
    assert volumes.soft_mm3 != volumes.label_mm3


def test_a_volume_whose_boundary_was_not_imaged_is_not_published():
    icv = labelled(GRID, ICV, [ellipsoid(GRID, (0.0, -5.0, -6.0), (9.0, 8.0, 8.0))])
    seen, inferred = (measure(replace(icv, inferred=one)) for one in (False, True))
    assert seen.to_publish() == seen.soft_mm3
    assert list(inferred.to_publish()) == ["icv"]
    assert np.isnan(inferred.to_publish()["icv"])
    assert inferred.soft_mm3 == seen.soft_mm3
