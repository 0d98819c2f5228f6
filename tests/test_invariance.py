"""Simulated heads: what must not matter leaves the volumes as they are, and what must follow is followed.

``benchmarks/validation/invariance.py`` makes the same changes to real scans, and more of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import hypodask
from benchmarks.validation.invariance_changes import CHANGES, EXPONENTS, MEASURED_SIZES, Subject
from benchmarks.validation.invariance_outcome import ANSWERED, DONE, Outcome, compared, outcome_of
from hypodask.phantom import HeadOptions, simulate_head

PERSON = 3
OPTIONS = HeadOptions(spacing_mm=(1.2, 1.2), neck=False)


@dataclass(frozen=True, eq=False)
class Head:
    """A simulated head, and what hypodask says of it."""

    subject: Subject
    outcome: Outcome


@lru_cache(maxsize=1)
def networks():
    return hypodask.load_models()


@pytest.fixture(scope="module")
def head() -> Head:
    """One head, measured as it is."""
    scan, _ = simulate_head(PERSON, options=OPTIONS)
    outcome = outcome_of(scan, networks())
    assert outcome.status == DONE
    return Head(Subject(scan, outcome.icv), outcome)


def after(head: Head, name: str) -> dict[str, object]:
    """The row of one change."""
    change = CHANGES[name]
    outcome = outcome_of(change.apply(head.subject), networks() if change.is_measured else None)
    return compared(change, head.subject.scan.grid, head.outcome, outcome)


MENDED_SOON = {
    "coil": "a surface coil's shading hides the head from the search",
    "gamma": "the networks see another contrast",
}
"""Goals by group of changes that this head does not reach yet, and why."""


def cases(names: Iterable[str]) -> list[Any]:
    """Changes to test, goals that are not reached yet marked as such."""
    reasons = {name: MENDED_SOON.get(CHANGES[name].group) for name in names}
    marks = {name: [pytest.mark.xfail(reason=why, strict=False)] if why else [] for name, why in reasons.items()}
    return [pytest.param(name, marks=marks[name]) for name in names]


@pytest.mark.parametrize("name", cases(["mirrored", "axes-kij-i", "padded-2", "offset-0.25"]))
def test_what_must_not_matter_does_not(name, head):
    row = after(head, name)
    assert row["held"] == "yes", row


@pytest.mark.thorough
@pytest.mark.parametrize("name", cases([name for name in CHANGES if not name.startswith(("size", "unchanged"))]))
def test_nothing_that_must_not_matter_does(name, head):
    row = after(head, name)
    assert row["held"] == "yes", row


@pytest.mark.parametrize("name", ["size-0.90", "size-1.10"])
def test_a_smaller_or_larger_head_has_its_commissures_in_the_same_place(name, head):
    row = after(head, name)
    assert row["held"] == "yes", row


@pytest.mark.thorough
def test_volumes_grow_with_the_cube_of_the_size_of_a_head(head):
    cubes = {f"size-{factor:.2f}": factor**3 for factor in MEASURED_SIZES if factor != 1}
    rows = [after(head, name) for name in cubes]
    assert {row["status"] for row in rows} <= set(ANSWERED)
    for structure in ("hypothalamus", "icv"):
        volumes = np.log([row[f"{structure}_mm3"] for row in rows])
        assert EXPONENTS[0] <= np.polyfit(np.log(list(cubes.values())), volumes, 1)[0] <= EXPONENTS[1], structure
