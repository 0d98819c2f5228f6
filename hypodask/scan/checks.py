"""Limits of what a head scan can be. A scan outside of these limits is refused.

No limit was tuned. Each is wider than any T1-weighted head scan that we know (0.25 mm at 7 T, 5 mm slices, 117 mm of
cropped head), and narrower than the mistakes that it should catch (metres for millimetres, the header of another file,
a single slice).
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.errors import (
    BadTransformError,
    ConstantImageError,
    FieldOfViewError,
    NonFiniteError,
    OversizeScanError,
    VoxelSizeError,
)
from hypodask.core.grid import Grid
from hypodask.scan.layout import Layout

_MAX_VOXELS = 2**30
_MAX_BYTES = 2**32
_SPACING_LIMITS_MM = (0.2, 6.0)
_EXTENT_LIMITS_MM = (80.0, 500.0)
_MAX_OFFSET_MM = 10_000.0
"""Further than 10 m from the scanner's centre, coordinates in float32 are not exact to 0.01 mm."""
_MAX_SHEAR = 0.002
"""Largest cosine of the angle between two voxel axes: 0.1 degrees, or 0.25 mm across half a head. Affines that were
rounded to four decimals stay ten times below."""
_SPACING_TOLERANCE = 0.002
"""Largest relative difference between two voxel sizes in one header, as rounding may cause. A larger difference would
bias volumes by more than 0.6 %."""


def check_size(layout: Layout) -> None:
    """Refuse a header that promises more voxels than a head scan needs; called before memory is allocated."""
    if layout.voxel_count > _MAX_VOXELS or layout.byte_count > _MAX_BYTES:
        raise OversizeScanError(
            f"the header promises {layout.voxel_count:,} voxels of {layout.dtype.name} in shape {layout.shape}; "
            f"at most {_MAX_VOXELS:,} voxels and {_MAX_BYTES:,} bytes are read: the header is damaged, or the scan "
            "needs resampling first"
        )


def check_geometry(layout: Layout) -> Grid:
    """The grid of a layout, if it can be the grid of a head scan.

    Raises
    ------
    BadTransformError
        If the affine is not finite, singular, sheared or far away.
    VoxelSizeError, FieldOfViewError
        If these are outside the limits of this module.
    """
    grid = check_place(layout)
    low, high = _SPACING_LIMITS_MM
    if not all(low <= mm <= high for mm in grid.spacing_mm):
        raise VoxelSizeError(
            f"the voxels measure {_listed(grid.spacing_mm)} mm; {low} to {high} mm are needed: "
            "check the unit in the header, or convert the scan from DICOM again"
        )
    low, high = _EXTENT_LIMITS_MM
    if not all(low <= mm <= high for mm in grid.extent_mm):
        raise FieldOfViewError(
            f"the field of view is {_listed(grid.extent_mm)} mm (shape {grid.shape}); a head needs {low:g} to "
            f"{high:g} mm along each axis: give the whole volume, not a slice, a crop or a localizer"
        )
    return grid


def check_place(layout: Layout) -> Grid:
    """The grid of a layout whose voxels have a valid position in the scanner, whatever their size and number.

    Raises
    ------
    BadTransformError
        If the affine is not finite, singular, sheared or far away.
    """
    check_affine(layout.scanner_from_vox)
    return Grid(layout.shape, layout.scanner_from_vox, "scanner")


def check_affine(scanner_from_vox: Float[ndarray, "4 4"]) -> None:
    """Refuse an affine that does not place rectangular voxels in the scanner."""
    cure = "convert the scan from DICOM again, or resample it to rectangular voxels"
    if not np.isfinite(scanner_from_vox).all():
        raise BadTransformError(f"the affine holds NaN or infinity, {scanner_from_vox.tolist()}; {cure}")
    spacing = np.linalg.norm(scanner_from_vox[:3, :3], axis=0)
    directions = scanner_from_vox[:3, :3] / np.where(spacing > 0, spacing, 1)
    if abs(np.linalg.det(directions)) < _MAX_SHEAR:
        raise BadTransformError(
            f"the affine is singular, {scanner_from_vox[:3].tolist()}; three independent axes are needed: {cure}"
        )
    shear = float(np.abs(np.triu(directions.T @ directions, k=1)).max())
    if shear > _MAX_SHEAR:
        raise BadTransformError(
            f"the affine is sheared: two voxel axes are {np.degrees(np.arccos(shear)):.2f} degrees apart; "
            f"90 within {np.degrees(np.arcsin(_MAX_SHEAR)):.2f} degrees are needed: {cure}; if this is a registration "
            "to a template stored as sform, set sform_code to 0"
        )
    if np.abs(scanner_from_vox[:3, 3]).max() > _MAX_OFFSET_MM:
        raise BadTransformError(
            f"the first voxel lies at {scanner_from_vox[:3, 3].tolist()} mm; at most {_MAX_OFFSET_MM:g} mm "
            f"from the scanner's centre are accepted: check the unit in the header, or {cure}"
        )


def check_positive(sizes: Float[ndarray, "3"]) -> Float[ndarray, "3"]:
    """Voxel sizes as float64, refused unless each is a positive number."""
    if not all(np.isfinite(size) and size > 0 for size in sizes):
        raise VoxelSizeError(
            f"the header gives voxel sizes (pixdim) {sizes.tolist()}; three positive numbers are needed: "
            "convert the scan from DICOM again"
        )
    return np.asarray(sizes, dtype=np.float64)


def check_spacing(scanner_from_vox: Float[ndarray, "4 4"], stated_mm: Float[ndarray, "3"]) -> None:
    """Refuse an affine whose voxel size differs from the one that the header states elsewhere."""
    spacing_mm = np.linalg.norm(scanner_from_vox[:3, :3], axis=0)
    if not np.allclose(spacing_mm, stated_mm, rtol=_SPACING_TOLERANCE):
        raise VoxelSizeError(
            f"the header states voxels of {_listed(stated_mm)} mm (pixdim), its affine {_listed(spacing_mm)} mm; "
            "they must agree: convert the scan again, or set sform_code to 0 if the sform leads to a template"
        )


def check_intensities(stored: ndarray, slope: float, intercept: float) -> None:
    """Refuse voxels that are NaN, infinite, beyond float32, or all of one value."""
    with np.errstate(invalid="ignore"):
        low, high = float(stored.min()), float(stored.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = stored.size - int(np.isfinite(stored).sum())
        raise NonFiniteError(
            f"{bad:,} of {stored.size:,} voxels are NaN or infinite; finite ones are needed: "
            "replace them by 0, for example with fslmaths -nan"
        )
    darkest, brightest = sorted((slope * low + intercept, slope * high + intercept))
    largest = max(abs(slope), abs(slope * low), abs(slope * high), abs(intercept), -darkest, brightest)
    if largest > float(np.finfo(np.float32).max):
        raise NonFiniteError(
            f"the voxels run from {darkest:g} to {brightest:g} (slope {slope:g}, intercept {intercept:g}); "
            "single precision must hold them: rescale the image"
        )
    if np.float32(darkest) == np.float32(brightest):
        raise ConstantImageError(
            f"all {stored.size:,} voxels are {darkest:g}; a scan with contrast is needed: "
            "this file holds no image, export it again"
        )


def _listed(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
