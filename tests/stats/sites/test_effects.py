import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from array_types import unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_sites import dataset, simulate

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.report.forest import forest_figure

GROUPS = {"group": "PLS", "reference": "control", "structure": "part_0"}

# Vaccination against tuberculosis: ill and well of the vaccinated, ill and well of the controls (Colditz et al. 1994).
BCG = np.array(
    [
        *([4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619], [33, 5036, 47, 5761]),
        *([180, 1361, 372, 1079], [8, 2537, 10, 619], [505, 87886, 499, 87892], [29, 7470, 45, 7232]),
        *([17, 1699, 65, 1600], [186, 50448, 141, 27197], [5, 2493, 3, 2338], [27, 16886, 29, 17825]),
    ]
)


def effects(estimates, errors) -> pd.DataFrame:
    names = [f"s{k}" for k in range(len(estimates))]
    return pd.DataFrame({"site": names, "estimate": np.asarray(estimates, float), "se": np.asarray(errors, float)})


@pytest.fixture(scope="module")
def study():
    return simulate(np.random.default_rng(0), sites=5, n=40, effect=40)


def table_of(ds) -> pd.DataFrame:
    columns = {name: ds[name].to_numpy() for name in ("site", "age", "group")}
    return pd.DataFrame(columns | {"y": ds.volume_mm3.to_numpy()[:, 0]})


def test_without_covariates_a_site_has_the_difference_of_student(study):
    found = stats.compare_sites(study, "volume_mm3", **GROUPS)
    for row in found.itertuples():
        here = table_of(study).query("site == @row.site")
        a, b = (here["y"][here["group"] == name] for name in ("PLS", "control"))
        expected = scipy.stats.ttest_ind(a, b)
        interval = expected.confidence_interval()
        assert (row.n_group, row.n_reference, row.df) == (len(a), len(b), expected.df)
        assert (row.t, row.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
        assert (row.estimate, row.low, row.high) == pytest.approx((a.mean() - b.mean(), *interval), rel=1e-9)


def test_with_covariates_a_site_has_the_coefficient_of_its_regression(study):
    found = stats.compare_sites(study, "volume_mm3", **GROUPS, covariates=["age"])
    for row in found.itertuples():
        fit = smf.ols("y ~ C(group, Treatment('control')) + age", table_of(study).query("site == @row.site")).fit()
        term = "C(group, Treatment('control'))[T.PLS]"
        assert (row.estimate, row.se, row.p) == pytest.approx(
            (fit.params[term], fit.bse[term], fit.pvalues[term]), rel=1e-9
        )


def test_a_numbered_scanner_is_a_category(study):
    """A slope over scanners 1, 2 and 3 would put the second between the others."""
    scanner = np.arange(study.sizes["scan"]) % 3 + 1
    found = stats.compare_sites(
        study.assign_coords(scanner=("scan", scanner)), "volume_mm3", **GROUPS, covariates=["scanner"]
    )
    for row in found.itertuples():
        here = table_of(study).assign(scanner=scanner).query("site == @row.site")
        fit = smf.ols("y ~ C(group, Treatment('control')) + C(scanner)", here).fit()
        term = "C(group, Treatment('control'))[T.PLS]"
        assert (row.estimate, row.p, row.df) == pytest.approx((fit.params[term], fit.pvalues[term], fit.df_resid))


def test_the_published_meta_analysis():
    """Q = 152.233, tau2 = 0.3088, mean -0.7141 with error 0.1787, I2 = 92.12 % (Viechtbauer 2010, and metafor's DL)."""
    a, b, c, d = BCG.T
    ratios, variances = np.log(a / (a + b) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    row = stats.combine_sites(effects(ratios, np.sqrt(variances)), method="dersimonian-laird").iloc[0]
    assert (row.q, row.tau2, row.i2) == (
        pytest.approx(152.233, abs=5e-4),
        pytest.approx(0.3088, abs=5e-5),
        pytest.approx(0.9212, abs=5e-5),
    )
    assert (row.estimate, row.se_normal) == (pytest.approx(-0.7141, abs=5e-5), pytest.approx(0.1787, abs=5e-5))
    assert (row.low_normal, row.high_normal) == pytest.approx((-1.0644, -0.3638), abs=1e-4)


@pytest.mark.parametrize("method", ["paule-mandel", "dersimonian-laird"])
def test_sites_of_equal_error_are_tested_as_scipy_tests_one_sample(method):
    estimates = np.array([-50.0, -20, -70, 10, -35, -90])
    row = stats.combine_sites(effects(estimates, [8.0] * 6), method=method).iloc[0]
    expected = scipy.stats.ttest_1samp(estimates, 0)
    assert (row.t, row.df, row.p) == pytest.approx((expected.statistic, expected.df, expected.pvalue), rel=1e-6)
    assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-6)
    assert row.tau2 == pytest.approx(estimates.var(ddof=1) - 64, rel=1e-5)
    total = np.sqrt(row.tau2 + estimates.var(ddof=1) / 6) * scipy.stats.t.ppf(0.975, 4)
    assert row.prediction_high == pytest.approx(estimates.mean() + total, rel=1e-5)


def test_paule_and_mandels_variance_solves_their_equation():
    estimates, errors = np.array([-30.0, -50, -10, 25, -64]), np.array([10.0, 12, 9, 30, 17])
    row = stats.combine_sites(effects(estimates, errors)).iloc[0]
    weights = 1 / (errors**2 + row.tau2)
    mean = np.average(estimates, weights=weights)
    assert (weights * (estimates - mean) ** 2).sum() == pytest.approx(4, abs=1e-4)
    assert row.estimate == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("method", ["paule-mandel", "dersimonian-laird"])
def test_sites_that_agree_have_no_variance_between_them(method):
    estimates, errors = np.array([-30.0, -31, -29]), np.array([10.0, 12, 9])
    row = stats.combine_sites(effects(estimates, errors), method=method).iloc[0]
    assert (row.tau2, row.i2) == (0, 0)
    assert row.estimate == pytest.approx(np.average(estimates, weights=errors**-2.0))
    assert row.se_normal == pytest.approx((errors**-2.0).sum() ** -0.5)


def test_each_site_is_left_out_once(study):
    found = stats.compare_sites(study, "volume_mm3", **GROUPS)
    left = stats.leave_one_site_out(found)
    assert left["left_out"].tolist() == found["site"].tolist()
    pd.testing.assert_series_equal(
        left.iloc[2].drop("left_out"), stats.combine_sites(found.drop(2)).iloc[0], check_names=False
    )


def test_a_site_without_one_of_the_groups_has_a_reason_and_no_part(study):
    alone = study.isel(scan=(study.site.to_numpy() != "s02") | (study.group.to_numpy() == "control"))
    failed = alone.assign(status=("scan", np.where(np.arange(alone.sizes["scan"]) == 0, "failed", "done")))
    found = stats.compare_sites(failed, "volume_mm3", **GROUPS).set_index("site")
    assert found.loc["s02", "reason"] == "PLS has 0 usable scans, a test needs 3"
    assert np.isnan(found.loc["s02", "p"])
    assert found["missing"].tolist() == [1, 0, 0, 0, 0]
    assert stats.combine_sites(found.reset_index())["sites"].iloc[0] == 4


@pytest.mark.parametrize(
    ("estimates", "reason"),
    [
        ([], "0 sites have an estimate, a meta-analysis needs two"),
        ([1.0, np.nan], "1 sites have an estimate, a meta-analysis needs two"),
        ([5.0, 5.0, 5.0], "all sites have the same estimate: the error of their mean is not known"),
    ],
)
def test_what_cannot_be_combined_has_a_reason(estimates, reason):
    row = stats.combine_sites(effects(estimates, np.ones(len(estimates)))).iloc[0]
    assert (row.reason, np.isnan(row.p)) == (reason, True)


def test_what_is_not_there_is_named(study):
    with pytest.raises(ResultsError, match="'ALS'"):
        stats.compare_sites(study, "volume_mm3", structure="part_0", group="ALS", reference="control")
    with unchecked(), pytest.raises(ResultsError, match="no method 'reml'"):
        stats.combine_sites(effects([1, 2], [1, 1]), method="reml")
    with pytest.raises(ResultsError, match=r"no columns \['estimate', 'se'\]"):
        stats.combine_sites(pd.DataFrame({"site": ["a"]}))


def test_the_mixed_model_of_a_balanced_study_has_the_variances_of_its_anova():
    """With as many scans of each kind at each site, REML's estimates are those of the mean squares (Searle 1971)."""
    rng = np.random.default_rng(3)
    site, ill = np.repeat(np.arange(8), 20), np.tile([0, 1], 80)
    y = 800 + 50 * rng.normal(size=8)[site] - 30 * ill + 40 * rng.normal(size=160)
    ds = dataset(y[:, None], site=[f"s{j}" for j in site], group=np.where(ill, "PLS", "control"))
    row = stats.mixed_model(ds, "volume_mm3", structure="part_0", covariates=["group"], reference="control").iloc[0]
    left = y - np.where(ill, y[ill == 1].mean(), y[ill == 0].mean())
    means = left.reshape(8, 20).mean(axis=1)
    within = ((left.reshape(8, 20) - means[:, None]) ** 2).sum() / (160 - 8 - 1)
    assert row.term == "group=PLS"
    assert row.estimate == pytest.approx(y[ill == 1].mean() - y[ill == 0].mean(), rel=1e-6)
    assert row.se == pytest.approx(np.sqrt(within * 2 / 80), rel=1e-4)
    assert row.residual_sd == pytest.approx(np.sqrt(within), rel=1e-4)
    assert row.site_sd == pytest.approx(np.sqrt(means.var(ddof=1) - within / 20), rel=1e-3)
    assert (row.n, row.sites, row.reason) == (160, 8, "")


def test_a_mixed_model_of_sites_that_do_not_differ_is_the_regression_and_says_so():
    rng = np.random.default_rng(3)
    site, age = np.repeat(np.arange(8), 20), rng.uniform(40, 80, 160)
    y = rng.normal(800, 40, (8, 20))
    y = (y - y.mean(axis=1, keepdims=True)).ravel() + 800
    age = (age.reshape(8, 20) - age.reshape(8, 20).mean(axis=1, keepdims=True)).ravel() + 60
    ds = dataset(y[:, None], site=[f"s{j}" for j in site], age=age)
    row = stats.mixed_model(ds, "volume_mm3", structure="part_0", covariates=["age"]).iloc[0]
    fit = smf.ols("y ~ age", pd.DataFrame({"y": y, "age": age})).fit()
    assert row.estimate == pytest.approx(fit.params["age"], rel=1e-6)
    assert row.se == pytest.approx(fit.bse["age"], rel=1e-4)
    assert row.reason == "the sites do not differ: the model is an ordinary regression"


def test_a_mixed_model_that_cannot_be_fitted_says_why(study):
    with pytest.raises(ResultsError, match="needs two sites"):
        stats.mixed_model(study.isel(scan=slice(40)), "volume_mm3", structure="part_0", covariates=["age"])
    doubled = study.assign_coords(months=("scan", 12 * study.age.to_numpy()), one=("scan", np.ones(200)))
    with pytest.raises(ResultsError, match=r"\['age', 'months'\] are collinear"):
        stats.mixed_model(doubled, "volume_mm3", structure="part_0", covariates=["age", "months"])
    with pytest.raises(ResultsError, match=r"\['one'\] are the same in every scan"):
        stats.mixed_model(doubled, "volume_mm3", structure="part_0", covariates=["one"])


@settings(deadline=None, max_examples=8)
@given(st.randoms(use_true_random=False), st.floats(1e-6, 1e6))
def test_order_and_units_change_no_conclusion(random, unit):
    ds = simulate(np.random.default_rng(0), sites=5, n=40, effect=40)
    moved = ds.isel(scan=random.sample(range(200), 200))
    moved = moved.assign(volume_mm3=moved.volume_mm3 * unit)
    options = {**GROUPS, "covariates": ["age"]}
    was, now = (stats.compare_sites(each, "volume_mm3", **options) for each in (ds, moved))
    np.testing.assert_allclose(now["p"], was["p"], rtol=1e-7)
    np.testing.assert_allclose(stats.combine_sites(now)["p"], stats.combine_sites(was)["p"], rtol=1e-5)
    mixed = {"structure": "part_0", "covariates": ["group", "age"]}
    was, now = (stats.mixed_model(each, "volume_mm3", **mixed) for each in (ds, moved))
    np.testing.assert_allclose(now["t"], was["t"], rtol=1e-4)


def test_the_forest_plot_has_a_point_for_each_site_with_an_estimate():
    table = effects([-30.0, np.nan, -10], [10.0, np.nan, 9]).assign(n=[20, 2, 30])
    table = table.assign(low=table["estimate"] - 2 * table["se"], high=table["estimate"] + 2 * table["se"])
    axes = forest_figure(table, stats.combine_sites(table)).axes[0]
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "s"]
    assert points == [-30, -10]
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "all 2 sites"
