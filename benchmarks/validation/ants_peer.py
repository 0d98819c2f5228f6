"""The peer: affine registration of a template by ANTs, with the template's landmarks carried over.

``pip install antspyx``; it is imported when it is first used. It gets the whole-head template of the other person,
never the image that was posed: MNI2009c for poses of Colin27 and real scans, Colin27 for poses of MNI2009c.
"""

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy import ndarray

from benchmarks.validation.posing import COLIN, IMAGES, MNI, frame, published_head
from hypodask.scan import Scan

LPS = np.array((-1.0, -1.0, 1.0))
"""ITK's axes point to the left and back."""


def installed() -> bool:
    """Whether antspyx is there."""
    return importlib.util.find_spec("ants") is not None


def find_commissures(scan: Scan, folder: Path, name: str, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    """AC, PC and ``acpc_from_scanner`` by ``ants.registration(..., "Affine")``."""
    import ants

    template = COLIN if name == MNI else MNI
    head = published_head(folder, template)
    above = np.linalg.inv(head.acpc_from_scanner) @ (0, 0, 50, 1)
    points = np.array([head.ac_mm, head.pc_mm, above[:3]])
    with TemporaryDirectory(prefix="alignment-ants-") as scratch:
        moving = _image(ants, scan, Path(scratch, "moving.nii"))
        fixed = ants.image_read(str(folder / IMAGES[template]))
        fit = ants.registration(fixed, moving, "Affine", outprefix=f"{scratch}/fit", random_seed=seed + 1)
        # Points go the other way than images: the forward transforms lead from the template to the scan.
        table = pd.DataFrame(points * LPS, columns=["x", "y", "z"])
        moved = ants.apply_transforms_to_points(3, table, fit["fwdtransforms"])[["x", "y", "z"]].to_numpy() * LPS
    ac, pc, above = moved
    right = np.cross(ac - pc, above - ac)
    return ac, pc, frame(ac, pc, right)


def _image(ants: Any, scan: Scan, path: Path) -> Any:
    nib.save(nib.Nifti1Image(scan.stored, scan.grid.space_from_vox), path)
    return ants.image_read(str(path))
