"""What a network says about a block of voxels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float16, UInt8
from numpy import ndarray

from hypodask.grid import Grid
from hypodask.labels import LabelTable


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Posteriors of one network on its own grid."""

    posteriors: Float[ndarray, "channel i j k"]
    """Probability of background and of each label of ``labels``, in its order; they sum to 1."""
    grid: Grid
    """Where the voxels are, in AC-PC or scanner space."""
    labels: LabelTable
    member_wholes: Float16[ndarray, "member i j k"] | None = None
    """Probability of anything but background by each member of an ensemble; None where one network answered alone."""

    @property
    def label_map(self) -> UInt8[ndarray, "i j k"]:
        """The most probable label of each voxel, by its number in the table."""
        numbers = np.array([0, *(label.index for label in self.labels)], dtype=np.uint8)
        return numbers[self.posteriors.argmax(axis=0)]
