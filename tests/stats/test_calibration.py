"""How often tests and intervals are wrong, in simulated studies whose true values are known."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from datasets import grouped_results, make_results

from hypodask import stats
from hypodask.stats.groups import shapiro_p
from hypodask.stats.multiplicity import holm
from hypodask.stats.power import detectable_effect

pytestmark = pytest.mark.thorough

STUDIES = 1000
FEWER = 500
"""Of what takes longest."""

MANY = 4000
"""Of what scipy does for all studies at once."""

FIRST = 3
"""Studies of these that the package itself analyses too, so that they are known to be its own."""

MONTE_CARLO_ERRORS = 3 * np.sqrt(0.05 * 0.95 / STUDIES)
"""Of a rate of 5 % in so many studies."""

TRUTH = {"a": (810.0, 80.0, 15), "b": (850.0, 80.0, 25)}
"""Mean, SD and number of two groups that differ, mm3."""

LEVEL = pytest.approx(0.05, abs=MONTE_CARLO_ERRORS)
LEVEL_OF_MANY = pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / MANY))


def studies(groups):
    rng = np.random.default_rng(11)
    for _ in range(STUDIES):
        yield grouped_results({name: rng.normal(mean, sd, n) for name, (mean, sd, n) in groups.items()})


def share(what, found):
    """Mean of true and false over studies, printed for the table of docs/calibration.md."""
    found = np.asarray(found)
    print(f"{what}: {100 * found.mean():.1f} % of {len(found)}")
    return found.mean()


def held(table, name, truth):
    """Which rows have an interval that contains the true value."""
    return ((table[f"{name}_low"] <= truth) & (truth <= table[f"{name}_high"])).to_numpy()


def as_structures(volumes, **covariates):
    """Many studies in one dataset: the volumes of each study are those of one structure."""
    coords = {name: ("scan", np.asarray(values)) for name, values in covariates.items()}
    structures = [f"study_{k}" for k in range(volumes.shape[1])]
    return xr.Dataset({"volume_mm3": (("scan", "structure"), volumes)}, {"structure": structures} | coords)


@pytest.fixture(scope="module")
def equal_groups():
    """Rows of comparisons of groups from one distribution."""
    groups = {"a": (850.0, 77.0, 15), "b": (850.0, 77.0, 25)}
    return [
        stats.permute_groups(ds, "volume_mm3", structure="hypothalamus", resamples=199, seed=seed)
        .iloc[0]
        .combine_first(stats.compare_groups(ds, "volume_mm3", structure="hypothalamus").iloc[0])
        for seed, ds in enumerate(studies(groups))
    ]


@pytest.mark.parametrize("p", ["p", "p_welch", "p_mannwhitney", "p_permutation"])
def test_one_in_twenty_equal_groups_differs_by_chance(equal_groups, p):
    assert share(f"{p}, 15 and 25 scans", [row[p] <= 0.05 for row in equal_groups]) == LEVEL


def test_intervals_of_a_difference_and_of_its_effect_hold_the_truth():
    table = pd.concat(stats.compare_groups(ds, "volume_mm3", structure="hypothalamus") for ds in studies(TRUTH))
    for name, truth in (("difference", -40), ("hedges_g", -0.5)):
        assert 0.93 <= share(f"interval of {name}", held(table, name, truth)) <= 0.97


def test_intervals_after_adjustment_for_head_size_hold_the_truth():
    """Volumes on a line with the ICV, and 30 mm3 less in patients, which covariate and residual must find."""
    rng, found = np.random.default_rng(13), {"covariate": [], "residual": [], "slope": []}
    for _ in range(STUDIES // 2):
        icv = rng.normal(1.5e6, 1.3e5, 60)
        group = np.repeat(["control", "PLS"], 30)
        volume = 850 + 2e-4 * (icv - 1.5e6) + rng.normal(0, 40, 60) - np.where(group == "PLS", 30, 0)
        ds = make_results(volume, icv, covariates={"group": group})
        table = stats.compare_icv_adjustments(ds, reference="control").set_index("method")
        for method in ("covariate", "residual"):
            found[method].append(table.loc[method, "difference_low"] <= -30 <= table.loc[method, "difference_high"])
        relation = stats.relate_to_icv(ds, reference="control").iloc[0]
        found["slope"].append(relation.slope_low <= 2e-4 <= relation.slope_high)
    for name, inside in found.items():
        assert 0.93 <= share(f"interval after adjustment, {name}", inside) <= 0.97


def p_values(a, b):
    """P of three tests, one row per study: by scipy for all studies at once, and equal to ours for the first ones."""
    p = {
        "p": scipy.stats.ttest_ind(a, b, axis=1).pvalue,
        "p_welch": scipy.stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue,
        "p_mannwhitney": scipy.stats.mannwhitneyu(a, b, axis=1).pvalue,
    }
    for row in range(FIRST):
        ds = grouped_results({"a": a[row], "b": b[row]})
        ours = stats.compare_groups(ds, "volume_mm3", structure="hypothalamus").iloc[0]
        assert ours[list(p)].tolist() == pytest.approx([values[row] for values in p.values()])
    return p


def test_groups_of_ten_and_forty_differ_by_chance_as_often():
    rng = np.random.default_rng(20)
    p = p_values(rng.normal(850, 80, (MANY, 10)), rng.normal(850, 80, (MANY, 40)))
    for name, values in p.items():
        assert share(f"{name}, 10 and 40 scans", values <= 0.05) == LEVEL_OF_MANY


def test_where_the_smaller_group_varies_more_only_welchs_test_is_near_its_level():
    """Student's and Mann-Whitney's tests are known to find too much here (Zimmerman 2004)."""
    rng = np.random.default_rng(20)
    p = p_values(rng.normal(850, 160, (MANY, 10)), rng.normal(850, 80, (MANY, 40)))
    rates = {name: share(f"{name}, 10 of SD 160 and 40 of SD 80", values <= 0.05) for name, values in p.items()}
    assert 0.045 < rates["p_welch"] < 0.07
    assert min(rates["p"], rates["p_mannwhitney"]) > 0.09


def test_groups_that_are_not_normal_differ_by_chance_as_often():
    """Lognormal volumes from one distribution; four in five pairs fail the test for normality."""
    rng = np.random.default_rng(21)
    a, b = (np.exp(0.5 * rng.normal(size=(MANY, n))) for n in (15, 25))
    p = p_values(a, b)
    normal = np.array([min(shapiro_p(x), shapiro_p(y)) >= 0.05 for x, y in zip(a, b, strict=True)])
    p["p_recommended"] = np.where(normal, p["p"], p["p_mannwhitney"])
    for name, values in p.items():
        assert share(f"{name}, lognormal", values <= 0.05) == LEVEL_OF_MANY


def within_fences(values):
    """Values of each study, with NaN for those beyond 1.5 IQR of its quartiles."""
    low, high = np.quantile(values, [0.25, 0.75], axis=1)[:, :, None]
    reach = 1.5 * (high - low)
    return np.where((values < low - reach) | (values > high + reach), np.nan, values)


@pytest.mark.parametrize("sizes", [(45, 102), (15, 25)])
def test_student_after_outliers_were_taken_out_by_group_finds_too_much(sizes):
    """A group without its own extremes varies too little, as Bakker & Wicherts (2014) and Karch (2023) found."""
    rng = np.random.default_rng(22)
    a, b = (rng.normal(850, 77, (MANY, n)) for n in sizes)
    p = scipy.stats.ttest_ind(within_fences(a), within_fences(b), axis=1, nan_policy="omit").pvalue
    for row in range(FIRST):
        ds = stats.find_outliers(grouped_results({"a": a[row], "b": b[row]}), structures=["hypothalamus"])
        ours = stats.compare_groups(ds, "volume_mm3", structure="hypothalamus")["p"].iloc[0]
        assert ours == pytest.approx(p[row])
    assert 0.06 <= share(f"Student, {sizes} scans, outliers excluded by group", p <= 0.05) <= 0.085


def correlate_studies(volumes, covariate):
    """One row per study; a hundred studies at a time, each as a group."""
    tables = []
    for start in range(0, len(volumes), 100):
        part, values = volumes[start : start + 100], covariate[start : start + 100]
        study = np.repeat(np.arange(len(part)), part.shape[1])
        ds = make_results(part.ravel(), covariates={"study": study, "age": values.ravel()})
        tables.append(stats.correlate(ds, "volume_mm3", "age", structure="hypothalamus", by="study"))
    return pd.concat(tables, ignore_index=True)


def test_correlations_keep_their_level_and_their_interval_holds_the_truth():
    """Studies of 40 scans: normal ages, and durations that are exponential, for which Spearman's is chosen."""
    rng = np.random.default_rng(12)
    age, noise = rng.normal(size=(2, STUDIES, 40))
    related = correlate_studies(850 + 80 * (-0.4 * age + np.sqrt(1 - 0.4**2) * noise), age)
    assert 0.93 <= share("interval of r = -0.4", held(related, "r", -0.4)) <= 0.97
    for name, covariate in (("normal", age), ("exponential", rng.exponential(4, (STUDIES, 40)))):
        table = correlate_studies(850 + 80 * noise, covariate)
        for p in ("p", "p_spearman", "p_recommended"):
            assert share(f"correlation {p} with a {name} covariate", table[p] <= 0.05) == LEVEL


def test_relations_with_the_icv_keep_their_level_and_hold_the_truth():
    """Volumes that grow with the ICV to the power 0.6, and in proportion to it: 60 scans, log SD 9 %."""
    rng = np.random.default_rng(14)
    icv = np.exp(rng.normal(np.log(1.5e6), 0.09, 60))
    noise = 0.09 * rng.normal(size=(60, STUDIES))
    found = {}
    for power in (0.6, 1.0, 0.0):
        volumes = 850 * (icv[:, None] / 1.5e6) ** power * np.exp(noise)
        ds = as_structures(np.column_stack([volumes, icv]))
        ds = ds.assign_coords(structure=[*ds.structure.to_numpy()[:-1], "icv"])
        found[power] = stats.relate_to_icv(ds, reference=None)
    assert 0.93 <= share("interval of the power 0.6", held(found[0.6], "power", 0.6)) <= 0.97
    assert share("p_proportional", found[1.0]["p_proportional"] <= 0.05) == LEVEL
    assert share("p_no_relation", found[0.0]["p_no_relation"] <= 0.05) == LEVEL


def test_regressions_on_the_sums_of_sites_keep_their_level_and_hold_the_truth():
    """Three sites of 12, 20 and 40 with their own shifts: patients have 30 mm3 less, age has no effect."""
    rng, summaries = np.random.default_rng(15), []
    for name, n in (("a", 12), ("b", 20), ("c", 40)):
        ill, age = np.arange(n) % 3 == 0, rng.uniform(40, 80, n)
        volumes = rng.normal(850, 50, STUDIES) - 30 * ill[:, None] + 80 * rng.normal(size=(n, STUDIES))
        ds = as_structures(volumes, group=np.where(ill, "PLS", "control"), age=age)
        asked = {"covariates": ["age", "group"], "levels": {"group": ["control", "PLS"]}, "fewest": 3}
        summaries.append(
            stats.summarize_site(ds, "volume_mm3", name=name, structures=ds.structure.to_numpy().tolist(), **asked)
        )
    table = stats.pool_regression(summaries)
    by_term = {term: rows.rename(columns={"low": "x_low", "high": "x_high"}) for term, rows in table.groupby("term")}
    assert share("pooled regression, age", by_term["age"]["p"] <= 0.05) == LEVEL
    assert 0.93 <= share("pooled regression, interval", held(by_term["group=PLS"], "x", -30)) <= 0.97


META = {
    "8 sites of 30": ([30] * 8, 0.0),
    "8 sites of 30, SD of effects 30": ([30] * 8, 30.0),
    "6 sites of 10 to 100": ([10, 10, 20, 30, 60, 100], 0.0),
    "6 sites of 10 to 100, SD of effects 30": ([10, 10, 20, 30, 60, 100], 30.0),
    "3 sites of 30, SD of effects 30": ([30] * 3, 30.0),
    "15 sites of 100, SD of effects 30": ([100] * 15, 30.0),
}


def combine_many(effects, variances):
    """Paule and Mandel's variance by halving, the mean, its normal error and Hartung and Knapp's, of each study."""

    def weighted(tau2):
        weights = 1 / (variances + tau2[:, None])
        mean = (weights * effects).sum(axis=1) / weights.sum(axis=1)
        return (weights * (effects - mean[:, None]) ** 2).sum(axis=1) / (effects.shape[1] - 1), weights, mean

    low, high = np.zeros(len(effects)), np.full(len(effects), 1e6)
    for _ in range(60):
        middle = (low + high) / 2
        more = weighted(middle)[0] > 1
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    tau2 = np.where(weighted(np.zeros(len(effects)))[0] > 1, low, 0)
    excess, weights, mean = weighted(tau2)
    normal = weights.sum(axis=1) ** -0.5
    return tau2, mean, normal, normal * np.sqrt(excess)


@pytest.mark.parametrize("setting", META)
def test_a_meta_analysis_of_sites_is_near_its_level(setting):
    """Sites with half patients, SD 80; the prediction interval must contain the effect at a new site."""
    sizes, between = np.array(META[setting][0]), META[setting][1]
    rng, sites = np.random.default_rng(16), len(META[setting][0])
    variances = 80**2 * 4 / sizes * rng.chisquare(sizes - 2, (MANY, sites)) / (sizes - 2)
    effects = rng.normal(0, between, (MANY, sites)) + 80 * np.sqrt(4 / sizes) * rng.normal(size=(MANY, sites))
    tau2, mean, normal, error = combine_many(effects, variances)
    p = 2 * scipy.stats.t.sf(abs(mean / error), sites - 1)
    for row in range(FIRST):
        table = pd.DataFrame({"site": range(sites), "estimate": effects[row], "se": np.sqrt(variances[row])})
        assert stats.combine_sites(table)["p"].iloc[0] == pytest.approx(p[row], rel=1e-4)
    reach = scipy.stats.t.ppf(0.975, sites - 2) * np.sqrt(tau2 + normal**2)
    share(f"meta-analysis, prediction, {setting}", abs(rng.normal(0, between, MANY) - mean) <= reach)
    share(f"meta-analysis, p_normal, {setting}", abs(mean / normal) >= scipy.stats.norm.ppf(0.975))
    squares = (effects - (effects / variances).sum(1, keepdims=True) / (1 / variances).sum(1, keepdims=True)) ** 2
    share(f"meta-analysis, p_q, {setting}", scipy.stats.chi2.sf((squares / variances).sum(1), sites - 1) <= 0.05)
    assert 0.04 <= share(f"meta-analysis, p, {setting}", p <= 0.05) <= 0.08


@pytest.mark.parametrize("sd_a", [60.0, 120.0])
def test_robust_comparisons_of_small_groups_are_near_their_level(sd_a):
    """HC3 with eight scans and 24, adjusted for age: of equal spread, and where the eight vary twice as much."""
    rng, ill = np.random.default_rng(17), np.repeat([1.0, 0.0], [8, 24])
    age = rng.uniform(40, 80, (MANY, 32))
    y = 850 - 2 * (age - 60) + np.repeat([sd_a, 60], [8, 24]) * rng.normal(size=(MANY, 32))
    design = np.stack([np.ones_like(age), np.broadcast_to(ill, age.shape), age - 60], axis=2)
    pseudo = np.linalg.pinv(design)
    slopes = (pseudo @ y[..., None])[..., 0]
    left = (y - (design @ slopes[..., None])[..., 0]) / (1 - np.einsum("nsk,nks->ns", design, pseudo))
    t = slopes[:, 1] / np.sqrt(((pseudo[:, 1] * left) ** 2).sum(axis=1))
    p = 2 * scipy.stats.t.sf(abs(t), 29)
    for row in range(FIRST):
        ds = make_results(y[row], covariates={"group": np.where(ill, "a", "b"), "age": age[row]})
        asked = {"structure": "hypothalamus", "covariates": ["age"], "robust": True}
        assert stats.compare_adjusted(ds, "volume_mm3", **asked)["p"].iloc[0] == pytest.approx(p[row], rel=1e-6)
    assert 0.04 <= share(f"HC3, 8 scans of SD {sd_a:g} and 24 of SD 60", p <= 0.05) <= 0.07


def test_studies_find_what_they_are_said_to_detect():
    """Nine of ten studies of 45 and 102 find the effect for which they have 90 % power."""
    rng, effect = np.random.default_rng(18), detectable_effect(45, 102, 0.9)
    a, b = rng.normal(effect, 1, (45, 4000)), rng.normal(0, 1, (102, 4000))
    found = share("power of 90 %, 45 and 102", scipy.stats.ttest_ind(a, b).pvalue <= 0.05)
    assert found == pytest.approx(0.9, abs=3 * np.sqrt(0.9 * 0.1 / 4000))


def test_agreement_over_sessions_that_differ_holds_the_truth():
    """Three sessions, each with a shift of SD 10, of 25 participants; limits of agreement of two of them."""
    rng, people = np.random.default_rng(19), 25 * STUDIES
    shift = np.repeat(rng.normal(0, 10, (STUDIES, 3)), 25, axis=0)
    ratings = 850 + rng.normal(0, 60, (people, 1)) + shift + rng.normal(0, 20, (people, 3))
    names = {"participant_id": np.repeat(np.arange(people), 3), "session": np.tile(["1", "2", "3"], people)}
    ds = make_results(ratings.ravel(), covariates=names | {"study": np.repeat(np.arange(STUDIES), 75)})
    table = stats.repeatability(ds, "volume_mm3", structure="hypothalamus", by="study")
    truth = {"icc_2_1": 3600 / (3600 + 100 + 400), "icc_3_1": 3600 / (3600 + 400)}
    for name, icc in truth.items():
        assert 0.93 <= share(f"{name}, three sessions that differ", held(table, name, icc)) <= 0.97
    pair = stats.repeatability(ds, "volume_mm3", structure="hypothalamus", by="study", sessions=["1", "2"])
    pair = pair.sort_values("group", key=lambda studies: studies.astype(int))  # the table has them as text
    middle, reach = (shift[::25, 1] - shift[::25, 0]), np.sqrt(2) * 20
    ends = scipy.stats.norm.cdf(pair[["agreement_low", "agreement_high"]].to_numpy(), middle[:, None], reach)
    inside = np.diff(ends, axis=1).mean()
    print(f"new differences within the limits of agreement: {100 * inside:.1f} %")
    # The distance of a new difference, in standard errors of prediction, is Student's t with 24 degrees of freedom.
    expected = 1 - 2 * scipy.stats.t.sf(1.96 / np.sqrt(1 + 1 / 25), 24)
    assert inside == pytest.approx(expected, abs=0.01)
    share("bias between sessions, interval", held(pair, "bias", middle))


def test_changes_of_groups_that_were_followed_differently_differ_by_chance():
    """Ten followed for one year and thirty for four, two scans each: Welch's test, as the page says."""
    rng = np.random.default_rng(20)
    years = np.repeat([1.0, 4.0], [10 * STUDIES, 30 * STUDIES])
    start = 850 + 60 * rng.normal(size=(len(years), 1))
    volumes = start * (1 - 0.005 * np.stack([0 * years, years], 1)) + 15 * rng.normal(size=(len(years), 2))
    names = {"participant_id": np.repeat(np.arange(len(years)), 2), "age": np.stack([0 * years, years], 1).ravel() + 60}
    found = stats.annual_change(
        make_results(volumes.ravel(), covariates=names), "volume_mm3", structure="hypothalamus", by=None
    )
    change = found.change_percent_per_year.sel(scan=np.arange(len(years)).astype(str)).to_numpy()
    a, b = change[: 10 * STUDIES].reshape(STUDIES, 10), change[10 * STUDIES :].reshape(STUDIES, 30)
    for equal_var in (True, False):
        rate = share(
            f"change, Student {equal_var}", scipy.stats.ttest_ind(a, b, axis=1, equal_var=equal_var).pvalue <= 0.05
        )
    assert rate == LEVEL


def test_adjustments_bound_what_they_are_said_to_bound():
    """Ten tests of 20 and 20, in five of which groups differ: any false finding, and the share of false findings."""
    rng = np.random.default_rng(22)
    a, b = rng.normal(size=(2, STUDIES, 10, 20))
    p = scipy.stats.ttest_ind(a + np.where(np.arange(10) < 5, 1.0, 0.0)[:, None], b, axis=-1).pvalue
    any_false, false_share = [], []
    for row in p:
        any_false.append((holm(row)[5:] <= 0.05).any())
        found = stats.adjust_p(pd.DataFrame({"p": row}), "fdr_bh", column="p")["p_fdr_bh"].to_numpy() <= 0.05
        false_share.append(found[5:].sum() / max(found.sum(), 1))
    assert share("Holm, any false finding", any_false) <= 0.05 + MONTE_CARLO_ERRORS
    assert share("Benjamini-Hochberg, false share of findings", false_share) <= 0.05 + MONTE_CARLO_ERRORS


def test_table_one_and_exclusions_find_differences_by_chance():
    rng, p = np.random.default_rng(23), {"sex": [], "age": [], "excluded": []}
    group = np.repeat(["a", "b", "c"], [15, 25, 40])
    for _ in range(FEWER):
        coords = {"group": group, "sex": rng.choice(["M", "F"], 80), "age": rng.exponential(20, 80) + 30}
        ds = make_results(np.full(80, 850.0), covariates=coords).assign(excluded=("scan", rng.random(80) < 0.2))
        table = stats.demographics(ds).groupby("characteristic")["p"].first()
        p["sex"].append(table["sex"])
        p["age"].append(table["age"])
        p["excluded"].append(stats.check_exclusions(ds)["p"].iloc[0])
    for name, values in p.items():
        assert share(f"table one, {name}", np.array(values) <= 0.05) == pytest.approx(
            0.05, abs=3 * np.sqrt(0.05 * 0.95 / FEWER)
        )
