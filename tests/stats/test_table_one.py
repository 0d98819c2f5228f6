import numpy as np
import pytest
import scipy.stats
from datasets import make_results

from hypodask import stats
from hypodask.core.errors import ResultsError


@pytest.fixture
def cohort():
    rng = np.random.default_rng(2)
    group = np.repeat(["control", "PLS", "ALS"], [20, 12, 30])
    patient = group != "control"
    covariates = {
        "group": group,
        "subgroup": np.where(group == "PLS", np.tile(["probable", "definite"], 31), ""),
        "sex": np.tile(["M", "f", "female", "male"], 16)[:62],
        "age": rng.normal(60, 11, 62),
        "alsfrs_r": np.where(patient, rng.integers(20, 48, 62), np.nan),
        "disease_duration_years": np.where(patient, rng.exponential(3, 62) + 0.1, np.nan),
    }
    return make_results(rng.normal(830, 80, 62), covariates=covariates)


def rows(table, characteristic):
    return table[table.characteristic == characteristic].set_index(["group", "subgroup"])


def test_groups_and_their_subgroups_have_a_row_each(cohort):
    table = rows(stats.demographics(cohort), "age")
    assert table.index.tolist() == [("ALS", ""), ("PLS", ""), ("PLS", "definite"), ("PLS", "probable"), ("control", "")]
    pls = cohort.age.to_numpy()[cohort.group.to_numpy() == "PLS"]
    found = table.loc[("PLS", ""), ["n", "mean", "sd", "median", "low", "high"]].tolist()
    assert found == pytest.approx([12, pls.mean(), pls.std(ddof=1), np.median(pls), pls.min(), pls.max()])


def test_ages_are_compared_by_kruskal_wallis_over_whole_groups(cohort):
    expected = scipy.stats.kruskal(
        *[cohort.age.to_numpy()[cohort.group.to_numpy() == g] for g in ("control", "PLS", "ALS")]
    )
    table = rows(stats.demographics(cohort), "age")
    assert table["p"].nunique() == 1
    assert (table["statistic"].iloc[0], table["p"].iloc[0]) == pytest.approx(tuple(expected), rel=1e-10)


def test_clinical_scores_are_compared_among_the_groups_that_have_them(cohort):
    table = rows(stats.demographics(cohort), "alsfrs_r")
    assert table.loc[("control", ""), "n"] == 0
    assert table.loc[("ALS", ""), "df"] == 1


def test_sexes_in_any_spelling_are_compared_by_chi_square(cohort):
    """Kassubek 2025, Table 1: 26/20, 241/170 and 53/54."""
    counts = {"PLS": (26, 20), "ALS": (241, 170), "control": (53, 54)}
    group = [name for name, pair in counts.items() for _ in range(sum(pair))]
    sex = [letter for pair in counts.values() for letter, n in zip("MF", pair, strict=True) for _ in range(n)]
    ds = make_results(np.full(len(group), 800.0), covariates={"group": group, "sex": sex})
    table = rows(stats.demographics(ds), "sex")
    assert {g: tuple(table.loc[(g, ""), ["male", "female"]]) for g in counts} == counts
    expected = scipy.stats.chi2_contingency(list(counts.values()), correction=False)
    assert (table["statistic"].iloc[0], table["p"].iloc[0]) == pytest.approx(expected[:2], rel=1e-10)
    assert rows(stats.demographics(cohort), "sex").loc[("PLS", ""), "n"] == 12


def sexes_of(*counts):
    """Results of groups with so many men and women."""
    group = [str(number) for number, pair in enumerate(counts) for _ in range(sum(pair))]
    sex = [letter for pair in counts for letter, n in zip("MF", pair, strict=True) for _ in range(n)]
    return rows(stats.demographics(make_results([800.0] * len(sex), covariates={"group": group, "sex": sex})), "sex")


def test_few_people_of_a_sex_are_compared_by_fishers_test():
    """R: fisher.test(matrix(c(3, 1, 1, 3), 2)) prints p-value = 0.4857."""
    table = sexes_of((3, 1), (1, 3))
    assert (table["test"].iloc[0], table["p"].iloc[0]) == ("fisher", pytest.approx(0.4857, abs=5e-5))
    assert table[["statistic", "df"]].isna().all(axis=None)


def test_few_people_in_three_groups_are_compared_by_tables_drawn_at_random():
    """By all 26 tables with these margins (Freeman and Halton 1951): p = 13/35."""
    table = sexes_of((3, 1), (1, 3), (2, 0))
    assert (table["test"].iloc[0], table["p"].iloc[0]) == ("fisher", pytest.approx(13 / 35, abs=0.005))


def test_the_slope_is_points_per_year_and_unknown_at_the_first_day(cohort):
    ds = make_results([800] * 3, covariates={"alsfrs_r": [39, 47, np.nan], "disease_duration_years": [4.5, 0, 1]})
    np.testing.assert_allclose(stats.add_progression_slope(ds).progression_per_year, [2, np.nan, np.nan])
    assert "progression_per_year" in set(stats.demographics(cohort).characteristic)


@pytest.mark.parametrize(("score", "years"), [(60.0, 2.0), (-1.0, 2.0), (40.0, -2.0)])
def test_impossible_scores_and_durations_are_refused_by_scan(score, years):
    ds = make_results([800, 810], covariates={"alsfrs_r": [40, score], "disease_duration_years": [1, years]})
    with pytest.raises(ResultsError, match="sub-001"):
        stats.add_progression_slope(ds)


def test_without_clinical_columns_the_table_holds_what_there_is():
    ds = make_results([800, 810, 820], covariates={"group": list("aab"), "age": [50, 60, 70]})
    assert set(stats.demographics(ds).characteristic) == {"age"}
    assert len(stats.demographics(ds.drop_vars("age"))) == 0
    assert stats.demographics(ds, by=None).loc[0, ["group", "n", "mean"]].tolist() == ["all", 3, 60]


def test_what_does_not_vary_has_no_test():
    ds = make_results([800] * 4, covariates={"group": list("aabb"), "age": [50] * 4, "sex": ["M"] * 4})
    assert stats.demographics(ds)["p"].isna().all()
