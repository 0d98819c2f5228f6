"""The bytes of a file, from a path or a URL: hashed while they are read, and decompressed no further than needed."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from isal import isal_zlib
from isal.igzip import BadGzipFile, IGzipFile

from hypodask.core.errors import LocationError, MissingScanError, ScanError, TruncatedScanError, UnreadableScanError
from hypodask.files.digests import HashingReader
from hypodask.files.location import Location

CHUNK_BYTES = 2**20
GZIP = b"\x1f\x8b"

_MAX_DEFLATE_RATIO = 1032
"""No deflate stream expands further (zlib's technical details), so a small file cannot hold a large volume."""
_MAX_SURPLUS_BYTES = 2**20
"""Bytes that may follow the voxels, such as the tags of MGH. More means that the header is of another file."""
_GZIP_READER: Any = IGzipFile
_DAMAGED: Any = (BadGzipFile, isal_zlib.error)


@contextmanager
def open_file(place: Location) -> Iterator[io.BufferedReader]:
    """Open a file for reading; what is wrong with its path is a ScanError.

    Errors of the network and the disk are not changed, because a second attempt may succeed.
    """
    try:
        file = place.open()
    except FileNotFoundError as err:
        if place.folder is not None and place.folder.is_symlink():
            raise MissingScanError("this link leads to no file; fetch it, for example with datalad get") from err
        raise MissingScanError("there is no such file; correct the path or drop the scan from the cohort") from err
    except PermissionError as err:
        raise UnreadableScanError("permission denied; grant this user access to the file") from err
    except IsADirectoryError as err:
        raise UnreadableScanError("this is a folder; the file of one scan is needed") from err
    except LocationError as err:
        raise UnreadableScanError(str(err).removeprefix(f"{place.url}: ")) from err
    except ValueError as err:
        raise UnreadableScanError(f"the path cannot be opened ({err}); correct it") from err
    except OSError as err:
        if err.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
            raise
        raise UnreadableScanError(f"the path cannot be opened ({err.strerror}); correct it") from err
    with file:
        # Objects behind a URL are replaced as a whole; a local file may change while it is read.
        descriptor = file.fileno() if place.folder is not None else None
        before = _state(descriptor)
        cause: ScanError | None = None
        try:
            yield file
        except ScanError as err:
            cause = err
        if _state(descriptor) != before:
            # The file may be half of one image and half of another. That the read half is valid proves nothing.
            raise UnreadableScanError(
                "the file changed while it was read; let the program that writes it finish, then run the scan again"
            ) from cause
        if cause is not None:
            raise cause


def _state(descriptor: int | None) -> tuple[int, int] | None:
    """Size and time of the last change of an open local file."""
    if descriptor is None:
        return None
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


class Source:
    """A file that is read once, from its beginning to its end, and decompressed if it is gzipped.

    Examples
    --------
    >>> import gzip
    >>> from hypodask.files.digests import sha256_of
    >>> packed = gzip.compress(b"voxels")
    >>> source = Source(io.BytesIO(packed))
    >>> source.read(100), source.finish() == sha256_of(packed)
    (b'voxels', True)
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._size = _size(file)
        self._hashed = HashingReader(file)
        self._raw = io.BufferedReader(self._hashed, CHUNK_BYTES)
        self.start = self._raw.peek(CHUNK_BYTES)[:132]
        """The first 132 bytes, as they are on the disk."""
        self.gzipped = self.start.startswith(GZIP)
        self._inflated: Any = _GZIP_READER(fileobj=self._raw, mode="rb") if self.gzipped else self._raw
        self.position = 0
        """Decompressed bytes that were read so far."""

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; fewer at the end of the file."""
        chunks = []
        while count and (chunk := self._inflate(min(count, CHUNK_BYTES))):
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)

    def read_exactly(self, count: int, *, what: str) -> bytes:
        """``count`` bytes, or a TruncatedScanError that names ``what`` is cut short."""
        found = self.read(count)
        if len(found) < count:
            raise TruncatedScanError(f"the file ends within its {what}, after {self.position:,} bytes; copy it again")
        return found

    def skip_to(self, position: int) -> None:
        """Skip the bytes before ``position``, such as extensions of the header."""
        while self.position < position:
            self.read_exactly(min(position - self.position, CHUNK_BYTES), what="header extensions")

    def require(self, count: int) -> None:
        """Refuse ``count`` bytes if a file of this size cannot hold them; called before memory is allocated."""
        if self._size is None:
            return
        most = self._size * _MAX_DEFLATE_RATIO if self.gzipped else self._size - self.position
        if count > most:
            raise TruncatedScanError(
                f"the header promises {count:,} bytes of voxels, but the file has {self._size:,} bytes "
                f"{'gzipped' if self.gzipped else 'in all'}; the file is cut short or its header damaged: copy it again"
            )

    def fill(self, buffer: memoryview) -> None:
        """Read all voxels into a buffer."""
        filled = 0
        while filled < len(buffer):
            chunk = self._inflate(min(len(buffer) - filled, CHUNK_BYTES))
            if not chunk:
                raise TruncatedScanError(
                    f"the file holds {filled:,} of the {len(buffer):,} bytes of voxels that its header promises; "
                    "it is cut short: copy or export it again"
                )
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)

    def finish(self) -> str:
        """The sha256 of the file, which is read to its end so that the checksum of gzip is verified too."""
        surplus = len(self.read(_MAX_SURPLUS_BYTES + 1))
        if surplus > _MAX_SURPLUS_BYTES:
            raise UnreadableScanError(
                f"the file goes on for more than {_MAX_SURPLUS_BYTES:,} bytes after its last voxel; "
                "the header does not belong to these voxels: convert the scan again"
            )
        while self._raw.read(CHUNK_BYTES):
            pass
        return self._hashed.digest

    def _inflate(self, count: int) -> bytes:
        try:
            chunk: bytes = self._inflated.read(count)
        except EOFError as err:
            raise TruncatedScanError(
                f"the gzip stream breaks off after {self.position:,} bytes or more; the file is cut short: "
                "copy it again"
            ) from err
        except _DAMAGED as err:
            raise UnreadableScanError(f"the gzip stream is damaged ({err}); copy the file again") from err
        self.position += len(chunk)
        return chunk


def _size(file: io.BufferedIOBase) -> int | None:
    """Bytes in the file; None if that is not known without reading it."""
    if not file.seekable():
        return None
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
