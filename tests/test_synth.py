"""Images of label maps: every tissue has its share, and what is stripped is black."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypodask.grid import Grid, box_grid
from hypodask.segmentation import synth
from hypodask.segmentation.synth import image_of, is_intracranial, tissue_means, tissue_shares

WHITE, FLUID, SKIN = 2, 24, 507


@pytest.fixture
def layers():
    """White matter, fluid, skin and air in layers of 8 mm along x; both sides of the white matter are named."""
    labels = np.repeat([WHITE, FLUID, SKIN, 0], 4)[:, None, None] * np.ones((1, 12, 12), int)
    labels[:4, 6:] = 41
    return labels, box_grid((16, 12, 12), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))


@pytest.fixture
def plain(monkeypatch):
    """Tissues take their usual intensities, and nothing is stripped."""
    for name in ("RANDOM_CONTRAST", "T1_SPREAD", "STRIPPED"):
        monkeypatch.setattr(synth, name, 0.0)


def shares_of(layers):
    labels, grid = layers
    return tissue_shares(labels, grid, grid, np.eye(4))


def image(layers, key=0):
    shares, names = shares_of(layers)
    means, inside = (jnp.asarray(a) for a in tissue_means(names))
    return np.asarray(image_of(jax.random.key(key), jnp.asarray(shares, jnp.float32) / 255, means, inside))


def test_labels_of_one_tissue_share_a_channel_and_others_have_their_own(layers):
    shares, names = shares_of(layers)
    assert names == ["white", "fluid", str(SKIN)]
    assert shares.dtype == np.uint8
    np.testing.assert_array_equal(shares[0, :4], 255)
    np.testing.assert_array_equal(shares.sum(0)[12:], 0)


def test_a_voxel_on_a_border_holds_a_share_of_both_tissues(layers):
    labels, grid = layers
    half_a_voxel = Grid(grid.shape, grid.space_from_vox, "scanner").moved(
        np.array([[1.0, 0, 0, 1.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "acpc"
    )
    shares, _ = tissue_shares(labels, grid, half_a_voxel, np.eye(4))
    assert shares[:2, 3, 6, 6].tolist() == [128, 128]


def test_pose_moves_the_tissues(layers):
    labels, grid = layers
    up = np.eye(4)
    up[0, 3] = 4.0  # two voxels
    shares, _ = tissue_shares(labels, grid, grid, up)
    np.testing.assert_array_equal(shares[0, 2:6, 6, 6], 255)
    assert shares[0, 6, 6, 6] == 0


@pytest.mark.parametrize(("name", "inside"), [("white", True), ("77", True), ("499", True), ("500", False)])
def test_labels_below_500_lie_inside_the_skull(name, inside):
    assert is_intracranial(name) is inside


def test_every_tissue_shows_its_usual_intensity(layers, plain):
    scan = image(layers)
    assert scan[:4].mean() == pytest.approx(1.0, abs=0.06)
    assert scan[4:8].mean() == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(scan[12:], 0)


def test_an_image_has_grain_but_never_negative_voxels(layers, plain):
    scan = image(layers)
    assert scan[:4].std() > 0.01
    assert scan.min() >= 0


def test_a_stripped_head_is_black_outside_the_skull(layers, plain, monkeypatch):
    assert image(layers)[8:12].mean() > 0
    monkeypatch.setattr(synth, "STRIPPED", 1.0)
    np.testing.assert_array_equal(image(layers)[8:], 0)


def test_some_images_take_any_contrast_at_all(layers, plain, monkeypatch):
    monkeypatch.setattr(synth, "RANDOM_CONTRAST", 1.0)
    ratios = [scan[:4].mean() / scan[4:8].mean() for scan in (image(layers, key) for key in range(8))]
    assert min(ratios) < 1 < max(ratios)
