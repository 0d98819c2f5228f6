"""A location means the same place by path or by URL, and never shows half a file."""

import os
import pickle
from pathlib import Path

import pytest
from array_types import unchecked

from hypodask.core.errors import LocationError
from hypodask.files.location import Location, absolute


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    place = Location(str(tmp_path) if request.param == "folder" else "memory://tests").child(tmp_path.name)
    yield place
    place.delete()


def test_a_file_is_written_over_and_read_back(place):
    place.child("a", "b.txt").write(b"one")
    place.child("a", "b.txt").write(b"three")
    assert place.child("a/b.txt").read() == b"three"
    assert place.files() == {"a/b.txt": 5}
    assert (place.child("a", "b.txt").size(), place.child("none").size()) == (5, 0)


def test_names_are_those_directly_below(place):
    assert place.names() == []
    for name in ("a/b", "a/c", "d"):
        place.child(name).write(b"")
    assert place.names() == ["a", "d"]


def test_a_file_is_created_only_once(place):
    place.child("lock").create(b"1")
    with pytest.raises(FileExistsError):
        place.child("lock").create(b"2")
    assert place.child("lock").read() == b"1"


def test_deleting_takes_the_whole_tree_and_does_not_mind_nothing(place):
    place.child("a/b").write(b"")
    place.child("a").delete()
    place.child("a").delete()
    assert not place.child("a").exists()


def test_reading_what_is_not_there_raises_file_not_found(place):
    with pytest.raises(FileNotFoundError):
        place.child("none").read()


def test_a_failed_write_leaves_the_older_file(tmp_path, monkeypatch):
    place = Location(str(tmp_path)).child("a")
    place.write(b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        place.write(b"new")
    assert place.read() == b"old"
    assert Location(str(tmp_path)).names() == ["a"]


def test_a_relative_path_is_made_absolute_so_that_workers_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Location("out").url == str(tmp_path / "out")
    assert Location(f"file://{tmp_path}/out").url == Location(str(tmp_path / "out/")).url
    assert Location("memory://a/b/").url == "memory://a/b"


def test_a_path_object_will_do(tmp_path):
    assert Location(str(Path(tmp_path))).folder == tmp_path


def test_only_the_url_is_pickled(place):
    place.child("a").write(b"1")
    assert pickle.loads(pickle.dumps(place)) == place  # noqa: S301


@pytest.mark.parametrize("odd", ["study::v2", "study[AB]", "study*", "study?", "~study", "a b", "study#1", "s%20"])
def test_a_name_with_signs_in_it_is_only_a_name(tmp_path, odd):
    # Chains are no part of a URL.
    for base in (str(tmp_path), *(["memory://tests/odd"] if "::" not in odd else [])):
        place = Location(base)
        for name in ("study", "studyA", "studyB", odd):
            place.child(name, "raw.nii").write(name.encode())
        opened = Location(f"{base}/{odd}")
        assert opened.files() == {"raw.nii": len(odd)}
        opened.child("raw.nii").delete()
        assert place.files().keys() == {"study/raw.nii", "studyA/raw.nii", "studyB/raw.nii"}
        for name in place.names():
            place.child(name).delete()


def test_nothing_but_what_lies_inside_is_deleted(tmp_path):
    for base in (str(tmp_path / "out"), "memory://tests/inside"):
        place = Location(base)
        place.child("a").write(b"1")
        with pytest.raises(LocationError, match="is not inside an output that was opened"):
            place.delete()
        for name in ("", "..", "a/../../b", ".", "a//b", "/etc", "a\0b"):
            with pytest.raises(LocationError, match="leads out of"):
                place.child(name)
        assert place.child("a").exists()
        place.child("a").delete()


def test_links_inside_are_never_written_or_deleted_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("1")
    out = tmp_path / "out"
    out.mkdir()
    (out / "folder").symlink_to(tmp_path / "elsewhere")
    (out / "file").symlink_to(tmp_path / "elsewhere" / "a")
    place = Location(str(out))
    for call in (
        lambda: place.child("folder", "a").delete(),
        lambda: place.child("folder", "a").write(b"2"),
        lambda: place.child("folder", "b").create(b"2"),
        lambda: place.child("folder", "b", "c").write_objects({"d": b"2"}),
        lambda: place.child("folder", "b").zarr_store(),
    ):
        with pytest.raises(LocationError, match="is a link, and nothing is written or deleted through it"):
            call()
    place.child("file").write(b"2")
    place.child("folder").delete()
    assert place.files() == {"file": 1}
    assert {path.name: path.read_text() for path in (tmp_path / "elsewhere").iterdir()} == {"a": "1"}


def test_the_output_itself_may_be_reached_by_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    place = Location(str(tmp_path / "out"))
    place.child("a", "b").write(b"1")
    place.child("a").delete()
    assert list((tmp_path / "disk").iterdir()) == []


def test_home_is_expanded_wherever_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Location("~/out").url == str(tmp_path / "out")
    assert absolute("~/out") == str(tmp_path / "out")
    assert absolute("out/~") == str(Path("out/~").absolute())


def test_a_pattern_is_looked_for_inside_a_name_that_looks_like_one(tmp_path):
    for base in (str(tmp_path), "memory://tests/pattern"):
        Location(base).child("study[AB]", "sub-1", "anat", "a_T1w.nii").write(b"")
        Location(base).child("studyA", "sub-2", "anat", "b_T1w.nii").write(b"")
        found = Location(f"{base}/study[AB]").glob("sub-*/anat/*_T1w.*")
        assert list(found) == ["sub-1/anat/a_T1w.nii"]


def test_what_a_store_of_objects_says_is_an_error_that_can_be_told(monkeypatch):
    class Refusing:
        def __getattr__(self, name: str) -> object:
            raise KeyError("NoCredentials")

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (Refusing(), "bucket/a"))
    with unchecked(), pytest.raises(OSError, match=r"s3://bucket/a cannot be reached \(KeyError.* credentials"):
        Location("s3://bucket/a").read()
