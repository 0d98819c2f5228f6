"""Progress of a run: a live bar on a terminal, elsewhere a plain line from time to time."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

_LINE_SECONDS = 30.0
"""Time from one plain line to the next, so that the log of a long run stays readable."""

_REFRESH_SECONDS = 0.1
"""Time from one drawing of the bar to the next; to draw it takes longer than to refuse a scan."""


class Progress:
    """Counts scans and shows them on standard error.

    The rate and the time left come from the scans that this call completed, never from earlier calls.

    Examples
    --------
    >>> progress = Progress(total=3, done=1, shown=False)
    >>> progress.count("failed")
    >>> progress.counts
    'done 1, failed 1, left 1'
    """

    def __init__(self, total: int, *, done: int = 0, failed: int = 0, shown: bool = True) -> None:
        self.total, self.done, self.failed = total, done, failed
        self._earlier = done + failed
        self._started = self._said = time.monotonic()
        self._refreshed = float("-inf")
        self._console = Console(stderr=True, quiet=not shown)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._bar = Bar(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=self._earlier)

    def __enter__(self) -> "Progress":
        self._bar.start()
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        self._bar.stop()
        self._say()

    @property
    def counts(self) -> str:
        """Scans done, failed and left."""
        return f"done {self.done}, failed {self.failed}, left {self.total - self.done - self.failed}"

    @property
    def pace(self) -> str:
        """Scans per hour and the time left at that rate; empty before the first scan is complete."""
        completed = self.done + self.failed - self._earlier
        if not completed:
            return ""
        seconds_each = (time.monotonic() - self._started) / completed
        return (
            f"{3600 / seconds_each:.0f} scans/h, {clock(seconds_each * (self.total - self._earlier - completed))} left"
        )

    def count(self, status: str) -> None:
        """Count one more scan, ``done`` or not."""
        if status == "done":
            self.done += 1
        else:
            self.failed += 1
        self.refresh()

    def refresh(self) -> None:
        """Show where the run is, at most once in 30 seconds where there is no terminal."""
        if time.monotonic() - self._refreshed >= _REFRESH_SECONDS:
            self._show()

    def _show(self) -> None:
        self._refreshed = time.monotonic()
        text = f"{self.counts}  {self.pace}".rstrip()
        self._bar.update(self._task, completed=self.done + self.failed, description=text)
        if time.monotonic() - self._said >= _LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"hypodask: {self.counts}  {self.pace}".rstrip(), highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    >>> clock(3725)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
