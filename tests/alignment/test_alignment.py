"""A head is found in any pose, its commissures to 2 mm; what is no head is refused."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from geometry import rigid_error
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from hypodask.alignment import Alignment, acpc_frame, align
from hypodask.alignment.brain import _even
from hypodask.alignment.register import (
    Fixed,
    Moving,
    _exponential,
    _generators,
    likeness,
    local_contrast,
    register,
    register_from,
)
from hypodask.alignment.search import _distinct, _turns_net
from hypodask.core.errors import AlignmentError, BackgroundError
from hypodask.core.grid import Grid, transform_points
from hypodask.image.resampling import resample
from hypodask.phantom import HeadOptions, Truth, simulate_head
from hypodask.scan import Scan
from hypodask.scan.template import MNI152

SEEDS = (1, 2)
OPTIONS = HeadOptions(spacing_mm=(2.0, 2.0))
coordinates = st.tuples(*[st.floats(-80, 80)] * 3).map(np.array)
directions = st.integers(0, 2**32 - 1).map(lambda seed: Rotation.random(random_state=seed).as_matrix())


@pytest.fixture(scope="module")
def heads() -> dict[int, tuple[Scan, Truth]]:
    return {seed: simulate_head(seed, options=OPTIONS) for seed in SEEDS}


@pytest.fixture(scope="module")
def poses(heads: dict[int, tuple[Scan, Truth]]) -> dict[int, Alignment]:
    return {seed: align(scan) for seed, (scan, _) in heads.items()}


def turn_deg(a_from_c: np.ndarray, b_from_c: np.ndarray) -> float:
    """Angle between two rigid moves."""
    return float(np.degrees(Rotation.from_matrix(a_from_c[:3, :3] @ b_from_c[:3, :3].T).magnitude()))


def cube(spacing_mm: float, size: int) -> Grid:
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = -spacing_mm * (size - 1) / 2
    return Grid((size,) * 3, matrix, "scanner")


@given(coordinates, directions, st.floats(5, 50), st.floats(-60, 60))
def test_frame_is_rigid_with_ac_at_the_origin_and_pc_behind(
    ac_mm: np.ndarray, turn: np.ndarray, distance_mm: float, lean_deg: float
) -> None:
    anterior, sideways = turn[:, 0], turn[:, 1]
    right = np.cos(np.radians(lean_deg)) * sideways + np.sin(np.radians(lean_deg)) * anterior
    pc_mm = ac_mm - distance_mm * anterior
    frame = acpc_frame(ac_mm, pc_mm, 3 * right)
    assert rigid_error(frame) < 1e-9
    assert np.linalg.det(frame[:3, :3]) == pytest.approx(1)
    assert transform_points(frame, ac_mm) == pytest.approx([0, 0, 0], abs=1e-9)
    assert transform_points(frame, pc_mm) == pytest.approx([0, -distance_mm, 0], abs=1e-9)
    assert frame[:3, :3] @ sideways == pytest.approx([1, 0, 0], abs=1e-9)


@given(coordinates, directions)
def test_frame_moves_with_the_head(shift_mm: np.ndarray, turn: np.ndarray) -> None:
    ac, pc, right = np.array([1.0, 2, 3]), np.array([0.0, -24, 1]), np.array([1.0, 0.1, -0.1])
    moved = acpc_frame(turn @ ac + shift_mm, turn @ pc + shift_mm, turn @ right)
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = turn, shift_mm
    assert moved @ move == pytest.approx(acpc_frame(ac, pc, right), abs=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_commissures_of_a_simulated_head_are_found(
    heads: dict[int, tuple[Scan, Truth]], poses: dict[int, Alignment], seed: int
) -> None:
    _, truth = heads[seed]
    assert np.linalg.norm(poses[seed].ac_mm - truth.ac_mm) < 2
    assert np.linalg.norm(poses[seed].pc_mm - truth.pc_mm) < 2
    assert turn_deg(poses[seed].acpc_from_scanner, truth.acpc_from_scanner) < 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pose_is_rigid_trusted_and_consistent(poses: dict[int, Alignment], seed: int) -> None:
    pose = poses[seed]
    assert rigid_error(pose.acpc_from_scanner) < 1e-9
    assert transform_points(pose.acpc_from_scanner, pose.ac_mm) == pytest.approx([0, 0, 0], abs=1e-9)
    assert pose.acpc_distance_mm == pytest.approx(np.linalg.norm(pose.ac_mm - pose.pc_mm))
    assert (pose.flagged, pose.warnings) == (False, ())
    assert transform_points(pose.mni_from_scanner, pose.ac_mm) == pytest.approx(MNI152.ac_mm, abs=6)


def test_units_of_the_scanner_do_not_move_the_head(
    heads: dict[int, tuple[Scan, Truth]], poses: dict[int, Alignment]
) -> None:
    brighter = align(replace(heads[1][0], slope=1000.0))
    assert brighter.ac_mm == pytest.approx(poses[1].ac_mm, abs=0.05)
    assert brighter.pc_mm == pytest.approx(poses[1].pc_mm, abs=0.05)


def test_order_of_the_axes_does_not_move_the_head(
    heads: dict[int, tuple[Scan, Truth]], poses: dict[int, Alignment]
) -> None:
    scan, _ = heads[1]
    matrix = scan.grid.space_from_vox[:, [2, 0, 1, 3]].copy()
    stored = scan.stored.transpose(2, 0, 1)[:, ::-1]
    matrix[:3, 3] += matrix[:3, 1] * (stored.shape[1] - 1)
    matrix[:3, 1] *= -1
    turned = align(Scan(stored, Grid(stored.shape, matrix, "scanner"), slope=scan.slope, intercept=scan.intercept))
    assert turned.ac_mm == pytest.approx(poses[1].ac_mm, abs=0.2)
    assert turned.pc_mm == pytest.approx(poses[1].pc_mm, abs=0.2)
    assert turn_deg(turned.acpc_from_scanner, poses[1].acpc_from_scanner) < 0.3


def test_the_move_of_a_stripped_brain_is_recovered() -> None:
    brain = MNI152.brain
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", (20, -8, 6), degrees=True).as_matrix()
    move[:3, 3] = 12, -20, 9
    onto = Grid((96, 112, 96), cube(2.0, 96).space_from_vox, "scanner")
    pose = align(Scan(resample(brain.data, brain.grid, onto, onto_from_grid=move), onto))
    ac, pc = transform_points(move, MNI152.commissures_mm)
    assert np.linalg.norm(pose.ac_mm - ac) < 0.5
    assert np.linalg.norm(pose.pc_mm - pc) < 0.5
    assert turn_deg(np.linalg.inv(pose.acpc_from_scanner), move @ np.linalg.inv(acpc_frame(*mni_frame()))) < 0.5


def mni_frame() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array(MNI152.ac_mm), np.array(MNI152.pc_mm), np.array([1.0, 0, 0])


def white_noise(grid: Grid) -> np.ndarray:
    return np.random.default_rng(0).random(grid.shape, np.float32)


def ball(grid: Grid) -> np.ndarray:
    points = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    inside = (points**2).sum(axis=-1) < 75**2
    return (inside + 0.1 * white_noise(grid)).astype(np.float32)


def one_value(grid: Grid) -> np.ndarray:
    return np.full(grid.shape, 7.0, np.float32)


@pytest.mark.parametrize("volume", [ball, one_value])
def test_what_is_no_head_is_refused(volume: Callable[[Grid], np.ndarray]) -> None:
    grid = cube(3.0, 64)
    with pytest.raises(AlignmentError, match=r"a\.nii: no human head was found: .* is needed; check that"):
        align(Scan(volume(grid), grid, source="a.nii"))


def test_noise_is_refused_for_its_background() -> None:
    grid = cube(3.0, 64)
    with pytest.raises(BackgroundError, match=r"a\.nii: the background is noise as bright as the head"):
        align(Scan(white_noise(grid), grid, source="a.nii"))


def about(place_mm: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """The affine that leaves a place where it is."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, place_mm - linear @ place_mm
    return matrix


def under_header(scan: Scan, matrix: np.ndarray) -> Scan:
    return replace(scan, grid=scan.grid.moved(matrix, "scanner"))


@pytest.mark.parametrize("size", [0.88, 0.94, 1.06, 1.12])
def test_a_smaller_or_larger_head_is_aligned_alike(
    heads: dict[int, tuple[Scan, Truth]], poses: dict[int, Alignment], size: float
) -> None:
    scan, truth = heads[2]
    resized = about(truth.ac_mm, size * np.eye(3))
    pose = align(under_header(scan, resized))
    assert (pose.flagged, pose.warnings) == (False, ())
    assert np.linalg.norm(pose.ac_mm - transform_points(resized, poses[2].ac_mm)) < 0.5
    assert np.linalg.norm(pose.pc_mm - transform_points(resized, poses[2].pc_mm)) < 0.5


@pytest.mark.parametrize("width", [1, 2, 3, 20])
def test_air_around_the_head_does_not_move_it(
    heads: dict[int, tuple[Scan, Truth]], poses: dict[int, Alignment], width: int
) -> None:
    scan, _ = heads[1]
    wide = scan.grid.block(np.full(3, -width), tuple(n + 2 * width for n in scan.grid.shape))
    stored = np.asfortranarray(np.pad(scan.stored, width))
    pose = align(Scan(stored, wide, slope=scan.slope, intercept=scan.intercept))
    assert pose.ac_mm == pytest.approx(poses[1].ac_mm, abs=0.05)
    assert pose.pc_mm == pytest.approx(poses[1].pc_mm, abs=0.05)


def coil_shading(grid: Grid, centre_mm: np.ndarray) -> np.ndarray:
    """4 times brighter at the surface of the head than at its centre."""
    places = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    return 4.0 ** np.minimum(np.linalg.norm(places - centre_mm, axis=-1) / 95, 1.2)


def test_the_shading_of_a_surface_coil_does_not_hide_the_head(
    heads: dict[int, tuple[Scan, Truth]], poses: dict[int, Alignment]
) -> None:
    scan, truth = heads[1]
    shaded = scan.data * coil_shading(scan.grid, truth.ac_mm)
    pose = align(Scan(np.asfortranarray(shaded.astype(np.float32)), scan.grid))
    assert not pose.flagged
    assert np.linalg.norm(pose.ac_mm - poses[1].ac_mm) < 0.5
    assert np.linalg.norm(pose.pc_mm - poses[1].pc_mm) < 0.5


def test_an_evened_head_is_about_as_bright_at_its_surface_as_at_its_centre(
    heads: dict[int, tuple[Scan, Truth]],
) -> None:
    scan, truth = heads[1]
    plain = scan.data / np.percentile(scan.data, 95)
    shaded = (plain * coil_shading(scan.grid, truth.ac_mm)).astype(np.float32)
    places = transform_points(scan.grid.space_from_vox, np.moveaxis(np.indices(scan.grid.shape), 0, -1))
    distance = np.linalg.norm(places - truth.ac_mm, axis=-1)

    def outer_over_inner(image: np.ndarray) -> float:
        inner, outer = (image[part & (plain > 0.3)] for part in (distance < 35, (distance > 60) & (distance < 75)))
        return float(np.median(outer) / np.median(inner))

    before, after = (
        np.log(outer_over_inner(image) / outer_over_inner(plain)) for image in (shaded, _even(shaded, scan.grid))
    )
    assert before > 0.5
    assert abs(after) < 0.75 * before, (before, after)


def test_inverted_contrast_is_refused_with_that_reason(heads: dict[int, tuple[Scan, Truth]]) -> None:
    scan, _ = heads[1]
    white = np.percentile(scan.data[scan.data > 0.3 * scan.data.max()], 50)
    inverted = np.where(scan.data > 0.1 * white, np.maximum(1.5 * white - scan.data, 0), 0)
    with pytest.raises(AlignmentError, match="the contrast is not that of a T1-weighted scan"):
        align(Scan(np.asfortranarray(inverted.astype(np.float32)), scan.grid))


WRONG_HEADERS = {
    "upside down": np.diag([-1.0, 1, -1]),
    "pitched by 90 degrees": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "on its side": np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
    "1.5 times as long": np.diag([1.0, 1.5, 1]),
    "sheared": np.array([[1.0, 0, 0.6], [0, 1, 0], [0, 0, 1]]),
}


@pytest.mark.parametrize("header", WRONG_HEADERS)
def test_a_head_under_a_wrong_header_is_not_answered_in_silence(
    heads: dict[int, tuple[Scan, Truth]], header: str
) -> None:
    scan, truth = heads[1]
    try:
        pose = align(under_header(scan, about(truth.ac_mm, WRONG_HEADERS[header])))
    except AlignmentError:
        return
    assert pose.flagged


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_likeness_tells_a_head_from_its_negative(sign: float) -> None:
    grid = cube(4.0, 24)
    blobs = ndimage.gaussian_filter(white_noise(grid), 1.5)
    moving = Moving(jnp.asarray(blobs), jnp.ones(grid.shape), jnp.asarray(np.linalg.inv(grid.space_from_vox)))
    points = transform_points(grid.space_from_vox, np.argwhere(np.ones((8, 8, 8))) + 8)
    values = sign * blobs[8:16, 8:16, 8:16].ravel()
    fixed = Fixed(*(jnp.asarray(a, jnp.float32) for a in (points.T, values, np.ones_like(values))))
    assert float(likeness(moving, fixed, jnp.eye(4))) == pytest.approx(sign, abs=0.01)


def test_contrast_does_not_see_gain_fields_and_dark_air() -> None:
    data = np.random.default_rng(0).uniform(0.5, 1, (24, 24, 24))
    seen = np.ones_like(data)
    field = np.linspace(0.7, 1.4, 24)[:, None, None]
    plain, shaded = (local_contrast(image, seen, 4.0)[4:-4, 4:-4, 4:-4] for image in (data, data * field))
    assert np.corrcoef(plain.ravel(), shaded.ravel())[0, 1] > 0.98
    assert np.abs(local_contrast(0.002 * data, seen, 4.0)).max() < 0.05


def test_contrast_outside_the_field_of_view_is_nothing() -> None:
    data, seen = np.random.default_rng(0).random((16, 16, 16)), np.ones((16, 16, 16))
    seen[8:] = 0
    contrast = local_contrast(data, seen, 4.0)
    assert not contrast[8:].any()
    data[8:] = 99
    assert np.array_equal(contrast, local_contrast(data, seen, 4.0))


@pytest.mark.parametrize("seed", range(3))
def test_series_of_a_small_move_is_its_exponential(seed: int) -> None:
    move = np.random.default_rng(seed).standard_normal(12)
    matrix = np.tensordot(12 * move / np.linalg.norm(move), np.asarray(_generators()), axes=1)
    assert np.asarray(_exponential(jnp.asarray(matrix))) == pytest.approx(expm(matrix), abs=1e-4)


def test_directions_of_movement_are_independent_and_of_about_a_millimetre() -> None:
    moves = np.asarray(_generators())
    assert np.linalg.matrix_rank(moves.reshape(12, 16)) == 12
    rim = 70 * np.vstack([np.eye(3), -np.eye(3)])
    lengths = [np.linalg.norm(rim @ move[:3, :3].T + move[:3, 3], axis=1).max() for move in moves]
    assert min(lengths) == pytest.approx(1)
    assert max(lengths) < 2.01


def test_neighbours_of_a_better_pose_are_left_out() -> None:
    def at(shift_mm: float) -> np.ndarray:
        pose = np.eye(4)
        pose[0, 3] = shift_mm
        return pose

    kept = _distinct([at(0.4), at(0.0), at(30.0), at(31.0), at(60.0)], 2, 8.0)
    assert [pose[0, 3] for pose in kept] == [0.4, 30.0]


def test_several_starts_end_where_each_would_alone() -> None:
    grid = cube(8.0, 24)
    blobs = ndimage.gaussian_filter(white_noise(grid), 1.5)
    moving = Moving(jnp.asarray(blobs), jnp.ones(grid.shape), jnp.asarray(np.linalg.inv(grid.space_from_vox)))
    points = transform_points(grid.space_from_vox, np.argwhere(np.ones((8, 8, 8))) + 8)
    values = blobs[8:16, 8:16, 8:16].ravel()
    fixed = Fixed(*(jnp.asarray(a, jnp.float32) for a in (points.T, values, np.ones_like(values))))
    starts = jnp.tile(jnp.eye(4), (2, 1, 1)).at[:, 0, 3].set(jnp.array([2.0, -3.0]))
    many = register_from(moving, fixed, starts, freedom=6, steps=8)
    for start, found in zip(starts, many.scanner_from_mni, strict=True):
        alone = register(moving, fixed, start, freedom=6, steps=8)
        assert np.asarray(found) == pytest.approx(np.asarray(alone.scanner_from_mni), abs=0.02)


def test_a_head_whose_commissures_lie_at_the_border_is_flagged(heads: dict[int, tuple[Scan, Truth]]) -> None:
    """Half of what tells where they are was not seen."""
    scan, truth = heads[1]
    vox = transform_points(np.linalg.inv(scan.grid.space_from_vox), truth.ac_mm)
    superior = int(np.abs(scan.grid.space_from_vox[2, :3]).argmax())
    up = scan.grid.space_from_vox[2, superior] > 0
    first = round(vox[superior]) - 3 if up else 0
    last = None if up else round(vox[superior]) + 4
    part = tuple(slice(first, last) if axis == superior else slice(None) for axis in range(3))
    matrix = scan.grid.space_from_vox.copy()
    matrix[:3, 3] += first * matrix[:3, superior]
    stored = np.asfortranarray(scan.stored[part])
    pose = align(Scan(stored, Grid(stored.shape, matrix, "scanner"), slope=scan.slope, intercept=scan.intercept))
    assert pose.flagged
    assert "inside the field of view; 12 mm are needed" in " ".join(pose.warnings)


def test_the_net_of_rotations_is_no_wider_than_its_meshes() -> None:
    """Every pose within the net is within 12 degrees of a rotation that is tried."""
    turns = np.array(
        [Rotation.align_vectors(net, np.diag(np.linalg.norm(net, axis=0)))[0].as_matrix() for net in _turns_net()]
    )
    random = np.random.default_rng(0).uniform(-1, 1, (50, 3)) * (48, 14, 14)
    wanted = Rotation.from_euler("xyz", random, degrees=True).as_matrix()
    cosine = (np.einsum("nij,mij->nm", wanted, turns).max(axis=1) - 1) / 2
    assert np.degrees(np.arccos(cosine.min())) < 12
