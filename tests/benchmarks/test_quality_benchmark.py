"""The benchmarks of quality and intervals: planted failures do what they say, and the figures are right."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.validation.intervals import erring, heads_left_out
from benchmarks.validation.planting import FAILURES, HARMLESS, MISSING, UNDISTURBED, Subject, ends_early
from benchmarks.validation.quality import area_under_curve, beyond_quartiles, in_first_half, ranges_of, sound_runs
from hypodask.core.grid import box_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SIDES
from hypodask.scan import Scan
from hypodask.segmentation import Segmentation

GRID = box_grid((60, 70, 64), (3.0, 3.0, 3.0), (0.0, -16.0, 0.0)).moved(np.eye(4), "scanner")


@pytest.fixture(scope="module")
def subject():
    """A ball with fluid in it; the pose is that of the scanner."""
    points = transform_points(GRID.space_from_vox, np.moveaxis(np.indices(GRID.shape), 0, -1))
    radius = np.linalg.norm(points - (0, -16, 0), axis=-1)
    stored = np.select([radius < 15, radius < 70, radius < 80], [150, 1000, 600], 0) + np.random.default_rng(
        0
    ).integers(0, 30, GRID.shape)
    return Subject(Scan(np.asfortranarray(stored.astype(np.int16)), GRID), np.eye(4), radius < 70)


def planted(subject, name):
    return FAILURES[name](subject, np.random.default_rng(3))


@pytest.mark.parametrize("name", sorted(set(FAILURES) - {UNDISTURBED}))
def test_every_failure_changes_the_voxels_or_where_they_are(subject, name):
    scan = planted(subject, name)
    same_place = scan.grid.shape == GRID.shape and np.allclose(scan.grid.space_from_vox, GRID.space_from_vox)
    assert not (same_place and np.array_equal(scan.stored, subject.scan.stored))
    assert planted(subject, UNDISTURBED) is subject.scan


def test_a_flipped_header_mirrors_the_head_and_nothing_else(subject):
    flipped = planted(subject, "left-right flip")
    assert np.linalg.det(flipped.grid.space_from_vox[:3, :3]) == pytest.approx(
        -np.linalg.det(GRID.space_from_vox[:3, :3])
    )
    assert flipped.stored is subject.scan.stored


def test_a_crop_ends_in_the_hypothalamus_and_keeps_the_rest_in_place(subject):
    scan = planted(subject, "cropped")
    low = transform_points(scan.grid.space_from_vox, np.full(3, -0.5))
    assert -9 - 3 < low[2] < -3 or -8 - 3 < low[1] < 0
    at = transform_points(np.linalg.inv(scan.grid.space_from_vox), np.array((9.0, 12.0, 15.0)))
    there = transform_points(np.linalg.inv(GRID.space_from_vox), np.array((9.0, 12.0, 15.0)))
    assert scan.stored[tuple(np.rint(at).astype(int))] == subject.scan.stored[tuple(np.rint(there).astype(int))]


def test_motion_leaves_the_energy_of_the_image_and_puts_some_of_it_into_the_air(subject):
    moved = planted(subject, "motion")
    air = subject.scan.data < 100
    assert moved.data[air].mean() > 2 * subject.scan.data[air].mean()
    assert np.square(moved.data).sum() == pytest.approx(np.square(subject.scan.data).sum(), rel=0.1)


def test_half_of_the_head_loses_its_signal(subject):
    data = planted(subject, "half missing").data / np.maximum(subject.scan.data, 1)
    left, right = data[:25].mean(), data[-25:].mean()
    assert min(left, right) < 0.1
    assert max(left, right) > 0.9


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_shading_is_smooth(subject, name):
    ratio = HARMLESS[name](subject, np.random.default_rng(3)).data[subject.cavity] / subject.scan.data[subject.cavity]
    assert 1.3 < np.percentile(ratio, 99) / np.percentile(ratio, 1) < 2.2


@pytest.fixture(scope="module")
def segmentation():
    """Two balls, left and right."""
    grid = box_grid((40, 30, 30), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    points = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    balls = [np.linalg.norm(points - (x, 0, 0), axis=-1) < 8 for x in (-9, 9)]
    posteriors = np.stack([~np.any(balls, axis=0), *balls]).astype(np.float32)
    return Segmentation(
        posteriors, grid, HYPOTHALAMUS_SIDES, member_wholes=np.any(balls, axis=0)[None].astype(np.float16)
    )


@pytest.mark.parametrize("name", MISSING)
def test_what_lacks_a_part_is_smaller_in_all_members_and_still_sums_to_one(segmentation, name):
    lacking = MISSING[name](segmentation, np.random.default_rng(3))
    assert lacking.posteriors[1:].sum() < 0.9 * segmentation.posteriors[1:].sum()
    np.testing.assert_allclose(lacking.posteriors.sum(axis=0), 1)
    assert lacking.member_wholes.sum() < segmentation.member_wholes.sum()


def test_an_early_end_takes_the_share_that_lies_furthest_in_front(segmentation):
    lacking = ends_early(segmentation, 1, 1, 0.3)
    left = lacking.posteriors[1:].sum() / segmentation.posteriors[1:].sum()
    assert 0.6 < left < 0.8
    y = transform_points(segmentation.grid.space_from_vox, np.argwhere(lacking.posteriors[0] < 0.5))[:, 1]
    assert y.min() < -7
    assert y.max() < 4


def test_all_scans_of_a_person_are_in_one_half():
    halves = in_first_half(pd.DataFrame({"head": [f"patient{n:02}_study{m}_T1W" for n in range(20) for m in (1, 2)]}))
    assert (halves[::2].to_numpy() == halves[1::2].to_numpy()).all()
    assert 0 < halves.mean() < 1


def test_the_area_under_the_curve_is_that_of_mann_and_whitney():
    random = np.random.default_rng(0)
    sound, spoilt = random.normal(0, 1, 40).round(1), random.normal(1, 1, 30).round(1)
    u = stats.mannwhitneyu(spoilt, sound).statistic
    assert area_under_curve(sound, spoilt) == pytest.approx(u / (40 * 30))
    assert area_under_curve(sound, np.array([np.inf])) == 1.0


def test_ranges_leave_out_what_was_not_measured_and_reach_beyond_few_scans():
    ranges = ranges_of(pd.DataFrame({"unseen": [0.1, np.nan, 0.3], "member_spread": [np.nan] * 3}))
    assert list(ranges) == ["unseen"]
    assert (ranges["unseen"].low, ranges["unseen"].high, ranges["unseen"].scans) == (0.0, 0.2 + 2.5 * 0.1, 2)


def test_the_range_of_a_ratio_is_one_of_its_logarithm():
    ranges = ranges_of(pd.DataFrame({"noise": [0.01, 0.04]}))
    assert ranges["noise"].low * ranges["noise"].high == pytest.approx(0.01 * 0.04, rel=1e-3)


def test_ranges_hold_every_scan():
    values = np.random.default_rng(0).standard_cauchy(50)
    ranges = ranges_of(pd.DataFrame({"sides": values}))
    assert ranges["sides"].low <= values.min() + 0.01  # rounded
    assert ranges["sides"].high >= values.max() - 0.01


def test_how_sure_the_networks_are_of_heads_that_they_know_does_not_count():
    columns = {"failure": UNDISTURBED, "refused": "", "flagged": 0, "noise": 0.02}
    table = pd.DataFrame({"head": ["colin27_ch2", "phantom-1", "phantom-2"], "member_spread": [0.001, 0.02, 0.03]})
    sound = sound_runs(table.assign(**columns))
    assert sound["member_spread"].tolist() == pytest.approx([np.nan, 0.02, 0.03], nan_ok=True)
    assert sound["noise"].tolist() == [0.02] * 3
    assert table["member_spread"].notna().all()


def test_the_rule_on_volumes_counts_interquartile_ranges_beyond_the_quartiles():
    volumes = [100.0, 110.0, 120.0, 130.0, 140.0, 180.0]
    table = pd.DataFrame(
        {
            "head": [f"phantom-{n}" for n in range(6)],
            "failure": [UNDISTURBED] * 5 + ["blur"],
            "refused": "",
            "flagged": 0,
            "hypothalamus_mm3": volumes,
            "icv_mm3": 1.0 + np.arange(6) / 100,
        }
    )
    # Quartiles of the five sound ones are 110 and 130.
    assert beyond_quartiles(table).iloc[-1] == pytest.approx((180 - 130) / 20)


def test_a_pose_with_an_error_is_off_by_as_much_at_both_commissures_roughly():
    error = erring(np.eye(4), 2.0, np.random.default_rng(1))
    assert np.linalg.norm(error[:3, 3]) == pytest.approx(2.0)
    turned = np.degrees(np.arccos((np.trace(error[:3, :3]) - 1) / 2))
    assert turned == pytest.approx(np.degrees(2 / 26.5))


def test_heads_of_one_error_are_covered_by_the_others():
    ratios = np.exp(np.random.default_rng(0).normal(0, 0.05, 40))
    (line,) = heads_left_out(ratios).to_dict("records")
    covered, heads = map(int, line["covered"].split(" of "))
    assert heads == 40
    assert covered >= 36
