"""One number makes volumes right on average, and leaves everything else as it was."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from segmentations import ellipsoid, labelled

from hypodask.core.grid import box_grid
from hypodask.core.structures import HYPOTHALAMUS_SIDES
from hypodask.networks.unet import UNet, UNetConfig, _class_probabilities
from recipes.calibration import calibrated, fitted_offset, odds_shifted, shifted, volume_mm3

GRID = box_grid((40, 28, 28), (1.0, 1.0, 1.0), (0.0, -5.0, -6.0))


def head(radius_mm):
    """Two soft ellipsoids, and the segmentation that outlines them."""
    sides = [ellipsoid(GRID, (x, -5.0, -6.0), (radius_mm, 5.0, 5.0)) for x in (-8, 8)]
    return labelled(GRID, HYPOTHALAMUS_SIDES, [np.clip(0.02 + 0.9 * side, 0, 1) for side in sides])


def test_volumes_are_right_on_average_after_it():
    found = {name: (head(radius), true) for name, radius, true in (("a", 4.0, 700.0), ("b", 5.0, 1000.0))}
    offset = fitted_offset(found)
    ratios = [volume_mm3(shifted(one, offset)) / true for one, true in found.values()]
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=2e-3)


def test_nothing_is_shifted_where_volumes_are_right():
    one = head(4.0)
    assert fitted_offset({"a": (one, volume_mm3(one))}) == pytest.approx(0, abs=2e-3)


def test_a_calibrated_network_says_what_shifted_posteriors_say():
    model = UNet(UNetConfig(in_channels=1, out_channels=3, widths=(4, 8)), rngs=nnx.Rngs(0))
    slices = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 1)), jnp.float32)
    both = (model, calibrated(model, 0.7))
    before, after = (np.moveaxis(np.asarray(_class_probabilities(one(slices)[0])), -1, 0) for one in both)
    np.testing.assert_allclose(after, odds_shifted(before, 0.7), atol=1e-6)
    assert np.abs(after - before).max() > 0.05
