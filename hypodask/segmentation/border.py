"""The border of the cranial cavity, looked at along its normals.

A network that outlines the cavity in coarse cells guesses its border from the shape of the head where fluid and bone
look alike, and nearly so where they do not. Here its outline is a first guess. Across it the scan is sampled along
normals, a small network says how far along each of them the border lies, and how sure it is of that, and the outline
moves so far, as smoothly as a skull is. What is fitted is the place of one edge in a frame that has it in the middle:
much less is to be learnt than for outlining a head.

Distances are in mm, negative inside; grids are in AC-PC space with voxels of 1 mm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int
from numpy import ndarray
from scipy import special

from hypodask.alignment.pose import Alignment
from hypodask.grid import Grid, head_grid, transform_points
from hypodask.labels import LabelTable
from hypodask.network.profiles import ProfileNetConfig
from hypodask.network.weights import InputGeometry, Task
from hypodask.pieces import largest_piece, without_holes
from hypodask.resample import gather, smoothed
from hypodask.scan import Scan
from hypodask.segmentation.segmentation import Segmentation

if TYPE_CHECKING:
    from hypodask.segmentation.predict import ShippedNetwork

REACH_MM, STEP_MM = 8.0, 0.5
"""How far from the guess the border is looked for, and samples along a normal."""

PLACES_MM = np.arange(-REACH_MM, REACH_MM + STEP_MM / 2, STEP_MM, dtype=np.float32)
"""Places along a normal, from inside to outside."""

RINGS_MM, AROUND = (1.5, 4.0), 6
"""Parallels that are looked at together with a normal: so many on each circle around it."""

LINES = 1 + len(RINGS_MM) * AROUND
CONTEXT = 6
"""Numbers that say where on the skull a normal is: its foot and its direction, left like right."""

ONE_IN = 8
"""How many voxels of the surface share a normal. With 4 in its place errors are the same within 0.02 % of the volume; a
second round, from where the outline has moved to, sees 3 % more of a cavity that has grown by 2 mm and takes 0.8 s."""

AIR, STRIPPED = 0.05, 0.4
"""A brain was stripped if outside of more of it than this nothing is brighter than air, in units of ``head_dark``:
1.7 % of white matter, as what resampling leaves around a mask. Three stripped heads have 0.76 to 0.84 in any pose,
fourteen others 0.14 at most, those with a cut vertex among them."""

SKULL_BASE_MM = -70.0
"""Below this the cavity ends as the network says: it goes on into the spinal canal, and no border is to be seen."""

SMOOTH_GUESS_MM, SMOOTH_MOVE_MM = 1.0, 2.0
"""Standard deviations of the Gaussians over the guess, whose voxels would else give the normals, and over the move."""

NORMALS_AT_ONCE = 1024
"""So that features stay near the cache."""

FARTHEST_MM = 4.0
"""By how much it moves at most."""

LEAST_SHARE = 1e-7
"""In a voxel: so small a number still differs from 1 when taken from it."""

FARTHEST_SEEN_MM = -SMOOTH_GUESS_MM * float(special.ndtri(LEAST_SHARE))
"""What it stands for."""

LEAST_VARIANCE_MM2 = 0.25
"""Of a place, so that no normal has it all its way."""

LEAST_WEIGHT = 1e-6
"""Where all normals near are less sure than this, nothing moves."""

CONTEXT_SCALE_MM = 80.0

BORDER_BOX = head_grid(1.0)

BORDER_GEOMETRY = InputGeometry(
    spacing_mm=BORDER_BOX.spacing_mm,
    shape=BORDER_BOX.shape,
    slices=1,
    slice_axis=1,
    intensity="head_dark",
    centre_mm=tuple(BORDER_BOX.centre_mm.tolist()),
)
"""The image that normals are sampled from."""

BORDER_NETWORK = ProfileNetConfig(in_channels=LINES + CONTEXT, out_channels=len(PLACES_MM))


class Normals(NamedTuple):
    """Lines across a surface."""

    voxels: ndarray
    """The voxel of each: (n, 3)."""
    feet: Float32[ndarray, "n 3"]
    """Where each crosses the surface, in voxels."""
    directions: Float32[ndarray, "n 3"]
    """Outwards, of length 1."""


def distance_from(share: Float[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """Distance of each voxel from the smoothed border of a structure, from the share of it in voxels of 1 mm.

    Smoothed by a Gaussian, a plane at some distance leaves the share of a normal distribution: that is turned round. It
    costs a tenth of a distance transform and holds up to some 4 mm, as far as the border moves.
    """
    smooth = smoothed(share.astype(np.float32), SMOOTH_GUESS_MM)
    # Most voxels are far from the border: they all have the same distance.
    distance = np.where(smooth > 0.5, np.float32(-FARTHEST_SEEN_MM), np.float32(FARTHEST_SEEN_MM))
    near = (smooth > LEAST_SHARE) & (smooth < 1 - LEAST_SHARE)
    distance[near] = -SMOOTH_GUESS_MM * special.ndtri(smooth[near])
    return distance


def crossed(distance: Float32[ndarray, "i j k"]) -> Int[ndarray, "n 3"]:
    """Voxels that the surface crosses, away from the faces of the grid."""
    inner = np.abs(distance[1:-1, 1:-1, 1:-1]) < 0.5
    return np.argwhere(inner) + 1


def one_in(step: int, voxels: Int[ndarray, "n 3"]) -> Int[ndarray, "m 3"]:
    """Every so many of some voxels, evenly spread over planes of any direction.

    >>> len(one_in(3, np.argwhere(np.ones((3, 3, 3)))))
    9
    """
    return voxels[voxels.sum(axis=1) % step == 0]


def normals_at(distance: Float32[ndarray, "i j k"], voxels: Int[ndarray, "n 3"]) -> Normals:
    """The normals through voxels that the surface crosses."""
    steps = np.eye(3, dtype=int)
    slope = np.stack([distance[tuple((voxels + s).T)] - distance[tuple((voxels - s).T)] for s in steps], 1) / 2
    size = np.linalg.norm(slope, axis=1, keepdims=True)
    directions = slope / np.maximum(size, 1e-3)
    # Where the surface folds its slope is small, and the foot would be far away.
    feet = voxels - distance[tuple(voxels.T)][:, None] / np.maximum(size, 0.3) * directions
    return Normals(voxels, feet.astype(np.float32), directions.astype(np.float32))


def profiles(
    image: Float[ndarray, "i j k"], normals: Normals, turns: Float[ndarray, "n"] | float = 0.0
) -> Float32[ndarray, "n line place"]:
    """Intensities along each normal and the parallels around it, which begin at an angle of ``turns``."""
    # Beyond the grid there is nothing; lines further out are clamped to that.
    voxels = jnp.pad(jnp.asarray(image, jnp.float32), 1)
    feet = 1 + _parallels(normals, np.broadcast_to(turns, len(normals.feet)))
    return in_batches(partial(_samples, voxels), feet, normals.directions)


def _samples(
    voxels: Float[Array, "i j k"], feet: Float32[ndarray, "n line 3"], directions: Float32[ndarray, "n 3"]
) -> Float[Array, "n line place"]:
    places = feet[:, :, None] + PLACES_MM[:, None] * directions[:, None, None]
    return _gathered(voxels, places.reshape(-1, 3).T).reshape(places.shape[:3])


_gathered = jax.jit(partial(gather, order=1))


def in_batches(function: Callable[..., Array], *parts: Float32[ndarray, "n ..."]) -> Float32[ndarray, "n ..."]:
    """What a function makes of some normals at a time, always as many, so that it is compiled once."""
    number = len(parts[0])
    parts = tuple(np.pad(part, ((0, -number % NORMALS_AT_ONCE), *[(0, 0)] * (part.ndim - 1))) for part in parts)
    starts = range(0, len(parts[0]), NORMALS_AT_ONCE)
    made = [np.asarray(function(*(part[start : start + NORMALS_AT_ONCE] for part in parts))) for start in starts]
    return np.concatenate(made)[:number]


def _parallels(normals: Normals, turns: Float[ndarray, "n"]) -> Float32[ndarray, "n line 3"]:
    """Feet of each normal and of the parallels around it."""
    along = normals.directions
    # Any axis but the one that is nearest to the normal gives a frame.
    axis = np.eye(3)[np.abs(along).argmin(axis=1)]
    first = np.cross(along, axis)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angles = turns[:, None] + 2 * np.pi * np.arange(AROUND) / AROUND
    circle = np.cos(angles)[..., None] * first[:, None] + np.sin(angles)[..., None] * second[:, None]
    rings = [normals.feet[:, None] + radius * circle for radius in RINGS_MM]
    return np.concatenate([normals.feet[:, None], *rings], axis=1).astype(np.float32)


def darker_outside(lines: Float32[ndarray, "n line place"], level: float) -> Bool[ndarray, "n"]:
    """Where nothing is brighter than this beyond the reach of a move: what ends there is the image, not the cavity."""
    return np.asarray((lines[:, :, PLACES_MM >= FARTHEST_MM] <= level).all(axis=(1, 2)))


def context(normals: Normals, grid: Grid) -> Float32[ndarray, "n 6"]:
    """Where on the skull normals are: foot and direction in AC-PC space, those on the left as their mirror images."""
    feet = transform_points(grid.space_from_vox, normals.feet)
    side = np.where(feet[:, :1] < 0, -1.0, 1.0) * [1.0, 0.0, 0.0] + [0.0, 1.0, 1.0]
    return np.concatenate([feet * side / CONTEXT_SCALE_MM, normals.directions * side], axis=1).astype(np.float32)


def joined(lines: Float[Array, "n line place"], around: Float[Array, "n 6"]) -> Float[Array, "n place channel"]:
    """What the network sees of each normal: its lines, then its context, which is the same at every place."""
    at_places = jnp.broadcast_to(around[:, None], (len(lines), lines.shape[2], CONTEXT))
    return jnp.concatenate([jnp.swapaxes(lines, 1, 2), at_places], axis=-1)


def moved(
    distance: Float32[ndarray, "i j k"],
    normals: Normals,
    places_mm: Float[ndarray, "n"],
    variances_mm2: Float[ndarray, "n"],
) -> Float32[ndarray, "i j k"]:
    """Distance from a surface that has moved to these places on its normals, as far as their variances allow.

    In between, and where normals disagree, it moves by the mean of what is near, weighted by how sure each normal is.
    """
    sure = 1 / (variances_mm2 + LEAST_VARIANCE_MM2)
    move, weight = (np.zeros(distance.shape, np.float32) for _ in range(2))
    move[tuple(normals.voxels.T)], weight[tuple(normals.voxels.T)] = sure * places_mm, sure
    move, weight = (smoothed(part, SMOOTH_MOVE_MM) for part in (move, weight))
    return distance - move / (weight + LEAST_WEIGHT)


def share_inside(distance: Float[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """How much of each voxel lies inside, were it a plane that crosses it.

    >>> share_inside(np.array([[[-3.0, -0.5, 0.0, 0.25, 2.0]]])).ravel().tolist()
    [1.0, 1.0, 0.5, 0.25, 0.0]
    """
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class BorderedNetwork:
    """A network for the cavity whose outline moves to the border that is seen."""

    first: "ShippedNetwork"
    """Gives the guess."""
    border: "ShippedNetwork"
    """Looks along normals."""
    calibrated: bool = True

    @property
    def task(self) -> Task:
        return self.first.task

    @property
    def name(self) -> str:
        """Name and weights of the first network, and weights of the second."""
        return f"{self.first.name}+{self.border.digest[:12]}"

    @property
    def protocol(self) -> str:
        return self.first.protocol

    @property
    def labels(self) -> LabelTable:
        return self.first.labels

    @property
    def relative_volume_sd(self) -> float | None:
        return self.border.card.relative_volume_sd

    @property
    def volume_heads(self) -> int | None:
        return self.border.card.volume_heads

    @property
    def part_volume_sd(self) -> Mapping[str, float]:
        return self.border.card.part_volume_sd

    @cached_property
    def _chances(self) -> Callable[..., Array]:
        """From lines and context to the probability of each place."""
        (model,) = self.border.members
        return partial(_chances_by, *nnx.split(model))

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan; of a stripped brain those of the first network."""
        # Both look at the same image.
        image = self.first.image_of(scan, alignment)
        sketch = self.first.outlined(image, sketch=True)
        guess = without_holes(largest_piece(sketch.posteriors[1] > 0.5, by_corners=False))
        inside = self.outlined(image, guess, sketch.grid)
        if inside is None:
            return sketch
        return Segmentation(np.stack([1 - inside, inside]), sketch.grid, self.labels)

    def outlined(
        self, image: Float[ndarray, "x y z"], inside: Bool[ndarray, "x y z"], grid: Grid
    ) -> Float32[ndarray, "x y z"] | None:
        """Share of the cavity in each voxel, from a scaled image and a guess; None if nothing was imaged around it."""
        share = inside.astype(np.float32)
        distance = distance_from(share)
        normals = normals_at(distance, one_in(ONE_IN, crossed(distance)))
        if not len(normals.feet):
            return share
        lines = profiles(image, normals)
        if darker_outside(lines, AIR).mean() > STRIPPED:
            return None
        unseen = darker_outside(lines, 0.0)
        places, variances = self.places_on(lines, context(normals, grid))
        stays = unseen | (transform_points(grid.space_from_vox, normals.feet)[:, 2] < SKULL_BASE_MM)
        places = np.where(stays, 0.0, np.clip(places, -FARTHEST_MM, FARTHEST_MM))
        return share_inside(moved(distance, normals, places, np.where(stays, 0.0, variances)))

    def places_on(
        self, lines: Float32[ndarray, "n line place"], around: Float32[ndarray, "n 6"]
    ) -> tuple[Float32[ndarray, "n"], Float32[ndarray, "n"]]:
        """Mean and variance of where on each normal the border lies, mm and mm2."""
        chances = in_batches(self._chances, lines, around)
        mean = chances @ PLACES_MM
        return mean, np.maximum(chances @ PLACES_MM**2 - mean**2, 0.0)


@partial(jax.jit, static_argnames="graph")
def _chances_by(graph: Any, state: Any, lines: Array, around: Array) -> Array:
    """Networks of one architecture share what is compiled, and a network that is loaded again."""
    return jax.nn.softmax(nnx.merge(graph, state)(joined(lines, around)))
