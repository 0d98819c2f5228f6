"""The largest piece of a mask, and its holes."""

import numpy as np
from scipy import ndimage

from hypodask.image.masks import largest_piece, without_holes


def test_largest_piece_joins_voxels_that_share_a_corner_if_that_is_asked_for():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 4, 4] = True
    assert np.argwhere(largest_piece(mask)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert np.argwhere(largest_piece(mask, by_corners=False)).tolist() == [[0, 0, 0]]


def test_nothing_has_no_piece_and_no_holes():
    nothing = np.zeros((3, 4, 5), bool)
    assert not largest_piece(nothing).any()
    assert not without_holes(nothing).any()


def test_a_ball_with_a_hole_and_an_island_becomes_a_ball():
    distance = np.linalg.norm(np.moveaxis(np.indices((20, 21, 22)), 0, -1) - 10, axis=-1)
    mask = (distance < 8) & (distance > 3)
    mask[0, 0, 0] = True
    np.testing.assert_array_equal(without_holes(largest_piece(mask)), distance < 8)


def test_filled_holes_are_those_that_scipy_fills_too():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((20, 22, 24)), 1.0) > -0.1
    assert (without_holes(mask) != mask).any()
    np.testing.assert_array_equal(without_holes(mask), ndimage.binary_fill_holes(mask))
