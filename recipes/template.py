"""Soft labels of the hypothalamus in the MNI152 template, for phantoms."""

import logging
from pathlib import Path

import numpy as np

from hypodask.alignment import align
from hypodask.core.grid import Grid
from hypodask.core.structures import HYPOTHALAMUS
from hypodask.learning.teacher import consensus
from hypodask.scan import Scan
from hypodask.scan.template import MNI152
from hypodask.segmentation.published import import_hypothalamus_seg
from recipes.figures import made
from recipes.hypothalamus import sharpened

log = logging.getLogger(__name__)


def segment_template(data: Path, work: Path) -> None:
    """Segment the hypothalamus of the MNI152 template, for phantoms: ``hypothalamus_mni152.npz``.

    The template is larger than adult heads: the published network sees it at adult size. No network is trained on the
    template, so that phantoms made from it are new to the shipped ones.
    """
    brain = MNI152.brain
    pose = align(Scan(brain.data, Grid(brain.grid.shape, brain.grid.space_from_vox, "scanner"))).acpc_from_scanner
    adult = np.diag([*MNI152.adult_stretch, 1.0]) @ pose
    corner = np.diag([0.5, 0.5, 0.5, 1.0])
    corner[:3, 3] = (-15.75, -20.75, -24.75)
    grid = Grid((64, 64, 64), adult @ corner, "acpc")
    weights = next((data / "models").glob("*.h5"))
    found, volumes = consensus(brain, adult, import_hypothalamus_seg(weights), grid)
    log.info("runs %s mm3, consensus %.0f mm3", volumes.round(), found.posteriors[1:].sum() * 0.125)
    sharp = sharpened(found.posteriors[1:])
    sides = [sharp[[label.index - 1 for label in HYPOTHALAMUS.of(side)]].sum(0) for side in ("left", "right")]
    posteriors = np.round(255 * np.stack(sides)).astype(np.uint8)
    np.savez_compressed(made(work) / "hypothalamus_mni152.npz", posteriors=posteriors, mni_from_vox=corner)
