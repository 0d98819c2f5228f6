"""A place where files are kept: a local path, or a URL of an object store.

A local path is only ever a local path: nothing in its name is read as a chain of file systems, a pattern or a URL. A
URL must begin with one of the protocols in this module. Files are opened, written and deleted one at a time. A write or
a deletion never follows a symbolic link inside an output.

:meth:`Location.write` is the only way in which hypodask writes a file: into a temporary file, which is flushed to the
disk and then renamed, so that nobody ever sees half of a file.
"""

import errno
import glob
import io
import os
import re
import shutil
import stat
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import fsspec
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from hypodask.core.errors import HypodaskError, LocationError, OutputError

_PROTOCOLS = frozenset({"file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Protocols of URLs that may be opened; the environment variable below adds others."""

_PROTOCOLS_VARIABLE = "HYPODASK_PROTOCOLS"
"""Environment variable with further protocols, separated by commas, such as ``https``. Workers need it too."""

_NEVER = frozenset({"reference"})
"""fsspec before 2026.6 renders such a URL as a Jinja template that can run any code, on the client and on workers."""

TEMPORARY = re.compile(r"\.hypodask-[0-9a-f]{32}|\..+\.[0-9a-f]{32}|.+\.[0-9a-f]{32}\.partial")
"""Names of unfinished files: those of hypodask, of its version 0.1.0, and of Zarr."""

_TIME_KEYS = ("ETag", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names that file systems give to the time of the last change. An ETag is preferred where there is one, because some
object stores give the time in milliseconds when they list, but in seconds when they are asked for one object."""

_DELETERS = 16
"""Objects that are deleted at the same time; not tuned."""

_memory_lock = threading.Lock()


def is_url(path: str) -> bool:
    """Whether a path is a URL, of any protocol. No other code looks for ``://``.

    >>> is_url("s3://bucket/sub-01_T1w.nii.gz"), is_url("/data/study::v2/sub-01_T1w.nii.gz")
    (True, False)
    """
    return "://" in path


def absolute(path: str | os.PathLike[str]) -> str:
    """A path that means the same file on every worker: absolute, ``~`` expanded. A URL loses its trailing slashes.

    >>> absolute("s3://study/raw/"), absolute("file:///data/a.nii"), absolute("/data/study::v2")
    ('s3://study/raw', '/data/a.nii', '/data/study::v2')
    """
    text = os.fspath(path)
    protocol, separator, rest = text.partition("://")
    if not text or (separator and protocol not in ("file", "local")):
        return text.rstrip("/")
    return str(Path(os.path.expanduser(rest if separator else text)).absolute())  # noqa: PTH111 - never raises


def join(folder: str, path: str) -> str:
    """A path relative to a folder; each of them may be a URL. An absolute path stays as it is, with ``~`` expanded.

    >>> join("s3://study/raw", "sub-01.nii"), join("/raw", "/other/sub-01.nii")
    ('s3://study/raw/sub-01.nii', '/other/sub-01.nii')
    """
    if not path or is_url(path) or Path(path).is_absolute() or path.startswith("~"):
        return absolute(path)
    return f"{folder.rstrip('/')}/{path}" if is_url(folder) else str(Path(folder, path))


def _check_url(url: str) -> None:
    """Refuse a URL whose protocol is not known to be harmless, or which chains several file systems.

    Raises
    ------
    LocationError
        Naming the URL, and how to allow its protocol.
    """
    protocol = url.partition("://")[0]
    if "::" in url:
        raise LocationError(f"{url} chains several file systems by '::'; give the URL of the file or folder itself")
    added = {name.strip() for name in os.environ.get(_PROTOCOLS_VARIABLE, "").split(",")} - {""}
    if protocol in _NEVER or protocol not in _PROTOCOLS | added:
        cure = "" if protocol in _NEVER else f", or add {protocol} to the environment variable {_PROTOCOLS_VARIABLE}"
        raise LocationError(
            f"{url} is of the protocol {protocol!r}; local paths can be opened, and URLs of "
            f"{', '.join(sorted(_PROTOCOLS - {'file', 'local', 'memory'}))}: copy the files to one of them{cure}"
        )


@dataclass(frozen=True, init=False)
class Location:
    """A file or folder on disk, or an object or prefix of an object store. Only its URL is pickled.

    Raises
    ------
    LocationError
        If the URL has an unknown protocol, or chains several file systems.

    Examples
    --------
    >>> place = Location("memory://study").child("notes", "one.txt")
    >>> place.write(b"first")
    >>> place.read()
    b'first'
    >>> Location("memory://study").files()
    {'notes/one.txt': 5}
    >>> place.delete()
    >>> place.exists()
    False
    """

    url: str
    """Path or URL; a local path is made absolute, so that it means the same folder on every worker."""
    root: str = field(default="", repr=False)
    """The output that was opened: nothing outside of it is written or deleted. By default the place itself."""

    def __init__(self, url: str | os.PathLike[str], root: str = "") -> None:
        given, found = os.fspath(url), absolute(url)
        if not found or given.strip().endswith("://"):
            raise LocationError(f"{given!r} names no place; give a folder, or the URL of one")
        if is_url(found):
            _check_url(found)
        object.__setattr__(self, "url", found)
        object.__setattr__(self, "root", root or found)

    def __reduce__(self) -> tuple[type["Location"], tuple[str, str]]:
        # The file system that was opened in this process is of no use in another one.
        return Location, (self.url, self.root)

    @cached_property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return filesystem, str(path).rstrip("/")

    @contextmanager
    def _remote(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """The object store and the path in it. Errors of its library become an ``OSError`` or a ``LocationError``."""
        try:
            yield self._place
        except (OSError, HypodaskError):
            raise
        except ImportError as err:
            raise LocationError(
                f"{self.url} needs a package ({err}): pip install 'hypodask[s3]', [gcs] or [azure]"
            ) from err
        except Exception as err:
            raise OSError(
                f"{self.url} cannot be reached ({type(err).__name__}: {err}); see that the bucket is there, and that "
                "this machine has its credentials"
            ) from err

    @property
    def folder(self) -> Path | None:
        """The local path; ``None`` for a URL of an object store."""
        return None if is_url(self.url) else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.url).name if is_url(self.url) else Path(self.url).name

    @property
    def parent(self) -> "Location":
        """The folder that this file or folder is in.

        >>> Location("s3://study/raw/participants.tsv").parent.url
        's3://study/raw'
        """
        return Location(self.url.rpartition("/")[0] if self.folder is None else str(self.folder.parent))

    def child(self, *names: str) -> "Location":
        """A file or folder inside this one; a name may have several parts, ``a/b``.

        Raises
        ------
        LocationError
            If a name is empty or would lead out of this place.
        """
        parts = [part for name in names for part in str(name).split("/")]
        for part in parts:
            if part in ("", ".", "..") or "\0" in part or (os.sep != "/" and os.sep in part):
                raise LocationError(f"{'/'.join(map(str, names))!r} leads out of {self.url}; give names inside it")
        return Location("/".join([self.url.rstrip("/"), *parts]), self.root)

    def exists(self) -> bool:
        """Whether there is a file or folder here now."""
        if self.folder is not None:
            return os.path.exists(self.folder)  # noqa: PTH110 - Path.exists raises for names that are too long
        with self._remote() as (filesystem, path):
            filesystem.invalidate_cache()
            return bool(filesystem.exists(path))

    def is_folder(self) -> bool:
        """Whether there is a folder here, or objects below this prefix."""
        if self.folder is not None:
            return os.path.isdir(self.folder)  # noqa: PTH112 - Path.is_dir raises for names that are too long
        with self._remote() as (filesystem, path):
            filesystem.invalidate_cache()
            return bool(filesystem.isdir(path))

    def size(self) -> int:
        """Bytes of the file here; 0 if there is none."""
        try:
            if self.folder is not None:
                return self.folder.stat().st_size
            with self._remote() as (filesystem, path):
                filesystem.invalidate_cache()
                return int(filesystem.size(path) or 0)
        except FileNotFoundError:
            return 0

    def stamp(self) -> tuple[int, str]:
        """Size and time of the last change of the file here, without reading it.

        Raises
        ------
        OSError
            If there is no file, or its place cannot be reached.
        """
        if self.folder is not None:
            found = self.folder.stat()
            return found.st_size, str(found.st_mtime)
        with self._remote() as (filesystem, path):
            known = filesystem.info(path)
        times = [known[key] for key in _TIME_KEYS if key in known]
        return int(known["size"] or 0), str(times[0] if times else "")

    def open(self) -> io.BufferedReader:
        """The file here, open for reading; the caller closes it.

        Raises
        ------
        FileNotFoundError
            If there is none.
        LocationError
            If this is a pipe or a device.
        """
        if self.folder is not None:
            mode = self.folder.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                # Opening a pipe would wait for ever, and a device such as /dev/zero would never end.
                raise LocationError(f"{self.url}: this is a pipe or device; a regular file is needed: copy it there")
            return self.folder.open("rb")
        with self._remote() as (filesystem, path):
            return io.BufferedReader(filesystem.open(path, "rb"))

    def read(self) -> bytes:
        """The bytes of the file here.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        if self.folder is not None:
            return self.folder.read_bytes()
        with self._remote() as (filesystem, path):
            return bytes(filesystem.cat_file(path))

    def write(self, content: bytes, *, durable: bool = True) -> None:
        """Put a file here, whole or not at all, in place of any older one; its folder is made if need be.

        Parameters
        ----------
        content
            The bytes of the file.
        durable
            Wait until the disk has them. Otherwise a power cut could leave an empty file under the new name.

        Raises
        ------
        LocationError
            If a folder on the way here, inside the output that was opened, is a symbolic link.
        """
        if self.folder is not None:
            self._refuse_links()
            with _unfinished(self.folder, content, durable) as written:
                written.replace(self.folder)
            return
        # An object appears only once its upload is complete, so a plain put is as good as a rename.
        with self._remote() as (filesystem, path):
            filesystem.pipe_file(path, content)

    def write_objects(self, files: Mapping[str, bytes]) -> None:
        """Put many files below here, where nobody reads yet; into an object store many at a time."""
        if self.folder is not None:
            self._refuse_links()
            for name, content in files.items():
                file = self.folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            return
        with self._remote() as (filesystem, path):
            filesystem.pipe({f"{path}/{name}": content for name, content in files.items()})

    def create(self, content: bytes, *, durable: bool = True) -> None:
        """Put a file here, whole, unless there is one already.

        If two processes try, only one succeeds. This holds for a folder, and for an object store that has conditional
        writes, as S3, GCS and Azure have. On an object store without them, two processes that try within one round
        trip may both succeed.

        Raises
        ------
        FileExistsError
            If there is one.
        """
        if self.folder is not None:
            self._refuse_links()
            with _unfinished(self.folder, content, durable) as written:
                _put_first(written, self.folder, content)
        elif self.url.startswith("memory://"):
            with _memory_lock:
                if self.exists():
                    raise FileExistsError(f"{self.url} exists already")
                self.write(content)
        elif self.exists():
            raise FileExistsError(f"{self.url} exists already")
        else:
            self._create_object(content)

    def _create_object(self, content: bytes) -> None:
        try:
            with self._remote() as (filesystem, path):
                filesystem.pipe_file(path, content, mode="create")
        except OSError as err:
            # Servers with S3's interface refuse in many ways; most do not say which condition was not met.
            if self.exists():
                raise FileExistsError(f"{self.url} exists already") from err
            raise

    def files(self) -> dict[str, int]:
        """Every file below, by its relative path, with its size in bytes; sorted. Links are listed, not followed."""
        if self.folder is not None:
            return dict(sorted(_local_files(self.folder)))
        with self._remote() as (filesystem, path):
            filesystem.invalidate_cache()
            found = filesystem.find(path, detail=True)
        # A listing by prefix may contain siblings whose names begin alike.
        inside = {str(name): info for name, info in sorted(found.items()) if str(name).startswith(f"{path}/")}
        return {name[len(path) + 1 :]: int(info["size"]) for name, info in inside.items()}

    def names(self) -> list[str]:
        """Names of the files and folders directly here, sorted; none if there is nothing here."""
        try:
            if self.folder is not None:
                return sorted(os.listdir(self.folder))  # noqa: PTH208 - names alone
            with self._remote() as (filesystem, path):
                filesystem.invalidate_cache()
                found = filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in found} - {""})

    def glob(self, pattern: str) -> Iterator[str]:
        """Paths below here that match a pattern, relative, with forward slashes.

        Nothing in this place's own name is read as a pattern.
        """
        if self.folder is not None:
            return (path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))
        with self._remote() as (filesystem, path):
            found = filesystem.glob(f"{glob.escape(path)}/{pattern}")
        return (str(name)[len(path) + 1 :] for name in found)

    def delete(self) -> None:
        """Remove the file or folder here and all that is in it; nothing happens if there is none.

        Of a symbolic link, the link itself is removed, never the file or folder that it leads to.

        Raises
        ------
        LocationError
            If this is not strictly inside the output that was opened, or a folder on the way here is a link.
        """
        if not self._is_inside:
            raise LocationError(f"{self.url} is not inside an output that was opened and is not deleted")
        if self.folder is not None:
            self._refuse_links()
            _remove(self.folder)
            return
        with self._remote() as (filesystem, path), ThreadPoolExecutor(_DELETERS) as pool:
            names = [path, *(f"{path}/{name}" for name in self.files())]
            # One object at a time and by its whole name, because other deletions of fsspec expand patterns.
            for _ in pool.map(lambda name: _remove_object(filesystem, name), names):
                pass

    def zarr_store(self, *, read_only: bool = False) -> Store:
        """This place as a store of zarr."""
        if self.folder is not None:
            if not read_only:
                self._refuse_links()
            return LocalStore(self.folder, read_only=read_only)
        return FsspecStore.from_url(self.url, read_only=read_only)

    @property
    def _is_inside(self) -> bool:
        """Whether this is strictly inside the output that was opened."""
        if self.folder is not None:
            return Path(self.root) in self.folder.parents
        return self.url.startswith(f"{self.root}/")

    def _refuse_links(self) -> None:
        """Never write or delete through a link that lies inside the output: it may lead anywhere."""
        inside = Path(self.url).relative_to(self.root).parts[:-1]
        folder = Path(self.root)
        for part in inside:
            folder /= part
            if folder.is_symlink():
                raise LocationError(
                    f"{folder} is a link, and nothing is written or deleted through it; put a folder in its place"
                )


@contextmanager
def writing(place: Location) -> Iterator[None]:
    """Turn errors of the disk or the object store within this context into an error about the output.

    Raises
    ------
    OutputError
        In place of any ``OSError`` that is not an error of hypodask.
    """
    try:
        yield
    except HypodaskError:
        raise
    except OSError as err:
        error = OutputError(
            f"{place.root} cannot be written ({type(err).__name__}: {err.strerror or err}); see that you may write "
            "there and that there is space left, and make the same call again: what was done is kept"
        )
        error.errno = err.errno
        raise error from err


def _raise(error: OSError) -> None:
    """Do not pass over a folder that cannot be read, unless it was removed meanwhile."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _local_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size in bytes of every file below a local folder, in no order.

    Symbolic links are listed, with their own size, and not followed. A folder that must not be read is an error.
    """
    for parent, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*names, *links):
            path = Path(parent, name)
            try:
                yield path.relative_to(folder).as_posix(), path.lstat().st_size
            except FileNotFoundError:
                # It was removed during this loop, as temporary files are.
                continue


@contextmanager
def _unfinished(path: Path, content: bytes, durable: bool) -> Iterator[Path]:
    """The content in a hidden file beside the path; it is removed at the end unless it was renamed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as err:
        if not path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, "the folder was removed while it was made", str(path.parent)) from err
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder is needed", str(path.parent)) from err
    unfinished = path.with_name(f".hypodask-{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def _put_first(written: Path, path: Path, content: bytes) -> None:
    """Give a finished file its name, unless that is taken. Only a hard link does so in one step."""
    try:
        os.link(written, path)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems have no hard links: there the name is taken first, and the content follows.
        with path.open("xb") as file:
            file.write(content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_object(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    try:
        filesystem.rm_file(path)
    except (FileNotFoundError, KeyError):
        # The prefix itself is rarely an object; and another process may have been faster.
        return
