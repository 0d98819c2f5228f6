"""The intensity of air is found whatever the offset, and what cannot be known is refused."""

import numpy as np
import pytest

from hypodask.core.errors import BackgroundError
from hypodask.core.grid import Grid
from hypodask.phantom import simulate_head
from hypodask.scan.air import _air_of, above_air
from hypodask.scan.scan import Scan

GRID = Grid((40, 40, 40), np.eye(4), "scanner")


def head(noise: float = 2.0, seed: int = 0) -> np.ndarray:
    """A ball of two tissues in air with the noise of a magnitude image."""
    distance = np.linalg.norm(np.indices(GRID.shape) - 19.5, axis=0)
    signal = np.where(distance < 10, 100.0, np.where(distance < 14, 60.0, 0.0))
    real, imaginary = np.random.default_rng(seed).normal(0, noise, (2, *GRID.shape))
    return np.hypot(signal + real, imaginary).astype(np.float32)


def scan_of(data: np.ndarray) -> Scan:
    return Scan(np.asarray(data, np.float32), GRID)


@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("offset", [-50.0, -5.0, 5.0, 50.0])
@pytest.mark.parametrize("factor", [0.01, 1.0, 300.0])
def test_an_offset_and_a_factor_change_nothing_but_the_factor(noise, offset, factor):
    as_it_is = above_air(scan_of(head(noise))).data
    moved = above_air(scan_of(factor * (head(noise) + offset))).data
    np.testing.assert_allclose(moved / factor, as_it_is, atol=0.25)  # in per cent of white matter


@pytest.mark.parametrize("noise", [1.0, 3.0, 6.0])
def test_noise_in_air_is_no_offset(noise):
    assert abs(_air_of(head(noise)).zero) < 0.2 * noise
    assert _air_of(np.pad(head(noise), 40)).zero == 0.0  # most of this air was filled with zeros


def test_padding_with_the_level_of_air_is_no_offset():
    noisy = head(3.0)
    assert _air_of(np.pad(noisy, 20, constant_values=4.0)).zero == pytest.approx(_air_of(noisy).zero, abs=0.3)


def test_a_magnitude_image_with_dark_air_comes_back_as_it_is():
    scan = scan_of(np.where(head() > 30, head(), 0.0))
    assert above_air(scan) is scan


def test_only_the_intercept_of_a_scan_changes():
    scan = Scan((head() + 500).astype(np.int16), GRID, slope=2.0, intercept=-7.0)
    found = above_air(scan)
    assert found.stored is scan.stored
    assert found.slope == scan.slope
    assert found.intercept == pytest.approx(scan.intercept - _air_of(scan.data).zero)


def test_a_large_offset_is_told_in_a_warning_and_that_of_noise_is_not():
    assert above_air(scan_of(head())).warnings == ()
    (sentence,) = above_air(scan_of(head() - 40.0)).warnings
    assert "intensity of air was -3" in sentence
    assert "set to 0" in sentence


def test_air_is_found_where_the_image_was_masked():
    masked = np.where(head(0.0) > 0, head(0.0), 0.0)
    assert _air_of(masked).zero == 0.0
    assert _air_of(masked - 20.0).zero == -20.0


def test_a_cohort_of_whole_numbers_has_one_level_at_any_offset():
    whole = np.round(head(1.0))
    levels = [_air_of(whole + np.float32(offset)).zero - offset for offset in (0.0, 0.1, 7.3, -33.33)]
    np.testing.assert_allclose(levels, levels[0], atol=1e-3)


def test_a_brain_that_was_scored_within_its_mask_is_refused():
    data = head(0.0)
    inside = data > 0
    data[inside] = (data[inside] - data[inside].mean()) / data[inside].std()
    with pytest.raises(BackgroundError, match=r"darker than the background.*before its intensities were normalised"):
        above_air(scan_of(data))


def test_a_background_of_noise_as_bright_as_the_head_is_refused():
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, GRID.shape)
    uniform_image = np.where(head(0.0) > 0, head(0.0) / 100 - 0.5, noise)
    with pytest.raises(BackgroundError, match=r"noise as bright as the head.*MP2RAGE"):
        above_air(scan_of(uniform_image))


def test_a_head_that_fills_the_field_of_view_is_not_taken_for_noise():
    scan, _ = simulate_head(0)
    cut = Scan(scan.data[60:-60, 60:-60, 60:-60], Grid((1, 1, 1), np.eye(4), "scanner"))
    assert above_air(Scan(cut.data, Grid(cut.data.shape, np.eye(4), "scanner"))).data.shape == cut.data.shape
