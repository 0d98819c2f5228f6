import numpy as np
import pytest
import scipy.stats
from datasets import make_results

from hypodask import stats
from hypodask.errors import ResultsError


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
