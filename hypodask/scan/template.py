"""The template: the average brain that scans are aligned to and that phantoms are made of.

``MNI152`` holds everything that is particular to this one: its image, and where its commissures and its middle lie. The
image comes with hypodask, beside a card that says where it is from (``mni152/card.json``). For another template, add a
folder with an image and a card, and a record with its landmarks.
"""

import gzip
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from nibabel import Nifti1Image
from numpy import ndarray

from hypodask.core.errors import ModelError
from hypodask.core.grid import Grid
from hypodask.files.digests import sha256_of
from hypodask.scan.scan import Scan

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Template:
    """A brain in MNI space, and what is known of it.

    Examples
    --------
    >>> MNI152.name, MNI152.brain.grid.shape
    ('MNI152 2009a', (197, 233, 189))
    """

    folder: Path
    """Holds ``card.json`` and the image that the card names."""
    ac_mm: Triple
    """Anterior commissure, RAS+ mm in the template's space."""
    pc_mm: Triple
    """Posterior commissure, likewise."""
    centre_mm: Triple
    """About the middle of the brain."""
    radius_mm: float
    """About the distance from there to the surface of the brain."""
    adult_stretch: Triple
    """Typical size of an adult brain relative to the template, along x, y and z."""

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the image is: its name, version, file, sha256, source, citation and licence.

        Raises
        ------
        ModelError
            If the card is missing or damaged.
        """
        path = self.folder / "card.json"
        try:
            card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            missing = {"name", "file", "sha256"}.difference(card)
        except (OSError, ValueError) as err:
            raise ModelError(
                f"{path} could not be read ({err}); it describes the template: install hypodask again"
            ) from err
        if missing:
            raise ModelError(f"{path} lacks {', '.join(sorted(missing))} of the template: install hypodask again")
        return card

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return str(self.card["name"])

    @property
    def digest(self) -> str:
        """The sha256 of the image's file, as the card says and as :attr:`brain` checks."""
        return str(self.card["sha256"])

    @cached_property
    def brain(self) -> Scan:
        """The T1-weighted brain: read-only float32 in [0, 1], 0 outside the brain; ``grid.space`` is ``mni``.

        Raises
        ------
        ModelError
            If the file is missing, or is not the one that the card describes.
        """
        path = self.folder / self.card["file"]
        try:
            content = path.read_bytes()
        except OSError as err:
            raise ModelError(
                f"{path} could not be read ({err}); it holds the brain that scans are aligned to: install hypodask "
                "again"
            ) from err
        found = sha256_of(content)
        if found != self.digest:
            raise ModelError(
                f"{path} has the sha256 {found[:12]}..., but its card says {self.digest[:12]}...; volumes would not be "
                "those of this version: install hypodask again"
            )
        image = Nifti1Image.from_bytes(gzip.decompress(content))
        data = np.asarray(image.dataobj, dtype=np.float32)
        data /= data.max()
        data.setflags(write=False)
        return Scan(data, Grid(data.shape, image.affine, "mni"), source=self.name)

    @property
    def commissures_mm(self) -> Float[ndarray, "2 3"]:
        """AC and PC, RAS+ mm in the template's space."""
        return np.array([self.ac_mm, self.pc_mm])


MNI152 = Template(
    folder=Path(__file__).parent / "mni152",
    # Mean of the AFIDs raters on MNI152NLin2009cAsym (Lau et al., Hum Brain Mapp 2019); x = 0 because this template,
    # the 2009a one, is symmetric.
    ac_mm=(0.0, 2.93, -4.90),
    pc_mm=(0.0, -25.08, -2.17),
    centre_mm=(0.0, -20.0, 0.0),
    radius_mm=70.0,
    # The template is larger than most adults' brains: mean over 11 adults.
    adult_stretch=(0.91, 0.95, 0.85),
)
"""MNI152 2009a, nonlinear and symmetric (Fonov et al., NeuroImage 2011): brain only, T1-weighted, 1 mm."""
