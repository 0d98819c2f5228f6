"""A scan's store is read back as it was written, by us and by others, and says when it cannot be."""

import io
import json

import nibabel as nib
import niizarr
import numpy as np
import pytest
import zarr

from hypodask.core.errors import StoreError
from hypodask.core.grid import Grid
from hypodask.core.structures import HYPOTHALAMUS_SIDES
from hypodask.files.digests import write_sealed
from hypodask.files.location import Location
from hypodask.scan import Scan
from hypodask.storage.store import (
    delete_store,
    mark_done,
    read_done,
    read_label_map,
    read_label_table,
    read_record,
    read_stored_scan,
    verify_store,
    write_label_map,
    write_record,
    write_scan,
)
from hypodask.study.cohort import Entry, store_path

SHAPE = (20, 24, 28)
OBLIQUE = np.array([[-0.9, 0.1, 0.05, 80.0], [0.1, 1.1, -0.2, -90.5], [0.0, 0.2, 1.2, -70.25], [0, 0, 0, 1]])
DAMAGED = "is damaged: .*; delete the store and run the scan again"


def scan_of(dtype: str = "int16", *, header: nib.Nifti1Header | None = None, slope: float = 2.0) -> Scan:
    voxels = np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)
    raw = b"" if header is None else header.binaryblock
    return Scan(voxels, Grid(SHAPE, OBLIQUE, "scanner"), slope, -1.0, raw, "/data/Jane_Doe.nii", "ab" * 32)


def write_done(url: str, scan: Scan) -> None:
    """A finished store with nothing but a scan."""
    write_scan(url, scan)
    mark_done(url, {})


def labels_of(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    label_map = np.zeros(shape, np.uint8)
    label_map[4:9, 5:9, 6:9] = 1
    label_map[9:12, 5:9, 6:9] = 2
    return label_map


def content_of(place: Location) -> bytes:
    return b"".join(place.child(name).read() for name in place.files())


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path):
    if request.param == "folder":
        yield str(tmp_path / "sub 01.nii.zarr")
    else:
        place = Location("memory://tests").child(tmp_path.name)
        yield place.child("sub-01.nii.zarr").url
        place.delete()


@pytest.fixture
def done(tmp_path):
    url = str(tmp_path / "sub-01.nii.zarr")
    write_scan(url, scan_of())
    write_label_map(url, "hypothalamus_scan", labels_of(), Grid(SHAPE, OBLIQUE, "scanner"), HYPOTHALAMUS_SIDES)
    write_record(url, "alignment", {"score": 0.9})
    mark_done(url, {"input_sha256": "ab" * 32})
    return Location(url)


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "uint16", "int32", "float32", ">f8"])
def test_a_scan_is_read_back_voxel_for_voxel_in_its_own_type(tmp_path, dtype):
    scan = scan_of(dtype)
    write_done(str(tmp_path / "s"), scan)
    back = read_stored_scan(str(tmp_path / "s"))
    assert back.stored.dtype == scan.stored.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back.stored, scan.stored)
    np.testing.assert_array_equal(back.data, scan.data)


def test_a_scan_keeps_its_oblique_affine_to_the_last_bit_wherever_it_is_stored(url):
    write_done(url, scan_of())
    back = read_stored_scan(url)
    np.testing.assert_array_equal(back.grid.space_from_vox, OBLIQUE)
    assert (back.grid.space, back.slope, back.intercept, back.sha256) == ("scanner", 2.0, -1.0, "ab" * 32)


@pytest.mark.parametrize("dtype", ["int16", ">f4"])
def test_the_nifti_zarr_reader_sees_the_same_voxels_and_affine(url, dtype):
    scan = scan_of(dtype)
    write_scan(url, scan)
    image = niizarr.zarr2nii(zarr.open_group(Location(url).zarr_store(read_only=True), mode="r"))
    np.testing.assert_array_equal(np.asarray(image.dataobj), scan.stored)
    np.testing.assert_allclose(image.header.get_best_affine(), OBLIQUE, atol=1e-5)


def test_the_slope_is_in_the_stored_header(url):
    # nibabel takes it out of the header of an image it makes, so the raw header is asked.
    write_done(url, scan_of())
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(read_stored_scan(url).header))
    assert header.get_slope_inter() == (2.0, -1.0)


def test_the_nifti_zarr_reader_sees_a_label_map_in_its_own_space(done):
    image = niizarr.zarr2nii(done.child("labels", "hypothalamus_scan").url)
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels_of())
    np.testing.assert_allclose(image.header.get_best_affine(), OBLIQUE, atol=1e-5)


def test_plain_zarr_sees_the_voxels_in_nifti_zarr_order(done):
    array = zarr.open_array(done.child("0").url, mode="r")
    np.testing.assert_array_equal(array[...].T, scan_of().stored)
    assert array.metadata.dimension_names == ("z", "y", "x")


def test_the_ome_zarr_reader_finds_the_image_and_its_labels(done):
    ome_io = pytest.importorskip("ome_zarr.io")
    reader = pytest.importorskip("ome_zarr.reader")
    image, *others = reader.Reader(ome_io.parse_url(done.url))()
    np.testing.assert_array_equal(np.asarray(image.data[0]).T, scan_of().stored)
    label = next(node for node in others if "color" in node.metadata)
    np.testing.assert_array_equal(np.asarray(label.data[0]).T, labels_of())
    assert label.metadata["properties"][1]["structure"] == "hypothalamus_left"


def test_a_volume_of_many_chunks_is_one_file(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 9, (130, 20, 129)).astype(np.uint8)
    write_done(str(tmp_path), Scan(voxels, Grid(voxels.shape, np.eye(4), "scanner")))
    array = zarr.open_array(tmp_path / "0", mode="r")
    assert (array.chunks, array.nchunks) == ((128, 20, 128), 4)
    assert [file.name for file in (tmp_path / "0" / "c").rglob("*") if file.is_file()] == ["0"]
    np.testing.assert_array_equal(read_stored_scan(str(tmp_path)).stored, voxels)


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_free_text_of_the_header_is_dropped(tmp_path, kind, endianness):
    header = kind(endianness=endianness)
    header["descrip"], header["aux_file"], header["intent_name"] = b"Jane Doe", b"Jane Doe", b"Jane Doe"
    scan = scan_of(header=header)
    assert scan.header.count(b"Jane") == 3
    write_scan(str(tmp_path), scan)
    assert content_of(Location(str(tmp_path))).count(b"Jane") == 0
    np.testing.assert_allclose(niizarr.zarr2nii(str(tmp_path)).header.get_best_affine(), OBLIQUE, atol=1e-5)


def test_extensions_of_the_header_are_dropped(tmp_path):
    image = nib.Nifti1Image(scan_of().stored, OBLIQUE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born 1950"))
    raw = image.to_bytes()[: 352 + 32]
    scan = Scan(scan_of().stored, Grid(SHAPE, OBLIQUE, "scanner"), header=raw)
    assert b"born 1950" in scan.header
    write_done(str(tmp_path), scan)
    assert b"born 1950" not in read_stored_scan(str(tmp_path)).header


def test_where_the_scan_was_read_from_is_not_in_the_store(done):
    assert b"Jane" not in content_of(done)


def test_a_label_map_is_read_back_with_its_own_grid(url):
    slab = Grid((8, 9, 10), np.diag([0.5, 0.5, 0.5, 1.0]), "acpc")
    write_scan(url, scan_of())
    write_label_map(url, "hypothalamus_slab", np.zeros((8, 9, 10), np.uint8), slab, HYPOTHALAMUS_SIDES)
    write_label_map(url, "hypothalamus_scan", labels_of(), Grid(SHAPE, OBLIQUE, "scanner"), HYPOTHALAMUS_SIDES)
    mark_done(url, {})
    label_map, grid = read_label_map(url, "hypothalamus_slab")
    assert (label_map.any(), label_map.shape, grid.space, grid.spacing_mm) == (False, (8, 9, 10), "acpc", (0.5,) * 3)
    np.testing.assert_array_equal(read_label_map(url, "hypothalamus_scan")[0], labels_of())
    listed = json.loads(Location(url).child("labels", "zarr.json").read())["attributes"]["ome"]["labels"]
    assert listed == ["hypothalamus_scan", "hypothalamus_slab"]


def test_records_hold_plain_values_and_null_for_what_was_not_measured(url):
    write_record(url, "alignment", {"matrix": np.eye(2), "score": np.float32(0.5), "quality": float("nan")})
    mark_done(url, {})
    assert read_record(url, "alignment") == {"matrix": [[1.0, 0.0], [0.0, 1.0]], "score": 0.5, "quality": None}


def test_a_missing_or_broken_record_says_what_to_do(tmp_path, done):
    with pytest.raises(StoreError, match="run the scan again"):
        read_record(str(tmp_path / "none"), "alignment")
    with pytest.raises(StoreError, match=r"has no quality\.json"):
        read_record(done.url, "quality")
    sound = done.child("alignment.json").read()
    for changed in (b"{", sound.replace(b"0.9", b"0.8")):
        done.child("alignment.json").write(changed)
        with pytest.raises(StoreError, match=r"alignment\.json is damaged"):
            read_record(done.url, "alignment")


@pytest.mark.parametrize("content", [b"[]", b"null", b"[" * 200_000, b"{"])
def test_a_done_mark_of_another_kind_is_an_error_also_where_its_digest_is_right(done, content):
    write_sealed(done.child("done.json"), content)
    with pytest.raises(StoreError, match=r"done\.json is damaged"):
        read_stored_scan(done.url)
    assert "cannot be checked" in verify_store(done.url)[0]


def test_a_done_mark_that_was_changed_or_lost_its_digest_is_an_error(done):
    sound = done.child("done.json").read()
    done.child("done.json").write(sound.replace(b"abab", b"abac"))
    with pytest.raises(StoreError, match="does not match its digest"):
        read_label_map(done.url, "hypothalamus_scan")
    done.child("done.json").write(sound)
    done.child("done.json.sha256").delete()
    with pytest.raises(StoreError, match="has no digest beside it"):
        read_done(done.url)


def test_the_label_table_is_read_back_with_the_label_map(done):
    assert read_label_table(done.url, "hypothalamus_scan") == HYPOTHALAMUS_SIDES


def test_what_lies_beside_a_store_and_what_a_store_links_to_is_not_touched(tmp_path):
    for name in ("other", "a.nii.zarr", "a"):
        write_done(str(tmp_path / name), scan_of())
    out = Location(str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "linked.nii.zarr").symlink_to(tmp_path / "other")
    before = Location(str(tmp_path)).files()
    delete_store(out.child("linked.nii.zarr"))
    delete_store(str(tmp_path / "a::b"))
    after = Location(str(tmp_path)).files()
    assert before.keys() - after.keys() == {"out/linked.nii.zarr"}


def test_a_finished_store_is_sound_and_says_what_made_it(url):
    write_scan(url, scan_of())
    assert read_done(url) is None
    assert verify_store(url) == ["done.json is missing: the scan was interrupted; run it again"]
    mark_done(url, {"input_sha256": "ab" * 32})
    done = read_done(url)
    assert (done["input_sha256"], done["chunks"], set(done["files"])) == (
        "ab" * 32,
        2,
        {"zarr.json", "0/zarr.json", "0/c/0/0/0", "nifti/zarr.json", "nifti/c/0"},
    )
    assert verify_store(url) == []


def test_a_lost_chunk_is_an_error_and_never_background(done):
    done.child("labels/hypothalamus_scan/0/c/0/0/0").delete()
    with pytest.raises(
        StoreError, match="lacks labels/hypothalamus_scan/0/c/0/0/0; delete the store and run the scan again"
    ):
        read_label_map(done.url, "hypothalamus_scan")
    done.child("0/c/0/0/0").delete()
    with pytest.raises(StoreError, match="lacks 0/c/0/0/0"):
        read_stored_scan(done.url)


def test_every_altered_byte_of_the_voxels_is_noticed_on_reading(done):
    shard = done.child("0/c/0/0/0")
    sound = shard.read()
    for position in np.random.default_rng(1).integers(0, len(sound), 40):
        altered = bytearray(sound)
        altered[position] ^= 0x10
        shard.write(bytes(altered))
        with pytest.raises(StoreError, match=DAMAGED):
            read_stored_scan(done.url)


@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.99])
def test_a_truncated_shard_is_noticed_on_reading_and_by_its_size(done, kept):
    shard = done.child("0/c/0/0/0")
    content = shard.read()
    shard.write(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(StoreError, match="delete the store and run the scan again"):
        read_stored_scan(done.url)
    assert any("0/c/0/0/0 has" in problem for problem in verify_store(done.url, digests=False))


def test_verification_names_what_is_missing_altered_or_added(done):
    done.child("nifti/c/0").delete()
    done.child("alignment.json").write(done.child("alignment.json").read().replace(b"0.9", b"0.8"))
    done.child("labels/stray").write(b"?")
    assert verify_store(done.url) == [
        "alignment.json was altered: its sha256 differs",
        "nifti/c/0 is missing",
        "labels/stray was added after the scan was done",
    ]


def test_verification_finds_arrays_that_are_gone_with_their_metadata(done):
    done.child("labels").delete()
    assert "the arrays have 2 chunk files, not the 4 that were written" in verify_store(done.url)


def test_verification_of_nothing_or_of_nonsense_is_a_problem_and_no_crash(done, tmp_path):
    assert verify_store(str(tmp_path / "none")) == ["there is no store; run the scan again"]
    write_sealed(done.child("done.json"), b"{}")
    assert "cannot be checked" in verify_store(done.url)[0]


def test_files_that_file_systems_hide_are_no_problem(done):
    done.child("0/.nfs0001").write(b"x")
    assert verify_store(done.url) == []


def test_a_store_that_lacks_a_chunk_cannot_be_marked_as_done(tmp_path):
    url = str(tmp_path)
    write_scan(url, scan_of())
    Location(url).child("0/c/0/0/0").delete()
    with pytest.raises(StoreError, match="lacks 0/c/0/0/0"):
        mark_done(url, {})
    assert read_done(url) is None


def test_what_a_killed_worker_left_is_gone_before_a_scan_is_written(url):
    write_label_map(url, "half", labels_of(), Grid(SHAPE, OBLIQUE, "scanner"), HYPOTHALAMUS_SIDES)
    Location(url).child("0/c/0/0/0.1234.partial").write(b"half a shard")
    write_scan(url, scan_of())
    mark_done(url, {})
    assert not any("half" in name or "partial" in name for name in Location(url).files())
    assert verify_store(url) == []


def test_a_store_is_deleted_as_a_whole_its_done_mark_first(done, monkeypatch):
    deleted = []
    delete = Location.delete
    monkeypatch.setattr(Location, "delete", lambda place: (deleted.append(place.url), delete(place)))
    delete_store(done.url)
    assert deleted[0].endswith("done.json")
    assert not done.exists()
    delete_store(done.url)


def test_reading_where_there_is_no_store_of_ours_says_so(tmp_path):
    with pytest.raises(StoreError, match="there is no finished store at"):
        read_stored_scan(str(tmp_path / "none"))
    zarr.create_group(tmp_path / "other")
    mark_done(str(tmp_path / "other"), {})
    with pytest.raises(StoreError, match="not written by hypodask"):
        read_stored_scan(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("scan", "site", "path"),
    [
        ("sub-01_ses-2_run-1", "", "scans/sub-01_ses-2_run-1.nii.zarr"),
        ("sub-01", "Ulm", "scans/Ulm/sub-01.nii.zarr"),
        ("sub-01", "../São Paulo / 2", "scans/São-Paulo-2/sub-01.nii.zarr"),
    ],
)
def test_a_store_lies_below_its_site(scan, site, path):
    assert store_path(Entry(scan=scan, path="", site=site, participant_id="", session="", run="")) == path


@pytest.mark.parametrize("scan", ["", "..", "a/b", "a\\b", ".hidden"])
def test_a_scan_that_cannot_be_a_file_name_is_refused(scan):
    with pytest.raises(StoreError, match="cannot name its store"):
        store_path(Entry(scan=scan, path="", site="", participant_id="", session="", run=""))
