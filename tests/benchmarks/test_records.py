"""What a program records holds every figure that its results file, and so the pages, have now."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.validation import (
    alignment_accuracy,
    alignment_hard,
    head_size,
    hypothalamus_hard,
    hypothalamus_repeat,
    hypothalamus_shrink,
    icv_accuracy,
    intervals,
    quality,
)
from benchmarks.validation.hypothalamus_heads import ALL_OF_IT, KNOWN_POSE, PUBLISHED
from benchmarks.validation.planting import FAILURES

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
RANDOM = np.random.default_rng(0)
HEADS = ("first", "second", "visualqc_id001_orig")


def table(columns, *, values, **fixed):
    """A row for every combination of columns, with random values near 1."""
    rows = pd.DataFrame(list(product(*columns.values())), columns=list(columns)).assign(failed="", **fixed)
    return rows.assign(**{name: RANDOM.uniform(0.9, 1.1, len(rows)) for name in values})


POINTS = [f"{landmark}_{axis}_mm" for landmark in ("ac", "pc") for axis in "xyz"]
VOLUMES = ["soft_mm3", "outline_mm3", "true_soft_mm3", "true_outline_mm3"]


def accuracy():
    values = [*alignment_accuracy.ERRORS, *alignment_accuracy.OTHER_ERRORS, *POINTS]
    poses = {"head": ("colin27", "mni2009c"), "number": range(5)}
    return alignment_accuracy.accuracy_figures(table(poses, values=values, method="hypodask", flagged=False))


def repeatability():
    poses = {"head": [f"{folder}/a" for folder in ("scans", "scans_stripped", "scans_thick")], "number": range(4)}
    turns = {f"turn_{number}": value for number, value in enumerate(np.eye(3).ravel())}
    return alignment_accuracy.repeatability_figures(table(poses, values=POINTS, flagged=False, **turns))


def hard_alignment():
    return alignment_hard.hard_figures(
        table({"outcome": alignment_hard.OUTCOMES}, values=["ac_error_mm", "pc_error_mm"])
    )


def repeats():
    poses = {"method": (ALL_OF_IT, KNOWN_POSE), "head": HEADS, "case": range(3)}
    return hypothalamus_repeat.repeat_figures(table(poses, values=VOLUMES))


def visits():
    both = {"method": (ALL_OF_IT, KNOWN_POSE, PUBLISHED, "consensus"), "head": HEADS[:2]}
    return hypothalamus_repeat.visit_figures(table(both, values=VOLUMES))


def hard_images():
    cases = {"case": (hypothalamus_hard.UNDEGRADED, *hypothalamus_hard.FIGURE_NAMES), "head": HEADS}
    return hypothalamus_hard.hard_figures(table(cases, values=VOLUMES, method=ALL_OF_IT, number=0))


def shrinkage():
    settings = (hypothalamus_shrink.SAME_POSE, hypothalamus_shrink.OWN_POSE)
    draws = {"setting": settings, "head": HEADS, "level_percent": hypothalamus_shrink.LEVELS_PERCENT}
    return hypothalamus_shrink.shrink_figures(table(draws, values=VOLUMES, method=KNOWN_POSE, number=0))


def maps():
    values = ["error_percent", "dice", "peeled_drift_percent", "contracted_drift_percent", "growth_seen_percent"]
    return icv_accuracy.map_figures(table({"head": HEADS, "number": range(2)}, values=values))


def real_scans():
    return icv_accuracy.real_figures(table({"head": HEADS, "number": range(3)}, values=["icv_ml"]))


def failures():
    return quality.figures_of(
        table({"failure": FAILURES, "head": HEADS}, values=["ours", "rule", "voxel_mm"], refused="")
    )


def covered():
    return intervals.coverage_figures(table({"failure": FAILURES, "head": HEADS}, values=["error", "half_width"]))


def left_out():
    return intervals.left_out_figures(RANDOM.uniform(0.9, 1.1, 9))


def head_sizes():
    draws = {"seed": head_size.SEEDS, "group": ("control", "ALS", "PLS"), "sex": ("F", "M"), "number": range(4)}
    volumes = [f"{kind}_{name}" for kind in ("true", "found") for name in head_size.STRUCTURES]
    scans = table(draws, values=volumes, stamp="all", flagged=False)
    return head_size.head_size_figures(scans, *head_size.compare_studies(scans))


PROGRAMS = {
    "head_size": head_sizes,
    "alignment_accuracy": accuracy,
    "alignment_repeatability": repeatability,
    "alignment_hard": hard_alignment,
    "hypothalamus_repeat": repeats,
    "hypothalamus_visits": visits,
    "hypothalamus_hard": hard_images,
    "hypothalamus_shrink": shrinkage,
    "icv_accuracy": maps,
    "icv_alone": maps,
    "icv_repeat": real_scans,
    "quality": failures,
    "intervals_coverage": covered,
    "intervals_heads": left_out,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_records_every_figure_of_its_file(name):
    figures = PROGRAMS[name]()
    known = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["values"]
    assert set(known) - set(figures) == set()
    assert all(key.isidentifier() and np.isfinite(value) for key, value in figures.items())
