"""What scanners do to images: against scipy and closed forms, on arrays of NumPy and of JAX alike."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from hypodask.image.acquisition import (
    apply_along,
    from_knots,
    gaussian_spread,
    ghosted,
    in_field_of_view,
    interpolation,
    is_face,
    rician,
    thick_slices,
    three_tap_spread,
)


@pytest.fixture(params=[np.asarray, jnp.asarray], ids=["numpy", "jax"])
def array(request):
    return request.param


def volume(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 1.0, shape).astype(np.float32)


def test_matrices_are_applied_along_their_own_axes(array):
    slab = volume(5, 24, 20)
    matrices = [np.random.default_rng(n).normal(size=(n + 2, size)) for n, size in enumerate(slab.shape)]
    expected = np.einsum("ai,bj,ck,ijk->abc", *matrices, slab)
    found = apply_along([array(matrix) for matrix in matrices], array(slab))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_channels_are_carried_along():
    slab = volume(3, 4, 5, 2)
    matrices = [np.eye(n)[::-1] for n in slab.shape[:3]]
    np.testing.assert_allclose(apply_along(matrices, slab), slab[::-1, ::-1, ::-1])


def test_interpolation_is_linear():
    knots = np.random.default_rng(0).normal(size=5)
    expected = np.interp(np.linspace(0, 4, 17), np.arange(5), knots)
    np.testing.assert_allclose(interpolation(17, 5) @ knots, expected, atol=1e-6)
    np.testing.assert_allclose(interpolation(17, 5, xp=jnp), interpolation(17, 5), atol=1e-6)


def test_a_field_has_its_values_at_the_knots_and_is_linear_between_them(array):
    knots = volume(3, 2, 4)
    field = np.asarray(from_knots(array(knots), (9, 5, 13)))
    np.testing.assert_allclose(field[::4, ::4, ::4], knots, rtol=1e-6)
    np.testing.assert_allclose(np.diff(field, 2, axis=1), 0, atol=1e-6)


def test_a_gaussian_point_spread_is_that_of_scipy(array):
    image = volume(30, 31, 32)
    matrices = [gaussian_spread(array(0.8 * np.arange(n)), 1.2) for n in image.shape]
    expected = ndimage.gaussian_filter(image, 1.2 / 0.8, truncate=8)
    core = np.s_[12:-12, 12:-12, 12:-12]
    np.testing.assert_allclose(apply_along(matrices, array(image))[core], expected[core], atol=1e-5)


def test_an_even_image_stays_even_under_a_point_spread(array):
    spread = gaussian_spread(array(2.0 * np.arange(9)), 3.0)
    np.testing.assert_allclose(apply_along([spread] * 3, array(np.ones((9, 9, 9)))), 1, rtol=1e-5)


@given(st.floats(0.05, 0.7))
def test_three_taps_have_the_variance_of_the_gaussian_that_they_stand_for(sd):
    peak = np.zeros((7, 7, 7))
    peak[3, 3, 3] = 1.0
    spread = three_tap_spread(peak, sd)
    assert spread.sum() == pytest.approx(1)
    for axis in range(3):
        profile = spread.sum(axis=tuple({0, 1, 2} - {axis}))
        assert (profile * (np.arange(7) - 3) ** 2).sum() == pytest.approx(sd**2, rel=1e-4)


def test_three_taps_are_never_wider_than_they_can_be():
    image = volume(5, 6, 7)
    np.testing.assert_array_equal(three_tap_spread(image.copy(), 3.0), three_tap_spread(image.copy(), 0.7))


@pytest.mark.parametrize("axis", range(3))
def test_thick_slices_are_means_across_them_and_leave_the_other_axes_alone(axis):
    image = np.moveaxis(np.repeat(volume(1, 5, 6), 12, axis=0), 0, axis)
    np.testing.assert_allclose(thick_slices(image, voxels=4, axis=axis), image, rtol=1e-5)
    wave = np.cos(np.pi * np.arange(96.0))[:, None, None]
    assert np.abs(np.ravel(thick_slices(np.moveaxis(wave, 0, axis), voxels=4, axis=axis))[40:56]).max() < 1e-3


def test_slices_may_begin_anywhere():
    edge = np.repeat([0.0, 1.0], 12)[:, None, None]
    on_it, across_it = (thick_slices(edge, voxels=6, axis=0, first=first)[:, 0, 0] for first in (0.0, 0.5))
    assert np.abs(on_it - across_it).max() > 0.1


def test_noise_makes_air_bright_and_is_never_negative(array):
    real, imaginary = np.random.default_rng(0).normal(size=(2, 40_000))
    found = np.asarray(rician(array(np.zeros(40_000)), array(real), array(imaginary)))
    # Rayleigh: the mean over the standard deviation is sqrt(pi / (4 - pi)).
    assert found.min() >= 0
    assert found.mean() / found.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02)


def test_a_ghost_of_no_strength_is_none(array):
    image = volume(3, 4, 5)
    np.testing.assert_array_equal(ghosted(array(image), array(image[::-1]), 0.0), image)
    np.testing.assert_allclose(
        ghosted(array(image), array(image[::-1]), 0.2), 0.9 * image + 0.2 * image[::-1], rtol=1e-6
    )


def test_a_tilted_field_of_view_ends_higher_in_front():
    y, z = np.array([-50.0, 0.0, 50.0]), np.array([70.0, 70.0, 70.0])
    found = in_field_of_view(y, z, bottom_mm=-40.0, top_mm=75.0, slope=0.2)
    assert found.tolist() == [True, True, False]


def test_a_face_lies_in_front_and_below():
    assert is_face(np.array([60.0, 60.0, 0.0]), np.array([-40.0, 60.0, -40.0]), -10.0).tolist() == [True, False, False]
