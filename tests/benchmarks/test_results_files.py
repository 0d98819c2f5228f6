"""Figures that a program records are found by the pages, with their unit, their command and their networks."""

import json
import re
import runpy
from pathlib import Path

import pytest

from benchmarks.validation.results import write_results

WRITER = runpy.run_path(str(Path(__file__).resolve().parents[2] / "docs" / "write_figures.py"))


def recorded(folder, **values):
    path = write_results("icv", values, what="The ICV", data="16 images", networks=("icv-border",), folder=folder)
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_record_says_how_its_values_were_measured(tmp_path):
    record = recorded(tmp_path, dice_mean=0.98612345, error_percent_mean=0.8)
    assert record["values"] == {
        "dice_mean": {"value": 0.986123, "unit": ""},
        "error_percent_mean": {"value": 0.8, "unit": "%"},
    }
    assert (record["what"], record["data"]) == ("The ICV", "16 images")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert re.fullmatch(r"[0-9a-f]{64}", record["networks"]["icv-border"]["sha256"])
    assert record["provenance"].startswith("measured with hypodask ")


def test_a_command_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program.py", "/somewhere/private/data", "--images", "4"])
    assert recorded(tmp_path, scans=3)["command"].endswith(" data --images 4")


@pytest.mark.parametrize("values", [{"a b": 1.0}, {"a": float("nan")}, {"a": float("inf")}, {"a": "0.9"}])
def test_what_is_no_figure_is_refused(tmp_path, values):
    with pytest.raises(ValueError, match="finite numbers"):
        recorded(tmp_path, **values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "unit"), [("ac_error_mm_median", "mm"), ("cov_percent_mean", "%"), ("dice_lowest", ""), ("icv_ml", "ml")]
)
def test_a_key_states_its_unit(tmp_path, key, unit):
    assert recorded(tmp_path, **{key: 1.5})["values"][key]["unit"] == unit


def test_a_figure_in_a_sentence_follows_its_results():
    page = (
        "Dice <!-- figure: icv.dice:.2f -->0.50<!-- /figure -->, <!-- figure: icv.seen:.0% -->1 %<!-- /figure --> seen"
    )
    new = WRITER["renewed"](page, {"icv.dice": 0.986, "icv.seen": 0.754})
    assert re.sub(r"<!--.*?-->", "", new) == "Dice 0.99, 75 % seen"
    assert WRITER["renewed"](new, {"icv.dice": 0.986, "icv.seen": 0.754}) == new


def test_a_table_is_written_from_its_template():
    begin = "<!-- begin: docs/tables/icv.md, written by docs/write_figures.py -->"
    figures = WRITER["known_figures"]()
    new = WRITER["renewed"](f"{begin}\nold\n<!-- end -->\nafter", figures)
    assert f"{figures['icv_accuracy.dice_mean']:.3f}" in new
    assert "old" not in new
    assert new.endswith("<!-- end -->\nafter")


def test_a_figure_that_nobody_measured_is_an_error():
    with pytest.raises(SystemExit, match=r"icv\.dice"):
        WRITER["renewed"]("<!-- figure: icv.dice -->0.5<!-- /figure -->", {})
