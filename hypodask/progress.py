"""How far a run is: a live bar on a terminal, now and then a plain line anywhere else."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 30.0
"""A log of a night's run should be readable."""

REFRESH_SECONDS = 0.1
"""Nobody reads faster, and to draw a bar takes longer than a scan that is refused."""


class Progress:
    """Counts scans and shows them on standard error.

    Rate and time left come from what this call completed, never from what was done before.

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

    def __enter__(self) -> Self:
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
        """Scans per hour and the time left at that rate; empty before the first scan came in."""
        completed = self.done + self.failed - self._earlier
        if not completed:
            return ""
        seconds_each = (time.monotonic() - self._started) / completed
        return (
            f"{3600 / seconds_each:.0f} scans/h, {clock(seconds_each * (self.total - self._earlier - completed))} left"
        )

    def count(self, status: str) -> None:
        """One more scan came in."""
        if status == "done":
            self.done += 1
        else:
            self.failed += 1
        self.refresh()

    def refresh(self) -> None:
        """Show where the run is, at most every :data:`LINE_SECONDS` where there is no terminal."""
        if time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            self._show()

    def _show(self) -> None:
        self._refreshed = time.monotonic()
        text = f"{self.counts}  {self.pace}".rstrip()
        self._bar.update(self._task, completed=self.done + self.failed, description=text)
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"hypodask: {self.counts}  {self.pace}".rstrip(), highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
