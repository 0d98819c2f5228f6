import numpy as np
import pytest
import scipy.stats
from datasets import make_results

from hypodask import stats
from hypodask.core.errors import ResultsError


def correlate(ds, covariate, **options):
    return stats.correlate(ds, "volume_mm3", covariate, structure="hypothalamus", **options)


@pytest.fixture
def aged():
    rng = np.random.default_rng(5)
    age = rng.normal(60, 10, 40)
    groups = {"age": age, "group": ["a", "b"] * 20}
    return make_results(900 - 2 * age + rng.normal(0, 20, 40), covariates=groups)


def test_both_coefficients_are_those_of_scipy(aged):
    row = correlate(aged, "age").iloc[0]
    volume = aged.volume_mm3.sel(structure="hypothalamus").to_numpy()
    pearson, spearman = scipy.stats.pearsonr(volume, aged.age), scipy.stats.spearmanr(volume, aged.age)
    assert (row.r, row.p) == pytest.approx(tuple(pearson), rel=1e-10)
    assert (row.r_low, row.r_high) == pytest.approx(tuple(pearson.confidence_interval()), rel=1e-10)
    assert (row.rho, row.p_spearman) == pytest.approx(tuple(spearman), rel=1e-10)
    assert (row.group, row.n, row.test) == ("all", 40, "pearson")


@pytest.mark.parametrize(
    ("order", "p"), [([1, 2, 3, 4, 5], 1 / 60), ([1, 2, 3], 1 / 3), ([2, 1, 3, 4], 5 / 12 - 1 / 12)]
)
def test_the_p_of_few_scans_is_exact(order, p):
    ds = make_results([float(n) for n in order], covariates={"age": list(range(len(order)))})
    row = correlate(ds, "age").iloc[0]
    assert (row.p_spearman, row.spearman_method) == (pytest.approx(p), "exact")


def test_the_exact_p_is_that_of_r():
    """R 4, help(cor.test), Hollander and Wolfe 1973: cor.test(x, y, method = "spearman") prints p-value = 0.0968."""
    x = [44.4, 45.9, 41.9, 53.3, 44.7, 44.1, 50.7, 45.2, 60.1]
    y = [2.6, 3.1, 2.5, 5.0, 3.6, 4.0, 5.2, 2.8, 3.8]
    row = correlate(make_results(y, covariates={"age": x}), "age").iloc[0]
    assert (row.rho, row.p_spearman) == (pytest.approx(0.6), pytest.approx(0.0968, abs=5e-5))


def test_ties_are_permuted_where_scans_are_few_and_approximated_where_they_are_many():
    rng = np.random.default_rng(0)
    for n, method, tolerance in ((9, "exact", 0.06), (20, "permutation", 0.02), (60, "t", 1e-9)):
        score = np.round(rng.normal(0, 1, n))
        ds = make_results(900 + 20 * score + rng.normal(0, 40, n), covariates={"score": score})
        row = correlate(ds, "score").iloc[0]
        volume = ds.volume_mm3.sel(structure="hypothalamus").to_numpy()
        assert row.spearman_method == method
        assert row.p_spearman == pytest.approx(scipy.stats.spearmanr(volume, score).pvalue, abs=tolerance)


def test_groups_are_correlated_apart(aged):
    table = correlate(aged, "age", by="group")
    assert table[["group", "n"]].to_numpy().tolist() == [["a", 20], ["b", 20]]
    assert (table.p_holm >= table.p_recommended).all()


def test_a_skewed_covariate_is_correlated_by_ranks(aged):
    ds = aged.assign_coords(duration=("scan", np.random.default_rng(1).exponential(3, 40)))
    row = correlate(ds, "duration").iloc[0]
    assert (row.test, row.p_recommended) == ("spearman", row.p_spearman)


def test_a_scan_without_the_covariate_is_left_out_and_counted(aged):
    gaps = aged.age.to_numpy().copy()
    gaps[:7] = np.nan
    row = correlate(aged.assign_coords(age=("scan", gaps)), "age").iloc[0]
    assert (row.n, row.missing) == (33, 7)
    assert np.isfinite(row.r)


@pytest.mark.parametrize(
    ("age", "reason"),
    [([60.0, np.nan, np.nan, 50.0], "2 usable scans"), ([60.0] * 4, "the covariate is the same in every scan")],
)
def test_what_cannot_be_correlated_has_nan_and_a_reason(age, reason):
    row = correlate(make_results([800, 810, 820, 900], covariates={"age": age}), "age").iloc[0]
    assert np.isnan(row.r)
    assert row.reason.startswith(reason)


def test_a_category_is_refused(aged):
    with pytest.raises(ResultsError, match="by="):
        correlate(aged, "group")
