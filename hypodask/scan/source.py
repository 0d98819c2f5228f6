"""Bytes of a file, from a path or any fsspec URL: hashed as they pass, inflated no further than asked."""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import isal_zlib
from isal.igzip import BadGzipFile, IGzipFile

from hypodask.errors import LocationError, MissingScanError, ScanError, TruncatedScanError, UnreadableScanError
from hypodask.location import Location, is_url

CHUNK_BYTES = 2**20
MAX_DEFLATE_RATIO = 1032
"""No deflate stream inflates further (zlib's technical details): a small file cannot hold a large volume."""
MAX_SURPLUS_BYTES = 2**20
"""What may follow the voxels, such as the tags of MGH. More means that header and voxels are strangers."""
_GZIP_READER: Any = IGzipFile
GZIP = b"\x1f\x8b"

_DAMAGED: Any = (BadGzipFile, isal_zlib.error)


@contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """Open a local path or a URL for reading; what is wrong with the path is a ScanError.

    Faults of network and disk pass as they are, since a second try may succeed.
    """
    try:
        file = _open_url(path) if is_url(path) else _open_local(path)
    except ScanError:
        raise
    except FileNotFoundError as err:
        raise MissingScanError(_missing(path)) from err
    except PermissionError as err:
        raise UnreadableScanError("permission denied; grant this user access to the file") from err
    except IsADirectoryError as err:
        raise UnreadableScanError("this is a folder; the file of one scan is needed") from err
    except ValueError as err:
        raise UnreadableScanError(f"the path cannot be opened ({err}); correct it") from err
    except OSError as err:
        if err.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
            raise
        raise UnreadableScanError(f"the path cannot be opened ({err.strerror}); correct it") from err
    with file:
        before = _written(file)
        try:
            yield cast("BinaryIO", file)
        except ScanError as err:
            _check_unchanged(file, before, err)
            raise
        _check_unchanged(file, before)


def _check_unchanged(file: Any, before: tuple[int, int] | None, cause: ScanError | None = None) -> None:
    """Refuse what may be half of one image and half of another; that the first half was sound is no comfort."""
    if _written(file) != before:
        raise UnreadableScanError(
            "the file changed while it was read; let the program that writes it finish, then run the scan again"
        ) from cause


def _written(file: Any) -> tuple[int, int] | None:
    """Size and time of the last change of an open local file; objects behind a URL are replaced whole."""
    if not isinstance(file, io.FileIO):
        return None
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _open_url(path: str) -> Any:
    """An object, open for reading; what its store's library says is a ScanError, but for faults of the network."""
    try:
        return Location(path).open()
    except LocationError as err:
        raise UnreadableScanError(str(err)) from err


def _open_local(path: str) -> BinaryIO:
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        # Opening a pipe would wait for ever, and a device such as /dev/zero would never end.
        raise UnreadableScanError("this is a pipe or device; a regular file is needed: copy it there")
    return Path(path).open("rb", buffering=0)


def _missing(path: str) -> str:
    if not is_url(path) and Path(path).is_symlink():
        return "this link leads to no file; fetch it, for example with datalad get"
    return "there is no such file; correct the path or drop the scan from the cohort"


class Source:
    """A file that is read once, front to back, inflated where it is gzipped.

    Examples
    --------
    >>> import gzip
    >>> packed = gzip.compress(b"a head")
    >>> source = Source(io.BytesIO(packed))
    >>> source.read(100), source.finish() == hashlib.sha256(packed).hexdigest()
    (b'a head', True)
    """

    def __init__(self, file: BinaryIO) -> None:
        self._size = _size(file)
        self._hashed = _HashedFile(file)
        self._raw = io.BufferedReader(self._hashed, CHUNK_BYTES)
        self.start = self._raw.peek(CHUNK_BYTES)[:132]
        """The first bytes as they are on disk."""
        self.gzipped = self.start.startswith(GZIP)
        self._inflated: Any = _GZIP_READER(fileobj=self._raw, mode="rb") if self.gzipped else self._raw
        self.position = 0
        """Inflated bytes taken so far."""

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; fewer at the end of the file."""
        pieces = []
        while count and (piece := self._inflate(min(count, CHUNK_BYTES))):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def read_exactly(self, count: int, *, what: str) -> bytes:
        """``count`` bytes, or a TruncatedScanError that says what is cut."""
        found = self.read(count)
        if len(found) < count:
            raise TruncatedScanError(f"the file ends within its {what}, after {self.position:,} bytes; copy it again")
        return found

    def skip_to(self, position: int) -> None:
        """Pass over what lies before ``position``, such as extensions of the header."""
        while self.position < position:
            self.read_exactly(min(position - self.position, CHUNK_BYTES), what="header extensions")

    def require(self, count: int) -> None:
        """Refuse, before memory is taken, ``count`` bytes that a file of this size cannot hold."""
        if self._size is None:
            return
        most = self._size * MAX_DEFLATE_RATIO if self.gzipped else self._size - self.position
        if count > most:
            raise TruncatedScanError(
                f"the header promises {count:,} bytes of voxels, but the file has {self._size:,} bytes "
                f"{'gzipped' if self.gzipped else 'in all'}; the file is cut short or its header damaged: copy it again"
            )

    def fill(self, buffer: memoryview) -> None:
        """Read the voxels, all of them."""
        filled = 0
        while filled < len(buffer):
            piece = self._inflate(min(len(buffer) - filled, CHUNK_BYTES))
            if not piece:
                raise TruncatedScanError(
                    f"the file holds {filled:,} of the {len(buffer):,} bytes of voxels that its header promises; "
                    "it is cut short: copy or export it again"
                )
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)

    def finish(self) -> str:
        """The sha256 of the file, read to its end so that gzip's own checksum is verified too."""
        surplus = len(self.read(MAX_SURPLUS_BYTES + 1))
        if surplus > MAX_SURPLUS_BYTES:
            raise UnreadableScanError(
                f"the file goes on for more than {MAX_SURPLUS_BYTES:,} bytes after its last voxel; "
                "the header does not belong to these voxels: convert the scan again"
            )
        while self._raw.read(CHUNK_BYTES):
            pass
        return self._hashed.digest.hexdigest()

    def _inflate(self, count: int) -> bytes:
        try:
            piece: bytes = self._inflated.read(count)
        except EOFError as err:
            raise TruncatedScanError(
                f"the gzip stream breaks off after {self.position:,} bytes or more; the file is cut short: "
                "copy it again"
            ) from err
        except _DAMAGED as err:
            raise UnreadableScanError(f"the gzip stream is damaged ({err}); copy the file again") from err
        self.position += len(piece)
        return piece


class _HashedFile(io.RawIOBase):
    """Passes bytes on and remembers their digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        self.digest.update(piece)
        return len(piece)


def _size(file: BinaryIO) -> int | None:
    """Bytes in the file; None where it cannot be told without reading it."""
    if not file.seekable():
        return None
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
