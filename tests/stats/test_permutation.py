from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from datasets import grouped_results, make_results
from hypothesis import given, settings
from hypothesis import strategies as st

from hypodask import stats
from hypodask.core.errors import ResultsError

FEW = np.array([0.0, 1, 2, 3])


def permute(ds, **options):
    return stats.permute_groups(ds, "volume_mm3", structure="hypothalamus", **options)


def test_few_scans_are_permuted_in_every_way():
    rng = np.random.default_rng(0)
    a, b = rng.normal(800, 50, 5), rng.normal(870, 50, 4)
    row = permute(grouped_results({"a": a, "b": b})).iloc[0]
    both, found = np.concatenate([a, b]), []
    for chosen in combinations(range(9), 5):
        members = np.isin(np.arange(9), chosen)
        found.append(scipy.stats.ttest_ind(both[members], both[~members], equal_var=False).statistic)
    observed = scipy.stats.ttest_ind(a, b, equal_var=False).statistic
    tails = np.mean(np.array(found) <= observed + 1e-12), np.mean(np.array(found) >= observed - 1e-12)
    assert row.p_permutation == pytest.approx(2 * min(tails))
    assert (row.permutations, row.exact, row.p_error) == (126, True, 0)


def test_many_scans_agree_with_the_t_test_within_the_error_of_the_draws():
    rng = np.random.default_rng(1)
    a, b = rng.normal(830, 80, 60), rng.normal(855, 80, 50)
    row = permute(grouped_results({"a": a, "b": b})).iloc[0]
    expected = scipy.stats.ttest_ind(a, b, equal_var=False).pvalue
    assert (row.exact, row.permutations) == (False, 9999)
    assert row.p_permutation == pytest.approx(expected, abs=4 * row.p_error + 0.003)
    assert row.t_welch == pytest.approx(scipy.stats.ttest_ind(a, b, equal_var=False).statistic)


def test_a_seed_gives_the_same_p_again_and_another_seed_another():
    rng = np.random.default_rng(2)
    ds = grouped_results({"a": rng.normal(830, 80, 30), "b": rng.normal(855, 80, 30)})
    first, again, other = (permute(ds, seed=seed)["p_permutation"].item() for seed in (3, 3, 4))
    assert first == again != other


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.sampled_from([0.5, 1024]), st.integers(-512, 512))
def test_order_units_names_and_a_shift_do_not_change_p(seed, random, unit, shift):
    rng = np.random.default_rng(seed)
    ds = grouped_results({"a": rng.integers(700, 900, 10) + 0.0, "b": rng.integers(700, 900, 10) + 0.0})
    order = random.sample(range(20), 20)
    changed = ds.assign(volume_mm3=(ds.volume_mm3 + shift) * unit).isel(scan=order)
    changed = changed.assign_coords(group=("scan", np.where(changed.group == "a", "z", "y")))
    before, after = permute(ds, resamples=499), permute(changed, resamples=499)
    assert after["p_permutation"].item() == pytest.approx(before["p_permutation"].item(), abs=1e-12)
    assert after["difference"].item() == pytest.approx(-unit * before["difference"].item(), abs=1e-9)


def test_groups_that_cannot_be_tested_have_a_reason_and_no_p():
    ds = make_results([800, 810, 820, 830, 840], covariates={"group": list("aabbb")})
    row = permute(ds).iloc[0]
    assert np.isnan(row.p_permutation)
    assert "2 usable scans" in row.reason
    constant = permute(grouped_results({"a": np.full(4, 800.0), "b": np.full(4, 801.0)})).iloc[0]
    assert np.isnan(constant.p_permutation)
    assert "do not vary" in constant.reason


def test_failed_scans_do_not_enter_the_permutations():
    rng = np.random.default_rng(5)
    volumes = rng.normal(800, 50, 12)
    ds = make_results([*volumes, 9000.0], covariates={"group": [*("ab" * 6), "a"]}, failed=[12])
    ds["volume_mm3"][12] = 9000.0
    alone = make_results(volumes, covariates={"group": list("ab" * 6)})
    assert permute(ds)["p_permutation"].item() == permute(alone)["p_permutation"].item()


def test_too_few_permutations_are_refused():
    with pytest.raises(ResultsError, match="99 or more"):
        permute(grouped_results({"a": FEW, "b": FEW}), resamples=10)
