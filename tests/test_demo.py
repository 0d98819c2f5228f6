"""The demo holds what was found against what was simulated, and accounts for every scan."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console
from scipy.stats import ttest_ind

from hypodask import demo
from hypodask.phantom import hypothalamus
from hypodask.phantom.cohort import EFFECT_PERCENT, draw_people, group_sizes, simulate_cohort
from hypodask.phantom.head import HeadOptions, draw_head_map
from hypodask.phantom.truth import measure_truth
from hypodask.storage.store import mark_done, write_record
from hypodask.study.cohort import Cohort
from hypodask.study.results import assemble

GROUPS = np.repeat(["control", "ALS", "PLS"], [10, 12, 8])
TRUE_MM3 = np.random.default_rng(0).normal(800, 60, 30) * np.where(GROUPS == "control", 1.0, 0.88)
TRUE_ICV_MM3 = np.random.default_rng(1).normal(1.5e6, 1e5, 30)


def results(*, bias: float = 1.0, failed: int = 0) -> xr.Dataset:
    """Thirty scans whose hypothalami were found ``bias`` times as large as they are; the last ones failed."""
    table = pd.DataFrame(
        {
            "scan": [f"sub-{number:03d}" for number in range(30)],
            "participant_id": [f"sub-{number:03d}" for number in range(30)],
            "group": GROUPS,
            "true_hypothalamus_mm3": TRUE_MM3,
            "true_icv_mm3": TRUE_ICV_MM3,
        }
    )
    rows = [
        {"scan": scan, "status": "done", "volume_mm3": {"hypothalamus": bias * volume, "icv": icv}}
        for scan, volume, icv in zip(table["scan"], TRUE_MM3, TRUE_ICV_MM3, strict=True)
    ]
    for row in rows[30 - failed :]:
        row.update(status="failed", volume_mm3={})
    return assemble(table, rows)


def test_the_default_demo_has_ninety_percent_power_for_its_effect_and_a_smaller_one_has_not() -> None:
    assert (demo._plan_demo(demo._SCANS)["detectable_percent"] <= EFFECT_PERCENT).all()
    assert (demo._plan_demo(demo._SCANS - 1)["detectable_percent"] > EFFECT_PERCENT).any()
    assert demo._SCANS <= 40


def test_the_planned_power_is_that_of_simulated_studies() -> None:
    random, sizes = np.random.default_rng(3), group_sizes(demo._SCANS)
    drawn = {
        name: (1 if name == "control" else 1 - EFFECT_PERCENT / 100) * random.normal(1, 0.07, (4000, size - 1))
        for name, size in sizes.items()
    }
    for patients in ("ALS", "PLS"):
        assert np.mean(ttest_ind(drawn[patients], drawn["control"], axis=1).pvalue < 0.05) >= 0.9


def test_more_scans_find_smaller_differences_and_tiny_groups_promise_nothing() -> None:
    found = np.array([demo._plan_demo(scans)["detectable_percent"] for scans in (12, 24, 30, 60, 300)])
    assert (np.diff(found, axis=0) < 0).all()
    for scans in (3, 4, 9):
        assert "left to chance" in demo._as_power(demo._plan_demo(scans))
    assert demo._as_power(demo._plan_demo(30)).endswith("of 10.4 % (ALS) and 11.5 % (PLS) with a power of 90 %.")


@pytest.mark.thorough
def test_true_volumes_vary_as_the_plan_of_the_demo_supposes() -> None:
    """Whoever changes how heads are drawn measures the spread again."""
    people = draw_people(100, seed=77, effect_percent=0)
    truths = [measure_truth(draw_head_map(one.seed, one.options)).volume_mm3 for one in people]
    relative = np.array([truth["hypothalamus"] / truth["icv"] for truth in truths])
    assert 100 * relative.std(ddof=1) / relative.mean() == pytest.approx(6.4, abs=1.0)


def test_a_bias_is_shown_in_every_group() -> None:
    table = demo._compare_with_truth(results(bias=1.05)).set_index(["structure", "group"])
    assert table.loc["hypothalamus", "bias_percent"].to_numpy() == pytest.approx([5, 5, 5, 5])
    assert table.loc["icv", "bias_percent"].to_numpy() == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert table.loc["hypothalamus", "r"].to_numpy() == pytest.approx([1, 1, 1, 1])
    assert table.loc[("hypothalamus", "all"), "true_mean"] == pytest.approx(TRUE_MM3.mean())


def test_scans_that_failed_are_not_compared() -> None:
    table = demo._compare_with_truth(results(failed=8)).set_index(["structure", "group"])
    assert table.loc["icv", "n"].tolist() == [10, 12, 0, 22]
    assert np.isnan(table.loc[("icv", "PLS"), "bias_percent"])


def test_effects_are_shown_beside_the_true_ones() -> None:
    table = demo._compare_effects(results(bias=1.2))
    assert table[["group_a", "group_b"]].to_numpy().tolist()[0] == ["ALS", "control"]
    assert table["percent"].to_numpy() == pytest.approx(table["true_percent"].to_numpy())
    assert (table["percent"][:2] < -5).all()


def test_tables_are_printed_whole_and_a_missing_group_is_said() -> None:
    text = io.StringIO()
    one_group = results().isel(scan=slice(10, 22))
    demo._show(one_group, Console(file=text, width=160))
    assert "Truth beside estimate" in text.getvalue()
    assert "could not be compared" in text.getvalue()


def test_distances_of_commissures_come_from_the_stores(tmp_path: Path) -> None:
    found = results().isel(scan=[0])
    found["store"] = ("scan", ["scans/one"])
    found["acpc_distance_mm"] = ("scan", [26.0])
    acpc_from_scanner = np.eye(4)
    acpc_from_scanner[:3, 3] = -1.0, -2.0, -3.0
    write_record(str(tmp_path / "scans/one"), "alignment", {"acpc_from_scanner": acpc_from_scanner.tolist()})
    mark_done(str(tmp_path / "scans/one"), {})
    truth = {"participant_id": "sub-000", "ac_x_mm": 1.0, "ac_y_mm": 2.0, "ac_z_mm": 3.5}
    truth |= {"pc_x_mm": 1.0, "pc_y_mm": -24.0, "pc_z_mm": 3.0}
    folder = tmp_path / "bids" / "derivatives" / "phantom"
    folder.mkdir(parents=True)
    pd.DataFrame([truth]).to_csv(folder / "truth.tsv", sep="\t", index=False)
    errors = demo._commissure_errors(found, str(tmp_path), tmp_path / "bids")
    assert errors.to_dict("list") == {"ac_mm": [pytest.approx(0.5)], "pc_mm": [pytest.approx(0.0)]}


@pytest.mark.skipif(not hypothalamus._HYPOTHALAMUS_FILE.exists(), reason="the template's hypothalamus is not installed")
def test_every_simulated_scan_is_in_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run itself is replaced by one in which every scan is refused."""

    def refuse_all(cohort: Cohort, _url: str, *, workers: int) -> xr.Dataset:
        assert workers == 1
        return assemble(cohort.table, [{"scan": scan, "status": "failed"} for scan in cohort.table["scan"]])

    coarse = partial(simulate_cohort, options=HeadOptions(spacing_mm=(8.0, 8.0)))
    monkeypatch.setattr(demo, "simulate_cohort", coarse)
    monkeypatch.setattr(demo, "process", refuse_all)
    monkeypatch.setattr(demo, "write_report", lambda out: f"{out}/report.html")
    found = demo.run_demo(str(tmp_path), scans=4, workers=1)
    assert found["status"].to_numpy().tolist() == ["failed"] * 4
    assert pd.Series(found["group"].to_numpy()).value_counts()["ALS"] == group_sizes(4)["ALS"]
    assert "report.html" in capsys.readouterr().out
