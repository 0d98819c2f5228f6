"""What a person sees of a run."""

import hypodask.core.progress
from hypodask.core.progress import Progress


def test_rate_and_time_left_come_from_this_call_only(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(hypodask.core.progress.time, "monotonic", lambda: now[0])
    progress = Progress(10, done=4, failed=1, shown=False)
    assert (progress.counts, progress.pace) == ("done 4, failed 1, left 5", "")
    now[0] = 60.0
    progress.count("done")
    progress.count("failed")
    assert (progress.counts, progress.pace) == ("done 5, failed 2, left 3", "120 scans/h, 0:01:30 left")


def test_plain_lines_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(hypodask.core.progress.time, "monotonic", lambda: now[0])
    with Progress(3) as progress:
        for seconds in (1.0, 31.0, 32.0):
            now[0] = seconds
            progress.count("done")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "hypodask: done 2, failed 0, left 1  232 scans/h, 0:00:16 left",
        "hypodask: done 3, failed 0, left 0  338 scans/h, 0:00:00 left",
    ]


def test_nothing_is_shown_when_nobody_asked(capsys):
    with Progress(1, shown=False) as progress:
        progress.count("done")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
