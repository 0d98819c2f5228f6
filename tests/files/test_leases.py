"""Of all who want to work at one thing one does; nobody waits for who is gone, and who was away for long stops."""

import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from hypodask.core.errors import ClusterError
from hypodask.core.grid import Grid
from hypodask.files import leases
from hypodask.files.leases import drop_ended, drop_legacy_lock, held, holders, unlock
from hypodask.files.location import Location
from hypodask.scan import Scan
from hypodask.storage.store import mark_done, read_done, write_scan


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats for people in a hurry."""
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "_EXPIRES_SECONDS", 0.6)
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.02)


@pytest.fixture(params=["folder", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location(str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}")


def left_behind(out: Location, **changes: object) -> bytes:
    """The lease of a process of this machine that has ended, as it lies there."""
    owner = {"host": platform.node(), "pid": 2**22 + 1, "started": "1", "machine": leases._machine()}
    owner |= {"since": "2026-11-01 01:00:00 UTC", "owner": "a" * 32, "beat": 3}
    content = json.dumps(owner | changes).encode()
    out.child("locks", "results.00000007.json").write(content)
    return content


def test_a_second_one_is_kept_out_until_the_first_has_left(out: Location) -> None:
    with held(out, "results"):
        waiting = held(out, "results", patience=0)
        with pytest.raises(ClusterError, match=f"process {os.getpid()} on .* .since .*--unlock"), waiting:
            pass
        with held(out, "scan-sub-01"):
            pass
    with held(out, "results", patience=0):
        pass
    assert out.names() == []


def test_who_waits_comes_next(out: Location) -> None:
    began, order = threading.Event(), []

    def second() -> None:
        began.set()
        with held(out, "results"):
            order.append("second")

    with held(out, "results"):
        thread = threading.Thread(target=second)
        thread.start()
        began.wait()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pid": 10**30},
        {"pid": -1},
        {"pid": "one"},
        {"pid": os.getpid(), "started": "1"},
        {"pid": os.getpid(), "started": leases._start_of(os.getpid())},
    ],
    ids=["ended", "huge", "negative", "text", "number of this process, of an earlier one", "this process, not held"],
)
def test_the_lease_of_a_process_of_this_machine_that_is_gone_is_taken_at_once(
    out: Location, changes: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(out, **changes)
    began = time.monotonic()
    with held(out, "results", patience=0):
        assert out.child("locks").names() == ["results.00000008.json"]
    assert time.monotonic() - began < 0.5
    assert "was cut off; going on where it stopped" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"[" * 200_000,
        b'{"host": "elsewhere", "pid": 1}',
        b'{"owner": [], "beat": 0, "pid": 1, "machine": "x"}',
    ],
)
def test_what_is_no_lease_of_ours_counts_as_expired(out: Location, content: bytes) -> None:
    out.child("locks", "results.00000001.json").write(content)
    with held(out, "results", patience=0):
        pass


def test_numbers_may_grow(out: Location) -> None:
    out.child("locks", "results.99999999.json").write(left_behind(out))
    with held(out, "results", patience=0) as lease:
        lease.check()
    with held(out, "results", patience=0):
        pass


def test_a_process_of_another_machine_is_gone_once_it_gives_no_sign(out: Location) -> None:
    left_behind(out, machine="another", pid=os.getpid())
    began = time.monotonic()
    with held(out, "results", patience=0):
        assert time.monotonic() - began > 0.5


def test_a_process_of_another_machine_that_gives_a_sign_is_respected_whatever_its_clock(out: Location) -> None:
    over = threading.Event()
    sign = {"machine": "another", "since": "1970-01-01 00:00:00 UTC"}
    left_behind(out, **sign)

    def beat() -> None:
        for number in count(4):
            left_behind(out, **sign, beat=number)
            if over.wait(0.05):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ClusterError, match="since 1970-01-01"), held(out, "results", patience=1.0):
            pass
        assert len(holders(out, "results")) == 1
    finally:
        over.set()
        thread.join()


def test_holders_are_those_who_are_there(out: Location) -> None:
    left_behind(out)
    with held(out, "run-1"), held(out, "scan-sub-01"):
        assert holders(out, "results") == []
        assert [holder.endswith("(run-1)") for holder in holders(out, "run-")] == [True]
    assert holders(out, "") == []


def test_a_heartbeat_keeps_a_lease_for_longer_than_it_would_last(out: Location) -> None:
    with held(out, "results") as lease:
        time.sleep(1.0)
        with pytest.raises(ClusterError, match="is at work"), held(out, "results", patience=0):
            pass
        lease.check()


@pytest.mark.parametrize("lose", ["taken over", "unlocked", "deleted"])
def test_who_lost_the_lease_is_told_before_it_writes(out: Location, lose: str) -> None:
    with held(out, "results") as lease:
        if lose == "taken over":
            out.child("locks", "results.00000002.json").write(left_behind(out, machine="another"))
        elif lose == "unlocked":
            unlock(out.url)
        else:
            out.child("locks").delete()
        with pytest.raises(ClusterError, match=r"lost its lease .* make the same call again"):
            lease.check()
        time.sleep(0.3)
        assert lease.is_lost
    assert not any("00000001" in name for name in out.child("locks").names())


def test_the_store_of_a_scan_is_not_finished_by_who_lost_its_claim(out: Location) -> None:
    store = out.child("scans", "sub-01.nii.zarr")
    scan = Scan(np.zeros((4, 4, 4), np.uint8), Grid((4, 4, 4), np.eye(4), "scanner"))
    with held(out, "scan-sub-01"):
        write_scan(store, scan)
        unlock(out.url)
        with pytest.raises(ClusterError, match="lost its lease"):
            mark_done(store, {})
        with pytest.raises(ClusterError, match="lost its lease"):
            write_scan(store, scan)
    assert read_done(store) is None
    mark_done(store, {})


def test_leases_of_processes_that_have_ended_are_dropped_and_no_others(out: Location) -> None:
    left_behind(out)
    out.child("locks", "scan-a.00000001.json").write(b"{}")
    with held(out, "run-1"):
        drop_ended(out)
        assert out.child("locks").names() == ["run-1.00000001.json", "scan-a.00000001.json"]


def test_the_lock_of_version_0_1_0_is_dropped_with_a_word(out: Location, caplog: pytest.LogCaptureFixture) -> None:
    out.child("running.json").write(b'{"host": "node17", "pid": 4242, "since": "2026-11-01"}')
    drop_legacy_lock(out)
    assert "counts as expired" in caplog.text
    assert not out.child("running.json").exists()


HOLDER = """
import sys, time
from hypodask.files import leases
from hypodask.files.location import Location
leases._BEAT_SECONDS, leases._EXPIRES_SECONDS = 0.05, 0.6
with leases.held(Location(sys.argv[1]), "results") as lease:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.check()
    except leases.ClusterError as err:
        print(err, flush=True)
    else:
        print("still held", flush=True)
"""


def holder(out: Location) -> "subprocess.Popen[str]":
    begun = subprocess.Popen(
        [sys.executable, "-c", HOLDER, out.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert begun.stdout is not None
    assert begun.stdout.readline() == "held\n"
    return begun


def test_a_process_that_was_stopped_for_long_stops_before_it_writes(tmp_path: Path) -> None:
    out = Location(str(tmp_path / "out"))
    with holder(out) as other:
        other.send_signal(signal.SIGSTOP)
        with held(out, "results", patience=0):
            other.send_signal(signal.SIGCONT)
            said, _ = other.communicate("\n")
    assert "lost its lease" in said
    assert f"held by process {os.getpid()} on" in said


def test_a_process_that_was_killed_leaves_a_lease_that_nobody_waits_for(tmp_path: Path) -> None:
    out = Location(str(tmp_path / "out"))
    with holder(out) as other:
        other.kill()
    with held(out, "results", patience=0):
        pass


def race(out: Location, rounds: int, takers: int) -> int:
    """How often two held at once what a dead process had left; every round is won by somebody."""
    inside, most, lock = [0], [0], threading.Lock()
    barrier = threading.Barrier(takers, timeout=60)

    def take() -> None:
        for number in range(rounds):
            if barrier.wait() == 0:
                left_behind(out, beat=number)
            barrier.wait()
            with held(out, "results"):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0)
                with lock:
                    inside[0] -= 1

    with ThreadPoolExecutor(takers) as pool:
        ended = [pool.submit(take) for _ in range(takers)]
        for one in ended:
            one.add_done_callback(lambda one: one.exception() and barrier.abort())
    errors = [
        error for one in ended if (error := one.exception()) and not isinstance(error, threading.BrokenBarrierError)
    ]
    assert errors == []
    return most[0]


def test_of_several_that_take_over_at_once_one_does(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.001)
    assert race(out, 60, 3) == 1


def take_over(out: str, rounds: int, together: Callable[[], int], doubles: "multiprocessing.Queue[int]") -> None:
    """A process of its own in a race for what dead ones left: an exclusive file shows whether it is alone."""
    leases._LOOK_SECONDS = 0.001
    place, alone, seen = Location(out), Path(out, "alone"), 0
    for number in range(rounds):
        if together() == 0:
            left_behind(place, beat=number)
        together()
        with held(place, "results"):
            try:
                alone.touch(exist_ok=False)
                alone.unlink()
            except FileExistsError:
                seen += 1
    doubles.put(seen)


@pytest.mark.thorough
def test_of_10000_races_of_processes_none_lets_two_in(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, doubles = context.Barrier(4, timeout=60), context.Queue()
    racers = [context.Process(target=take_over, args=(str(tmp_path), 10_000, barrier.wait, doubles)) for _ in range(4)]
    for racer in racers:
        racer.start()
    assert [doubles.get() for _ in racers] == [0] * 4
    for racer in racers:
        racer.join()
