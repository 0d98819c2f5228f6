import logging
import sys
import threading
import time

import psutil
import pytest

from hypodask.cluster.monitoring import _LOOK_SECONDS, Deadlines, PeakMemory, ScanLog

MIB = 2**20


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / MIB


def test_what_takes_too_long_is_given_up_and_what_is_done_in_time_is_not():
    given_up = threading.Event()
    deadlines, in_time = Deadlines(), []
    with deadlines.within(60.0, lambda: in_time.append("given up")), deadlines.within(0.1, given_up.set):
        assert given_up.wait(10.0)
    with deadlines.within(0.1, lambda: in_time.append("left")):
        pass
    time.sleep(0.1 + 2 * _LOOK_SECONDS)
    assert in_time == []


def test_without_a_limit_nothing_is_given_up_and_no_thread_is_started():
    before = threading.active_count()
    with Deadlines().within(None, lambda: pytest.fail("there was no limit")):
        assert threading.active_count() == before


def test_many_pieces_of_work_share_one_thread():
    before = threading.active_count()
    deadlines = Deadlines()
    for _ in range(20):
        with deadlines.within(60.0, lambda: None):
            pass
    assert threading.active_count() == before + 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a peak that can be begun anew")
def test_the_peak_of_a_scan_is_its_own():
    before = resident_mib()
    with PeakMemory() as large:
        assert len(b"x" * (200 * MIB)) == 200 * MIB
    with PeakMemory() as small:
        pass
    assert large.mib > before + 190
    assert small.mib < large.mib - 100


def test_the_log_of_a_scan_holds_what_its_own_thread_said():
    log = logging.getLogger("hypodask.test")
    with ScanLog() as said:
        other = threading.Thread(target=log.warning, args=("the other scan is dark",))
        other.start()
        other.join()
        log.warning("this scan is dark")
    log.warning("this is said after it")
    assert [line.partition(": ")[2] for line in said.text.splitlines()] == ["this scan is dark"]
