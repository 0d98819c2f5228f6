"""Where in the template each point of a simulated head comes from, and back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Real
from numpy import ndarray

from hypodask.core.grid import transform_points
from hypodask.phantom.fields import Lattice, sample
from hypodask.phantom.hypothalamus import atrophy_field

WARP_NODES = Lattice(low_mm=(-225.0, -250.0, -270.0), step_mm=45.0, shape=(11, 11, 11))
"""Control points of the smooth warp, MNI mm: every 45 mm, so that it stays smooth across the hypothalamus."""

_CONVERGED_MM = 1e-4
_MOST_STEPS = 60


@dataclass(frozen=True, eq=False)
class HeadMap:
    """The map from a head in the scanner to the template: a pose and size, a smooth warp, local atrophy."""

    mni_from_scanner: Float[ndarray, "4 4"]
    """Affine part: pose, and size along the three axes."""
    warp_mm: Float32[ndarray, "3 a b c"]
    """B-spline coefficients of the smooth displacement on :data:`WARP_NODES`, added after the affine."""
    atrophy: float = 0.0
    """Amount of :class:`~hypodask.phantom.hypothalamus.AtrophyField`, added last."""

    def to_template(self, scanner_mm: Real[ndarray, "3 *n"]) -> Float[ndarray, "3 *n"]:
        """Place in the template, MNI mm, of points in the scanner."""
        flat = np.reshape(scanner_mm, (3, -1))
        points = self.mni_from_scanner[:3, :3] @ flat + self.mni_from_scanner[:3, 3:]
        indices = WARP_NODES.indices(points)
        points += np.stack([sample(component, indices, order=3) for component in self.warp_mm])
        if self.atrophy:
            points += self.atrophy * atrophy_field()(points)
        return points.reshape(np.shape(scanner_mm))

    def to_scanner(self, template_mm: Real[ndarray, "3 *n"]) -> Float[ndarray, "3 *n"]:
        """Place in the scanner of points in the template, to 1e-4 mm.

        Steps back along the affine's inverse until the point maps where it should; each step gains a
        digit or so because the rest of the map is nearly the identity.
        """
        target = np.reshape(np.asarray(template_mm, dtype=np.float64), (3, -1))
        scanner_from_mni = np.linalg.inv(self.mni_from_scanner)
        points = transform_points(scanner_from_mni, target.T).T
        for _ in range(_MOST_STEPS):
            miss = target - self.to_template(points)
            points = points + scanner_from_mni[:3, :3] @ miss
            if np.abs(miss).max() < _CONVERGED_MM:
                break
        return points.reshape(np.shape(template_mm))
