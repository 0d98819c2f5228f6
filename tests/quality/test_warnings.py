"""Warnings: what a reader is told of a volume that few adults have."""

from dataclasses import replace

import numpy as np
from segmentations import ellipsoid, labelled

from hypodask.alignment import Alignment
from hypodask.core.grid import box_grid
from hypodask.core.structures import HYPOTHALAMUS_SEED, HYPOTHALAMUS_SIDES, ICV
from hypodask.quality.score import Quality
from hypodask.quality.warnings import scan_warnings
from hypodask.scan import Scan
from hypodask.segmentation.volumes import measure

BOX = box_grid((48, 48, 40), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
HEAD = box_grid((44, 52, 44), (4.0, 4.0, 4.0), (0.0, -16.0, 8.0))
POSE = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.5, 0]), np.eye(4), score=0.7, flagged=False)
INSIDE = ellipsoid(HEAD, (0.0, -18.0, 12.0), (64.0, 78.0, 62.0))
SIDES = [ellipsoid(BOX, (x, -5.0, -6.0), (4.0, 6.0, 4.0)) for x in (-5.0, 5.0)]


def warnings(hypothalamus_mm3=850.0, icv_mm3=1.5e6, *, table=HYPOTHALAMUS_SIDES, inferred=False):
    """All warnings of a flawless scan but for these volumes."""
    icv = replace(labelled(HEAD, ICV, [INSIDE]), inferred=inferred)
    volumes = {"hypothalamus": measure(labelled(BOX, table, SIDES)), "icv": measure(icv)}
    scan = Scan(np.full(HEAD.shape, 100, np.uint8), HEAD.moved(np.eye(4), "scanner"))
    maps = {"hypothalamus": np.zeros(HEAD.shape, np.uint8), "icv": (INSIDE > 0.5).astype(np.uint8)}
    volume_mm3 = {"hypothalamus": hypothalamus_mm3, "icv": icv_mm3, "hypothalamus_left": 1.0}
    return list(scan_warnings(scan, POSE, volumes, volume_mm3, maps, Quality(1.0, ())))


def test_volumes_that_few_adults_have_are_told():
    assert warnings() == []
    assert warnings(300.0) == ["The hypothalamus of 300 mm3 is outside the usual 500-1400 mm3."]


def test_what_is_usual_depends_on_the_protocol():
    assert warnings(1550.0, table=HYPOTHALAMUS_SEED) == []
    assert warnings(1550.0) == ["The hypothalamus of 1550 mm3 is outside the usual 500-1400 mm3."]
    assert warnings(600.0, table=HYPOTHALAMUS_SEED) == [
        "The hypothalamus of 600 mm3 is outside the usual 750-2100 mm3."
    ]
    assert warnings(1550.0, 1e6, table=HYPOTHALAMUS_SEED) == [
        "The ICV of 1000000 mm3 is outside the usual 1100000-2000000 mm3."
    ]


def test_the_row_says_why_a_stripped_skull_has_no_icv():
    (reason,) = warnings(icv_mm3=float("nan"), inferred=True)
    assert reason.startswith("The skull has been stripped: the boundary of the intracranial volume was not imaged")
    assert "no ICV is given" in reason
