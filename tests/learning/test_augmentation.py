"""Random variation of examples: nothing varied is nothing changed, and each fault is of the size it is given."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hypodask.learning.augmentation import Variation, _grain, _rotation, _smooth_field, contrast_of, points_of

NOTHING = Variation(turn_deg=0, shift_mm=0, size=0, warp_mm=0, local_size=0, gamma=0, gain=0, bias=0, noise=0, curve=0)
CENTRE = jnp.array([1.0, -5.0, -6.0])


@pytest.fixture(scope="module")
def points():
    return jax.random.uniform(jax.random.key(7), (200, 3), minval=-20, maxval=20)


def moved(points, key=0, **options):
    return np.asarray(points_of(jax.random.key(key), points, CENTRE, replace(NOTHING, **options)))


def test_without_variation_points_stay_where_they_are(points):
    np.testing.assert_allclose(moved(points), points, atol=1e-5)


def test_without_variation_intensities_stay_what_they_are(points):
    values = jnp.linspace(0.01, 1.5, len(points))
    np.testing.assert_allclose(contrast_of(jax.random.key(0), values, points, NOTHING), values, rtol=1e-5)


@pytest.mark.parametrize(("strength", "same"), [(0.0, NOTHING), (1.0, Variation())])
def test_a_variation_of_no_strength_varies_nothing_and_of_full_strength_is_itself(points, strength, same):
    key, values = jax.random.key(3), jnp.linspace(0.1, 1.2, len(points))
    there, wanted = points_of(key, points, CENTRE, Variation(), strength), points_of(key, points, CENTRE, same)
    np.testing.assert_allclose(there, wanted, atol=1e-5)
    shown, expected = (
        contrast_of(key, values, points, Variation(), strength),
        contrast_of(key, values, points, same),
    )
    np.testing.assert_allclose(shown, expected, rtol=1e-5)


def test_a_turn_and_a_shift_keep_distances(points):
    there = moved(points, turn_deg=10, shift_mm=5)
    assert np.abs(there - points).max() > 1
    kept = np.linalg.norm(points[:, None] - points, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(there[:, None] - there, axis=-1), kept, atol=1e-3)


def test_size_changes_each_axis_by_its_own_factor(points):
    ratios = (moved(points, size=0.2) - CENTRE) / (points - CENTRE)
    np.testing.assert_allclose(ratios, np.broadcast_to(np.median(ratios, axis=0), ratios.shape), rtol=1e-2)
    assert len(set(np.median(ratios, axis=0).round(3))) == 3


def test_local_growth_moves_only_what_is_near_the_centre():
    near, far = CENTRE + jnp.array([[3.0, 0, 0]]), CENTRE + jnp.array([[60.0, 0, 0]])
    growth = moved(near, local_size=0.3)[0, 0] - near[0, 0]
    assert abs(growth) > 0.05
    np.testing.assert_allclose(moved(far, local_size=0.3), far, atol=1e-4)


def test_one_key_gives_one_variation(points):
    np.testing.assert_array_equal(moved(points, key=3, turn_deg=4), moved(points, key=3, turn_deg=4))
    assert np.abs(moved(points, key=3, turn_deg=4) - moved(points, key=4, turn_deg=4)).max() > 0.01


def test_rotation_of_a_vector_is_that_of_scipy():
    angles = np.array([0.3, -0.7, 0.2])
    np.testing.assert_allclose(_rotation(jnp.asarray(angles)), Rotation.from_rotvec(angles).as_matrix(), atol=1e-6)


def test_a_smooth_field_has_unit_variance_and_is_smooth(points):
    keys = jax.random.split(jax.random.key(2), 60)
    field = jax.jit(jax.vmap(lambda key, at: _smooth_field(key, at, 5.0, 1), in_axes=(0, None)))
    values = np.asarray(field(keys, points))
    assert values.shape == (60, 200, 1)
    assert values.mean() == pytest.approx(0, abs=0.1)
    assert values.var() == pytest.approx(1, abs=0.1)
    assert np.abs(np.asarray(field(keys, points + 0.1)) - values).max() < 0.3


def test_noise_is_rician_so_that_air_is_not_black(points):
    black = jnp.full(len(points), 1e-3)
    noisy = np.asarray(contrast_of(jax.random.key(1), black, points, replace(NOTHING, noise=0.1)))
    assert noisy.min() >= 0
    assert 1e-3 < noisy.mean() < 0.2


def test_noise_is_as_strong_however_much_of_it_neighbours_share():
    drawn = [np.asarray(_grain(jax.random.key(seed), (2, 40, 40))) for seed in range(12)]
    np.testing.assert_allclose([one.std() for one in drawn], 1, atol=0.1)
    shared = [np.corrcoef(one[0, 0, :, 1:].ravel(), one[0, 0, :, :-1].ravel())[0, 1] for one in drawn]
    assert min(shared) < 0.15
    assert max(shared) > 0.4


def test_another_intensity_curve_leaves_black_and_white_matter_where_they_are():
    values = jnp.array([1e-3, 0.5, 1.0])
    curved = np.asarray(contrast_of(jax.random.key(5), values, jnp.zeros((3, 3)), replace(NOTHING, curve=0.2)))
    np.testing.assert_allclose(curved[[0, 2]], [1e-3, 1.0], atol=4e-3)
    assert abs(curved[1] - 0.5) > 0.02


def test_a_bias_field_may_be_worked_out_at_fewer_points():
    values = jnp.ones((8, 8))
    axis = (jnp.arange(8) - 3.5) * 5
    every = jnp.stack([*jnp.meshgrid(axis, axis, indexing="ij"), jnp.zeros((8, 8))], axis=-1)
    few = every.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    only_bias = replace(NOTHING, bias=0.2)
    fine, coarse = (contrast_of(jax.random.key(2), values, points, only_bias) for points in (every, few))
    np.testing.assert_allclose(coarse[1:-1, 1:-1], fine[1:-1, 1:-1], atol=5e-3)


def test_intensities_are_cut_at_one_and_a_half_times_white_matter(points):
    bright = contrast_of(jax.random.key(1), jnp.full(len(points), 9.0), points, Variation())
    assert float(bright.max()) == 1.5
