"""SHA-256 digests: every reader compares what it reads with what was written.

A sealed file has its digest in a second file beside it, ``<name>.sha256``, in the format of the program ``sha256sum``.
While a file is replaced, this second file (its seal) names the digests of both contents. A process that is killed at
any moment therefore leaves a file that can be read. If a file was changed, cut short or removed, or if its seal was,
every reader raises an error.
"""

import hashlib
import io
import re
import time
from os import PathLike
from pathlib import Path
from typing import Any

from hypodask.core.errors import StoreError
from hypodask.files.location import Location

SEAL = ".sha256"
"""Suffix of the file that holds the digest of another file."""

ATTEMPTS = 5
"""How often a file and its seal are read before they are said not to match: both may be replaced meanwhile."""

PAUSE_SECONDS = 0.05

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def sha256_of(content: bytes | io.BufferedIOBase) -> str:
    """Digest of some bytes, or of an open file from where it stands to its end, as 64 hexadecimal digits.

    >>> sha256_of(b"scan") == sha256_of(io.BytesIO(b"scan"))
    True
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return hashlib.file_digest(content, "sha256").hexdigest()


def sha256_of_file(path: str | PathLike[str]) -> str:
    """Digest of a local file, as 64 hexadecimal digits.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        return sha256_of(file)


class HashingReader(io.RawIOBase):
    """Passes on the bytes of a file, and computes their digest at the same time.

    >>> reader = HashingReader(io.BytesIO(b"scan"))
    >>> reader.read(), reader.digest == sha256_of(b"scan")
    (b'scan', True)
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Digest of all bytes that were read so far."""
        return self._sha256.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._sha256.update(chunk)
        return len(chunk)


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
    place
        The file.
    cure
        What the user should do if the file is not as it was written.

    Raises
    ------
    FileNotFoundError
        If neither the file nor its seal exists.
    StoreError
        If one of them is missing, or they do not match.
    """
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE_SECONDS)
        known, content = _known(place), _content(place)
        if content is not None and sha256_of(content) in known:
            return content
    is_sealed = _seal_of(place).exists()
    if content is None and not is_sealed:
        raise FileNotFoundError(f"there is no {place.url}")
    if content is None:
        raise StoreError(f"{place.url} is missing, though its digest is there; {cure}")
    if not is_sealed:
        raise StoreError(f"{place.url} has no digest beside it ({place.name}{SEAL}); {cure}")
    raise StoreError(f"{place.url} is damaged: it does not match its digest; {cure}")


def delete_sealed(place: Location) -> None:
    """Remove a file and its seal."""
    place.delete()
    _seal_of(place).delete()


def _seal_of(place: Location) -> Location:
    """Where the digest of a file is kept."""
    return Location(place.url + SEAL, place.root)


def _content(place: Location) -> bytes | None:
    try:
        return place.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _known(place: Location) -> list[str]:
    """Digests that the seal names; empty if there is no seal, or if it is damaged."""
    text = (_content(_seal_of(place)) or b"").decode(errors="replace")
    lines = [_LINE.fullmatch(line) for line in text.split("\n")]
    return [line[1] for line in lines if line and line[2] == place.name]


def _write_seal(place: Location, digests: list[str]) -> None:
    lines = dict.fromkeys(f"{digest}  {place.name}\n" for digest in digests)
    _seal_of(place).write("".join(lines).encode())
