"""What a worker notes about itself while it has a scan: its memory, the time, and what was said in the log."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_STATUS, _CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_KEEPS_PEAK = _CLEAR_PEAK.exists()

LOOK_SECONDS = 0.5
"""How often deadlines are looked at."""

LOG_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")


class PeakMemory:
    """The largest resident memory of this process within a context, MiB.

    Where the system keeps no peak that can be begun anew (anywhere but on Linux), what it has at the end.

    Examples
    --------
    >>> with PeakMemory() as memory:
    ...     _ = bytearray(2**24)
    >>> memory.mib > 16
    True
    """

    mib: float
    """There once the context is left."""

    def __enter__(self) -> Self:
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
    """Until when each of several pieces of work may take; one thread looks after all, for one each would cost more.

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
        """Call ``give_up``, in another thread, where what is done in this context takes longer; ``None``: never."""
        if seconds is None:
            yield
            return
        self._look_after()
        number = next(self._numbers)
        self._pending[number] = (time.monotonic() + seconds, give_up)
        try:
            yield
        finally:
            self._pending.pop(number, None)

    def _look_after(self) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_again_and_again, daemon=True)
                self._thread.start()

    def _look_again_and_again(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            for number, (deadline, give_up) in list(self._pending.items()):
                if time.monotonic() > deadline and number in self._pending:
                    del self._pending[number]
                    give_up()


class ScanLog(logging.Handler):
    """What hypodask logs in this thread within a context, with the traces of errors.

    Examples
    --------
    >>> with ScanLog() as said:
    ...     logging.getLogger("hypodask").warning("the scan is dark")
    >>> said.text.endswith("WARNING hypodask: the scan is dark")
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LOG_FORMAT)
        self._thread = threading.get_ident()
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        """All that was said, one line for a message; empty where nothing was."""
        return "\n".join(self._lines)

    def __enter__(self) -> Self:
        logging.getLogger("hypodask").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("hypodask").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message of this thread; other scans may be under way in other threads."""
        if record.thread == self._thread:
            self._lines.append(self.format(record))
