"""The file of what sound scans measure."""

import pytest

from hypodask.errors import ModelError
from hypodask.quality import MEASURES
from hypodask.reference import Reference, load_reference, save_reference


def test_the_shipped_reference_knows_measures_that_exist_and_says_where_it_is_from():
    reference = load_reference()
    assert set(reference.ranges) <= {measure.name for measure in MEASURES}
    assert {"noise", "asymmetry", "border_entropy", "unseen", "sides"} <= set(reference.ranges)
    assert all(limits.low <= limits.high and limits.scans > 0 for limits in reference.ranges.values())
    assert "public scans" in reference.measured_on


def test_what_is_saved_is_read_back(tmp_path):
    text = save_reference(load_reference(), tmp_path).read_text()
    assert Reference.from_json(text) == load_reference()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ranges": {"noise": {"low": 1}}}'])
def test_a_damaged_reference_says_how_to_make_it_again(text):
    with pytest.raises(ModelError, match=r"benchmarks\.quality reference"):
        Reference.from_json(text)
