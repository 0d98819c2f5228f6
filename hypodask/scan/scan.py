"""A scan as it is stored: raw voxels, their scale, and their position in the scanner."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from hypodask.core.grid import Grid


@dataclass(frozen=True, eq=False)
class Scan:
    """One T1-weighted volume that passed every check.

    Every later step of the method reads ``data``; the store keeps ``stored``.

    Examples
    --------
    >>> grid = Grid((1, 1, 2), np.eye(4), "scanner")
    >>> Scan(np.array([[[3, 4]]], dtype=np.int16), grid, slope=2.0, intercept=-1.0).data.tolist()
    [[[5.0, 7.0]]]
    """

    stored: ndarray
    """Voxels in the file's own dtype and this machine's byte order, axes ``(i, j, k)`` as the file gives
    them, ``i`` fastest in memory."""
    grid: Grid
    """Shape and ``scanner_from_vox``, RAS+ mm."""
    slope: float = 1.0
    intercept: float = 0.0
    """``data = slope * stored + intercept``."""
    header: bytes = field(default=b"", repr=False)
    """Little-endian NIfTI-1 or -2 header that describes ``stored``: three dimensions, mm, the slope and
    intercept in use. Everything else, free text included, is as in the file. For MGH a new header is made."""
    source: str = ""
    """Path or URL it was read from."""
    sha256: str = ""
    """Digest of the file's bytes."""
    warnings: tuple[str, ...] = ()
    """Unusual but accepted features of the file, in sentences."""

    @cached_property
    def data(self) -> Float32[ndarray, "i j k"]:
        """Intensities as float32."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.stored.astype(np.float32)
        # Wide integers are scaled in float64: in float32 they would lose digits before the intercept is added.
        wide = np.promote_types(self.stored.dtype, np.float32).type
        scaled: ndarray = self.stored.astype(wide) * wide(self.slope)
        scaled += wide(self.intercept)
        return scaled.astype(np.float32, copy=False)
