"""The box of a network follows the record of its structure; for the main one it is that of the shipped weights."""

import numpy as np
import pytest

from hypodask.core.structures import HEAD_SIZE, MAIN, STRUCTURES
from hypodask.learning.training_box import (
    SEEN,
    scaled_image,
    seen_image,
    seen_labels,
    training_geometry,
    training_grid,
    with_background,
)
from hypodask.networks.cards import InputGeometry
from hypodask.networks.weights import load_weights, resolve_model


def test_the_box_of_the_main_structure_is_what_the_shipped_network_sees():
    shipped = InputGeometry(
        spacing_mm=(0.5, 0.5, 0.5),
        shape=(80, 50, 72),
        slices=5,
        slice_axis=1,
        intensity="box_bright",
        slice_step=2,
        centre_mm=(0.0, -5.5, -6.0),
        frame="head_size",
    )
    assert training_geometry(MAIN) == shipped
    _, card = load_weights(resolve_model(MAIN.network))
    assert card.geometry == shipped


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_boxes_and_their_slices_are_those_of_the_record(structure):
    geometry = training_geometry(structure)
    np.testing.assert_allclose(geometry.grid.extent_mm, structure.box_mm)
    np.testing.assert_allclose(geometry.grid.centre_mm, structure.box_centre_mm)
    assert geometry.slice_step * geometry.spacing_mm[1] == 1.0
    assert geometry.spacing_mm == ((1.0,) * 3 if structure is HEAD_SIZE else (0.5,) * 3)


def test_a_box_grows_until_its_slices_can_be_halved_evenly():
    geometry = training_geometry(MAIN, multiple=32)
    assert geometry.shape == (96, 50, 96)
    np.testing.assert_allclose(geometry.grid.centre_mm, MAIN.box_centre_mm)


def test_training_grids_hold_what_the_network_sees():
    geometry = training_geometry(MAIN)
    grid, seen = training_grid(geometry), geometry.grid
    assert np.empty(grid.shape)[SEEN].shape == seen.shape
    np.testing.assert_allclose(grid.centre_mm, seen.centre_mm)
    first = np.array([part.start for part in SEEN])
    np.testing.assert_allclose(grid.space_from_vox @ [*first, 1], seen.space_from_vox[:, 3])


def test_what_lies_outside_of_the_box_does_not_set_the_scale_of_an_image():
    image = np.full((40, 40, 40), 50.0)
    image[:8] = 5000.0
    np.testing.assert_allclose(scaled_image(image)[SEEN], 1.0)
    np.testing.assert_array_equal(seen_image(image), scaled_image(image)[SEEN])


def test_channels_of_seen_labels_sum_to_one():
    truth = np.random.default_rng(0).dirichlet(np.ones(3), (40, 40, 40)).transpose(3, 0, 1, 2)[:2].astype(np.float16)
    channels = with_background(seen_labels(truth))
    assert channels.shape == (3, 8, 10, 8)
    np.testing.assert_allclose(channels.sum(axis=0), 1.0, atol=1e-6)
