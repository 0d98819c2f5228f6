"""Labels are found by name; numbers, sides and names never contradict each other."""

import re

import pytest

from hypodask.core.structures import (
    HYPOTHALAMUS,
    HYPOTHALAMUS_SEED,
    HYPOTHALAMUS_SIDES,
    HYPOTHALAMUS_SUBUNITS,
    ICV,
    NAMES,
    LabelTable,
)

TABLES = [HYPOTHALAMUS, HYPOTHALAMUS_SIDES, HYPOTHALAMUS_SEED, HYPOTHALAMUS_SUBUNITS, ICV]
every_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.protocol)


@every_table
def test_numbers_names_and_colours_are_each_used_once(table: LabelTable) -> None:
    for field in ("index", "structure", "abbreviation", "colour"):
        values = [getattr(label, field) for label in table]
        assert len(set(values)) == len(table), field


@every_table
def test_numbers_follow_the_channels_after_background(table: LabelTable) -> None:
    assert [label.index for label in table] == list(range(1, len(table) + 1))


@every_table
def test_the_hemisphere_is_the_one_in_the_name(table: LabelTable) -> None:
    for label in table:
        assert re.search(r"(left|right)$|$", label.structure)[0] == label.hemisphere.replace("both", "")  # type: ignore[index]


@every_table
def test_colours_are_hexadecimal(table: LabelTable) -> None:
    assert all(re.fullmatch("#[0-9a-f]{6}", label.colour) for label in table)


@every_table
def test_results_have_a_place_for_every_label_and_its_whole(table: LabelTable) -> None:
    assert {table.whole, *table.structures} <= set(NAMES)


def test_results_name_no_structure_twice() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_a_label_is_found_by_name() -> None:
    assert HYPOTHALAMUS_SUBUNITS["posterior_right"].index == 8
    assert HYPOTHALAMUS_SUBUNITS["posterior_right"].abbreviation == "R-posHyp"


def test_an_unknown_name_says_which_are_known() -> None:
    with pytest.raises(KeyError, match=r"has no 'amygdala'; it has \['hypothalamus_left'"):
        HYPOTHALAMUS_SIDES["amygdala"]


def test_subunits_are_numbered_as_in_the_published_network() -> None:
    assert [label.index for label in HYPOTHALAMUS_SUBUNITS.of("left")] == [1, 2, 3, 4, 5]
    assert [label.index for label in HYPOTHALAMUS_SUBUNITS.of("right")] == [6, 7, 8, 9, 10]


def test_mirrored_subunits_have_the_same_name() -> None:
    left, right = ([label.structure for label in HYPOTHALAMUS_SUBUNITS.of(side)] for side in ("left", "right"))
    assert [name.replace("left", "right") for name in left] == right
