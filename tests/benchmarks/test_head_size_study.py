"""The program compares estimated with true differences and finds the errors that were put in, and no others."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.validation import head_size
from benchmarks.validation.head_size import (
    METHODS,
    PAIRS,
    SEEDS,
    STRUCTURES,
    ErrorModel,
    compare_study,
    describe_errors,
    head_size_figures,
    summarize_studies,
)
from hypodask.core.errors import AlignmentError
from hypodask.phantom import HeadOptions

HYPOTHALAMUS, ICV = STRUCTURES


def make_study(n=24, seed=0, effect=0.12):
    """Labels and true volumes; men have larger heads, patients smaller hypothalami."""
    random = np.random.default_rng(seed)
    labels = pd.DataFrame({"group": np.resize(["control", "ALS", "PLS"], n), "sex": random.choice(["M", "F"], n)})
    icv = np.where(labels["sex"] == "M", 1.56e6, 1.43e6) + random.normal(0, 0.11e6, n)
    scale = np.where(labels["group"] == "control", 1, 1 - effect) * random.normal(1, 0.06, n)
    return labels, pd.DataFrame({HYPOTHALAMUS: 5.3e-4 * icv * scale, ICV: icv})


def find(true, *, bias=0.0, exponent=0.0):
    """Estimated volumes: the hypothalamus too large by a factor and by a power of the head size."""
    size = true[ICV] / true[ICV].mean()
    return true.assign(**{HYPOTHALAMUS: true[HYPOTHALAMUS] * (1 + bias) * size**exponent})


def make_table(*, imaged, exponent=0.19, sd=0.02):
    """All scans of all studies as the program reads them from its files, the first studies imaged."""
    parts = []
    for seed in SEEDS:
        labels, true = make_study(seed=seed)
        found = find(true, bias=0.07, exponent=exponent)
        found *= np.exp(np.random.default_rng(100 + seed).normal(0, sd, true.shape))
        part = labels.assign(seed=seed, flagged=False, stamp="2 networks" if seed <= imaged else "")
        for name in STRUCTURES:
            part[f"true_{name}"], part[f"found_{name}"] = true[name], found[name] if seed <= imaged else np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_true_volumes_as_estimates_leave_no_gap():
    labels, true = make_study()
    table = compare_study(labels, true, true)
    assert table["gap_points"].to_numpy() == pytest.approx(np.zeros(len(METHODS) * len(PAIRS)), abs=1e-12)
    assert (table.loc[table["pair"] != "sex", "true_percent"] < -2).all()


@pytest.mark.parametrize("factor", [0.5, 1.3])
def test_scaling_true_and_estimated_volumes_together_leaves_the_comparison(factor):
    labels, true = make_study()
    found = find(true, bias=0.05, exponent=0.2)
    once, again = compare_study(labels, true, found), compare_study(labels, factor * true, factor * found)
    for column in ("true_percent", "found_percent", "gap_points"):
        assert again[column].to_numpy() == pytest.approx(once[column].to_numpy(), abs=1e-8)


def test_a_bias_that_all_scans_share_leaves_no_gap():
    labels, true = make_study()
    table = compare_study(labels, true, find(true, bias=0.08))
    assert table["gap_points"].abs().max() < 1e-9


def test_the_order_of_the_scans_changes_nothing():
    labels, true = make_study()
    found, order = find(true, exponent=0.2), np.random.default_rng(1).permutation(len(true))
    moved = compare_study(labels.iloc[order], true.iloc[order], found.iloc[order])
    expected = compare_study(labels, true, found)
    assert moved["gap_points"].to_numpy() == pytest.approx(expected["gap_points"].to_numpy(), abs=1e-9)


@pytest.mark.parametrize("exponent", [-0.1, 0.0, 0.19])
def test_an_exponent_that_was_put_in_is_found_again(exponent):
    _, true = make_study(n=60)
    errors = describe_errors(true, find(true, bias=0.05, exponent=exponent))
    assert errors.loc[[HYPOTHALAMUS, "ratio"], "exponent"].to_numpy() == pytest.approx([exponent] * 2, abs=1e-9)
    assert errors.loc[ICV, ["bias_percent", "exponent"]].to_numpy(float) == pytest.approx([0, 0], abs=1e-9)


def test_an_exponent_shows_between_the_sexes_where_volumes_are_divided_by_the_icv_and_not_where_a_power_is_fitted():
    labels, true = make_study(n=240)
    gaps = compare_study(labels, true, find(true, exponent=0.2)).set_index(["method", "pair"])["gap_points"]
    icv = true[ICV].groupby(labels["sex"]).mean()
    assert gaps["proportion", "sex"] == pytest.approx(100 * ((icv["M"] / icv["F"]) ** 0.2 - 1), abs=0.3)
    assert gaps["proportion", "sex"] > 1
    assert abs(gaps["power", "sex"]) < 0.1


def test_simulated_errors_are_those_that_were_fitted():
    _, true = make_study(n=120, seed=1)
    found = find(true, bias=0.07, exponent=0.19) * np.exp(np.random.default_rng(2).normal(0, 0.02, true.shape))
    model = ErrorModel.fit(true, found)
    _, others = make_study(n=4000, seed=3)
    simulated = describe_errors(others, model.simulate(others, np.random.default_rng(4)))
    fitted = describe_errors(true, found)
    for column, margin in (("bias_percent", 0.5), ("sd_percent", 0.3), ("exponent", 0.05)):
        assert simulated[column].to_numpy() == pytest.approx(fitted[column].to_numpy(), abs=margin)


def test_errors_that_shrink_differences_are_fitted_as_such():
    _, true = make_study(n=120)
    ratio = true[HYPOTHALAMUS] / true[ICV]
    found = true.assign(**{HYPOTHALAMUS: true[HYPOTHALAMUS] * (ratio / ratio.mean()) ** -0.1})
    model = ErrorModel.fit(true, found)
    assert model.coefficients[1:, 0] == pytest.approx([0, -0.1], abs=1e-9)
    assert np.abs(model.residuals).max() < 1e-9
    assert describe_errors(true, found)["relative_exponent"].to_numpy() == pytest.approx([-0.1, 0, -0.1], abs=1e-9)


def test_only_wholly_imaged_studies_count_as_imaged_and_refused_scans_count_nowhere():
    table = make_table(imaged=5)
    table.loc[table.index[table["seed"] == 3][:2], [f"found_{name}" for name in STRUCTURES]] = np.nan
    table.loc[table.index[table["seed"] == 5][0], "stamp"] = ""
    assert head_size.find_imaged(table) == [1, 2, 3, 4]
    studies, errors = head_size.compare_studies(table)
    assert errors.loc["ratio", "scans"] == 4 * 24 - 2
    assert sorted(studies.loc[studies["imaged"], "seed"].unique()) == [1, 2, 3, 4]
    assert studies["seed"].nunique() == len(SEEDS)
    figures = head_size_figures(table, studies, errors)
    assert (figures["refused"], figures["studies_imaged"], figures["scans_imaged"]) == (2, 4, 96)
    assert all(key.isidentifier() and np.isfinite(value) for key, value in figures.items())


def test_what_falls_short_is_said(capsys):
    head_size.show(*head_size.compare_studies(make_table(imaged=5)))
    leaking = capsys.readouterr().out
    head_size.show(*head_size.compare_studies(make_table(imaged=5, exponent=0.0, sd=1e-4)))
    sound = capsys.readouterr().out
    assert f"head size, |r| of 0.2 or more: {HYPOTHALAMUS} +" in leaking
    assert "Studies, imaged: seeds 1, 2, 3, 4, 5" in leaking
    assert "points from the truth on average: none" in sound


def test_the_summary_gives_mean_spread_and_largest_gap():
    table = pd.DataFrame({"method": "none", "pair": "als", "true_percent": [-10.0, -12], "found_percent": [-9.0, -14]})
    row = summarize_studies(table.assign(gap_points=[1.0, -2.0])).loc["none", "als"]
    assert row.to_dict() == {"studies": 2, "true_percent": -11, "found_percent": -11.5, "gap_points": -0.5} | {
        "gap_sd_points": pytest.approx(np.sqrt(4.5)),
        "gap_largest_points": 2,
    }


def test_scans_are_measured_once_and_again_for_other_networks(tmp_path, monkeypatch):
    calls = []
    coarse = [person_with_coarse_voxels(person) for person in head_size.people_of(1)[:2]]

    def refuse(scan, networks):
        calls.append(networks)
        raise AlignmentError("no human head was found")

    class Named:
        def __init__(self, name):
            self.name = name

    monkeypatch.setattr(head_size, "people_of", lambda seed: coarse)
    monkeypatch.setattr(head_size, "measure_scan", refuse)
    monkeypatch.setattr(head_size, "load_models", lambda: (Named("first"),))
    head_size.image_studies(tmp_path, [1])
    head_size.image_studies(tmp_path, [1])
    assert len(calls) == 2
    kept = json.loads((tmp_path / "1" / f"{coarse[0].participant_id}.json").read_text())
    assert "no human head" in kept["reason"]
    monkeypatch.setattr(head_size, "load_models", lambda: (Named("second"),))
    head_size.image_studies(tmp_path, [1])
    assert len(calls) == 4


def person_with_coarse_voxels(person):
    options = HeadOptions(spacing_mm=(8.0, 8.0), hypothalamus_scale=person.options.hypothalamus_scale)
    return type(person)(person.participant_id, person.covariates, person.seed, options)
