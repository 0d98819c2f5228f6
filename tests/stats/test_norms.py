import dataclasses
import json

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from datasets import make_results
from hypothesis import given, settings
from hypothesis import strategies as st
from patsy import dmatrix
from statsmodels.regression.linear_model import OLS, WLS

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.stats.location_scale import fit_location_scale, natural_spline

AGES = (20.0, 85.0)


def log_mean(age, male, icv):
    """A curve that our spline cannot follow exactly, as in real brains."""
    return 6.75 - 0.08 * (np.maximum(age - 45, 0) / 40) ** 2 + 0.04 * male + 0.7 * np.log(icv / 1.5e6)


def log_scale(age):
    return np.log(0.08) + 0.3 * (age - AGES[0]) / (AGES[1] - AGES[0])


def people(seed, n=400, *, ages=AGES, shift=0.0, scale=1.0):
    """Controls, and the true z of each."""
    rng = np.random.default_rng(seed)
    age, male = rng.uniform(*ages, n), rng.integers(0, 2, n)
    icv = np.exp(rng.normal(np.log(1.45e6) + 0.1 * male, 0.08))
    z = rng.normal(size=n)
    volume = np.exp(log_mean(age, male, icv) + np.exp(log_scale(age)) * (shift + scale * z))
    covariates = {"age": age, "sex": np.where(male, "M", "F"), "group": ["control"] * n}
    return make_results(volume, icv, covariates=covariates), z


def z_of(ds, norms, name="z"):
    return stats.apply_norms(ds, norms)[name].sel(structure="hypothalamus").to_numpy()


@pytest.fixture(scope="module")
def reference():
    return people(0, 1500)[0]


@pytest.fixture(scope="module")
def norms(reference):
    return stats.fit_norms(reference, structures=["hypothalamus", "icv"])


def test_the_spline_spans_what_the_natural_spline_of_patsy_spans():
    x = np.random.default_rng(0).uniform(0, 1, 200)
    knots = np.quantile(x, [0.05, 0.35, 0.65, 0.95])
    y = np.sin(4 * x)
    theirs = dmatrix("0 + cr(x, knots=inner, lower_bound=low, upper_bound=high)", {
        "x": x, "inner": knots[1:-1], "low": knots[0], "high": knots[-1]})  # fmt: skip
    ours = np.column_stack([np.ones(200), natural_spline(x, knots)])
    np.testing.assert_allclose(
        OLS(y, ours).fit().fittedvalues, OLS(y, np.asarray(theirs)).fit().fittedvalues, atol=1e-8
    )


def test_a_constant_scale_is_that_of_ordinary_least_squares():
    rng = np.random.default_rng(1)
    design = np.column_stack([np.ones(50), rng.normal(size=50)])
    y = design @ [3.0, 1.0] + rng.normal(0, 2, 50)
    mean, log_sd, covariance, _ = fit_location_scale(y, design, np.ones((50, 1)))
    expected = OLS(y, design).fit()
    np.testing.assert_allclose(mean, expected.params, rtol=1e-9)
    assert np.exp(2 * log_sd[0]) == pytest.approx(expected.scale, rel=1e-9)
    np.testing.assert_allclose(covariance, expected.cov_params(), rtol=1e-7)


def test_mean_and_scale_are_a_stationary_point_of_the_restricted_likelihood():
    """The likelihood that Smyth & Verbyla (1999) maximise, written out and differentiated numerically."""
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 1, 60)
    design = spread = np.column_stack([np.ones(60), x])
    y = design @ [3.0, 1.0] + rng.normal(size=60) * np.exp(spread @ [-1.0, 1.5])
    mean, log_sd, *_ = fit_location_scale(y, design, spread)
    np.testing.assert_allclose(mean, WLS(y, design, weights=np.exp(-2 * spread @ log_sd)).fit().params, rtol=1e-8)

    def restricted(coefficients):
        weights = np.exp(-2 * spread @ coefficients)
        residual = WLS(y, design, weights=weights).fit().resid
        info = np.linalg.slogdet(design.T @ (design * weights[:, None]))[1]
        return 0.5 * (np.log(weights).sum() - (weights * residual**2).sum() - info)

    gradient = scipy.optimize.approx_fprime(log_sd, restricted, 1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_z_of_new_people_is_the_truth(norms):
    ds, truth = people(1, 500)
    z = z_of(ds, norms)
    assert np.sqrt(np.mean((z - truth) ** 2)) < 0.15
    np.testing.assert_allclose(z_of(ds, norms, "centile"), 100 * scipy.stats.norm.cdf(z), rtol=1e-9)


def test_the_norm_of_the_icv_is_not_adjusted_for_itself(norms):
    assert "icv" in norms.of("hypothalamus").columns
    assert "icv" not in norms.of("icv").columns
    z = stats.apply_norms(people(2)[0], norms).z.sel(structure="icv")
    assert abs(float(z.mean())) < 0.2


def test_scans_without_a_norm_say_why(norms):
    ds, _ = people(3, 6)
    age, sex = ds.age.to_numpy().copy(), ds.sex.to_numpy().copy()
    age[:3], sex[3] = [90.0, np.nan, 10.0], ""
    volumes = ds.volume_mm3.to_numpy().copy()
    volumes[4, 1] = np.nan
    ds = ds.assign_coords(age=("scan", age), sex=("scan", sex)).assign(volume_mm3=(("scan", "structure"), volumes))
    found = stats.apply_norms(ds.assign(excluded=("scan", [False] * 5 + [True])), norms)
    reasons = found.norm_reason.values.tolist()
    outside = f"age outside the norms: the reference is {norms.age_low_years:g} to {norms.age_high_years:g} years"
    assert reasons == [outside, "no age", outside, "no sex", "no ICV", "not done, or excluded"]
    assert np.isnan(found.z).all()


def test_a_failed_scan_of_the_reference_does_not_count(reference):
    holes = reference.assign(status=("scan", ["failed"] * 100 + ["done"] * 1400))
    assert stats.fit_norms(holes).of("hypothalamus").n == 1400


def test_norms_survive_json_and_other_schemas_do_not(norms):
    assert stats.Norms.from_json(norms.to_json()) == norms
    older = json.dumps({**json.loads(norms.to_json()), "schema": 0})
    with pytest.raises(ResultsError, match="schema 0, needed 1"):
        stats.Norms.from_json(older)
    problems = {
        "": "the file of norms cannot be read as JSON",
        "[]": r"the file of norms cannot be read: it holds \[\]; a table is needed",
        "{}": "the file of norms lacks 'variable'",
        '{"schema": 1, "structures": [{"n": "3"}]}': "the file of norms lacks 'variable'",
        norms.to_json().replace('"n": ', '"n": -1.'): r"\[structures\[0\]\] has n = -1.*; a whole number is needed",
    }
    for text, problem in problems.items():
        with pytest.raises(ResultsError, match=f"{problem}.*; write it again with Norms.to_json"):
            stats.Norms.from_json(text)


def test_a_curve_holds_the_volumes_that_its_z_has(norms):
    table = stats.centile_curves(norms, "hypothalamus", [30.0, 60.0], sex="male", icv_mm3=1.5e6, centiles=[5, 50])
    ds = make_results(table["value"], 1.5e6, covariates={"age": table["age"], "sex": ["M"] * 4})
    np.testing.assert_allclose(z_of(ds, norms, "centile"), table["centile"], rtol=1e-7)
    assert (table["value_low"] < table["value"]).all()
    with pytest.raises(ResultsError, match="ages"):
        stats.centile_curves(norms, "hypothalamus", [95.0])
    with pytest.raises(ResultsError, match="no norm of 'amygdala'"):
        stats.centile_curves(norms, "amygdala", [60.0])


def test_the_check_finds_norms_of_another_scanner(norms):
    fits = stats.check_norms(people(4, 300)[0], norms).set_index("structure").loc["hypothalamus"]
    assert fits.p_mean > 0.001
    assert (fits.below_5, fits.below_95) == (pytest.approx(5, abs=4), pytest.approx(95, abs=4))
    moved = stats.check_norms(people(4, 300, shift=0.7)[0], norms).set_index("structure").loc["hypothalamus"]
    assert moved.p_mean < 1e-6
    few = stats.check_norms(people(4, 10)[0], norms).iloc[0]
    assert few.reason.startswith("10 scans have a z")


def test_the_linear_scale_fits_volumes_that_are_normal():
    rng = np.random.default_rng(5)
    age = rng.uniform(20, 80, 3000)
    ds = make_results(1000 - 3 * age + rng.normal(0, 120, 3000), covariates={"age": age})
    options = {"reference": None, "covariates": []}
    skewness = {
        scale: stats.check_norms(ds, stats.fit_norms(ds, scale=scale, **options), reference=None).skewness.item()
        for scale in ("linear", "log")
    }
    assert abs(skewness["linear"]) < 0.1 < abs(skewness["log"])


def test_a_site_is_shifted_and_scaled_towards_its_controls(norms):
    site, truth = people(6, 200, shift=0.8, scale=1.3)
    moved = stats.adapt_norms(site, norms)
    one = moved.of("hypothalamus")
    assert one.controls == 200
    assert one.shift == pytest.approx(0.8, abs=0.3)
    assert one.log_scale == pytest.approx(np.log(1.3), abs=0.15)
    assert np.mean(np.abs(z_of(site, moved) - truth)) < np.mean(np.abs(z_of(site, norms) - truth)) / 2
    with pytest.raises(ResultsError, match="moved to a site before"):
        stats.adapt_norms(site, moved)


def test_few_controls_move_the_norms_less_and_widen_the_interval(norms):
    site, _ = people(7, 60, shift=0.8)
    width, shift = [], []
    for n in (4, 12, 60):
        moved = stats.adapt_norms(site.isel(scan=slice(0, n)), norms)
        found = stats.apply_norms(site, moved).sel(structure="hypothalamus")
        width.append(float((found.z_high - found.z_low).mean()))
        shift.append(moved.of("hypothalamus").shift / z_of(site, norms)[:n].mean())
    assert width[0] > width[1] > width[2]
    assert shift[0] < shift[1] < shift[2] < 1


def test_references_that_cannot_carry_norms_are_refused(reference, norms):
    with pytest.raises(ResultsError, match="30 reference scans"):
        stats.fit_norms(reference.isel(scan=slice(0, 30)))
    with pytest.raises(ResultsError, match="too few or too alike"):
        stats.fit_norms(reference.assign_coords(age=("scan", [60.0] * 1500)))
    with pytest.raises(ResultsError, match="is the same in all reference scans"):
        stats.fit_norms(reference.assign_coords(sex=("scan", ["F"] * 1500)))
    with pytest.raises(ResultsError, match="more than one scan"):
        stats.fit_norms(reference.assign_coords(participant_id=("scan", ["x"] * 1500)))
    with pytest.raises(ResultsError, match="2 controls of the site"):
        stats.adapt_norms(reference.isel(scan=slice(0, 2)), norms)
    with pytest.raises(ResultsError, match="'amygdala'"):
        stats.fit_norms(reference, structures=["amygdala"])


@settings(max_examples=6, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1e-3, 1e3]), st.sampled_from(["log", "linear"]))
def test_order_and_units_do_not_change_z(random, unit, scale):
    ds, _ = people(8, 120)
    order = random.sample(range(120), 120)
    changed = ds.assign(volume_mm3=ds.volume_mm3 * unit).isel(scan=order)
    before, after = (z_of(d, stats.fit_norms(d, scale=scale)) for d in (ds, changed))
    np.testing.assert_allclose(after, before[order], rtol=1e-5, atol=1e-6)


def true_curve_share(norms, ages):
    """Share of true centile volumes (5, 50, 95) within their intervals, and of true z within theirs."""
    table = stats.centile_curves(norms, "hypothalamus", ages, sex="male", icv_mm3=1.5e6, centiles=[5, 50, 95])
    age = table["age"].to_numpy()
    truth = np.exp(smooth_mean(age) + np.exp(log_scale(age)) * scipy.stats.norm.ppf(table["centile"] / 100))
    return ((table["value_low"] <= truth) & (truth <= table["value_high"])).mean()


def smooth_mean(age):
    """A parabola that the spline can follow closely: coverage then depends on sampling and not on the shape."""
    return 6.75 - 0.10 * ((age - 20) / 65) ** 2


def smooth_people(seed, n):
    rng = np.random.default_rng(seed)
    age, z = rng.uniform(*AGES, n), rng.normal(size=n)
    sex, icv = rng.choice(["M", "F"], n), rng.normal(1.5e6, 1e5, n)
    volume = np.exp(smooth_mean(age) + 0.7 * np.log(icv / 1.5e6) + np.exp(log_scale(age)) * z)
    return make_results(volume, icv, covariates={"age": age, "sex": sex, "group": ["control"] * n}), z


@pytest.mark.thorough
@pytest.mark.parametrize("n", [150, 1000])
def test_intervals_of_z_and_centiles_cover_the_truth(n):
    """200 references: intervals of z of 200 new people, and of three centiles at four ages; 93 to 97 %."""
    new, truth = smooth_people(99, 200)
    of_z, of_curve = [], []
    for seed in range(200):
        norms = stats.fit_norms(smooth_people(1000 + seed, n)[0])
        found = stats.apply_norms(new, norms).sel(structure="hypothalamus")
        within = found.norm_reason.to_numpy() == ""
        of_z.append(((found.z_low <= truth) & (truth <= found.z_high)).to_numpy()[within].mean())
        of_curve.append(true_curve_share(norms, [25.0, 40.0, 60.0, 80.0]))
    print(f"{n} in the reference: z {np.mean(of_z):.3f}, centiles {np.mean(of_curve):.3f}")
    assert 0.93 <= np.mean(of_z) <= 0.97
    assert 0.93 <= np.mean(of_curve) <= 0.97


@pytest.mark.thorough
@pytest.mark.parametrize("controls", [4, 10, 30])
def test_intervals_at_a_new_site_cover_the_truth(controls):
    """400 sites, drawn as the priors say, each with few controls: intervals of z of 50 others, 93 to 97 %."""
    norms = stats.fit_norms(people(0, 3000)[0])
    covered = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        shift, scale = rng.normal(0, 1), np.exp(rng.normal(0, 0.2))
        site, truth = people(10_000 + seed, controls + 50, shift=shift, scale=scale)
        found = stats.apply_norms(site, stats.adapt_norms(site.isel(scan=slice(0, controls)), norms))
        found = found.sel(structure="hypothalamus").isel(scan=slice(controls, None))
        inside = (found.z_low.to_numpy() <= truth[controls:]) & (truth[controls:] <= found.z_high.to_numpy())
        covered.append(inside[np.isfinite(found.z.to_numpy())].mean())
    print(f"{controls} controls: {np.mean(covered):.3f}")
    assert 0.93 <= np.mean(covered) <= 0.97


def aged_by_sex(seed, n):
    """Men who lose volume sooner than women, with equal ICVs; and the true z of each."""
    rng = np.random.default_rng(seed)
    age, male, z = rng.uniform(*AGES, n), rng.integers(0, 2, n), rng.normal(size=n)
    volume = np.exp(6.75 - 0.1 * (1 + 2 * male) * ((age - 20) / 65) ** 2 + 0.08 * z)
    covariates = {"age": age, "sex": np.where(male, "M", "F"), "group": ["control"] * n}
    return make_results(volume, covariates=covariates), z


def test_each_sex_can_have_its_own_curve():
    ds, truth = aged_by_sex(3, 1500)
    old_men = (ds.age.to_numpy() > 60) & (ds.sex.to_numpy() == "M")
    shared = stats.fit_norms(ds, covariates=["sex"])
    apart = stats.Norms.from_json(stats.fit_norms(ds, covariates=["sex"], sex_curves=True).to_json())
    gap = {name: np.mean(z_of(ds, one) - truth, where=old_men) for name, one in (("one", shared), ("two", apart))}
    assert abs(gap["two"]) < 0.1 < abs(gap["one"])
    curves = {sex: stats.centile_curves(apart, "hypothalamus", [80.0], sex=sex) for sex in ("male", "female")}
    assert (curves["male"]["value"] < curves["female"]["value"]).all()


def test_curves_of_sexes_are_those_of_a_regression_with_interaction():
    ds, _ = aged_by_sex(4, 300)
    norms = stats.fit_norms(ds, covariates=["sex"], sex_curves=True)
    age, log_sd = ds.age.to_numpy(), norms.structures[0].log_sd
    low, *inner, high = norms.knots_years
    design = dmatrix("0 + C(sex):cr(age, knots=inner, lower_bound=low, upper_bound=high)", {
        "sex": ds.sex.to_numpy(), "age": age, "inner": inner, "low": low, "high": high})  # fmt: skip
    sd = np.exp(log_sd[0] + log_sd[1] * (age - age.min()) / np.ptp(age))
    y = np.log(ds.volume_mm3.sel(structure="hypothalamus").to_numpy())
    expected = (y - WLS(y, np.asarray(design), weights=sd**-2).fit().fittedvalues) / sd
    np.testing.assert_allclose(z_of(ds, norms), expected, atol=1e-6)


def test_curves_of_sexes_need_the_sex():
    with pytest.raises(ResultsError, match="needed 'sex'"):
        stats.fit_norms(people(0)[0], covariates=["icv"], sex_curves=True)


def test_norms_are_adjusted_for_sex_and_icv_only():
    with pytest.raises(ResultsError, match=r"adjusted for \['group'\], needed sex or icv"):
        stats.fit_norms(people(0)[0], covariates=["sex", "group"])


def test_norms_cannot_be_changed(norms):
    with pytest.raises(dataclasses.FrozenInstanceError):
        norms.schema = 2
