import numpy as np
import pytest
from datasets import make_results

from hypodask import stats
from hypodask.errors import ResultsError

TWO_GROUPS = {"group": ["control", "control", "PLS", "PLS"]}


def test_equation_1_by_hand():
    ds = make_results([800, 900, 850, 850], [1.4e6, 1.6e6, 1.5e6, 1.2e6], covariates=TWO_GROUPS)
    found = stats.normalize_icv(ds, reference="control").normalized_volume_mm3.sel(structure="hypothalamus")
    assert found.to_numpy().tolist() == pytest.approx([800 * 1.5 / 1.4, 900 * 1.5 / 1.6, 850, 850 * 1.5 / 1.2])


def test_a_head_scaled_as_a_whole_has_the_same_normalized_volume():
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
    assert found.sel(structure="icv").isnull().all()
    assert found.attrs["units"] == "mm3"


def test_a_reference_without_usable_scans_is_refused():
    ds = make_results([800, 900, 850, 850], covariates=TWO_GROUPS, failed=[0, 1])
    with pytest.raises(ResultsError, match="no usable ICV in the reference group 'control'"):
        stats.normalize_icv(ds, reference="control")
    with pytest.raises(ResultsError, match="'healthy'"):
        stats.normalize_icv(ds, reference="healthy")
