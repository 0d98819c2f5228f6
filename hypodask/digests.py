"""Digests beside files: what is read is compared with what was written.

A sealed file has its sha256 in a file beside it, ``<name>.sha256``, as the program ``sha256sum`` writes and checks it.
While a file is replaced the seal names both contents, so that a process killed at any moment leaves a file that can be
read. A file that was changed, cut short or removed is an error of every reader, and so is such a seal.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from hypodask.errors import StoreError
from hypodask.location import Location

SEAL = ".sha256"

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")

LOOKS = 5
"""How often a file and its seal are read before they are said not to match: they may be replaced meanwhile."""

PAUSE_SECONDS = 0.05


def sha256_of(content: bytes) -> str:
    """Digest as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def seal_of(place: Location) -> Location:
    """Where the digest of a file is kept."""
    return Location(place.url + SEAL, place.root)


def write_sealed(place: Location, content: bytes) -> None:
    """Write a file and its seal, in place of older ones."""
    known = _known(place) if place.exists() else []
    digest = sha256_of(content)
    _write_seal(place, [*known, digest])
    place.write(content)
    if known:
        _write_seal(place, [digest])


def seal(place: Location, digest: str) -> None:
    """Write the seal of a file that was written once and never changes."""
    _write_seal(place, [digest])


def is_sealed_by(place: Location, digest: str) -> bool:
    """Whether the seal of a file names this digest and no other."""
    return _known(place) == [digest]


def read_sealed(place: Location, cure: str) -> bytes:
    """The content of a sealed file.

    Parameters
    ----------
    cure
        What the user is to do where it is not as it was written.

    Raises
    ------
    FileNotFoundError
        If there is neither the file nor a seal.
    StoreError
        If one of them is missing, or they do not match.
    """
    for look in range(LOOKS):
        time.sleep(look * PAUSE_SECONDS)
        known, content = _known(place), _content(place)
        if content is not None and sha256_of(content) in known:
            return content
    sealed = seal_of(place).exists()
    if content is None and not sealed:
        raise FileNotFoundError(f"there is no {place.url}")
    if content is None:
        raise StoreError(f"{place.url} is missing, though its digest is there; {cure}")
    if not sealed:
        raise StoreError(f"{place.url} has no digest beside it ({place.name}{SEAL}); {cure}")
    raise StoreError(f"{place.url} is damaged: it does not match its digest; {cure}")


def delete_sealed(place: Location) -> None:
    """Remove a file and its seal."""
    place.delete()
    seal_of(place).delete()


def decoded(content: bytes, name: str, cure: str) -> dict[str, Any]:
    """The object that a JSON file of ours holds.

    Raises
    ------
    StoreError
        If it is no JSON, no object, or nested too deeply to be one of ours.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise StoreError(f"{name} is damaged ({type(err).__name__}: it is no JSON of ours); {cure}") from err
    if not isinstance(found, dict):
        raise StoreError(f"{name} is damaged: it must hold a JSON object, but holds a {type(found).__name__}; {cure}")
    return found


def encoded(content: Mapping[str, Any]) -> bytes:
    """An object as the text of a JSON file."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def _content(place: Location) -> bytes | None:
    try:
        return place.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _known(place: Location) -> list[str]:
    """Digests that the seal names; none where there is no seal, or it is damaged."""
    text = (_content(seal_of(place)) or b"").decode(errors="replace")
    lines = [_LINE.fullmatch(line) for line in text.split("\n")]
    return [line[1] for line in lines if line and line[2] == place.name]


def _write_seal(place: Location, digests: list[str]) -> None:
    lines = dict.fromkeys(f"{digest}  {place.name}\n" for digest in digests)
    seal_of(place).write("".join(lines).encode())
