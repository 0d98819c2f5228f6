"""From a scan and its pose to posteriors: the grids networks see, sides, and loading."""

from dataclasses import replace
from itertools import permutations, product
from operator import attrgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hypodask.alignment import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.grid import Grid, box_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SIDES, HYPOTHALAMUS_SUBUNITS, ICV, Label, LabelTable, structure
from hypodask.image.intensity import box_bright
from hypodask.image.resampling import resample
from hypodask.networks import unet
from hypodask.networks.architectures import build
from hypodask.networks.cards import InputGeometry, ModelCard
from hypodask.networks.unet import UNet, UNetConfig
from hypodask.networks.volume_unet import VolumeUNetConfig
from hypodask.networks.weights import save_weights
from hypodask.scan import Scan
from hypodask.segmentation import load_network, published, segment
from hypodask.segmentation.icv_border import BoundaryNetwork
from hypodask.segmentation.network import Ensemble, VolumeError, mirrored_channels, neighbours
from hypodask.segmentation.published import (
    _BLOCK_STEP,
    _BLOCK_VOXELS,
    ImportedModel,
    ImportedNetwork,
    _block_grid,
    _closest_ras,
    _SubunitNet,
)
from hypodask.segmentation.seed_protocol import SeedNetwork

GEOMETRY = InputGeometry(
    (2.0, 2.0, 2.0), (16, 6, 16), slices=3, slice_axis=1, intensity="box_bright", slice_step=2, centre_mm=(0, -5, -6)
)
NETWORK = UNetConfig(in_channels=3, out_channels=3, widths=(4, 8))
CARD = ModelCard("tiny", "hypothalamus", HYPOTHALAMUS_SIDES.protocol, NETWORK, GEOMETRY, "nothing", "BSD-3-Clause")
ORDERS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def network():
    model = UNet(NETWORK, rngs=nnx.Rngs(0))
    model(jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), train=True)
    return Ensemble((model,), CARD, "0123456789abcdef")


@pytest.fixture(scope="module")
def ensemble(network):
    others = (UNet(NETWORK, rngs=nnx.Rngs(seed)) for seed in (1, 2))
    return Ensemble((*network.members, *others), replace(CARD, members=3), "0123456789abcdef")


@pytest.fixture(scope="module")
def head():
    """Smooth noise, 40 x 36 x 38 voxels of 2 mm, oblique."""
    matrix = rotation(6, -9, 14) @ np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = -matrix[:3, :3] @ np.array([20.0, 18.0, 19.0])
    voxels = np.random.default_rng(0).integers(10, 200, (40, 36, 38)).astype(np.uint8)
    return Scan(voxels, Grid((40, 36, 38), matrix, "scanner"))


def rotation(*angles):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    return matrix


def posed(acpc_from_scanner):
    return Alignment(acpc_from_scanner, np.zeros(3), np.array([0, -26.0, 0]), np.eye(4), score=0.7, flagged=False)


def stored_grid(order, signs, turn, spacing=(1.0, 1.0, 1.0), shape=(150, 160, 170)):
    matrix = turn.copy()
    matrix[:3, :3] = turn[:3, :3] @ (np.eye(3)[:, order] * signs) @ np.diag(spacing)
    matrix[:3, 3] = -matrix[:3, :3] @ (np.array(shape) / 2) + [5.0, -12.0, 30.0]
    return Grid(shape, matrix, "scanner")


def corners(grid):
    index = np.array(list(product(*((0, n - 1) for n in grid.shape))))
    return {tuple(point) for point in transform_points(grid.space_from_vox, index).round(6) + 0.0}


@given(axes=st.sampled_from(ORDERS), angles=st.tuples(*[st.floats(-25, 25)] * 3))
def test_voxels_stay_where_they_are_when_axes_are_reordered(axes, angles):
    grid = stored_grid(*axes, rotation(*angles), spacing=(0.8, 1.0, 1.2))
    ras = _closest_ras(grid)
    assert sorted(ras.shape) == sorted(grid.shape)
    np.testing.assert_allclose(sorted(corners(ras)), sorted(corners(grid)), atol=1e-5)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_reordered_axes_point_right_anterior_and_superior(order, signs):
    grid = stored_grid(order, signs, rotation(10, -8, 12), shape=(15, 16, 17))
    linear = _closest_ras(grid).space_from_vox[:3, :3]
    assert np.abs(linear).argmax(axis=0).tolist() == [0, 1, 2]
    assert (np.diag(linear) > 0).all()
    assert corners(_closest_ras(grid)) == corners(grid)


@given(axes=st.sampled_from(ORDERS), angles=st.tuples(*[st.floats(-25, 25)] * 3))
def test_the_published_network_is_shown_stored_voxels_of_1_mm_as_they_are(axes, angles):
    grid = stored_grid(*axes, rotation(*angles))
    block = _block_grid(grid, np.array([3.0, -20.0, 25.0]))
    assert block.shape == (_BLOCK_VOXELS,) * 3
    np.testing.assert_allclose(block.centre_mm, [3.0, -20.0, 25.0], atol=np.sqrt(3) * (_BLOCK_STEP / 2 + 0.5))
    index = transform_points(np.linalg.inv(_closest_ras(grid).space_from_vox) @ block.space_from_vox, np.zeros(3))
    np.testing.assert_allclose(index / _BLOCK_STEP, np.round(index / _BLOCK_STEP), atol=1e-6)


@pytest.mark.parametrize("spacing", [(2.0, 0.5, 1.0), (3.0, 1.04, 0.9)])
def test_other_voxels_are_resampled_to_1_mm_over_the_same_field_of_view(spacing):
    grid = stored_grid((0, 1, 2), (1, 1, 1), np.eye(4), spacing, shape=(80, 160, 170))
    block = _block_grid(grid, np.zeros(3))
    expected = [s if abs(s - 1) <= 0.05 else 1.0 for s in spacing]
    assert block.spacing_mm == pytest.approx(expected)
    first_edges = [transform_points(g.space_from_vox, np.zeros(3)) - np.array(g.spacing_mm) / 2 for g in (block, grid)]
    steps = (first_edges[0] - first_edges[1]) / (_BLOCK_STEP * np.array(expected))
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)


@pytest.mark.parametrize(
    ("table", "channels"),
    [(ICV, [0, 1]), (HYPOTHALAMUS_SIDES, [0, 2, 1]), (HYPOTHALAMUS_SUBUNITS, [0, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5])],
)
def test_a_mirror_exchanges_the_sides_of_every_structure(table, channels):
    assert mirrored_channels(table) == channels


@pytest.mark.parametrize("right", ["tuber_left", "right"])
def test_labels_without_a_counterpart_cannot_be_mirrored(right):
    rows = (Label(1, "body_left", "left", "L", "#000000"), Label(2, right, "right", "R", "#000000"))
    with pytest.raises(ModelError, match="no counterpart"):
        mirrored_channels(LabelTable("by-hand", "hypothalamus", rows))


def test_neighbours_are_as_far_apart_as_the_model_card_says():
    image = jnp.broadcast_to(jnp.arange(6.0)[None, :, None], (16, 6, 16))
    slices = neighbours(image, GEOMETRY)
    assert slices.shape == (6, 16, 16, 3)
    assert slices[:, 0, 0].tolist() == [[max(y - 2, 0), y, min(y + 2, 5)] for y in range(6)]


def test_a_network_without_neighbours_sees_its_slice_in_every_channel():
    image = jnp.broadcast_to(jnp.arange(6.0)[None, :, None], (16, 6, 16))
    slices = neighbours(image, replace(GEOMETRY, slice_step=0))
    assert slices[:, 0, 0].tolist() == [[y, y, y] for y in range(6)]


def test_posteriors_of_a_mirrored_head_are_mirrored_with_sides_exchanged(network):
    image = np.random.default_rng(1).random(GEOMETRY.shape, np.float32)
    posteriors = network.posteriors(image)
    assert posteriors.shape == (3, *GEOMETRY.shape)
    np.testing.assert_allclose(posteriors.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(network.posteriors(image[::-1]), posteriors[[0, 2, 1], ::-1], atol=1e-5)
    assert np.abs(posteriors[1] - posteriors[1, ::-1]).max() > 1e-3


def test_members_answer_together_with_the_mean_of_their_posteriors(ensemble):
    image = np.random.default_rng(1).random(GEOMETRY.shape, np.float32)
    alone = [Ensemble((member,), CARD, "").segment_image(image) for member in ensemble.members]
    together = ensemble.segment_image(image)
    np.testing.assert_allclose(together.posteriors, np.mean([one.posteriors for one in alone], axis=0), atol=1e-6)
    assert together.member_wholes.dtype == np.float16
    np.testing.assert_allclose(together.member_wholes, [one.posteriors[1:].sum(axis=0) for one in alone], atol=1e-3)
    assert alone[0].member_wholes is None


def test_a_quick_segmentation_is_what_the_first_member_says_of_the_image_alone(ensemble):
    image = np.random.default_rng(1).random(GEOMETRY.shape, np.float32)
    quick, of_mirror = (ensemble.segment_image(side, quick=True) for side in (image, image[::-1]))
    carried_back = of_mirror.posteriors[[0, 2, 1], ::-1]
    whole = Ensemble(ensemble.members[:1], CARD, "").segment_image(image)
    np.testing.assert_allclose((quick.posteriors + carried_back) / 2, whole.posteriors, atol=1e-6)
    np.testing.assert_array_equal(quick.grid.space_from_vox, whole.grid.space_from_vox)


def test_a_network_for_volumes_segments_the_whole_image_at_once():
    config = VolumeUNetConfig(out_channels=3, widths=(4, 8), space_to_depth=1)
    geometry = replace(GEOMETRY, slices=1)
    model = build(config, rngs=nnx.Rngs(0))
    card = replace(CARD, architecture=config, geometry=geometry, members=1)
    image = np.random.default_rng(1).random(GEOMETRY.shape, np.float32)
    found = Ensemble((model,), card, "").segment_image(image, quick=True).posteriors
    logits = model(jnp.asarray(np.swapaxes(image, 0, 1))[None, ..., None])[0]
    wanted = jnp.moveaxis(jax.nn.softmax(logits, axis=-1), (3, 1, 0, 2), (0, 1, 2, 3))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_network_for_volumes_answers_for_both_sides_of_the_mirror():
    config = VolumeUNetConfig(out_channels=3, widths=(4, 8), space_to_depth=1)
    card = replace(CARD, architecture=config, geometry=replace(GEOMETRY, slices=1), members=1)
    network = Ensemble((build(config, rngs=nnx.Rngs(0)),), card, "")
    image = np.random.default_rng(1).random(GEOMETRY.shape, np.float32)
    quick = [network.segment_image(side, quick=True).posteriors for side in (image, image[::-1])]
    wanted = (quick[0] + quick[1][[0, 2, 1], ::-1]) / 2
    np.testing.assert_allclose(network.posteriors(image), wanted, atol=1e-6)


def test_members_share_one_compiled_program(ensemble):
    image = np.zeros(GEOMETRY.shape, np.float32)
    next(ensemble.member_posteriors(image))
    compiled = unet._answers._cache_size()
    list(ensemble.member_posteriors(image))
    assert unet._answers._cache_size() == compiled


def test_an_ensemble_is_loaded_as_it_was_saved(ensemble, tmp_path):
    loaded = load_network(save_weights(tmp_path / "three.safetensors", ensemble.members, ensemble.card))
    image = np.random.default_rng(2).random(GEOMETRY.shape, np.float32)
    np.testing.assert_array_equal(loaded.posteriors(image), ensemble.posteriors(image))


def test_a_network_segments_the_labels_of_its_card(tmp_path, head):
    rows = tuple(Label(n, f"part_{n}", "both", f"P{n}", "#000000") for n in (4, 9))
    card = replace(CARD, protocol="by-hand", labels=LabelTable("by-hand", "hypothalamus", rows))
    path = save_weights(tmp_path / "parts.safetensors", UNet(NETWORK, rngs=nnx.Rngs(0)), card)
    found = segment(head, posed(np.eye(4)), path)
    assert found.labels == card.labels
    assert set(np.unique(found.label_map)) <= {0, 4, 9}


def test_a_network_that_segments_nothing_is_refused():
    with pytest.raises(ModelError, match="is a commissures network and segments nothing"):
        load_network("commissures")


def test_a_segmentation_is_on_the_networks_grid_in_acpc_space(network, head):
    found = network.segment(head, posed(rotation(3, 4, 5)))
    grid = GEOMETRY.grid
    assert (found.grid.space, found.grid.shape, found.labels) == ("acpc", GEOMETRY.shape, HYPOTHALAMUS_SIDES)
    image = box_bright(resample(head.data, head.grid, grid, onto_from_grid=rotation(3, 4, 5)))
    np.testing.assert_array_equal(found.posteriors, network.posteriors(image))


def test_a_head_that_moved_with_its_pose_gives_the_same_posteriors(network, head):
    move = rotation(25, -10, 5)
    move[:3, 3] = (10.0, -30.0, 4.0)
    elsewhere = Scan(head.stored, head.grid.moved(move, "scanner"))
    there = network.segment(elsewhere, posed(np.linalg.inv(move)))
    np.testing.assert_allclose(there.posteriors, network.segment(head, posed(np.eye(4))).posteriors, atol=1e-3)


def elsewhere_of(network, asked):
    """Runs methods of a network as a worker that has a GPU does, and notes which were asked for."""

    def run(method, image, **options):
        asked.append(method)
        return attrgetter(method)(network)(image, **options)

    return run


@pytest.mark.parametrize("size", [0.85, 1.2])
def test_a_larger_head_has_the_posteriors_of_its_average_version_and_a_volume_by_the_cube(network, head, size):
    sized = Ensemble(network.members, replace(CARD, geometry=replace(GEOMETRY, frame="head_size")), network.digest)
    larger = Scan(head.stored, head.grid.moved(np.diag([size] * 3 + [1.0]), "scanner"))
    before, after = (
        sized.segment(head, posed(np.eye(4))),
        sized.segment(larger, replace(posed(np.eye(4)), head_size=size)),
    )
    np.testing.assert_allclose(after.posteriors, before.posteriors, atol=1e-4)
    assert after.grid.voxel_volume_mm3 == pytest.approx(size**3 * before.grid.voxel_volume_mm3)
    unsized = network.segment(larger, replace(posed(np.eye(4)), head_size=size))
    assert unsized.grid.spacing_mm == GEOMETRY.spacing_mm


def test_the_heavy_step_of_a_network_may_run_elsewhere_with_the_same_result(network, head, watching):
    for one, step in (
        (network, "segment_image"),
        (SeedNetwork(network), "base.segment_image"),
        (watching, "model.posteriors"),
    ):
        asked = []
        found = one.on(elsewhere_of(one, asked)).segment(head, posed(np.eye(4)))
        assert asked == [step]
        np.testing.assert_array_equal(found.posteriors, one.segment(head, posed(np.eye(4))).posteriors)


def test_of_the_two_networks_of_the_icv_the_coarse_one_may_run_elsewhere(network):
    both, asked, image = BoundaryNetwork(network, network), [], np.zeros(GEOMETRY.shape, np.float32)
    found = both.on(elsewhere_of(both, asked)).coarse.segment_image(image, quick=True)
    assert asked == ["coarse.segment_image"]
    np.testing.assert_array_equal(found.posteriors, network.segment_image(image, quick=True).posteriors)


def test_a_network_says_who_it_is(network):
    assert (network.task, network.name) == ("hypothalamus", "tiny:0123456789ab")
    assert network.protocol == HYPOTHALAMUS_SIDES.protocol
    assert network.volume_error == VolumeError(None, None, {})


def test_a_network_is_loaded_once_for_each_version_of_its_weights(network, tmp_path, head):
    path = save_weights(tmp_path / "tiny.safetensors", network.members, CARD)
    first = load_network(path)
    assert load_network(str(path)) is first
    np.testing.assert_allclose(
        segment(head, posed(np.eye(4)), path).posteriors, network.segment(head, posed(np.eye(4))).posteriors, atol=1e-6
    )
    save_weights(path, UNet(NETWORK, rngs=nnx.Rngs(1)), CARD)
    assert load_network(path).name != first.name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"intensity": "by_eye"}, "needs intensities scaled by 'by_eye'; known are"),
        ({"slice_axis": 2}, "needs slices across axis 2"),
        ({"centre_mm": (3.0, 0.0, 0.0)}, "around x = 3 mm; hypodask has coronal ones"),
    ],
)
def test_weights_that_cannot_be_run_as_they_ask_are_refused(network, tmp_path, change, complaint):
    card = replace(CARD, geometry=replace(GEOMETRY, **change))
    with pytest.raises(ModelError, match=complaint):
        load_network(save_weights(tmp_path / "odd.safetensors", network.members, card))


class Watching(ImportedModel):
    """Stands in for the published network and keeps what it was shown."""

    def posteriors(self, image):
        object.__setattr__(self, "image", image)
        return np.zeros((11, *image.shape), np.float32)


@pytest.fixture
def watching(monkeypatch):
    monkeypatch.setattr(published, "_BLOCK_VOXELS", 16)
    return ImportedNetwork(Watching(_SubunitNet(1, 11)), "f" * 64)


def test_the_published_network_sees_the_neighbourhood_of_the_hypothalamus(watching):
    grid = stored_grid((0, 1, 2), (1, 1, 1), np.eye(4), shape=(40, 40, 40))
    voxels = np.random.default_rng(0).integers(1, 100, grid.shape).astype(np.uint8)
    acpc_from_scanner = np.eye(4)
    acpc_from_scanner[:3, 3] = -grid.centre_mm
    found = watching.segment(Scan(voxels, grid), posed(acpc_from_scanner))
    start = transform_points(np.linalg.inv(grid.space_from_vox), found.grid.space_from_vox[:3, 3]).round().astype(int)
    low, high = np.percentile(voxels, [0.5, 99.5])
    part = voxels[tuple(slice(s, s + 16) for s in start)]
    np.testing.assert_allclose(watching.model.image, np.clip((part - low) / (high - low), 0, 1), atol=1e-5)
    assert (found.grid.space, found.labels) == ("scanner", HYPOTHALAMUS_SUBUNITS)
    assert watching.name == "hypothalamus_seg:ffffffffffff"
    assert watching.protocol in structure(watching.task).uncalibrated


def test_a_head_of_one_intensity_is_black_to_the_published_network(watching):
    grid = box_grid((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    voxels = np.zeros(grid.shape, np.uint8)
    voxels[5:15] = 7
    watching.segment(Scan(voxels, Grid(grid.shape, grid.space_from_vox, "scanner")), posed(np.eye(4)))
    assert not watching.model.image.any()
