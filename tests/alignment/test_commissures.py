"""The commissures are found in the midsagittal plane, and examples to learn them from show them where the truth is."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from geometry import rigid_error
from scipy.spatial.transform import Rotation

from hypodask.alignment import commissures
from hypodask.alignment.commissures import GEOMETRY, Commissures, _likelihood_of, find_commissures, refined_frame
from hypodask.alignment.pose import acpc_frame
from hypodask.core.grid import Grid, box_grid, transform_points
from hypodask.learning.augmentation import Variation
from hypodask.learning.commissures import MarkedHeads, drawer, marked_grid, place_loss
from hypodask.scan.template import MNI152
from recipes.commissures import MARKS, rated_commissures_mm

MNI_FRAME = acpc_frame(np.array(MNI152.ac_mm), np.array(MNI152.pc_mm), np.array([1.0, 0.0, 0.0]))
MOVED = Variation(warp_spacing_mm=14.0, gamma=0, gain=0, bias=0, noise=0)
STILL = Variation(0, 0, 0, 0, 14.0, 0, 9.0, 0, 0, 0, 0)
BOX = box_grid(GEOMETRY.shape, GEOMETRY.spacing_mm, GEOMETRY.centre_mm)


def move(angles_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


@pytest.mark.parametrize(
    "wrong", [move((0, 0, 0), (0, 0, 0)), move((7, 0, 0), (0, 3, -4)), move((-6, 2, -2), (1, -4, 3))]
)
def test_the_templates_commissures_are_found_from_a_wrong_pose(wrong: np.ndarray) -> None:
    """Published landmarks of MNI152 are 0.3 mm apart from rater to rater."""
    brain, pose = MNI152.brain, wrong @ MNI_FRAME
    for _ in range(2):
        found = find_commissures(brain.data, brain.grid, pose)
        places = transform_points(np.linalg.inv(pose), np.array([found.ac_mm, found.pc_mm]))
        pose = refined_frame(pose, found)
    # The plane is not looked for: where it is wrong, so is x.
    assert np.linalg.norm((places - MNI152.commissures_mm)[:, 1:], axis=1).max() < 0.7
    assert found.spread_mm.max() < 0.4
    assert found.certainty.min() > 0.9


def test_where_there_is_no_brain_the_augmentations_do_not_agree() -> None:
    grid = Grid((64, 64, 64), np.diag([2.0, 2.0, 2.0, 1.0]), "scanner")
    noise = np.random.default_rng(0).random(grid.shape, np.float32)
    found = find_commissures(noise, grid, move((0, 0, 0), (-64, -64, -64)))
    assert found.spread_mm.max() > 0.8 or found.certainty.min() < 0.7


def test_mirrored_heads_have_mirrored_poses() -> None:
    """The network sees each head in a mirror too, so neither side can be preferred."""
    brain = MNI152.brain
    mirrored = Grid(brain.grid.shape, np.diag([-1.0, 1, 1, 1]) @ brain.grid.space_from_vox, "mni")
    one, other = (find_commissures(brain.data, grid, MNI_FRAME) for grid in (brain.grid, mirrored))
    # The template is symmetric to within what was left by its making; the augmentations are not.
    assert one.ac_mm == pytest.approx(other.ac_mm, abs=0.3)
    assert one.pc_mm == pytest.approx(other.pc_mm, abs=0.3)


def test_a_refined_frame_puts_the_commissures_where_they_belong() -> None:
    found = Commissures(np.array([0.0, 2, -1]), np.array([0.0, -25, 3]), np.zeros(2), np.ones(2))
    start = move((10, -5, 3), (20, 4, 9))
    frame = refined_frame(start, found)
    ac, pc = transform_points(frame @ np.linalg.inv(start), np.array([found.ac_mm, found.pc_mm]))
    assert rigid_error(frame) < 1e-9
    assert ac == pytest.approx([0, 0, 0], abs=1e-9)
    assert pc[[0, 2]] == pytest.approx([0, 0], abs=1e-9)
    assert pc[1] < 0
    assert frame[0] == pytest.approx(start[0])


def test_a_peak_between_pixels_is_read_between_them() -> None:
    pixels = np.stack(np.meshgrid(np.arange(80), np.arange(72), indexing="ij"), axis=-1)
    peaks = np.array([[50.3, 36.7], [17.6, 30.2]])
    logits = -((pixels[:, :, None] - peaks) ** 2).sum(-1) / (2 * 1.5**2)
    likelihood = np.asarray(_likelihood_of(jnp.asarray(logits)))[None]
    places, share = commissures._places_mm(likelihood)
    expected = transform_points(BOX.space_from_vox, np.column_stack([[4.0, 4.0], peaks]))
    assert likelihood.sum(axis=(1, 2)) == pytest.approx(np.ones((1, 2)), abs=1e-5)
    assert places[0] == pytest.approx(expected, abs=0.05)
    assert share == pytest.approx(np.ones((1, 2)), abs=0.02)


def bright_spots() -> MarkedHeads:
    """A head that is dark but for its AC and PC, 25 mm behind it."""
    grid = marked_grid()
    points = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    image = sum(np.exp(-((points - place) ** 2).sum(-1) / 8) for place in ((0, 0, 0), (0, -25, 0)))
    return MarkedHeads(jnp.asarray(image[None, None], jnp.float32), jnp.array([25.0]), jnp.array([1.0]))


def test_examples_show_the_commissures_where_the_truth_says() -> None:
    inputs, truth = drawer(bright_spots(), batch=8, variation=MOVED)(jax.random.key(1))
    assert inputs.shape == (8, 80, 72, 5)
    assert np.asarray(truth.sum(axis=(1, 2))) == pytest.approx(np.ones((8, 2)), abs=1e-4)
    for image, likely in zip(np.asarray(inputs[..., 2]), np.asarray(truth), strict=True):
        for number in range(2):
            row, column = np.unravel_index(likely[..., number].argmax(), likely.shape[:2])
            assert image[row, column] > 0.5 * image[row - 8 : row + 9, column - 8 : column + 9].max()


def test_a_head_that_is_not_varied_is_shown_as_it_is() -> None:
    inputs, truth = drawer(bright_spots(), batch=2, variation=STILL)(jax.random.key(0))
    ac = transform_points(np.linalg.inv(BOX.space_from_vox), np.zeros(3))[1:]
    assert np.asarray(np.unravel_index(truth[0, ..., 0].argmax(), truth.shape[1:3])) == pytest.approx(ac, abs=0.51)
    peak = np.unravel_index(inputs[0, 40:, :, 2].argmax(), (40, 72))
    assert (peak[0] + 40, peak[1]) == pytest.approx(tuple(ac), abs=0.51)


def test_the_loss_is_least_for_the_truth() -> None:
    _, truth = drawer(bright_spots(), batch=2, variation=STILL)(jax.random.key(0))
    right = place_loss(jnp.log(truth + 1e-9), truth)
    entropy = -(truth * jnp.log(truth + 1e-9)).sum(axis=(1, 2)).mean()
    assert float(right) == pytest.approx(float(entropy), rel=1e-3)
    assert float(place_loss(jnp.zeros_like(truth), truth)) > float(right) + 1


def test_raters_agree_on_every_head_that_was_marked() -> None:
    marks = pd.read_csv(MARKS, sep="\t")
    assert (marks.groupby("image")["rater"].agg("".join) == "AB").all()
    for image, rows in marks.groupby("image"):
        for name in ("ac", "pc"):
            one, other = rows[[f"{name}_{axis}_mm" for axis in "xyz"]].to_numpy()
            assert np.linalg.norm(one - other) < 0.6, image
        ac, pc = rated_commissures_mm(str(image))
        assert 23 < np.linalg.norm(ac - pc) < 31
