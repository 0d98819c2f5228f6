"""Examples from labelled scans: what grows follows the structure, and sides change places in mirrored scans."""

import jax
import numpy as np
import pytest

from hypodask.core.structures import HYPOTHALAMUS_SIDES, MAIN, STRUCTURES, THIRD_VENTRICLE
from hypodask.learning import labelled_scans
from hypodask.learning.augmentation import Variation
from hypodask.learning.growth import growth_sd
from hypodask.learning.labelled_scans import labelled_task, unvaried
from hypodask.learning.scanner_versions import sharp
from hypodask.learning.training_box import training_geometry, training_grid


@pytest.fixture(autouse=True)
def one_scanner(monkeypatch):
    monkeypatch.setattr(labelled_scans, "SCANNERS", {sharp: 1.0})


def labelled_scan(grid, *places):
    """A bright image with a dark box for each label; a label is a slice along x."""
    truth = np.zeros((len(places), *grid.shape), np.float16)
    for label, place in zip(truth, places, strict=True):
        label[place, 40:60, 40:60] = 1
    return {"image": (400 - 200 * truth.sum(axis=0)).astype(np.float32), "truth": truth}


def test_the_main_structure_grows_as_a_whole_by_side_and_with_the_ventricle():
    geometry = training_geometry(MAIN)
    scan = labelled_scan(training_grid(geometry), slice(35, 50), slice(62, 77))
    task = labelled_task([scan], HYPOTHALAMUS_SIDES, Variation(), geometry)
    head = task.make(jax.random.key(0))
    whole, left, right, _ = np.asarray(head.growth.fields)
    np.testing.assert_allclose(left + right, whole, atol=1e-5)
    np.testing.assert_allclose(head.growth.log_sd, [0.4, 0.08, 0.08, 0.3])
    np.testing.assert_array_equal(task.mirror(head.truth)[..., 0], scan["truth"][1])


def test_a_structure_without_sides_grows_as_a_whole_alone():
    structure = STRUCTURES["third_ventricle"]
    assert growth_sd(structure) == {"whole": 0.4}
    geometry = training_geometry(structure)
    grid = training_grid(geometry)
    task = labelled_task([labelled_scan(grid, slice(54, 58))], THIRD_VENTRICLE, Variation(), geometry)
    head = task.make(jax.random.key(0))
    assert head.growth.fields.shape == (1, 3, *(n // 2 for n in grid.shape))
    assert (task.stored.shape, task.wanted.shape) == (grid.shape, geometry.shape)
    np.testing.assert_array_equal(task.mirror(head.truth), head.truth)


def test_a_scan_as_it_is_has_its_labels_where_its_slices_are_dark():
    geometry = training_geometry(STRUCTURES["third_ventricle"])
    slices, truth = unvaried(labelled_scan(training_grid(geometry), slice(54, 58)), geometry)
    wide, deep, high = geometry.shape
    assert (slices.shape, truth.shape) == ((deep, wide, high, 5), (deep, wide, high, 2))
    np.testing.assert_allclose(slices[..., 2], 1 - 0.5 * truth[..., 1], atol=1e-3)
