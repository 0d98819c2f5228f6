"""A row is small, plain and can be asked by name."""

import json
import math
import pickle
from dataclasses import fields

import pytest

from hypodask.core.row import Row
from hypodask.core.variables import DERIVED, RESULTS, VARIABLES

FAILED = Row("sub-02", "failed", stage="read", error="TruncatedScanError", reason="the file ends early")
DONE = Row("sub-01", "done", volume_mm3={"icv": 1.5e6, "hypothalamus": 850.0}, quality=0.9)


def test_a_row_is_asked_for_fields_and_structures() -> None:
    assert DONE["icv"] == 1.5e6
    assert DONE["quality"] == 0.9
    assert FAILED["reason"] == "the file ends early"


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="'amygdala' is neither a field of a row nor a structure it measured"):
        DONE["amygdala"]


@pytest.mark.parametrize("row", [DONE, FAILED])
def test_a_row_survives_the_way_from_a_worker(row: Row) -> None:
    back = pickle.loads(pickle.dumps(row))  # noqa: S301 - our own bytes
    assert json.dumps(back.as_dict()) == json.dumps(row.as_dict())


def test_a_volume_that_is_not_a_number_comes_back_from_json_as_one() -> None:
    """In JSON it is null, also within the volumes."""
    row = Row.from_dict({"scan": "a", "status": "done", "quality": None, "volume_mm3": {"icv": None, "x": 2.0}})
    assert math.isnan(row.quality)
    assert math.isnan(row["icv"])
    assert row["x"] == 2.0


def test_a_row_as_a_dict_is_of_plain_values() -> None:
    assert {type(value) for value in DONE.as_dict().values()} <= {str, float, bool, dict}


def test_rows_share_no_volumes() -> None:
    assert Row("a", "done").volume_mm3 is not Row("b", "done").volume_mm3


def test_every_field_is_a_variable_of_the_results() -> None:
    assert {field.name for field in fields(Row)} == {"scan"} | {variable.name for variable in RESULTS}


def test_volumes_are_the_fields_with_a_structure() -> None:
    per_structure = {variable.name for variable in RESULTS if "structure" in variable.dims}
    assert {name for name, value in DONE.as_dict().items() if isinstance(value, dict)} == per_structure


def test_variables_are_named_once_and_described() -> None:
    assert len(VARIABLES) == len(RESULTS) + len(DERIVED)
    assert all(variable.description.endswith(".") for variable in VARIABLES.values())


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_units_end_the_name(name: str) -> None:
    if VARIABLES[name].units in {"mm", "mm3"}:
        assert name.endswith("_" + VARIABLES[name].units)
