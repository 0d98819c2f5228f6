"""What sound scans measure: the ranges that quality is judged by, and the errors that intervals are made of.

All of it is measured, kept in one file beside the weights, and made again with ``python -m benchmarks.quality
reference`` after the networks have changed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from hypodask.errors import ModelError

REFERENCE = "reference.json"


@dataclass(frozen=True)
class Range:
    """Where a measure lies on sound scans: from their lowest to their highest value, or 2.5 standard deviations."""

    low: float
    high: float
    scans: int
    """How many scans had a value."""


@dataclass(frozen=True)
class VolumeErrors:
    """How the relative error of a hypothalamic volume grows with what is unusual about a scan."""

    pose_per_mm: float
    """Standard deviation of the volume per mm of error to expect of a commissure."""
    per_squared_noise: float
    """Relative change of the volume per square of the noise beyond the usual, which is in units of the contrast: twice
    the noise moves a volume four times as far, measured from 3 to 12 % of white matter."""
    usual_noise: float
    """Noise that the error on held-out heads includes."""
    usual_uncertainty: float
    """Entropy of the posteriors around the outline that the error on held-out heads includes, bits."""
    usual_spread: float
    """Relative standard deviation of the volume over the members of an ensemble, likewise."""


@dataclass(frozen=True)
class Reference:
    """Ranges and errors, and what they were measured on."""

    measured_on: str
    models: str
    """Networks that made the measures which depend on one; with others these ranges are a guess."""
    ranges: Mapping[str, Range]
    errors: VolumeErrors

    def to_json(self) -> str:
        """Text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Reference":
        """Read the file's text.

        Raises
        ------
        ModelError
            If something is missing or unknown in it.
        """
        try:
            values = json.loads(text)
            ranges = {name: Range(**limits) for name, limits in values["ranges"].items()}
            return cls(values["measured_on"], values["models"], ranges, VolumeErrors(**values["errors"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise ModelError(
                f"the reference of sound scans cannot be read ({err!r}); make it again with "
                "python -m benchmarks.quality reference, or install hypodask again"
            ) from err


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
    return hashlib.sha256(_shipped()).hexdigest()


def _shipped() -> bytes:
    return files("hypodask").joinpath("weights", REFERENCE).read_bytes()


def save_reference(reference: Reference, folder: Path) -> Path:
    """Write the file that is shipped into the folder of the weights."""
    path = folder / REFERENCE
    path.write_text(reference.to_json(), encoding="utf-8")
    return path
