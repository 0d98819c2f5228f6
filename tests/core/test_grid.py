"""A grid keeps its whole affine, and the boxes in AC-PC space lie where the paper puts them."""

import numpy as np
import pytest
from array_types import unchecked
from geometry import rigid_error
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hypodask.core.grid import (
    SLAB_CENTRE_MM,
    Grid,
    box_grid,
    head_grid,
    slab_grid,
    transform_points,
)


def turned(spacing_mm: tuple[float, float, float], *, seed: int = 0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix() * spacing_mm
    matrix[:3, 3] = 5, -7, 11
    return matrix


@given(st.tuples(*[st.floats(0.1, 9.0)] * 3), st.integers(0, 1000))
def test_spacing_and_volume_survive_obliquity(spacing_mm: tuple[float, float, float], seed: int) -> None:
    grid = Grid((3, 4, 5), turned(spacing_mm, seed=seed), "scanner")
    assert grid.spacing_mm == pytest.approx(spacing_mm)
    assert grid.voxel_volume_mm3 == pytest.approx(np.prod(spacing_mm))
    assert grid.extent_mm == pytest.approx(np.array(spacing_mm) * (3, 4, 5))


def test_volume_of_a_mirrored_voxel_is_positive() -> None:
    assert Grid((2, 2, 2), np.diag([-1.0, 2.0, 3.0, 1.0]), "scanner").voxel_volume_mm3 == pytest.approx(6)


def test_centre_lies_between_the_middle_voxels() -> None:
    assert Grid((4, 3, 2), np.diag([2.0, 1.0, 1.0, 1.0]), "mni").centre_mm.tolist() == [3.0, 1.0, 0.5]


def test_a_grid_cannot_be_changed_by_who_made_it() -> None:
    matrix = np.eye(4)
    grid = Grid((2, 2, 2), matrix, "scanner")
    matrix[0, 3] = 9
    assert grid.space_from_vox[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid.space_from_vox[0, 3] = 9


def test_shape_is_of_plain_integers() -> None:
    shape = tuple(np.array([2, 3, 4]))
    with unchecked():
        assert {type(n) for n in Grid(shape, np.eye(4), "scanner").shape} == {int}


@pytest.mark.parametrize("wrong", [np.eye(3), np.full((4, 4), np.nan), np.ones((4, 4)), np.diag([1, 1, np.inf, 1])])
def test_an_affine_that_is_none_is_refused(wrong: np.ndarray) -> None:
    with unchecked(), pytest.raises(ValueError, match="needs a finite 4x4 affine"):
        Grid((2, 2, 2), wrong, "scanner")


@given(st.integers(0, 1000))
def test_moving_a_grid_moves_its_voxels(seed: int) -> None:
    grid, acpc_from_scanner = Grid((3, 4, 5), turned((1, 2, 3)), "scanner"), turned((1, 1, 1), seed=seed)
    moved = grid.moved(acpc_from_scanner, "acpc")
    assert moved.space == "acpc"
    assert moved.shape == grid.shape
    assert moved.centre_mm == pytest.approx(transform_points(acpc_from_scanner, grid.centre_mm))
    assert moved.spacing_mm == pytest.approx(grid.spacing_mm)


@given(st.integers(0, 1000))
def test_points_go_there_and_back(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-100, 100, (2, 5, 3))
    matrix = turned((0.5, 1, 2), seed=seed)
    there = transform_points(matrix, points)
    assert there.shape == points.shape
    assert transform_points(np.linalg.inv(matrix), there) == pytest.approx(points)


def test_the_slab_is_the_papers() -> None:
    slab = slab_grid()
    assert (slab.shape, slab.spacing_mm, slab.space) == ((512, 50, 512), (0.125, 0.5, 0.125), "acpc")
    assert slab.centre_mm.tolist() == pytest.approx(SLAB_CENTRE_MM)
    front = transform_points(slab.space_from_vox, [0, 49.5, 0])[1]
    assert front == pytest.approx(7.0)


@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 2.0])
def test_the_head_box_has_the_same_edges_at_every_spacing(spacing_mm: float) -> None:
    grid = head_grid(spacing_mm)
    assert transform_points(grid.space_from_vox, [-0.5] * 3) == pytest.approx((-88, -120, -80))
    assert transform_points(grid.space_from_vox, np.array(grid.shape) - 0.5) == pytest.approx((88, 88, 96))


def test_a_box_is_centred_where_it_is_wanted() -> None:
    assert box_grid((3, 4, 5), (1.0, 2.0, 0.5), (1.0, -2.0, 3.0)).centre_mm.tolist() == [1.0, -2.0, 3.0]


def test_rigid_error_tells_a_rotation_from_a_stretch() -> None:
    assert rigid_error(turned((1, 1, 1))) < 1e-12
    assert rigid_error(np.diag([1.1, 1, 1, 1])) == pytest.approx(0.21)
