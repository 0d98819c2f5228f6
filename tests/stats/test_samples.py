import numpy as np
import pytest
from datasets import make_results

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.stats.samples import group_labels, group_names, samples, values_of


def test_a_group_without_a_name_is_nobodys_group():
    ds = make_results([800, 810, 820, 830, 840], covariates={"group": ["a", "", None, np.nan, "n/a"]})
    assert group_labels(ds, "group").tolist() == ["a", "", "", "", ""]
    assert group_names(group_labels(ds, "group")) == ["a"]


def test_numbered_groups_read_as_whole_numbers_despite_a_gap():
    ds = make_results([800, 810, 820], covariates={"group": [1.0, np.nan, 2.0]})
    assert group_labels(ds, "group").tolist() == ["1", "", "2"]


def test_the_reference_comes_first_and_must_exist():
    labels = np.array(["PLS", "control", "ALS"], dtype=object)
    assert group_names(labels, "control") == ["control", "ALS", "PLS"]
    with pytest.raises(ResultsError, match=r"'CON'.*'ALS', 'PLS', 'control'"):
        group_names(labels, "CON")


def test_everything_left_out_is_counted():
    ds = make_results([800, 810, np.nan, 830, 840, np.inf], covariates={"group": ["a"] * 6}, failed=[3])
    ds = ds.assign(excluded=("scan", [True, False, False, True, False, False]))
    sample = samples(ds, "volume_mm3", structure="hypothalamus", by="group")["a"]
    assert (sample.n, sample.missing, sample.excluded) == (2, 3, 1)


def test_a_missing_column_names_the_cure():
    ds = make_results([800.0])
    with pytest.raises(ResultsError, match="normalize_icv"):
        values_of(ds, "normalized_volume_mm3", "hypothalamus")
    with pytest.raises(ResultsError, match=r"participants\.tsv"):
        group_labels(ds, "group")
    with pytest.raises(ResultsError, match="no structure 'amygdala'"):
        values_of(ds, "volume_mm3", "amygdala")
    with pytest.raises(ResultsError, match="no structure None"):
        values_of(ds, "volume_mm3")
    with pytest.raises(ResultsError, match="not numbers"):
        values_of(ds, "status")


def test_the_summary_of_an_empty_group_is_nan_not_a_warning():
    ds = make_results([800, 820, 900], covariates={"group": ["a", "a", "b"]}, failed=[2])
    table = stats.summarize_groups(ds, "volume_mm3", structure="hypothalamus").set_index("group")
    assert table.loc["a", ["n", "mean", "low", "high"]].tolist() == [2, 810, 800, 820]
    assert table.loc["b", "n"] == 0
    assert table.loc["b", ["mean", "sd", "median"]].isna().all()


def test_public_names_are_what_is_exported():
    assert sorted(stats.__all__) == stats.__all__
    assert all(hasattr(stats, name) for name in stats.__all__)
