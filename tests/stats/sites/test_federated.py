import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from array_types import unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_sites import simulate

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.stats.sites.federated import SiteSummary

PARTS = [f"part_{k}" for k in range(6)]
ASKED = {"structures": PARTS, "covariates": ["age", "group"], "levels": {"group": ["control", "PLS"]}}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_study():
    ds = simulate(np.random.default_rng(2), sites=4, n=60, effect=40)
    return ds.isel(scan=np.arange(240) % 60 < np.array([60, 40, 50, 45])[np.arange(240) // 60])


STUDY = make_study()


def documents(ds, **changes) -> list[str]:
    """What each site sends."""
    asked = ASKED | changes
    sites = np.unique(ds.site.to_numpy())
    parts = {name: ds.isel(scan=ds.site.to_numpy() == name) for name in sites}
    return [stats.summarize_site(part, name=name, **asked).to_json() for name, part in parts.items()]


def rows_of(ds) -> pd.DataFrame:
    columns = {name: ds[name].to_numpy() for name in ("site", "age", "group")}
    return pd.DataFrame(columns | {"y": ds.volume_mm3.to_numpy()[:, 3]})


@pytest.mark.parametrize(
    "formula", ["y ~ C(group, Treatment('control')) + age", "y ~ C(group, Treatment('control')) + age + C(site)"]
)
def test_the_pooled_regression_is_that_of_all_rows(formula):
    table = stats.pool_regression(documents(STUDY), site_effects="site" in formula).set_index(["structure", "term"])
    fit = smf.ols(formula, rows_of(STUDY)).fit()
    for term, name in (("age", "age"), ("group=PLS", "C(group, Treatment('control'))[T.PLS]")):
        row = table.loc[("part_3", term)]
        expected = fit.params[name], fit.bse[name], *fit.conf_int().loc[name], fit.pvalues[name], fit.df_resid
        found = row[["estimate", "se", "low", "high", "p", "df"]].to_numpy(dtype=float)
        np.testing.assert_allclose(found, expected, **EXACT)
        assert (row.n, row.sites, row.reason) == (195, 4, "")


def test_a_numbered_scanner_is_a_category_in_the_pooled_regression():
    ds = STUDY.assign_coords(scanner=("scan", np.arange(195) % 3 + 1))
    asked = {"covariates": ["age", "scanner"], "levels": {"scanner": [1, 2, 3]}, "fewest": 3}
    table = stats.pool_regression(documents(ds, **asked)).set_index(["structure", "term"])
    fit = smf.ols("y ~ age + C(scanner) + C(site)", rows_of(ds).assign(scanner=ds.scanner.to_numpy())).fit()
    for level in ("2", "3"):
        row, name = table.loc[("part_3", f"scanner={level}")], f"C(scanner)[T.{level}]"
        np.testing.assert_allclose([row.estimate, row.se, row.p], [f[name] for f in (fit.params, fit.bse, fit.pvalues)])


def test_a_site_where_nobody_has_one_of_the_levels_says_what_it_has():
    with pytest.raises(ResultsError, match=r"none of \['patient', 'healthy'\]; it has \['PLS', 'control'\]"):
        documents(STUDY, levels={"group": ["patient", "healthy"]})


@pytest.mark.parametrize(
    "options", [{}, {"prior": "nonparametric"}, {"prior": "none"}, {"mean_only": True}, {"reference": "s01"}]
)
def test_the_pooled_model_is_that_of_all_rows(options):
    pooled = stats.pool_combat(documents(STUDY), **options)
    expected = stats.harmonize(STUDY, covariates=["age", "group"], **options).harmonized_volume_mm3
    sent_back = stats.ComBat.from_json(pooled.to_json())
    for name in pooled.sites:
        own = STUDY.site.to_numpy() == name
        found = stats.apply_combat(STUDY.isel(scan=own), sent_back).harmonized_volume_mm3
        np.testing.assert_allclose(found, expected.isel(scan=own), rtol=1e-10)


def test_the_pooled_model_of_the_controls_is_that_of_their_rows():
    pooled = stats.pool_combat(documents(STUDY, covariates=["age"], on="control"))
    expected = stats.fit_combat(STUDY, covariates=["age"], on="control")
    for name in ("shift", "variance_ratio", "mean", "sd", "coefficients", "n"):
        np.testing.assert_allclose(getattr(pooled, name), getattr(expected, name), **EXACT)
    assert pooled.on == "control"


def test_the_pooled_meta_analysis_is_that_of_all_rows():
    sent = stats.pool_effects(documents(STUDY), term="group=PLS", structure="part_3")
    whole = stats.compare_sites(
        STUDY, "volume_mm3", structure="part_3", group="PLS", reference="control", covariates=["age"]
    )
    for name in ("n", "estimate", "se", "low", "high", "t", "df", "p"):
        np.testing.assert_allclose(sent[name], whole[name], **EXACT)
    fit = smf.ols("y ~ C(group, Treatment('control')) + age", rows_of(STUDY).query("site == 's02'")).fit()
    np.testing.assert_allclose(sent.set_index("site").loc["s02", "se"], fit.bse.iloc[1], **EXACT)
    combined = (stats.combine_sites(table).drop(columns=["method", "reason"]) for table in (sent, whole))
    np.testing.assert_allclose(*combined, rtol=1e-10)


def test_nothing_of_one_person_is_in_the_document():
    text = documents(STUDY)[0]
    sent = {float(value) for value in _numbers(json.loads(text))}
    own = STUDY.isel(scan=STUDY.site.to_numpy() == "s00")
    persons = {*own.volume_mm3.to_numpy().ravel().tolist(), *own.age.to_numpy().tolist()}
    assert len(sent) > 20
    assert not sent & persons


def _numbers(content):
    if isinstance(content, dict | list):
        parts = content.values() if isinstance(content, dict) else content
        return [number for part in parts for number in _numbers(part)]
    return [content] if isinstance(content, int | float) else []


def test_scans_that_lack_a_structure_are_in_no_sum_and_are_counted():
    ds = STUDY.copy(deep=True)
    ds.volume_mm3[3, 2] = np.nan
    own = ds.isel(scan=ds.site.to_numpy() == "s00")
    found = stats.summarize_site(own, name="s00", **ASKED)
    without = stats.summarize_site(own.isel(scan=np.arange(60) != 3), name="s00", **ASKED)
    assert (found.n, found.incomplete, without.incomplete) == (59, 1, 0)
    np.testing.assert_array_equal(found.xy, without.xy)


def test_a_site_with_few_persons_sends_nothing():
    own = STUDY.isel(scan=STUDY.site.to_numpy() == "s00")
    with pytest.raises(ResultsError, match="s00 has 9 complete scans, and sums of fewer than 10 do not leave a site"):
        stats.summarize_site(own.isel(scan=slice(9)), name="s00", **ASKED)
    assert stats.summarize_site(own.isel(scan=slice(9)), name="s00", **ASKED, fewest=1).n == 9


@pytest.mark.parametrize("level", ["control", "PLS"])
def test_a_category_with_one_person_is_not_sent(level):
    own = STUDY.isel(scan=STUDY.site.to_numpy() == "s00")
    other = {"control": "PLS", "PLS": "control"}[level]
    own = own.assign_coords(group=("scan", np.where(np.arange(60) == 0, level, other)))
    with pytest.raises(ResultsError, match=f"s00 has 1 complete scans with group={level}"):
        stats.summarize_site(own, name="s00", **ASKED)


def test_a_site_without_patients_takes_part_in_the_regression_and_not_in_the_meta_analysis():
    kept = (STUDY.site.to_numpy() != "s01") | (STUDY.group.to_numpy() == "control")
    sent = documents(STUDY.isel(scan=kept))
    effects = stats.pool_effects(sent, term="group=PLS", structure="part_0").set_index("site")
    assert effects.loc["s01", "reason"] == "the covariate or group is the same in every scan"
    row = stats.pool_regression(sent).set_index(["structure", "term"]).loc[("part_3", "group=PLS")]
    fit = smf.ols("y ~ C(group, Treatment('control')) + age + C(site)", rows_of(STUDY.isel(scan=kept))).fit()
    assert row.p == pytest.approx(fit.pvalues["C(group, Treatment('control'))[T.PLS]"], rel=1e-9)


def _changed(**values):
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:50], "the summary of a site cannot be read as JSON .*; have it made again"),
        (_changed(schema="other"), "is a document .*, needed .*: make it anew"),
        (_changed(version=99), "is a document .*, needed .*: make it anew"),
        (_changed(rows=[1, 2]), "has 'rows', which is not known; it may have site, variable"),
        (_changed(yy=[1.0]), r"has yy of shape \(1,\), needed \(6,\): have it made again"),
        (_changed(yy=[-1.0] * 6), "cannot be those of scans"),
        (_changed(n=-5), "cannot be those of scans"),
        (_changed(n="60"), "has n = '60'; a whole number is needed"),
        (_changed(mean_y=[float("nan")] * 6), "cannot be those of scans"),
        (_changed(xy=[[1e9, 1e9]] * 6), "cannot be those of scans"),
    ],
)
def test_a_damaged_document_is_refused(spoil, message):
    sent = documents(STUDY)
    with unchecked(), pytest.raises(ResultsError, match=message):
        stats.pool_regression([spoil(sent[0]), *sent[1:]])


def test_sites_that_were_not_asked_alike_are_not_pooled():
    sent = documents(STUDY)
    with pytest.raises(ResultsError, match="give one of each site"):
        stats.pool_regression([*sent, sent[0]])
    with pytest.raises(ResultsError, match="give one of each site"):
        stats.pool_regression([])
    with pytest.raises(ResultsError, match="different covariates"):
        stats.pool_combat([sent[0], *documents(STUDY, covariates=["age"])[1:]])
    with pytest.raises(ResultsError, match="no 'group=ALS' in the summaries"):
        stats.pool_effects(sent, term="group=ALS", structure="part_0")
    with pytest.raises(ResultsError, match="levels every site must know"):
        documents(STUDY, levels=None)
    with pytest.raises(ResultsError, match=r"no structure \['icv'\]"):
        documents(STUDY, structures=["icv"])


@settings(deadline=None, max_examples=10)
@given(st.randoms(use_true_random=False))
def test_order_of_sites_and_scans_changes_nothing(random):
    moved = documents(STUDY.isel(scan=random.sample(range(195), 195)))
    random.shuffle(moved)
    was, now = stats.pool_combat(documents(STUDY)), stats.pool_combat(moved)
    assert was.sites == now.sites
    np.testing.assert_allclose(now.shift, was.shift, rtol=1e-8)
    np.testing.assert_allclose(
        stats.pool_regression(moved)["p"], stats.pool_regression(documents(STUDY))["p"], rtol=1e-8
    )


def test_a_document_survives_being_written_and_read():
    sent = documents(STUDY)[0]
    assert SiteSummary.from_json(sent).to_json() == sent
