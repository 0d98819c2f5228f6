"""Affine registration of a head to the template brain by Gauss-Newton.

Both images are replaced by their local contrast: how much brighter a place is than its surroundings, in units of
their variation. Bias fields, bright scalp and distant coils then do not dominate the fit. The template's value at a
point is predicted from the head's by a smooth gain and a quadratic, and the pose is moved until the residual is least.
The template is predicted, and not the head, because otherwise the pose would drift into air, where a constant image
is predicted perfectly. Tukey weights leave out what the two heads do not share.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy import ndimage

from hypodask.image.resampling import gather

_ARM_MM = 70.0
"""Radius of a brain: scales rotations and stretches so that every parameter moves its surface by about 1 mm."""

CONTRAST_MM = 8.0
"""Reach of the local contrast: larger than cortex is thick, smaller than bias fields are smooth."""

_FAINT = 0.05
"""Added to the local deviation, in units of white matter, so that noise in air stays small."""

_TUKEY = 4.685
"""Residuals beyond this many robust standard deviations weigh nothing (95 % efficiency for Gaussian noise)."""


class Moving(NamedTuple):
    """The head that is registered."""

    data: Float[Array, "i j k"]
    """Local contrast."""
    seen: Float[Array, "i j k"]
    """1 inside the scan's field of view, 0 outside: there the images are not compared."""
    vox_from_scanner: Float[Array, "4 4"]


class Fixed(NamedTuple):
    """Points of the template brain and their intensities."""

    points_mm: Float[Array, "3 n"]
    values: Float[Array, "n"]
    """Local contrast."""
    weights: Float[Array, "n"]
    """How much a point counts, 0 to 1."""


class Fit(NamedTuple):
    """Where the template lies in the scanner, and how well it explains the head."""

    scanner_from_mni: Float[Array, "4 4"]
    correlation: Float[Array, ""]
    """Correlation of the template with its prediction from the head, 0 to 1."""


_SORTED = 4096
"""At least so many residuals are sorted for the robust standard deviation, which is then known to about 2 %."""

_CONVERGED_MM = 0.02
"""A step that moves the brain's surface by less is the last."""

_LONGEST_MM = 12.0
"""Longer steps, on the surface of the brain, are shortened: beyond, the image is not linear."""


def _generators() -> Float[Array, "12 4 4"]:
    """Directions in which an affine can move: 3 shifts, 3 rotations, 1 scale, then 5 stretches and shears."""
    zero = jnp.zeros((12, 4, 4))
    shifts = zero.at[jnp.arange(3), jnp.arange(3), 3].set(1.0)
    turns = [(1, 2), (2, 0), (0, 1)]
    for number, (a, b) in enumerate(turns):
        shifts = shifts.at[3 + number, a, b].set(-1 / _ARM_MM).at[3 + number, b, a].set(1 / _ARM_MM)
        shifts = shifts.at[9 + number, a, b].set(1 / _ARM_MM).at[9 + number, b, a].set(1 / _ARM_MM)
    diagonals = jnp.array([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]) / _ARM_MM
    return shifts.at[jnp.arange(6, 9)[:, None], jnp.arange(3), jnp.arange(3)].set(diagonals)


def local_contrast(
    data: Float[ndarray, "i j k"], seen: Float[ndarray, "i j k"], spacing_mm: float, reach_mm: float = CONTRAST_MM
) -> Float32[ndarray, "i j k"]:
    """How much brighter each place is than its surroundings, over their standard deviation.

    Parameters
    ----------
    data
        Intensities, white matter near 1, on cubic voxels.
    seen
        1 where the scan's field of view is, 0 elsewhere.
    spacing_mm
        Voxel size.
    reach_mm
        Standard deviation of the Gaussian that weighs the surroundings.

    Examples
    --------
    >>> edge = np.repeat([0.0, 1.0], 16)[:, None, None] * np.ones((32, 32, 32))
    >>> contrast = local_contrast(edge, np.ones_like(edge), 4.0)
    >>> contrast[[0, 15, 16, 31], 16, 16].astype(float).round(1).tolist()
    [0.0, -1.2, 1.2, 0.0]
    """
    blur = partial(ndimage.gaussian_filter, sigma=reach_mm / spacing_mm, mode="constant", truncate=3.0)
    count = blur(seen) + 1e-6
    above = (data - blur(data * seen) / count) * seen
    contrast: ndarray = above / (np.sqrt(blur(above**2) / count) + _FAINT)
    return contrast.astype(np.float32)


@partial(jax.jit, static_argnames=("freedom", "steps"))
def register(moving: Moving, fixed: Fixed, scanner_from_mni: Float[Array, "4 4"], *, freedom: int, steps: int) -> Fit:
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
        Gauss-Newton steps at most; a step shorter than ``_CONVERGED_MM`` is the last.
    """
    directions = _generators()[:freedom]

    def unconverged(state: tuple[Array, Array, Array]) -> Array:
        _, length_mm, taken = state
        return (length_mm > _CONVERGED_MM) & (taken < steps)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        pose, _, taken = state
        residual, slopes, weights = _linearize(moving, fixed, pose, directions)
        normal = (slopes * weights) @ slopes.T
        damping = 1e-3 * jnp.diag(jnp.diag(normal)) + 1e-6 * jnp.trace(normal) * jnp.eye(len(normal))
        move = jnp.linalg.solve(normal + damping, slopes @ (weights * residual))[:freedom]
        length_mm = jnp.linalg.norm(move)
        move = move * jnp.minimum(1.0, _LONGEST_MM / (length_mm + 1e-9))
        return _moved(pose, move, fixed, directions), length_mm, taken + 1

    pose, _, _ = jax.lax.while_loop(unconverged, step, (scanner_from_mni, jnp.array(jnp.inf), jnp.array(0)))
    return Fit(pose, _explained(moving, fixed, pose))


@partial(jax.jit, static_argnames=("freedom", "steps"))
def register_from(moving: Moving, fixed: Fixed, starts: Float[Array, "start 4 4"], *, freedom: int, steps: int) -> Fit:
    """As ``register``, from several starts at once; every field of what is returned has one entry for each."""
    return jax.vmap(lambda start: register(moving, fixed, start, freedom=freedom, steps=steps))(starts)


@jax.jit
def _explained(moving: Moving, fixed: Fixed, scanner_from_mni: Float[Array, "4 4"]) -> Float[Array, ""]:
    """Correlation of the template with what the head predicts of it at a pose, 0 to 1."""
    values, _, weights = _sample(moving, fixed, scanner_from_mni)
    predictors = _predictors(values, fixed)
    prediction = _solve(predictors, fixed.values, weights) @ predictors
    share = weights / weights.sum()
    spread = fixed.values - share @ fixed.values
    left = share @ (fixed.values - prediction) ** 2 / (share @ spread**2)
    return jnp.sqrt(jnp.maximum(0.0, 1 - left))


@jax.jit
def likeness(moving: Moving, fixed: Fixed, scanner_from_mni: Float[Array, "4 4"]) -> Float[Array, ""]:
    """Correlation of head and template at a pose, -1 to 1; nothing is fitted, so that its sign says which is bright."""
    values, _, weights = _sample(moving, fixed, scanner_from_mni)
    share = weights / weights.sum()
    here, there = values - share @ values, fixed.values - share @ fixed.values
    return share @ (here * there) / (jnp.sqrt((share @ here**2) * (share @ there**2)) + 1e-6)


def _moved(pose: Array, move: Array, fixed: Fixed, directions: Array) -> Array:
    """The pose after a small move about the middle of the template's points."""
    centre = (pose @ jnp.append(_middle(fixed), 1.0))[:3]
    there = jnp.eye(4).at[:3, 3].set(centre)
    back = jnp.eye(4).at[:3, 3].set(-centre)
    return there @ _exponential(jnp.tensordot(move, directions, axes=1)) @ back @ pose


def _exponential(matrix: Array) -> Float[Array, "4 4"]:
    """Matrix exponential of a small move, by its series; jax.scipy's takes seconds to compile.

    The linear part of a move of ``_LONGEST_MM`` is at most 0.3, so eight terms leave 1e-9.
    """
    total = jnp.eye(4)
    for order in range(8, 0, -1):
        total = jnp.eye(4) + matrix @ total / order
    return total


def _middle(fixed: Fixed) -> Float[Array, "3"]:
    return fixed.points_mm @ fixed.weights / fixed.weights.sum()


def _sample(moving: Moving, fixed: Fixed, pose: Array) -> tuple[Array, Array, Array]:
    """The head's intensity at the template's points, its slope per voxel, and weights of what was seen."""
    vox_from_mni = moving.vox_from_scanner @ pose
    places = vox_from_mni[:3, :3] @ fixed.points_mm + vox_from_mni[:3, 3:]

    def at(place: Array) -> Array:
        return gather(moving.data, place[:, None], 1)[0]

    values, slopes = jax.vmap(jax.value_and_grad(at), in_axes=1, out_axes=(0, 1))(places)
    return values, slopes, fixed.weights * gather(moving.seen, places, 1) + 1e-6


def _predictors(values: Array, fixed: Fixed) -> Float[Array, "6 n"]:
    """What the template is predicted from: intensity, its square, its product with position, a constant."""
    return jnp.stack([values, values**2, *(values * _position(fixed)), jnp.ones_like(values)])


def _position(fixed: Fixed) -> Float[Array, "3 n"]:
    """Place in the brain, about -1 to 1."""
    return (fixed.points_mm - _middle(fixed)[:, None]) / _ARM_MM


def _solve(predictors: Array, values: Array, weights: Array) -> Float[Array, "6"]:
    """Coefficients of the weighted least squares prediction, with a little damping."""
    normal = (predictors * weights) @ predictors.T
    normal = normal + 1e-5 * jnp.trace(normal) * jnp.eye(len(normal))
    return jnp.linalg.solve(normal, predictors @ (weights * values))


def _linearize(moving: Moving, fixed: Fixed, pose: Array, directions: Array) -> tuple[Array, Array, Array]:
    """Residual of the prediction, its slopes along pose and intensity parameters, robust weights."""
    values, slope_vox, weights = _sample(moving, fixed, pose)
    predictors = _predictors(values, fixed)
    coefficients = _solve(predictors, fixed.values, weights)
    residual = fixed.values - coefficients @ predictors
    # Robust standard deviation of a sample spread over the brain; to sort all residuals costs more than the rest.
    sample = residual[:: max(1, len(residual) // _SORTED)]
    deviation = 1.4826 * jnp.median(jnp.abs(sample)) + 1e-6
    weights = weights * jnp.clip(1 - (residual / (_TUKEY * deviation)) ** 2, 0.0) ** 2
    gain = coefficients[0] + 2 * coefficients[1] * values + coefficients[2:5] @ _position(fixed)
    along = gain * _slopes_along(moving.vox_from_scanner[:3, :3].T @ slope_vox, fixed, pose, directions)
    return residual, jnp.concatenate([along, predictors]), weights


def _slopes_along(slope_mm: Array, fixed: Fixed, pose: Array, directions: Array) -> Float[Array, "freedom n"]:
    """How the head's intensity at each point changes along each direction of movement."""
    arm = pose[:3, :3] @ (fixed.points_mm - _middle(fixed)[:, None])
    moments = slope_mm[:, None] * jnp.concatenate([arm, jnp.ones_like(arm[:1])])
    return directions[:, :3].reshape(-1, 12) @ moments.reshape(12, -1)
