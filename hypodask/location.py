"""A place where files are kept: a local path, or a URL of an object store.

A local path is only ever a local path: nothing in its name is read as a chain of file systems, a pattern or a URL. A
URL begins with one of :data:`PROTOCOLS`. Both are opened, written and deleted one object at a time, and a link inside
an output is never followed by a write or a deletion.
"""

import errno
import glob
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import fsspec
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from hypodask.errors import HypodaskError, LocationError, OutputError

PROTOCOLS = frozenset({"file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Kinds of URL that may be opened; :data:`PROTOCOLS_VARIABLE` adds others."""

PROTOCOLS_VARIABLE = "HYPODASK_PROTOCOLS"
"""Environment variable with further protocols, separated by commas, such as ``https``; workers need it too."""

NEVER = frozenset({"reference"})
"""fsspec before 2026.6 renders such a URL as a Jinja template that can run any code, on the client and on workers."""

TEMPORARY = re.compile(r"\.hypodask-[0-9a-f]{32}|\..+\.[0-9a-f]{32}|.+\.[0-9a-f]{32}\.partial")
"""Names of unfinished files: ours, those of version 0.1.0, and those of Zarr."""

TIME_KEYS = ("ETag", "mtime", "LastModified", "last_modified", "updated", "created")
"""Each file system has its own name for the time of the last change. An ETag, where there is one, tells more: some
object stores give the time in milliseconds when they list, and in seconds when they are asked for one object."""

DELETERS = 16
"""Objects deleted at a time; not tuned."""

_memory_lock = threading.Lock()


def is_url(path: str) -> bool:
    """Whether a path is a URL, of any protocol.

    >>> is_url("s3://bucket/sub-01_T1w.nii.gz"), is_url("/data/study::v2/sub-01_T1w.nii.gz")
    (True, False)
    """
    return "://" in path


def absolute(path: str | os.PathLike[str]) -> str:
    """A path as every worker means it: absolute, ``~`` expanded; a URL without its trailing slashes.

    >>> absolute("s3://study/raw/"), absolute("file:///data/a.nii"), absolute("/data/study::v2")
    ('s3://study/raw', '/data/a.nii', '/data/study::v2')
    """
    text = os.fspath(path)
    protocol, separator, rest = text.partition("://")
    if not text or (separator and protocol not in ("file", "local")):
        return text.rstrip("/")
    return str(Path(os.path.expanduser(rest if separator else text)).absolute())  # noqa: PTH111 - never raises


def check_url(url: str) -> None:
    """Refuse a URL whose protocol is not known to be harmless, or which chains several.

    Raises
    ------
    LocationError
        Naming the URL, and how to allow its protocol.
    """
    protocol = url.partition("://")[0]
    if "::" in url:
        raise LocationError(f"{url} chains several file systems by '::'; give the URL of the file or folder itself")
    added = {name.strip() for name in os.environ.get(PROTOCOLS_VARIABLE, "").split(",")} - {""}
    if protocol in NEVER or protocol not in PROTOCOLS | added:
        cure = "" if protocol in NEVER else f", or add {protocol} to the environment variable {PROTOCOLS_VARIABLE}"
        raise LocationError(
            f"{url} is of the protocol {protocol!r}; opened are local paths and "
            f"{', '.join(sorted(PROTOCOLS - {'file', 'local', 'memory'}))}: copy the files to one of them{cure}"
        )


@dataclass(frozen=True)
class Location:
    """A file or folder on disk, or an object or prefix of an object store; only its URL travels between processes.

    Raises
    ------
    LocationError
        If the URL is of an unknown protocol, or chains several.

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
    """Path or URL; a local path is made absolute, so that every worker means the same folder."""
    root: str = field(default="", repr=False)
    """What was opened: deletions and writes stay strictly inside it. By default the place itself."""

    def __post_init__(self) -> None:
        url = absolute(self.url)
        if not url or self.url.strip().endswith("://"):
            raise LocationError(f"{self.url!r} names no place; give a folder, or the URL of one")
        if is_url(url):
            check_url(url)
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "root", self.root or url)

    def __reduce__(self) -> tuple[type["Location"], tuple[str, str]]:
        # The open file system that was looked up here is of no use on another machine.
        return Location, (self.url, self.root)

    @cached_property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return filesystem, str(path).rstrip("/")

    @contextmanager
    def _remote(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """The object store and the path in it; what its library raises is an ``OSError`` or one of ours."""
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
        """The local path, or ``None`` where there is no such thing."""
        return None if is_url(self.url) else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.url).name if is_url(self.url) else Path(self.url).name

    def child(self, *names: str) -> "Location":
        """A file or folder inside this one; a name may hold several parts, ``a/b``.

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
            return self.folder.exists()
        with self._remote() as (filesystem, path):
            filesystem.invalidate_cache()
            return bool(filesystem.exists(path))

    def is_folder(self) -> bool:
        """Whether there is a folder here, or objects below this prefix."""
        if self.folder is not None:
            return self.folder.is_dir()
        with self._remote() as (filesystem, path):
            filesystem.invalidate_cache()
            return bool(filesystem.isdir(path))

    def size(self) -> int:
        """Bytes of the file here; 0 where there is none."""
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
            If there is none, or it cannot be asked.
        """
        if self.folder is not None:
            found = self.folder.stat()
            return found.st_size, str(found.st_mtime)
        with self._remote() as (filesystem, path):
            known = filesystem.info(path)
        times = [known[key] for key in TIME_KEYS if key in known]
        return int(known["size"] or 0), str(times[0] if times else "")

    def open(self) -> BinaryIO:
        """The file here, open for reading; the caller closes it."""
        if self.folder is not None:
            return self.folder.open("rb")
        with self._remote() as (filesystem, path):
            return cast(BinaryIO, filesystem.open(path, "rb"))

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
        """Put a file here, whole or not at all, in place of any older one.

        Parameters
        ----------
        durable
            Wait until the disk has it, for a power cut could leave the new name with nothing behind it.

        Raises
        ------
        LocationError
            If a folder on the way here, inside what was opened, is a link.
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
        """Put many files below here, where nobody looks yet; into an object store as many at a time as it allows."""
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

        Of two clients only one succeeds: in a folder, and on an object store with conditional writes, as S3, GCS and
        Azure are. On one without them, both of two that try within one round trip may succeed.

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
            # Servers that speak S3 refuse in many ways: most do not name the condition that was not met.
            if self.exists():
                raise FileExistsError(f"{self.url} exists already") from err
            raise

    def files(self) -> dict[str, int]:
        """Every file below, by its relative path, with its size in bytes; sorted. Links are named, not followed."""
        if self.folder is not None:
            return dict(sorted(_local_files(self.folder)))
        with self._remote() as (filesystem, path):
            filesystem.invalidate_cache()
            found = filesystem.find(path, detail=True)
        # A listing by prefix may name siblings that begin alike.
        inside = {str(name): info for name, info in sorted(found.items()) if str(name).startswith(f"{path}/")}
        return {name[len(path) + 1 :]: int(info["size"]) for name, info in inside.items()}

    def names(self) -> list[str]:
        """Names of the files and folders directly here, sorted; none where there is nothing."""
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
        """Remove the file or folder here and all that is in it; nothing happens where there is none.

        A link is removed itself, never what it leads to.

        Raises
        ------
        LocationError
            If this is not strictly inside what was opened, or a folder on the way here is a link.
        """
        if not self._is_inside:
            raise LocationError(f"{self.url} is not inside an output that was opened and is not deleted")
        if self.folder is not None:
            self._refuse_links()
            _remove(self.folder)
            return
        with self._remote() as (filesystem, path), ThreadPoolExecutor(DELETERS) as pool:
            names = [path, *(f"{path}/{name}" for name in self.files())]
            # One object at a time and by its whole name: others of fsspec's deletions expand patterns.
            for _ in pool.map(lambda name: _remove_object(filesystem, name), names):
                pass

    def zarr_store(self, *, read_only: bool = False) -> Store:
        """This place as zarr sees it."""
        if self.folder is not None:
            if not read_only:
                self._refuse_links()
            return LocalStore(self.folder, read_only=read_only)
        return FsspecStore.from_url(self.url, read_only=read_only)

    @property
    def _is_inside(self) -> bool:
        """Whether this is strictly inside what was opened."""
        if self.folder is not None:
            return Path(self.root) in self.folder.parents
        return self.url.startswith(f"{self.root}/")

    def _refuse_links(self) -> None:
        """Never write or delete through a link that lies inside what was opened: it may lead anywhere."""
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
    """Say of an output that it cannot be written where the disk or the store says so within this context.

    Raises
    ------
    OutputError
        In place of an ``OSError`` that is none of ours.
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


def _local_files(folder: Path) -> Iterator[tuple[str, int]]:
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*names, *links):
            path = Path(parent, name)
            try:
                yield path.relative_to(folder).as_posix(), path.lstat().st_size
            except FileNotFoundError:
                # It went as we looked, as temporary files do.
                continue


@contextmanager
def _unfinished(path: Path, content: bytes, durable: bool) -> Iterator[Path]:
    """The content in a hidden file beside the path, which is gone at the end unless it was renamed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as err:
        if not path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, "the folder went as it was made", str(path.parent)) from err
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
    """Give a finished file its name unless that is taken; a second link is the one way that is whole and exclusive."""
    try:
        os.link(written, path)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems have no links: there the name is taken first and the content follows.
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
        # The prefix itself is rarely an object; and another may have been quicker.
        return
