"""Scans as other scanners would give them."""

import numpy as np
import pytest
from scipy import ndimage

from hypodask.core.grid import Grid, box_grid
from hypodask.image.resampling import resample
from hypodask.learning.scanner_versions import SCANNERS, _in_slices, blurred, sharp, softer, versions_of
from hypodask.networks.cards import InputGeometry


@pytest.mark.parametrize("first", [0.0, 0.5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_head_in_slices_is_what_reading_a_scan_of_thick_slices_gives(axis, first):
    fine = box_grid((84, 78, 90), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
    image = ndimage.gaussian_filter(np.random.default_rng(0).random(fine.shape), 3).astype(np.float32)
    start = np.array([round(6 * first) * (other == axis) for other in range(3)])
    slices = np.moveaxis(image, axis, 0)[start[axis] :]
    slices = slices[: len(slices) // 6 * 6].reshape(-1, 6, *slices.shape[1:]).mean(axis=1)
    of_slice = np.array(fine.space_from_vox)
    of_slice[:3, 3] += of_slice[:3, axis] * (start[axis] + 2.5)
    of_slice[:3, axis] *= 6
    scan = np.moveaxis(slices, 0, axis)
    read = resample(scan, Grid(scan.shape, of_slice, "acpc"), fine, order=3)
    shown = _in_slices(image, fine.spacing_mm, axis=axis, first=first)
    inside = tuple(slice(30, -30) if other == axis else slice(None) for other in range(3))
    np.testing.assert_allclose(shown[inside], read[inside], atol=0.01 * np.ptp(image))
    assert np.abs(shown - image).max() > 0.05 * np.ptp(image)


def test_a_wider_point_spread_keeps_the_sum_and_lowers_the_peak():
    image = np.zeros((30, 30, 30))
    image[15, 15, 15] = 1.0
    seen = blurred(image, (0.5, 1.0, 1.0), sd_mm=(0.0, 1.5, 0.0))
    assert seen.sum() == pytest.approx(1, rel=1e-3)
    assert seen[15, :, 15].sum() == pytest.approx(1, rel=1e-3)
    assert seen.max() < 0.3


def test_every_version_is_in_units_of_the_white_matter_that_the_network_sees():
    image = np.full((40, 40, 40), 100.0)
    image[:5] = 900.0
    geometry = InputGeometry((0.5,) * 3, (20, 20, 20), slices=5, slice_axis=1, intensity="box_bright")
    versions = versions_of(image, (sharp, softer), geometry, (slice(10, -10),) * 3)
    assert (versions.shape, versions.dtype) == ((2, 40, 40, 40), np.float16)
    np.testing.assert_allclose(versions[:, 15:25, 15:25, 15:25], 1.0, atol=1e-3)


def test_shares_of_the_scanners_add_up():
    assert sum(SCANNERS.values()) == pytest.approx(1)
    assert max(SCANNERS, key=SCANNERS.get) is sharp
