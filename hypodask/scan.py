"""A scan as it was stored: raw voxels, their scale, and where they are in the scanner."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from hypodask.grid import Grid


@dataclass(frozen=True, eq=False)
class Scan:
    """One T1-weighted volume that passed every check.

    ``data`` is what every later stage reads; ``stored`` is what the store keeps.
    """

    stored: ndarray
    """Voxels in the file's own dtype, axes ``(i, j, k)`` as the file gives them."""
    grid: Grid
    """Shape and ``scanner_from_vox``, RAS+ mm."""
    slope: float = 1.0
    intercept: float = 0.0
    """``data = slope * stored + intercept``."""
    header: bytes = field(default=b"", repr=False)
    """NIfTI-1 or -2 header as bytes, made for MGH and DICOM; free text as in the file."""
    source: str = ""
    """Path or URL it was read from."""
    sha256: str = ""
    """Digest of the file's bytes."""

    @cached_property
    def data(self) -> Float32[ndarray, "i j k"]:
        """Intensities as float32."""
        data = self.stored.astype(np.float32)
        if (self.slope, self.intercept) != (1.0, 0.0):
            data = data * np.float32(self.slope) + np.float32(self.intercept)
        return data


def read_scan(path: str) -> Scan:
    """Read one scan and refuse what cannot be trusted."""
    raise NotImplementedError
