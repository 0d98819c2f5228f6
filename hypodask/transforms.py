"""The pose of a head in the formats of other tools, and the scan resampled by it.

Everything here is ``acpc_from_scanner``, a 4x4 of RAS+ mm, written three ways:

- ``itk``: what ANTs, SimpleITK and 3D Slicer open. In LPS mm, and from the resampled image to the scan,
  since ITK asks for every wanted voxel where in the scan it is;
- ``fsl``: what ``flirt -applyxfm -init`` takes. From the scan to the resampled image, in each image's voxels
  times their size, the first axis turned round where the affine has a positive determinant; so it is true for
  one pair of grids only;
- ``matrix``: the four rows as they are, RAS+ mm.
"""

import gzip
from os import PathLike, fspath
from typing import Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.errors import TransformError
from hypodask.grid import Grid, head_grid
from hypodask.location import Location
from hypodask.resample import resample
from hypodask.scan import Scan

Kind = Literal["itk", "fsl", "matrix"]
Affine = Float[ndarray, "4 4"]
Path = str | PathLike[str]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""``lps_from_ras`` and back."""

ITK_HEADER = "#Insight Transform File V1.0"
ITK_KINDS = ("AffineTransform_double_3_3", "MatrixOffsetTransformBase_double_3_3")
"""The first is written; the second is what ANTs calls it."""

ALIGNED_SPACING_MM = 1.0
"""Voxels of the resampled image."""


def save_transform(path: Path, acpc_from_scanner: Affine, *, kind: Kind = "itk", scan: Grid | None = None) -> None:
    """Write a pose for another tool.

    Parameters
    ----------
    path
        File or fsspec URL. ITK wants ``.txt`` or ``.tfm``, FSL ``.mat``.
    acpc_from_scanner
        Rigid move, RAS+ mm.
    kind
        ``itk``, ``fsl`` or ``matrix``.
    scan
        Grid of the scan, for ``fsl``. The reference image is then that of :func:`save_aligned`.

    Raises
    ------
    TransformError
        If FSL's format is asked for without a grid.

    Examples
    --------
    >>> pose = np.eye(4)
    >>> pose[:3, 3] = 1.5, -2.0, 3.0
    >>> save_transform("memory://pose/acpc.txt", pose)
    >>> load_transform("memory://pose/acpc.txt")[:3, 3].tolist()
    [1.5, -2.0, 3.0]
    """
    Location(fspath(path)).write(_written(acpc_from_scanner, kind, scan).encode())


def load_transform(path: Path, *, scan: Grid | None = None) -> Affine:
    """``acpc_from_scanner`` from a file that :func:`save_transform` wrote, or another tool in its place.

    Parameters
    ----------
    path
        ITK's text is told by its first line; four rows of four numbers are taken for ``matrix``.
    scan
        Grid of the scan: then four rows of four numbers are taken for ``fsl``.

    Raises
    ------
    TransformError
        If there is no file, or it holds no affine.
    """
    name = fspath(path)
    try:
        text = Location(name).read().decode()
        if text.startswith(ITK_HEADER):
            return np.linalg.inv(scanner_from_acpc_of_itk(text))
        found = _matrix(text)
    except FileNotFoundError:
        raise TransformError(f"there is no transform {name}; correct the path") from None
    except (ValueError, np.linalg.LinAlgError) as err:
        raise TransformError(f"{name} holds no affine transform ({err}); give ITK's text or four rows of four") from err
    return found if scan is None else acpc_from_scanner_of_flirt(found, scan, head_grid(ALIGNED_SPACING_MM))


def save_aligned(path: Path, scan: Scan, acpc_from_scanner: Affine) -> None:
    """Write the scan resampled into AC-PC space: cubic B-splines, 1 mm, float32, as NIfTI.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``; file or fsspec URL.
    scan
        The scan as it was read.
    acpc_from_scanner
        Its pose. The AC is at 0 0 0 mm of the image written.
    """
    onto = head_grid(ALIGNED_SPACING_MM)
    voxels = resample(scan.data, scan.grid, onto, onto_from_grid=acpc_from_scanner, order=3)
    image = nib.Nifti1Image(voxels, onto.space_from_vox)
    # 2: aligned with something, here the commissures; 1 would claim the scanner's own axes.
    image.set_sform(onto.space_from_vox, 2)
    image.set_qform(onto.space_from_vox, 2)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    Location(fspath(path)).write(gzip.compress(content, mtime=0) if fspath(path).endswith(".gz") else content)


def angles_deg(acpc_from_scanner: Affine) -> tuple[float, float, float]:
    """How the head lies in the scanner: pitch (nose up), roll (to its right) and yaw (to its left), degrees.

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


def itk_text(acpc_from_scanner: Affine) -> str:
    """ITK's text of the transform that resamples a scan into AC-PC space.

    >>> print(itk_text(np.eye(4)).splitlines()[3])
    Parameters: 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0
    """
    matrix = LPS @ np.linalg.inv(acpc_from_scanner) @ LPS + 0.0
    numbers = " ".join(map(repr, [*matrix[:3, :3].ravel().tolist(), *matrix[:3, 3].tolist()]))
    lines = (ITK_HEADER, "#Transform 0", f"Transform: {ITK_KINDS[0]}", f"Parameters: {numbers}")
    return "\n".join([*lines, "FixedParameters: 0 0 0", ""])


def scanner_from_acpc_of_itk(text: str) -> Affine:
    """The affine that ITK's text says, in RAS+ mm.

    Raises
    ------
    ValueError
        If it is another kind of transform.
    """
    found = [line.partition(":") for line in text.splitlines() if ":" in line]
    kinds = [value.strip() for key, _, value in found if key == "Transform"]
    if len(kinds) != 1 or kinds[0] not in ITK_KINDS:
        raise ValueError(f"it holds {', '.join(kinds) or 'no transform'}, one of {' or '.join(ITK_KINDS)} is needed")
    numbers = {key: np.array(value.split(), np.float64) for key, _, value in found if key.endswith("Parameters")}
    if [len(numbers.get(key, ())) for key in ("Parameters", "FixedParameters")] != [12, 3]:
        raise ValueError("12 parameters and 3 fixed ones are needed")
    linear, centre = numbers["Parameters"][:9].reshape(3, 3), numbers["FixedParameters"]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, numbers["Parameters"][9:] + centre - linear @ centre
    return LPS @ matrix @ LPS + 0.0


def flirt_matrix(acpc_from_scanner: Affine, scan: Grid, aligned: Grid) -> Affine:
    """FLIRT's matrix, from the scan to the image that is aligned, each in FSL's own millimetres."""
    scanner_from_fsl = scan.space_from_vox @ np.linalg.inv(fsl_from_vox(scan))
    acpc_from_fsl = aligned.space_from_vox @ np.linalg.inv(fsl_from_vox(aligned))
    return np.linalg.inv(acpc_from_fsl) @ acpc_from_scanner @ scanner_from_fsl


def acpc_from_scanner_of_flirt(fsl_from_fsl: Affine, scan: Grid, aligned: Grid) -> Affine:
    """The pose that FLIRT's matrix says, the other way round than :func:`flirt_matrix`."""
    scanner_from_fsl = scan.space_from_vox @ np.linalg.inv(fsl_from_vox(scan))
    acpc_from_fsl = aligned.space_from_vox @ np.linalg.inv(fsl_from_vox(aligned))
    return acpc_from_fsl @ fsl_from_fsl @ np.linalg.inv(scanner_from_fsl)


def fsl_from_vox(grid: Grid) -> Affine:
    """FSL's millimetres: voxels times their size, the first axis from its end where the determinant is positive.

    References
    ----------
    FLIRT FAQ of FSL, "What is the format of the matrix used by FLIRT".

    Examples
    --------
    >>> fsl_from_vox(Grid((10, 4, 4), np.diag([2.0, 1.0, 1.0, 1.0]), "scanner"))[0].tolist()
    [-2.0, 0.0, 0.0, 18.0]
    """
    matrix = np.diag([*grid.spacing_mm, 1.0])
    if np.linalg.det(grid.space_from_vox[:3, :3]) > 0:
        matrix[0, 0], matrix[0, 3] = -matrix[0, 0], (grid.shape[0] - 1) * matrix[0, 0]
    return matrix


def _written(acpc_from_scanner: Affine, kind: Kind, scan: Grid | None) -> str:
    if kind == "itk":
        return itk_text(acpc_from_scanner)
    if kind == "matrix":
        return _rows(acpc_from_scanner)
    if scan is None:
        raise TransformError("FSL's format depends on the voxels of both images; give the scan's grid: scan=scan.grid")
    return _rows(flirt_matrix(acpc_from_scanner, scan, head_grid(ALIGNED_SPACING_MM)))


def _rows(matrix: Affine) -> str:
    return "\n".join(" ".join(map(repr, row)) for row in (matrix + 0.0).tolist()) + "\n"


def _matrix(text: str) -> Affine:
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    matrix = np.array([row for row in lines if row], np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-9:
        raise ValueError(f"numbers of shape {matrix.shape} were found, the last row of four must be 0 0 0 1")
    return matrix
