import numpy as np
import pytest
import scipy.stats
from datasets import PAPER_GROUPS, exact_sample, grouped_results, make_results, paper_results
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.stats.multiplicity import holm

HYPOTHALAMUS = {"structure": "hypothalamus"}


def compare(ds, **options):
    table = stats.compare_groups(ds, "volume_mm3", structure="hypothalamus", **options)
    return table.set_index(["group_a", "group_b"])


@pytest.fixture(scope="module")
def two_samples():
    rng = np.random.default_rng(3)
    return rng.normal(820, 80, 17), rng.normal(850, 60, 29)


@pytest.fixture(scope="module")
def row(two_samples):
    a, b = two_samples
    return compare(grouped_results({"a": a, "b": b})).loc[("a", "b")]


def test_the_published_means_give_the_published_p_values():
    ds = paper_results().pipe(stats.normalize_icv, reference="control")
    table = stats.compare_groups(ds, "normalized_volume_mm3", **HYPOTHALAMUS, reference="control")
    assert table[["group_a", "group_b"]].to_numpy().tolist() == [["ALS", "control"], ["PLS", "control"], ["ALS", "PLS"]]
    als, pls, between = (table.iloc[i] for i in range(3))
    assert pls[["mean_a", "sd_a", "n_a", "mean_b", "sd_b", "n_b"]].tolist() == pytest.approx(
        [818, 73, 45, 852, 77, 102]
    )
    assert (pls.t, pls.p) == (pytest.approx(-2.506, abs=5e-4), pytest.approx(0.0133, abs=5e-5))
    assert (als.t, als.p) == (pytest.approx(-3.157, abs=5e-4), pytest.approx(0.0017, abs=5e-5))
    assert between.p == pytest.approx(0.70, abs=5e-3)
    assert pls.percent == pytest.approx(-3.99, abs=5e-3)
    assert table["test"].tolist() == ["student"] * 3


def test_summaries_alone_give_the_same_as_scipy():
    pls, control = PAPER_GROUPS["PLS"], PAPER_GROUPS["control"]
    found = stats.compare_summaries(*pls, *control)
    for prefix, equal in (("", True), ("_welch", False)):
        expected = scipy.stats.ttest_ind_from_stats(*pls, *control, equal_var=equal)
        assert found["t" + prefix] == pytest.approx(expected.statistic, rel=1e-12)
        assert found["p" + prefix] == pytest.approx(expected.pvalue, rel=1e-10)


def test_t_tests_and_interval_are_those_of_scipy_and_statsmodels(row, two_samples):
    a, b = two_samples
    student, welch = scipy.stats.ttest_ind(a, b), scipy.stats.ttest_ind(a, b, equal_var=False)
    assert (row.t, row.df, row.p) == pytest.approx((student.statistic, student.df, student.pvalue), rel=1e-10)
    assert (row.t_welch, row.df_welch, row.p_welch) == pytest.approx(
        (welch.statistic, welch.df, welch.pvalue), rel=1e-10
    )
    low, high = CompareMeans(DescrStatsW(a), DescrStatsW(b)).tconfint_diff(usevar="pooled")
    assert (row.difference_low, row.difference_high) == pytest.approx((low, high), rel=1e-10)


def test_ranks_and_normality_are_those_of_scipy(row, two_samples):
    a, b = two_samples
    assert (row.u, row.p_mannwhitney) == pytest.approx(tuple(scipy.stats.mannwhitneyu(a, b)), rel=1e-10)
    assert row.p_shapiro_a == pytest.approx(scipy.stats.shapiro(a).pvalue, rel=1e-10)
    assert row.p_shapiro_b == pytest.approx(scipy.stats.shapiro(b).pvalue, rel=1e-10)


def test_hedges_g_of_a_worked_example():
    """Means 103 and 100, SDs 5.5 and 4.5, 50 each: g = 0.5924 (Borenstein et al. 2009, tables 4.1 and 4.2)."""
    found = stats.compare_summaries(103, 5.5, 50, 100, 4.5, 50)
    assert found["hedges_g"] == pytest.approx(0.5924, abs=5e-5)
    assert found["hedges_g_low"] == pytest.approx(0.5924 - 1.96 * np.sqrt(0.0411), abs=0.01)
    assert found["hedges_g_high"] == pytest.approx(0.5924 + 1.96 * np.sqrt(0.0411), abs=0.01)


def test_the_interval_of_g_has_t_in_the_tails_of_its_ends():
    found = stats.compare_summaries(10, 2, 6, 7, 3, 9)
    per_g = found["t"] / found["hedges_g"]
    assert scipy.stats.nct.sf(found["t"], 13, found["hedges_g_low"] * per_g) == pytest.approx(0.025, abs=1e-6)
    assert scipy.stats.nct.cdf(found["t"], 13, found["hedges_g_high"] * per_g) == pytest.approx(0.025, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_holm_is_that_of_statsmodels_and_ignores_nan(n):
    p = np.random.default_rng(n).uniform(0, 0.2, n)
    for tested in (p, p.round(1), 5 * p):
        np.testing.assert_allclose(holm(tested), multipletests(tested, method="holm")[1], rtol=1e-12)
    with_gap = holm(np.append(p, np.nan))
    np.testing.assert_array_equal(with_gap[:-1], holm(p))
    assert np.isnan(with_gap[-1])
    assert len(holm(p[:0])) == 0


def test_a_skewed_group_is_compared_by_ranks():
    rng = np.random.default_rng(0)
    ds = grouped_results({"a": rng.exponential(100, 60), "b": rng.normal(800, 70, 60)})
    row = compare(ds).loc[("a", "b")]
    assert (row.normal, row.test, row.p_recommended) == (False, "mann-whitney", row.p_mannwhitney)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_group_too_small_to_test_has_nan_and_a_reason(n):
    ds = make_results(np.linspace(700, 900, 10), covariates={"group": ["a"] * 4 + ["b"] * 6}, failed=range(n, 4))
    row = compare(ds).loc[("a", "b")]
    assert row[["t", "p", "p_welch", "p_mannwhitney", "p_holm", "hedges_g", "difference_low"]].isna().all()
    assert row.reason == f"a has {n} usable scans, a test needs 3"
    assert (row.n_a, row.missing_a) == (n, 4 - n)


def test_constant_groups_have_nan_and_a_reason_and_one_of_them_still_a_test():
    constant, spread = np.full(5, 800.1), np.array([700.0, 710, 725, 730, 760])
    table = compare(grouped_results({"a": constant, "b": constant + 1, "c": spread}))
    assert np.isnan(table.loc[("a", "b"), "p"])
    assert "do not vary" in table.loc[("a", "b"), "reason"]
    assert table.loc[("a", "c"), "p"] < 0.01


def test_excluded_scans_do_not_count_but_are_counted():
    ds = grouped_results({"a": np.array([800.0, 810, 820, 5000]), "b": np.array([900.0, 910, 920])})
    ds = ds.assign(excluded=("scan", [False, False, False, True, False, False, False]))
    row = compare(ds).loc[("a", "b")]
    assert (row.mean_a, row.n_a, row.excluded_a, row.missing_a) == (810, 3, 1, 0)


def test_a_participant_scanned_twice_is_mentioned():
    ds = make_results(
        [800, 810, 820, 900, 910, 920], covariates={"group": list("aaabbb"), "participant_id": list("xxyzuv")}
    )
    assert "1 participants of a have more than one scan" in compare(ds).loc[("a", "b"), "reason"]


def test_thousands_of_scans_are_compared_by_their_means():
    rng = np.random.default_rng(0)
    ds = grouped_results({"a": rng.exponential(800, 5001), "b": rng.exponential(820, 5001)})
    row = compare(ds).loc[("a", "b")]
    assert (row.test, row.reason) == ("student", "a is too large for Shapiro-Wilk; b is too large for Shapiro-Wilk")


def test_one_group_makes_an_empty_table_with_all_columns():
    table = compare(grouped_results({"a": np.arange(5.0)}))
    assert len(table) == 0
    assert "p_holm" in table


def test_unknown_columns_and_references_are_refused():
    ds = grouped_results({"a": np.arange(5.0), "b": np.arange(5.0)})
    with pytest.raises(ResultsError, match="'diagnosis'"):
        compare(ds, by="diagnosis")
    with pytest.raises(ResultsError, match="'control'"):
        compare(ds, reference="control")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.randoms(use_true_random=False), st.sampled_from([1e-3, 1.0, 1e3]))
def test_order_units_and_names_of_groups_do_not_change_conclusions(seed, random, unit):
    rng = np.random.default_rng(seed)
    ds = grouped_results({"a": exact_sample(rng, 800, 70, 12), "b": exact_sample(rng, 850, 60, 9)})
    order = random.sample(range(21), 21)
    renamed = np.where(ds.group.to_numpy() == "a", "zulu", "yankee")
    changed = ds.assign(volume_mm3=ds.volume_mm3 * unit).isel(scan=order)
    changed = changed.assign_coords(group=("scan", renamed[order]))
    before, after = compare(ds).loc[("a", "b")], compare(changed).loc[("yankee", "zulu")]
    for name in ("t", "t_welch", "hedges_g"):
        assert after[name] == pytest.approx(-before[name], rel=1e-9)
    for name in ("p", "p_welch", "p_mannwhitney", "p_holm"):
        assert after[name] == pytest.approx(before[name], rel=1e-8)
    assert after.difference == pytest.approx(-unit * before.difference, rel=1e-9)


def test_a_constant_shift_moves_the_means_and_nothing_else(two_samples):
    a, b = two_samples
    before = compare(grouped_results({"a": a, "b": b})).loc[("a", "b")]
    after = compare(grouped_results({"a": a + 512, "b": b + 512})).loc[("a", "b")]
    for name in ("difference", "t", "p", "p_welch", "p_mannwhitney", "hedges_g_low"):
        assert after[name] == pytest.approx(before[name], rel=1e-8)


def test_one_in_twenty_equal_groups_differs_by_chance():
    """1000 comparisons of groups from one distribution: 5 % +- 3 Monte Carlo errors."""
    values = np.random.default_rng(7).normal(850, 77, (1000, 2, 15))
    means, sds = values.mean(axis=2), values.std(axis=2, ddof=1)
    p = [stats.compare_summaries(m[0], s[0], 15, m[1], s[1], 15)["p"] for m, s in zip(means, sds, strict=True)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 1000))
