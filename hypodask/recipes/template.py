"""Outline of the hypothalamus of the MNI152 template, for phantoms."""

import logging
from pathlib import Path

import numpy as np

from hypodask.alignment import align
from hypodask.alignment.search import ADULT_STRETCH
from hypodask.grid import Grid
from hypodask.labels import HYPOTHALAMUS
from hypodask.recipes.figures import made
from hypodask.recipes.hypothalamus import sharpened
from hypodask.scan import Scan
from hypodask.segmentation.keras_import import import_hypothalamus_seg
from hypodask.segmentation.teacher import consensus
from hypodask.template import mni152_brain

log = logging.getLogger(__name__)


def outline_template(data: Path, work: Path) -> None:
    """Outline the hypothalamus of the MNI152 template, for phantoms: ``hypothalamus_mni152.npz``.

    The template is larger than adult heads: the published network is shown it at adult size. No network is trained on
    this head, so that phantoms made of it are new to those shipped.
    """
    brain = mni152_brain()
    pose = align(Scan(brain.data, Grid(brain.grid.shape, brain.grid.space_from_vox, "scanner"))).acpc_from_scanner
    adult = np.diag([*ADULT_STRETCH, 1.0]) @ pose
    corner = np.diag([0.5, 0.5, 0.5, 1.0])
    corner[:3, 3] = (-15.75, -20.75, -24.75)
    grid = Grid((64, 64, 64), adult @ corner, "acpc")
    weights = next((data / "models").glob("*.h5"))
    outlines, volumes = consensus(brain, adult, import_hypothalamus_seg(weights), grid)
    log.info("runs %s mm3, consensus %.0f mm3", volumes.round(), outlines.posteriors[1:].sum() * 0.125)
    sharp = sharpened(outlines.posteriors[1:])
    sides = [sharp[[label.index - 1 for label in HYPOTHALAMUS.of(side)]].sum(0) for side in ("left", "right")]
    posteriors = np.round(255 * np.stack(sides)).astype(np.uint8)
    np.savez_compressed(made(work) / "hypothalamus_mni152.npz", posteriors=posteriors, mni_from_vox=corner)
