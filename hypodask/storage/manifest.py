"""The results of an output as files: written once under a new name, with a manifest, and a pointer to those in force.

::

    results.json               pointer: names the results in force, and the digest of their manifest
    results-<time>.zarr        the files of the results, written once and never changed
    results-<time>.json        their manifest: a digest of every file, and of the tables beside them
    results-<time>.old.json    manifest of results that newer ones replaced
    volumes.tsv, ...           the tables

A reader takes every file whole and compares it with its digest. The last results that were replaced stay for readers
who are in the middle of them; their manifest has another name, so that an old pointer is told from the one in force.
What the files hold is the matter of :mod:`hypodask.study.results`.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple

from hypodask.core.errors import ResultsError, StoreError
from hypodask.files.digests import sha256_of
from hypodask.files.encoding import from_json, to_json
from hypodask.files.location import Location

TABLES = ("volumes.tsv", "volumes.json", "volumes.parquet")
"""Names of the tables that are written beside the results."""

AGAIN = "process the cohort again to remake it"
"""What to do about a file that is not as it was written."""

_POINTER = "results.json"

_RESULTS = re.compile(r"(results-\d{8}T\d{6}-[0-9a-f]{6})\.zarr")

_MANIFEST = re.compile(r"(results-\d{8}T\d{6}-[0-9a-f]{6})(\.old)?\.json")

_LOOKS = 20
"""How often results are read anew because newer ones replaced them meanwhile. Then the older ones are taken, which are
whole."""

_READERS = 16
"""Files read at a time; not tuned."""


class _Pointer(NamedTuple):
    """The results in force."""

    stem: str
    """``results-<time>``."""
    manifest_sha256: str


def write_results(
    place: Location, files: Mapping[str, bytes], tables: Mapping[str, bytes], *, check: Callable[[], None]
) -> None:
    """Write the files of results and their tables, and make them the ones in force.

    The pointer is replaced last: a reader sees the old results or the new ones, never a mixture.

    Parameters
    ----------
    files
        Contents of the files by their paths in ``results-<time>.zarr``.
    tables
        Contents of the tables by their names in :data:`TABLES`.
    check
        Called right before the tables are written and before the pointer is replaced; it raises where this process may
        not write any more.
    """
    stem = f"results-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    manifest = to_json(
        {
            "files": {name: sha256_of(content) for name, content in files.items()},
            "tables": {name: sha256_of(content) for name, content in tables.items()},
        }
    )
    place.child(f"{stem}.zarr").write_objects(files)
    place.child(f"{stem}.json").write(manifest)
    check()
    for name, content in tables.items():
        place.child(name).write(content)
    check()
    place.child(_POINTER).write(to_json({"results": f"{stem}.zarr", "manifest_sha256": sha256_of(manifest)}))
    _retire(place, stem)


def _retire(place: Location, current: str) -> None:
    """Mark the results that were in force as old, and remove those that were old already."""
    found = {name: known for name in place.names() if (known := _MANIFEST.fullmatch(name))}
    for name, known in found.items():
        if known[2]:
            place.child(f"{known[1]}.zarr").delete()
            place.child(name).delete()
    for name, known in found.items():
        if not known[2] and known[1] != current:
            place.child(f"{known[1]}.old.json").write(place.child(name).read())
            place.child(name).delete()
    for name in results_without_manifest(place):
        place.child(name).delete()


def read_results(place: Location) -> dict[str, bytes]:
    """The files of the results in force, each compared with its digest.

    Where newer results come while these are read, the newer ones are read.

    Raises
    ------
    ResultsError
        If there are none, a file of them is missing or not as it was written, or they are of version 0.1.0, which kept
        no digests.
    """
    for look in range(1, _LOOKS + 1):
        pointer = _pointer(place)
        try:
            files = _read_files(place, pointer.stem, _manifest(place, pointer)["files"])
        except ResultsError:
            if look == _LOOKS or _pointer(place) == pointer:
                raise
            continue
        if _pointer(place) == pointer:
            break
    return files


def table_problems(place: Location) -> list[str]:
    """Tables that are not those which were written with the results in force.

    Raises
    ------
    ResultsError
        If there are no results, or their manifest is not as it was written.
    """
    problems = []
    for name, digest in _manifest(place, _pointer(place))["tables"].items():
        try:
            if sha256_of(place.child(name).read()) != digest:
                problems.append(f"{name}: it was altered: its sha256 differs; {AGAIN}")
        except FileNotFoundError:
            problems.append(f"{name}: it is missing; {AGAIN}")
    return problems


def tables_are_whole(url: str) -> bool:
    """Whether the tables beside the results in force are those that were written with them."""
    try:
        return not table_problems(Location(url))
    except ResultsError:
        return False


def names_of_results(place: Location) -> list[str]:
    """Folders of results in an output, old ones included."""
    return [name for name in place.names() if _RESULTS.fullmatch(name)]


def results_without_manifest(place: Location) -> list[str]:
    """Folders of results whose manifest is gone, or was never written."""
    names = place.names()
    listed = {known[1] for name in names if (known := _MANIFEST.fullmatch(name))}
    return [name for name in names if (known := _RESULTS.fullmatch(name)) and known[1] not in listed]


def old_results_problems(place: Location) -> list[str]:
    """Results that newer ones replaced and that are not as they were written."""
    problems = []
    for name in place.names():
        if not (known := _MANIFEST.fullmatch(name)) or not known[2]:
            continue
        stem = known[1]
        cure = f"delete {stem}.zarr and {name}; they are of no use any more"
        try:
            _read_files(place, stem, from_json(place.child(name).read(), name, cure)["files"])
        except (ResultsError, StoreError, KeyError, TypeError, AttributeError) as err:
            problems.append(f"{stem}: old results are not as they were written ({err}); {cure}")
    return problems


def drop_old_results(place: Location) -> None:
    """Remove all results but those in force."""
    current = _pointer(place).stem
    for name in place.names():
        known = _RESULTS.fullmatch(name) or _MANIFEST.fullmatch(name)
        if known and (known[1] != current or name.endswith(".old.json")):
            place.child(name).delete()


def drop_results(place: Location) -> None:
    """Remove all results, their tables and the pointer."""
    for name in place.names():
        if _RESULTS.fullmatch(name) or _MANIFEST.fullmatch(name) or name in (_POINTER, *TABLES):
            place.child(name).delete()


def _pointer(place: Location) -> _Pointer:
    here = place.child(_POINTER)
    try:
        known = from_json(here.read(), here.url, AGAIN)
    except FileNotFoundError:
        raise ResultsError(
            f"there are no results in {place.url}: process a cohort into it, to the end, first"
        ) from None
    except StoreError as err:
        raise ResultsError(str(err)) from err
    if known.keys() == {"results"}:
        raise ResultsError(
            f"{place.url} was written by hypodask 0.1.0, whose results have no digests; process the cohort again: "
            "volumes are made anew"
        )
    name, digest = known.get("results"), known.get("manifest_sha256")
    if known.keys() != {"results", "manifest_sha256"} or not isinstance(digest, str):
        raise ResultsError(f"{here.url} is damaged: it names no results of ours; {AGAIN}")
    if not isinstance(name, str) or not (found := _RESULTS.fullmatch(name)):
        raise ResultsError(f"{here.url} names {name!r}, no results of ours; {AGAIN}")
    return _Pointer(found[1], digest)


def _manifest(place: Location, pointer: _Pointer) -> dict[str, dict[str, str]]:
    """Digests of the files of the results in force, and of the tables."""
    here = place.child(f"{pointer.stem}.json")
    try:
        content = here.read()
    except FileNotFoundError:
        if place.child(f"{pointer.stem}.old.json").exists():
            raise ResultsError(
                f"{place.url}/{_POINTER} names {pointer.stem}.zarr, which newer results have replaced: it is an old "
                f"one; {AGAIN}"
            ) from None
        raise ResultsError(f"{here.url} is missing: the manifest of the results; {AGAIN}") from None
    if sha256_of(content) != pointer.manifest_sha256:
        raise ResultsError(f"{here.url} or {_POINTER} is damaged: they do not match; {AGAIN}")
    try:
        known = from_json(content, here.url, AGAIN)
        return {part: {str(name): str(one) for name, one in known[part].items()} for part in ("files", "tables")}
    except (StoreError, AttributeError, KeyError) as err:
        raise ResultsError(f"{here.url} is no manifest of ours ({err!r}); {AGAIN}") from err


def _read_files(place: Location, stem: str, digests: Mapping[str, str]) -> dict[str, bytes]:
    def read(file: str) -> bytes:
        here = place.child(f"{stem}.zarr", file)
        try:
            content = here.read()
        except FileNotFoundError:
            raise ResultsError(f"{here.url} is missing; {AGAIN}") from None
        if sha256_of(content) != digests[file]:
            raise ResultsError(f"{here.url} is damaged: it is not what was written; {AGAIN}")
        return content

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(digests, pool.map(read, digests), strict=True))
