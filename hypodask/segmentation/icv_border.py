"""The boundary of the intracranial volume (ICV), found on lines across it.

A coarse network first segments the whole head. Where fluid and bone are equally dark it cannot see the boundary, and
guesses it from the shape of the head. This module corrects that guess:

1. **Normals.** A normal is a straight line that crosses the surface of the coarse mask at a right angle. The point
   where it crosses is its *foot*. :func:`normals_at` puts one on every eighth voxel of the surface.
2. **Profiles.** The image is sampled every 0.5 mm from 8 mm inside the foot to 8 mm outside (:data:`OFFSETS_MM`): along
   the normal itself, and along twelve lines parallel to it (:func:`profiles`).
3. **The network's answer.** From these 13 lines, and from where on the skull the normal is, a small network says for
   each of the 33 offsets how probable it is that the boundary lies there. The mean offset, weighted by these
   probabilities, is the position of the boundary on the normal; their variance says how certain that is.
4. **The move.** The surface of the mask moves to these positions. Between normals it moves by the mean of the normals
   around, and certain normals count more than uncertain ones (:func:`_move_surface`). Like a skull, the result is
   smooth.

The network has to place one edge in an image that always has the edge near the middle. That takes much less learning
than to segment a head.

Distances from a surface are negative inside. Grids are in AC-PC space. Every length here is one of the network's frame,
in which a voxel is 1 mm: where a grid has other voxels, because a larger head is shown to the networks at the size that
they know, a "mm" is the width of a voxel. So the result grows with the head.

A scan and its mirror image give mirrored results: the coarse network sees both, and normals and their parallels are
placed alike on both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int
from numpy import ndarray
from scipy import special

from hypodask.alignment.pose import Alignment
from hypodask.core.grid import Grid, head_grid, transform_points
from hypodask.core.structures import LabelTable
from hypodask.image.masks import largest_piece, without_holes
from hypodask.image.resampling import gather, smoothed
from hypodask.networks.cards import InputGeometry
from hypodask.networks.profiles import ProfileNetConfig
from hypodask.scan.scan import Scan
from hypodask.segmentation.network import Elsewhere, Ensemble, VolumeError, part_of
from hypodask.segmentation.segmentation import Segmentation

# --- What the network sees and answers; its weights depend on all of these ---

REACH_MM, STEP_MM = 8.0, 0.5
"""The image is sampled this far from the foot of a normal, inside and outside, in these steps. The surface moves by
4 mm at most (:data:`LARGEST_MOVE_MM`); the other 4 mm show what lies behind the boundary."""

OFFSETS_MM = np.arange(-REACH_MM, REACH_MM + STEP_MM / 2, STEP_MM, dtype=np.float32)
"""Distances from the foot at which a normal is sampled, from inside to outside; the network's answer has one
probability for each."""

_RING_RADII_MM, _LINES_PER_RING = (1.5, 4.0), 6
"""The lines beside a normal: two circles around it, with so many parallels on each. They show the network a piece of
the surface instead of a single, noisy line."""

_LINES_PER_NORMAL = 1 + len(_RING_RADII_MM) * _LINES_PER_RING

_LOCATION_SIZE = 6
"""Numbers that say where on the skull a normal is: three coordinates of its foot, three of its direction."""

LOCATION_SCALE_MM = 80.0
"""About half the size of a head: brings the coordinates of a foot to about -1 to 1, as a network learns best."""

_IMAGE_GRID = head_grid(1.0)

BOUNDARY_GEOMETRY = InputGeometry(
    spacing_mm=_IMAGE_GRID.spacing_mm,
    shape=_IMAGE_GRID.shape,
    slices=1,
    slice_axis=1,
    intensity="head_dark",
    centre_mm=tuple(_IMAGE_GRID.centre_mm.tolist()),
    frame="head_size",
)
"""The image that is sampled. The coarse network sees the same one, so that a scan is resampled once for both."""

BOUNDARY_ARCHITECTURE = ProfileNetConfig(in_channels=_LINES_PER_NORMAL + _LOCATION_SIZE, out_channels=len(OFFSETS_MM))

# --- How the mask is moved ---

_SMOOTH_COARSE_MM, SMOOTH_GUESS_MM, _SMOOTH_MOVE_MM = 1.0, 1.0, 2.0
"""Standard deviations of three Gaussians. The first smooths the coarse posteriors: it closes the tunnels and cuts the
thin bridges that they have in the sagittal sinus and in marrow. On four whole heads, loops of the mask that moved fall
from 1 to 4 to 0 to 2 (3 to 9 without the mirror image), and the volume changes by 0.03 to 0.07 %; 1.5 mm leave 0 or 1
but change it by up to 0.2 %. The second smooths the coarse mask: without it, the steps of its voxels would set the
directions of the normals. The third averages the moves of normals that are near each other."""

_VOXELS_PER_NORMAL = 8
"""Surface voxels for each normal. Twice as many normals (4 voxels for each) give the same errors within 0.02 % of the
volume. A second round of moves, from where the first one ended, would see 3 % more of an ICV that has grown by 2 mm,
but takes 0.8 s."""

LARGEST_MOVE_MM = 4.0
"""The surface moves by this much at most. Up to here the distance from a smoothed mask (:func:`signed_distance`) is
right, and up to here the masks were wrong that the network learnt from."""

SKULL_BASE_MM = -70.0
"""Below this z in AC-PC space nothing moves: the ICV continues into the spinal canal, and there is no boundary to
see."""

_AIR_LEVEL, _STRIPPED_SHARE = 0.05, 0.4
"""A skull was stripped if more than this share of the normals sees nothing brighter than this level outside of the
brain. The level is in units of ``head_dark``: 1.7 % of white matter, as much as resampling leaves around a mask. Three
stripped heads have a share of 0.76 to 0.84 in any pose, fourteen others 0.14 at most, those with a cut vertex among
them."""

_VARIANCE_FLOOR_MM2 = 0.25
"""Added to the variance of every position, so that no single normal dominates its neighbours."""

_SMALLEST_WEIGHT = 1e-6
"""Added to the sum of the weights around a voxel. Where all normals near are less certain than this, nothing moves."""

_SMALLEST_SHARE = 1e-7
"""Smallest share inside of a smoothed voxel that is turned into a distance. One minus a smaller number would be 1 in
32 bits."""

_LARGEST_DISTANCE_MM = -SMOOTH_GUESS_MM * float(special.ndtri(_SMALLEST_SHARE))
"""The distance (mm) at which the share equals ``_SMALLEST_SHARE``; voxels further away are given this distance."""

_NORMALS_PER_BATCH = 1024
"""Normals that the network sees at a time: few enough for their features to stay near the cache."""


_UNSEEN_SD_MM = 2.0
"""Standard deviation of the boundary on a normal outside of which nothing was imaged: that of the errors that the
coarse masks had which the network learnt from."""


class Refined(NamedTuple):
    """An ICV whose surface was moved to the boundary that is seen."""

    inside: Float32[ndarray, "x y z"]
    """Share of each voxel that lies in the ICV."""
    sd_mm: float
    """Standard deviation of the boundary's position, root mean square over the normals."""


class Normals(NamedTuple):
    """Lines at a right angle to a surface, in voxels of its grid."""

    voxels: Int[ndarray, "n 3"]
    """The voxel of the surface that each belongs to."""
    feet: Float32[ndarray, "n 3"]
    """Where each crosses the surface, in voxels."""
    directions: Float32[ndarray, "n 3"]
    """Outwards, of length 1."""


def signed_distance(mask: Bool[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """Distance (mm) of each voxel from the smoothed surface of a mask, negative inside.

    A Gaussian that smooths a half space leaves, at each distance from its plane, the cumulative normal distribution of
    that distance. The inverse of that distribution therefore gives the distance. It costs a tenth of a distance
    transform and is right up to some 4 mm, as far as the surface moves.
    """
    share = smoothed(mask.astype(np.float32), SMOOTH_GUESS_MM)
    # Most voxels are far from the surface: they all get the same distance.
    distance = np.where(share > 0.5, np.float32(-_LARGEST_DISTANCE_MM), np.float32(_LARGEST_DISTANCE_MM))
    near = (share > _SMALLEST_SHARE) & (share < 1 - _SMALLEST_SHARE)
    distance[near] = -SMOOTH_GUESS_MM * special.ndtri(share[near])
    return distance


def _partial_volume(distance: Float[ndarray, "i j k"]) -> Float32[ndarray, "i j k"]:
    """Share of each voxel that lies inside, as if the surface were a plane parallel to the voxel's faces.

    >>> _partial_volume(np.array([[[-3.0, -0.5, 0.0, 0.25, 2.0]]])).ravel().tolist()
    [1.0, 1.0, 0.5, 0.25, 0.0]
    """
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def surface_voxels(distance: Float32[ndarray, "i j k"]) -> Int[ndarray, "n 3"]:
    """Indices of the voxels that a surface passes through, except those on the faces of the grid."""
    inner = np.abs(distance[1:-1, 1:-1, 1:-1]) < 0.5
    return np.argwhere(inner) + 1


def _some_of(voxels: Int[ndarray, "n 3"], width: int) -> Int[ndarray, "m 3"]:
    """Every eighth of these voxels: an even spread on surfaces of any direction, and the same one on both sides.

    They lie on planes x + y + z = constant, where x counts from the middle of a grid that has ``width`` voxels along x.
    """
    from_middle = np.abs(2 * voxels[:, 0] - (width - 1)) // 2
    return voxels[(from_middle + voxels[:, 1] + voxels[:, 2]) % _VOXELS_PER_NORMAL == 0]


def normals_at(distance: Float32[ndarray, "i j k"], voxels: Int[ndarray, "n 3"]) -> Normals:
    """The normals of a surface in voxels that it passes through.

    Parameters
    ----------
    distance
        From the surface, mm; its gradient is the direction of a normal.
    voxels
        Indices of surface voxels, see :func:`surface_voxels`.
    """
    steps = np.eye(3, dtype=int)
    slope = np.stack([distance[tuple((voxels + s).T)] - distance[tuple((voxels - s).T)] for s in steps], 1) / 2
    size = np.linalg.norm(slope, axis=1, keepdims=True)
    directions = slope / np.maximum(size, 1e-3)
    # Where the surface folds, the slope is small and the foot would be far away.
    feet = voxels - distance[tuple(voxels.T)][:, None] / np.maximum(size, 0.3) * directions
    return Normals(voxels, feet.astype(np.float32), directions.astype(np.float32))


def profiles(
    image: Float[ndarray, "i j k"], normals: Normals, turns: Float[ndarray, "n"] | float = 0.0
) -> Float32[ndarray, "n line offset"]:
    """Intensities at :data:`OFFSETS_MM` along each normal, then along the parallels around it.

    Parameters
    ----------
    image
        On the grid that the normals are in.
    normals
        Where to sample.
    turns
        Angle (radians) by which the parallels are turned around their normal. It does not matter in use; learning draws
        it, so that the network answers alike for every angle.
    """
    # Zeros around the image: samples outside of it are clamped to them.
    voxels = jnp.pad(jnp.asarray(image, jnp.float32), 1)
    feet = 1 + _feet_of_lines(normals, np.broadcast_to(turns, len(normals.feet)))

    def sample(
        feet: Float32[ndarray, "n line 3"], directions: Float32[ndarray, "n 3"]
    ) -> Float[Array, "n line offset"]:
        at = feet[:, :, None] + OFFSETS_MM[:, None] * directions[:, None, None]
        return _gather_linear(voxels, at.reshape(-1, 3).T).reshape(at.shape[:3])

    return _in_batches(sample, feet, normals.directions)


def _feet_of_lines(normals: Normals, turns: Float[ndarray, "n"]) -> Float32[ndarray, "n line 3"]:
    """Feet of each normal and of the parallels around it, in voxels; those of a mirrored normal are mirrored."""
    side = np.where(normals.directions[:, :1] < 0, -1.0, 1.0) * [1.0, 0.0, 0.0] + [0.0, 1.0, 1.0]
    # All circles are made on the side where x points outwards; a cross product of mirrored axes would not be mirrored.
    along = normals.directions * side
    # Two axes across the normal. The cross product with the coordinate axis that is least parallel to it is never 0.
    axis = np.eye(3)[np.abs(along).argmin(axis=1)]
    first = np.cross(along, axis)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angles = turns[:, None] + 2 * np.pi * np.arange(_LINES_PER_RING) / _LINES_PER_RING
    circle = np.cos(angles)[..., None] * first[:, None] + np.sin(angles)[..., None] * second[:, None]
    circle = circle * side[:, None]
    rings = [normals.feet[:, None] + radius * circle for radius in _RING_RADII_MM]
    return np.concatenate([normals.feet[:, None], *rings], axis=1).astype(np.float32)


_gather_linear = jax.jit(partial(gather, order=1))


def _in_batches(function: Callable[..., Array], *arrays: Float32[ndarray, "n ..."]) -> Float32[ndarray, "n ..."]:
    """Call a function on batches of equal size, the last one padded with zeros, so that it is compiled once."""
    number = len(arrays[0])
    padded = [np.pad(a, ((0, -number % _NORMALS_PER_BATCH), *[(0, 0)] * (a.ndim - 1))) for a in arrays]
    starts = range(0, len(padded[0]), _NORMALS_PER_BATCH)
    answers = [np.asarray(function(*(a[start : start + _NORMALS_PER_BATCH] for a in padded))) for start in starts]
    return np.concatenate(answers)[:number]


def location_features(normals: Normals, grid: Grid) -> Float32[ndarray, "n 6"]:
    """Where on the skull normals are: foot, in units of 80 mm of the network's frame, and direction in AC-PC space.

    A normal on the left has those of its mirror image on the right: what is learnt on one side holds on both.
    """
    feet = _feet_in_frame(normals, grid)
    side = np.where(feet[:, :1] < 0, -1.0, 1.0) * [1.0, 0.0, 0.0] + [0.0, 1.0, 1.0]
    return np.concatenate([feet * side / LOCATION_SCALE_MM, normals.directions * side], axis=1).astype(np.float32)


def _feet_in_frame(normals: Normals, grid: Grid) -> Float[ndarray, "n 3"]:
    """Where the feet of normals are in AC-PC space, in voxels of the grid: mm of the network's frame."""
    return transform_points(grid.space_from_vox, normals.feet) / grid.spacing_mm


def network_input(
    lines: Float[Array, "n line offset"], location: Float[Array, "n 6"]
) -> Float[Array, "n offset channel"]:
    """What the network sees of each normal: the lines as channels, then its location, the same at every offset."""
    at_offsets = jnp.broadcast_to(location[:, None], (len(lines), lines.shape[2], _LOCATION_SIZE))
    return jnp.concatenate([jnp.swapaxes(lines, 1, 2), at_offsets], axis=-1)


def _is_dark_outside(lines: Float32[ndarray, "n line offset"], level: float) -> Bool[ndarray, "n"]:
    """Whether nothing is brighter than a level further out than the surface may move.

    There the image ends, by its field of view or a mask, and its edge is not the boundary of the ICV.
    """
    return np.asarray((lines[:, :, OFFSETS_MM >= LARGEST_MOVE_MM] <= level).all(axis=(1, 2)))


def _move_surface(
    distance: Float32[ndarray, "i j k"],
    normals: Normals,
    offsets_mm: Float[ndarray, "n"],
    variances_mm2: Float[ndarray, "n"],
) -> Float32[ndarray, "i j k"]:
    """Distance from the surface after it has moved to a position on each of its normals.

    A voxel moves by the mean of the normals around it. Each weighs as much as a Gaussian of its distance and the
    inverse of its variance tell.

    Parameters
    ----------
    distance, normals
        The surface and its normals.
    offsets_mm, variances_mm2
        Position of the boundary on each normal, from its foot, and its variance.
    """
    certainty = 1 / (variances_mm2 + _VARIANCE_FLOOR_MM2)
    move, weight = (np.zeros(distance.shape, np.float32) for _ in range(2))
    move[tuple(normals.voxels.T)], weight[tuple(normals.voxels.T)] = certainty * offsets_mm, certainty
    move, weight = (smoothed(part, _SMOOTH_MOVE_MM) for part in (move, weight))
    return distance - move / (weight + _SMALLEST_WEIGHT)


@dataclass(frozen=True, eq=False)
class BoundaryNetwork:
    """The network of the ICV: a coarse segmentation whose surface moves to the boundary that is seen."""

    coarse: Ensemble
    """Segments the whole head."""
    boundary: Ensemble
    """Finds the boundary on normals of the coarse mask."""

    @property
    def task(self) -> str:
        return self.coarse.task

    @property
    def name(self) -> str:
        """Name and weights of the coarse network, and weights of the one for the boundary."""
        return f"{self.coarse.name}+{self.boundary.digest[:12]}"

    @property
    def protocol(self) -> str:
        return self.coarse.protocol

    @property
    def labels(self) -> LabelTable:
        return self.coarse.labels

    @property
    def volume_error(self) -> VolumeError:
        """Measured for both networks together; it stands on the card of the second."""
        return self.boundary.volume_error

    def on(self, elsewhere: Elsewhere) -> "BoundaryNetwork":
        """The same network, whose coarse part runs elsewhere; the boundary is found where the scan is."""
        return replace(self, coarse=self.coarse.on(part_of(elsewhere, "coarse")))

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan; if its skull was stripped, the surface of the coarse mask, which is inferred."""
        image = self.coarse.network_image(scan, alignment)
        inside_coarse = self._coarse_posterior(image)
        mask = smoothed(inside_coarse, _SMOOTH_COARSE_MM) > 0.5
        mask = without_holes(largest_piece(mask, by_corners=False))
        refined = self.refine(image, mask, self.coarse.card.geometry.grid)
        inside = _partial_volume(signed_distance(mask)) if refined is None else refined.inside
        return Segmentation(
            np.stack([1 - inside, inside]),
            self.coarse.card.geometry.grid_for(alignment.head_size),
            self.labels,
            boundary_sd_mm=float("nan") if refined is None else refined.sd_mm,
            inferred=refined is None,
        )

    def _coarse_posterior(self, image: Float[ndarray, "x y z"]) -> Float[ndarray, "x y z"]:
        """Posterior of the coarse network, that of a mirrored image being mirrored.

        The network always sees the brighter half at the same side. To average over both images instead takes twice as
        long, 2.8 s of one core.
        """
        half = image.shape[0] // 2
        step = -1 if image[:half].sum(dtype=np.float64) < image[-half:].sum(dtype=np.float64) else 1
        return self.coarse.segment_image(np.ascontiguousarray(image[::step]), quick=True).posteriors[1][::step]

    def refine(self, image: Float[ndarray, "x y z"], mask: Bool[ndarray, "x y z"], grid: Grid) -> Refined | None:
        """The ICV, from a coarse segmentation of it.

        Parameters
        ----------
        image
            As :data:`BOUNDARY_GEOMETRY` says.
        mask
            The coarse segmentation.
        grid
            Of both.

        Returns
        -------
        Refined or None
            None if nothing was imaged around the mask, so that there is no boundary to see.
        """
        distance = signed_distance(mask)
        voxels = surface_voxels(distance)
        normals = normals_at(distance, _some_of(voxels, len(mask)))
        if not len(normals.feet):
            return Refined(mask.astype(np.float32), float("nan"))
        lines = profiles(image, normals)
        if _is_dark_outside(lines, _AIR_LEVEL).mean() > _STRIPPED_SHARE:
            return None
        offsets, variances = self.locate_boundary(lines, location_features(normals, grid))
        # Where the image ends and below the skull base, the coarse surface stays: a certain move of 0.
        unseen = _is_dark_outside(lines, 0.0)
        stays = unseen | (_feet_in_frame(normals, grid)[:, 2] < SKULL_BASE_MM)
        offsets = np.where(stays, 0.0, np.clip(offsets, -LARGEST_MOVE_MM, LARGEST_MOVE_MM))
        inside = _partial_volume(_move_surface(distance, normals, offsets, np.where(stays, 0.0, variances)))
        return Refined(inside, float(np.sqrt(np.where(unseen, _UNSEEN_SD_MM**2, variances).mean())))

    def locate_boundary(
        self, lines: Float32[ndarray, "n line offset"], location: Float32[ndarray, "n 6"]
    ) -> tuple[Float[ndarray, "n"], Float[ndarray, "n"]]:
        """Position of the boundary on each normal, mm from its foot, and its variance, mm2."""
        probabilities = _in_batches(self._offset_probabilities, lines, location)
        mean = probabilities @ OFFSETS_MM
        return mean, np.maximum(probabilities @ OFFSETS_MM**2 - mean**2, 0.0)

    @cached_property
    def _offset_probabilities(self) -> Callable[..., Array]:
        """From lines and location to the probability of each offset."""
        (model,) = self.boundary.members
        return partial(_run_network, *nnx.split(model))


@partial(jax.jit, static_argnames="graph")
def _run_network(graph: Any, state: Any, lines: Array, location: Array) -> Array:
    """Compiled once for all networks of one architecture: their weights are an argument."""
    return jax.nn.softmax(nnx.merge(graph, state)(network_input(lines, location)))
