"""Heads imaged from label maps: the truth is the ICV, whatever the contrast, and however large the brain in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypodask.core.grid import Grid, box_grid
from hypodask.image.intensity import head_median, spread_dark
from hypodask.learning import scanner, synthetic_heads
from hypodask.learning.augmentation import Variation
from hypodask.learning.synthetic_heads import (
    _AIR,
    _BONE,
    _CORTEX,
    _FLUID,
    _MARROW,
    _TISSUES,
    NAMES,
    SINUS,
    Whole,
    _brain_size_varied,
    _contract_brain,
    _imaged,
    _is_inside,
    _shares_of,
    _skull_moved,
    _table_varied,
    _taken_apart,
    _white_level,
    contrast,
    head_map,
    icv_mask,
    stacked,
    tissue_numbers,
    volume_drawer,
)

WHITE, CSF, SKULL, SKIN = 2, 24, 515, 511
BOX = box_grid((48, 40, 44), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
STILL = Variation(turn_deg=0, shift_mm=0, size=0, warp_mm=0, local_size=0)


@pytest.fixture(scope="module")
def ball():
    """Brain, fluid, bone and skin as shells of 12, 16, 18 and 20 mm, in a map of 1 mm."""
    grid = box_grid((48, 48, 48), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    places = np.stack(np.meshgrid(*[np.arange(48) - 23.5] * 3, indexing="ij"))
    radius = np.linalg.norm(places, axis=0)
    labels = np.select([radius < 12, radius < 16, radius < 18, radius < 20], [WHITE, CSF, SKULL, SKIN], 0)
    return labels, Grid(grid.shape, grid.space_from_vox, "scanner")


@pytest.fixture
def unmoved(monkeypatch):
    """Heads stay where they are; XLA takes long to compile the warp, which has tests of its own."""
    monkeypatch.setattr(synthetic_heads, "points_of", lambda key, points_mm, *how: points_mm)


@pytest.fixture
def plain(unmoved, monkeypatch):
    """A brain of its own size in a whole head, with nothing but contrast and point spread."""
    unvaried = ("_STRIPPED", "_SHRUNKEN", "_SWOLLEN", "_CONTRACTED", "_SKULL_MOVED", "_TABLE_VARIED")
    for name in ("_RANDOM_CONTRAST", "_RANDOM_OUTSIDE", *unvaried, "_NOISE", "_BIAS", "_GAIN"):
        monkeypatch.setattr(synthetic_heads, name, 0.0)
    for name in ("_CUT", "_DEFACED", "_GHOST", "_THICK"):
        monkeypatch.setattr(scanner, name, 0.0)


def drawn(ball, examples=2, variation=STILL, key=0):
    labels, grid = ball
    heads = stacked([head_map(labels, grid, np.eye(4), BOX)])
    inputs, truth = volume_drawer(heads, BOX, variation, examples)(jax.random.key(key))
    return np.asarray(inputs), np.asarray(truth)


def test_the_icv_is_the_largest_piece_and_what_it_encloses(ball):
    labels = ball[0].copy()
    whole = (labels == WHITE) | (labels == CSF)
    labels[24, 24, 24] = 0  # a hole
    labels[24, 12, 24] = 514  # a vessel within
    labels[1, 1, 1] = CSF  # an island in the air
    np.testing.assert_array_equal(icv_mask(labels), whole)


def test_labels_of_one_tissue_share_a_number_and_strangers_go_with_the_rest():
    numbers = tissue_numbers(np.array([[[0, 2, 41, 24, 4, 30, 515, 600]]]))
    names = [NAMES[n] for n in numbers.ravel()]
    assert names == ["air", "white", "white", "fluid", "fluid", "rest", "bone", "other"]


def test_no_label_belongs_to_two_tissues():
    labels = [label for tissue in _TISSUES for label in tissue.labels]
    assert len(labels) == len(set(labels))


def test_a_stored_map_knows_tissue_depth_and_place(ball):
    labels, grid = ball
    stored = head_map(labels, grid, np.eye(4), BOX)
    i, j, k = np.rint(stored.vox_from_acpc[:3, :3] @ [0.5, 0.5, 0.5] + stored.vox_from_acpc[:3, 3]).astype(int)
    tissue, depth, border = _taken_apart(jnp.asarray(stored.codes[i, j, k], jnp.int32))
    assert NAMES[tissue] == "white"
    assert depth == pytest.approx(12, abs=1)
    assert border == pytest.approx(16, abs=1)
    assert stored.shares.sum() == pytest.approx(1)
    assert stored.shares[NAMES.index("skin")] == pytest.approx((labels == SKIN).mean(), rel=0.25)


def test_holes_of_a_stored_map_are_fluid_and_islands_are_air(ball):
    labels = ball[0].copy()
    labels[24, 24, 24], labels[4, 24, 24] = 0, CSF
    stored = head_map(labels, ball[1], np.eye(4), BOX)
    tissues, _, _ = _taken_apart(jnp.asarray(stored.codes, jnp.int32))
    assert stored.codes.shape == (40, 40, 40)
    assert tissues[20, 20, 20] == _FLUID
    assert (tissues[0] != _FLUID).all()


def test_the_truth_is_the_share_of_the_icv_in_each_voxel_and_adds_up_to_it(ball, plain):
    inputs, truth = drawn(ball)
    assert inputs.shape == (2, 40, 48, 44, 1)
    assert truth.shape == (2, 40, 48, 44, 3)
    np.testing.assert_allclose(truth.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(
        truth[..., 2].sum(axis=(1, 2, 3)), ((ball[0] == WHITE) | (ball[0] == CSF)).sum(), rtol=1e-4
    )
    assert not truth[..., 1].any()


def test_axes_of_an_example_are_those_of_the_head(ball, plain):
    labels = np.where(np.arange(48)[:, None, None] < 20, 0, ball[0])  # no brain on the left
    _, truth = drawn((labels, ball[1]), examples=4)
    halves = truth[:, :, :20, :, 2].sum(axis=(1, 2, 3)), truth[:, :, 28:, :, 2].sum(axis=(1, 2, 3))
    # Some heads are mirrored; what is lost is lost along x, the second axis.
    assert ((halves[0] == 0) != (halves[1] == 0)).all()


def test_what_is_outside_near_a_sinus_counts_as_one():
    tissues = jnp.array([_CORTEX, _FLUID, SINUS, SINUS, _BONE, _BONE])[:, None, None]
    beyond = jnp.array([-1.5, -0.5, 0.25, 1.5, 2.5, 3.5])[:, None, None]
    shares = _shares_of(Whole(jnp.zeros(tissues.shape), tissues, beyond))[:, 0, 0]
    np.testing.assert_allclose(shares, [[0, 0, 1], [0, 0, 1], [0, 0.75, 0.25], [0, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_dark_tissues_are_spread_as_at_inference():
    levels = np.linspace(0, 1.5, 30, dtype=np.float32)
    np.testing.assert_allclose(spread_dark(jnp.asarray(levels), xp=jnp), spread_dark(levels), atol=1e-6)


def test_atrophy_turns_the_surface_of_the_brain_to_fluid_and_swelling_the_fluid_near_it_to_cortex(monkeypatch):
    white = NAMES.index("white")
    tissues = jnp.array([white, white, _FLUID, _FLUID, _AIR, _BONE])
    depths = jnp.array([0.0, 9.0, 0.0, 9.0, 0.0, 0.0])
    monkeypatch.setattr(synthetic_heads, "_SWOLLEN", 0.0)
    monkeypatch.setattr(synthetic_heads, "_SHRUNKEN", 1.0)
    shrunken = _brain_size_varied(jax.random.key(1), tissues, depths)
    assert shrunken.tolist() == [_FLUID, white, *tissues[2:].tolist()]
    monkeypatch.setattr(synthetic_heads, "_SWOLLEN", 1.0)
    monkeypatch.setattr(synthetic_heads, "_SHRUNKEN", 0.0)
    swollen = _brain_size_varied(jax.random.key(1), tissues, depths)
    assert swollen.tolist() == [white, white, _CORTEX, *tissues[3:].tolist()]


def test_a_brain_that_draws_back_leaves_fluid_and_the_border_of_the_icv_where_it_was(ball, monkeypatch):
    monkeypatch.setattr(synthetic_heads, "_CONTRACTED", 1.0)
    heads = stacked([head_map(*ball, np.eye(4), BOX)])
    points = jnp.stack(jnp.meshgrid(*[jnp.arange(-20.0, 21.0)] * 3, indexing="ij"))

    def codes_at(points):
        return synthetic_heads._looked_up(
            heads, jnp.asarray(0), points + jnp.asarray(heads.vox_from_acpc[0, :3, 3])[:, None, None, None]
        )

    codes = codes_at(points)
    before, *_ = _taken_apart(codes)
    after, *_ = _taken_apart(_contract_brain(jax.random.key(0), codes, codes_at, points))
    np.testing.assert_array_equal(_is_inside(after), _is_inside(before))
    brain_left = float(((after != _FLUID) & _is_inside(after)).sum() / ((before != _FLUID) & _is_inside(before)).sum())
    assert synthetic_heads._SMALLEST_BRAIN - 0.02 < brain_left < 0.98


def test_a_skull_moves_through_fluid_and_what_lies_outside_as_far_in_as_out_but_through_no_brain(monkeypatch):
    monkeypatch.setattr(synthetic_heads, "_SKULL_MOVED", 1.0)
    line = jnp.array([_CORTEX, *[_FLUID] * 5, *[_BONE] * 8])
    depth, border = jnp.array([1.0, *range(1, 14)]), jnp.array([*range(6, 0, -1), *range(1, 9)], float)
    widths = []
    for key in jax.random.split(jax.random.key(0), 300):
        parts = (part.reshape(1, 1, -1) for part in (line, depth, border))
        inside = (_skull_moved(key, *parts)[0, 0] <= 0).tolist()
        # Brain and what lies within 1.5 mm of it stay, and the ICV is in one piece.
        assert inside[:2] == [True, True]
        assert inside == sorted(inside, reverse=True)
        widths.append(sum(inside))
    assert set(widths) == {3, 4, 5, 6, 7, 8, 9}
    assert abs(np.mean(widths) - 6) < 0.25


def test_inner_tables_are_of_any_thickness_but_nowhere_gone_and_nothing_else_changes(monkeypatch):
    monkeypatch.setattr(synthetic_heads, "_TABLE_VARIED", 1.0)
    line = jnp.array(
        [_CORTEX, _FLUID, _BONE, _BONE, _MARROW, _MARROW, _BONE, NAMES.index("skin"), *[_MARROW] * 4, _BONE]
    )
    beyond = jnp.arange(line.size) - 1.5
    skull = (line == _BONE) | (line == _MARROW)
    tables = set()
    for key in jax.random.split(jax.random.key(0), 100):
        varied = _table_varied(key, line.reshape(1, 1, -1), beyond.reshape(1, 1, -1))[0, 0]
        np.testing.assert_array_equal(varied[~skull], line[~skull])
        np.testing.assert_array_equal(
            varied[beyond > synthetic_heads._DIPLOE_MM], line[beyond > synthetic_heads._DIPLOE_MM]
        )
        tables.add(int((varied[2:7] == _BONE).sum()))
    assert tables == {1, 2, 3, 4, 5}


def test_t1_weighted_contrasts_keep_their_ranges_and_others_do_not():
    usual = np.stack([contrast(jax.random.key(n), t1_weighted=True) for n in range(20)])
    low, high = np.array([[tissue.low, tissue.high] for tissue in _TISSUES]).T
    assert ((usual >= low - 1e-6) & (usual <= high + 1e-6)).all()
    free = np.stack([contrast(jax.random.key(n)) for n in range(60)])
    assert (free[:, _FLUID] > free[:, NAMES.index("white")]).any()
    np.testing.assert_array_equal(free[:, _AIR], 0)


def test_the_white_level_is_that_of_the_scaling_at_inference():
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(len(_TISSUES)))
    means = random.uniform(0.05, 1.2, len(_TISSUES))
    voxels = np.repeat(means, np.round(shares * 30_000).astype(int)).reshape(1, 1, -1)
    scaled = voxels / float(_white_level(jnp.asarray(means), jnp.asarray(shares)))
    np.testing.assert_allclose(np.minimum(scaled, 1.5), head_median(voxels), rtol=1e-4)


def test_a_stripped_head_is_black_outside_the_icv(monkeypatch):
    tissues = jnp.array([NAMES.index("white"), _FLUID, _FLUID, NAMES.index("skin")])[None, None]
    depths = jnp.array([5.0, 0.2, 20.0, 0.0])[None, None]
    places = [jnp.zeros(1), jnp.zeros(1), jnp.zeros(4)]
    shares = jnp.full(len(_TISSUES), 1 / len(_TISSUES))
    monkeypatch.setattr(synthetic_heads, "_STRIPPED", 1.0)
    for key in jax.random.split(jax.random.key(0), 3):
        shown = np.asarray(_imaged(key, tissues, depths, places, shares))[0, 0] > 0
        assert shown.tolist()[1:] == [True, False, False]


def test_batches_are_in_the_range_of_inference_and_the_same_for_the_same_key(ball, unmoved):
    heads = stacked([head_map(*ball, np.eye(4), BOX)])
    draw = volume_drawer(heads, BOX, Variation(), 2)
    (first, _), (again, _), (other, _) = (draw(jax.random.key(n)) for n in (3, 3, 4))
    assert first.min() >= 0
    assert first.max() <= 1
    assert jnp.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
