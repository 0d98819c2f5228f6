"""What was measured on good-quality scans: the ranges that quality is judged by, and what intervals are made of.

All of it is measured, kept in one file beside the weights, and made again with
``python -m benchmarks.validation.quality reference`` after the networks have changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from hypodask.core.documents import from_document, read_table, to_json
from hypodask.core.errors import ModelError
from hypodask.files.digests import sha256_of
from hypodask.files.location import Location

_FILE_NAME = "reference.json"


@dataclass(frozen=True)
class Range:
    """Where a measure lies on good-quality scans.

    From the lowest to the highest value, or 2.5 standard deviations around the mean where that is wider.
    """

    low: float
    high: float
    scans: int
    """How many scans had a value."""


@dataclass(frozen=True)
class VolumeErrors:
    """How the relative error of a hypothalamic volume grows with what is unusual about a scan."""

    pose_per_mm: float
    """Relative standard deviation of the volume for each mm of expected error of a commissure."""
    per_squared_noise: float
    """Relative change of the volume for the square of the noise beyond the usual; noise is in units of the contrast.
    Twice the noise changes a volume four times as much, measured from 3 to 12 % of white matter."""
    usual_noise: float
    """Noise of good-quality scans; the error of a network on held-out scans includes its effect."""
    usual_uncertainty: float
    """Entropy (bits) of the posteriors near the boundary, likewise."""
    usual_spread: float
    """Relative standard deviation of the volume over the members of an ensemble, likewise."""


@dataclass(frozen=True)
class Reference:
    """Ranges and errors, and what they were measured on."""

    measured_on: str
    models: str
    """Networks whose segmentations were measured; with other networks these ranges are a guess."""
    ranges: Mapping[str, Range]
    errors: VolumeErrors

    def to_json(self) -> str:
        """Text of the file."""
        return to_json(self) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Reference":
        """Read the text of the file.

        Raises
        ------
        ModelError
            If it is not JSON, a key is missing or unknown, or a value is no number.
        """
        what = "the file of reference ranges"
        cure = "make it again with python -m benchmarks.validation.quality reference, or install hypodask again"
        table = read_table(text, "JSON", what=what, error=ModelError, cure=cure)
        return from_document(cls, table, what=what, error=ModelError, cure=cure)


@lru_cache(maxsize=1)
def load_reference() -> Reference:
    """The reference that is shipped.

    >>> load_reference().ranges["noise"].low > 0
    True
    """
    return Reference.from_json(_shipped().decode())


@lru_cache(maxsize=1)
def reference_digest() -> str:
    """The sha256 of the reference that is shipped."""
    return sha256_of(_shipped())


def _shipped() -> bytes:
    return files("hypodask").joinpath("weights", _FILE_NAME).read_bytes()


def save_reference(reference: Reference, folder: Path) -> Path:
    """Write the file that is shipped into the folder of the weights."""
    path = folder / _FILE_NAME
    Location(path).write(reference.to_json().encode())
    return path
