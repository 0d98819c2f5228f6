"""Quality: measures on shapes and images with known answers, and a score that falls with what is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from segmentations import ellipsoid, labelled

from hypodask.alignment import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.grid import box_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS, HYPOTHALAMUS_SIDES, ICV
from hypodask.quality import MEASURES, examine, image, judge
from hypodask.quality import segmentation as shape
from hypodask.quality.reference import Range, Reference, VolumeErrors, load_reference
from hypodask.quality.score import Measure, steps_outside
from hypodask.scan import Scan
from hypodask.segmentation.volumes import measure

BOX = box_grid((48, 48, 40), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
HEAD_GRID = box_grid((44, 52, 44), (4.0, 4.0, 4.0), (0.0, -16.0, 8.0))
ICV_ELLIPSOID = ((0.0, -18.0, 12.0), (64.0, 78.0, 62.0))
SCAN_GRID = box_grid((84, 104, 84), (2.0, 2.0, 2.0), (0.0, -16.0, 8.0)).moved(np.eye(4), "scanner")
POSE = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.5, 0]), np.eye(4), score=0.7, flagged=False, error_mm=0.6)


def sides(shift_mm=0.0, radii_mm=(4.0, 6.0, 4.0)):
    return [ellipsoid(BOX, (x + shift_mm, -5.0, -6.0), radii_mm) for x in (-5.0, 5.0)]


def hypothalamus(posteriors):
    return measure(labelled(BOX, HYPOTHALAMUS_SIDES if len(posteriors) == 2 else HYPOTHALAMUS, posteriors))


def subunits():
    """Both sides cut into five coronal slices, one for each subunit."""
    y_mm = transform_points(BOX.space_from_vox, np.moveaxis(np.indices(BOX.shape), 0, -1))[..., 1]
    slices = [(y_mm > back) & (y_mm <= back + 2.5) for back in (-11.25, -8.75, -6.25, -3.75, -1.25)]
    return [np.where(part, side, 0) for side in sides() for part in slices]


ICV_FOUND = measure(labelled(HEAD_GRID, ICV, [ellipsoid(HEAD_GRID, *ICV_ELLIPSOID)]))


def head(seed=0):
    """White matter of 100 with grey matter and fluid in bands, in a skull, with some noise."""
    points = transform_points(SCAN_GRID.space_from_vox, np.moveaxis(np.indices(SCAN_GRID.shape), 0, -1))
    radius = np.linalg.norm((points - ICV_ELLIPSOID[0]) / ICV_ELLIPSOID[1], axis=-1)
    bands = np.sin(points[..., 1] / 6) + np.sin(points[..., 2] / 7)
    tissue = np.select([bands > 0.4, bands > -0.8], [100.0, 70.0], 25.0)
    noise = np.abs(np.random.default_rng(seed).normal(0, 2, SCAN_GRID.shape))
    return np.where(radius < 1, tissue, np.where(radius < 1.15, 60, 0)) + noise


def measured(data=None, *, posteriors=None, pose=POSE, grid=SCAN_GRID):
    data = head() if data is None else data
    scan = Scan(np.asfortranarray(data.astype(np.float32)), grid)
    icv_map = np.asarray(ellipsoid(grid, *ICV_ELLIPSOID) > 0.5, np.uint8)
    volumes = {"hypothalamus": hypothalamus(posteriors or sides()), "icv": ICV_FOUND}
    return examine(scan, pose, volumes, icv_map)


@pytest.fixture(scope="module")
def good():
    return measured()


@pytest.fixture(scope="module")
def reference(good):
    """Ranges of 5 % to both sides of this head."""
    ranges = {name: Range(v - 0.05 * abs(v), v + 0.05 * abs(v), 9) for name, v in good.items() if np.isfinite(v)}
    return Reference("this head", "", ranges, VolumeErrors(0.01, 0.1, 0.02, 0.4, 0.02))


def score(reference, **options):
    return judge(measured(**options), reference)


def test_every_measure_is_in_the_table_and_every_row_of_it_is_measured(good):
    assert set(good) == {one.name for one in MEASURES}


def test_a_good_quality_scan_has_full_quality_and_nothing_to_say(good, reference):
    assert judge(good, reference) == judge(good | {"noise": np.nan}, reference)
    assert judge(good, reference).score == 1.0
    assert judge(good, reference).reasons == ()


def test_one_step_outside_its_range_halves_the_score():
    limits = Reference("", "", {"voxel_mm": Range(1.0, 1.0, 9)}, VolumeErrors(0.0, 0.0, 0.0, 0.0, 0.0))
    step = next(one.step for one in MEASURES if one.name == "voxel_mm")
    assert judge({"voxel_mm": np.exp(step)}, limits).score == pytest.approx(0.5)
    assert judge({"voxel_mm": np.exp(2 * step)}, limits).score == pytest.approx(0.25)
    assert judge({"voxel_mm": 0.3}, limits).score == 1.0  # fine voxels are never suspicious


def test_what_larger_voxels_blur_is_no_fault_of_the_segmentation():
    limits = Reference(
        "",
        "",
        {"border_entropy": Range(0.4, 0.5, 9), "voxel_mm": Range(1.0, 2.0, 9)},
        VolumeErrors(0.0, 0.0, 0.0, 0.0, 0.0),
    )
    assert judge({"border_entropy": 0.56, "voxel_mm": 2.0}, limits).score == 1.0
    assert judge({"border_entropy": 0.56, "voxel_mm": 1.0}, limits).score < 0.5


def test_a_value_without_a_range_to_compare_it_with_is_an_error():
    limits = Reference("", "", {"voxel_mm": Range(1.0, 1.0, 9)}, VolumeErrors(0.0, 0.0, 0.0, 0.0, 0.0))
    assert judge({"voxel_mm": 1.0, "noise": np.nan}, limits).score == 1.0
    with pytest.raises(ModelError, match="have none for 'noise'; they have voxel_mm: measure them anew"):
        judge({"voxel_mm": 1.0, "noise": 0.1}, limits)


USUAL = {name: (limits.low + limits.high) / 2 for name, limits in load_reference().ranges.items()} | {"voxel_mm": 1.0}
"""A scan of which every measure is usual."""


def beyond(measure: Measure, steps: float) -> list[float]:
    """Values so many steps outside of the shipped range, on each side that is suspicious."""
    limits, (up, down) = (
        load_reference().ranges[measure.name],
        (measure.suspicious != "low", measure.suspicious != "high"),
    )
    low, high = (np.log(max(v, 1e-6)) if measure.logarithmic else v for v in (limits.low, limits.high))
    step = max(measure.step, (high - low) / 2 if up and down else 0)
    values = [high + steps * step] * up + [low - steps * step] * down
    return [float(np.exp(v)) if measure.logarithmic else float(v) for v in values]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda one: one.name)
@pytest.mark.parametrize("steps", [0.4, 1.5])
def test_each_measure_that_lowers_the_quality_is_told_with_its_value_and_the_usual_range(measure, steps):
    for value in beyond(measure, steps):
        quality = judge(USUAL | {measure.name: value})
        assert quality.score == pytest.approx(2.0**-steps)
        (reason,) = quality.reasons
        if measure.name != "flagged":  # which is a yes or a no
            shown = measure.shown.format(np.exp(value) if measure.of_ratio else value)
            assert shown in reason.partition(" (usual: ")[0]
            assert reason.endswith(").")


@pytest.mark.parametrize("seed", range(20))
def test_a_low_quality_has_its_reasons_also_where_only_several_measures_together_lower_it(seed):
    random = np.random.default_rng(seed)
    chosen = random.choice(np.array(MEASURES, dtype=object), size=int(random.integers(2, 12)), replace=False)
    values = {one.name: float(random.choice(beyond(one, random.uniform(0.05, 0.5)))) for one in chosen}
    values.pop("voxel_mm", None)  # which moves the ranges of others
    quality = judge(USUAL | values)
    assert bool(quality.reasons) == (quality.score < 0.8)
    told = [one.name for one in chosen if any(_start(one) in reason for reason in quality.reasons)]
    assert judge(USUAL | {name: value for name, value in values.items() if name not in told}).score >= 0.8


def _start(measure: Measure) -> str:
    """What every sentence of a measure has, and none of another."""
    return max(measure.sentence.format(structure="hypothalamus", value="|").split("|"), key=len)


def test_a_wide_range_makes_its_half_width_the_step():
    spread = next(one for one in MEASURES if one.name == "centroid_y_mm")
    limits = Reference("", "", {"centroid_y_mm": Range(-10.0, 0.0, 9)}, VolumeErrors(0.0, 0.0, 0.0, 0.0, 0.0))
    assert steps_outside(spread, 5.0, limits) == pytest.approx(1.0)
    assert steps_outside(spread, -15.0, limits) == pytest.approx(1.0)
    assert steps_outside(spread, -4.0, limits) == 0.0


def test_a_smaller_hypothalamus_of_the_same_shape_costs_next_to_nothing(reference):
    shrunk = np.array((4.0, 6.0, 4.0)) * 0.9 ** (1 / 3)
    assert score(reference, posteriors=sides(radii_mm=tuple(shrunk))).score > 0.8


def test_an_uncertain_boundary_lowers_the_score(reference):
    blurred = [ndimage.gaussian_filter(side, 2.5) for side in sides()]
    quality = score(reference, posteriors=blurred)
    assert quality.score < 0.5
    assert any(reason.startswith("The boundary of the hypothalamus is uncertain: ") for reason in quality.reasons)


def test_one_side_missing_is_seen_as_asymmetry(reference):
    left, right = sides()
    quality = score(reference, posteriors=[left, np.where(np.indices(BOX.shape)[1] < 20, right, 0)])
    assert quality.score < 0.3
    assert any(reason.startswith("The left hypothalamus is ") for reason in quality.reasons)


def test_a_side_that_is_missing_altogether_flags_the_row(reference):
    left, right = sides()
    quality = score(reference, posteriors=[left, 0 * right])
    assert any(reason.startswith("The left hypothalamus is 148.41 times as large") for reason in quality.missing)
    assert quality.score < 0.01


@pytest.mark.parametrize(
    ("axis", "keep", "sentence"),
    [
        (1, slice(26, None), "begins too far in front"),
        (1, slice(None, 22), "ends too far behind"),
        (2, slice(22, None), "begins too high"),
        (2, slice(None, 18), "ends too low"),
    ],
)
def test_a_segmentation_that_ends_early_flags_the_row_and_says_where(reference, axis, keep, sentence):
    kept = np.zeros(BOX.shape, bool)
    kept[(slice(None),) * axis + (keep,)] = True
    quality = score(reference, posteriors=[np.where(kept, side, 0) for side in sides()])
    assert any(sentence in reason for reason in quality.missing)
    assert quality.score < 0.5


def test_a_subunit_that_is_missing_flags_the_row_and_is_named():
    whole = measured(posteriors=subunits())
    ranges = {name: Range(v - 0.1 * abs(v), v + 0.1 * abs(v), 9) for name, v in whole.items() if np.isfinite(v)}
    limits = Reference("this head", "", ranges, VolumeErrors(0.01, 0.1, 0.02, 0.4, 0.02))
    assert judge(whole, limits).missing == ()
    lacking = subunits()
    lacking[HYPOTHALAMUS.structures.index("anterior_inferior_right")] *= 0
    (missing,) = (one for one in score(limits, posteriors=lacking).missing if "part" in one)
    assert missing.startswith(
        "Hardly anything of the anterior inferior right part of the hypothalamus was found: 0.0% of its side"
    )


def test_atrophy_is_no_missing_part(reference):
    shrunk = np.array((4.0, 6.0, 4.0)) * 0.75 ** (1 / 3)
    assert score(reference, posteriors=sides(radii_mm=tuple(shrunk))).missing == ()


SHADINGS = {"left to right": (0, 1.5), "front to back": (1, 1.5), "bottom to top": (2, 2.0)}


@pytest.mark.parametrize(("axis", "factor"), SHADINGS.values(), ids=SHADINGS)
def test_a_smooth_shading_hardly_lowers_the_quality(reference, axis, factor):
    shape_ = [1, 1, 1]
    shape_[axis] = -1
    slope = np.log(factor) / 150  # over the width of a head
    field = np.exp(slope * 2 * (np.arange(SCAN_GRID.shape[axis]) - SCAN_GRID.shape[axis] / 2)).reshape(shape_)
    assert score(reference, data=head() * field).score > 0.7


def test_a_constant_added_to_all_intensities_changes_no_measure_of_contrast(good):
    raised = measured(head() + 30)
    for name in ("noise", "edge_mm", "separability", "sides"):
        assert raised[name] == pytest.approx(good[name], rel=0.05, abs=0.01)


def test_an_image_whose_fluid_is_cut_off_at_zero_is_not_better(reference):
    cut = score(reference, data=np.maximum(head() - 30, 0))
    assert cut.score < 0.5
    assert any("Fluid has an unusual brightness: 0.0" in reason for reason in cut.reasons)


def test_a_segmentation_in_the_wrong_place_is_seen(reference):
    assert any("beside the midsagittal plane" in reason for reason in score(reference, posteriors=sides(3.0)).reasons)


def test_networks_that_disagree_are_seen(reference):
    whole = np.sum(sides(), axis=0)
    grown = ndimage.grey_dilation(whole, size=5)
    agreeing, split = (np.stack([whole, whole, other]).astype(np.float16) for other in (whole, grown))
    assert shape.member_spread(agreeing) == 0
    assert shape.member_overlap(agreeing, whole) == 1
    assert shape.member_spread(split) > 0.3
    assert shape.member_overlap(split, whole) < 0.8
    assert np.isnan(shape.member_spread(None))


def test_noise_is_measured_and_lowers_the_score(reference):
    data = np.abs(head() + np.random.default_rng(1).normal(0, 15, SCAN_GRID.shape))
    quality = score(reference, data=data)
    assert quality.score < 0.3
    assert any("noisy" in reason for reason in quality.reasons)


@pytest.mark.parametrize("sigma", [1.0, 6.0])
def test_noise_of_a_structured_image_is_that_which_was_added(sigma):
    box = head()[30:54, 40:64, 30:54].round()
    smooth = ndimage.gaussian_filter(box, 1.0)
    noisy = smooth + np.random.default_rng(2).normal(0, sigma, box.shape)
    assert image.noise_sd(noisy) == pytest.approx(sigma, rel=0.1)


def test_masked_background_is_no_noise_free_tissue():
    noisy = np.random.default_rng(3).normal(100, 5, (30, 30, 30))
    noisy[:20] = 0
    assert image.noise_sd(noisy) == pytest.approx(5, rel=0.1)
    assert np.isnan(image.noise_sd(np.zeros((9, 9, 9))))


def test_half_a_head_without_signal_is_seen(reference):
    fade = np.where(np.arange(SCAN_GRID.shape[0]) < SCAN_GRID.shape[0] // 2, 0.05, 1.0)
    quality = score(reference, data=head() * fade[:, None, None])
    assert quality.score < 0.05
    assert any("times that right of it" in reason for reason in quality.reasons)


def test_a_blurred_image_has_wider_edges(good):
    blurred = measured(ndimage.gaussian_filter(head(), 1.5))
    assert blurred["edge_mm"] > 1.3 * good["edge_mm"]


def test_a_repeated_ghost_brightens_the_air(good):
    ghost = head() + 0.15 * np.roll(head(), 40, axis=1)
    assert measured(ghost)["air"] > 1.5 * good["air"]


def test_separability_of_three_classes_falls_with_noise():
    random = np.random.default_rng(0)
    classes = np.repeat([20.0, 60.0, 100.0], 2000)
    values = [image.separability(classes + random.normal(0, sd, classes.size)) for sd in (1.0, 8.0, 25.0)]
    assert values[0] > 0.99
    assert values[0] > values[1] > values[2]


def test_a_scan_that_ends_in_the_structure_is_seen(reference):
    cut = head()[:, :, 35:]
    matrix = np.array(SCAN_GRID.space_from_vox)
    matrix[2, 3] += 35 * matrix[2, 2]
    grid = replace(SCAN_GRID, shape=cut.shape, space_from_vox=matrix)
    found = measured(cut, grid=grid)
    assert found["margin_mm"] == 0
    assert measured()["margin_mm"] == shape._ROOM_MM
    assert 0.2 < found["unseen"] < 0.9
    assert judge(found, reference).score < 0.1


def test_a_structure_where_the_image_is_black_was_not_seen():
    data = head()
    data[:, :, :38] = 0
    assert measured(data)["unseen"] > 0.3
    assert measured()["unseen"] == 0


@pytest.mark.parametrize("image_of", [np.zeros_like, np.ones_like, np.negative, lambda data: data < 50])
def test_an_image_without_contrast_has_measures_too(image_of, reference):
    quality = judge(measured(image_of(head())), reference)
    assert 0 <= quality.score < 0.5


def test_place_does_not_depend_on_the_order_of_the_axes():
    posterior = sides()[0]
    as_is = shape.place_of(posterior, BOX.space_from_vox)
    swapped = shape.place_of(posterior.transpose(2, 0, 1), BOX.space_from_vox[:, [2, 0, 1, 3]])
    np.testing.assert_allclose(swapped.centroid_mm, as_is.centroid_mm)
    np.testing.assert_allclose(as_is.centroid_mm, (-5, -5, -6), atol=0.05)
    # The standard deviation along an axis of a ball of radius r is r / sqrt(5).
    np.testing.assert_allclose(as_is.sd_mm, np.array((4, 6, 4)) / np.sqrt(5), rtol=0.02)
    np.testing.assert_allclose(swapped.sd_mm, as_is.sd_mm)


def test_a_mirror_image_cannot_be_told_from_one_image(good, reference):
    """What no score can do is said: left and right exchanged in the header is a possible head."""
    left, right = sides()
    mirrored = measured(head()[::-1], posteriors=[right[::-1], left[::-1]])
    assert judge(mirrored, reference).score > 0.9
