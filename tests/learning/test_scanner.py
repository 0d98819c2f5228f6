"""Scanners drawn at random: each effect is of the size that it is given, and there is none where none is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from hypodask.image.acquisition import FWHM_TO_SIGMA, apply_along
from hypodask.learning import scanner
from hypodask.learning.scanner import biased, ghosted, noisy, point_spread, seen, smooth_noise

KEYS = jax.random.split(jax.random.key(0), 40)


@pytest.fixture
def slab():
    return jnp.asarray(np.random.default_rng(0).uniform(0.2, 1.0, (5, 24, 20)).astype(np.float32))


def test_smooth_noise_has_unit_variance_at_its_knots():
    fields = np.stack([smooth_noise(key, (5, 7, 9), (2, 4, 5)) for key in KEYS])
    assert fields[:, ::4, ::2, ::2].std() == pytest.approx(1, abs=0.1)


def test_point_spread_is_a_gaussian_of_the_width_it_is_given(monkeypatch):
    monkeypatch.setattr(scanner, "_THICK", 0.0)
    monkeypatch.setattr(scanner, "_SHARPEST_MM", 3.0)
    monkeypatch.setattr(scanner, "_BLUNTEST_MM", 3.0)
    places = jnp.arange(40.0)
    volume = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    blurred = apply_along(point_spread(KEYS[0], [places] * 3), jnp.asarray(volume))
    expected = ndimage.gaussian_filter(volume, 3.0 * FWHM_TO_SIGMA, truncate=8)
    np.testing.assert_allclose(blurred[12:-12, 12:-12, 12:-12], expected[12:-12, 12:-12, 12:-12], atol=1e-4)


def test_thick_slices_are_thick_along_one_axis_only(monkeypatch):
    monkeypatch.setattr(scanner, "_THICK", 1.0)
    places = jnp.arange(30.0)
    for key in KEYS[:8]:
        peaks = sorted(float(matrix[15].max()) for matrix in point_spread(key, [places] * 3))
        assert peaks[0] < peaks[1] == pytest.approx(peaks[2])


def test_an_even_image_stays_even_under_point_spread():
    places = 2 * jnp.arange(17.0)
    np.testing.assert_allclose(apply_along(point_spread(KEYS[1], [places] * 3), jnp.ones((17,) * 3)), 1, rtol=1e-5)


def test_a_ghost_is_a_weak_copy_moved_within_the_slice(monkeypatch):
    monkeypatch.setattr(scanner, "_GHOST", 1.0)
    bright = jnp.zeros((3, 16, 16)).at[1, 8, 8].set(1.0)
    ghost = np.array(ghosted(KEYS[0], bright))
    ghost[1, 8, 8] = 0
    assert (ghost > 0).sum() == 1
    assert ghost[1].max() <= scanner._STRONGEST_GHOST
    monkeypatch.setattr(scanner, "_GHOST", 0.0)
    np.testing.assert_array_equal(ghosted(KEYS[0], bright), bright)


def test_noise_is_rician(slab):
    np.testing.assert_allclose(noisy(KEYS[0], slab, 0.0), slab, rtol=1e-6)
    dark = np.asarray(noisy(KEYS[0], jnp.zeros((8, 64, 64)), 1.0))
    # Rayleigh: the mean over the standard deviation is sqrt(pi / (4 - pi)).
    assert dark.mean() / dark.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02)


def test_a_bias_field_is_smooth_and_keeps_air_dark(slab):
    ratio = np.asarray(biased(KEYS[0], slab, 0.3) / slab)
    assert np.abs(np.diff(np.log(ratio), axis=1)).max() < 0.15
    assert ratio.std() > 0.001
    np.testing.assert_array_equal(biased(KEYS[0], jnp.zeros((3, 8, 8)), 0.3), 0)


def test_most_images_are_seen_whole_and_a_removed_face_spares_the_icv(monkeypatch):
    y, z = jnp.linspace(-10, 10, 5) + 60, jnp.linspace(-80, 90, 40)
    icv = jnp.zeros((5, 6, 40), bool).at[:, 2:4].set(True)
    whole = np.mean([bool(seen(key, y, z, icv).all()) for key in KEYS])
    assert 0.3 < whole < 0.9
    monkeypatch.setattr(scanner, "_CUT", 0.0)
    monkeypatch.setattr(scanner, "_DEFACED", 1.0)
    shown = np.asarray(seen(KEYS[0], y, z, icv))
    assert shown[:, 2:4].all()
    assert not shown[:, 0, 0].any()
    assert shown[:, 0, -1].all()
