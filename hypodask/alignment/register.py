"""Affine registration of a head to the template brain by Gauss-Newton.

Both are seen through their local contrast: how much brighter a place is than its surroundings, in units of
their variation, so that bias fields, bright scalp and dim coils do not lead the fit. The template's value at
a point is predicted from the head's by a smooth gain and a quadratic; what cannot be predicted is what a
better pose must explain. Predicting the template, and not the head, keeps the pose from drifting into air, where
a constant image would be predicted perfectly. Tukey weights leave out what the two heads do not share.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import expm
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy import ndimage

from hypodask.resample import gather

ARM_MM = 70.0
"""Radius of a brain: scales rotations and stretches so that every parameter moves its rim by about 1 mm."""

CONTRAST_MM = 8.0
"""Reach of the local contrast: larger than cortex is thick, smaller than bias fields are smooth."""

FAINT = 0.05

TUKEY = 4.685
"""Residuals beyond this many robust standard deviations weigh nothing (95 % efficiency for Gaussian noise)."""


class Moving(NamedTuple):
    """The head that is registered."""

    data: Float[Array, "i j k"]
    """Local contrast."""
    seen: Float[Array, "i j k"]
    """1 inside the scan's field of view, 0 outside; what was not seen cannot disagree."""
    vox_from_scanner: Float[Array, "4 4"]


class Fixed(NamedTuple):
    """Points of the template brain and their intensities."""

    points_mm: Float[Array, "n 3"]
    values: Float[Array, "n"]
    weights: Float[Array, "n"]


class Fit(NamedTuple):
    """Where the template lies in the scanner, and how well it explains the head."""

    scanner_from_mni: Float[Array, "4 4"]
    correlation: Float[Array, ""]
    """Correlation of the template with its prediction from the head, 0 to 1."""


def generators() -> Float[Array, "12 4 4"]:
    """Directions in which an affine can move: 3 shifts, 3 rotations, 1 scale, then 5 stretches and shears."""
    zero = jnp.zeros((12, 4, 4))
    shifts = zero.at[jnp.arange(3), jnp.arange(3), 3].set(1.0)
    turns = [(1, 2), (2, 0), (0, 1)]
    for number, (a, b) in enumerate(turns):
        shifts = shifts.at[3 + number, a, b].set(-1 / ARM_MM).at[3 + number, b, a].set(1 / ARM_MM)
        shifts = shifts.at[9 + number, a, b].set(1 / ARM_MM).at[9 + number, b, a].set(1 / ARM_MM)
    diagonals = jnp.array([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]) / ARM_MM
    return shifts.at[jnp.arange(6, 9)[:, None], jnp.arange(3), jnp.arange(3)].set(diagonals)


def local_contrast(
    data: Float[ndarray, "i j k"], seen: Float[ndarray, "i j k"], spacing_mm: float
) -> Float32[ndarray, "i j k"]:
    """How much brighter each place is than its surroundings within 8 mm, over their standard deviation.

    ``FAINT``, in units of white matter, is added to the deviation, so that noise in air stays small.
    """
    blur = partial(ndimage.gaussian_filter, sigma=CONTRAST_MM / spacing_mm, mode="constant", truncate=3.0)
    count = blur(seen) + 1e-6
    above = (data - blur(data * seen) / count) * seen
    return (above / (np.sqrt(blur(above**2) / count) + FAINT)).astype(np.float32)


@partial(jax.jit, static_argnames=("freedom", "steps"))
def register(
    moving: Moving, fixed: Fixed, scanner_from_mni: Float[Array, "4 4"], *, freedom: int, steps: int
) -> Fit:
    """Move the template until it explains the head.

    Parameters
    ----------
    moving, fixed
        Head and template, both low-passed to the same voxel size.
    scanner_from_mni
        Where to start.
    freedom
        6 rigid, 7 with size, 12 affine.
    steps
        Gauss-Newton steps.
    """
    directions = generators()[:freedom]

    def step(pose: Array, _: None) -> tuple[Array, None]:
        residual, slopes, weights = _linearize(moving, fixed, pose, directions)
        normal = (slopes * weights[:, None]).T @ slopes
        damping = 1e-3 * jnp.diag(jnp.diag(normal)) + 1e-6 * jnp.trace(normal) * jnp.eye(len(normal))
        move = jnp.linalg.solve(normal + damping, slopes.T @ (weights * residual))[:freedom]
        # A step longer than 12 mm at the brain's rim leaves the region where the image is linear.
        move = move * jnp.minimum(1.0, 12.0 / (jnp.linalg.norm(move) + 1e-9))
        return _moved(pose, move, fixed, directions), None

    pose, _ = jax.lax.scan(step, scanner_from_mni, None, length=steps)
    return Fit(pose, explained(moving, fixed, pose))


@jax.jit
def explained(moving: Moving, fixed: Fixed, scanner_from_mni: Float[Array, "4 4"]) -> Float[Array, ""]:
    """Correlation of the template with what the head predicts of it at a pose."""
    values, _, weights = _sample(moving, fixed, scanner_from_mni)
    predictors = _predictors(values, fixed)
    prediction = predictors @ _solve(predictors, fixed.values, weights)
    share = weights / weights.sum()
    spread = fixed.values - share @ fixed.values
    left = share @ (fixed.values - prediction) ** 2 / (share @ spread**2)
    return jnp.sqrt(jnp.maximum(0.0, 1 - left))


def _moved(pose: Array, move: Array, fixed: Fixed, directions: Array) -> Array:
    """The pose after a small move about the middle of the template's points."""
    centre = (pose @ jnp.append(_middle(fixed), 1.0))[:3]
    there = jnp.eye(4).at[:3, 3].set(centre)
    back = jnp.eye(4).at[:3, 3].set(-centre)
    return there @ expm(jnp.tensordot(move, directions, axes=1)) @ back @ pose


def _middle(fixed: Fixed) -> Array:
    return fixed.weights @ fixed.points_mm / fixed.weights.sum()


def _sample(moving: Moving, fixed: Fixed, pose: Array) -> tuple[Array, Array, Array]:
    """The head's intensity at the template's points, its slope per voxel, and weights of what was seen."""
    vox_from_mni = moving.vox_from_scanner @ pose
    places = fixed.points_mm @ vox_from_mni[:3, :3].T + vox_from_mni[:3, 3]

    def at(place: Array) -> Array:
        return gather(moving.data, place[:, None], 1)[0]

    values, slopes = jax.vmap(jax.value_and_grad(at))(places)
    return values, slopes, fixed.weights * gather(moving.seen, places.T, 1) + 1e-6


def _predictors(values: Array, fixed: Fixed) -> Float[Array, "n 6"]:
    """What the template is predicted from: intensity, its square, its product with position, a constant."""
    position = (fixed.points_mm - _middle(fixed)) / ARM_MM
    columns = [values, values**2, *(values * axis for axis in position.T), jnp.ones_like(values)]
    return jnp.stack(columns, axis=1)


def _solve(predictors: Array, values: Array, weights: Array) -> Array:
    normal = (predictors * weights[:, None]).T @ predictors
    normal = normal + 1e-5 * jnp.trace(normal) * jnp.eye(len(normal))
    return jnp.linalg.solve(normal, predictors.T @ (weights * values))


def _linearize(moving: Moving, fixed: Fixed, pose: Array, directions: Array) -> tuple[Array, Array, Array]:
    """Residual of the prediction, its slopes along pose and intensity parameters, robust weights."""
    values, slope_vox, weights = _sample(moving, fixed, pose)
    predictors = _predictors(values, fixed)
    coefficients = _solve(predictors, fixed.values, weights)
    residual = fixed.values - predictors @ coefficients
    scale = 1.4826 * jnp.median(jnp.abs(residual)) + 1e-6
    weights = weights * jnp.clip(1 - (residual / (TUKEY * scale)) ** 2, 0.0) ** 2
    position = (fixed.points_mm - _middle(fixed)) / ARM_MM
    gain = coefficients[0] + 2 * coefficients[1] * values + position @ coefficients[2:5]
    slope_mm = slope_vox @ moving.vox_from_scanner[:3, :3]
    centre = (pose @ jnp.append(_middle(fixed), 1.0))[:3]
    arm = fixed.points_mm @ pose[:3, :3].T + pose[:3, 3] - centre
    motion = jnp.einsum("kab,nb->nka", directions[:, :3, :3], arm) + directions[:, :3, 3]
    along = gain[:, None] * jnp.einsum("nka,na->nk", motion, slope_mm)
    return residual, jnp.concatenate([along, predictors], axis=1), weights
