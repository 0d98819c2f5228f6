import numpy as np
import pandas as pd
import pytest
import scipy.stats
from datasets import make_results
from hypothesis import given, settings
from hypothesis import strategies as st

from hypodask import stats
from hypodask.core.errors import ResultsError

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
"""Table 2 of Shrout & Fleiss, Psychological Bulletin 1979: six targets, four judges."""

BLAND_ALTMAN = np.array([
    [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427],
    [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451],
], float).T  # fmt: skip
"""Peak flow of 17 people by Wright's and the mini meter, first readings (Bland & Altman, Lancet 1986, table 1)."""


def sessions(ratings, **covariates):
    n, k = ratings.shape
    people = [f"p{i}" for i in range(n) for _ in range(k)]
    more = {name: np.repeat(values, k) for name, values in covariates.items()}
    return make_results(
        ratings.ravel(), covariates={"participant_id": people, "session": list(range(1, k + 1)) * n} | more
    )


def repeat(ds, **options):
    return stats.repeatability(ds, "volume_mm3", structure="hypothalamus", **options).iloc[0]


def change(ds, **options):
    return stats.annual_change(ds, "volume_mm3", structure="hypothalamus", **options)


def test_icc_and_intervals_of_the_example_of_shrout_and_fleiss():
    """ICC(2,1) .29 and ICC(3,1) .71 in the paper; intervals as ICC of the R package psych prints for its data."""
    row = repeat(sessions(SHROUT_FLEISS))
    assert (row.icc_2_1, row.icc_3_1) == (pytest.approx(0.29, abs=0.005), pytest.approx(0.71, abs=0.006))
    assert (row.icc_2_1_low, row.icc_2_1_high) == (pytest.approx(0.019, abs=0.001), pytest.approx(0.76, abs=0.005))
    assert (row.icc_3_1_low, row.icc_3_1_high) == (pytest.approx(0.34, abs=0.005), pytest.approx(0.95, abs=0.005))
    assert np.isnan(row.bias)


def test_limits_of_agreement_of_the_example_of_bland_and_altman():
    """Mean difference -2.1 and SD 38.8 l/min in the paper, Wright less mini; interval of the bias -22.0 to 17.8."""
    row = repeat(sessions(BLAND_ALTMAN[:, ::-1]))
    assert row.bias == pytest.approx(-2.1, abs=0.05)
    assert (row.agreement_high - row.agreement_low) / (2 * 1.96) == pytest.approx(38.8, abs=0.05)
    assert (row.bias_low, row.bias_high) == (pytest.approx(-22.0, abs=0.1), pytest.approx(17.8, abs=0.1))
    assert row.p_bias == pytest.approx(scipy.stats.ttest_rel(*BLAND_ALTMAN.T).pvalue)


def test_smallest_change_and_cov_are_those_of_the_variance_within():
    rng = np.random.default_rng(1)
    volumes = 850 * np.exp(rng.normal(0, 0.1, (4000, 1)) + rng.normal(0, 0.02, (4000, 2)))
    row = repeat(sessions(volumes))
    assert row.cov_percent == pytest.approx(2, rel=0.03)
    assert row.cov_percent_low < row.cov_percent < row.cov_percent_high
    within = np.sqrt((np.diff(volumes, axis=1) ** 2 / 2).mean())
    assert row.smallest_change == pytest.approx(1.96 * np.sqrt(2) * within, rel=1e-9)


def test_who_lacks_a_session_is_counted():
    ds = sessions(SHROUT_FLEISS)
    lost = ds.assign(excluded=("scan", np.isin(np.arange(24), [0, 5, 6, 7])))
    row = repeat(lost)
    assert (row.participants, row.n, row.single, row.incomplete) == (6, 4, 1, 1)
    pair = repeat(lost, sessions=["1", "2"])
    assert (pair.n, pair.single, pair.sessions) == (4, 2, 2)


def test_groups_are_apart_and_too_few_have_a_reason():
    ds = sessions(SHROUT_FLEISS, group=list("aaaabb"))
    table = stats.repeatability(ds, "volume_mm3", structure="hypothalamus", by="group").set_index("group")
    assert np.isfinite(table.loc["a", "icc_2_1"])
    assert table.loc["b", "reason"].startswith("2 participants have all of 4 sessions")
    assert repeat(sessions(np.full((5, 2), 800.0))).reason == "all values are the same"


def test_a_perfect_repetition_is_an_icc_of_one():
    row = repeat(sessions(np.repeat(np.arange(5.0)[:, None] + 800, 2, axis=1)))
    assert (row.icc_2_1, row.icc_3_1, row.within_sd) == (1, 1, 0)


def test_ambiguous_sessions_and_groups_are_refused():
    ds = sessions(SHROUT_FLEISS)
    with pytest.raises(ResultsError, match="two usable scans in one session"):
        repeat(ds.assign_coords(session=("scan", [1] * 24)))
    with pytest.raises(ResultsError, match="needed two or more"):
        repeat(ds, sessions=["1", "9"])
    with pytest.raises(ResultsError, match="more than one group"):
        repeat(ds.assign_coords(group=("scan", ["a", "b"] * 12)), by="group")


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.randoms(use_true_random=False), st.sampled_from([1e-3, 1e3]))
def test_order_and_units_do_not_change_agreement(seed, random, unit):
    ds = sessions(850 + np.random.default_rng(seed).normal(0, 50, (8, 2)))
    order = random.sample(range(16), 16)
    before, after = repeat(ds), repeat(ds.assign(volume_mm3=ds.volume_mm3 * unit).isel(scan=order))
    for name in ("icc_2_1", "icc_2_1_low", "icc_3_1_high", "cov_percent", "smallest_change_percent", "p_bias"):
        assert after[name] == pytest.approx(before[name], rel=1e-7)


def followed(seed, n=20, slope=(-10.0, -10.0)):
    rng = np.random.default_rng(seed)
    age = np.repeat(rng.uniform(40, 70, 2 * n), 3) + np.tile([0.0, 1.0, 2.5], 2 * n)
    begun, years = np.repeat(rng.normal(850, 70, 2 * n), 3), np.tile([0.0, 1.0, 2.5], 2 * n)
    volume = begun + np.repeat(slope, 3 * n) * years + rng.normal(0, 8, 6 * n)
    people, group = [f"p{i}" for i in range(2 * n) for _ in range(3)], np.repeat(["PLS", "control"], 3 * n)
    return make_results(volume, covariates={"participant_id": people, "age": age, "group": group})


def test_change_is_the_line_of_scipy_through_each_participants_scans():
    ds = followed(1)
    found = change(ds)
    one = ds.isel(scan=slice(3, 6))
    line = scipy.stats.linregress(one.age - one.age[0], one.volume_mm3.sel(structure="hypothalamus"))
    assert found.change_per_year.sel(scan="p1").item() == pytest.approx(line.slope, rel=1e-8)
    assert found.change_percent_per_year.sel(scan="p1").item() == pytest.approx(
        100 * line.slope / line.intercept, rel=1e-8
    )


def test_groups_are_compared_by_their_change():
    table = (
        followed(2, slope=(-25.0, -5.0)).pipe(change).pipe(stats.compare_groups, "change_per_year", reference="control")
    )
    assert table.difference.item() == pytest.approx(-20, abs=5)
    assert table.p.item() < 1e-6


def test_dates_are_as_good_as_years():
    ds = followed(3)
    days = np.round((ds.age.to_numpy() - 40) * 365.25)
    ds = ds.assign_coords(age=("scan", days / 365.25))
    dates = pd.Timestamp("2015-01-01") + pd.to_timedelta(days, unit="D")
    text = ds.assign_coords(date=("scan", [str(date.date()) for date in dates]))
    stamped = ds.assign_coords(date=("scan", dates.to_numpy()))
    for dated in (text, stamped):
        np.testing.assert_allclose(change(dated, time="date").change_per_year, change(ds).change_per_year, rtol=1e-6)
    with pytest.raises(ResultsError, match="not numbers"):
        change(ds.assign_coords(date=("scan", ["spring"] * 120)), time="date")


def test_participants_without_a_change_are_kept_with_a_reason():
    ds = followed(4, n=3)
    age = ds.age.to_numpy().copy()
    age[3:6], age[6:9] = np.nan, 60.0
    excluded = np.isin(np.arange(18), [0, 1])
    found = change(ds.assign_coords(age=("scan", age)).assign(excluded=("scan", excluded)))
    reasons = found.change_reason.sel(scan=["p0", "p1", "p2", "p3"]).to_numpy().tolist()
    assert reasons == ["one usable scan", "no usable scan has a time", "all scans are of one time", ""]
    assert found.scans.sel(scan=["p0", "p1", "p2"]).to_numpy().tolist() == [1, 0, 3]
    row = stats.compare_groups(found, "change_per_year").iloc[0]
    assert (row.n_a, row.missing_a) == (0, 3)


@pytest.mark.thorough
def test_intervals_of_agreement_cover_the_truth():
    """3000 studies of 25 participants, ICC 0.9, sessions alike: 93 to 97 % for each interval."""
    hits = {"icc_2_1": 0.9, "icc_3_1": 0.9, "within_sd": 20.0, "smallest_change": 1.96 * np.sqrt(2) * 20, "bias": 0.0}
    rng = np.random.default_rng(0)
    ratings = 850 + rng.normal(0, 60, (75_000, 1)) + rng.normal(0, 20, (75_000, 2))
    ds = sessions(ratings, study=np.arange(75_000) // 25)
    table = stats.repeatability(ds, "volume_mm3", structure="hypothalamus", by="study")
    for name, truth in hits.items():
        covered = ((table[f"{name}_low"] <= truth) & (truth <= table[f"{name}_high"])).mean()
        print(f"{name}: {covered:.3f}")
        assert 0.93 <= covered <= 0.97
    print(f"p_bias: {(table.p_bias < 0.05).mean():.3f}")


@pytest.mark.thorough
def test_changes_of_equal_groups_differ_by_chance():
    """1000 studies of 15 a group with equal change: 5 % +- 3 Monte Carlo errors."""
    found = change(followed(0, 15_000)).change_percent_per_year
    a, b = (found.sel(scan=[f"p{i}" for i in range(s, s + 15_000)]).to_numpy().reshape(1000, 15) for s in (0, 15_000))
    false = np.mean(scipy.stats.ttest_ind(a, b, axis=1).pvalue < 0.05)
    print(f"change: {false:.3f}")
    assert false == pytest.approx(0.05, abs=0.021)
