"""Outline of the hypothalamus of the MNI152 template, for phantoms."""

import logging
from pathlib import Path

import numpy as np

from hypodask.alignment import align
from hypodask.alignment.search import ADULT_STRETCH
from hypodask.grid import Grid
from hypodask.recipes.figures import made
from hypodask.scan import Scan
from hypodask.segmentation.keras_import import import_hypothalamus_seg
from hypodask.segmentation.teacher import ConsensusOptions, consensus
from hypodask.template import mni152_brain

log = logging.getLogger(__name__)

WHOLE_HEAD_BRIGHT, TEMPLATE_BRIGHT = 1.51, 1.11
"""The 99.5th percentile of a scan over the white matter around its hypothalamus: mean of seven whole heads
(1.11 to 1.93), and the template."""


def outline_template(data: Path, work: Path) -> None:
    """Outline the hypothalamus of the MNI152 template, for phantoms: ``hypothalamus_mni152.npz``.

    The template is larger than adult heads and has no scalp. The published network is shown it at adult size
    and as bright as brains are in whole heads: as it is, volumes would vary three times as much between runs.
    No network is trained on this head, so that phantoms made of it are new to those shipped.
    """
    brain = mni152_brain()
    pose = align(Scan(brain.data, Grid(brain.grid.shape, brain.grid.space_from_vox, "scanner"))).acpc_from_scanner
    adult = np.diag([*ADULT_STRETCH, 1.0]) @ pose
    corner = np.diag([0.5, 0.5, 0.5, 1.0])
    corner[:3, 3] = (-15.75, -20.75, -24.75)
    grid = Grid((64, 64, 64), adult @ corner, "acpc")
    weights = next((data / "models").glob("*.h5"))
    options = ConsensusOptions(bright=WHOLE_HEAD_BRIGHT / TEMPLATE_BRIGHT)
    outlines, volumes = consensus(brain, adult, import_hypothalamus_seg(weights), grid, options=options)
    log.info("runs %s mm3, consensus %.0f mm3", volumes.round(), outlines.posteriors[1:].sum() * 0.125)
    posteriors = np.round(255 * outlines.posteriors[1:]).astype(np.uint8)
    np.savez_compressed(made(work) / "hypothalamus_mni152.npz", posteriors=posteriors, mni_from_vox=corner)
