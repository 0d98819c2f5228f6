"""The pose as other tools read it: the same voxels, whoever resamples them."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own documentation's name
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hypodask import angles_deg, load_transform, read_scan, save_aligned, save_transform
from hypodask.core.errors import TransformError
from hypodask.core.grid import Grid, box_grid, head_grid, transform_points
from hypodask.image.resampling import resample
from hypodask.scan import Scan
from hypodask.storage.transforms import _flirt_matrix, _fsl_from_vox, _itk_text, _scanner_from_acpc_of_itk

ONTO = box_grid((30, 34, 28), (2.0, 2.0, 2.0), (1.0, -4.0, 3.0))
MIRRORED = Grid((30, 34, 28), ONTO.space_from_vox @ np.array([[-1, 0, 0, 29.0], *np.eye(4)[1:]]), "acpc")
ORDERS = ("RAS", "LAS", "LPI", "AIR", "SPR", "PIL")


def pose(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", random.uniform(-25, 25, 3), degrees=True).as_matrix()
    matrix[:3, 3] = random.uniform(-8, 8, 3)
    return matrix


def scan_of(order: str) -> Scan:
    """A smooth volume of long voxels, oblique to the scanner, its axes in any order and direction."""
    data = ndimage.gaussian_filter(np.random.default_rng(1).uniform(0, 1000, (44, 30, 52)), 1.5).astype(np.float32)
    scanner_from_vox = np.eye(4)
    scanner_from_vox[:3, :3] = Rotation.from_euler("xyz", (9, -6, 4), degrees=True).as_matrix() * (1.5, 2.2, 1.25)
    scanner_from_vox[:3, 3] = -scanner_from_vox[:3, :3] @ (21.5, 14.5, 25.5)
    image = nib.Nifti1Image(data, scanner_from_vox)
    wanted = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(order))
    turned = image.as_reoriented(wanted)
    voxels = np.asfortranarray(turned.get_fdata(dtype=np.float32))
    return Scan(voxels, Grid(voxels.shape, turned.affine, "scanner"))


def ours(scan: Scan, onto: Grid) -> np.ndarray:
    return resample(scan.data, scan.grid, onto, onto_from_grid=pose(), order=1)


def itk_image(data: np.ndarray, grid: Grid) -> Any:
    """A volume as ITK has it, its place in LPS mm."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose()))
    lps_from_vox = np.diag([-1.0, -1, 1, 1]) @ grid.space_from_vox
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((lps_from_vox[:3, :3] / grid.spacing_mm).ravel().tolist())
    image.SetOrigin(lps_from_vox[:3, 3].tolist())
    return image


def inside(data: np.ndarray, grid: Grid, vox_from_out: np.ndarray, onto: Grid) -> np.ndarray:
    """Where a voxel is looked up between stored ones, so that no convention at the border matters."""
    vox = transform_points(vox_from_out, np.moveaxis(np.indices(onto.shape), 0, -1))
    return ((vox > 0.1) & (vox < np.array(data.shape) - 1.1)).all(axis=-1)


def assert_same_voxels(found: np.ndarray, scan: Scan, onto: Grid) -> None:
    vox_from_out = np.linalg.inv(pose() @ scan.grid.space_from_vox) @ onto.space_from_vox
    seen = inside(scan.data, scan.grid, vox_from_out, onto)
    assert seen.mean() > 0.3
    np.testing.assert_allclose(found[seen], ours(scan, onto)[seen], atol=0.5)


@pytest.fixture(autouse=True)
def only_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our low-pass is not what is tested: without it each tool interpolates linearly, and nothing else."""
    monkeypatch.setattr("hypodask.image.resampling.low_pass", lambda data, grid, spacing_mm: (data, grid))


# ITK


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("onto", [ONTO, MIRRORED], ids=["RAS", "LAS"])
def test_itk_resamples_the_scan_to_the_same_voxels(order: str, onto: Grid, tmp_path: Path) -> None:
    scan, path = scan_of(order), tmp_path / "xfm.txt"
    save_transform(path, pose())
    reference = itk_image(np.zeros(onto.shape, np.float32), onto)
    moved = sitk.Resample(itk_image(scan.data, scan.grid), reference, sitk.ReadTransform(str(path)), sitk.sitkLinear)
    assert_same_voxels(sitk.GetArrayFromImage(moved).transpose(), scan, onto)


def test_itk_carries_points_from_acpc_space_to_the_scanner(tmp_path: Path) -> None:
    save_transform(tmp_path / "xfm.tfm", pose())
    carry = sitk.ReadTransform(str(tmp_path / "xfm.tfm"))
    x, y, z = transform_points(np.linalg.inv(pose()), np.array([3.0, -26.0, 7.0]))
    assert carry.TransformPoint((-3.0, 26.0, 7.0)) == pytest.approx((-x, -y, z), abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_what_was_written_for_itk_is_read_to_the_last_digits(seed: int) -> None:
    np.testing.assert_allclose(np.linalg.inv(_scanner_from_acpc_of_itk(_itk_text(pose(seed)))), pose(seed), atol=1e-12)


@pytest.mark.parametrize("suffix", ["txt", "tfm"])
def test_what_itk_itself_writes_is_read_with_its_centre(suffix: str, tmp_path: Path) -> None:
    transform = sitk.AffineTransform(3)
    transform.SetCenter((10.0, -20.0, 30.0))
    transform.SetMatrix(pose()[:3, :3].ravel().tolist())
    transform.SetTranslation((1.0, 2.0, 3.0))
    sitk.WriteTransform(transform, str(tmp_path / f"a.{suffix}"))
    acpc_from_scanner = load_transform(tmp_path / f"a.{suffix}")
    x, y, z = transform.TransformPoint((5.0, 6.0, 7.0))
    assert transform_points(acpc_from_scanner, np.array([-x, -y, z])) == pytest.approx([-5.0, -6.0, 7.0], abs=1e-9)


# FSL


def fsl_mm(vox: np.ndarray, image: Any) -> np.ndarray:
    """FLIRT's coordinates by their definition: voxels times their size, x counted from the far end if need be."""
    scaled = vox.astype(float).copy()
    if np.linalg.det(image.affine[:3, :3]) > 0:
        scaled[..., 0] = image.shape[0] - 1 - scaled[..., 0]
    return scaled * image.header.get_zooms()[:3]


def vox_of_fsl(mm: np.ndarray, image: Any) -> np.ndarray:
    vox = mm / image.header.get_zooms()[:3]
    if np.linalg.det(image.affine[:3, :3]) > 0:
        vox[..., 0] = image.shape[0] - 1 - vox[..., 0]
    return vox


def applyxfm(matrix: np.ndarray, image: Any, reference: Any) -> np.ndarray:
    """``flirt -applyxfm -interp trilinear``: for every voxel of the reference, go back to the input."""
    there = fsl_mm(np.moveaxis(np.indices(reference.shape), 0, -1), reference)
    vox = vox_of_fsl(nib.affines.apply_affine(np.linalg.inv(matrix), there), image)
    return ndimage.map_coordinates(image.get_fdata(), np.moveaxis(vox, -1, 0), order=1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("onto", [ONTO, MIRRORED], ids=["RAS", "LAS"])
def test_flirt_resamples_the_scan_to_the_same_voxels(order: str, onto: Grid) -> None:
    scan = scan_of(order)
    image = nib.Nifti1Image(scan.data, scan.grid.space_from_vox)
    reference = nib.Nifti1Image(np.zeros(onto.shape, np.float32), onto.space_from_vox)
    assert_same_voxels(applyxfm(_flirt_matrix(pose(), scan.grid, onto), image, reference), scan, onto)


def test_the_orders_of_axes_have_both_hands() -> None:
    hands = {np.sign(np.linalg.det(scan_of(order).grid.space_from_vox)) for order in ORDERS}
    assert hands == {-1.0, 1.0}
    assert _fsl_from_vox(scan_of("LAS").grid)[0, 0] > 0 > _fsl_from_vox(scan_of("RAS").grid)[0, 0]


@pytest.mark.parametrize("order", ORDERS)
def test_flirts_file_is_for_the_image_that_is_saved_aligned(order: str, tmp_path: Path) -> None:
    scan = scan_of(order)
    save_transform(tmp_path / "a.mat", pose(), kind="fsl", scan=scan.grid)
    matrix = np.loadtxt(tmp_path / "a.mat")
    np.testing.assert_allclose(matrix, _flirt_matrix(pose(), scan.grid, head_grid(1.0)))
    np.testing.assert_allclose(load_transform(tmp_path / "a.mat", scan=scan.grid), pose(), atol=1e-9)


# Plain numbers and images


@pytest.mark.parametrize("order", ORDERS)
def test_plain_numbers_carry_nibabels_affine_into_acpc_space(order: str, tmp_path: Path) -> None:
    scan, path = scan_of(order), tmp_path / "acpc.txt"
    save_transform(path, pose(), kind="matrix")
    acpc_from_scanner = np.loadtxt(path)
    np.testing.assert_array_equal(acpc_from_scanner, pose())
    np.testing.assert_array_equal(load_transform(path), pose())
    out_from_vox = np.linalg.inv(ONTO.space_from_vox) @ acpc_from_scanner @ scan.grid.space_from_vox
    vox_from_out = np.linalg.inv(out_from_vox)
    found = ndimage.affine_transform(scan.data, vox_from_out[:3, :3], vox_from_out[:3, 3], ONTO.shape, order=1)
    assert_same_voxels(found, scan, ONTO)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_aligned_image_has_its_commissure_at_the_origin_and_is_read_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypodask.storage.transforms._ALIGNED_SPACING_MM", 4.0)
    scan = scan_of("LPI")
    save_aligned(tmp_path / name, scan, pose())
    image = nib.load(tmp_path / name)
    np.testing.assert_allclose(image.affine, head_grid(4.0).space_from_vox)
    assert (image.get_sform(coded=True)[1], image.get_qform(coded=True)[1], image.get_data_dtype()) == (
        2,
        2,
        np.float32,
    )
    expected = resample(scan.data, scan.grid, head_grid(4.0), onto_from_grid=pose(), order=3)
    np.testing.assert_array_equal(read_scan(tmp_path / name).data, expected)


@pytest.mark.parametrize(("axis", "place"), [("x", 0), ("y", 1), ("z", 2)])
def test_angles_are_those_that_turned_the_head(axis: str, place: int) -> None:
    scanner_from_acpc = np.eye(4)
    scanner_from_acpc[:3, :3] = Rotation.from_euler(axis, 12, degrees=True).as_matrix()
    assert angles_deg(np.linalg.inv(scanner_from_acpc)) == pytest.approx([12.0 * (place == n) for n in range(3)])


@given(st.floats(-80, 80), st.floats(-170, 170), st.floats(-170, 170))
def test_angles_are_yaw_then_pitch_then_roll(pitch: float, roll: float, yaw: float) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("ZXY", (yaw, pitch, roll), degrees=True).as_matrix().T
    assert angles_deg(matrix) == pytest.approx((pitch, roll, yaw), abs=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"shape \(0,\)"),
        ("1 0 0\n0 1 0\n0 0 1\n", r"shape \(3, 3\)"),
        ("1 0 0 0\n0 1 0\n", "inhomogeneous"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1\n", "the last row of four must be 0 0 0 1"),
        ("1 0 0 nan\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "of shape"),
        ("a b c d\n", "could not convert"),
        (_itk_text(np.eye(4)).replace("Affine", "Euler3D"), "Euler3DTransform.* is needed"),
        (_itk_text(np.eye(4)).partition("Transform:")[0], "it holds no transform"),
        (_itk_text(np.eye(4)).partition("FixedParameters")[0], "12 parameters and 3 fixed ones are needed"),
        (_itk_text(np.eye(4)).replace(" 1.0", " 0.0"), "Singular"),
        (_itk_text(np.eye(4)) * 2, "AffineTransform_double_3_3, AffineTransform_double_3_3, one of"),
    ],
)
def test_files_that_hold_no_affine_are_refused_with_their_name(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(TransformError, match=f"a.txt holds no affine transform .*{words}"):
        load_transform(tmp_path / "a.txt")


def test_a_file_that_is_missing_or_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match=r"there is no transform .*correct the path"):
        load_transform(tmp_path / "a.txt")
    (tmp_path / "a.mat").write_bytes(b"\xff\x00")
    with pytest.raises(TransformError, match="holds no affine"):
        load_transform(tmp_path / "a.mat")


def test_fsl_needs_the_grid_of_the_scan(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match=r"scan=scan\.grid"):
        save_transform(tmp_path / "a.mat", pose(), kind="fsl")
    assert not (tmp_path / "a.mat").exists()
