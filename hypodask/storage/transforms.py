"""The AC-PC pose of a scan in the file formats of other tools, and the scan resampled by it.

All of them hold ``acpc_from_scanner``, a 4x4 matrix of RAS+ mm, in one of three forms:

- ``itk``: for ANTs, SimpleITK and 3D Slicer. In LPS mm, and from the resampled image to the scan, because ITK computes
  for every voxel of the result where it lies in the scan;
- ``fsl``: for ``flirt -applyxfm -init``. From the scan to the resampled image, in the voxels of each image times their
  size, with the first axis reversed if the affine has a positive determinant. It is valid for one pair of grids only;
- ``matrix``: the four rows of the matrix, RAS+ mm.
"""

import gzip
from os import PathLike, fspath
from typing import Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.errors import TransformError
from hypodask.core.grid import Grid, head_grid
from hypodask.files.location import Location
from hypodask.image.resampling import resample
from hypodask.scan.scan import Scan

_Kind = Literal["itk", "fsl", "matrix"]
_Affine = Float[ndarray, "4 4"]
Path = str | PathLike[str]

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""``lps_from_ras``, and also ``ras_from_lps``."""

_ITK_HEADER = "#Insight Transform File V1.0"
_ITK_KINDS = ("AffineTransform_double_3_3", "MatrixOffsetTransformBase_double_3_3")
"""The first is written. ANTs writes the second."""

_ALIGNED_SPACING_MM = 1.0
"""Voxel size of the resampled image."""


def save_transform(path: Path, acpc_from_scanner: _Affine, *, kind: _Kind = "itk", scan: Grid | None = None) -> None:
    """Write a pose for another tool.

    Parameters
    ----------
    path
        File or fsspec URL. ITK wants ``.txt`` or ``.tfm``, FSL ``.mat``.
    acpc_from_scanner
        Rigid transform, RAS+ mm.
    kind
        ``itk``, ``fsl`` or ``matrix``.
    scan
        Grid of the scan, for ``fsl``. The reference image is then that of :func:`save_aligned`.

    Raises
    ------
    TransformError
        If ``kind`` is ``fsl`` and no grid is given.

    Examples
    --------
    >>> pose = np.eye(4)
    >>> pose[:3, 3] = 1.5, -2.0, 3.0
    >>> save_transform("memory://pose/acpc.txt", pose)
    >>> load_transform("memory://pose/acpc.txt")[:3, 3].tolist()
    [1.5, -2.0, 3.0]
    """
    Location(fspath(path)).write(_written(acpc_from_scanner, kind, scan).encode())


def load_transform(path: Path, *, scan: Grid | None = None) -> _Affine:
    """``acpc_from_scanner`` from a file that :func:`save_transform` wrote, or another tool in its place.

    Parameters
    ----------
    path
        ITK's text is recognised by its first line. Four rows of four numbers are read as ``matrix``.
    scan
        Grid of the scan. If it is given, four rows of four numbers are read as ``fsl``.

    Raises
    ------
    TransformError
        If there is no such file, or it holds no affine.
    """
    name = fspath(path)
    try:
        text = Location(name).read().decode()
        if text.startswith(_ITK_HEADER):
            return np.linalg.inv(_scanner_from_acpc_of_itk(text))
        found = _matrix(text)
    except FileNotFoundError:
        raise TransformError(f"there is no transform {name}; correct the path") from None
    except (ValueError, np.linalg.LinAlgError) as err:
        raise TransformError(f"{name} holds no affine transform ({err}); give ITK's text or four rows of four") from err
    if scan is None:
        return found
    return _space_from_fsl(head_grid(_ALIGNED_SPACING_MM)) @ found @ np.linalg.inv(_space_from_fsl(scan))


def save_aligned(path: Path, scan: Scan, acpc_from_scanner: _Affine) -> None:
    """Write the scan resampled into AC-PC space: cubic B-splines, 1 mm, float32, as NIfTI.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``; file or fsspec URL.
    scan
        The scan as it was read.
    acpc_from_scanner
        Its pose. The AC is at 0 0 0 mm of the resampled image.
    """
    onto = head_grid(_ALIGNED_SPACING_MM)
    voxels = resample(scan.data, scan.grid, onto, onto_from_grid=acpc_from_scanner, order=3)
    image = nib.Nifti1Image(voxels, onto.space_from_vox)
    # Code 2 means aligned with something, here the commissures; 1 would mean the scanner's own axes.
    image.set_sform(onto.space_from_vox, 2)
    image.set_qform(onto.space_from_vox, 2)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    Location(fspath(path)).write(gzip.compress(content, mtime=0) if fspath(path).endswith(".gz") else content)


def angles_deg(acpc_from_scanner: _Affine) -> tuple[float, float, float]:
    """The angles of the head in the scanner: pitch (nose up), roll (to its right) and yaw (to its left), degrees.

    Parameters
    ----------
    acpc_from_scanner
        Rigid transform, RAS+ mm.

    Examples
    --------
    >>> nose_up = np.eye(4)
    >>> nose_up[1:3, 1:3] = [[0.8, 0.6], [-0.6, 0.8]]
    >>> [round(angle, 2) for angle in angles_deg(nose_up)]
    [36.87, 0.0, 0.0]
    """
    right, anterior, superior = acpc_from_scanner[:3, :3]
    pitch = np.arcsin(np.clip(anterior[2], -1, 1))
    roll = np.arctan2(-right[2], superior[2])
    yaw = np.arctan2(-anterior[0], anterior[1])
    pitch, roll, yaw = (np.degrees([pitch, roll, yaw]) + 0.0).tolist()
    return pitch, roll, yaw


def _itk_text(acpc_from_scanner: _Affine) -> str:
    """ITK's text of the transform that resamples a scan into AC-PC space.

    >>> print(_itk_text(np.eye(4)).splitlines()[3])
    Parameters: 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0
    """
    matrix = _LPS @ np.linalg.inv(acpc_from_scanner) @ _LPS + 0.0
    numbers = " ".join(map(repr, [*matrix[:3, :3].ravel().tolist(), *matrix[:3, 3].tolist()]))
    lines = (_ITK_HEADER, "#Transform 0", f"Transform: {_ITK_KINDS[0]}", f"Parameters: {numbers}")
    return "\n".join([*lines, "FixedParameters: 0 0 0", ""])


def _scanner_from_acpc_of_itk(text: str) -> _Affine:
    """The affine in ITK's text, in RAS+ mm.

    Raises
    ------
    ValueError
        If it holds another kind of transform.
    """
    found = [line.partition(":") for line in text.splitlines() if ":" in line]
    kinds = [value.strip() for key, _, value in found if key == "Transform"]
    if len(kinds) != 1 or kinds[0] not in _ITK_KINDS:
        raise ValueError(f"it holds {', '.join(kinds) or 'no transform'}, one of {' or '.join(_ITK_KINDS)} is needed")
    numbers = {key: np.array(value.split(), np.float64) for key, _, value in found if key.endswith("Parameters")}
    if [len(numbers.get(key, ())) for key in ("Parameters", "FixedParameters")] != [12, 3]:
        raise ValueError("12 parameters and 3 fixed ones are needed")
    linear, centre = numbers["Parameters"][:9].reshape(3, 3), numbers["FixedParameters"]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, numbers["Parameters"][9:] + centre - linear @ centre
    return _LPS @ matrix @ _LPS + 0.0


def _flirt_matrix(acpc_from_scanner: _Affine, scan: Grid, aligned: Grid) -> _Affine:
    """FLIRT's matrix, from the scan to the aligned image, each in FSL's own millimetres."""
    return np.linalg.inv(_space_from_fsl(aligned)) @ acpc_from_scanner @ _space_from_fsl(scan)


def _space_from_fsl(grid: Grid) -> _Affine:
    """From FSL's millimetres of an image to the scanner's, or to those of AC-PC space."""
    return grid.space_from_vox @ np.linalg.inv(_fsl_from_vox(grid))


def _fsl_from_vox(grid: Grid) -> _Affine:
    """FSL's millimetres: voxels times their size; if the determinant is positive, the first axis runs backwards.

    References
    ----------
    FLIRT FAQ of FSL, "What is the format of the matrix used by FLIRT".

    Examples
    --------
    >>> _fsl_from_vox(Grid((10, 4, 4), np.diag([2.0, 1.0, 1.0, 1.0]), "scanner"))[0].tolist()
    [-2.0, 0.0, 0.0, 18.0]
    """
    matrix = np.diag([*grid.spacing_mm, 1.0])
    if np.linalg.det(grid.space_from_vox[:3, :3]) > 0:
        matrix[0, 0], matrix[0, 3] = -matrix[0, 0], (grid.shape[0] - 1) * matrix[0, 0]
    return matrix


def _written(acpc_from_scanner: _Affine, kind: _Kind, scan: Grid | None) -> str:
    if kind == "itk":
        return _itk_text(acpc_from_scanner)
    if kind == "matrix":
        return _rows(acpc_from_scanner)
    if scan is None:
        raise TransformError("FSL's format depends on the voxels of both images; give the scan's grid: scan=scan.grid")
    return _rows(_flirt_matrix(acpc_from_scanner, scan, head_grid(_ALIGNED_SPACING_MM)))


def _rows(matrix: _Affine) -> str:
    return "\n".join(" ".join(map(repr, row)) for row in (matrix + 0.0).tolist()) + "\n"


def _matrix(text: str) -> _Affine:
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    matrix = np.array([row for row in lines if row], np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-9:
        raise ValueError(f"numbers of shape {matrix.shape} were found, the last row of four must be 0 0 0 1")
    return matrix
