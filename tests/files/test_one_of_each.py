"""The whole package writes files, computes digests and makes JSON files in one place each."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hypodask
from hypodask.core.errors import StoreError
from hypodask.files.digests import sha256_of, sha256_of_file
from hypodask.files.encoding import from_json, to_json

PACKAGE = Path(hypodask.__file__).parent
MODULES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
}

WRITERS = {
    "files/location.py",  # the writer itself
    "cluster/monitoring.py",  # a file of the kernel, by which the peak of the memory begins anew
    "scan/dicom.py",  # copies of DICOM files in a temporary folder
}


def found(names: set[str]) -> Iterator[tuple[str, str]]:
    """Module and name of every use of one of these names, or of a string that is one of them."""
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            given = (getattr(node, kind, None) for kind in ("id", "attr", "name", "value"))
            yield from ((module, name) for name in given if isinstance(name, str) and name in names)


def test_files_are_written_in_one_module() -> None:
    by_hand = {"write_text", "write_bytes", "NamedTemporaryFile", "mkstemp", "fsync", "savez", "w", "wb", "x", "xb"}
    # The letters are also names of axes.
    writing = {module for module, name in found(by_hand) if name not in ("w", "x")}
    opening = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "open"
        if any(isinstance(one, ast.Constant) and str(one.value)[:1] in ("w", "x", "a") for one in node.args)
    }
    assert writing | opening <= WRITERS


def test_digests_are_computed_in_one_module() -> None:
    assert {module for module, _ in found({"hashlib"})} == {"files/digests.py"}


def test_only_locations_tell_a_url_from_a_path() -> None:
    assert {module for module, _ in found({"://"})} == {"files/location.py"}
    assert {module for module, _ in found({"is_url"})} == {"files/location.py"}


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"scan")
    with (tmp_path / "a").open("rb") as file:
        assert sha256_of(file) == sha256_of_file(tmp_path / "a") == sha256_of(b"scan")


def test_json_of_arrays_and_of_numbers_that_were_not_measured_is_read_back_as_plain_values() -> None:
    given = {"pose": np.eye(2), "score": np.float32(0.5), "low": -np.inf, "rows": ({"n": np.int64(3)}, None), "ä": "µ"}
    text = to_json(given)
    assert text.endswith(b"}\n")
    assert "µ".encode() in text
    plain = {"pose": [[1.0, 0.0], [0.0, 1.0]], "score": 0.5, "low": None, "rows": [{"n": 3}, None], "ä": "µ"}
    assert from_json(text, "a.json", "delete it") == json.loads(text) == plain


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff", b"[" * 200_000])
def test_what_is_no_json_object_is_an_error_that_names_the_file_and_the_cure(content: bytes) -> None:
    with pytest.raises(StoreError, match=r"a\.json is damaged.*; delete it"):
        from_json(content, "a.json", "delete it")
