"""What a worker measures while it has a scan: its memory, the time, and the messages of the log."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType

import psutil

_STATUS, _CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_KEEPS_PEAK = _CLEAR_PEAK.exists()

_LOOK_SECONDS = 0.5
"""Seconds between two checks of the deadlines."""

_LOG_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")


class PeakMemory:
    """The largest resident memory of this process within a context, MiB.

    On systems other than Linux the peak cannot be reset; there it is the memory at the end of the context.

    Examples
    --------
    >>> with PeakMemory() as memory:
    ...     _ = bytearray(2**24)
    >>> memory.mib > 16
    True
    """

    mib: float
    """Set at the end of the context."""

    def __enter__(self) -> "PeakMemory":
        if _KEEPS_PEAK:
            _CLEAR_PEAK.write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mib = _peak_mib()


def _peak_mib() -> float:
    if not _KEEPS_PEAK:
        return float(psutil.Process().memory_info().rss / 2**20)
    peak = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


class Deadlines:
    """Time limits of several jobs, checked by one thread, because one thread for each would cost more.

    Examples
    --------
    >>> with Deadlines().within(60.0, lambda: print("this takes too long")):
    ...     pass
    """

    def __init__(self) -> None:
        self._pending: dict[int, tuple[float, Callable[[], None]]] = {}
        self._numbers = count()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def within(self, seconds: float | None, give_up: Callable[[], None]) -> Iterator[None]:
        """Call ``give_up`` in another thread if this context takes longer than so many seconds; ``None``: never."""
        if seconds is None:
            yield
            return
        self._start_checking()
        number = next(self._numbers)
        self._pending[number] = (time.monotonic() + seconds, give_up)
        try:
            yield
        finally:
            self._pending.pop(number, None)

    def _start_checking(self) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._check, daemon=True)
                self._thread.start()

    def _check(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            for number, (deadline, give_up) in list(self._pending.items()):
                if time.monotonic() > deadline and number in self._pending:
                    del self._pending[number]
                    give_up()


class ScanLog(logging.Handler):
    """The messages that hypodask logs in this thread within a context, with the tracebacks of errors.

    Examples
    --------
    >>> with ScanLog() as scan_log:
    ...     logging.getLogger("hypodask").warning("the scan is dark")
    >>> scan_log.text.endswith("WARNING hypodask: the scan is dark")
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_LOG_FORMAT)
        self._thread = threading.get_ident()
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        """All messages, one on each line; empty if there were none."""
        return "\n".join(self._lines)

    def __enter__(self) -> "ScanLog":
        logging.getLogger("hypodask").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("hypodask").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message of this thread; other threads may work on other scans."""
        if record.thread == self._thread:
            self._lines.append(self.format(record))
