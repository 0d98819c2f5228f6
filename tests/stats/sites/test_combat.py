import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from array_types import unchecked
from combat_reference import make_data
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_sites import dataset, simulate

from hypodask import stats
from hypodask.core.errors import ResultsError

# Printed by neuroCombat 0.2.12: see combat_reference.py.
REFERENCE = json.loads((Path(__file__).parent / "combat_reference.json").read_text(encoding="utf-8"))
WAYS = {
    "parametric": {},
    "nonparametric": {"prior": "nonparametric"},
    "none": {"prior": "none"},
    "mean_only": {"mean_only": True},
    "reference": {"reference": "b"},
}


def reference_data() -> xr.Dataset:
    covariates, volumes = make_data()
    return dataset(volumes, **{name: covariates[name].to_numpy() for name in covariates})


def values(ds) -> np.ndarray:
    return ds.harmonized_volume_mm3.transpose("scan", "structure").to_numpy()


@pytest.mark.parametrize("way", WAYS)
def test_volumes_are_those_of_the_reference_implementation(way):
    found = stats.harmonize(reference_data(), **WAYS[way])
    np.testing.assert_allclose(values(found), REFERENCE[way], rtol=1e-8)
    assert found.harmonized_volume_mm3.attrs["units"] == "mm3"
    assert set(found.harmonized_reason.to_numpy()) == {""}


def test_a_scan_without_a_volume_changes_its_structure_as_if_it_had_not_been_there():
    ds = reference_data()
    holed = ds.copy(deep=True)
    holed.volume_mm3[3, 2] = np.nan
    whole, found = stats.fit_combat(ds, prior="none"), stats.fit_combat(holed, prior="none")
    without = stats.fit_combat(ds.isel(scan=np.arange(38) != 3), prior="none")
    for name in ("mean", "sd", "shift", "variance_ratio", "coefficients"):
        was, now, less = (getattr(model, name) for model in (whole, found, without))
        np.testing.assert_allclose(np.delete(now, 2, axis=-1), np.delete(was, 2, axis=-1), rtol=1e-9)
        np.testing.assert_allclose(now[..., 2], less[..., 2], rtol=1e-9)
    applied = stats.apply_combat(holed, stats.fit_combat(holed))
    assert np.argwhere(np.isnan(values(applied))).tolist() == [[3, 2]]


def test_patients_at_a_site_lose_what_its_controls_show():
    rng = np.random.default_rng(1)
    ds = simulate(rng, sites=6, n=200, effect=100)
    model = stats.fit_combat(ds, covariates=["age"], on="control")
    controls = stats.fit_combat(ds.isel(scan=ds.group.to_numpy() == "control"), covariates=["age"])
    np.testing.assert_array_equal(model.shift, controls.shift)
    found = stats.apply_combat(ds, model)
    for structure in found.structure.to_numpy():
        tested = stats.compare_groups(found, "harmonized_volume_mm3", structure=structure)
        assert tested["difference"].iloc[0] == pytest.approx(-100, abs=15)
    means = found.harmonized_volume_mm3.isel(scan=ds.group.to_numpy() == "control").groupby("site").mean()
    assert float(np.ptp(means.to_numpy(), axis=0).max()) < 30


def test_new_scans_of_a_known_site_are_moved_like_its_old_ones():
    ds = reference_data()
    model = stats.fit_combat(ds)
    new = ds.isel(scan=[0, 20])
    np.testing.assert_allclose(values(stats.apply_combat(new, model)), np.array(REFERENCE["parametric"])[[0, 20]])
    mirrored = ds.isel(structure=[4, 1], scan=[20])
    moved = values(stats.apply_combat(mirrored, model))
    np.testing.assert_allclose(moved, np.array(REFERENCE["parametric"])[[20]][:, [4, 1]])


def test_a_model_survives_being_written_and_read():
    ds = reference_data()
    ds.volume_mm3[:11, 1] = np.nan
    model = stats.fit_combat(ds)
    read = stats.ComBat.from_json(model.to_json())
    assert read.left_out == model.left_out != {}
    np.testing.assert_array_equal(values(stats.apply_combat(ds, read)), values(stats.apply_combat(ds, model)))
    bare = stats.fit_combat(ds, covariates=())
    assert stats.ComBat.from_json(bare.to_json()).covariates == ()
    np.testing.assert_array_equal(
        values(stats.apply_combat(ds, stats.ComBat.from_json(bare.to_json()))), values(stats.apply_combat(ds, bare))
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace('"version": 1', '"version": 2'), "is a document .*, needed .*: make it anew"),
        (lambda text: text[:40], "the ComBat model cannot be read as JSON .*; have it made again"),
        (lambda text: "[1]", r"the ComBat model cannot be read: it holds \[1\]; a table is needed"),
        (lambda text: text.replace('"prior"', '"prio"'), "has 'prio', which is not known; .* perhaps 'prior' is meant"),
        (
            lambda text: text.replace('"sites": [', '"sites": ["x",'),
            "has n of shape .*, needed .*: fit it again",
        ),
    ],
)
def test_a_damaged_model_is_refused(spoil, message):
    with pytest.raises(ResultsError, match=message):
        stats.ComBat.from_json(spoil(stats.fit_combat(reference_data()).to_json()))


def test_what_cannot_be_harmonized_has_a_reason():
    ds = reference_data()
    covariates = {name: ds[name].to_numpy().astype(object) for name in ("site", "age", "sex")}
    covariates["site"][0], covariates["site"][1] = "new", "n/a"
    covariates["age"][2] = np.nan
    covariates["sex"][3] = "n/a"
    spoilt = ds.assign_coords({name: ("scan", column) for name, column in covariates.items()})
    spoilt = spoilt.assign_coords(age=spoilt.age.astype(float))
    found = stats.apply_combat(spoilt, stats.fit_combat(ds))
    assert np.isnan(values(found)).all(axis=1).nonzero()[0].tolist() == [0, 1, 2, 3]
    assert found.harmonized_reason.to_numpy()[:5].tolist() == [
        "no scan of new was in the fit: fit again with scans of it",
        "the scan has no site",
        "the scan has no age",
        "the scan has no sex among ['female', 'male']",
        "",
    ]


def test_a_site_with_one_scan_is_left_out_and_changes_nothing():
    ds = reference_data()
    one = xr.concat([ds, ds.isel(scan=[5]).assign_coords(site=("scan", ["lone"]))], dim="scan")
    found = stats.harmonize(one)
    np.testing.assert_allclose(values(found)[:-1], REFERENCE["parametric"], rtol=1e-8)
    assert np.isnan(values(found)[-1]).all()
    assert found.harmonized_reason.to_numpy()[-1] == "1 scans at lone could be used, an estimate needs 3"


def test_a_constant_structure_is_left_out_and_changes_nothing():
    ds = reference_data()
    flat = ds.isel(structure=[0]).assign_coords(structure=["flat"])
    flat = flat.assign(volume_mm3=flat.volume_mm3 * 0 + 7.1)
    found = stats.harmonize(xr.concat([ds, flat], dim="structure"))
    np.testing.assert_allclose(values(found)[:, :-1], REFERENCE["parametric"], rtol=1e-8)
    assert np.isnan(values(found)[:, -1]).all()
    assert set(found.harmonized_reason.to_numpy()) == {"flat varies in fewer than two sites with 3 volumes"}


def test_a_structure_that_does_not_vary_at_one_site_has_no_estimate_there():
    ds = reference_data()
    ds.volume_mm3[:12, 4] = 500.0
    found = stats.harmonize(ds)
    assert np.isnan(values(found)).nonzero()[0].tolist() == list(range(12))
    assert found.harmonized_reason.to_numpy()[[0, 20]].tolist() == ["part_4 does not vary at a", ""]


def test_a_covariate_that_follows_from_the_site_is_refused():
    ds = reference_data()
    ds = ds.assign_coords(group=("scan", np.where(ds.site == "a", "PLS", "control")))
    with pytest.raises(ResultsError, match=r"\['group=control'\] do not vary within any site|\['group=PLS'\]"):
        stats.fit_combat(ds, covariates=["age", "group"])
    ds = ds.assign_coords(months=("scan", ds.age.to_numpy() * 12.0 + 1), n=("scan", np.full(38, 3.0)))
    with pytest.raises(ResultsError, match=r"\['age', 'months'\] are collinear"):
        stats.fit_combat(ds, covariates=["age", "months"])
    with pytest.raises(ResultsError, match=r"\['n'\] do not vary"):
        stats.fit_combat(ds, covariates=["n"])


def test_a_numbered_scanner_is_a_category():
    """Five scanners numbered 1 to 5, each with its own offset, give the same as five scanners with names."""
    ds = reference_data()
    numbers, names = np.arange(38) % 5 + 1, np.array(["e", "c", "a", "d", "b"])
    numbered = ds.assign_coords(scanner=("scan", numbers))
    named = ds.assign_coords(scanner=("scan", names[numbers - 1]))
    model = stats.fit_combat(numbered, covariates=["age", "scanner"])
    assert model.covariates[1].levels == ("1", "2", "3", "4", "5")
    found, expected = (stats.harmonize(each, covariates=["age", "scanner"]) for each in (numbered, named))
    np.testing.assert_allclose(values(found), values(expected), rtol=1e-9)


def test_a_numbered_sex_is_refused():
    ds = reference_data().assign_coords(sex=("scan", np.arange(38) % 2 + 1))
    with pytest.raises(ResultsError, match=r"'sex' holds \['1', '2'\], needed male and female"):
        stats.fit_combat(ds)


def test_a_scanner_of_failed_scans_alone_is_no_level():
    ds = reference_data()
    scanner = np.where(np.arange(38) == 3, "broken", np.where(np.arange(38) % 2, "b", "a"))
    ds = ds.assign(status=("scan", np.where(np.arange(38) == 3, "failed", "done")))
    ds = ds.assign_coords(scanner=("scan", scanner))
    model = stats.fit_combat(ds, covariates=["age", "scanner"])
    assert model.covariates[1].levels == ("a", "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "scanner"}, "no 'scanner'"),
        ({"variable": "normalized_volume_mm3"}, "normalize_icv"),
        ({"reference": "z"}, "reference site 'z' has no estimate"),
        ({"on": "control", "by": "sex"}, "'control'"),
        ({"prior": "flat"}, "no prior 'flat'"),
        ({"covariates": ["iq"]}, "no 'iq'"),
    ],
)
def test_what_is_not_there_is_named(options, message):
    with unchecked(), pytest.raises(ResultsError, match=message):
        stats.fit_combat(reference_data(), **options)


def test_a_single_structure_or_site_is_refused_with_what_to_do():
    ds = reference_data()
    with pytest.raises(ResultsError, match="prior='none'"):
        stats.fit_combat(ds.isel(structure=[0]))
    alone = stats.harmonize(ds.isel(structure=[0]), prior="none")
    np.testing.assert_allclose(values(alone)[:, 0], np.array(REFERENCE["none"])[:, 0], rtol=1e-8)
    with pytest.raises(ResultsError, match="needs two such sites"):
        stats.fit_combat(ds.isel(scan=ds.site.to_numpy() == "a"))
    with pytest.raises(ResultsError, match="needs two such sites"):
        stats.fit_combat(ds.assign(status=("scan", ["failed"] * 38)))


@settings(deadline=None, max_examples=20)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(WAYS)), st.floats(1e-6, 1e6))
def test_order_names_and_units_change_nothing(random, way, unit):
    ds = reference_data()
    order = random.sample(range(38), 38)
    names = dict(zip("abc", random.sample(["x", "y", "z"], 3), strict=True))
    moved = ds.isel(scan=order, structure=random.sample(range(5), 5))
    moved = moved.assign(volume_mm3=moved.volume_mm3 * unit)
    moved = moved.assign_coords(site=("scan", [names[name] for name in moved.site.to_numpy()]), age=moved.age * 365.25)
    options = WAYS[way] | ({"reference": names["b"]} if way == "reference" else {})
    found = stats.harmonize(moved, **options).harmonized_volume_mm3 / unit
    back = found.sel(structure=ds.structure).isel(scan=np.argsort(order)).transpose("scan", "structure")
    np.testing.assert_allclose(back, REFERENCE[way], rtol=1e-7)


def share_of_findings(studies, **options) -> float:
    """How often Student's test finds a difference between equal groups, at sites with half of each in expectation."""
    rng, found = np.random.default_rng(7), 0
    for _ in range(studies):
        ds = stats.harmonize(simulate(rng, sites=8, n=30), covariates=["age"], **options)
        ill, y = ds.group.to_numpy() == "PLS", values(ds)[:, 0]
        found += scipy.stats.ttest_ind(y[ill], y[~ill]).pvalue < 0.05
    return found / studies


@pytest.mark.thorough
def test_equal_groups_differ_in_five_of_a_hundred_studies():
    assert share_of_findings(4000) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 4000))


@pytest.mark.thorough
def test_a_fit_on_controls_inflates_false_positives_as_much_as_the_page_of_sites_says():
    """More than 5 %: the shifts are estimated from the controls, and Student's test ignores this."""
    assert share_of_findings(4000, on="control") == pytest.approx(0.065, abs=3 * np.sqrt(0.065 * 0.935 / 4000))
