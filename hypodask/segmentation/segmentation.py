"""Posteriors of a network on a grid, and the label map that follows from them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float16, UInt8
from numpy import ndarray

from hypodask.core.grid import Grid
from hypodask.core.structures import Hemisphere, LabelTable


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Posteriors of one network on its own grid."""

    posteriors: Float[ndarray, "channel i j k"]
    """Probability of background and of each label of ``labels``, in its order; they sum to 1."""
    grid: Grid
    """Where the voxels are, in AC-PC or scanner space."""
    labels: LabelTable
    """What the channels after background are."""
    member_wholes: Float16[ndarray, "member i j k"] | None = None
    """Probability of the whole structure by each member of an ensemble; None for a single network."""
    whole_first: bool = True
    """Whether a voxel belongs to the structure if all labels together are more probable than background. Otherwise one
    label alone must be more probable, as in the published subunit network: the structure is then smaller where several
    labels meet."""

    boundary_sd_mm: float = float("nan")
    """How uncertain the position of the boundary is: the standard deviation that the network gives it, on average over
    the boundary. Not-a-number where a network does not say."""
    inferred: bool = False
    """Whether the boundary was not imaged, as where the skull was stripped. The segmentation then shows what the
    network supposes, and its volume is not published."""

    @cached_property
    def label_map(self) -> UInt8[ndarray, "i j k"]:
        """The most probable label of each voxel, by its number in the table."""
        found = most_probable(self.posteriors[0], self.posteriors[1:], self)
        found.setflags(write=False)
        return found

    def side_posterior(self, hemisphere: Hemisphere) -> Float[ndarray, "i j k"]:
        """Probability of all labels of one side together."""
        channels = [1 + number for number, label in enumerate(self.labels) if label.hemisphere == hemisphere]
        posterior: Float[ndarray, "i j k"] = self.posteriors[channels].sum(axis=0)
        return posterior


def most_probable(
    background: Float[ndarray, "i j k"], labels: Float[ndarray, "label i j k"], segmentation: Segmentation
) -> UInt8[ndarray, "i j k"]:
    """Numbers of the most probable labels; the table and the rule ``whole_first`` are those of ``segmentation``."""
    numbers = np.array([label.index for label in segmentation.labels], dtype=np.uint8)
    inside = background < (labels.sum(axis=0) if segmentation.whole_first else labels.max(axis=0))
    # With one label argmax is 0, but takes longer than all the rest.
    return np.where(inside, numbers[labels.argmax(axis=0)] if len(labels) > 1 else numbers[0], np.uint8(0))
