import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from array_types import unchecked
from datasets import make_results
from hypothesis import given, settings
from hypothesis import strategies as st

from hypodask import stats
from hypodask.core.errors import ResultsError

ANSCOMBE = (
    [10.0, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5],
    [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68],
)

TWO_GROUPS = {"group": ["control", "control", "PLS", "PLS"]}


def study(seed=0, n=40, power=0.6, loss=30.0):
    """Controls and patients; volumes grow with a power of the ICV, and patients have lost some volume."""
    rng = np.random.default_rng(seed)
    icv = rng.normal(1.5e6, 1.3e5, 2 * n)
    group = np.repeat(["control", "PLS"], n)
    volume = 850 * (icv / 1.5e6) ** power + rng.normal(0, 40, 2 * n) - np.where(group == "PLS", loss, 0)
    return make_results(volume, icv, covariates={"group": group})


def compare(ds, **options):
    return stats.compare_icv_adjustments(ds, **{"reference": "control", **options}).set_index("method")


@pytest.fixture(scope="module")
def ds():
    return study()


@pytest.fixture(scope="module")
def frame(ds):
    volume, icv = (ds.volume_mm3.sel(structure=name).to_numpy() for name in ("hypothalamus", "icv"))
    return pd.DataFrame({"volume": volume, "icv": icv, "pls": ds.group.to_numpy() == "PLS"})


def test_the_slope_of_anscombes_first_set():
    """Slope 0.500, its standard error 0.118, r 0.816 (Anscombe 1973)."""
    row = stats.relate_to_icv(make_results(ANSCOMBE[1], ANSCOMBE[0]), reference=None).iloc[0]
    assert row.slope == pytest.approx(0.500, abs=5e-4)
    assert (row.slope_high - row.slope) / scipy.stats.t.ppf(0.975, 9) == pytest.approx(0.118, abs=5e-4)


def test_the_power_is_that_of_statsmodels_on_logarithms(ds, frame):
    row = stats.relate_to_icv(ds, reference="control").set_index("structure").loc["hypothalamus"]
    fit = smf.ols("np.log(volume) ~ np.log(icv)", frame[~frame["pls"]]).fit()
    assert row.power == pytest.approx(fit.params.iloc[1])
    assert [row.power_low, row.power_high] == pytest.approx(fit.conf_int().iloc[1].tolist())
    assert row.p_no_relation == pytest.approx(fit.pvalues.iloc[1])
    assert row.p_proportional == pytest.approx(float(fit.t_test("np.log(icv) = 1").pvalue))


def test_volumes_in_proportion_to_the_icv_differ_from_those_that_grow_less():
    icv = np.random.default_rng(0).normal(1.5e6, 1.3e5, 200)
    noise = np.exp(np.random.default_rng(1).normal(0, 0.05, 200))
    in_proportion = stats.relate_to_icv(make_results(icv * noise, icv), reference=None)
    less = stats.relate_to_icv(make_results(icv**0.5 * noise, icv), reference=None)
    assert in_proportion["p_proportional"].iloc[0] > 0.05
    assert less["p_proportional"].iloc[0] < 1e-6
    assert less["power_low"].iloc[0] < 0.5 < less["power_high"].iloc[0]


def test_adjustments_are_those_of_their_formulas(ds, frame):
    controls = frame[~frame["pls"]]
    mean_icv = controls["icv"].mean()
    slope, _ = np.polyfit(controls["icv"], controls["volume"], 1)
    power, _ = np.polyfit(np.log(controls["icv"]), np.log(controls["volume"]), 1)
    expected = {
        "proportion": frame["volume"] / frame["icv"] * mean_icv,
        "residual": frame["volume"] - slope * (frame["icv"] - mean_icv),
        "power": frame["volume"] * (mean_icv / frame["icv"]) ** power,
    }
    for method, values in expected.items():
        found = stats.adjust_icv(ds, method=method, reference="control").adjusted_volume_mm3
        np.testing.assert_allclose(found.sel(structure="hypothalamus"), values, rtol=1e-10)
        assert np.isnan(found.sel(structure="icv").to_numpy()).all()
        assert found.attrs["method"] == method


def test_proportion_is_what_the_paper_does(ds):
    adjusted = stats.adjust_icv(ds, method="proportion", reference="control").adjusted_volume_mm3
    normalized = stats.normalize_icv(ds, reference="control").normalized_volume_mm3
    np.testing.assert_array_equal(adjusted, normalized)


def test_each_t_test_is_that_of_scipy_on_the_adjusted_volumes(ds):
    table = compare(ds)
    pls = ds.group.to_numpy() == "PLS"
    for method in ("proportion", "residual", "power"):
        adjusted = stats.adjust_icv(ds, method=method, reference="control").adjusted_volume_mm3
        values = adjusted.sel(structure="hypothalamus").to_numpy()
        expected = scipy.stats.ttest_ind(values[pls], values[~pls])
        row = table.loc[method]
        assert (row.t, row.p, row.df) == pytest.approx((expected.statistic, expected.pvalue, expected.df))
        interval = expected.confidence_interval()
        assert (row.difference_low, row.difference_high) == pytest.approx((interval.low, interval.high))


def test_the_covariate_is_the_analysis_of_covariance_of_statsmodels(ds, frame):
    row = compare(ds).loc["covariate"]
    fit = smf.ols("volume ~ pls + icv", frame).fit()
    assert (row.difference, row.t, row.p) == pytest.approx(
        (fit.params.iloc[1], fit.tvalues.iloc[1], fit.pvalues.iloc[1])
    )
    assert [row.difference_low, row.difference_high] == pytest.approx(fit.conf_int().iloc[1].tolist())
    crossed = smf.ols("volume ~ pls * icv", frame.assign(icv=frame["icv"] / 1e6)).fit()
    assert row.p_slopes == pytest.approx(crossed.pvalues.iloc[3], rel=1e-6)
    assert row.mean_b == pytest.approx(fit.params.iloc[0] + fit.params.iloc[2] * frame["icv"][~frame["pls"]].mean())


def test_methods_that_disagree_are_warned_of_in_every_row():
    """Patients with larger ICVs, and volumes that grow less than the ICV: proportion finds a loss."""
    rng = np.random.default_rng(3)
    icv = np.concatenate([rng.normal(1.45e6, 1e5, 60), rng.normal(1.6e6, 1e5, 60)])
    volume = 850 * (icv / 1.5e6) ** 0.3 + rng.normal(0, 30, 120)
    table = compare(make_results(volume, icv, covariates={"group": np.repeat(["control", "PLS"], 60)}))
    assert table.loc["proportion", "p"] < 0.05 < table.loc["power", "p"]
    assert table["reason"].str.contains("methods disagree: p < 0.05 by proportion, not by").all()
    assert (compare(study(loss=200))["reason"] == "").all()


def test_scans_without_icv_or_volume_count_under_no_method():
    ds = study()
    ds["volume_mm3"][3, 1] = np.nan
    ds["volume_mm3"][50, 0] = np.nan
    ds["status"][7] = "failed"
    table = compare(ds)
    assert table[["n_a", "n_b", "missing_a", "missing_b"]].drop_duplicates().to_numpy().tolist() == [[39, 38, 1, 1]]
    assert table["p"].notna().all()


def test_what_cannot_be_compared_has_a_reason():
    small = make_results([800, 810, 820, 830, 840], covariates={"group": list("aabbb")})
    assert (compare(small, reference="b")["reason"].str.contains("2 usable scans")).all()
    one_size = make_results([800, 810, 820, 830, 840, 850], 1.5e6, covariates={"group": list("aaabbb")})
    table = compare(one_size, reference="b")
    assert table.loc[["residual", "power"], "reason"].str.contains("no slope").all()
    assert "ICV does not vary" in table.loc["covariate", "reason"]
    assert table.loc["proportion", "p"] == pytest.approx(table.loc["none", "p"])
    assert "ICVs differ" in stats.relate_to_icv(one_size, reference="b")["reason"].iloc[0]


def test_a_wrong_method_or_no_icv_is_refused(ds):
    with unchecked(), pytest.raises(ResultsError, match="'ancova'"):
        stats.adjust_icv(ds, method="ancova", reference="control")
    with pytest.raises(ResultsError, match="icv"):
        compare(ds.sel(structure=["hypothalamus"]))
    with pytest.raises(ResultsError, match="'healthy'"):
        compare(ds, reference="healthy")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.sampled_from([1e-3, 2.0, 1e3]))
def test_order_of_scans_units_and_names_of_groups_do_not_change_a_p(seed, random, unit):
    ds = study(seed, n=12)
    order = random.sample(range(24), 24)
    changed = ds.assign(volume_mm3=ds.volume_mm3 * unit).isel(scan=order)
    changed = changed.assign_coords(group=("scan", np.where(changed.group == "PLS", "a", "b")))
    before, after = compare(ds), compare(changed, reference="b")
    assert before.index.tolist() == ["none", "proportion", "residual", "power", "covariate"]
    for name in ("t", "p", "percent", "cohens_d"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(after["difference"], before["difference"] * unit, rtol=1e-6, atol=1e-9)
    assert after["reason"].tolist() == before["reason"].tolist()


def test_equation_1_by_hand():
    ds = make_results([800, 900, 850, 850], [1.4e6, 1.6e6, 1.5e6, 1.2e6], covariates=TWO_GROUPS)
    found = stats.normalize_icv(ds, reference="control").normalized_volume_mm3.sel(structure="hypothalamus")
    assert found.to_numpy().tolist() == pytest.approx([800 * 1.5 / 1.4, 900 * 1.5 / 1.6, 850, 850 * 1.5 / 1.2])


def test_a_scan_scaled_as_a_whole_has_the_same_normalized_volume():
    ds = make_results([800, 1600], [1.4e6, 2.8e6])
    found = stats.normalize_icv(ds, reference=None).normalized_volume_mm3.sel(structure="hypothalamus")
    assert found[0] == found[1]


def test_failed_and_excluded_scans_are_not_behind_the_mean_icv():
    ds = make_results([800] * 4, [1.4e6, 1.6e6, 9e6, 1.0], covariates={"group": ["c"] * 4}, failed=[3])
    with_all = stats.normalize_icv(ds, reference="c").normalized_volume_mm3
    assert (with_all.attrs["reference_n"], with_all.attrs["reference_mean_icv_mm3"]) == (3, 4e6)
    ds = ds.assign(excluded=("scan", [False, False, True, True]))
    assert stats.normalize_icv(ds, reference="c").normalized_volume_mm3.attrs["reference_mean_icv_mm3"] == 1.5e6


@pytest.mark.parametrize("icv", [0.0, -1.0, np.nan])
def test_a_scan_without_an_icv_has_no_normalized_volume(icv):
    ds = make_results([800, 900, 850, 850], [1.4e6, 1.6e6, 1.5e6, icv], covariates=TWO_GROUPS)
    found = stats.normalize_icv(ds, reference="control").normalized_volume_mm3.sel(structure="hypothalamus")
    assert np.isnan(found.to_numpy()).tolist() == [False, False, False, True]


def test_the_icv_is_not_normalized_by_itself():
    found = stats.normalize_icv(make_results([800, 900]), reference=None).normalized_volume_mm3
    assert np.isnan(found.sel(structure="icv").to_numpy()).all()
    assert found.attrs["units"] == "mm3"


def test_a_reference_without_usable_scans_is_refused():
    ds = make_results([800, 900, 850, 850], covariates=TWO_GROUPS, failed=[0, 1])
    with pytest.raises(ResultsError, match="no usable ICV in the reference group 'control'"):
        stats.normalize_icv(ds, reference="control")
    with pytest.raises(ResultsError, match="'healthy'"):
        stats.normalize_icv(ds, reference="healthy")
