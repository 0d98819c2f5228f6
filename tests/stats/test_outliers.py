from typing import get_args

import numpy as np
import pandas as pd
import pytest
from datasets import grouped_results, make_results
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.stats.outliers import Quantiles, _quantile

columns = hnp.arrays(float, st.integers(1, 30), elements=st.integers(-999, 999) | st.just(np.nan))
whole_volumes = st.lists(st.integers(0, 2000), min_size=4, max_size=40)


@pytest.mark.parametrize("definition", get_args(Quantiles))
@settings(deadline=None, max_examples=30)
@given(columns)
def test_quantiles_are_numpys_without_nan(definition, values):
    finite = values[np.isfinite(values)]
    for fraction in (0.25, 0.75) if len(finite) else ():
        expected = np.quantile(finite, fraction, method=definition)
        np.testing.assert_allclose(_quantile(finite.copy(), fraction, definition), expected, atol=1e-9)


def test_fences_by_hand():
    ds = grouped_results({"a": np.array([1.0, 2, 3, 4, 5, 100]), "b": np.array([100.0, 101, 102])})
    fences = stats.iqr_fences(ds).set_index(["group", "structure"])
    assert fences.loc[("a", "hypothalamus")].tolist() == [6, -1.5, 8.5]
    marked = stats.find_outliers(ds)
    assert marked.outlier.sel(structure="hypothalamus").to_numpy().tolist() == [False] * 5 + [True] + [False] * 3
    assert marked.excluded.to_numpy().sum() == 1
    assert stats.exclude(marked).sizes["scan"] == 8


def test_marking_leaves_the_dataset_given_untouched():
    ds = grouped_results({"a": np.arange(5.0)})
    stats.find_outliers(ds)
    assert "outlier" not in ds


def test_only_the_chosen_structures_exclude():
    ds = make_results([800, 801, 802, 803, 804], [1.0, 1.1, 1.2, 1.3, 9.0], covariates={"group": ["a"] * 5})
    assert stats.find_outliers(ds).excluded.to_numpy().tolist() == [False] * 4 + [True]
    assert not stats.find_outliers(ds, structures=["hypothalamus"]).excluded.any()
    with pytest.raises(ResultsError, match="amygdala"):
        stats.find_outliers(ds, structures=["amygdala"])


def test_failed_scans_and_nan_volumes_never_enter_the_quartiles():
    volumes = [800, 810, 820, 830, 1400]
    alone = stats.iqr_fences(make_results(volumes, covariates={"group": ["a"] * 5}))
    ds = make_results([*volumes, np.nan, 5000], covariates={"group": ["a"] * 7}, failed=[6])
    ds["volume_mm3"][6] = 5000.0
    fences = stats.iqr_fences(ds)
    pd.testing.assert_frame_equal(fences[fences.structure != "icv"], alone[alone.structure != "icv"])
    marked = stats.find_outliers(ds)
    assert marked.outlier.sel(structure="hypothalamus").to_numpy().tolist() == [False] * 4 + [True, False, False]
    assert marked.excluded.to_numpy().tolist() == [False] * 4 + [True, False, True]


def test_a_group_that_failed_altogether_has_nan_fences():
    ds = make_results([800, 810], covariates={"group": ["a", "a"]}, failed=[0, 1])
    assert stats.iqr_fences(ds)[["low", "high"]].isna().all(axis=None)
    assert stats.find_outliers(ds).excluded.all()


def test_exclusions_are_listed_with_the_fence_they_crossed():
    ds = grouped_results({"a": np.array([1.0, 2, 3, 4, 5, 100]), "b": np.array([-70.0, 10, 11, 12, 13])})
    listed = stats.list_exclusions(stats.find_outliers(ds))
    assert listed[["scan", "group", "structure", "side"]].to_numpy().tolist() == [
        ["sub-005", "a", "hypothalamus", "above"],
        ["sub-006", "b", "hypothalamus", "below"],
    ]
    assert listed.loc[0, "high"] == 8.5
    with pytest.raises(ResultsError, match="find_outliers"):
        stats.exclude(ds)


@settings(max_examples=40, deadline=None)
@given(whole_volumes, st.randoms(use_true_random=False), st.sampled_from([1, 2, 1024]), st.integers(-500, 500))
def test_order_units_and_a_constant_shift_exclude_the_same_scans(volumes, random, unit, shift):
    ds = make_results(volumes, covariates={"group": ["ab"[i % 2] for i in range(len(volumes))]})
    expected = set(stats.exclude(stats.find_outliers(ds)).scan.to_numpy())
    order = random.sample(range(len(volumes)), len(volumes))
    moved = ds.assign(volume_mm3=ds.volume_mm3.where(ds.structure == "icv", (4 * ds.volume_mm3.round() + shift) * unit))
    plain = ds.assign(volume_mm3=ds.volume_mm3.round())
    assert set(stats.exclude(stats.find_outliers(ds.isel(scan=order))).scan.to_numpy()) == expected
    pd.testing.assert_series_equal(
        stats.find_outliers(moved).excluded.to_series(), stats.find_outliers(plain).excluded.to_series()
    )


def test_a_million_volumes_take_no_loop_over_scans():
    rng = np.random.default_rng(0)
    ds = make_results(rng.normal(800, 70, 50_000), covariates={"group": rng.choice(list("abc"), 50_000)})
    rate = float(stats.find_outliers(ds).outlier.sel(structure="hypothalamus").mean())
    assert rate == pytest.approx(0.007, abs=0.002)
