"""Overlap, surface distances and volume agreement, against SimpleITK, brute force and published tables."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813 - the name everybody uses
import statsmodels.formula.api as smf
from array_types import unchecked
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from statsmodels.stats.anova import anova_lm

from hypodask.image.agreement import dice, intraclass_correlation, surface_distances, volume_agreement

SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float
)
"""Table 2 of Shrout & Fleiss 1979: six targets by four judges."""

spacings = st.tuples(*[st.floats(0.2, 4.0)] * 3)
pairs = hnp.arrays(bool, st.tuples(st.just(2), *[st.integers(1, 6)] * 3), elements=st.booleans())


def ball(centre_mm, radius_mm, shape, spacing_mm):
    at = np.moveaxis(np.indices(shape), 0, -1) * spacing_mm
    return np.linalg.norm(at - np.array(centre_mm), axis=-1) <= radius_mm


def image_of(mask, spacing_mm):
    """SimpleITK turns the axes of an array around, and so must the spacing be."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing_mm[::-1])
    return image


def brute_force(a, b, spacing_mm):
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * spacing_mm for mask in (a, b)]
    between = cdist(*surfaces)
    return between.min(axis=1), between.min(axis=0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1, 1, 0, 0], [0, 1, 1, 0], 0.5), ([1, 0], [0, 1], 0.0), ([0, 0], [0, 0], 1.0), ([1, 1], [1, 1], 1.0)],
)
def test_dice_of_masks(a, b, expected):
    assert dice(np.array(a, bool), np.array(b, bool)) == expected


@given(pairs)
def test_dice_is_simpleitks(masks):
    a, b = masks
    assume(a.any() or b.any())
    peer = sitk.LabelOverlapMeasuresImageFilter()
    peer.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (a, b)))
    assert dice(a, b) == pytest.approx(peer.GetDiceCoefficient())


@given(pairs, spacings)
def test_distances_are_those_of_every_surface_voxel_to_every_other(masks, spacing_mm):
    a, b = masks
    assume(a.any() and b.any())
    from_a, from_b = brute_force(a, b, spacing_mm)
    found = surface_distances(a, b, spacing_mm)
    assert found.largest_mm == pytest.approx(max(from_a.max(), from_b.max()))
    assert found.mean_mm == pytest.approx((from_a.sum() + from_b.sum()) / (len(from_a) + len(from_b)))
    assert found.hd95_mm == pytest.approx(max(np.percentile(from_a, 95), np.percentile(from_b, 95)))


@given(spacings, st.tuples(*[st.floats(-2.0, 2.0)] * 3), st.floats(2.0, 5.0))
def test_distances_are_simpleitks_on_voxels_of_any_shape(spacing_mm, shift, radius_mm):
    shape = tuple(int(np.ceil(16 / spacing)) + 2 for spacing in spacing_mm)
    middle = np.array(shape) * spacing_mm / 2
    a, b = (ball(centre, radius_mm, shape, spacing_mm) for centre in (middle, middle + shift))
    assume(a.any() and b.any())
    contours = [sitk.LabelContour(image_of(mask, spacing_mm)) for mask in (a, b)]
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(*contours)
    maps = [abs(sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True)) for c in contours]
    on = [sitk.GetArrayFromImage(contour) > 0 for contour in contours]
    from_a, from_b = (sitk.GetArrayFromImage(maps[1 - which])[on[which]] for which in (0, 1))
    found = surface_distances(a, b, spacing_mm)
    assert found.largest_mm == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-5, abs=1e-5)
    assert found.mean_mm == pytest.approx(np.concatenate([from_a, from_b]).mean(), rel=1e-5, abs=1e-5)
    assert found.hd95_mm == pytest.approx(max(np.percentile(d, 95) for d in (from_a, from_b)), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_a_shift_by_one_voxel_is_as_long_as_the_voxel(axis):
    a = np.zeros((5, 6, 7), bool)
    a[1:3, 1:3, 1:3] = True
    spacing_mm = (0.125, 0.5, 2.0)
    found = surface_distances(a, np.roll(a, 1, axis), spacing_mm)
    assert (found.largest_mm, found.hd95_mm) == (spacing_mm[axis], spacing_mm[axis])


@given(pairs, spacings, st.sampled_from(list(permutations(range(3)))))
def test_distances_follow_the_axes_when_array_and_spacing_are_transposed(masks, spacing_mm, order):
    a, b = masks
    turned = surface_distances(a.transpose(order), b.transpose(order), tuple(spacing_mm[axis] for axis in order))
    straight = surface_distances(a, b, spacing_mm)
    for name in ("hd95_mm", "mean_mm", "largest_mm"):
        assert getattr(turned, name) == pytest.approx(getattr(straight, name), nan_ok=True)


@given(pairs, spacings)
def test_distances_are_symmetric_and_ordered(masks, spacing_mm):
    a, b = masks
    assume(a.any() and b.any())
    found, back = surface_distances(a, b, spacing_mm), surface_distances(b, a, spacing_mm)
    assert (back.hd95_mm, back.largest_mm) == (found.hd95_mm, found.largest_mm)
    assert back.mean_mm == pytest.approx(found.mean_mm)
    assert 0 <= found.hd95_mm <= found.largest_mm
    assert found.mean_mm <= found.largest_mm * (1 + 1e-12)


@given(hnp.arrays(bool, (4, 5, 3)))
def test_a_mask_is_no_distance_from_itself(mask):
    assume(mask.any())
    found = surface_distances(mask, mask, (1.0, 2.0, 3.0))
    assert (found.hd95_mm, found.mean_mm, found.largest_mm) == (0, 0, 0)


def test_surfaces_of_flat_masks_are_measured_too():
    a, b = np.zeros((2, 8, 8), bool)
    a[2, 2:6], b[5, 2:6] = True, True
    assert surface_distances(a, b, (0.125, 0.5)).largest_mm == 0.375


def test_there_is_no_distance_from_an_empty_mask():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    for a, b in ((empty, full), (full, empty), (empty, empty)):
        found = surface_distances(a, b, (1.0, 1.0, 1.0))
        assert np.isnan([found.hd95_mm, found.mean_mm, found.largest_mm]).all()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, -1.0), (1.0, 1.0, np.nan)])
def test_a_spacing_that_cannot_be_is_refused(spacing_mm):
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match="one positive number of mm for each axis"):
        surface_distances(mask, mask, spacing_mm)


def test_masks_on_different_grids_are_refused():
    with pytest.raises(ValueError, match="on one grid"):
        surface_distances(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), (1.0, 1.0, 1.0))


def test_intraclass_correlation_is_the_published_one():
    assert intraclass_correlation(SHROUT_FLEISS) == pytest.approx(0.29, abs=0.005)


def test_mean_squares_are_those_of_an_analysis_of_variance():
    ratings = np.random.default_rng(3).normal(900, 80, (9, 1)) + np.random.default_rng(4).normal(20, 30, (9, 3))
    scan, rater = (index.ravel() for index in np.indices(ratings.shape))
    table = pd.DataFrame({"volume": ratings.ravel(), "scan": scan, "rater": rater})
    table = anova_lm(smf.ols("volume ~ C(scan) + C(rater)", table).fit())
    scans, raters, error = table["sum_sq"] / table["df"]
    expected = (scans - error) / (scans + 2 * error + 3 * (raters - error) / 9)
    assert intraclass_correlation(ratings) == pytest.approx(expected)


@given(st.floats(0.5, 2.0), st.floats(-500, 500))
def test_intraclass_correlation_does_not_know_the_unit(scale, shift):
    assert intraclass_correlation(scale * SHROUT_FLEISS + shift) == pytest.approx(intraclass_correlation(SHROUT_FLEISS))


def test_equal_volumes_agree_wholly():
    volumes = np.array([700.0, 850.0, 900.0, 1010.0])
    found = volume_agreement(volumes, volumes)
    assert (found.scans, found.icc, found.r) == (4, pytest.approx(1), pytest.approx(1))
    assert (found.bias_mm3, found.low_mm3, found.high_mm3, found.bias_percent) == (0, 0, 0, 0)


def test_a_bias_lowers_the_intraclass_correlation_and_not_pearsons():
    volumes = np.array([700.0, 850.0, 900.0, 1010.0])
    found = volume_agreement(volumes + 100, volumes)
    assert found.r == pytest.approx(1)
    assert found.icc < 0.9
    assert (found.bias_mm3, found.low_mm3, found.high_mm3) == (100, 100, 100)


def test_limits_hold_95_percent_of_normal_differences():
    random = np.random.default_rng(0)
    reference = random.normal(900, 80, 20_000)
    found = volume_agreement(reference + random.normal(15, 25, 20_000), reference)
    assert found.bias_mm3 == pytest.approx(15, abs=1)
    assert found.low_mm3 == pytest.approx(15 - 1.96 * 25, abs=2)
    assert found.high_mm3 == pytest.approx(15 + 1.96 * 25, abs=2)


def test_bias_in_percent_is_relative_to_each_scan():
    found = volume_agreement(np.array([110.0, 180.0, 330.0]), np.array([100.0, 200.0, 300.0]))
    assert found.bias_percent == pytest.approx(10 / 3)
    assert found.sd_percent == pytest.approx(np.std([10, -10, 10], ddof=1))


def test_volumes_that_do_not_vary_have_no_correlation():
    found = volume_agreement(np.full(3, 900.0), np.full(3, 900.0))
    assert np.isnan(found.icc)
    assert np.isnan(found.r)


@pytest.mark.parametrize(
    ("measured", "reference", "says"),
    [
        ([900.0, 910.0], [905.0, 900.0], "2 scans, needed at least 3"),
        ([900.0, 910.0, 920.0], [905.0, 900.0], "one of each kind for every scan"),
        ([900.0, np.nan, 920.0], [905.0, 900.0, 880.0], "measured volumes .* leave failed scans out"),
        ([900.0, 910.0, 920.0], [905.0, 0.0, 880.0], "reference volumes .* leave failed scans out"),
    ],
)
def test_volumes_that_cannot_be_compared_are_refused(measured, reference, says):
    with unchecked(), pytest.raises(ValueError, match=says):
        volume_agreement(np.array(measured), np.array(reference))


@pytest.mark.parametrize("shape", [(3,), (1, 4), (4, 1)])
def test_ratings_that_are_no_table_are_refused(shape):
    with unchecked(), pytest.raises(ValueError, match="two scans"):
        intraclass_correlation(np.ones(shape))
