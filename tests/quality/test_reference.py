"""The file of what was measured on good-quality scans."""

import pytest

from hypodask.core.errors import ModelError
from hypodask.quality import MEASURES
from hypodask.quality.reference import Reference, load_reference, save_reference


def test_the_shipped_reference_knows_measures_that_exist_and_says_where_it_is_from():
    reference = load_reference()
    assert set(reference.ranges) <= {measure.name for measure in MEASURES}
    assert {"noise", "asymmetry", "border_entropy", "unseen", "sides"} <= set(reference.ranges)
    assert all(limits.low <= limits.high and limits.scans > 0 for limits in reference.ranges.values())
    assert "public scans" in reference.measured_on


def test_what_is_saved_is_read_back(tmp_path):
    text = save_reference(load_reference(), tmp_path).read_text()
    assert Reference.from_json(text) == load_reference()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", r"cannot be read: it holds \[\]"),
        ("{}", "lacks 'measured_on'"),
        (load_reference().to_json().replace('"low"', '"lo"'), "'lo', which is not known; .*perhaps 'low' is meant"),
        (load_reference().to_json().replace('"low": ', '"low": 1e999, "high": '), "low = inf; a finite number is"),
    ],
)
def test_a_damaged_reference_says_what_is_wrong_and_how_to_make_it_again(text, problem):
    with pytest.raises(
        ModelError, match=f"the file of reference ranges.*{problem}.*benchmarks\\.validation\\.quality reference"
    ):
        Reference.from_json(text)
