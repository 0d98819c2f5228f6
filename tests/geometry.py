"""What tests ask of affines."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def rigid_error(a_from_b: Float[ndarray, "4 4"]) -> float:
    """How far the linear part of an affine is from a rotation: 0 for a rigid move, 0.21 for a stretch by 1.1."""
    linear = a_from_b[:3, :3]
    return float(np.abs(linear.T @ linear - np.eye(3)).max())
