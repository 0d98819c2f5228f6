"""The header of FreeSurfer's MGH and MGZ files, and the same information as a NIfTI-1 header."""

from typing import Any

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header

from hypodask.core.errors import NoTransformError, NotScalarError
from hypodask.scan.checks import check_affine, check_positive, check_spacing
from hypodask.scan.layout import Layout, volume_shape
from hypodask.scan.source import Source

_MGH_HEADER: Any = MGHHeader
_NIFTI_HEADER: Any = Nifti1Header
_START = b"\0\0\0\1"
_BYTES = 284
_GOOD_RAS = slice(28, 30)  # read from the bytes, because nibabel replaces the directions if the flag is 0
_DTYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def is_mgh(start: bytes) -> bool:
    """Whether a file with these first bytes claims to be MGH, version 1."""
    return start == _START


def read_mgh_layout(start: bytes, source: Source) -> Layout:
    """Read a header whose first four bytes were already read from the source."""
    block = start + source.read_exactly(_BYTES - len(start), what="header")
    # The last fields of nibabel's header, TR and angles, are behind the voxels in the file and not needed here.
    header = _MGH_HEADER(block.ljust(_MGH_HEADER.template_dtype.itemsize, b"\0"), check=False)
    shape = volume_shape(tuple(int(n) for n in header["dims"]))
    if int(header["type"]) not in _DTYPES:
        raise NotScalarError(
            f"the voxels have MGH type {int(header['type'])}; one integer or float per voxel is needed: mri_convert it"
        )
    if int.from_bytes(block[_GOOD_RAS], "big", signed=True) < 1:
        raise NoTransformError(
            "the header says that its directions are not to be trusted (goodRASFlag 0); they are needed to tell left "
            "from right: convert the scan from DICOM again"
        )
    stated_mm = check_positive(header["delta"])
    with np.errstate(all="ignore"):
        scanner_from_vox = np.asarray(header.get_affine(), dtype=np.float64)
    check_affine(scanner_from_vox)
    check_spacing(scanner_from_vox, stated_mm)
    return Layout(shape, np.dtype(_DTYPES[int(header["type"])]), _BYTES, scanner_from_vox, header=b"")


def nifti_header(layout: Layout) -> bytes:
    """A NIfTI-1 header for a volume that has none; its affine must have passed the checks."""
    header = _NIFTI_HEADER()
    header.set_data_dtype(layout.dtype.newbyteorder("="))
    header.set_data_shape(layout.shape)
    header.set_qform(layout.scanner_from_vox, code="scanner")
    header.set_sform(layout.scanner_from_vox, code="scanner")
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = layout.slope, layout.intercept
    header["vox_offset"] = _NIFTI_HEADER.single_vox_offset
    block: bytes = header.as_byteswapped("<").binaryblock
    return block
