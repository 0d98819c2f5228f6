"""A place where files are kept: a folder, or a prefix of an object store, by any URL that fsspec knows."""

import errno
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fsspec
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore


@dataclass(frozen=True)
class Location:
    """A folder or an object-store prefix; only its URL travels between processes.

    Examples
    --------
    >>> place = Location("memory://study").child("notes", "one.txt")
    >>> place.write(b"first")
    >>> place.read()
    b'first'
    >>> Location("memory://study").files()
    {'notes/one.txt': 5}
    >>> Location("memory://study").delete()
    >>> place.exists()
    False
    """

    url: str
    """Path or URL; a local path is made absolute, so that every worker means the same folder."""

    def __post_init__(self) -> None:
        url = os.fspath(self.url)
        path = _local_path(url)
        object.__setattr__(self, "url", url.rstrip("/") if path is None else str(Path(path).absolute()))

    def __reduce__(self) -> tuple[type["Location"], tuple[str]]:
        # The open file system that was looked up here is of no use on another machine.
        return Location, (self.url,)

    @cached_property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return filesystem, str(path)

    @property
    def folder(self) -> Path | None:
        """The local path, or ``None`` where there is no such thing."""
        return Path(self.url) if _local_path(self.url) is not None else None

    def child(self, *names: str) -> "Location":
        """A file or folder inside this one."""
        return Location("/".join([self.url, *names]))

    def exists(self) -> bool:
        """Whether there is a file or folder here now."""
        if self.folder is not None:
            return self.folder.exists()
        filesystem, path = self._place
        filesystem.invalidate_cache()
        return bool(filesystem.exists(path))

    def size(self) -> int:
        """Bytes of the file here; 0 where there is none."""
        filesystem, path = self._place
        filesystem.invalidate_cache()
        try:
            return int(filesystem.size(path) or 0)
        except FileNotFoundError:
            return 0

    def read(self) -> bytes:
        """The bytes of the file here.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        filesystem, path = self._place
        return bytes(filesystem.cat_file(path))

    def write(self, content: bytes) -> None:
        """Put a file here, whole or not at all, in place of any older one."""
        if self.folder is not None:
            _replace_file(self.folder, content)
            return
        # An object appears only once its upload is complete, so a plain put is as good as a rename.
        filesystem, path = self._place
        filesystem.pipe_file(path, content)

    def write_objects(self, files: Mapping[str, bytes]) -> None:
        """Put many files below an object-store prefix, as many at a time as the store allows."""
        filesystem, path = self._place
        filesystem.pipe({f"{path}/{name}": content for name, content in files.items()})

    def create(self, content: bytes) -> None:
        """Put a file here unless there is one already.

        Of two clients only one succeeds: in a folder, and on an object store with conditional writes, as S3, GCS and
        Azure are. On one without them, two that try within one round trip may both.

        Raises
        ------
        FileExistsError
            If there is one.
        """
        if self.folder is not None:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self.folder.open("xb") as file:
                file.write(content)
        elif self.exists():
            raise FileExistsError(f"{self.url} exists already")
        else:
            self._create_object(content)

    def _create_object(self, content: bytes) -> None:
        filesystem, path = self._place
        try:
            filesystem.pipe_file(path, content, mode="create")
        except OSError as err:
            # Servers that speak S3 refuse in many ways: most do not name the condition that was not met.
            if self.exists():
                raise FileExistsError(f"{self.url} exists already") from err
            if err.errno != errno.ENOSYS:
                raise
            self.write(content)

    def files(self) -> dict[str, int]:
        """Every file below, by its relative path, with its size in bytes; sorted."""
        filesystem, path = self._place
        filesystem.invalidate_cache()
        found = filesystem.find(path, detail=True)
        return {name[len(path) :].lstrip("/"): int(info["size"]) for name, info in sorted(found.items())}

    def names(self) -> list[str]:
        """Names of the files and folders directly here, sorted; none where there is nothing."""
        filesystem, path = self._place
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def delete(self) -> None:
        """Remove the file or folder here and all that is in it; nothing happens where there is none."""
        filesystem, path = self._place
        if self.exists():
            filesystem.rm(path, recursive=True)

    def zarr_store(self, *, read_only: bool = False) -> Store:
        """This place as zarr sees it."""
        if self.folder is not None:
            return LocalStore(self.folder, read_only=read_only)
        return FsspecStore.from_url(self.url, read_only=read_only)


def _local_path(url: str) -> str | None:
    """The path of a local URL or of what is a path already; ``None`` for any other URL."""
    protocol, separator, rest = url.partition("://")
    if not separator:
        return url
    return rest if protocol in ("file", "local") else None


def _replace_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            # Without it a power cut can leave the new name with nothing behind it.
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
