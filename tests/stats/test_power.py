import numpy as np
import pytest
import scipy.stats
from datasets import exact_sample, grouped_results
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import TTestIndPower

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.stats.power import detectable_effect, scans_per_group


def plan(groups, **options):
    return stats.plan_groups(grouped_results(groups), "volume_mm3", structure="hypothalamus", **options)


def two_groups(difference=-40.0, n=40, seed=0):
    rng = np.random.default_rng(seed)
    return {"PLS": exact_sample(rng, 850 + difference, 75, n), "control": exact_sample(rng, 850, 75, n)}


@pytest.mark.parametrize(("effect", "power", "n"), [(0.2, 0.8, 394), (0.5, 0.8, 64), (0.8, 0.8, 26), (0.5, 0.9, 86)])
def test_sizes_are_those_of_gpower_and_cohen(effect, power, n):
    """Two-sided t-test at 5 %: G*Power 3.1 gives 394, 64 and 26; Cohen's tables (1988) have 393, 64 and 26."""
    assert scans_per_group(effect, power) == n


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 3.0), st.floats(0.3, 0.99))
def test_the_size_is_the_first_that_has_the_power(effect, power):
    n = scans_per_group(effect, power)
    critical = scipy.stats.t.isf(0.025, 2 * n - 2)
    noncentral = scipy.stats.nct(2 * n - 2, effect * np.sqrt(n / 2))
    assert noncentral.sf(critical) + noncentral.cdf(-critical) >= power - 1e-9
    assert n == 3 or TTestIndPower().power(effect, n - 1, 0.05) < power


def test_the_detectable_effect_is_that_of_statsmodels():
    expected = TTestIndPower().solve_power(None, nobs1=45, alpha=0.05, power=0.9, ratio=102 / 45)
    assert detectable_effect(45, 102, 0.9) == pytest.approx(expected, rel=1e-6)


def test_a_size_and_what_it_detects_agree():
    row = plan(two_groups(), power=[0.8], reference="control").iloc[0]
    assert detectable_effect(int(row.n_per_group), int(row.n_per_group), 0.8) <= abs(row.hedges_g)
    assert row.n_per_group_low < row.n_per_group < row.n_per_group_high
    assert row.detectable_difference == pytest.approx(75 * detectable_effect(40, 40, 0.8), rel=1e-6)
    assert row.detectable_percent == pytest.approx(100 * row.detectable_difference / 850, rel=1e-6)


def test_an_interval_with_no_effect_in_it_needs_an_infinite_study_and_says_so():
    row = plan(two_groups(-10)).iloc[0]
    assert np.isinf(row.n_per_group_high)
    assert "no size is certain to be enough" in row.reason


def test_groups_without_a_comparison_keep_its_reason():
    row = plan({"a": np.array([800.0, 810.0]), "b": np.array([800.0, 820.0, 830.0])}).iloc[0]
    assert np.isnan(row.n_per_group)
    assert row.reason == "a has 2 usable scans, a test needs 3"


@pytest.mark.parametrize("options", [{"power": [0.8, 1.0]}, {"power": [0.05]}, {"n_per_group": 2}])
def test_impossible_studies_are_refused(options):
    with pytest.raises(ResultsError, match=r"needed|needs"):
        plan(two_groups(), **options)


@settings(max_examples=4, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1e-3, 1e3]))
def test_order_units_and_names_of_groups_do_not_change_the_plan(random, unit):
    groups = two_groups()
    order = random.sample(range(40), 40)
    changed = {"x": unit * groups["control"][order], "y": unit * groups["PLS"][order]}
    before, after = plan(groups, n_per_group=30), plan(changed, n_per_group=30)
    assert after["n_per_group"].tolist() == before["n_per_group"].tolist()
    assert after["detectable_difference"].tolist() == pytest.approx((unit * before["detectable_difference"]).tolist())


def test_a_study_of_the_planned_size_finds_the_effect_as_often_as_planned():
    """2000 studies: 80 % +- 3 Monte Carlo errors."""
    n = int(scans_per_group(0.6, 0.8))
    a, b = np.random.default_rng(1).normal(0, 1, (2, 2000, n))
    found = np.mean(scipy.stats.ttest_ind(a + 0.6, b, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 2000) + 0.01)
