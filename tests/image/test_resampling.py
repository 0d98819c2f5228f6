"""Resampled volumes are what other implementations get, and thinning a volume out makes nothing up."""

import tracemalloc
from itertools import permutations

import jax
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own documentation's name
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hypodask.core.grid import Grid, box_grid, slab_grid, transform_points
from hypodask.image import resampling
from hypodask.image.resampling import Order, _pull, gather, gather_channels, interpolate, low_pass, resample, smoothed

SHAPE = (17, 22, 19)
seeds = st.integers(0, 2**31)
orders = st.sampled_from([0, 1, 3])


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def turned_grid(shape: tuple[int, int, int], seed: int, *, spacing_mm: tuple[float, float] = (0.9, 1.0)) -> Grid:
    """A grid turned anyhow about its centre, which lies within 3 mm of the origin."""
    random = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix() * random.uniform(*spacing_mm, 3)
    matrix[:3, 3] = random.uniform(-3, 3, 3) - matrix[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, matrix, "scanner")


def vox_of(grid: Grid, onto: Grid) -> np.ndarray:
    """Voxel of ``grid`` at each voxel of ``onto``, first axis i, j, k."""
    points = transform_points(onto.space_from_vox, np.moveaxis(np.indices(onto.shape), 0, -1))
    return np.moveaxis(transform_points(np.linalg.inv(grid.space_from_vox), points), -1, 0)


def waves(grid: Grid, period_mm: float) -> np.ndarray:
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    return np.sin(2 * np.pi * transform_points(grid.space_from_vox, index)[..., 0] / period_mm).astype(np.float32)


def axis_grid(size: int, spacing_mm: float, *, centre_mm: float = 0.0) -> Grid:
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = centre_mm - spacing_mm * (size - 1) / 2
    return Grid((size,) * 3, matrix, "scanner")


@given(seeds, orders)
def test_any_rotation_equals_scipy(seed: int, order: Order) -> None:
    grid, onto = turned_grid(SHAPE, seed), turned_grid((15, 11, 13), seed + 1, spacing_mm=(0.5, 0.9))
    data, vox = noise(SHAPE, seed), vox_of(grid, onto)
    expected = ndimage.map_coordinates(data.astype(float), vox, order=order, mode="grid-constant")
    # Halfway between two voxels the nearest one is a matter of rounding.
    told = np.abs(vox - np.floor(vox) - 0.5).min(axis=0) > 1e-3 if order == 0 else np.ones(onto.shape, bool)
    assert np.abs(resample(data, grid, onto, order=order) - expected)[told].max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 40, 9), (33, 2, 31), (32, 32, 32), (65, 5, 8)])
def test_any_shape_equals_scipy(shape: tuple[int, int, int]) -> None:
    grid, onto = turned_grid(shape, 5), turned_grid((15, 11, 13), 6, spacing_mm=(0.5, 0.9))
    expected = ndimage.map_coordinates(noise(shape).astype(float), vox_of(grid, onto), order=3, mode="grid-constant")
    assert np.abs(resample(noise(shape), grid, onto, order=3) - expected).max() < 1e-4


@pytest.mark.parametrize(("order", "theirs"), [(1, sitk.sitkLinear), (3, sitk.sitkBSpline3)])
def test_the_interior_equals_simpleitk(order: Order, theirs: int) -> None:
    data, grid, onto = noise((48, 48, 48)), axis_grid(48, 1.0), turned_grid((12, 12, 12), 2, spacing_mm=(0.5, 0.9))
    image, wanted = itk_image(data, grid), itk_image(np.zeros(onto.shape, np.float32), onto)
    resampled = sitk.GetArrayFromImage(sitk.Resample(image, wanted, sitk.Transform(), theirs, 0.0, sitk.sitkFloat32)).T
    assert np.abs(resample(data, grid, onto, order=order) - resampled).max() < 1e-4


def itk_image(data: np.ndarray, grid: Grid) -> sitk.Image:
    """The same place in RAS for both; their LPS would only turn both images alike."""
    image = sitk.GetImageFromArray(data.T)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.space_from_vox[:3, 3].tolist())
    direction = grid.space_from_vox[:3, :3] / grid.spacing_mm
    if np.linalg.det(direction) < 0:
        raise ValueError("SimpleITK wants a right-handed grid")
    image.SetDirection(direction.ravel().tolist())
    return image


@pytest.mark.parametrize("order", [0, 1, 3])
def test_onto_its_own_grid_a_volume_is_unchanged(order: Order) -> None:
    grid = turned_grid(SHAPE, 3)
    assert resample(noise(SHAPE), grid, grid, order=order) == pytest.approx(noise(SHAPE), abs=1e-4)


def test_a_move_between_spaces_equals_a_moved_grid() -> None:
    grid, onto = turned_grid(SHAPE, 7), turned_grid(SHAPE, 8, spacing_mm=(0.5, 0.9))
    acpc_from_scanner = turned_grid((1, 1, 1), 9, spacing_mm=(1.0, 1.0)).space_from_vox
    moved = resample(noise(SHAPE), grid.moved(acpc_from_scanner, "acpc"), onto, order=3)
    assert np.array_equal(resample(noise(SHAPE), grid, onto, onto_from_grid=acpc_from_scanner, order=3), moved)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_memory_order_of_the_array_does_not_matter(order: Order) -> None:
    grid, onto = turned_grid(SHAPE, 1), turned_grid((9, 9, 9), 2, spacing_mm=(1.5, 2.5))
    expected = pytest.approx(resample(noise(SHAPE), grid, onto, order=order), abs=1e-5)
    assert resample(np.asfortranarray(noise(SHAPE)), grid, onto, order=order) == expected
    assert resample(noise(SHAPE)[::-1, :, ::-1].copy()[::-1, :, ::-1], grid, onto, order=order) == expected


@pytest.mark.parametrize("order", [0, 1, 3])
def test_memory_order_of_what_is_pulled_does_not_matter(order: Order) -> None:
    expected = _pull(noise(SHAPE), np.eye(4), SHAPE, order)
    for data in (np.asfortranarray(noise(SHAPE)), noise(SHAPE)[:, ::-1].copy()[:, ::-1], jax.numpy.array(noise(SHAPE))):
        assert np.array_equal(_pull(data, np.eye(4), SHAPE, order), expected)


def test_far_outside_the_field_of_view_there_is_nothing() -> None:
    assert not resample(np.ones(SHAPE, np.float32), axis_grid(17, 1.0), axis_grid(8, 1.0, centre_mm=80.0)).any()


def test_beyond_the_outermost_voxels_the_image_fades_within_one_voxel() -> None:
    onto = Grid((5, 1, 1), np.array([[0.5, 0, 0, 6.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "scanner")
    along = resample(np.ones((17, 17, 17), np.float32), axis_grid(17, 1.0), onto)[:, 0, 0]
    assert along.tolist() == pytest.approx([1, 1, 1, 1, 0.5])


@pytest.mark.parametrize("part", [0.0, 11.0, -13.0])
def test_a_small_part_is_smoothed_as_in_the_whole(part: float) -> None:
    """Only what the wanted voxels see is smoothed; the rest of the scan must not be missed."""
    grid, onto = turned_grid((60, 64, 57), 4, spacing_mm=(0.5, 0.7)), axis_grid(4, 2.0, centre_mm=part)
    smooth, thin = low_pass(noise(grid.shape), grid, 2.0)
    assert resample(noise(grid.shape), grid, onto) == pytest.approx(interpolate(smooth, thin, onto), abs=1e-5)


@pytest.mark.parametrize("steps", [(0.5, 1.0, 0.125), (-0.7, 1.3, 1.0), (2.5, -1.0, 0.4)])
def test_between_grids_along_the_same_axes_values_are_those_of_scipy_too(steps: tuple[float, float, float]) -> None:
    image, grid = noise(SHAPE), box_grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    matrix = np.diag([*steps, 1.0])
    matrix[:3, 3] = -np.array(steps) * 12 + (0.3, -1.2, 2.0)
    onto = Grid((25, 24, 26), matrix, grid.space)
    known = ndimage.map_coordinates(image, vox_of(grid, onto), order=1, mode="grid-constant")
    assert (known == 0).any()
    assert (known != 0).any()
    np.testing.assert_allclose(interpolate(image, grid, onto), known, atol=1e-5)


def test_gaussian_means_are_those_of_scipy_but_that_beyond_the_borders_nothing_weighs() -> None:
    image = noise(SHAPE)
    for sigma in (1.0, 2.0):
        known, weights = (
            ndimage.gaussian_filter(part.astype(float), sigma, mode="constant", truncate=6.0)
            for part in (image, np.ones(SHAPE))
        )
        np.testing.assert_allclose(smoothed(image, sigma), known / weights, atol=2e-5)


@pytest.mark.parametrize("ratio", [1.3, 2.0, 2.5, 4.0])
def test_thinning_keeps_constants(ratio: float) -> None:
    thinned, _ = low_pass(np.ones((21, 16, 18), np.float32), axis_grid(21, 1.0), ratio)
    assert thinned == pytest.approx(np.ones(thinned.shape), abs=1e-5)


@pytest.mark.parametrize("ratio", [1.3, 2.0, 2.5, 4.0])
def test_thinning_moves_nothing(ratio: float) -> None:
    grid = turned_grid((40, 41, 42), 3, spacing_mm=(1.0, 1.0))
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    blob = np.exp(-(((index - (19.3, 21.1, 20.6)) / 3.5) ** 2).sum(-1)).astype(np.float32)
    thinned, thin = low_pass(blob, grid, ratio)
    assert np.abs(centre_of_mass_mm(thinned, thin) - centre_of_mass_mm(blob, grid)).max() < 0.01


def centre_of_mass_mm(data: np.ndarray, grid: Grid) -> np.ndarray:
    return transform_points(grid.space_from_vox, np.array(ndimage.center_of_mass(data.astype(float))))


@pytest.mark.parametrize("ratio", [2.0, 2.5, 4.0])
def test_a_checkerboard_is_gone_where_voxels_are_larger(ratio: float) -> None:
    checkers = (np.indices((40, 40, 40)).sum(axis=0) % 2).astype(np.float32)
    thinned, _ = low_pass(checkers, axis_grid(40, 1.0), ratio)
    assert np.abs(thinned[3:-3, 3:-3, 3:-3] - 0.5).max() < 0.01


@pytest.mark.parametrize("ratio", [2.0, 3.0, 4.0])
def test_waves_too_fine_to_be_shown_do_not_come_back_as_coarse_ones(ratio: float) -> None:
    grid, onto = axis_grid(48, 1.0), axis_grid(int(30 / ratio), ratio)
    shown = resample(waves(grid, 1.2 * ratio), grid, onto)
    assert np.ptp(shown[1:-1]) < 0.3
    assert np.ptp(resample(waves(grid, 12 * ratio), grid, onto)[1:-1]) > 1.5


def test_axes_that_are_coarse_already_are_left_alone() -> None:
    grid = Grid(SHAPE, np.diag([1.0, 1.0, 3.0, 1.0]), "scanner")
    thinned, thin = low_pass(noise(SHAPE), grid, 2.0)
    assert thinned.shape == (9, 11, 19)
    assert thin.spacing_mm == (2.0, 2.0, 3.0)
    untouched, same = low_pass(noise(SHAPE), grid, 1.0)
    assert np.array_equal(untouched, noise(SHAPE))
    assert np.array_equal(same.space_from_vox, grid.space_from_vox)


def test_thinning_smooths_as_much_as_the_sizes_of_the_voxels_say() -> None:
    """Variances add: thinned from 1 to 4 mm, a blob grows by the variance of a 4 mm voxel less that of a 1 mm one."""
    grid = axis_grid(65, 1.0)
    blob = np.exp(-(((np.indices(grid.shape) - 31.7) / 5) ** 2).sum(axis=0) / 2).astype(np.float32)
    thinned, thin = low_pass(blob, grid, 4.0)
    growth = variance_mm2(thinned, thin) - variance_mm2(blob, grid)
    assert growth == pytest.approx((4.0**2 - 1) / (8 * np.log(2)), rel=0.05)


def variance_mm2(data: np.ndarray, grid: Grid) -> float:
    points = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))
    return float((data * (points - centre_of_mass_mm(data, grid))[..., 0] ** 2).sum() / data.sum())


FINE = box_grid((160, 12, 160), (0.125, 0.5, 0.125), (0.0, 0.0, 0.0))
"""20 x 6 x 20 mm of what the slab is made of: enough voxels, and fine enough, for two stages."""


def oblique_grid(size: int, spacing_mm: float = 1.0, *, axes: tuple[int, ...] = (0, 1, 2), flipped: int = 0) -> Grid:
    """Tilted as heads lie, about the origin, its axes stored in any order; the bits of ``flipped`` turn them round."""
    signs = [-1.0 if flipped >> axis & 1 else 1.0 for axis in range(3)]
    matrix = np.eye(4)
    turned = Rotation.from_euler("xyz", [20, 10, -15], degrees=True).as_matrix()
    matrix[:3, :3] = (turned * np.array(signs) * spacing_mm)[:, list(axes)]
    matrix[:3, 3] = 0.3 - matrix[:3, :3] @ np.full(3, (size - 1) / 2)
    return Grid((size,) * 3, matrix, "acpc")


def smooth(grid: Grid) -> np.ndarray:
    """Noise of unit variance, blurred by a voxel: about as fine as tissue is in a scan."""
    blurred = ndimage.gaussian_filter(noise(grid.shape), 1.0, mode="wrap")
    return (blurred / blurred.std()).astype(np.float32)


def two_stages(data: np.ndarray, grid: Grid) -> np.ndarray:
    strides = resampling._stage_strides(np.linalg.inv(grid.space_from_vox) @ FINE.space_from_vox, FINE.shape)
    assert strides[0] > 1
    assert strides[2] > 1
    return resample(data, grid, FINE, order=3)


@pytest.mark.parametrize(("flipped", "axes"), [*enumerate(permutations(range(3)))])
def test_in_two_stages_every_axis_order_and_handedness_equals_scipy(flipped: int, axes: tuple[int, ...]) -> None:
    grid = oblique_grid(40, axes=axes, flipped=flipped)
    data = smooth(grid) if flipped % 2 else np.asfortranarray(smooth(grid))
    expected = ndimage.map_coordinates(data, vox_of(grid, FINE), order=3, mode="grid-constant")
    error = two_stages(data, grid) - expected
    assert np.sqrt((error**2).mean()) < 0.002
    assert np.abs(error).max() < 0.02


def test_in_two_stages_a_constant_stays_constant() -> None:
    grid = oblique_grid(60)
    assert np.abs(two_stages(np.ones(grid.shape, np.float32), grid) - 1).max() < 1e-5


def test_in_two_stages_a_ramp_stays_a_ramp() -> None:
    grid = oblique_grid(60)
    slopes = np.array([0.02, -0.03, 0.05])
    ramp = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1)) @ slopes
    expected = transform_points(FINE.space_from_vox, np.moveaxis(np.indices(FINE.shape), 0, -1)) @ slopes
    assert np.abs(two_stages(ramp.astype(np.float32), grid) - expected).max() < 1e-5


def test_in_two_stages_the_border_of_the_scan_is_where_scipy_has_it() -> None:
    """A scan that ends within the wanted grid, at full brightness: the hardest step there is."""
    grid = oblique_grid(14)
    data = 1 + 0.1 * smooth(grid)
    expected = ndimage.map_coordinates(data, vox_of(grid, FINE), order=3, mode="grid-constant")
    error = two_stages(data, grid) - expected
    assert expected.min() < 0
    assert expected.max() > 1
    assert np.sqrt((error**2).mean()) < 0.003
    assert np.abs(error).max() < 0.03


@pytest.mark.parametrize("spacing_mm", [0.7, 0.8, 1.0, 1.2])
def test_two_stages_are_as_near_to_the_truth_as_one(spacing_mm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waves of any direction, as fine as the voxels can hold; see ``STAGE_VOX`` for more of them."""
    grid = oblique_grid(60, spacing_mm)
    random = np.random.default_rng(1)
    shares = random.uniform(-0.9, 0.9, (16, 3))
    waves = shares * np.pi / spacing_mm @ (grid.space_from_vox[:3, :3] / spacing_mm).T
    phases = random.uniform(0, 6, len(waves))

    def truth(onto: Grid) -> np.ndarray:
        points = transform_points(onto.space_from_vox, np.moveaxis(np.indices(onto.shape), 0, -1))
        return sum(np.cos(points @ wave + phase) for wave, phase in zip(waves, phases, strict=True))

    data = truth(grid).astype(np.float32)
    two = two_stages(data, grid) - truth(FINE)
    monkeypatch.setattr(resampling, "_STAGE_POINTS", FINE.shape[0] ** 3)
    one = resample(data, grid, FINE, order=3) - truth(FINE)
    assert np.sqrt((two**2).mean()) < 1.03 * np.sqrt((one**2).mean())


def test_small_or_coarse_grids_are_done_in_one_stage() -> None:
    assert resampling._stage_strides(np.diag([0.125, 0.125, 0.125, 1.0]), (16, 16, 16)) == (1, 1, 1)
    assert resampling._stage_strides(np.diag([0.3, 0.5, 1.0, 1.0]), (200, 200, 200)) == (1, 1, 1)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_plane_and_a_point_may_be_wanted(order: Order) -> None:
    grid = turned_grid(SHAPE, 1)
    whole = resample(noise(SHAPE), grid, grid, order=order)
    for shape in [(17, 1, 19), (1, 1, 1)]:
        part = resample(noise(SHAPE), grid, Grid(shape, grid.space_from_vox, grid.space), order=order)
        assert part == pytest.approx(whole[tuple(slice(n) for n in shape)], abs=1e-5)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_places_on_whole_voxels_are_not_a_voxel_off(order: Order) -> None:
    """Index and weights must be of one rounding, also where the compiler makes them in different loops."""
    vox_from_out = np.eye(4)
    vox_from_out[:3, :3] = 0.5 * Rotation.from_euler("xyz", [12, 5, -4], degrees=True).as_matrix()
    vox_from_out[:3, 3] = 14
    data, shape = noise((96, 64, 96)), (136, 50, 136)
    vox = np.moveaxis(transform_points(vox_from_out, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
    expected = ndimage.map_coordinates(data.astype(float), vox, order=order, prefilter=False, mode="nearest")
    told = np.abs(vox - np.floor(vox) - 0.5).min(axis=0) > 1e-3 if order == 0 else np.ones(shape, bool)
    assert np.abs(np.asarray(_pull(data, vox_from_out, shape, order)) - expected)[told].max() < 1e-4


@given(seeds, orders)
def test_gathered_points_beyond_the_array_see_its_rim(seed: int, order: Order) -> None:
    random = np.random.default_rng(seed)
    data, points = noise((5, 6, 7), seed), random.uniform(-4, 10, (3, 50)).astype(np.float32)
    expected = ndimage.map_coordinates(data.astype(float), points, order=order, prefilter=False, mode="nearest")
    told = np.abs(points - np.floor(points) - 0.5).min(axis=0) > 1e-3 if order == 0 else np.ones(50, bool)
    found = jax.jit(gather, static_argnames="order")(data, points, order)
    assert np.abs(np.asarray(found) - expected)[told].max() < 1e-4


def test_a_cohort_of_mixed_sizes_compiles_few_kernels() -> None:
    """What is wanted of every scan is of one shape; what it comes from is not."""
    jax.clear_caches()
    compiled: list[float] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    random = np.random.default_rng(0)
    for _ in range(8):
        spacing_mm = random.uniform(0.8, 1.2)
        grid = axis_grid(int(random.integers(120, 180)), spacing_mm)
        volume = np.broadcast_to(np.float32(1), grid.shape)
        resample(volume, grid, axis_grid(40, 2.0))
        resample(volume, grid, box_grid((32, 20, 32), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)), order=3)
    jax.clear_caches()
    jax.monitoring.unregister_event_duration_listener(note)
    assert len(compiled) <= 4


def test_the_slab_is_made_without_large_intermediate_arrays() -> None:
    """The result is 52 MB; an index or a weight at each of its voxels would be as much again."""
    grid, onto = axis_grid(64, 1.0), slab_grid()
    data = noise(grid.shape)
    tracemalloc.start()
    slab = resample(data, grid, onto, order=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * slab.nbytes
    compiled = resampling._pull_planes.lower(
        np.zeros(4**10, np.float32), np.ones((2, 3), np.int32), np.eye(4, dtype=np.float32)[:3], onto.shape, 3
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * slab.nbytes


def test_channels_are_interpolated_together_as_each_by_itself():
    data = np.random.default_rng(3).normal(size=(5, 6, 7, 3)).astype(np.float32)
    points = np.random.default_rng(4).uniform(-1.5, 8, size=(3, 200)).astype(np.float32)
    together = np.asarray(gather_channels(data, points))
    alone = [ndimage.map_coordinates(data[..., c], points, order=1, mode="nearest") for c in range(3)]
    np.testing.assert_allclose(together, np.stack(alone, axis=-1), atol=1e-5)
