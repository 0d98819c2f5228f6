"""Sampling scalar fields on regular nodes: the few array operations every part of the phantom shares."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Real
from numpy import ndarray
from scipy import ndimage

from hypodask.image.acquisition import interpolation


@dataclass(frozen=True, eq=False)
class Lattice:
    """Evenly spaced nodes with axes along x, y, z of the template, mm."""

    low_mm: tuple[float, float, float]
    """Place of the first node."""
    step_mm: float
    shape: tuple[int, int, int]

    def indices(self, points_mm: Real[ndarray, "3 *n"]) -> Float32[ndarray, "3 *n"]:
        """Fractional node indices of points."""
        low = np.reshape(self.low_mm, (3,) + (1,) * (points_mm.ndim - 1))
        indices: Float32[ndarray, " 3 *n"] = ((points_mm - low) / self.step_mm).astype(np.float32)
        return indices

    def axes_mm(self) -> tuple[ndarray, ndarray, ndarray]:
        """Coordinates along x, y, z, shaped to broadcast against each other."""
        x, y, z = (low + self.step_mm * np.arange(n) for low, n in zip(self.low_mm, self.shape, strict=True))
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def points_mm(self) -> Float[ndarray, "3 i j k"]:
        """Coordinates of every node."""
        return np.stack(np.broadcast_arrays(*self.axes_mm()))


def sample(
    field: ndarray, indices: Float[ndarray, "3 *n"], *, order: Literal[1, 3] = 1, outside: float = 0.0
) -> Float32[ndarray, "*n"]:
    """Values of a field at fractional indices; ``outside`` beyond its nodes.

    With ``order=3`` the field holds B-spline coefficients, not values.

    >>> sample(np.arange(8.0).reshape(2, 2, 2), np.array([[0.5], [0.0], [0.0]])).tolist()
    [2.0]
    """
    values: Float32[ndarray, "*n"] = ndimage.map_coordinates(
        field, indices, output=np.float32, order=order, mode="constant", cval=outside, prefilter=False
    )
    return values


def upsampled(coarse: Float32[ndarray, "*n a b c"], shape: tuple[int, int, int]) -> Float32[ndarray, "*n i j k"]:
    """Fields on coarse nodes, linear in between, on ``shape`` nodes of which the first and last are the same.

    Three small matrix products: ten times faster than a general interpolator.

    >>> upsampled(np.arange(8, dtype=np.float32).reshape(2, 2, 2), (3, 2, 2))[:, 0, 0].tolist()
    [0.0, 2.0, 4.0]
    """
    along_i, along_j, along_k = (interpolation(*counts) for counts in zip(shape, coarse.shape[-3:], strict=True))
    columns = coarse.reshape(*coarse.shape[:-2], -1)
    rows = (along_i @ columns).reshape(*coarse.shape[:-3], shape[0], *coarse.shape[-2:])
    fine: Float32[ndarray, "*n i j k"] = (along_j @ rows) @ along_k.T
    return fine
