"""Structures grow by what they are told to, and what is around them keeps its volume."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from hypodask.core.grid import box_grid, transform_points
from hypodask.learning.growth import _growth_field, _halved, _halved_grid, _third_ventricle

SPACING_MM = (1.0, 1.5, 0.75)
SHAPE = (40, 28, 52)


@pytest.fixture(scope="module")
def ball():
    """A soft ball of 6 mm in a grid of unequal voxels."""
    places = (np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2) * SPACING_MM
    return np.clip(6.5 - np.linalg.norm(places, axis=-1), 0, 1)


def pulled(volume, field, amount):
    """The volume, each voxel looked up where a displacement says."""
    steps = amount * field / np.array(SPACING_MM)[:, None, None, None]
    return map_coordinates(volume, np.indices(SHAPE) + steps, order=1, mode="nearest")


@pytest.mark.parametrize("amount", [0.02, 0.1, -0.1])
def test_a_structure_shrinks_by_the_amount_at_which_it_is_looked_up(ball, amount):
    ratio = pulled(ball, _growth_field(ball, SPACING_MM), amount).sum() / ball.sum()
    assert 1 / ratio - 1 == pytest.approx(amount, abs=0.2 * abs(amount))


def test_what_is_around_a_structure_keeps_its_volume(ball):
    field = _growth_field(ball, SPACING_MM)
    beside = np.zeros(SHAPE)
    beside[8:11, 10:18, 20:32] = 1
    assert pulled(beside, field, 0.2).sum() == pytest.approx(beside.sum(), rel=0.01)
    assert np.abs(pulled(beside, field, 0.2) - beside).max() > 0.05


def test_divergence_is_the_structure(ball):
    field = _growth_field(ball, SPACING_MM)
    slope = sum(np.gradient(field[axis], SPACING_MM[axis], axis=axis) for axis in range(3))
    assert np.abs(slope - ball)[2:-2, 2:-2, 2:-2].max() < 0.3  # steps of the border, which differences smear
    assert np.abs((slope - ball)[2:-2, 2:-2, 2:-2]).mean() < 0.01


def test_half_the_voxels_are_where_they_were():
    grid = box_grid((8, 6, 4), (0.5, 0.5, 1.0), (1.0, -5.0, 2.0))
    places = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    fewer = _halved_grid(grid)
    np.testing.assert_allclose(
        transform_points(fewer.space_from_vox, np.moveaxis(np.indices(fewer.shape), 0, -1)),
        np.stack([_halved(places[..., axis]) for axis in range(3)], axis=-1),
        atol=1e-6,
    )


def test_the_third_ventricle_is_dark_and_near_the_midline():
    places = np.array([[0, -8, -5], [0, -8, -5], [12, -8, -5], [0, -8, 30]], float)[:, None, None]
    image = np.array([0.2, 0.8, 0.2, 0.2])[:, None, None]
    np.testing.assert_allclose(_third_ventricle(image, places).ravel(), [1, 0, 0, 0], atol=0.03)
