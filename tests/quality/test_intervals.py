"""Intervals: what they cover, when they widen, and that they stay positive."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from hypodask.quality.intervals import Conditions, RelativeError, interval, relative_error
from hypodask.quality.reference import VolumeErrors

ERRORS = VolumeErrors(
    pose_per_mm=0.01, per_squared_noise=3.0, usual_noise=0.03, usual_uncertainty=0.4, usual_spread=0.02
)
USUAL = Conditions(uncertainty=0.4, spread=0.02, members=5, pose_mm=0.0, noise=0.03)


def sd(conditions: Conditions, known_sd: float = 0.05) -> float:
    return relative_error(known_sd, 11, conditions, ERRORS).sd


def test_the_error_of_a_good_quality_scan_is_that_of_the_held_out_heads():
    error = relative_error(0.05, 11, USUAL, ERRORS)
    assert (error.sd, error.freedom) == (pytest.approx(0.05), pytest.approx(10))
    assert relative_error(0.05, 11, Conditions(), ERRORS).sd == pytest.approx(0.05)


def test_a_few_heads_widen_the_interval_as_students_t_says():
    low, high = interval(1000.0, relative_error(0.05, 6, USUAL, ERRORS))
    assert np.log(high / 1000) == pytest.approx(0.05 * stats.t.ppf(0.975, 5))
    assert low * high == pytest.approx(1000.0**2)


def test_without_a_number_of_heads_the_interval_is_the_normal_one():
    _, high = interval(1000.0, relative_error(0.05, None, Conditions(), ERRORS))
    assert np.log(high / 1000) == pytest.approx(0.05 * 1.959964, rel=1e-5)


@pytest.mark.parametrize(
    "worse",
    [
        {"uncertainty": 0.6},
        {"spread": 0.06},
        {"pose_mm": 3.0},
        {"pose_mm": float("nan")},
        {"noise": 0.15},
        {"unseen": 0.1},
        {"boundary_sd_mm": 2.0},
    ],
    ids=str,
)
def test_whatever_is_worse_than_usual_widens_the_interval(worse):
    assert sd(replace(USUAL, **worse)) > sd(USUAL)


@pytest.mark.parametrize("better", [{"uncertainty": 0.3}, {"spread": 0.0}, {"noise": 0.01}], ids=str)
def test_whatever_is_better_than_usual_does_not_narrow_it(better):
    assert sd(replace(USUAL, **better)) == pytest.approx(sd(USUAL))


def test_the_error_is_in_proportion_to_the_uncertainty_of_a_boundary_that_a_network_tells():
    found = [sd(replace(USUAL, boundary_sd_mm=one)) for one in (1.0, 2.0, 0.01, 0.02)]
    assert found[1] == pytest.approx(2 * found[0])
    assert found[2] == found[3] > 0  # but never certain


def test_parts_of_the_error_add_up_in_quadrature():
    both = replace(USUAL, pose_mm=4.0, noise=0.13)
    assert sd(both) ** 2 == pytest.approx(0.05**2 + 0.04**2 + 0.03**2)


def test_degrees_of_freedom_are_those_of_satterthwaite():
    disagreeing = replace(USUAL, spread=np.hypot(0.02, 0.05))
    error = relative_error(0.05, 11, disagreeing, ERRORS)
    assert error.freedom == pytest.approx((2 * 0.05**2) ** 2 / (0.05**4 / 10 + 0.05**4 / 4))
    # What is known well makes the sum better known than the heads alone.
    assert relative_error(0.05, 11, replace(USUAL, noise=0.5), ERRORS).freedom > 10


def test_an_interval_stays_positive_and_finite_however_large_the_error():
    low, high = interval(800.0, RelativeError(30.0, 3.0))
    assert 0 < low < 800 < high < np.inf


def test_intervals_of_volumes_with_this_error_cover_as_often_as_they_say():
    random = np.random.default_rng(0)
    heads, true_sd, trials = 8, 0.06, 4000
    known = np.sqrt((random.normal(0, true_sd, (trials, heads - 1)) ** 2).mean(axis=1))
    found = 800 * np.exp(random.normal(0, true_sd, trials))
    ends = [interval(v, relative_error(k, heads, Conditions(), ERRORS)) for v, k in zip(found, known, strict=True)]
    assert np.mean([low < 800 < high for low, high in ends]) == pytest.approx(0.95, abs=0.012)
