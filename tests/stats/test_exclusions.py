from functools import partial

import numpy as np
import pytest
import scipy.stats
from datasets import grouped_results, make_results
from hypothesis import given, settings
from hypothesis import strategies as st

from hypodask import stats
from hypodask.core.errors import ResultsError


def excluded_results(excluded, kept):
    """Groups a, b, ... with so many scans excluded and kept."""
    pairs = list(zip("abcd", zip(excluded, kept, strict=True), strict=False))
    groups = [name for name, (out, left) in pairs for _ in range(out + left)]
    marks = [number < out for _, (out, left) in pairs for number in range(out + left)]
    return make_results(np.full(len(groups), 800.0), covariates={"group": groups}).assign(excluded=("scan", marks))


def test_the_lady_tasting_tea():
    """3 of 4 against 1 of 4: p = 0.4857, odds ratio 6.408, as R's fisher.test prints it."""
    row = stats.check_exclusions(excluded_results([3, 1], [1, 3])).iloc[0]
    assert (row.groups, row.excluded, row.scans, row.percent) == ("a, b", "3, 1", "4, 4", "75.0, 25.0")
    assert row.p == pytest.approx(0.4857, abs=5e-5)
    assert row.effect == pytest.approx(6.408, abs=5e-4)
    # At the ends of the exact interval the observed count is in a 2.5 % tail.
    assert scipy.stats.nchypergeom_fisher.sf(2, 8, 4, 4, row.effect_low) == pytest.approx(0.025, rel=1e-4)
    assert scipy.stats.nchypergeom_fisher.cdf(3, 8, 4, 4, row.effect_high) == pytest.approx(0.025, rel=1e-4)


def test_the_exclusions_of_the_paper_do_not_depend_on_the_group():
    """5 of 107, 21 of 411, 1 of 46: the 5.1 % of ALS is more than the 5 % that the paper states."""
    table = stats.check_exclusions(excluded_results([5, 21, 1], [102, 390, 45]))
    assert table["test"].tolist() == ["chi-square", "fisher", "fisher", "fisher"]
    assert table["percent"].iloc[0] == "4.7, 5.1, 2.2"
    assert "expected count is 2.2" in table["reason"].iloc[0]
    expected = scipy.stats.chi2_contingency([[5, 102], [21, 390], [1, 45]], correction=False)
    assert table["statistic"].iloc[0] == pytest.approx(expected.statistic)
    assert (table["p"] > 0.3).all()


def test_many_scans_are_tested_by_chi_square_and_its_effect():
    counts = [[50, 450], [80, 420], [60, 440]]
    row = stats.check_exclusions(excluded_results([50, 80, 60], [450, 420, 440])).iloc[0]
    expected = scipy.stats.chi2_contingency(counts, correction=False)
    assert (row.p, row.df, row.reason) == (pytest.approx(expected.pvalue), 2, "")
    assert row.effect == pytest.approx(scipy.stats.contingency.association(np.array(counts), method="cramer"))


def test_drawn_tables_agree_with_all_tables():
    """For three groups of few scans all tables with the same margins can be listed by hand."""
    row = stats.check_exclusions(excluded_results([3, 0, 0], [0, 3, 3])).iloc[0]
    # Of the C(9, 3) = 84 ways to exclude three scans, three put them all in one group.
    assert row.p == pytest.approx(3 / 84, abs=4 * np.sqrt(3 / 84 / 9999))


@pytest.mark.parametrize(
    ("excluded", "kept", "reason"),
    [
        ([0, 0], [5, 5], "no scan"),
        ([5, 5], [0, 0], "every scan"),
        ([1], [5], "1 groups"),
        ([0, 0, 0], [5] * 3, "no scan"),
    ],
)
def test_what_cannot_be_tested_has_a_reason(excluded, kept, reason):
    table = stats.check_exclusions(excluded_results(excluded, kept))
    assert table["p"].isna().all()
    assert table["reason"].str.contains(reason).all()


def test_failed_scans_are_not_exclusions():
    ds = excluded_results([3, 1], [1, 3])
    ds["status"][0] = "failed"
    assert stats.check_exclusions(ds)["scans"].iloc[0] == "3, 4"
    with pytest.raises(ResultsError, match="find_outliers"):
        stats.check_exclusions(ds.drop_vars("excluded"))


def test_robust_z_is_that_of_scipys_mad():
    values = np.random.default_rng(0).standard_t(2, 200) * 50 + 800
    ds = make_results(values, np.linspace(1.4e6, 1.6e6, 200), covariates={"group": ["a", "b"] * 100})
    mad = scipy.stats.median_abs_deviation(values, scale="normal")
    expected = np.abs(values - np.median(values)) / mad > 3.5
    assert 0 < expected.sum() < 50
    np.testing.assert_array_equal(stats.find_far_outliers(ds).excluded, expected)
    with pytest.raises(ResultsError, match="above zero"):
        stats.find_far_outliers(ds, farthest=0)


def test_far_outliers_are_listed_with_the_limits_they_crossed():
    ds = grouped_results({"a": np.array([800.0, 810, 820, 830, 5000]), "b": np.array([805.0, 815, 825])})
    listed = stats.list_exclusions(stats.find_far_outliers(ds), by=None)
    assert listed[["scan", "side"]].to_numpy().tolist() == [["sub-004", "above"]]
    assert 830 < listed["high"].item() < 5000


def test_low_quality_excludes_whoever_it_is():
    ds = grouped_results({"a": np.array([800.0, 810, 820]), "b": np.array([805.0, 815])})
    ds = ds.assign(quality=("scan", [0.9, 0.4, np.nan, 0.5, 0.8]))
    assert stats.find_low_quality(ds).excluded.to_numpy().tolist() == [False, True, True, False, False]
    with pytest.raises(ResultsError, match="no done scan has a quality"):
        stats.find_low_quality(ds.assign(quality=("scan", np.full(5, np.nan))))


def test_comparisons_stand_side_by_side_with_and_without_exclusions():
    rng = np.random.default_rng(2)
    ds = grouped_results({"PLS": np.append(rng.normal(780, 30, 30), 2500), "control": rng.normal(800, 30, 30)})
    ds = ds.assign(quality=("scan", np.append(np.full(30, 0.9), np.append(0.1, np.full(30, 0.9)))))
    table = stats.compare_exclusions(ds, "volume_mm3", structure="hypothalamus", reference="control")
    rules = ["nobody", "iqr by group", "iqr over all", "robust z by group", "robust z over all", "quality"]
    assert table["rule"].tolist() == rules
    marked = stats.find_outliers(ds)
    alone = stats.compare_groups(marked, "volume_mm3", structure="hypothalamus", reference="control")
    assert table.set_index("rule").loc["iqr by group", "p"] == alone["p"].item()
    assert table.set_index("rule").loc["quality", ["n_a", "excluded_a"]].tolist() == [30, 1]
    assert table["excluded_a"].tolist()[0] == 0


def test_a_rule_that_changes_the_conclusion_says_so():
    spread = np.linspace(-30, 30, 15)
    ds = grouped_results({"a": np.append(760 + spread, [3000, 3100]), "b": 800 + spread})
    rules = {"nobody": lambda ds: ds.assign(excluded=("scan", np.zeros(32, bool))), "iqr": partial(stats.find_outliers)}
    table = stats.compare_exclusions(ds, "volume_mm3", structure="hypothalamus", rules=rules)
    # The two extreme values reverse the means but hardly change the ranks, by which a group that is not normal is
    # compared.
    assert np.sign(table["difference"]).tolist() == [1, -1]
    assert "another conclusion than with 'nobody'" in table["reason"].iloc[1]
    assert table["reason"].iloc[0] == ""
    with pytest.raises(ResultsError, match="no rules"):
        stats.compare_exclusions(ds, "volume_mm3", structure="hypothalamus", rules={})


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.sampled_from([1e-3, 1, 1e3]), st.integers(0, 999))
def test_order_units_names_and_a_shift_do_not_change_who_is_excluded(seed, random, unit, shift):
    rng = np.random.default_rng(seed)
    ds = grouped_results({"a": rng.standard_t(2, 15) * 50 + 800, "b": rng.standard_t(2, 20) * 50 + 800})
    order = random.sample(range(35), 35)
    changed = ds.assign(volume_mm3=(ds.volume_mm3 + shift) * unit).isel(scan=order)
    changed = changed.assign_coords(group=("scan", np.where(changed.group == "a", "z", "y")))
    for mark in (stats.find_outliers, stats.find_far_outliers):
        before, after = mark(ds), mark(changed)
        assert set(stats.exclude(after).scan.to_numpy()) == set(stats.exclude(before).scan.to_numpy())
        assert stats.check_exclusions(after)["p"].tolist() == pytest.approx(
            stats.check_exclusions(before)["p"].tolist(), nan_ok=True
        )
