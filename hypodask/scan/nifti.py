"""The header of NIfTI-1 and -2 files: where the voxels are in the file, and where they are in the scanner.

Which affine is used: the sform if ``sform_code > 0``, else the qform if ``qform_code > 0``; otherwise the scan is
refused. This is the rule of nibabel and niworkflows, and so of fMRIPrep. The two may differ in position and angle, as
SPM and registration to a template do on purpose; then the sform is used and the scan has a warning. If one of the two
is the mirror image of the other, left and right cannot be told, and the scan is refused. A scan is also refused if its
affine and ``pixdim`` give different voxel sizes, because one of the two volumes of a voxel must be wrong.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy import ndarray

from hypodask.core.errors import (
    BadTransformError,
    NonFiniteError,
    NoTransformError,
    NotScalarError,
    UnreadableScanError,
    VoxelSizeError,
)
from hypodask.scan.checks import check_affine, check_positive, check_spacing
from hypodask.scan.layout import Layout, volume_shape
from hypodask.scan.source import Source

_KINDS: dict[int, Any] = {348: Nifti1Header, 540: Nifti2Header}
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_NOT_SCALAR = {32: "complex", 128: "RGB", 1792: "complex", 2048: "complex", 2304: "RGBA"}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""By the spatial part of ``xyzt_units``: unknown (taken as mm, as all tools do), metre, mm, micron."""

_DISAGREEMENT_MM = 1.0
_DISAGREEMENT_DEG = 1.0
"""Sform and qform differ if the centre of the volume moves further than this, or if the angle is larger."""


def is_nifti(start: bytes) -> bool:
    """Whether a file with these first bytes claims to be NIfTI or ANALYZE, in either byte order."""
    return len(start) == 4 and any(int.from_bytes(start, order) in _KINDS for order in ("little", "big"))


def read_nifti_layout(start: bytes, source: Source) -> Layout:
    """Read a header whose first four bytes, ``start``, were already read from the source.

    Raises
    ------
    ScanError
        A subclass for each reason, such as a missing transform or a voxel type that is no number.
    """
    little = int.from_bytes(start, "little") in _KINDS
    size = int.from_bytes(start, "little" if little else "big")
    block = start + source.read_exactly(size - 4, what="header")
    header = _KINDS[size](block, "<" if little else ">", check=False)
    _check_magic(header, size)
    return _layout(header, size)


def _layout(header: Any, size: int) -> Layout:
    shape = volume_shape(tuple(int(n) for n in header["dim"][1 : 1 + _dimension_count(header)]))
    dtype = _dtype(header)
    slope, intercept = _scale(header)
    mm = _mm_per_unit(header)
    pixdim_mm = check_positive(header["pixdim"][1:4]) * mm
    scanner_from_vox = _scanner_from_vox(header, mm)
    check_affine(scanner_from_vox)
    check_spacing(scanner_from_vox, pixdim_mm)
    _check_handedness(header, scanner_from_vox)
    warnings = _transform_warnings(header, scanner_from_vox, shape, mm)
    offset = _offset(header, size)
    rewritten = _plain_header(header, shape, mm, slope, intercept)
    return Layout(shape, dtype, offset, scanner_from_vox, rewritten, slope, intercept, warnings)


def _check_magic(header: Any, size: int) -> None:
    magic = bytes(header["magic"].item())
    if magic[:3] in (b"n+1", b"n+2"):
        return
    if magic[:3] in (b"ni1", b"ni2"):
        raise UnreadableScanError(
            "this is the header of a .hdr/.img pair; a single .nii or .nii.gz file is needed: convert it"
        )
    if size == 348:
        raise NoTransformError(
            "this is an ANALYZE 7.5 file, which does not say where its voxels are or which side is left; NIfTI with "
            "sform or qform is needed: convert the scan from DICOM again"
        )
    raise UnreadableScanError(f"the header begins like NIfTI but has magic {magic!r}: it is damaged, convert again")


def _dimension_count(header: Any) -> int:
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise UnreadableScanError(
            f"the header has {count} dimensions; 1 to 7 are possible: it is damaged, convert again"
        )
    return count


def _dtype(header: Any) -> np.dtype:
    code = int(header["datatype"])
    if code in _NOT_SCALAR:
        raise NotScalarError(
            f"the voxels are {_NOT_SCALAR[code]} (datatype {code}); one number per voxel is needed: "
            "export the magnitude image"
        )
    if code not in _DTYPES:
        raise UnreadableScanError(
            f"the header has datatype {code}; integers or floats of up to 64 bits are needed: convert the scan"
        )
    dtype: np.dtype = np.dtype(header.endianness + _DTYPES[code])
    return dtype


def _offset(header: Any, size: int) -> int:
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset >= size):
        raise UnreadableScanError(
            f"the header says that voxels begin at byte {offset:g}, but it is {size} bytes long itself: it is damaged, "
            "convert again"
        )
    return int(offset)


def _scale(header: Any) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise NonFiniteError(f"the slope is {slope:g} but the intercept {intercept}: write a finite scl_inter")
    return slope, intercept


def _mm_per_unit(header: Any) -> float:
    code = int(header["xyzt_units"]) & 7
    if code not in _MM_PER_UNIT:
        raise VoxelSizeError(f"the spatial unit has code {code}; 1 (m), 2 (mm), 3 (micron) or 0 is needed: correct it")
    return _MM_PER_UNIT[code]


def _scanner_from_vox(header: Any, mm: float) -> Float[ndarray, "4 4"]:
    if header["sform_code"] > 0:
        scanner_from_vox = header.get_sform()
    elif header["qform_code"] > 0:
        scanner_from_vox = _qform(header)
    else:
        raise NoTransformError(
            "neither sform_code nor qform_code is set, so nothing says where the voxels are or which side is left; "
            "one of them is needed: convert the scan from DICOM again"
        )
    return _in_mm(np.asarray(scanner_from_vox, dtype=np.float64), mm)


def _qform(header: Any) -> Float[ndarray, "4 4"]:
    try:
        scanner_from_vox: ndarray = np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, HeaderDataError) as err:
        raise BadTransformError(f"the qform is no rotation ({err}); convert the scan from DICOM again") from err
    return scanner_from_vox


def _in_mm(affine: Float[ndarray, "4 4"], mm: float) -> Float[ndarray, "4 4"]:
    scanner_from_vox: ndarray = affine * np.array([[mm], [mm], [mm], [1.0]])
    return scanner_from_vox


def _check_handedness(header: Any, scanner_from_vox: Float[ndarray, "4 4"]) -> None:
    # The quaternion is a rotation, so only pixdim[0] tells whether the qform mirrors.
    mirrored = np.linalg.det(scanner_from_vox[:3, :3]) < 0
    if header["sform_code"] > 0 and header["qform_code"] > 0 and mirrored != (header["pixdim"][0] < 0):
        raise BadTransformError(
            "sform and qform are mirror images of each other, so left and right cannot be told; "
            "set the code of the wrong one to 0, or convert the scan from DICOM again"
        )


def _transform_warnings(
    header: Any, scanner_from_vox: Float[ndarray, "4 4"], shape: tuple[int, int, int], mm: float
) -> tuple[str, ...]:
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return ()
    try:
        other = _in_mm(_qform(header), mm)
    except BadTransformError as err:
        return (f"The sform was used; {err}.",)
    if not np.isfinite(other).all():
        return ("The sform was used; the qform is not finite.",)
    distance_mm, angle_deg = _difference(scanner_from_vox, other, shape)
    if distance_mm <= _DISAGREEMENT_MM and angle_deg <= _DISAGREEMENT_DEG:
        return ()
    return (f"The sform was used; the qform differs from it by {distance_mm:.1f} mm and {angle_deg:.1f} degrees.",)


def _difference(
    a_from_vox: Float[ndarray, "4 4"], b_from_vox: Float[ndarray, "4 4"], shape: tuple[int, int, int]
) -> tuple[float, float]:
    """How far the centre of the volume moves (mm), and by which angle (degrees), between two affines."""
    centre = np.array([*((np.array(shape) - 1) / 2), 1.0])
    distance_mm = float(np.linalg.norm((a_from_vox - b_from_vox) @ centre))
    a, b = (m[:3, :3] / np.maximum(np.linalg.norm(m[:3, :3], axis=0), 1e-30) for m in (a_from_vox, b_from_vox))
    cosine = (np.trace(a.T @ b) - 1) / 2
    return distance_mm, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _plain_header(header: Any, shape: tuple[int, int, int], mm: float, slope: float, intercept: float) -> bytes:
    """The same header, little-endian, for the three-dimensional volume, in mm, with the slope and intercept in use."""
    plain = header.as_byteswapped("<")
    plain["dim"] = [3, *shape, 1, 1, 1, 1]
    plain["pixdim"][1:4] *= mm
    for name in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        plain[name] *= mm
    plain["xyzt_units"] = (int(header["xyzt_units"]) & ~7) | 2
    plain["scl_slope"], plain["scl_inter"] = slope, intercept
    plain["vox_offset"] = type(header).single_vox_offset
    block: bytes = plain.binaryblock
    return block
