"""What read_scan takes, what it makes of it, and what it refuses."""

import contextlib
import gzip
import hashlib
import io
import itertools
import os
import pickle
import shutil
import stat
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path

import fsspec
import nibabel as nib
import numpy as np
import pytest
from headers import overwritten
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from hypodask import errors, read_scan
from hypodask.core.grid import transform_points

AFFINE = np.array([[4.0, 0, 0, -94], [0, 4, 0, -94], [0, 0, 4, -94], [0, 0, 0, 1]])
AXIS_ORDERS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


DTYPES = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)] + ["float32", "float64"]


def voxels(dtype="int16", shape=(48, 48, 48)):
    return np.random.default_rng(1).integers(0, 100, shape).astype(dtype)


def image(data=None, affine=AFFINE, kind=nib.Nifti1Image):
    return kind(voxels() if data is None else data, affine)


def saved(folder, img=None, name="scan.nii"):
    path = Path(folder) / name
    nib.save(img or image(), path)
    return path


def by_nibabel(path):
    """The reference, read from memory because nibabel leaves some files open."""
    raw = path.read_bytes()
    kind = nib.MGHImage if path.suffix in (".mgh", ".mgz") else nib.Nifti1Image
    return kind.from_bytes(gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw)


def patched(folder, img=None, name="scan.nii", **fields):
    """A file whose header fields were overwritten after saving, whatever nibabel thinks of them."""
    return overwritten(saved(folder, img, name), **fields)


def refused(path, error, *words):
    with pytest.raises(error) as caught:
        read_scan(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


# What is read


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgh", "a.mgz"])
def test_every_format_gives_the_voxels_and_affine_of_nibabel(tmp_path, name):
    kind = nib.MGHImage if ".mg" in name else nib.Nifti1Image
    path = saved(tmp_path, image(voxels("int16"), kind=kind), name)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.data, by_nibabel(path).get_fdata())
    np.testing.assert_allclose(scan.grid.space_from_vox, by_nibabel(path).affine)
    assert (scan.grid.space, scan.source, scan.stored.dtype) == ("scanner", str(path), np.dtype("int16"))
    assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_format_is_told_from_the_bytes_not_from_the_name(tmp_path):
    mgz = saved(tmp_path, image(kind=nib.MGHImage), "a.mgz")
    misnamed = mgz.rename(tmp_path / "sub-01_T1w.nii")
    np.testing.assert_array_equal(read_scan(misnamed).data, voxels())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_header_round_trips_through_nibabel(tmp_path, kind):
    img = image(voxels("uint16"), kind=kind)
    img.header["descrip"] = b"TE=2.3"
    scan = read_scan(saved(tmp_path, img))
    header = kind.header_class.from_fileobj(io.BytesIO(scan.header))
    assert header.get_data_shape() == scan.grid.shape
    assert header.get_data_dtype() == scan.stored.dtype
    assert header["descrip"].item() == b"TE=2.3"
    np.testing.assert_allclose(header.get_best_affine(), scan.grid.space_from_vox)


def test_header_of_mgh_becomes_one_of_nifti(tmp_path):
    affine = AFFINE.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix() * 4
    scan = read_scan(saved(tmp_path, image(kind=nib.MGHImage, affine=affine), "a.mgz"))
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(scan.header))
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-4)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-3)
    assert header.get_data_dtype() == np.dtype("int16")


@given(order=st.sampled_from(AXIS_ORDERS), turn=st.tuples(*[st.floats(-180, 180)] * 3))
def test_axis_order_and_rotation_keep_the_world_coordinates_of_a_voxel(tmp_path_factory, order, turn):
    shape, marked = (40, 44, 48), (11, 30, 20)
    data = voxels("uint8", shape)
    data[marked] = 255
    affine = AFFINE.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * 4
    turned = image(apply_orientation(data, order), affine @ inv_ornt_aff(order, shape))
    scan = read_scan(saved(tmp_path_factory.getbasetemp(), turned))
    found = np.argwhere(scan.data == 255)[0]
    expected = transform_points(affine, np.array(marked))
    np.testing.assert_allclose(transform_points(scan.grid.space_from_vox, found), expected, atol=1e-3)


@given(
    dtype=st.sampled_from(DTYPES),
    byteorder=st.sampled_from("<>"),
    slope=st.sampled_from([0.0, float("nan"), float("inf"), 1.0, -2.0, 0.013]),
    intercept=st.sampled_from([0.0, -1024.0, 7.5]),
)
def test_any_dtype_scale_and_byte_order_give_the_intensities_of_nibabel(
    tmp_path_factory, dtype, byteorder, slope, intercept
):
    header = nib.Nifti1Header(endianness=byteorder)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(byteorder))
    folder = tmp_path_factory.getbasetemp()
    path = saved(folder, nib.Nifti1Image(voxels(dtype), AFFINE, header))
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack(byteorder + "ff", slope, intercept)
    path.write_bytes(raw)
    scan = read_scan(path)
    np.testing.assert_allclose(scan.data, by_nibabel(path).get_fdata(), rtol=1e-6, atol=1e-4)
    assert scan.data.dtype == np.float32
    assert scan.stored.dtype == np.dtype(dtype)


def test_intensities_of_32_bit_integers_keep_their_differences(tmp_path):
    path = patched(tmp_path, image(voxels("int32") + 2**30), scl_slope=1, scl_inter=-(2.0**30))
    np.testing.assert_array_equal(read_scan(path).data, voxels("int32"))


@pytest.mark.parametrize("extra", [(1,), (1, 1), (1, 1, 1, 1)])
def test_singleton_dimensions_are_squeezed(tmp_path, extra):
    scan = read_scan(saved(tmp_path, image(voxels(shape=(48, 48, 48, *extra)))))
    assert scan.data.shape == scan.grid.shape == (48, 48, 48)
    assert nib.Nifti1Header(scan.header).get_data_shape() == (48, 48, 48)


@pytest.mark.parametrize(("unit", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_units_become_millimetres(tmp_path, unit, mm):
    affine = np.diag([1 / mm, 1 / mm, 1 / mm, 1.0]) @ AFFINE
    scan = read_scan(patched(tmp_path, image(affine=affine), xyzt_units=unit | 8))
    np.testing.assert_allclose(scan.grid.space_from_vox, AFFINE, rtol=1e-5)
    header = nib.Nifti1Header(scan.header)
    np.testing.assert_allclose(header.get_best_affine(), AFFINE, rtol=1e-5)
    assert header.get_xyzt_units() == ("mm", "sec")


def test_sform_wins_over_qform_and_the_difference_is_told(tmp_path):
    img = image()
    moved = AFFINE.copy()
    moved[0, 3] += 30
    img.set_qform(moved, code=1)
    img.set_sform(AFFINE, code=2)
    scan = read_scan(saved(tmp_path, img))
    np.testing.assert_allclose(scan.grid.space_from_vox, AFFINE)
    assert "30.0 mm" in scan.warnings[0]


def test_qform_counts_where_there_is_no_sform(tmp_path):
    turned = AFFINE.copy()
    turned[:3, :3] = Rotation.from_euler("y", 25, degrees=True).as_matrix() * 4
    img = image()
    img.set_qform(turned, code=1)
    img.set_sform(None, code=0)
    scan = read_scan(saved(tmp_path, img))
    np.testing.assert_allclose(scan.grid.space_from_vox, turned, atol=1e-4)
    assert scan.warnings == ()


def test_extensions_of_the_header_are_passed_over(tmp_path):
    img = image()
    img.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"x" * 3000))
    np.testing.assert_array_equal(read_scan(saved(tmp_path, img, "a.nii.gz")).data, voxels())


def test_a_url_is_read_like_a_path(tmp_path):
    path = saved(tmp_path, name="a.nii.gz")
    with fsspec.open("memory://study/a.nii.gz", "wb") as file:
        file.write(path.read_bytes())
    scan = read_scan("memory://study/a.nii.gz")
    assert scan.sha256 == read_scan(path).sha256
    refused("memory://study/b.nii.gz", errors.MissingScanError)


def test_gzip_of_several_members_is_read_whole(tmp_path):
    raw = saved(tmp_path).read_bytes()
    path = tmp_path / "members.nii.gz"
    path.write_bytes(gzip.compress(raw[:9000]) + gzip.compress(raw[9000:]))
    np.testing.assert_array_equal(read_scan(path).data, voxels())


# What is refused: the file


def test_missing_files_and_dangling_links_are_refused(tmp_path):
    refused(tmp_path / "no.nii.gz", errors.MissingScanError, "no such file")
    link = tmp_path / "link.nii.gz"
    link.symlink_to(tmp_path / "annex")
    refused(link, errors.MissingScanError, "datalad get")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (gzip.compress(b""), "empty inside"),
        (b"\x89PNG\r\n\x1a\n" * 99, "not an image"),
        (b"hi", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (gzip.compress(b"a letter"), "not an image"),
        (b"\x1f\x8b" + bytes(500), "gzip stream is damaged"),
    ],
    ids=["empty", "empty gzip", "PNG", "two bytes", "git-lfs pointer", "letter", "damaged gzip"],
)
def test_files_that_are_no_image_are_refused(tmp_path, content, word):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    refused(path, errors.UnreadableScanError, word)


def test_paths_that_cannot_be_opened_are_refused(tmp_path):
    saved(tmp_path)
    refused(str(tmp_path / "a\0b.nii"), errors.UnreadableScanError)
    refused(tmp_path / ("x" * 300), errors.UnreadableScanError)
    refused(tmp_path / "scan.nii" / "below.nii", errors.UnreadableScanError)
    refused("no-such-protocol://a.nii", errors.UnreadableScanError)
    os.mkfifo(tmp_path / "pipe.nii")
    refused(tmp_path / "pipe.nii", errors.UnreadableScanError, "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_files_are_refused(tmp_path):
    path = saved(tmp_path)
    path.chmod(0)
    refused(path, errors.UnreadableScanError, "grant")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mgh", "scan.mgz"])
@pytest.mark.parametrize("kept", [0.0005, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, name, kept):
    path = saved(tmp_path, image(kind=nib.MGHImage if ".mg" in name else nib.Nifti1Image), name)
    raw = path.read_bytes()
    path.write_bytes(raw[: max(40, int(kept * len(raw)))])
    refused(path, errors.TruncatedScanError)


def test_a_gzip_that_lost_only_its_checksum_is_refused(tmp_path):
    path = saved(tmp_path, name="scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, errors.TruncatedScanError)


def test_a_flipped_bit_in_a_gzip_is_refused(tmp_path):
    path = tmp_path / "scan.nii.gz"
    raw = bytearray(gzip.compress(saved(tmp_path).read_bytes(), compresslevel=0))
    raw[5000] ^= 1
    path.write_bytes(raw)
    refused(path, errors.UnreadableScanError, "damaged")


def test_a_file_that_goes_on_after_its_voxels_is_refused(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(saved(tmp_path).read_bytes() + bytes(3 * 2**20)))
    refused(path, errors.UnreadableScanError, "after its last voxel")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_header_that_promises_more_than_the_file_holds_is_refused_before_memory_is_taken(tmp_path, name, monkeypatch):
    path = tmp_path / name
    size, spacing = [3, 1000, 1000, 1000, 1, 1, 1, 1], [1, 0.25, 0.25, 0.25, 0, 0, 0, 0]
    quarter = rows(np.eye(4)[:3] / 4)
    raw = patched(tmp_path, name="raw.nii", dim=size, pixdim=spacing, **quarter).read_bytes()[:20_000]
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("memory was taken"))
    refused(path, errors.TruncatedScanError, "promises 2,000,000,000 bytes")


def test_a_header_that_promises_more_than_a_head_needs_is_refused(tmp_path):
    refused(patched(tmp_path, dim=[3, 2000, 2000, 2000, 1, 1, 1, 1]), errors.OversizeScanError, "8,000,000,000")
    refused(patched(tmp_path, vox_offset=1e12), errors.OversizeScanError)


def test_a_header_that_promises_more_than_memory_holds_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path)

    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr("hypodask.scan.read.np.empty", refuse)
    refused(path, errors.OversizeScanError, "memory")


# What is refused: the header


def test_scans_without_transform_are_refused(tmp_path):
    refused(patched(tmp_path, sform_code=0, qform_code=0), errors.NoTransformError, "sform_code")
    refused(patched(tmp_path, magic=b""), errors.NoTransformError, "ANALYZE")


def test_mgh_without_good_directions_is_refused(tmp_path):
    path = saved(tmp_path, image(kind=nib.MGHImage), "scan.mgh")
    raw = bytearray(path.read_bytes())
    raw[28:30] = b"\0\0"
    path.write_bytes(raw)
    refused(path, errors.NoTransformError, "goodRASFlag")


def test_mgh_whose_voxel_size_contradicts_its_directions_is_refused(tmp_path):
    path = saved(tmp_path, image(kind=nib.MGHImage), "scan.mgh")
    raw = bytearray(path.read_bytes())
    raw[30:34] = struct.pack(">f", -4.0)
    path.write_bytes(raw)
    refused(path, errors.VoxelSizeError, "positive")
    raw[30:34] = struct.pack(">f", 4.0)
    raw[42:46] = struct.pack(">f", 1.5)
    path.write_bytes(raw)
    refused(path, errors.VoxelSizeError, "must agree")


def test_damaged_headers_are_refused(tmp_path):
    refused(patched(tmp_path, magic=b"ni1"), errors.UnreadableScanError, ".hdr/.img")
    refused(patched(tmp_path, dim=[9, 48, 48, 48, 1, 1, 1, 1]), errors.UnreadableScanError, "9 dimensions")
    refused(patched(tmp_path, dim=[3, 48, 0, 48, 1, 1, 1, 1]), errors.UnreadableScanError, "at least 1")
    refused(patched(tmp_path, dim=[3, 48, -48, 48, 1, 1, 1, 1]), errors.UnreadableScanError, "at least 1")
    refused(patched(tmp_path, vox_offset=0), errors.UnreadableScanError, "byte 0")
    refused(patched(tmp_path, vox_offset=np.nan), errors.UnreadableScanError)
    refused(patched(tmp_path, datatype=0), errors.UnreadableScanError, "datatype 0")


def test_images_that_are_not_one_number_per_voxel_are_refused(tmp_path):
    rgb = np.zeros((48, 48, 48), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(saved(tmp_path, image(rgb)), errors.NotScalarError, "RGB")
    refused(saved(tmp_path, image(voxels("complex64"))), errors.NotScalarError, "complex")
    refused(saved(tmp_path, image(voxels(shape=(48, 48, 48, 3)))), errors.NotScalarError, "(48, 48, 48, 3)")
    refused(saved(tmp_path, image(voxels(shape=(48, 48, 48, 1, 2)))), errors.NotScalarError)
    many = saved(tmp_path, image(voxels(shape=(48, 48, 48, 2)), kind=nib.MGHImage), "a.mgz")
    refused(many, errors.NotScalarError)


def rows(matrix):
    return {f"srow_{axis}": row for axis, row in zip("xyz", matrix, strict=True)}


@pytest.mark.parametrize(
    ("linear", "word"),
    [
        ([[4, 0, 0], [0, 4, 0], [0, 0, 0]], "singular"),
        ([[4, 4, 0], [0, 0, 0], [0, 0, 4]], "singular"),
        ([[4, 0.1, 0], [0, 4, 0], [0, 0, 4]], "sheared"),
        ([[4, np.nan, 0], [0, 4, 0], [0, 0, 4]], "NaN"),
        ([[4, 0, 0], [0, np.inf, 0], [0, 0, 4]], "infinity"),
        ([[-4, 0, 0], [0, 4, 0], [0, 0, 4]], "mirror"),
    ],
)
def test_affines_that_place_no_rectangular_voxels_are_refused(tmp_path, linear, word):
    matrix = np.column_stack([linear, [-94, -94, -94]])
    refused(patched(tmp_path, sform_code=1, qform_code=1, **rows(matrix)), errors.BadTransformError, word)


def test_an_affine_rounded_to_four_decimals_is_not_sheared(tmp_path):
    turned = AFFINE.copy()
    turned[:3, :3] = (Rotation.from_euler("xyz", [11, 7, 5], degrees=True).as_matrix() * 4).round(4)
    assert read_scan(saved(tmp_path, image(affine=turned))).grid.spacing_mm == pytest.approx((4, 4, 4), abs=1e-3)


def test_far_away_and_impossible_placements_are_refused(tmp_path):
    far = AFFINE.copy()
    far[0, 3] = 1e9
    refused(saved(tmp_path, image(affine=far)), errors.BadTransformError, "centre")
    refused(patched(tmp_path, sform_code=0, qform_code=1, quatern_b=5), errors.BadTransformError, "rotation")


@pytest.mark.parametrize("size", [0.0, -4.0, np.nan])
def test_voxel_sizes_that_are_not_positive_are_refused(tmp_path, size):
    refused(patched(tmp_path, pixdim=[1, 4, size, 4, 0, 0, 0, 0]), errors.VoxelSizeError, "pixdim")


def test_a_pixdim_that_contradicts_the_affine_is_refused(tmp_path):
    refused(patched(tmp_path, pixdim=[1, 4, 4.1, 4, 0, 0, 0, 0]), errors.VoxelSizeError, "must agree")


@pytest.mark.parametrize(("mm", "shape"), [(0.1, (900, 9, 9)), (7.0, (30, 30, 30)), (4000.0, (48, 48, 48))])
def test_absurd_voxel_sizes_are_refused(tmp_path, mm, shape):
    affine = np.diag([mm, mm, mm, 1.0])
    refused(saved(tmp_path, image(voxels("uint8", shape), affine)), errors.VoxelSizeError, "voxels measure")


def test_an_unknown_unit_is_refused(tmp_path):
    refused(patched(tmp_path, xyzt_units=5), errors.VoxelSizeError, "unit")


@pytest.mark.parametrize("shape", [(48, 48, 1), (48, 48), (48, 48, 19), (130, 30, 30)])
def test_absurd_fields_of_view_are_refused(tmp_path, shape):
    refused(saved(tmp_path, image(voxels("uint8", shape))), errors.FieldOfViewError, "field of view")


def test_thick_slices_are_read(tmp_path):
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    assert read_scan(saved(tmp_path, image(voxels("uint8", (100, 100, 24)), affine))).grid.extent_mm[2] == 120


# What is refused: the voxels


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path, bad):
    data = voxels("float32")
    data[3, 4, 5:7] = bad
    refused(saved(tmp_path, image(data)), errors.NonFiniteError, "2 of 110,592")


def test_scales_that_lead_out_of_float32_are_refused(tmp_path):
    refused(patched(tmp_path, scl_slope=3e38), errors.NonFiniteError, "single precision")
    refused(patched(tmp_path, scl_slope=2, scl_inter=np.nan), errors.NonFiniteError, "scl_inter")


def test_constant_images_are_refused(tmp_path):
    refused(saved(tmp_path, image(np.full((48, 48, 48), 7, dtype="int16"))), errors.ConstantImageError, "all 110,592")
    refused(patched(tmp_path, scl_slope=1e-30, scl_inter=500), errors.ConstantImageError, "500")


# Any damage


@given(kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage]), gzipped=st.booleans(), data=st.data())
def test_damaged_headers_give_a_scan_or_a_scan_error_and_nothing_else(tmp_path_factory, kind, gzipped, data):
    path = tmp_path_factory.getbasetemp() / "damaged"
    raw = bytearray(image(voxels("uint8"), kind=kind).to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 340))
        raw[place : place + 2] = data.draw(st.binary(min_size=2, max_size=2))
    path.write_bytes(gzip.compress(raw, compresslevel=1) if gzipped else raw)
    with contextlib.suppress(errors.ScanError):
        scan = read_scan(path)
        assert np.isfinite(scan.data).all()
        assert len(scan.header) == int.from_bytes(scan.header[:4], "little")


# DICOM


def stand_in_converter(folder, script):
    """A program called dcm2niix that does what a test needs; the output folder is its eighth argument."""
    program = folder / "bin" / "dcm2niix"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    return str(program.parent) + os.pathsep + os.environ["PATH"]


@pytest.fixture
def series(tmp_path):
    """A folder that looks like a DICOM series to whoever does not open its files."""
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.dcm").write_bytes(bytes(128) + b"DICM" + bytes([number]))
    return folder


def test_a_folder_zip_or_file_of_dicom_goes_through_the_converter(tmp_path, series, monkeypatch):
    monkeypatch.setenv("PATH", stand_in_converter(tmp_path, f"cp {saved(tmp_path)} $8/t1.nii\n"))
    archive = tmp_path / "series.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in series.iterdir():
            packed.write(file, f"../{file.name}")
    for path in (series, archive, series / "0.dcm"):
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.data, voxels())
        assert scan.source == str(path)
    assert read_scan(archive).sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()


def test_digest_of_a_folder_knows_contents_but_not_names(tmp_path, series, monkeypatch):
    monkeypatch.setenv("PATH", stand_in_converter(tmp_path, f"cp {saved(tmp_path)} $8/t1.nii\n"))
    before = read_scan(series).sha256
    (series / "0.dcm").rename(series / "renamed.dcm")
    assert read_scan(series).sha256 == before
    (series / "1.dcm").write_bytes(b"other")
    assert read_scan(series).sha256 != before


def test_a_folder_without_one_series_is_refused(tmp_path, series, monkeypatch):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", errors.UnreadableScanError, "empty")
    monkeypatch.setenv("PATH", stand_in_converter(tmp_path, f"[ -e {tmp_path}/two ] && touch $8/a.nii $8/b.nii\n"))
    refused(series, errors.UnreadableScanError, "found no image")
    (tmp_path / "two").touch()
    refused(series, errors.UnreadableScanError, "2 volumes")


def test_without_a_converter_the_message_says_what_to_install(series, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(__import__("sys").modules, "dcm2niix", None)
    refused(series, errors.UnreadableScanError, "hypodask[dicom]")


def test_a_zip_that_is_no_zip_or_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "scan.zip"
    path.write_bytes(b"PK\3\4 and no more")
    refused(path, errors.UnreadableScanError, "zip")
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a", b"much")
    monkeypatch.setattr("hypodask.scan.dicom._MAX_UNPACKED_BYTES", 3)
    refused(path, errors.OversizeScanError, "unpacks")


@pytest.mark.skipif(not (shutil.which("dcm2niix") or find_spec("dcm2niix")), reason="dcm2niix is not installed")
def test_a_dicom_series_gives_its_voxels_and_place(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write_series(sitk, tmp_path / "dicom")
    scan = read_scan(tmp_path / "dicom")
    assert sorted(scan.grid.extent_mm) == [120, 128, 128]
    assert scan.data.max() == voxels(shape=(32, 32, 30)).max()


def write_series(sitk, folder):
    """30 axial slices of 4 mm as DICOM files."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, plane in enumerate(voxels(shape=(30, 32, 32))):
        img = sitk.GetImageFromArray(plane[None])
        img.SetSpacing((4.0, 4.0, 4.0))
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"1.2.826.0.1.3.{k}",
            "0008|0020": "20200101",
            "0008|0030": "120000",
            "0008|103e": "t1",
            "0018|0050": "4",
            "0020|000d": "1.2.826.0.1.1",
            "0020|000e": "1.2.826.0.1.2",
            "0020|0011": "1",
            "0020|0013": str(k + 1),
            "0020|0032": f"-64\\-64\\{4 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            img.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:03}.dcm"))
        writer.Execute(img)


# Real scans


@pytest.mark.validation
@pytest.mark.parametrize("folder", ["scans", "scans_stripped", "scans_thick", "scans_2mm", "not_a_head"])
def test_real_scans_equal_what_nibabel_reads(validation_data, folder):
    paths = sorted((validation_data / folder).glob("*.*gz"))
    assert paths
    for path in paths:
        scan, reference = read_scan(path), by_nibabel(path)
        np.testing.assert_allclose(scan.data, reference.get_fdata(dtype=np.float32), rtol=1e-6)
        np.testing.assert_allclose(scan.grid.space_from_vox, reference.affine, atol=1e-6)
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(scan.header))
        np.testing.assert_allclose(header.get_best_affine(), reference.affine, atol=1e-4)
        assert scan.warnings == ()
