"""What the header of an image promises, whatever its format."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.errors import NotScalarError, UnreadableScanError


@dataclass(frozen=True, eq=False)
class Layout:
    """The contents of a header, not yet checked."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    """Type of the voxels in the file, byte order included."""
    offset: int
    """Byte at which the voxels begin."""
    scanner_from_vox: Float[ndarray, "4 4"]
    """RAS+ mm."""
    header: bytes
    """See :attr:`hypodask.scan.Scan.header`."""
    slope: float = 1.0
    intercept: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def voxel_count(self) -> int:
        """Number of voxels; a Python integer, so it cannot overflow."""
        i, j, k = self.shape
        return i * j * k

    @property
    def byte_count(self) -> int:
        """Bytes that the voxels take in the file."""
        return self.voxel_count * self.dtype.itemsize


def volume_shape(dimensions: tuple[int, ...]) -> tuple[int, int, int]:
    """The three dimensions of an image whose further dimensions, if any, have length 1.

    Raises
    ------
    UnreadableScanError
        If a dimension is zero or negative.
    NotScalarError
        If the image holds several volumes.

    Examples
    --------
    >>> volume_shape((256, 256, 160, 1, 1))
    (256, 256, 160)
    """
    if not dimensions or min(dimensions) < 1:
        raise UnreadableScanError(
            f"the header gives dimensions {dimensions}; each must be at least 1: the header is damaged, convert again"
        )
    if any(n > 1 for n in dimensions[3:]):
        raise NotScalarError(
            f"the image has dimensions {dimensions}, several volumes or several numbers per voxel; "
            "one three-dimensional T1w volume is needed: average or extract one, for example with fslroi"
        )
    i, j, k = (*dimensions[:3], 1, 1)[:3]
    return i, j, k
