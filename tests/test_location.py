"""A location means the same place by path or by URL, and never shows half a file."""

import os
import pickle
from pathlib import Path

import pytest

from hypodask.location import Location


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    place = Location(str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}")
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
