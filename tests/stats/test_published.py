import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from datasets import make_results, paper_results
from statsmodels.stats.multitest import multipletests

from hypodask import stats


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(1)
    group = np.repeat(["control", "PLS", "ALS"], [30, 20, 50])
    volumes = np.where(group == "control", 860, 800) + rng.uniform(-60, 60, 100)
    volumes[[2, 40]] = 1900, 100
    covariates = {
        "group": group,
        "subgroup": np.where(group == "PLS", np.tile(["probable", "definite"], 50), ""),
        "sex": np.tile(["M", "F"], 50),
        "age": rng.uniform(40, 80, 100),
        "alsfrs_r": np.where(group == "control", np.nan, 40),
        "disease_duration_years": np.where(group == "control", np.nan, rng.uniform(1, 9, 100)),
    }
    return make_results(volumes, rng.uniform(1.4e6, 1.6e6, 100), covariates=covariates, failed=[99])


@pytest.fixture(scope="module")
def result(cohort):
    return stats.paper(cohort)


def test_outliers_are_excluded_counted_and_listed(result):
    assert result.exclusions["scan"].tolist() == ["sub-002", "sub-040"]
    counts = result.exclusion_counts.set_index("group")
    assert counts.loc["ALS", ["scans", "done", "excluded"]].tolist() == [50, 49, 0]
    assert counts.loc["PLS", "percent"] == 5


def test_comparisons_stand_with_and_without_outliers(result):
    key = ["group_a", "group_b"]
    without = result.comparisons.set_index(key).loc[("PLS", "control")]
    within = result.comparisons_with_outliers.set_index(key).loc[("PLS", "control")]
    assert (without.n_a, without.n_b, within.n_a, within.n_b) == (19, 29, 20, 30)
    assert without.p < within.p


def test_subgroups_are_compared_within_their_group(result):
    table = result.subgroup_comparisons
    assert table[["group", "group_a", "group_b"]].to_numpy().tolist() == [["PLS", "definite", "probable"]]


def test_age_sex_and_clinical_associations_are_there(result):
    found = set(result.associations[["group", "covariate"]].itertuples(index=False, name=None))
    assert ("all", "age") in found
    assert ("PLS", "disease_duration_years") in found
    assert ("control", "disease_duration_years") not in found
    assert result.sex_comparisons["group_a"].tolist() == ["female"]


def test_summaries_cover_raw_and_normalized_volumes(result):
    assert len(result.summaries) == 9
    assert set(result.summaries["variable"]) == {"volume_mm3", "normalized_volume_mm3"}


def test_the_order_of_scans_does_not_change_a_table(cohort, result):
    shuffled = stats.paper(cohort.isel(scan=np.random.default_rng(0).permutation(100)))
    for name in ("demographics", "exclusion_counts", "comparisons", "associations"):
        pd.testing.assert_frame_equal(getattr(shuffled, name), getattr(result, name), rtol=1e-9)


def test_a_cohort_without_groups_is_still_summarized():
    ds = make_results(np.linspace(700, 900, 12), covariates={"age": range(12)})
    found = stats.paper(ds, by=None, reference=None)
    assert (len(found.comparisons), len(found.subgroup_comparisons), len(found.sex_comparisons)) == (0, 0, 0)
    assert found.summaries["group"].tolist() == ["all"] * 3


def test_the_papers_conclusions_hold_with_its_own_numbers():
    table = stats.paper(paper_results()).comparisons_with_outliers
    significant = table.set_index(["group_a", "group_b"])["p_recommended"] < 0.05
    assert significant.to_dict() == {("ALS", "control"): True, ("PLS", "control"): True, ("ALS", "PLS"): False}


def test_table_1_has_the_tests_of_scipy(cohort, result):
    table = result.demographics
    rows = table[(table["subgroup"] == "")].drop_duplicates("characteristic").set_index("characteristic")
    groups = [cohort.age.to_numpy()[cohort.group.to_numpy() == name] for name in ("control", "PLS", "ALS")]
    kruskal = scipy.stats.kruskal(*groups)
    assert rows.loc["age", ["test", "df"]].tolist() == ["kruskal-wallis", 2]
    assert rows.loc["age", ["statistic", "p"]].tolist() == pytest.approx([kruskal.statistic, kruskal.pvalue])
    counts = pd.crosstab(cohort.group.to_numpy(), cohort.sex.to_numpy())
    chi_square = scipy.stats.chi2_contingency(counts, correction=False)
    assert rows.loc["sex", ["statistic", "p"]].tolist() == pytest.approx([chi_square.statistic, chi_square.pvalue])


def test_another_definition_of_quartiles_moves_the_fences_and_is_named(cohort, result):
    other = stats.paper(cohort, quantiles="weibull")
    assert other.dataset.excluded.attrs["quantiles"] == "weibull"
    key = ["scan", "structure"]
    moved = other.exclusions.merge(result.exclusions, on=key, suffixes=("", "_linear"))
    assert (moved["low"] < moved["low_linear"]).all()
    own = cohort.volume_mm3.sel(structure="hypothalamus").to_numpy()[cohort.group.to_numpy() == "control"]
    first, third = np.quantile(own, [0.25, 0.75], method="weibull")
    row = moved[moved["group"] == "control"].iloc[0]
    assert (row.low, row.high) == pytest.approx((first - 1.5 * (third - first), third + 1.5 * (third - first)))


def test_false_discovery_rates_stand_beside_holm_when_asked(cohort):
    table = stats.paper(cohort, adjust="fdr_bh").comparisons
    expected = multipletests(table["p_recommended"], method="fdr_bh")[1]
    np.testing.assert_allclose(table["p_fdr_bh"], expected)
    assert "p_holm" in table


def test_permutations_are_there_when_asked_and_agree(cohort, result):
    assert result.permutations.empty
    found = stats.paper(cohort, permute=1, resamples=999).permutations
    assert found[["group_a", "group_b"]].equals(result.comparisons[["group_a", "group_b"]])
    np.testing.assert_allclose(found["p_permutation"], result.comparisons["p_welch"], atol=0.06)


def test_every_comparison_has_effect_interval_and_numbers(result):
    for table in (result.comparisons, result.subgroup_comparisons, result.sex_comparisons):
        tested = table[table["p"].notna()]
        needed = ["n_a", "n_b", "difference", "difference_low", "difference_high", "hedges_g", "hedges_g_low"]
        assert len(tested)
        assert tested[needed].notna().all(axis=None)
    associations = result.associations[result.associations["n"] > 3]
    assert associations[["n", "r", "r_low", "r_high", "rho"]].notna().all(axis=None)


def test_scans_without_volumes_change_no_table_but_the_counts(cohort, result):
    blank = cohort.isel(scan=[0, 31, 60]).copy(deep=True)
    blank = blank.assign_coords(scan=["x", "y", "z"])
    blank["volume_mm3"][:2] = np.nan
    blank["volume_mm3"][2] = 1e9
    blank["status"][2] = "failed"
    found = stats.paper(xr.concat([cohort, blank], dim="scan"))
    counts = ["missing_a", "missing_b"]
    pd.testing.assert_frame_equal(
        found.comparisons.drop(columns=counts), result.comparisons.drop(columns=counts), rtol=1e-12
    )
    assert found.comparisons[counts].sum().sum() == result.comparisons[counts].sum().sum() + 6
