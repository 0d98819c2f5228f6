"""Locks that expire: which process may write into which part of an output.

A lease is a numbered file in ``locks/``: ``<name>.<number>.json``. The process whose file has the highest number holds
the lease, and writes its file anew every few seconds (the heartbeat). If the file does not change for
half a minute, measured by the waiting process, its holder counts as gone. So does a process of this machine
that has ended. A process that takes over creates the file with the next number. Both a disk and an object store let
only one process create a file of a given name, so only one of several processes that try to take over succeeds. A
process that was stopped for long finds a higher number, or finds its own file removed, and stops before it writes.

There are four kinds: ``results`` while tables of the whole study are written, ``scan-<id>`` while the store of a scan
is written, ``forget`` while a participant is removed, and ``run-<id>``, which no other process asks for, as long as a
run goes on.
"""

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from hypodask.core.errors import ClusterError
from hypodask.files.encoding import to_json
from hypodask.files.location import Location

FOLDER = "locks"

RESULTS, FORGETTING = "results", "forget"
"""Names of leases: for the tables of the study, and for the removal of a participant."""

PATIENCE_SECONDS = 600.0
"""How long to wait for another process that writes results; writing them takes seconds."""

_LEGACY_LOCK = "running.json"
"""Lock of version 0.1.0. It has no heartbeat that would show whether its process is alive, so it counts as expired."""

_BEAT_SECONDS = 5.0
"""Seconds between two heartbeats."""

_EXPIRES_SECONDS = 30.0
"""A holder without a heartbeat for so long counts as gone."""

_LOOK_SECONDS = 0.2
"""Seconds between two looks at a lease that another process holds."""

_MOST_LOST_FOLDERS = 100
"""How often in a row the folder of leases may be missing when a lease is written; more often is an error."""

log = logging.getLogger(__name__)

_claim: "ContextVar[Lease | None]" = ContextVar("claim", default=None)
"""The lease that this thread took last."""

_held: set[str] = set()
"""Tokens of the leases that this process holds."""


class _File(NamedTuple):
    """One file of a lease, with its number."""

    number: int
    place: Location


class Lease:
    """A lease that is held; :func:`held` makes one."""

    def __init__(self, out: Location, name: str) -> None:
        self.name = name
        self._folder = out.child(FOLDER)
        self._token = uuid.uuid4().hex
        self._file: _File | None = None
        self._beats = self._lost_folders = 0
        self._since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        self._writing = threading.Lock()
        self.is_lost = False

    def check(self) -> None:
        """Make sure, before something is written, that the lease is still held.

        Raises
        ------
        ClusterError
            If it is not: this process was stopped for long, or the lease was removed.
        """
        if self.is_lost or not self._is_ours():
            self.is_lost = True
            raise ClusterError(
                f"this process lost its lease {self.name!r} in {self._folder.root}: it was stopped for longer than "
                f"{_EXPIRES_SECONDS:g} s and another took over, or the output was unlocked or deleted"
                f"{self._successor()}; nothing more is written: make the same call again to go on"
            )

    def beat(self) -> None:
        """Write the heartbeat; a lease that was lost stays lost."""
        with self._writing, suppress(OSError):
            if self._file is None or self.is_lost:
                return
            if self._is_ours():
                self._beats += 1
                self._file.place.write(self._content(), durable=False)
            else:
                self.is_lost = True

    def take(self, patience: float) -> None:
        """Wait until no other process holds the lease, then hold it."""
        watched = _Watch()
        deadline = time.monotonic() + patience
        # Noted before the file exists, so that no other thread of this process takes the file for one left behind.
        _held.add(self._token)
        try:
            while not self._try(watched):
                if time.monotonic() > deadline and watched.seen_alive:
                    raise ClusterError(watched.refusal(self._folder.root))
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            _held.discard(self._token)
            raise

    def _try(self, watched: "_Watch") -> bool:
        """One attempt: create the next number, unless a holder may be alive."""
        taken = _latest(self._folder, self.name)
        before = b""
        if taken is not None:
            before = _content_of(taken.place)
            if not watched.is_gone(taken.place.url, before):
                return False
        number = 1 if taken is None else taken.number + 1
        own = _File(number, self._folder.child(f"{self.name}.{number:08d}.json"))
        try:
            own.place.create(self._content(), durable=False)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # The process that releases the last lease removes the folder, perhaps at this moment.
            self._lost_folders += 1
            if self._lost_folders > _MOST_LOST_FOLDERS:
                raise
            return False
        # The file of the holder that is gone must still be there. If it is not, another process took over meanwhile:
        # numbers may have begun again at 1, and the number taken here is not valid.
        latest = _latest(self._folder, self.name)
        is_as_found = taken is None or (taken.place.exists() and _content_of(taken.place) == before)
        if latest is None or latest.number != number or not is_as_found:
            own.place.delete()
            return False
        self._file = own
        if taken is not None:
            log.warning("the work of %s was cut off; going on where it stopped", _named(_parsed(before)))
            for older in _files(self._folder, self.name):
                if older.number < number:
                    older.place.delete()
        return True

    def release(self) -> None:
        """Give the lease back; if the disk or the object store fails, it expires by itself."""
        with self._writing, suppress(OSError):
            _held.discard(self._token)
            if self._file is not None and self._token.encode() in _content_of(self._file.place):
                self._file.place.delete()
                # The folder is kept while other leases lie in it: rmdir then fails.
                if self._folder.folder is not None:
                    self._folder.folder.rmdir()
        self._file = None

    def _is_ours(self) -> bool:
        file = self._file
        if file is None:
            return False
        latest = _latest(self._folder, self.name)
        if latest is not None and latest.number > file.number:
            # A process that took over by mistake finds that out and withdraws within a moment.
            time.sleep(_LOOK_SECONDS)
            latest = _latest(self._folder, self.name)
        return latest is not None and latest.number == file.number and self._token.encode() in _content_of(file.place)

    def _successor(self) -> str:
        latest = _latest(self._folder, self.name)
        content = _parsed(_content_of(latest.place)) if latest else {}
        return f"; it is held by {_named(content)}" if content else ""

    def _content(self) -> bytes:
        process = os.getpid()
        owner = {
            "host": platform.node(),
            "pid": process,
            "started": _start_of(process),
            "machine": _machine(),
            "since": self._since,
            "owner": self._token,
            "beat": self._beats,
        }
        return to_json(owner)


class _Watch:
    """Looks at a lease that another process holds, to find out whether its holder is alive."""

    def __init__(self) -> None:
        self._seen: tuple[str, bytes] = ("", b"")
        self._since = time.monotonic()
        self.seen_alive = False
        """Whether a heartbeat of its holder was seen."""

    def is_gone(self, url: str, content: bytes) -> bool:
        """Whether the holder that wrote this is gone; to be asked again and again until that is known."""
        if (url, content) != self._seen:
            self.seen_alive = self.seen_alive or bool(self._seen[0])
            self._seen, self._since = (url, content), time.monotonic()
        owner = _parsed(content)
        if owner and owner["owner"] in _held and owner["pid"] == os.getpid():
            self.seen_alive = True
        elif owner and _has_ended(owner):
            return True
        # Other content may be a lease that is just being written, on a disk that cannot do so in one step.
        patience = _EXPIRES_SECONDS if owner else min(2.0, _EXPIRES_SECONDS)
        return time.monotonic() - self._since > patience

    def refusal(self, out: str) -> str:
        return (
            f"{_named(_parsed(self._seen[1]))} is at work in {out}; wait for it, or, if you know that it has ended, "
            "call again with --unlock (in Python: hypodask.unlock(OUT))"
        )


@contextmanager
def held(out: Location, name: str, *, patience: float = float("inf")) -> Iterator[Lease]:
    """Hold a lease of an output within a context, with a heartbeat.

    Parameters
    ----------
    out
        The output.
    name
        What is held: letters, digits, ``-``, ``_``, ``.`` and other characters that ids of scans may have.
    patience
        Seconds to wait for a holder that is alive. A holder that is gone is waited for until that is known, at most
        half a minute.

    Raises
    ------
    ClusterError
        If another process holds it for longer; the message says which process, and since when.
    """
    lease = Lease(out, name)
    lease.take(patience)
    _beater.add(lease)
    before = _claim.set(lease)
    try:
        yield lease
    finally:
        _claim.reset(before)
        _beater.remove(lease)
        lease.release()


def holders(out: Location, prefix: str) -> list[str]:
    """The processes that hold leases whose name begins with ``prefix``, in words.

    Leases of processes that are gone are removed. This takes up to half a minute if a holder on another
    machine may be gone.
    """
    folder, found = out.child(FOLDER), []
    names = {name for name in map(_name_of, folder.names()) if name and name.startswith(prefix)}
    for name in sorted(names):
        watched = _Watch()
        while (latest := _latest(folder, name)) is not None:
            content = _content_of(latest.place)
            if watched.is_gone(latest.place.url, content):
                latest.place.delete()
            elif watched.seen_alive:
                found.append(f"{_named(_parsed(content))} ({name})")
                break
            else:
                time.sleep(_LOOK_SECONDS)
    return found


def check_claim() -> None:
    """Make sure, before a store is written or finished, that this thread still holds its lease, if it took one.

    Raises
    ------
    ClusterError
        As :meth:`Lease.check`.
    """
    if (claim := _claim.get()) is not None:
        claim.check()


def drop_ended(out: Location) -> None:
    """Remove the leases of processes that have ended on this machine."""
    folder = out.child(FOLDER)
    for name in folder.names():
        owner = _parsed(_content_of(folder.child(name))) if _name_of(name) else {}
        if owner and _has_ended(owner):
            folder.child(name).delete()


def unlock(url: str) -> None:
    """Remove every lease of an output, and the lock of version 0.1.0, whichever process holds them.

    This should not be needed, because a lease whose holder has ended expires by itself. A run that still goes on in the
    output stops before it writes.

    Parameters
    ----------
    url
        Output folder, or URL of an object store.
    """
    out = Location(url)
    out.child(FOLDER).delete()
    out.child(_LEGACY_LOCK).delete()


def drop_legacy_lock(out: Location) -> None:
    """Remove the lock of version 0.1.0, which does not show whether its process is alive."""
    place = out.child(_LEGACY_LOCK)
    if place.exists():
        log.warning("%s is a lock without a heartbeat, of an earlier version; it counts as expired", place.url)
        place.delete()


class _Beater:
    """One thread that writes the heartbeats of all leases of this process."""

    def __init__(self) -> None:
        self._leases: dict[int, tuple[Lease, float]] = {}
        self._thread: threading.Thread | None = None
        self._process = 0
        self._start = threading.Lock()

    def add(self, lease: Lease) -> None:
        self._leases[id(lease)] = (lease, time.monotonic() + _BEAT_SECONDS)
        with self._start:
            # A forked process does not have the threads of its parent.
            if self._thread is None or self._process != os.getpid():
                self._process = os.getpid()
                self._thread = threading.Thread(target=self._beat, daemon=True, name="hypodask-leases")
                self._thread.start()

    def remove(self, lease: Lease) -> None:
        self._leases.pop(id(lease), None)

    def _beat(self) -> None:
        while True:
            time.sleep(min(_LOOK_SECONDS, _BEAT_SECONDS / 4))
            for key, (lease, due) in list(self._leases.items()):
                if time.monotonic() >= due and key in self._leases:
                    self._leases[key] = (lease, time.monotonic() + _BEAT_SECONDS)
                    lease.beat()


_beater = _Beater()


def _name_of(file: str) -> str:
    """The name of the lease that a file belongs to; empty for other files."""
    name, _, number = file.removesuffix(".json").rpartition(".")
    return name if file.endswith(".json") and len(number) >= 8 and number.isdecimal() and number.isascii() else ""


def _files(folder: Location, name: str) -> list[_File]:
    found = [file for file in folder.names() if _name_of(file) == name]
    numbers = [int(file.removesuffix(".json").rpartition(".")[2]) for file in found]
    return [_File(number, folder.child(file)) for number, file in sorted(zip(numbers, found, strict=True))]


def _latest(folder: Location, name: str) -> _File | None:
    return max(_files(folder, name), default=None, key=lambda file: file.number)


def _content_of(place: Location) -> bytes:
    try:
        return place.read()
    except FileNotFoundError:
        return b""


def _parsed(content: bytes) -> dict[str, Any]:
    """What a lease says about its holder; empty for content that is not a lease."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    is_lease = isinstance(owner, dict) and {"beat", "pid"} <= owner.keys()
    return owner if is_lease and all(isinstance(owner.get(name), str) for name in ("owner", "machine")) else {}


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unidentified process"
    return f"process {owner['pid']} on {owner.get('host', '?')} (since {owner.get('since', '?')})"


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; False for one of another machine, which may be alive."""
    if owner["machine"] != _machine() or not _machine():
        return False
    start = _start_of(owner["pid"])
    is_another = start is None or (start != "" and start != owner.get("started"))
    return is_another or (owner["pid"] == os.getpid() and owner["owner"] not in _held)


@cache
def _machine() -> str:
    """Text that identifies this boot of this machine and this set of process numbers; empty if that is unknown.

    Containers have process numbers of their own, and may all have the same host name.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return f"{platform.node()} {psutil.boot_time():.0f}" if not Path("/proc").exists() else ""


def _start_of(process: Any) -> str | None:
    """When a process began, as text; empty if the system does not tell, ``None`` if there is no such process."""
    try:
        if isinstance(process, bool) or not isinstance(process, int) or not psutil.pid_exists(process):
            return None
        if Path("/proc/self/stat").exists():
            # In ticks since the boot, which do not change when the clock is set.
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{psutil.Process(process).create_time():.0f}"
    except (OverflowError, ValueError, psutil.NoSuchProcess):
        return None
    except (OSError, psutil.AccessDenied):
        # Some systems show users only their own processes.
        return ""
