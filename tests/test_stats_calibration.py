"""How often the tests of the statistics are wrong, on simulated groups whose truth is known."""

import numpy as np
import pytest
from datasets import grouped_results, make_results

from hypodask import stats

pytestmark = pytest.mark.thorough

STUDIES = 1000
MONTE_CARLO_ERRORS = 3 * np.sqrt(0.05 * 0.95 / STUDIES)
"""Of a rate of 5 % in so many studies."""

TRUTH = {"a": (810.0, 80.0, 15), "b": (850.0, 80.0, 25)}
"""Mean, SD and number of two groups that differ, mm3."""


def studies(groups):
    rng = np.random.default_rng(11)
    for _ in range(STUDIES):
        yield grouped_results({name: rng.normal(mean, sd, n) for name, (mean, sd, n) in groups.items()})


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
    rate = np.mean([row[p] <= 0.05 for row in equal_groups])
    assert rate == pytest.approx(0.05, abs=MONTE_CARLO_ERRORS)


def test_intervals_of_a_difference_and_of_its_effect_hold_the_truth():
    rows = [stats.compare_groups(ds, "volume_mm3", structure="hypothalamus").iloc[0] for ds in studies(TRUTH)]
    held = {"difference": [], "hedges_g": []}
    for row in rows:
        held["difference"].append(row.difference_low <= -40 <= row.difference_high)
        held["hedges_g"].append(row.hedges_g_low <= -0.5 <= row.hedges_g_high)
    assert 0.93 <= np.mean(held["difference"]) <= 0.97
    assert 0.93 <= np.mean(held["hedges_g"]) <= 0.97


def test_intervals_of_a_correlation_hold_the_truth():
    rng, held = np.random.default_rng(12), []
    for _ in range(STUDIES):
        age = rng.normal(60, 10, 40)
        volume = 850 + 80 * (-0.4 * (age - 60) / 10 + np.sqrt(1 - 0.4**2) * rng.normal(0, 1, 40))
        row = stats.correlate(
            make_results(volume, covariates={"age": age}), "volume_mm3", "age", structure="hypothalamus"
        )
        held.append(row["r_low"].item() <= -0.4 <= row["r_high"].item())
    assert 0.93 <= np.mean(held) <= 0.97


def test_intervals_after_adjustment_for_the_head_hold_the_truth():
    """Volumes on a line with the ICV and 30 mm3 less in patients: covariate and residual are to find them."""
    rng, held = np.random.default_rng(13), {"covariate": [], "residual": [], "slope": []}
    for _ in range(STUDIES // 2):
        icv = rng.normal(1.5e6, 1.3e5, 60)
        group = np.repeat(["control", "PLS"], 30)
        volume = 850 + 2e-4 * (icv - 1.5e6) + rng.normal(0, 40, 60) - np.where(group == "PLS", 30, 0)
        ds = make_results(volume, icv, covariates={"group": group})
        table = stats.compare_icv_adjustments(ds, reference="control").set_index("method")
        for method in ("covariate", "residual"):
            held[method].append(table.loc[method, "difference_low"] <= -30 <= table.loc[method, "difference_high"])
        relation = stats.relate_to_icv(ds, reference="control").iloc[0]
        held["slope"].append(relation.slope_low <= 2e-4 <= relation.slope_high)
    assert {name: 0.93 <= np.mean(found) <= 0.97 for name, found in held.items()} == dict.fromkeys(held, True)
