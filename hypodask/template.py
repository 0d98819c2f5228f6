"""The MNI152 2009a brain that nilearn ships: the template heads are aligned to, and phantoms are made of.

Brain only, 1 mm, T1-weighted, symmetric (Fonov et al., NeuroImage 2011). It comes inside the nilearn
package, so nothing is downloaded.
"""

from functools import lru_cache

import numpy as np
from nilearn.datasets import load_mni152_template

from hypodask.grid import Grid
from hypodask.scan import Scan

AC_MNI_MM = (0.0, 2.93, -4.90)
PC_MNI_MM = (0.0, -25.08, -2.17)
"""Commissures in MNI152 2009 space, mm: mean of the AFIDs raters on MNI152NLin2009cAsym (Lau et al.,
Hum Brain Mapp 2019), with x = 0 because the 2009a template is symmetric."""


@lru_cache(maxsize=1)
def mni152_brain() -> Scan:
    """T1-weighted MNI152 brain: float32 in [0, 1], 0 outside the brain; ``grid.space`` is ``mni``."""
    image = load_mni152_template(resolution=1)
    data = np.asarray(image.dataobj, dtype=np.float32)
    data.setflags(write=False)
    return Scan(data, Grid(data.shape, image.affine, "mni"), source="nilearn MNI152 2009a")
