"""Where exactly are the two commissures? A small network finds them in the midsagittal plane.

Registration carries the commissures of the template over to within 1 to 3 mm, because heads differ there. People find
both in the midsagittal plane, as the centres of two bright cross-sections. A U-Net does the same: it sees that plane
and its neighbours and says, for each commissure, how likely it is at each pixel. It is applied to test-time
augmentations, poses that differ a little and their mirror images, whose spread says how certain the result is.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy.spatial.transform import Rotation

from hypodask.alignment.pose import acpc_frame
from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import COMMISSURES_TASK
from hypodask.image.intensity import SCALINGS
from hypodask.image.resampling import interpolate
from hypodask.networks.architectures import AnyNetwork
from hypodask.networks.cards import InputGeometry
from hypodask.networks.unet import UNetConfig, predictor
from hypodask.networks.weights import load_weights, resolve_model

GEOMETRY = InputGeometry(
    spacing_mm=(0.8, 0.8, 0.8),
    shape=(9, 80, 72),
    slices=5,
    slice_axis=0,
    intensity="box_bright",
    slice_step=2,
    centre_mm=(0.0, -13.0, 0.0),
)
"""64 x 57.6 mm of the midsagittal plane about the middle of the commissures, and two slices on either side of
it, 1.6 and 3.2 mm away."""

NETWORK = UNetConfig(in_channels=5, out_channels=2, widths=(16, 32, 64, 64))

_PEAK_MM = 4.0
"""A commissure lies at the mean of the pixels this near to the likeliest one, weighted by how likely they are."""

_AUGMENTATIONS = 4
"""Poses in which the network is shown a head, each of them mirrored too."""

_SHIFT_MM = (0.6, 1.5, 1.5)
_TURN_DEG = (4.0, 1.5, 1.5)
"""How far these poses are from the given one at most: shifts, then pitch, roll and yaw."""


CommissureNetwork = Callable[[Float[Array, "n y z slice"]], Float[Array, "n y z commissure"]]
"""From stacks of slices to the likelihood of each commissure at each pixel."""


class Commissures(NamedTuple):
    """Both commissures in the midsagittal plane of a pose."""

    ac_mm: Float[ndarray, "3"]
    """Anterior commissure in the space of the pose; x is 0."""
    pc_mm: Float[ndarray, "3"]
    """Posterior commissure, likewise."""
    spread_mm: Float[ndarray, "2"]
    """Root mean square distance between these and those of single augmentations, AC then PC."""
    certainty: Float[ndarray, "2"]
    """Mean share of the likelihood within 4 mm of the likeliest pixel, AC then PC."""


def find_commissures(
    data: Float32[ndarray, "i j k"],
    grid: Grid,
    acpc_from_scanner: Float[ndarray, "4 4"],
    *,
    network: CommissureNetwork | None = None,
) -> Commissures:
    """Find the commissures in the midsagittal plane of a pose that is right to about 6 mm and 10 degrees.

    Parameters
    ----------
    data
        Voxels of the scan on ``grid``, any unit.
    grid
        Where they are in the scanner.
    acpc_from_scanner
        The pose as known so far.
    network
        The shipped one by default.

    Returns
    -------
    Commissures
        In the space that ``acpc_from_scanner`` leads to, AC first.
    """
    poses = _augmented_from_acpc()
    stacks = np.stack([_stack(data, grid, pose @ acpc_from_scanner) for pose in poses])
    both = np.concatenate([stacks, stacks[..., ::-1]])
    places_mm, certainty = _places_mm(np.asarray((network or _shipped())(jnp.asarray(both))))
    acpc_from_augmented = np.linalg.inv(poses)[np.tile(np.arange(_AUGMENTATIONS), 2)]
    found = np.einsum("nij,ncj->nci", acpc_from_augmented[:, :3, :3], places_mm) + acpc_from_augmented[:, None, :3, 3]
    # The commissures lie in the midsagittal plane of the given pose.
    found[..., 0] = 0.0
    middle = np.median(found, axis=0)
    spread = np.sqrt(((found - middle) ** 2).sum(axis=-1).mean(axis=0))
    return Commissures(middle[0], middle[1], spread, certainty.mean(axis=0))


def refined_frame(acpc_from_scanner: Float[ndarray, "4 4"], found: Commissures) -> Float[ndarray, "4 4"]:
    """The pose of the commissures that were found, AC at the origin and PC on -y; the midsagittal plane is kept."""
    return acpc_frame(found.ac_mm, found.pc_mm, np.array([1.0, 0.0, 0.0])) @ acpc_from_scanner


@lru_cache(maxsize=1)
def _augmented_from_acpc() -> Float[ndarray, "augmentation 4 4"]:
    """Rigid moves of the test-time augmentations, spread evenly and the same for every scan."""
    # An additive recurrence with irrational steps fills a cube evenly and needs no random numbers.
    steps = (1.0 / 1.1347241384015194) ** np.arange(1, 7)
    offsets = 2 * ((0.5 + np.arange(_AUGMENTATIONS)[:, None] * steps) % 1.0) - 1
    poses = np.tile(np.eye(4), (_AUGMENTATIONS, 1, 1))
    turns = Rotation.from_euler("xyz", offsets[:, 3:] * _TURN_DEG, degrees=True).as_matrix()
    # About the middle of the field, so that the commissures stay where they are expected.
    centre = np.array(GEOMETRY.centre_mm)
    poses[:, :3, :3] = turns
    poses[:, :3, 3] = centre - turns @ centre + offsets[:, :3] * _SHIFT_MM
    return poses


def _stack(data: ndarray, grid: Grid, acpc_from_scanner: ndarray) -> Float32[ndarray, "y z slice"]:
    """The midsagittal plane and its neighbours, scaled for the network."""
    image = SCALINGS[GEOMETRY.intensity](
        interpolate(data, grid, GEOMETRY.grid, onto_from_grid=acpc_from_scanner, order=3)
    )
    return np.moveaxis(image[:: GEOMETRY.slice_step], 0, -1)


def _places_mm(
    likelihood: Float[ndarray, "n y z commissure"],
) -> tuple[Float[ndarray, "n commissure 3"], Float[ndarray, "n commissure"]]:
    """Place of each commissure and the share of the likelihood that lies there."""
    box = GEOMETRY.grid
    pixels = np.stack(np.meshgrid(*[np.arange(n) for n in GEOMETRY.shape[1:]], indexing="ij"), axis=-1).reshape(-1, 2)
    flat = np.moveaxis(likelihood, -1, 1).reshape(len(likelihood), likelihood.shape[-1], -1)
    peak = pixels[flat.argmax(axis=-1)]
    reach = _PEAK_MM / GEOMETRY.spacing_mm[1]
    near = np.linalg.norm(pixels - peak[:, :, None], axis=-1) <= reach
    share = (flat * near).sum(axis=-1)
    centre = (flat * near) @ pixels / share[..., None]
    middle = np.full((*centre.shape[:-1], 1), (GEOMETRY.shape[0] - 1) / 2)
    return transform_points(box.space_from_vox, np.concatenate([middle, centre], axis=-1)), share


def _likelihood_of(logits: Float[Array, "y z commissure"]) -> Float[Array, "y z commissure"]:
    """How likely each commissure is at each pixel: sums to 1 over the plane."""
    return jnp.asarray(jax.nn.softmax(logits, axis=(0, 1)))


def commissure_network(model: AnyNetwork) -> CommissureNetwork:
    """Compile a network for :func:`find_commissures`."""
    return predictor(model, slices_at_once=2 * _AUGMENTATIONS, answer=_likelihood_of)


@lru_cache(maxsize=1)
def _shipped() -> CommissureNetwork:
    (model,), _ = load_weights(resolve_model(COMMISSURES_TASK))
    return commissure_network(model)
