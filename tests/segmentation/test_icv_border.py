"""The boundary of the ICV: found on normals of a coarse mask, which moves there."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.grid import box_grid
from hypodask.core.structures import ICV
from hypodask.image.intensity import spread_dark
from hypodask.learning.loop import Schedule, learn
from hypodask.learning.synthetic_heads import _BONE, _FLUID, SINUS, Whole
from hypodask.networks.architectures import build
from hypodask.networks.cards import ModelCard
from hypodask.networks.profiles import ProfileNetConfig
from hypodask.networks.weights import load_weights, save_weights
from hypodask.scan import Scan
from hypodask.segmentation import Segmentation, icv_border, load_network
from hypodask.segmentation.icv_border import (
    _LINES_PER_NORMAL,
    _LOCATION_SIZE,
    BOUNDARY_ARCHITECTURE,
    BOUNDARY_GEOMETRY,
    OFFSETS_MM,
    BoundaryNetwork,
    Normals,
    _move_surface,
    _partial_volume,
    location_features,
    network_input,
    normals_at,
    profiles,
    signed_distance,
    surface_voxels,
)
from hypodask.segmentation.network import Ensemble
from recipes import border as recipe
from recipes.border import (
    SINUS_RIM_MM,
    batches,
    border_along,
    examples_of,
    guessed,
    shares,
    unlikeliness,
    wrong_by,
)

GRID = box_grid((56, 60, 64), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
MIDDLE = np.array([28.2, 29.7, 32.4])


def beyond_ball(radius: float) -> ndarray:
    """How far voxels lie outside of a ball."""
    at = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    return (np.linalg.norm(at - MIDDLE, axis=-1) - radius).astype(np.float32)


def head_of(radius: float, image: ndarray, sinus: ndarray | None = None) -> Whole:
    """A cavity that is a ball, with bone around it and perhaps a venous sinus in that."""
    bone = np.where(beyond_ball(radius) <= 0, _FLUID, _BONE)
    return Whole(image, bone if sinus is None else np.where(sinus, SINUS, bone), beyond_ball(radius))


def volume_of_ball(radius: float) -> float:
    return 4 / 3 * np.pi * radius**3


def normals_of_ball(radius: float) -> Normals:
    distance = beyond_ball(radius)
    voxels = surface_voxels(distance)
    return normals_at(distance, voxels[voxels.sum(axis=1) % 3 == 0])


@pytest.fixture(scope="module")
def ball_card() -> ModelCard:
    return ModelCard(
        name="icv-border",
        task="icv-border",
        protocol=ICV.protocol,
        architecture=BOUNDARY_ARCHITECTURE,
        geometry=BOUNDARY_GEOMETRY,
        training_data="balls",
        licence="BSD-3-Clause",
    )


class OfBalls(BoundaryNetwork):
    """Finds the boundary where the intensity passes a half; knows nothing where there is no such edge."""

    def locate_boundary(self, lines: ndarray, location: ndarray) -> tuple[ndarray, ndarray]:
        line = lines[:, 0]
        falls = (line[:, :-1] >= 0.5) & (line[:, 1:] < 0.5)
        part = (line[:, :-1] - 0.5) / np.where(falls, line[:, :-1] - line[:, 1:], 1)
        places = np.where(falls, OFFSETS_MM[:-1] + 0.5 * part, 0).sum(axis=1)
        return np.where(falls.any(axis=1), places, 5.0), np.where(falls.any(axis=1), 0.0, 1e9)


def test_a_distance_is_zero_on_the_border_and_the_share_inside_adds_up_to_the_volume():
    distance = signed_distance(beyond_ball(20) <= 0)
    shell = np.abs(beyond_ball(20)) < 2
    np.testing.assert_allclose(distance[shell], beyond_ball(20)[shell], atol=0.4)
    assert _partial_volume(distance).sum() == pytest.approx(volume_of_ball(20), rel=0.01)


def test_normals_of_a_ball_stand_on_it_and_point_away_from_its_middle():
    normals = normals_of_ball(20)
    outwards = normals.feet - MIDDLE
    np.testing.assert_allclose(np.linalg.norm(outwards, axis=1), 20, atol=0.05)
    np.testing.assert_allclose(outwards / 20, normals.directions, atol=0.03)
    # Of the voxels that the surface crosses, one for each mm2, a third.
    assert len(normals.feet) == pytest.approx(4 * np.pi * 20**2 / 3, rel=0.05)


def test_a_surface_that_leaves_the_grid_has_no_normals_on_its_faces():
    normals = normals_of_ball(29)
    assert ((normals.voxels > 0) & (normals.voxels < np.array(GRID.shape) - 1)).all()


def test_every_line_of_a_profile_crosses_a_plane_where_the_normal_does_whatever_the_turn():
    plane = np.broadcast_to(np.arange(60.0, dtype=np.float32) - 30.3, (56, 60)).T[:, :, None] * np.ones((1, 1, 64))
    plane = plane.astype(np.float32)
    normals = normals_at(plane, surface_voxels(plane))
    inner = normals.voxels[:, 1:]
    normals = Normals(*(part[((inner > 8) & (inner < 48)).all(axis=1)] for part in normals))
    for turns in (0.0, np.linspace(0, 6, len(normals.feet))):
        lines = profiles(plane, normals, turns)
        assert lines.shape == (len(normals.feet), _LINES_PER_NORMAL, len(OFFSETS_MM))
        np.testing.assert_allclose(lines, np.broadcast_to(OFFSETS_MM, lines.shape), atol=1e-3)


def test_the_context_of_a_normal_is_that_of_its_mirror_image():
    left = Normals(np.zeros((1, 3), int), np.array([[10.0, 20, 30]]), np.array([[-0.6, 0.8, 0.0]]))
    right = Normals(np.zeros((1, 3), int), np.array([[45.0, 20, 30]]), np.array([[0.6, 0.8, 0.0]]))
    np.testing.assert_allclose(location_features(left, GRID), location_features(right, GRID), atol=1e-6)
    assert location_features(left, GRID).shape == (1, _LOCATION_SIZE)


@pytest.mark.parametrize("move", [-2.0, 0.0, 3.0])
def test_a_surface_moves_as_far_as_its_normals_say_and_unsure_ones_have_no_say(move):
    normals = normals_of_ball(20)
    places, variances = np.full(len(normals.feet), move), np.zeros(len(normals.feet))
    places[::2], variances[::2] = 7.0, 1e6
    found = _partial_volume(_move_surface(beyond_ball(20), normals, places, variances)).sum()
    assert found == pytest.approx(volume_of_ball(20 + move), rel=0.015)


def test_a_guess_moves_to_the_border_that_is_seen_and_keeps_its_place_where_none_is(ball_card):
    network = OfBalls(*2 * [Ensemble((), ball_card, "")])
    image = _partial_volume(beyond_ball(22.5))
    found = network.refine(0.1 + 0.8 * image, beyond_ball(19) <= 0, GRID).inside
    assert found.sum() == pytest.approx(volume_of_ball(22.5), rel=0.01)
    assert np.abs(found - image).sum() < 0.2 * 4 * np.pi * 22.5**2
    unseen = network.refine(np.full(GRID.shape, 0.1), beyond_ball(19) <= 0, GRID).inside
    assert unseen.sum() == pytest.approx(volume_of_ball(19), rel=0.03)
    assert not network.refine(image, np.zeros(GRID.shape, bool), GRID).inside.any()


def rough_head(seed: int) -> tuple[ndarray, ndarray]:
    """A ball with another intensity at every place, and a guess at it that is wrong otherwise on each side."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((2, *GRID.shape)), (0, 3, 3, 3)) * 20
    image = 0.3 + 0.5 * _partial_volume(beyond_ball(22)) + 0.1 * np.clip(noise[0], -2, 2)
    return image.astype(np.float32), beyond_ball(21) + np.clip(noise[1], -2, 2) <= 0


def test_the_mirror_image_of_a_head_gives_the_mirror_image_of_its_icv():
    network = load_network("icv")
    assert isinstance(network, BoundaryNetwork)
    image, guess = rough_head(0)
    found = network.refine(image, guess, GRID).inside
    mirrored = network.refine(image[::-1], guess[::-1], GRID).inside
    assert np.abs(found - guess).sum() > 500  # it moved
    np.testing.assert_allclose(mirrored[::-1], found, atol=0.01)
    assert mirrored.sum() == pytest.approx(found.sum(), rel=1e-5)


def test_the_coarse_segmentation_of_a_mirror_image_is_the_mirrored_one():
    network = load_network("icv")
    assert isinstance(network, BoundaryNetwork)
    image = np.random.default_rng(0).random((64, 64, 64), np.float32)
    found = network._coarse_posterior(image)
    np.testing.assert_array_equal(network._coarse_posterior(image[::-1])[::-1], found)
    assert np.abs(found[::-1] - found).max() > 1e-3  # the network itself is not symmetric


def test_a_larger_head_on_a_grid_that_is_coarser_by_as_much_is_the_same_head():
    network = load_network("icv")
    assert isinstance(network, BoundaryNetwork)
    image, guess = rough_head(1)
    larger = box_grid(GRID.shape, (1.1, 1.1, 1.1), (0.0, 0.0, 0.0))
    one, other = (network.refine(image, guess, grid).inside for grid in (GRID, larger))
    np.testing.assert_allclose(other, one, atol=1e-3)


def test_a_guess_that_no_normal_crosses_stays_as_it_is(ball_card):
    network = OfBalls(*2 * [Ensemble((), ball_card, "")])
    speck = np.zeros(GRID.shape, bool)
    speck[28, 30, 32] = True
    np.testing.assert_array_equal(network.refine(np.full(GRID.shape, 0.1), speck, GRID).inside, speck)


def test_where_an_image_ends_the_icv_need_not_end(ball_card, monkeypatch):
    """Where half of the surroundings were removed, the guess stays; if most were, there is no border to be seen."""
    network = OfBalls(*2 * [Ensemble((), ball_card, "")])
    stripped = _partial_volume(beyond_ball(18))
    assert network.refine(stripped, beyond_ball(20) <= 0, GRID) is None
    ringing = np.random.default_rng(0).uniform(0, icv_border._AIR_LEVEL, GRID.shape)
    assert network.refine(np.maximum(stripped, ringing), beyond_ball(20) <= 0, GRID) is None
    monkeypatch.setattr(icv_border, "_STRIPPED_SHARE", 0.6)
    cut = np.where(np.arange(GRID.shape[0])[:, None, None] < MIDDLE[0] - 2, stripped, 0.1 + 0.8 * stripped)
    found = network.refine(cut, beyond_ball(20) <= 0, GRID).inside
    for ours, wanted in ((found[:18], beyond_ball(20)[:18]), (found[34:], beyond_ball(18)[34:])):
        assert ours.sum() == pytest.approx(_partial_volume(wanted).sum(), rel=0.04)


class Coarse(Ensemble):
    """A coarse network that always finds a ball."""

    labels = ICV

    def network_image(self, scan: Scan, alignment: Alignment) -> ndarray:
        return scan.data

    def segment_image(self, image: ndarray, *, quick: bool = False) -> Segmentation:
        inside = _partial_volume(beyond_ball(20))
        return Segmentation(np.stack([1 - inside, inside]), GRID, ICV, whole_first=quick)


def test_of_a_stripped_brain_the_coarse_network_says_all_and_that_is_inferred(ball_card):
    network = OfBalls(Coarse((), ball_card, ""), Ensemble((), ball_card, ""))
    brain = _partial_volume(beyond_ball(18))
    pose = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.5, 0]), np.eye(4), score=0.7, flagged=False)
    of_stripped = network.segment(Scan(brain, replace(GRID, space="scanner")), pose)
    assert of_stripped.posteriors[1].sum() == pytest.approx(volume_of_ball(20), rel=0.02)
    assert of_stripped.inferred
    of_whole = network.segment(Scan(0.2 + 0.6 * brain, replace(GRID, space="scanner")), pose)
    assert of_whole.posteriors[1].sum() == pytest.approx(volume_of_ball(18), rel=0.1)
    assert not of_whole.inferred


def test_a_boundary_with_normals_that_see_nothing_or_that_disagree_with_themselves_is_less_certain(ball_card):
    class Certain(OfBalls):
        def locate_boundary(self, lines: ndarray, location: ndarray) -> tuple[ndarray, ndarray]:
            return np.zeros(len(lines)), np.full(len(lines), 0.25)

    certain, unsure = (kind(*2 * [Ensemble((), ball_card, "")]) for kind in (Certain, OfBalls))
    head = 0.1 + 0.8 * _partial_volume(beyond_ball(20))
    cut = np.where(np.arange(GRID.shape[2]) < 40, head, 0.0)
    guess = beyond_ball(20) <= 0
    assert certain.refine(head, guess, GRID).sd_mm == pytest.approx(0.5)
    assert 0.5 < certain.refine(cut, guess, GRID).sd_mm < icv_border._UNSEEN_SD_MM
    assert unsure.refine(np.full(GRID.shape, 0.1), guess, GRID).sd_mm > 100


def test_both_shipped_networks_look_at_the_same_image():
    network = load_network("icv")
    assert isinstance(network, BoundaryNetwork)
    assert network.coarse.card.geometry == network.boundary.card.geometry == BOUNDARY_GEOMETRY


def test_the_truth_is_the_nearest_place_where_a_normal_leaves_the_icv():
    normals = normals_of_ball(20)
    for radius in (15.0, 20.0, 24.5):
        np.testing.assert_allclose(border_along(beyond_ball(radius), normals), radius - 20, atol=0.08)
    assert np.isnan(border_along(beyond_ball(3), normals)).all()
    # A shell around a ball: where a line comes back into it is not the boundary.
    rings = np.where(beyond_ball(21) < 0, beyond_ball(18.5), np.maximum(beyond_ball(24), -1))
    np.testing.assert_allclose(border_along(rings, normals), -1.5, atol=0.3)


def test_a_place_is_shared_between_two_samples_and_is_their_mean():
    places = np.array([-7.9, -0.2, 0.0, 3.33])
    np.testing.assert_allclose(np.asarray(shares(places)) @ OFFSETS_MM, places, atol=1e-5)
    np.testing.assert_allclose(np.asarray(shares(places)).sum(axis=1), 1, atol=1e-6)


def test_guesses_are_off_by_some_millimetres_and_smoothly():
    fields = np.asarray(jax.vmap(lambda key: wrong_by(key, (40, 40, 40)))(jax.random.split(jax.random.key(0), 60)))
    assert 0.7 < fields.mean(axis=(1, 2, 3)).std() < 1.5
    assert np.abs(np.diff(fields, axis=1)).mean() < 0.1 < fields.std(axis=(1, 2, 3)).mean()


def test_a_guess_takes_a_venous_sinus_for_icv_but_for_its_rim():
    head = head_of(18, np.zeros(GRID.shape), sinus=(beyond_ball(18) > 0) & (beyond_ball(22) <= 0))
    nowhere = np.zeros(GRID.shape)
    for rim, radius in ((0.0, 22), (2.0, 20), (6.0, 18)):
        found = guessed(head, nowhere, rim)
        assert (found < 0).sum() == pytest.approx(volume_of_ball(radius), rel=0.03)
        assert (guessed(head, nowhere + 1.5, rim) < 0).sum() == pytest.approx(volume_of_ball(radius + 1.5), rel=0.03)


def test_where_a_guess_holds_a_sinus_the_border_is_on_its_inner_side():
    sinus = (beyond_ball(18) > 0) & (beyond_ball(22) <= 0)
    examples = examples_of(head_of(18, np.zeros(GRID.shape), sinus), np.zeros(GRID.shape), 4)
    rim = np.random.default_rng(4).uniform(0, SINUS_RIM_MM)
    assert rim > 3
    np.testing.assert_allclose(examples.places_mm, -max(4 - rim, 0), atol=0.4)


def test_what_is_learnt_from_some_balls_finds_the_border_of_another(monkeypatch, ball_card):
    """The whole way on a small scale: examples, batches, learning, weights on disk, and a mask that moves."""
    monkeypatch.setattr(recipe, "GRID", GRID)
    monkeypatch.setattr(recipe, "BATCH", 128)
    random = np.random.default_rng(0)

    def image_of(radius: float) -> ndarray:
        noise = random.normal(0, 0.05, GRID.shape)
        return (0.4 * _partial_volume(beyond_ball(radius)) + 0.3 + noise).astype(np.float32)

    wrong = jax.jit(partial(wrong_by, shape=GRID.shape))
    parts = [
        examples_of(head_of(radius, image_of(radius)), np.asarray(wrong(jax.random.key(n))), n)
        for n, radius in enumerate(random.uniform(15, 24, 6))
    ]
    examples = recipe.Examples(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    assert examples.lines.shape[1:] == (_LINES_PER_NORMAL, len(OFFSETS_MM))
    small = replace(BOUNDARY_ARCHITECTURE, width=16)
    schedule = Schedule(steps=250, heads=128, slices=1, learning_rate=5e-3, average=0.9)
    model = learn(batches(examples), unlikeliness, small, schedule)
    network = BoundaryNetwork(
        Ensemble((), ball_card, ""), Ensemble((model,), replace(ball_card, architecture=small), "")
    )
    found = network.refine(spread_dark(image_of(21.0)), beyond_ball(19) <= 0, GRID).inside
    assert found.sum() == pytest.approx(volume_of_ball(21.0), rel=0.02)
    assert abs(volume_of_ball(19) / volume_of_ball(21.0) - 1) > 0.2


def test_weights_come_back_from_disk_and_say_what_they_are(tmp_path, ball_card):
    model = build(BOUNDARY_ARCHITECTURE, rngs=nnx.Rngs(0))
    path = save_weights(tmp_path / "border.safetensors", model, ball_card)
    (again,), card = load_weights(path)
    assert card == ball_card
    assert card.labels is None
    inputs = (
        np.random.default_rng(0)
        .normal(size=(3, len(OFFSETS_MM), _LINES_PER_NORMAL + _LOCATION_SIZE))
        .astype(np.float32)
    )
    inputs = jnp.asarray(inputs)
    np.testing.assert_array_equal(again(inputs), model(inputs))
    with pytest.raises(ModelError, match="segments nothing"):
        load_network(path)


@pytest.mark.parametrize("wrong", [{"in_channels": 0}, {"dilations": ()}, {"dilations": (1, 0)}, {"width": 0}])
def test_a_network_needs_channels_places_and_dilations(wrong):
    with pytest.raises(ValueError, match="at least one channel, place and dilation"):
        ProfileNetConfig(**({"in_channels": 2, "out_channels": 9} | wrong))


def test_the_shipped_network_of_the_icv_is_two_and_its_name_tells_both():
    network = load_network("icv")
    assert isinstance(network, BoundaryNetwork)
    coarse, _, digest = network.name.partition("+")
    assert coarse == network.coarse.name
    assert digest == network.boundary.digest[:12]
    assert network.volume_error.relative_sd == network.boundary.card.relative_volume_sd


def test_inputs_have_the_lines_first_and_the_same_context_at_every_place():
    normals = normals_of_ball(20)
    lines, around = profiles(beyond_ball(20), normals), location_features(normals, GRID)
    # The longest lines end outside of the grid.
    np.testing.assert_allclose(lines[:, 0, :-4], np.broadcast_to(OFFSETS_MM[:-4], lines[:, 0, :-4].shape), atol=0.1)
    inputs = network_input(jnp.asarray(lines), jnp.asarray(around))
    np.testing.assert_array_equal(inputs[:, 7, :_LINES_PER_NORMAL], lines[..., 7])
    for place in (0, 5):
        np.testing.assert_array_equal(inputs[:, place, _LINES_PER_NORMAL:], around)
