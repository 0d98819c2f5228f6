"""Scaled intensities do not know the scanner's units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypodask.image.intensity import BRIGHTEST, SCALINGS, head_median, scale_by, white_level, window


def head() -> np.ndarray:
    """Half air near 2, half head of 60 to 140, and a little fat near 400."""
    random = np.random.default_rng(0)
    data = np.abs(random.normal(0, 2, (20, 20, 20)))
    data[:10] = random.uniform(60, 140, (10, 20, 20))
    data[0, 0] = 400
    return data.astype(np.float32)


@pytest.mark.parametrize("name", sorted(SCALINGS))
@given(gain=st.floats(1e-3, 1e4))
def test_units_of_the_scanner_do_not_matter(name: str, gain: float) -> None:
    assert SCALINGS[name](head() * np.float32(gain)) == pytest.approx(SCALINGS[name](head()), abs=1e-4)


@pytest.mark.parametrize("name", sorted(SCALINGS))
def test_what_is_brighter_than_tissue_is_cut(name: str) -> None:
    scaled = SCALINGS[name](head())
    assert scaled.dtype == np.float32
    assert scaled.min() == pytest.approx(0, abs=0.05)
    assert scaled.max() == (1 if name in ("window", "head_dark") else BRIGHTEST)


@pytest.mark.parametrize("name", sorted(SCALINGS))
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_image_stays_finite(name: str, value: float) -> None:
    assert np.isfinite(SCALINGS[name](np.full((4, 4, 4), value, np.float32))).all()


def test_air_does_not_count_as_head() -> None:
    assert white_level(head()) == pytest.approx(1.5 * 100, rel=0.03)
    assert white_level(np.pad(head(), 3)) == pytest.approx(white_level(head()), rel=0.01)


def test_nothing_stands_out_of_a_constant_image() -> None:
    assert white_level(np.ones((3, 3, 3), np.float32)) == np.inf
    assert not head_median(np.ones((3, 3, 3), np.float32)).any()


def test_memory_order_hardly_matters() -> None:
    assert white_level(np.asfortranarray(head())) == pytest.approx(white_level(head()), rel=0.01)


def test_a_volume_can_be_scaled_by_a_box_inside_it() -> None:
    box = head()[2:8]
    assert scale_by(head(), box)[2:8] == pytest.approx(SCALINGS["box_bright"](box))
    assert np.mean(scale_by(head(), box)[2:8] > 1) == pytest.approx(0.1, abs=0.01)


def test_intensities_are_scaled_between_percentiles_of_the_positive_voxels() -> None:
    image = np.concatenate([np.zeros(1000), np.arange(1, 1001.0)]).reshape(10, 10, 20)
    low, high = np.percentile(np.arange(1, 1001.0), [0.5, 99.5])
    scaled = window(image)
    assert scaled.dtype == np.float32
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert scaled.ravel()[1499] == pytest.approx((500 - low) / (high - low), rel=1e-5)


@pytest.mark.parametrize("value", [0, -2, 7])
def test_a_constant_image_becomes_zero(value: float) -> None:
    assert not window(np.full((3, 3, 3), value)).any()
