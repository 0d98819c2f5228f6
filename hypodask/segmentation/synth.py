"""Whole heads of any contrast, made on the fly from label maps of 1 mm.

A label map is stored once, as one code per voxel: its tissue, and how far the voxel is from the surface of the brain
and from the border of the cavity. The points of a training example are carried through a random pose, size and warp
into a stored head and looked up at every millimetre, so that no border is blurred twice; then come contrast, point
spread and the faults of scanners. The truth is the share of the cranial cavity in every voxel.

The cavity is what labels 1 to 499 (FreeSurfer's numbering) form together, without islands elsewhere, and with what
they enclose. Venous sinuses (514) lie outside, the fluid around the spinal cord (24) inside, its cord (512) outside,
as the label maps have it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Integer, PRNGKeyArray, UInt32
from numpy import ndarray
from scipy import ndimage

from hypodask.grid import Grid, transform_points
from hypodask.intensity import BRIGHTEST, WHITE_OVER_MEDIAN, spread_dark
from hypodask.network.augment import Variation, points_of
from hypodask.pieces import largest_piece, without_holes
from hypodask.segmentation import faults
from hypodask.segmentation.faults import apply_along, interpolation


class Tissue(NamedTuple):
    """Labels that share an intensity, and its range in T1-weighted scans in units of white matter."""

    name: str
    labels: tuple[int, ...]
    low: float
    high: float


INSIDE = (
    Tissue("white", (2, 7, 41, 46, 77, 251, 252, 253, 254, 255), 0.95, 1.05),
    Tissue("cortex", (3, 8, 42, 47), 0.5, 0.82),
    Tissue("nuclei", (10, 11, 12, 17, 18, 26, 49, 50, 51, 53, 54, 58), 0.6, 0.9),
    Tissue("pallidum", (13, 52), 0.75, 1.0),
    Tissue("stem", (16, 28, 60), 0.8, 1.0),
    Tissue("fluid", (4, 5, 14, 15, 24, 43, 44), 0.12, 0.4),
    Tissue("rest", (), 0.1, 1.0),
)
"""Tissues of the cranial cavity; the last takes every label below 500 that no other has."""

OUTSIDE = (
    Tissue("bone", (515,), 0.02, 0.14),
    Tissue("marrow", (516,), 0.2, 1.3),
    Tissue("soft", (507,), 0.25, 1.2),
    Tissue("skin", (511,), 0.3, 1.6),
    Tissue("sinus", (514,), 0.1, 1.3),
    Tissue("artery", (502,), 0.1, 1.6),
    Tissue("eye", (506,), 0.05, 0.4),
    Tissue("cord", (512,), 0.65, 1.0),
    Tissue("mucosa", (508, 509), 0.2, 1.2),
    Tissue("other", (), 0.3, 1.0),
)
"""Tissues outside of it, after the label maps' own table; the last takes every label of 500 or more left."""

AIR = 0
TISSUES = (Tissue("air", (0,), 0.0, 0.0), *INSIDE, *OUTSIDE)
NAMES = tuple(tissue.name for tissue in TISSUES)
CORTEX, FLUID, BONE, MARROW, SINUS = (NAMES.index(name) for name in ("cortex", "fluid", "bone", "marrow", "sinus"))
LAST_INSIDE = len(INSIDE)
"""Number of the last tissue that lies in the cavity."""

DEPTH_MM, FAR = 0.1, 0xFFFF
"""Unit of the depths that are stored, which end at 25.5 mm."""

RANDOM_CONTRAST, RANDOM_OUTSIDE = 0.05, 0.2
"""Shares of images where all tissues, or those outside the cavity but bone, take any intensity at all."""

STRIPPED = 0.12
"""Share of images from which everything outside the skull has been removed."""

THINNEST_RIM_MM, WIDEST_RIM_MM = 0.5, 8.0
"""How far from the brain a stripped image still shows fluid."""

SHRUNKEN, DEEPEST_ATROPHY_MM = 0.4, 2.2
"""Share of images with a smaller brain in the same skull, and how much of its surface may have become fluid: 1.5 mm
take about a third of the brain of the label maps."""

SWOLLEN, DEEPEST_SWELLING_MM = 0.3, 2.5
"""Share of images whose brain fills more of the skull: fluid this near to it has become cortex. The label maps are
of heads with much fluid (a fifth to a third of the cavity); young heads have less."""

CONTRACTED, SMALLEST_BRAIN = 0.3, 0.7
"""Share of images whose brain has drawn back from the skull, alike in shape, and the least of it that is left."""

BRAIN_CENTRE_MM, CENTRE_SPREAD_MM = (0.0, -20.0, 12.0), (2.0, 8.0, 8.0)
"""About which it draws back, in AC-PC space: mean and standard deviation."""

SKULL_MOVED, FARTHEST_SKULL_MM, SKULL_KNOT_MM = 0.9, 6.0, 24.0
"""Share of images whose border of the cavity has moved, by how much at most, and over which length that varies."""

THINNEST_FLUID_MM = 1.51
"""How near to the brain the border moves: sulci stay what they are. Not in whole ``DEPTH_MM``, so that it stops at no
centre of a voxel."""

TABLE_VARIED, TABLE_MM, TABLE_SPREAD_MM = 0.6, (1.0, 5.0), 1.5
"""Share of images whose inner table of the skull has another thickness, its mean (and no less than the lowest
anywhere), and how much it varies."""

DIPLOE_MM = 8.0
"""How far from the cavity bone and marrow change places: the outer table stays."""

PIXEL_MM = 1.0
"""Of the voxels of an example."""

SINUS_WALL = 3
"""Voxels along each side of the cube around a voxel in which a venous sinus makes what is outside count as one."""

KNOT_MM = 8.0
"""Warps are worked out on a net this fine and interpolated."""

NOISE, BIAS, GAIN, GAMMA = 0.05, 0.25, 0.12, 0.1
"""Largest standard deviation of noise, and amplitudes of bias field, and of logarithms of gain and gamma."""


class HeadMap(NamedTuple):
    """A label map as it is stored for training."""

    codes: UInt32[ndarray, "i j k"]
    """A byte each, from the highest: the number of the tissue, its depth and its distance from the border of the
    cavity, both in units of ``DEPTH_MM``."""
    vox_from_acpc: Float[ndarray, "4 4"]
    shares: Float32[ndarray, "tissue"]
    """Voxels of each tissue in the box that the network sees, relative to all."""


class Heads(NamedTuple):
    """All label maps, padded to one shape with air."""

    codes: UInt32[Array, "head i j k"]
    vox_from_acpc: Float[Array, "head 4 4"]
    shares: Float[Array, "head tissue"]


def cavity(labels: Integer[ndarray, "i j k"]) -> Bool[ndarray, "i j k"]:
    """The cranial cavity of a label map: the largest piece of labels 1 to 499, and what it encloses."""
    return without_holes(largest_piece((labels > 0) & (labels < 500)))


def head_map(
    labels: Integer[ndarray, "i j k"], grid: Grid, acpc_from_scanner: Float[ndarray, "4 4"], box: Grid
) -> HeadMap:
    """Store a label map for training; ``box`` is the grid of the network, in AC-PC space."""
    inside = cavity(labels)
    tissues = _without_holes(tissue_numbers(labels), inside)
    acpc_from_vox = acpc_from_scanner @ grid.space_from_vox
    shares = _shares(tissues, acpc_from_vox, box)
    head = ndimage.find_objects((tissues > AIR).astype(np.uint8))[0]
    acpc_from_vox = acpc_from_vox.copy()
    acpc_from_vox[:3, 3] = transform_points(acpc_from_vox, np.array([part.start for part in head]))
    depth = _depth_mm(tissues[head], inside[head], grid.spacing_mm)
    border = _from_other_side_mm(inside[head], grid.spacing_mm)
    codes = tissues[head]
    for distance in (depth, border):
        codes = 256 * codes + np.minimum(distance / DEPTH_MM, 255).astype(int)
    return HeadMap(codes.astype(np.uint32), np.linalg.inv(acpc_from_vox), shares)


def _without_holes(tissues: Int[ndarray, "i j k"], inside: Bool[ndarray, "i j k"]) -> Int[ndarray, "i j k"]:
    """What the cavity encloses is fluid, and what should be in the cavity but lies elsewhere is air."""
    of_cavity = (tissues > AIR) & (tissues <= LAST_INSIDE)
    return np.where(inside & ~of_cavity, FLUID, np.where(~inside & of_cavity, AIR, tissues))


def _depth_mm(
    tissues: Int[ndarray, "i j k"], inside: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]
) -> Float[ndarray, "i j k"]:
    """How far brain is from what is no brain, and how far all else is from brain."""
    brain = inside & (tissues != FLUID)
    return _from_other_side_mm(brain, spacing_mm)


def _from_other_side_mm(
    mask: Bool[ndarray, "i j k"], spacing_mm: tuple[float, float, float]
) -> Float[ndarray, "i j k"]:
    """How far a voxel in a mask is from those out of it, and the other way round."""
    within, without = (ndimage.distance_transform_edt(side, spacing_mm) for side in (mask, ~mask))
    return np.where(mask, within, without)


def tissue_numbers(labels: Integer[ndarray, "i j k"]) -> Int[ndarray, "i j k"]:
    """Number of the tissue of every voxel.

    >>> [NAMES[n] for n in tissue_numbers(np.array([[[0, 2, 24, 85, 515, 999]]])).ravel()]
    ['air', 'white', 'fluid', 'rest', 'bone', 'other']
    """
    table = np.full(max(1000, int(labels.max()) + 1), NAMES.index("other"))
    table[:500] = NAMES.index("rest")
    for number, tissue in enumerate(TISSUES):
        table[list(tissue.labels)] = number
    return table[labels]


def _shares(tissues: Int[ndarray, "i j k"], acpc_from_vox: ndarray, box: Grid) -> Float32[ndarray, "tissue"]:
    """Shares of the tissues in the box, from every fourth voxel."""
    vox = np.stack(np.meshgrid(*(np.arange(0, n, 4) for n in tissues.shape), indexing="ij"), -1)
    acpc = transform_points(acpc_from_vox, vox)
    within = (np.abs(acpc - box.centre_mm) < np.array(box.extent_mm) / 2).all(axis=-1)
    counts = np.bincount(tissues[::4, ::4, ::4][within], minlength=len(TISSUES))
    return (counts / counts.sum()).astype(np.float32)


def stacked(maps: list[HeadMap]) -> Heads:
    """Label maps side by side, with air around."""
    shape = np.max([one.codes.shape for one in maps], axis=0) + 2
    codes = np.full((len(maps), *shape), FAR, np.uint32)
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
        parts = spread_dark(head.image, xp=jnp)[..., None], shares_of(head)
        return jnp.swapaxes(parts[0], 0, 1), jnp.swapaxes(parts[1], 0, 1)

    @jax.jit
    def drawn(heads: Heads, keys: PRNGKeyArray) -> tuple[Array, Array]:
        return jax.lax.map(lambda key: example(whole(key, heads, box, variation)), keys)

    return lambda key: drawn(heads, jax.random.split(key, examples))


class Anatomy(NamedTuple):
    """A head that was drawn, at samples."""

    number: Array
    """Of the label map that it came from."""
    tissues: Int[Array, "y x z"]
    depth_mm: Float[Array, "y x z"]
    """How far brain is from what is no brain, and the other way round."""
    beyond_mm: Float[Array, "y x z"]
    """How far samples lie beyond the border of the cavity, below 0 inside."""


class Whole(NamedTuple):
    """All of a head that was drawn, on a grid."""

    image: Float[Array, "x y z"]
    tissues: Int[Array, "x y z"]
    beyond_mm: Float[Array, "x y z"]


def whole(key: PRNGKeyArray, heads: Heads, box: Grid, variation: Variation) -> Whole:
    """All of a box, whose voxels are samples."""
    keys = jax.random.split(key)
    low = box.space_from_vox[:3, 3]
    samples = [jnp.asarray(low[axis] + PIXEL_MM * np.arange(box.shape[axis]), jnp.float32) for axis in (1, 0, 2)]
    # In the precision that GPUs take for enough, points would be off by a tenth of a voxel.
    with jax.default_matmul_precision("highest"):
        head = anatomy(keys[0], heads, samples, box, variation)
        image = _scan_of(keys[1], heads, head, samples)
    return Whole(*(jnp.swapaxes(part, 0, 1) for part in (image, head.tissues, head.beyond_mm)))


def anatomy(key: PRNGKeyArray, heads: Heads, samples: list[Array], box: Grid, variation: Variation) -> Anatomy:
    """One of the heads, posed, warped, and with another brain and another skull."""
    keys = jax.random.split(key, 7)
    number = jax.random.randint(keys[0], (), 0, len(heads.codes))
    # Images of every strength: a network is to see heads as they are, too.
    points = _varied(keys[1], samples, box, variation.times(jax.random.uniform(keys[2])))

    def codes_at(points: Array) -> Array:
        # An affine commutes with interpolation, and the net has few knots.
        matrix = heads.vox_from_acpc[number]
        vox = jnp.tensordot(matrix[:3, :3], points, axes=1) + matrix[:3, 3, None, None, None]
        return _looked_up(heads, number, _spread_out(vox, samples))

    codes = codes_at(points)
    beyond = skull_moved(keys[3], *taken_apart(codes))
    tissues, depth, _ = taken_apart(brain_contracted(keys[4], codes, codes_at, points))
    tissues = brain_size_varied(keys[5], filled(beyond <= 0, tissues), depth)
    return Anatomy(number, table_varied(keys[6], tissues, beyond), depth, beyond)


def shares_of(head: Whole) -> Float[Array, "x y z 3"]:
    """Shares in each voxel of what is outside, of a venous sinus with its wall, and of the cavity."""
    inside = jnp.clip(0.5 - head.beyond_mm / PIXEL_MM, 0.0, 1.0)
    sinus = (head.tissues == SINUS).astype(inside.dtype)
    near = jax.lax.reduce_window(sinus, 0.0, jax.lax.max, (SINUS_WALL,) * 3, (1, 1, 1), "SAME")
    return jnp.stack([(1 - inside) * (1 - near), (1 - inside) * near, inside], axis=-1)


def _scan_of(key: PRNGKeyArray, heads: Heads, head: Anatomy, samples: list[Array]) -> Float[Array, "y x z"]:
    keys = jax.random.split(key, 3)
    image = imaged(keys[0], head.tissues, head.depth_mm, samples, heads.shares[head.number])
    spread = faults.point_spread(keys[1], samples)
    return scanned(keys[2], apply_along(spread, image))


def taken_apart(codes: Int[Array, "*n"]) -> tuple[Int[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Tissue, depth and distance from the border of the cavity, mm.

    >>> [float(part) for part in taken_apart(0x02_FF_0A)]
    [2.0, 25.5, 1.0]
    """
    return codes >> 16, ((codes >> 8) & 0xFF) * DEPTH_MM, (codes & 0xFF) * DEPTH_MM


def is_inside(tissues: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether a tissue lies in the cranial cavity."""
    return (tissues > AIR) & (tissues <= LAST_INSIDE)


def brain_contracted(
    key: PRNGKeyArray, codes: Int[Array, "y x z"], codes_at: Callable[[Array], Array], points: Float[Array, "3 p q r"]
) -> Int[Array, "y x z"]:
    """Codes at points in a head whose brain, in some images, has drawn back from its skull: tissues and their depth."""
    keys = jax.random.split(key, 3)
    spread = jnp.array(CENTRE_SPREAD_MM) * jax.random.normal(keys[0], (3,))
    centre = (jnp.array(BRAIN_CENTRE_MM) + spread)[:, None, None, None]
    larger = jax.random.uniform(keys[1], minval=SMALLEST_BRAIN) ** (-1 / 3)

    def contracted() -> Array:
        drawn_back = codes_at(centre + larger * (points - centre))
        drawn_back = jnp.where(is_inside(drawn_back >> 16), drawn_back, 256 * (256 * FLUID + 255))
        # The border of the cavity has stayed where it was.
        return jnp.where(is_inside(codes >> 16), drawn_back, codes)

    return jax.lax.cond(jax.random.bernoulli(keys[2], CONTRACTED), contracted, lambda: codes)


def skull_moved(
    key: PRNGKeyArray, tissues: Int[Array, "y x z"], depth_mm: Float[Array, "y x z"], border_mm: Float[Array, "y x z"]
) -> Float[Array, "y x z"]:
    """How far voxels lie beyond a border of the cavity that, in some images, has smoothly moved; mm, below 0 inside.

    It moves through fluid and what lies outside. How thick the fluid usually is then tells little about where the
    border lies: only the border itself does. It goes as far outwards as inwards, where the brain stops it: an edge
    that cannot be seen is to be expected in its place.
    """
    keys = jax.random.split(key, 4)
    outwards = (
        FARTHEST_SKULL_MM
        * jax.random.uniform(keys[0])
        * jnp.tanh(_over_skull(keys[1], tissues.shape) + jax.random.normal(keys[2]))
    )
    inside = is_inside(tissues)
    # Distances are those to the nearest voxel of the other side, from centre to centre.
    fluid = jnp.where(inside, depth_mm + border_mm - PIXEL_MM, depth_mm - border_mm)
    farthest = jnp.clip(fluid - THINNEST_FLUID_MM, 0.0)
    beyond = jnp.where(inside, PIXEL_MM / 2 - border_mm, border_mm - PIXEL_MM / 2)
    outwards = jnp.where(jax.random.bernoulli(keys[3], SKULL_MOVED), jnp.clip(outwards, -farthest, farthest), 0.0)
    moved = beyond - outwards
    return jnp.where(inside & (tissues != FLUID), jnp.minimum(moved, beyond), moved)


def _over_skull(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "y x z"]:
    """Noise of standard deviation 1 that varies as smoothly as a skull."""
    y, x, z = (int(np.ceil(size * PIXEL_MM / SKULL_KNOT_MM)) + 1 for size in shape)
    return faults.smooth_noise(key, shape, (y, x, z))


def filled(inside: Bool[Array, "*n"], tissues: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Tissues for a cavity that has moved: fluid in what is new of it, and bone where fluid no longer is in it.

    >>> kinds = jnp.array([CORTEX, FLUID, FLUID, BONE, BONE])
    >>> [NAMES[n] for n in filled(jnp.array([False, False, True, True, False]), kinds)]
    ['cortex', 'bone', 'fluid', 'fluid', 'bone']
    """
    moved = jnp.where(inside & ~is_inside(tissues), FLUID, tissues)
    return jnp.where(~inside & (tissues == FLUID), BONE, moved)


def table_varied(
    key: PRNGKeyArray, tissues: Int[Array, "y x z"], beyond_mm: Float[Array, "y x z"]
) -> Int[Array, "y x z"]:
    """A skull whose inner table, in some images, is thicker or thinner.

    What is dark over the brain then is not what the label maps happen to have.
    """
    keys = jax.random.split(key, 3)
    thinnest, thickest = TABLE_MM
    mean = jax.random.uniform(keys[0], minval=thinnest, maxval=thickest)
    thickness = jnp.clip(mean + TABLE_SPREAD_MM * _over_skull(keys[1], tissues.shape), thinnest)
    skull = ((tissues == BONE) | (tissues == MARROW)) & (beyond_mm <= DIPLOE_MM)
    varied = jnp.where(skull, jnp.where(beyond_mm <= thickness, BONE, MARROW), tissues)
    return jnp.where(jax.random.bernoulli(keys[2], TABLE_VARIED), varied, tissues)


def brain_size_varied(key: PRNGKeyArray, tissues: Int[Array, "*n"], depth_mm: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """A brain that is smaller or larger in the same skull: its surface has become fluid, or fluid near it cortex."""
    of_which, of_depth = jax.random.split(key)
    which, much = jax.random.uniform(of_which), jax.random.uniform(of_depth)
    shrunken = (which < SHRUNKEN) & is_inside(tissues) & (tissues != FLUID) & (depth_mm <= much * DEEPEST_ATROPHY_MM)
    swollen = (which > 1 - SWOLLEN) & (tissues == FLUID) & (depth_mm <= much * DEEPEST_SWELLING_MM)
    return jnp.where(shrunken, FLUID, jnp.where(swollen, CORTEX, tissues))


def imaged(
    key: PRNGKeyArray,
    tissues: Int[Array, "y x z"],
    depth_mm: Float[Array, "y x z"],
    samples_mm: Sequence[Float[Array, "n"]],
    shares: Float[Array, "tissue"],
) -> Float[Array, "y x z"]:
    """Intensities of samples: a random contrast with grain, perhaps stripped or cut, scaled as a whole head is."""
    keys = jax.random.split(key, 6)
    means, stripped = contrast(keys[0]), jax.random.bernoulli(keys[1], STRIPPED)
    rim = jax.random.uniform(keys[2], minval=THINNEST_RIM_MM, maxval=WIDEST_RIM_MM)
    inside = is_inside(tissues)
    shown = faults.seen(keys[3], samples_mm[0], samples_mm[2], inside)
    shown &= ~stripped | (inside & ((tissues != FLUID) | (depth_mm <= rim)))
    seen_shares = jnp.where(stripped & ~is_inside(jnp.arange(len(TISSUES))), 0.0, shares)
    image = means[tissues] * (1 + grain(keys[4], inside))
    return jnp.where(shown, image, 0.0) / white_level(means, seen_shares)


def contrast(key: PRNGKeyArray, *, t1_weighted: bool = False) -> Float[Array, "tissue"]:
    """Intensity of each tissue: within its range in T1-weighted scans, or, in some images unless told, anything."""
    keys = jax.random.split(key, 4)
    low, high = (jnp.array([tissue[end] for tissue in TISSUES]) for end in (2, 3))
    usual = low + (high - low) * jax.random.uniform(keys[0], low.shape)
    anything = 1.2 * jax.random.uniform(keys[1], low.shape)
    number = jnp.arange(len(TISSUES))
    free = jax.random.bernoulli(keys[2], RANDOM_CONTRAST)
    free |= jax.random.bernoulli(keys[3], RANDOM_OUTSIDE) & ~is_inside(number) & (number != BONE)
    return jnp.where(number == AIR, 0.0, jnp.where(free & (not t1_weighted), anything, usual))


def white_level(means: Float[Array, "tissue"], shares: Float[Array, "tissue"]) -> Float[Array, ""]:
    """What ``intensity.head_median`` would divide an image by in which tissues have these means and shares."""
    above = shares * (means > (means * shares).sum())
    head = shares * (means > 0.3 * _weighted_median(means, above))
    return WHITE_OVER_MEDIAN * _weighted_median(means, head)


def _weighted_median(values: Float[Array, "n"], weights: Float[Array, "n"]) -> Float[Array, ""]:
    order = jnp.argsort(values)
    total = jnp.cumsum(weights[order])
    return values[order][jnp.argmax(total >= 0.5 * total[-1])]


def grain(key: PRNGKeyArray, inside: Bool[Array, "i j k"]) -> Float[Array, "i j k"]:
    """Texture of two scales, stronger outside the cavity: what tissue looks like that no label tells apart."""
    keys = jax.random.split(key, 4)
    amount, outside = jax.random.uniform(keys[0], (2,)) * jnp.array([0.08, 0.3])
    fine = jax.random.normal(keys[1], inside.shape)
    i, j, k = (size // 5 + 1 for size in inside.shape)
    blobs = faults.smooth_noise(keys[2], inside.shape, (i, j, k))
    return jnp.clip(jnp.where(inside, amount, outside) * (0.6 * fine + blobs), -0.9, 1.5)


def scanned(key: PRNGKeyArray, image: Float[Array, "slice h w"]) -> Float[Array, "slice h w"]:
    """Gamma, receive field, ghost, noise and gain."""
    keys = jax.random.split(key, 5)
    image = jnp.clip(image, 1e-3) ** jnp.exp(GAMMA * jax.random.normal(keys[0]))
    image = faults.biased(keys[1], image, BIAS)
    image = faults.noisy(keys[2], faults.ghosted(keys[3], image), NOISE)
    return jnp.clip(image * jnp.exp(GAIN * jax.random.normal(keys[4])), 0.0, BRIGHTEST)


def _varied(key: PRNGKeyArray, samples: list[Array], box: Grid, variation: Variation) -> Float[Array, "3 y x z"]:
    """Where in the stored head, in AC-PC space, the knots of a coarse net over the samples are looked up."""
    of_flip, of_points = jax.random.split(key)
    knots = [int(np.ceil(len(axis) * PIXEL_MM / KNOT_MM)) + 1 for axis in samples]
    y, x, z = (jnp.linspace(axis[0], axis[-1], number) for axis, number in zip(samples, knots, strict=True))
    y, x, z = jnp.meshgrid(y, x, z, indexing="ij")
    centre = jnp.asarray(box.centre_mm, jnp.float32)
    there = points_of(of_points, jnp.stack([x, y, z], -1).reshape(-1, 3), centre, variation)
    flip = jnp.where(jax.random.bernoulli(of_flip), -1.0, 1.0)
    return (there * jnp.array([flip, 1.0, 1.0])).T.reshape(3, *knots)


def _spread_out(net: Float[Array, "c p q r"], samples: list[Array]) -> Float[Array, "c y x z"]:
    """Values on a coarse net over the samples, at every sample."""
    steps = [interpolation(len(axis), number) for axis, number in zip(samples, net.shape[1:], strict=True)]
    return jnp.stack([apply_along(steps, channel) for channel in net])


def _looked_up(heads: Heads, number: Array, vox: Float[Array, "3 y x z"]) -> Int[Array, "y x z"]:
    """Code of the voxel that each sample lies in; air beyond the map, whose last voxels are air."""
    shape = heads.codes.shape[1:]
    i, j, k = (jnp.rint(jnp.clip(axis, 0, size - 1)).astype(jnp.int32) for axis, size in zip(vox, shape, strict=True))
    index = ((number * shape[0] + i) * shape[1] + j) * shape[2] + k
    return heads.codes.reshape(-1).at[index].get(mode="promise_in_bounds").astype(jnp.int32)
