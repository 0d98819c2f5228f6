"""Whole heads of any contrast, made on the fly from label maps of 1 mm.

A label map is stored once, as one code per voxel: its tissue, and how far the voxel is from the surface of the brain
and from the boundary of the intracranial volume (ICV). The points of a training example are carried through a random
pose, size and warp into a stored head and looked up at every millimetre, so that no boundary is blurred twice. Then
come contrast, point spread and the faults of scanners. The truth is the share of the ICV in every voxel.

The ICV is the largest component of labels 1 to 499 (FreeSurfer's numbering), with what they enclose. Venous sinuses
(514) lie outside, the fluid around the spinal cord (24) inside and the cord itself (512) outside, as in the label maps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Integer, Key, PRNGKeyArray, UInt32
from numpy import ndarray
from scipy import ndimage

from hypodask.core.grid import Grid, transform_points
from hypodask.image.acquisition import apply_along, from_knots
from hypodask.image.intensity import BRIGHTEST, WHITE_OVER_MEDIAN, spread_dark
from hypodask.image.masks import largest_piece, without_holes
from hypodask.learning import scanner
from hypodask.learning.augmentation import Variation, points_of


class _Tissue(NamedTuple):
    """Labels that share an intensity, and its range in T1-weighted scans in units of white matter."""

    name: str
    labels: tuple[int, ...]
    low: float
    high: float


_INSIDE = (
    _Tissue("white", (2, 7, 41, 46, 77, 251, 252, 253, 254, 255), 0.95, 1.05),
    _Tissue("cortex", (3, 8, 42, 47), 0.5, 0.82),
    _Tissue("nuclei", (10, 11, 12, 17, 18, 26, 49, 50, 51, 53, 54, 58), 0.6, 0.9),
    _Tissue("pallidum", (13, 52), 0.75, 1.0),
    _Tissue("stem", (16, 28, 60), 0.8, 1.0),
    _Tissue("fluid", (4, 5, 14, 15, 24, 43, 44), 0.12, 0.4),
    _Tissue("rest", (), 0.1, 1.0),
)
"""Tissues of the ICV; the last takes every label below 500 that no other has."""

_OUTSIDE = (
    _Tissue("bone", (515,), 0.02, 0.14),
    _Tissue("marrow", (516,), 0.2, 1.3),
    _Tissue("soft", (507,), 0.25, 1.2),
    _Tissue("skin", (511,), 0.3, 1.6),
    _Tissue("sinus", (514,), 0.1, 1.3),
    _Tissue("artery", (502,), 0.1, 1.6),
    _Tissue("eye", (506,), 0.05, 0.4),
    _Tissue("cord", (512,), 0.65, 1.0),
    _Tissue("mucosa", (508, 509), 0.2, 1.2),
    _Tissue("other", (), 0.3, 1.0),
)
"""Tissues outside of the ICV, after the label maps' own table; the last takes every remaining label from 500."""

_AIR = 0
_TISSUES = (_Tissue("air", (0,), 0.0, 0.0), *_INSIDE, *_OUTSIDE)
NAMES = tuple(tissue.name for tissue in _TISSUES)
_CORTEX, _FLUID, _BONE, _MARROW, SINUS = (NAMES.index(name) for name in ("cortex", "fluid", "bone", "marrow", "sinus"))
_LAST_INSIDE = len(_INSIDE)
"""Number of the last tissue that lies in the ICV."""

_DEPTH_MM, _FAR = 0.1, 0xFFFF
"""Unit of the depths that are stored, which end at 25.5 mm."""

_RANDOM_CONTRAST, _RANDOM_OUTSIDE = 0.05, 0.2
"""Shares of images where all tissues, or those outside the ICV except bone, take any intensity at all."""

_STRIPPED = 0.12
"""Share of images from which everything outside the skull has been removed."""

_THINNEST_RIM_MM, _WIDEST_RIM_MM = 0.5, 8.0
"""How far from the brain a stripped image still shows fluid."""

_SHRUNKEN, _DEEPEST_ATROPHY_MM = 0.4, 2.2
"""Share of images with a smaller brain in the same skull, and how much of its surface may have become fluid: 1.5 mm
take about a third of the brain of the label maps."""

_SWOLLEN, _DEEPEST_SWELLING_MM = 0.3, 2.5
"""Share of images whose brain fills more of the skull: fluid this near to it has become cortex. The label maps are
of heads with much fluid (a fifth to a third of the ICV); young heads have less."""

_CONTRACTED, _SMALLEST_BRAIN = 0.3, 0.7
"""Share of images whose brain has drawn back from the skull, alike in shape, and the least of it that is left."""

_BRAIN_CENTRE_MM, _CENTRE_SPREAD_MM = (0.0, -20.0, 12.0), (2.0, 8.0, 8.0)
"""Point towards which it draws back, in AC-PC space: mean and standard deviation."""

_SKULL_MOVED, _FARTHEST_SKULL_MM, _SKULL_KNOT_MM = 0.9, 6.0, 24.0
"""Share of images whose ICV boundary has moved, by how much at most, and over which length that varies."""

_THINNEST_FLUID_MM = 1.51
"""How near to the brain the boundary moves: sulci stay as they are. It is no multiple of ``_DEPTH_MM``, so that the
boundary stops at no centre of a voxel."""

_TABLE_VARIED, _TABLE_MM, _TABLE_SPREAD_MM = 0.6, (1.0, 5.0), 1.5
"""Share of images whose inner table of the skull has another thickness, its mean (and no less than the lowest
anywhere), and how much it varies."""

_DIPLOE_MM = 8.0
"""How far from the ICV bone and marrow change places: the outer table stays."""

_PIXEL_MM = 1.0
"""Size of the voxels of an example."""

_SINUS_WALL = 3
"""Voxels along each side of a cube: where it holds a venous sinus, an outside voxel in its middle counts as one."""

_KNOT_MM = 8.0
"""Warps are computed on a net this fine and interpolated."""

_NOISE, _BIAS, _GAIN, _GAMMA = 0.05, 0.25, 0.12, 0.1
"""Largest standard deviation of noise, and amplitudes of bias field, and of logarithms of gain and gamma."""


class HeadMap(NamedTuple):
    """A label map as it is stored for training."""

    codes: UInt32[ndarray, "i j k"]
    """A byte each, from the highest: the number of the tissue, its depth and its distance from the boundary of
    the ICV, both in units of ``_DEPTH_MM``."""
    vox_from_acpc: Float[ndarray, "4 4"]
    shares: Float32[ndarray, "tissue"]
    """Voxels of each tissue in the box that the network sees, relative to all."""


class Heads(NamedTuple):
    """All label maps, padded to one shape with air."""

    codes: UInt32[Array, "head i j k"]
    vox_from_acpc: Float[Array, "head 4 4"]
    shares: Float[Array, "head tissue"]


def icv_mask(labels: Integer[ndarray, "i j k"]) -> Bool[ndarray, "i j k"]:
    """The ICV mask of a label map: the largest component of labels 1 to 499, and what it encloses."""
    return without_holes(largest_piece((labels > 0) & (labels < 500)))


def head_map(
    labels: Integer[ndarray, "i j k"], grid: Grid, acpc_from_scanner: Float[ndarray, "4 4"], box: Grid
) -> HeadMap:
    """Store a label map for training; ``box`` is the grid of the network, in AC-PC space."""
    inside = icv_mask(labels)
    tissues = tissue_numbers(labels)
    of_icv = (tissues > _AIR) & (tissues <= _LAST_INSIDE)
    # Fluid where the ICV encloses other labels, and air where its tissues lie outside of it.
    tissues = np.where(inside & ~of_icv, _FLUID, np.where(~inside & of_icv, _AIR, tissues))
    acpc_from_vox = acpc_from_scanner @ grid.space_from_vox
    shares = _shares(tissues, acpc_from_vox, box)
    head = ndimage.find_objects((tissues > _AIR).astype(np.uint8))[0]
    acpc_from_vox = acpc_from_vox.copy()
    acpc_from_vox[:3, 3] = transform_points(acpc_from_vox, np.array([part.start for part in head]))
    brain = inside & (tissues != _FLUID)
    depth, border = (_from_other_side_mm(mask[head], grid.spacing_mm) for mask in (brain, inside))
    codes = tissues[head]
    for distance in (depth, border):
        codes = 256 * codes + np.minimum(distance / _DEPTH_MM, 255).astype(int)
    return HeadMap(codes.astype(np.uint32), np.linalg.inv(acpc_from_vox), shares)


def _from_other_side_mm(
    mask: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]
) -> Float[ndarray, "i j k"]:
    """Distance of voxels in a mask from those outside, and of those outside from the mask."""
    within, without = (ndimage.distance_transform_edt(side, spacing_mm) for side in (mask, ~mask))
    return np.where(mask, within, without)


def tissue_numbers(labels: Integer[ndarray, "i j k"]) -> Int[ndarray, "i j k"]:
    """Number of the tissue of every voxel.

    >>> [NAMES[n] for n in tissue_numbers(np.array([[[0, 2, 24, 85, 515, 999]]])).ravel()]
    ['air', 'white', 'fluid', 'rest', 'bone', 'other']
    """
    table = np.full(max(1000, int(labels.max()) + 1), NAMES.index("other"))
    table[:500] = NAMES.index("rest")
    for number, tissue in enumerate(_TISSUES):
        table[list(tissue.labels)] = number
    return table[labels]


def _shares(tissues: Int[ndarray, "i j k"], acpc_from_vox: ndarray, box: Grid) -> Float32[ndarray, "tissue"]:
    """Shares of the tissues in the box, from every fourth voxel."""
    vox = np.stack(np.meshgrid(*(np.arange(0, n, 4) for n in tissues.shape), indexing="ij"), -1)
    acpc = transform_points(acpc_from_vox, vox)
    within = (np.abs(acpc - box.centre_mm) < np.array(box.extent_mm) / 2).all(axis=-1)
    counts = np.bincount(tissues[::4, ::4, ::4][within], minlength=len(_TISSUES))
    return (counts / counts.sum()).astype(np.float32)


def stacked(maps: list[HeadMap]) -> Heads:
    """Label maps side by side, with air around."""
    shape = np.max([one.codes.shape for one in maps], axis=0) + 2
    codes = np.full((len(maps), *shape), _FAR, np.uint32)
    for place, one in zip(codes, maps, strict=True):
        place[tuple(slice(1, 1 + size) for size in one.codes.shape)] = one.codes
    matrices = np.stack([one.vox_from_acpc for one in maps]).astype(np.float32)
    matrices[:, :3, 3] += 1
    return Heads(jnp.asarray(codes), jnp.asarray(matrices), jnp.asarray(np.stack([one.shares for one in maps])))


def volume_drawer(
    heads: Heads, box: Grid, variation: Variation, examples: int
) -> Callable[[PRNGKeyArray], tuple[Float[Array, "n y x z 1"], Float[Array, "n y x z 3"]]]:
    """Compile the drawing of batches of ``examples``, each of a head of its own, with their truth."""

    def example(head: Whole) -> tuple[Array, Array]:
        parts = spread_dark(head.image, xp=jnp)[..., None], _shares_of(head)
        return jnp.swapaxes(parts[0], 0, 1), jnp.swapaxes(parts[1], 0, 1)

    @jax.jit
    def drawn(heads: Heads, keys: Key[Array, "n"]) -> tuple[Array, Array]:
        return jax.lax.map(lambda key: example(whole(key, heads, box, variation)), keys)

    return lambda key: drawn(heads, jax.random.split(key, examples))


class _Anatomy(NamedTuple):
    """A head that was drawn at random, at samples."""

    number: Array
    """Number of its label map."""
    tissues: Int[Array, "y x z"]
    depth_mm: Float[Array, "y x z"]
    """Distance of the brain from other voxels, and the other way round."""
    beyond_mm: Float[Array, "y x z"]
    """How far samples lie beyond the boundary of the ICV, below 0 inside."""


class Whole(NamedTuple):
    """A head that was drawn at random, on a grid."""

    image: Float[Array, "x y z"]
    tissues: Int[Array, "x y z"]
    beyond_mm: Float[Array, "x y z"]


def whole(key: PRNGKeyArray, heads: Heads, box: Grid, variation: Variation) -> Whole:
    """Draw a head on all voxels of a box."""
    keys = jax.random.split(key)
    low = box.space_from_vox[:3, 3]
    samples = [jnp.asarray(low[axis] + _PIXEL_MM * np.arange(box.shape[axis]), jnp.float32) for axis in (1, 0, 2)]
    # With the default precision of GPUs, points would be off by a tenth of a voxel.
    with jax.default_matmul_precision("highest"):
        head = _anatomy(keys[0], heads, samples, box, variation)
        image = _scan_of(keys[1], heads, head, samples)
    return Whole(*(jnp.swapaxes(part, 0, 1) for part in (image, head.tissues, head.beyond_mm)))


def _anatomy(key: PRNGKeyArray, heads: Heads, samples: list[Array], box: Grid, variation: Variation) -> _Anatomy:
    """One of the heads, posed, warped, and with another brain and another skull."""
    keys = jax.random.split(key, 7)
    number = jax.random.randint(keys[0], (), 0, len(heads.codes))
    # Images of every strength: a network is to see heads as they are, too.
    points = _varied(keys[1], samples, box, variation, jax.random.uniform(keys[2]))

    def codes_at(points: Array) -> Array:
        # An affine commutes with interpolation, and the net has few knots.
        matrix = heads.vox_from_acpc[number]
        vox = jnp.tensordot(matrix[:3, :3], points, axes=1) + matrix[:3, 3, None, None, None]
        shape = [len(axis) for axis in samples]
        return _looked_up(heads, number, jnp.stack([from_knots(channel, shape) for channel in vox]))

    codes = codes_at(points)
    beyond = _skull_moved(keys[3], *_taken_apart(codes))
    tissues, depth, _ = _taken_apart(_contract_brain(keys[4], codes, codes_at, points))
    tissues = _brain_size_varied(keys[5], _filled(beyond <= 0, tissues), depth)
    return _Anatomy(number, _table_varied(keys[6], tissues, beyond), depth, beyond)


def _shares_of(head: Whole) -> Float[Array, "x y z 3"]:
    """Shares in each voxel of the outside, of a venous sinus with its wall, and of the ICV."""
    inside = jnp.clip(0.5 - head.beyond_mm / _PIXEL_MM, 0.0, 1.0)
    sinus = (head.tissues == SINUS).astype(inside.dtype)
    near = jax.lax.reduce_window(sinus, 0.0, jax.lax.max, (_SINUS_WALL,) * 3, (1, 1, 1), "SAME")
    return jnp.stack([(1 - inside) * (1 - near), (1 - inside) * near, inside], axis=-1)


def _scan_of(key: PRNGKeyArray, heads: Heads, head: _Anatomy, samples: list[Array]) -> Float[Array, "y x z"]:
    keys = jax.random.split(key, 3)
    image = _imaged(keys[0], head.tissues, head.depth_mm, samples, heads.shares[head.number])
    spread = scanner.point_spread(keys[1], samples)
    return _scan(keys[2], apply_along(spread, image))


def _taken_apart(codes: Int[Array, "*n"]) -> tuple[Int[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Tissue, depth and distance from the boundary of the ICV mask, mm.

    >>> [float(part) for part in _taken_apart(jnp.array(0x02_FF_0A))]
    [2.0, 25.5, 1.0]
    """
    return codes >> 16, ((codes >> 8) & 0xFF) * _DEPTH_MM, (codes & 0xFF) * _DEPTH_MM


def _is_inside(tissues: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether a tissue lies in the ICV."""
    return (tissues > _AIR) & (tissues <= _LAST_INSIDE)


def _contract_brain(
    key: PRNGKeyArray, codes: Int[Array, "y x z"], codes_at: Callable[[Array], Array], points: Float[Array, "3 p q r"]
) -> Int[Array, "y x z"]:
    """In some images, shrink the brain towards its centre, and fill the gap to the skull with fluid.

    ``codes_at`` gives the codes of all samples from knots of a coarse net (``points``, AC-PC mm). Of the result only
    tissue and depth are valid, and the depth is that before the brain shrank.
    """
    keys = jax.random.split(key, 3)
    spread = jnp.array(_CENTRE_SPREAD_MM) * jax.random.normal(keys[0], (3,))
    centre = (jnp.array(_BRAIN_CENTRE_MM) + spread)[:, None, None, None]
    larger = jax.random.uniform(keys[1], minval=_SMALLEST_BRAIN) ** (-1 / 3)

    def contracted() -> Array:
        drawn_back = codes_at(centre + larger * (points - centre))
        drawn_back = jnp.where(_is_inside(drawn_back >> 16), drawn_back, 256 * (256 * _FLUID + 255))
        # The boundary of the ICV stays where it was.
        return jnp.where(_is_inside(codes >> 16), drawn_back, codes)

    return jax.lax.cond(jax.random.bernoulli(keys[2], _CONTRACTED), contracted, lambda: codes)


def _skull_moved(
    key: PRNGKeyArray, tissues: Int[Array, "y x z"], depth_mm: Float[Array, "y x z"], border_mm: Float[Array, "y x z"]
) -> Float[Array, "y x z"]:
    """Distance of voxels beyond an ICV boundary that, in some images, has smoothly moved; mm, below 0 inside.

    The boundary moves through fluid and tissue outside, so that a network cannot guess it from the usual thickness of
    the fluid: it must see it. It moves as far outwards as inwards, so that a boundary that cannot be seen is expected
    at its mean place; the brain stops it.
    """
    keys = jax.random.split(key, 4)
    outwards = (
        _FARTHEST_SKULL_MM
        * jax.random.uniform(keys[0])
        * jnp.tanh(_over_skull(keys[1], tissues.shape) + jax.random.normal(keys[2]))
    )
    inside = _is_inside(tissues)
    # Distances are those to the nearest voxel of the other side, from centre to centre.
    fluid = jnp.where(inside, depth_mm + border_mm - _PIXEL_MM, depth_mm - border_mm)
    farthest = jnp.clip(fluid - _THINNEST_FLUID_MM, 0.0)
    beyond = jnp.where(inside, _PIXEL_MM / 2 - border_mm, border_mm - _PIXEL_MM / 2)
    outwards = jnp.where(jax.random.bernoulli(keys[3], _SKULL_MOVED), jnp.clip(outwards, -farthest, farthest), 0.0)
    moved = beyond - outwards
    return jnp.where(inside & (tissues != _FLUID), jnp.minimum(moved, beyond), moved)


def _over_skull(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "y x z"]:
    """Noise of standard deviation 1 that varies as smoothly as a skull."""
    y, x, z = (int(np.ceil(size * _PIXEL_MM / _SKULL_KNOT_MM)) + 1 for size in shape)
    return scanner.smooth_noise(key, shape, (y, x, z))


def _filled(inside: Bool[Array, "*n"], tissues: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Tissues for an ICV boundary that has moved: fluid where the ICV is new, and bone where its fluid was.

    >>> kinds = jnp.array([_CORTEX, _FLUID, _FLUID, _BONE, _BONE])
    >>> [NAMES[n] for n in _filled(jnp.array([False, False, True, True, False]), kinds)]
    ['cortex', 'bone', 'fluid', 'fluid', 'bone']
    """
    moved = jnp.where(inside & ~_is_inside(tissues), _FLUID, tissues)
    return jnp.where(~inside & (tissues == _FLUID), _BONE, moved)


def _table_varied(
    key: PRNGKeyArray, tissues: Int[Array, "y x z"], beyond_mm: Float[Array, "y x z"]
) -> Int[Array, "y x z"]:
    """A skull whose inner table, in some images, is thicker or thinner.

    The dark layer over the brain then is not always as thick as in the label maps.
    """
    keys = jax.random.split(key, 3)
    thinnest, thickest = _TABLE_MM
    mean = jax.random.uniform(keys[0], minval=thinnest, maxval=thickest)
    thickness = jnp.clip(mean + _TABLE_SPREAD_MM * _over_skull(keys[1], tissues.shape), thinnest)
    skull = ((tissues == _BONE) | (tissues == _MARROW)) & (beyond_mm <= _DIPLOE_MM)
    varied = jnp.where(skull, jnp.where(beyond_mm <= thickness, _BONE, _MARROW), tissues)
    return jnp.where(jax.random.bernoulli(keys[2], _TABLE_VARIED), varied, tissues)


def _brain_size_varied(key: PRNGKeyArray, tissues: Int[Array, "*n"], depth_mm: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """A brain that is smaller or larger in the same skull: its surface has become fluid, or fluid near it cortex."""
    of_which, of_depth = jax.random.split(key)
    which, much = jax.random.uniform(of_which), jax.random.uniform(of_depth)
    shrunken = (
        (which < _SHRUNKEN) & _is_inside(tissues) & (tissues != _FLUID) & (depth_mm <= much * _DEEPEST_ATROPHY_MM)
    )
    swollen = (which > 1 - _SWOLLEN) & (tissues == _FLUID) & (depth_mm <= much * _DEEPEST_SWELLING_MM)
    return jnp.where(shrunken, _FLUID, jnp.where(swollen, _CORTEX, tissues))


def _imaged(
    key: PRNGKeyArray,
    tissues: Int[Array, "y x z"],
    depth_mm: Float[Array, "y x z"],
    samples_mm: Sequence[Float[Array, "_"]],
    shares: Float[Array, "tissue"],
) -> Float[Array, "y x z"]:
    """Intensities of samples: a random contrast with grain, perhaps stripped or cut, scaled as a whole head is."""
    keys = jax.random.split(key, 6)
    means, stripped = contrast(keys[0]), jax.random.bernoulli(keys[1], _STRIPPED)
    rim = jax.random.uniform(keys[2], minval=_THINNEST_RIM_MM, maxval=_WIDEST_RIM_MM)
    inside = _is_inside(tissues)
    shown = scanner.seen(keys[3], samples_mm[0], samples_mm[2], inside)
    shown &= ~stripped | (inside & ((tissues != _FLUID) | (depth_mm <= rim)))
    seen_shares = jnp.where(stripped & ~_is_inside(jnp.arange(len(_TISSUES))), 0.0, shares)
    image = means[tissues] * (1 + _grain(keys[4], inside))
    return jnp.where(shown, image, 0.0) / _white_level(means, seen_shares)


def contrast(key: PRNGKeyArray, *, t1_weighted: bool = False) -> Float[Array, "tissue"]:
    """Intensity of each tissue: within its range in T1-weighted scans, or, in some images unless told, anything."""
    keys = jax.random.split(key, 4)
    low, high = (jnp.array([tissue[end] for tissue in _TISSUES]) for end in (2, 3))
    usual = low + (high - low) * jax.random.uniform(keys[0], low.shape)
    anything = 1.2 * jax.random.uniform(keys[1], low.shape)
    number = jnp.arange(len(_TISSUES))
    free = jax.random.bernoulli(keys[2], _RANDOM_CONTRAST)
    free |= jax.random.bernoulli(keys[3], _RANDOM_OUTSIDE) & ~_is_inside(number) & (number != _BONE)
    return jnp.where(number == _AIR, 0.0, jnp.where(free & (not t1_weighted), anything, usual))


def _white_level(means: Float[Array, "tissue"], shares: Float[Array, "tissue"]) -> Float[Array, ""]:
    """The level that ``intensity.head_median`` divides by, of an image whose tissues have these means and shares."""
    above = shares * (means > (means * shares).sum())
    head = shares * (means > 0.3 * _weighted_median(means, above))
    return WHITE_OVER_MEDIAN * _weighted_median(means, head)


def _weighted_median(values: Float[Array, "n"], weights: Float[Array, "n"]) -> Float[Array, ""]:
    order = jnp.argsort(values)
    total = jnp.cumsum(weights[order])
    return values[order][jnp.argmax(total >= 0.5 * total[-1])]


def _grain(key: PRNGKeyArray, inside: Bool[Array, "i j k"]) -> Float[Array, "i j k"]:
    """Texture of two scales, stronger outside the ICV: tissues that one label holds look different."""
    keys = jax.random.split(key, 4)
    amount, outside = jax.random.uniform(keys[0], (2,)) * jnp.array([0.08, 0.3])
    fine = jax.random.normal(keys[1], inside.shape)
    i, j, k = (size // 5 + 1 for size in inside.shape)
    blobs = scanner.smooth_noise(keys[2], inside.shape, (i, j, k))
    return jnp.clip(jnp.where(inside, amount, outside) * (0.6 * fine + blobs), -0.9, 1.5)


def _scan(key: PRNGKeyArray, image: Float[Array, "slice h w"]) -> Float[Array, "slice h w"]:
    """Random faults of a scanner, in this order: gamma, bias field, ghost, Rician noise, gain.

    Intensities come back within 0 and ``BRIGHTEST``.
    """
    keys = jax.random.split(key, 5)
    image = jnp.clip(image, 1e-3) ** jnp.exp(_GAMMA * jax.random.normal(keys[0]))
    image = scanner.biased(keys[1], image, _BIAS)
    image = scanner.noisy(keys[2], scanner.ghosted(keys[3], image), _NOISE)
    return jnp.clip(image * jnp.exp(_GAIN * jax.random.normal(keys[4])), 0.0, BRIGHTEST)


def _varied(
    key: PRNGKeyArray, samples: list[Array], box: Grid, variation: Variation, strength: Float[Array, ""]
) -> Float[Array, "3 y x z"]:
    """Where in the stored head, in AC-PC space, the knots of a coarse net over the samples are looked up."""
    of_flip, of_points = jax.random.split(key)
    knots = [int(np.ceil(len(axis) * _PIXEL_MM / _KNOT_MM)) + 1 for axis in samples]
    y, x, z = (jnp.linspace(axis[0], axis[-1], number) for axis, number in zip(samples, knots, strict=True))
    y, x, z = jnp.meshgrid(y, x, z, indexing="ij")
    centre = jnp.asarray(box.centre_mm, jnp.float32)
    there = points_of(of_points, jnp.stack([x, y, z], -1).reshape(-1, 3), centre, variation, strength)
    flip = jnp.where(jax.random.bernoulli(of_flip), -1.0, 1.0)
    return (there * jnp.array([flip, 1.0, 1.0])).T.reshape(3, *knots)


def _looked_up(heads: Heads, number: Array, vox: Float[Array, "3 y x z"]) -> Int[Array, "y x z"]:
    """Code of the voxel that each sample lies in; air beyond the map, whose last voxels are air."""
    shape = heads.codes.shape[1:]
    i, j, k = (jnp.rint(jnp.clip(axis, 0, size - 1)).astype(jnp.int32) for axis, size in zip(vox, shape, strict=True))
    index = ((number * shape[0] + i) * shape[1] + j) * shape[2] + k
    return heads.codes.reshape(-1).at[index].get(mode="promise_in_bounds").astype(jnp.int32)
