"""Dataclasses as JSON and TOML: written as ever, and refused with the place and the cure where they cannot be meant."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pytest
from jaxtyping import Float
from numpy import ndarray

from hypodask import stats
from hypodask.core.documents import ARRAY, BY_KIND, AnyFloat, from_document, read_table, to_document, to_json, to_toml
from hypodask.core.errors import ResultsError, TrainingError
from hypodask.networks.cards import ModelCard
from hypodask.networks.weights import load_weights, resolve_model
from hypodask.quality.reference import Reference

WRITTEN = Path(__file__).parent / "documents"
"""Documents that hypodask wrote before this module wrote them."""

SHIPPED = Path(stats.__file__).parents[1] / "weights"


class Step(NamedTuple):
    name: str
    length: float


@dataclass(frozen=True)
class Square:
    kind: Literal["square"] = field(default="square", kw_only=True)
    side: int


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"] = field(default="circle", kw_only=True)
    radius: float

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError(f"a circle needs a positive radius, got {self.radius}; give another")


@dataclass(frozen=True)
class Plan:
    name: str
    count: int
    share: float = 0.5
    ready: bool = False
    mode: Literal["fast", "slow"] = "fast"
    sizes: tuple[int, ...] = ()
    corner: tuple[float, float] = (0.0, 0.0)
    steps: tuple[Step, ...] = ()
    shape: Annotated[Square | Circle, BY_KIND] = Square(1)
    shapes: tuple[Square, ...] = ()
    limit: float | None = None
    figures: Mapping[str, int | AnyFloat | str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Table:
    values: Annotated[Float[ndarray, "row column"], ARRAY]


PLAN = Plan(
    name="Köln",
    count=3,
    ready=True,
    sizes=(1, 2),
    corner=(0.5, 1.0),
    steps=(Step("a", 1.0),),
    shape=Circle(2.0),
    shapes=(Square(4),),
    limit=1.5,
    figures={"dice": 0.9, "heads": 9, "measured_on": "9 scans", "icc": float("inf")},
)


def read(**values):
    table = {"name": "a", "count": 1} | values
    return from_document(Plan, table, what="plan.json", error=TrainingError, cure="correct it")


def from_json(cls, text):
    place = {"what": "plan.json", "error": TrainingError, "cure": "fetch it again"}
    return from_document(cls, read_table(text, "JSON", **place), **place)


def table_of(values):
    return from_document(Table, {"values": values}, what="table", error=ResultsError, cure="make it again")


def test_what_is_written_is_read_as_the_same():
    assert from_json(Plan, to_json(PLAN)) == PLAN
    assert from_json(Plan, to_json(PLAN, ensure_ascii=False, indent=2)) == PLAN


def test_keys_are_in_the_order_of_the_fields_and_a_kind_comes_first():
    assert list(to_document(PLAN)) == list(Plan.__dataclass_fields__)
    assert list(to_document(PLAN)["shape"].items()) == [("kind", "circle"), ("radius", 2.0)]


def test_toml_is_read_as_the_same():
    text = to_toml(Circle(2.0))
    assert text == 'kind = "circle"\nradius = 2.0\n'
    place = {"what": "s.toml", "error": TrainingError, "cure": "correct the file"}
    assert from_document(Circle, read_table(text, "TOML", **place), **place) == Circle(2.0)
    with pytest.raises(TrainingError, match=r"s.toml cannot be read as TOML \(.* \(at .*\)\); correct the file"):
        read_table("side = ", "TOML", **place)


def test_a_date_of_toml_is_text():
    place = {"what": "plan.toml", "error": TrainingError, "cure": "correct it"}
    table = read_table("name = 2026-11-28\ncount = 1", "TOML", **place)
    assert from_document(Plan, table, **place).name == "2026-11-28"


def test_a_whole_number_is_a_float_and_stays_one_where_both_are_allowed():
    plan = read(share=1, figures={"heads": 9})
    assert (type(plan.share), type(plan.figures["heads"])) == (float, int)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"cuont": 1},
            "plan.json has 'cuont', which is not known; it may have name, count, .*; perhaps 'count' is meant",
        ),
        ({"count": True}, "plan.json has count = True; a whole number is needed"),
        ({"count": 1.0}, "plan.json has count = 1.0; a whole number is needed"),
        ({"count": None}, "plan.json has count = None; a whole number is needed"),
        ({"name": 3}, "plan.json has name = 3; text in quotes is needed"),
        ({"name": "x" * 500 + "y", "count": "z" * 500}, r"has count = 'z{12,40}\.\.\.z{12,40}'; a whole"),
        ({"share": float("nan")}, "plan.json has share = nan; a finite number is needed"),
        ({"share": False}, "plan.json has share = False; a finite number is needed"),
        ({"share": 10**400}, "has share = 1000.*; a finite number is needed"),
        ({"ready": 1}, "plan.json has ready = 1; true or false is needed"),
        ({"mode": "fats"}, "plan.json has mode = 'fats'; one of 'fast', 'slow' is needed"),
        ({"sizes": "12"}, "plan.json has sizes = '12'; a list, each a whole number is needed"),
        ({"sizes": [1, "2"]}, r"plan.json has sizes\[1\] = '2'; a whole number is needed"),
        ({"corner": [1.0]}, r"plan.json lacks 'corner\[1\]'; add it \(a finite number\)"),
        ({"corner": [1, 2, 3]}, r"plan.json has corner = \[1, 2, 3\]; a list of 2, each a finite number is needed"),
        (
            {"steps": {"a": 1}},
            r"steps = {'a': 1}; a list, each a list of name \(text in quotes\), length \(a finite number\)",
        ),
        ({"steps": [["a"]]}, r"steps\[0\] = \['a'\]; a list of name"),
        ({"steps": [{"a": 1}]}, r"steps\[0\] = {'a': 1}; a list of name"),
        (
            {"steps": [["a", "b"]]},
            r"has steps\[0\] = \['a', 'b'\]; a list of name .*, length \(a finite number\) is needed",
        ),
        ({"shape": 3}, "plan.json has shape = 3; a table is needed"),
        ({"shape": {"side": 1}}, r"plan.json: \[shape\] lacks 'kind'; add it \(one of 'square', 'circle'\)"),
        ({"shape": {"kind": "line"}}, r"plan.json: \[shape\] has kind = 'line'; one of 'square', 'circle' is needed"),
        ({"shape": {"kind": ["square"]}}, r"\[shape\] has kind = \['square'\]; one of"),
        ({"shape": {"kind": "square"}}, r"plan.json: \[shape\] lacks 'side'; add it \(a whole number\)"),
        ({"shape": {"kind": "circle", "radius": -1}}, r"\[shape\] a circle needs a positive radius, got -1.0; give"),
        ({"shapes": [{"side": 1}, {"sid": 2}]}, r"plan.json: \[shapes\[1\]\] has 'sid', .* perhaps 'side' is meant"),
        ({"limit": "a"}, "plan.json has limit = 'a'; a finite number or null is needed"),
        (
            {"figures": {"dice": []}},
            r"plan.json: \[figures\] has dice = \[\]; a whole number or a number or text in quotes",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place_and_what_is_needed(values, problem):
    with pytest.raises(TrainingError, match=problem):
        read(**values)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "plan.json cannot be read as JSON .*; fetch it again"),
        ("[" * 100_000, "plan.json cannot be read as JSON .*; fetch it again"),
        ("3", "plan.json cannot be read: it holds 3; a table is needed; fetch it again"),
        ('{"count": 1}', r"plan.json lacks 'name'; add it \(text in quotes\); fetch it again"),
        ('{"count": ' + "[" * 500 + "]" * 500 + ', "name": ""}', "plan.json cannot be read as JSON .*; fetch it again"),
        ('{"name": "\\ud800"}', "plan.json cannot be read as JSON .*; fetch it again"),
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(text, problem):
    with pytest.raises(TrainingError, match=problem):
        from_json(Plan, text)


@pytest.mark.parametrize("module", ["hypodask", "hypodask.cli", "hypodask.core.errors", "hypodask.core.structures"])
def test_what_reads_no_document_does_not_import_pydantic(module):
    code = f"import sys, {module}; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_null_is_not_a_number_in_an_array():
    text = to_json(Table(np.array([[1.0, np.nan], [np.inf, 2.0]])))
    assert json.loads(text) == {"values": [[1.0, None], [None, 2.0]]}
    table = from_json(Table, text)
    np.testing.assert_array_equal(table.values, [[1.0, np.nan], [np.nan, 2.0]])
    assert table.values.dtype == np.float64


@pytest.mark.parametrize(("values", "shape"), [([], (0, 0)), ([[], []], (2, 0)), ([[1]], (1, 1))])
def test_an_array_without_numbers_has_all_of_its_axes(values, shape):
    assert table_of(values).values.shape == shape


@pytest.mark.parametrize("values", [3, None, "12", {"a": 1}, [1.0], [[1.0], [1.0, 2.0]], [["1"]], [[True]], [[[1.0]]]])
def test_what_is_no_array_is_refused(values):
    with pytest.raises(ResultsError, match=r"table has values = .*; a list of lists of numbers is needed"):
        table_of(values)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("combat", stats.ComBat),
        ("combat_bare", stats.ComBat),
        ("norms", stats.Norms),
        ("summary", stats.SiteSummary),
        ("summary_bare", stats.SiteSummary),
        ("card_icv", ModelCard),
        ("card_icv-border", ModelCard),
    ],
)
def test_documents_of_earlier_versions_are_read_and_written_byte_by_byte_as_they_were(name, kind):
    text = (WRITTEN / f"{name}.json").read_text(encoding="utf-8")
    assert without_frame(kind.from_json(text).to_json()) == text


def without_frame(text):
    """A card as it was before cards said in which frame a network sees."""
    return text.replace(',\n    "frame": "acpc"\n', "\n")


def test_the_shipped_reference_ranges_are_written_as_they_are():
    text = (SHIPPED / "reference.json").read_text(encoding="utf-8")
    assert Reference.from_json(text).to_json() == text


def test_the_card_of_an_earlier_2d_unet_is_written_as_it_was_without_the_options_that_were_dropped():
    text = (WRITTEN / "card_hypothalamus.json").read_text(encoding="utf-8")
    kept = re.sub(r'    "(activation|upsampling)": .*\n', "", text)
    kept = re.sub(r',\n    "space_to_depth": 1\n', "\n", kept)
    assert kept.count("\n") == text.count("\n") - 3
    assert without_frame(ModelCard.from_json(text).to_json()) == kept


@pytest.mark.parametrize("name", ["hypothalamus", "icv", "icv-border", "commissures"])
def test_the_card_beside_shipped_weights_is_the_card_in_them(name):
    beside = json.loads((SHIPPED / f"{name}.json").read_text(encoding="utf-8"))
    del beside["sha256"], beside["parameters"]
    _, card = load_weights(resolve_model(name))
    assert ModelCard.from_json(json.dumps(beside)) == card
