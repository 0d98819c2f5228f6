import numpy as np
import pandas as pd
import pytest
from datasets import make_results, paper_results

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
