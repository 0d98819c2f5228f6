"""Simulated heads: what must not matter leaves the volumes as they are, and what must follow is followed.

``benchmarks/validation/invariance.py`` makes the same changes to real scans, and more of them.
"""

from dataclasses import dataclass
from functools import lru_cache

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


def is_being_mended(name: str, reason: str):
    """A goal that is not reached yet."""
    return pytest.param(name, marks=pytest.mark.xfail(reason=reason, strict=False))


@pytest.mark.parametrize("name", ["16-bit", "axes-kij-i", "mirrored", "padded-2", "offset-0.25"])
def test_what_must_not_matter_does_not(name, head):
    row = after(head, name)
    assert row["held"] == "yes", row


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in CHANGES if not name.startswith(("size", "unchanged"))])
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
