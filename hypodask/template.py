"""The MNI152 2009a brain that nilearn ships: the template heads are aligned to, and phantoms are made of.

Brain only, 1 mm, T1-weighted, symmetric (Fonov et al., NeuroImage 2011). It comes inside the nilearn
package, so nothing is downloaded.
"""

import gzip
import hashlib
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files

import numpy as np
from nibabel import Nifti1Image

from hypodask.errors import ModelError
from hypodask.grid import Grid
from hypodask.scan import Scan

AC_MNI_MM = (0.0, 2.93, -4.90)
PC_MNI_MM = (0.0, -25.08, -2.17)
"""Commissures in MNI152 2009 space, mm: mean of the AFIDs raters on MNI152NLin2009cAsym (Lau et al.,
Hum Brain Mapp 2019), with x = 0 because the 2009a template is symmetric."""

BRAIN_FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
"""Where nilearn keeps the brain. Its own function for it would import scikit-learn into every worker: 1.4 s of CPU
time and 60 MiB, a third of the time that the method takes to import."""


@lru_cache(maxsize=1)
def mni152_brain() -> Scan:
    """T1-weighted MNI152 brain: float32 in [0, 1], 0 outside the brain; ``grid.space`` is ``mni``.

    Raises
    ------
    ModelError
        If the nilearn that is installed keeps it elsewhere.
    """
    image = Nifti1Image.from_bytes(gzip.decompress(_brain_file()))
    data = np.asarray(image.dataobj, dtype=np.float32)
    data /= data.max()
    data.setflags(write=False)
    return Scan(data, Grid(data.shape, image.affine, "mni"), source="nilearn MNI152 2009a")


@lru_cache(maxsize=1)
def template_digest() -> str:
    """The sha256 of the brain's file.

    Raises
    ------
    ModelError
        If the nilearn that is installed keeps it elsewhere.
    """
    return hashlib.sha256(_brain_file()).hexdigest()


def _brain_file() -> bytes:
    try:
        return files("nilearn").joinpath(BRAIN_FILE).read_bytes()
    except FileNotFoundError as err:
        raise ModelError(
            f"nilearn {version('nilearn')} has no {BRAIN_FILE}, the brain that heads are aligned to; "
            "install another nilearn; versions 0.11 to 0.14 have it"
        ) from err
