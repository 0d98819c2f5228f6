"""The pose of a head: where its commissures are, and the rigid move that puts it into AC-PC space."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray


@dataclass(frozen=True, eq=False)
class Alignment:
    """Result of aligning one scan."""

    acpc_from_scanner: Float[ndarray, "4 4"]
    """Rigid move: AC at the origin, PC on -y, midsagittal plane x = 0, RAS+ mm."""
    ac_mm: Float[ndarray, "3"]
    """Anterior commissure in scanner space, RAS+ mm."""
    pc_mm: Float[ndarray, "3"]
    """Posterior commissure in scanner space, RAS+ mm."""
    mni_from_scanner: Float[ndarray, "4 4"]
    """The affine registration to the template, from which the search for the commissures began."""
    score: float
    """Local correlation with the template inside its brain, -1 to 1."""
    flagged: bool
    """Whether the pose should not be trusted."""
    warnings: tuple[str, ...] = ()
    """Why it is flagged, or what else to know."""
    head_size: float = 1.0
    """Linear size of the brain about its commissures, relative to an average adult's. Networks see the head divided by
    this, so that what they learnt of sizes does not enter a volume."""
    error_mm: float = float("nan")
    """Error to expect of a commissure, mm: the root mean square on heads that were not learnt from, combined with the
    spread over test-time augmentations; not-a-number for commissures placed by hand."""
    source: str = "automatic"
    """Where the commissures come from: ``automatic`` or ``landmarks``."""

    @property
    def acpc_distance_mm(self) -> float:
        """Distance between the commissures, mm."""
        return float(np.linalg.norm(self.ac_mm - self.pc_mm))


def acpc_frame(
    ac_mm: Float[ndarray, "3"], pc_mm: Float[ndarray, "3"], right: Float[ndarray, "3"]
) -> Float[ndarray, "4 4"]:
    """``acpc_from_scanner`` of two commissures and the normal of the midsagittal plane.

    The AC-PC line fixes pitch and yaw exactly; ``right`` (pointing to the subject's right) fixes roll.

    >>> acpc_frame(np.zeros(3), np.array([0.0, -26.0, 0.0]), np.array([1.0, 0.1, 0.0])).round(6).tolist()[0]
    [1.0, 0.0, 0.0, 0.0]
    """
    anterior = (ac_mm - pc_mm) / np.linalg.norm(ac_mm - pc_mm)
    right = right - anterior * (right @ anterior)
    right = right / np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, anterior, np.cross(right, anterior)])
    matrix[:3, 3] = -matrix[:3, :3] @ ac_mm
    return matrix
