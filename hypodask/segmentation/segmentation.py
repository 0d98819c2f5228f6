"""What a network says about a block of voxels."""

from dataclasses import dataclass
from functools import cached_property

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

    whole_first: bool = True
    """Whether a voxel is of the structure where all labels together are more probable than background. Otherwise one
    label alone must be, as in the published subunit network; where several share a border, that is less."""

    @cached_property
    def label_map(self) -> UInt8[ndarray, "i j k"]:
        """The most probable label of each voxel, by its number in the table."""
        found = most_probable(self.posteriors[0], self.posteriors[1:], self)
        found.setflags(write=False)
        return found


def most_probable(
    background: Float[ndarray, "i j k"], labels: Float[ndarray, "label i j k"], segmentation: Segmentation
) -> UInt8[ndarray, "i j k"]:
    """Numbers of the labels that win, by the rule and the table of a segmentation."""
    numbers = np.array([label.index for label in segmentation.labels], dtype=np.uint8)
    inside = background < (labels.sum(axis=0) if segmentation.whole_first else labels.max(axis=0))
    # To look for the larger of one takes longer than all the rest.
    return np.where(inside, numbers[labels.argmax(axis=0)] if len(labels) > 1 else numbers[0], np.uint8(0))
