"""Several quick scans in one task: as many rows as scans, whatever happens in it, and nobody is blamed for another."""

import os
import time
from collections import deque
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
from array_types import unchecked
from clusters import local_client
from distributed import Client
from distributed.comm import CommClosedError

import hypodask.cluster.window
from hypodask.cluster import each
from hypodask.cluster.window import _LARGEST_BATCH, Window, _Batches, _packed, _stream, _work_through
from hypodask.core.errors import ClusterError
from hypodask.study.cohort import Entry
from hypodask.study.planning import Job

DEADLY_ONCE, WRONG = 300, 350


@pytest.fixture(scope="module")
def client():
    with local_client() as client:
        yield client


def doubled(folder: Path, number: int) -> int:
    """Quick work, one piece of which ends its worker the first time, and one of which is wrong."""
    if number == DEADLY_ONCE and not (folder / "died").exists():
        (folder / "died").touch()
        os._exit(1)
    if number == WRONG:
        raise ValueError("350 cannot be doubled")
    return 2 * number


def test_every_item_of_a_task_has_an_outcome_of_its_own(client, tmp_path, monkeypatch):
    submitted, submit = [], Client.submit

    def counted(self, work, task, packed, **options):
        submitted.append(packed)
        return submit(self, work, task, packed, **options)

    monkeypatch.setattr(Client, "submit", counted)
    outcomes = list(each(partial(doubled, tmp_path), range(600), client=client))
    assert (tmp_path / "died").exists()
    assert sorted(outcome.item for outcome in outcomes) == list(range(600))
    assert all(outcome.value == 2 * outcome.item for outcome in outcomes if outcome.item != WRONG)
    (wrong,) = (outcome for outcome in outcomes if outcome.error)
    assert (wrong.item, str(wrong.error)) == (WRONG, "350 cannot be doubled")
    assert len(submitted) < 300


def sleeping(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_slow_items_that_follow_quick_ones_do_not_queue_behind_each_other(client, monkeypatch):
    monkeypatch.setattr(hypodask.cluster.window, "_BATCH_SECONDS", 0.01)
    outcomes = list(each(sleeping, [0.0] * 200 + [0.3] * 4, client=client))
    assert sorted(outcome.get() for outcome in outcomes) == [0.0] * 200 + [0.3] * 4


def test_a_task_does_what_fits_in_its_time_and_at_least_one_item(monkeypatch):
    values, seconds = _work_through(str, _packed([1, 2, 3]))
    assert (values, seconds < 1) == (["1", "2", "3"], True)
    monkeypatch.setattr(hypodask.cluster.window, "_BATCH_SECONDS", 0.0)
    assert _work_through(sleeping, _packed([0.01, 0.01]))[0] == [0.01]


def test_a_task_of_many_scans_is_small_for_the_scheduler():
    names = [f"sub-{number:06d}" for number in range(_LARGEST_BATCH)]
    jobs = [Job(Entry(name, f"/study/{name}/anat/{name}_T1w.nii.gz", name), f"scans/{name}", name) for name in names]
    assert len(_packed(jobs)) < 50 * _LARGEST_BATCH


def test_tasks_grow_while_they_are_quick_and_shrink_to_what_was_done():
    batches = _Batches(_LARGEST_BATCH)
    many = deque(range(10_000))
    sizes = []
    for _ in range(10):
        sizes.append(len(batches.take(many, 8)))
        batches.learn(sizes[-1], sizes[-1], seconds=0.0)
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]
    batches.learn(256, 3, seconds=1.2)
    assert len(batches.take(many, 8)) == 3
    batches.learn(3, 3, seconds=0.9)
    assert len(batches.take(many, 8)) == 3


def test_the_last_items_are_shared_among_the_workers():
    batches = _Batches(_LARGEST_BATCH)
    for _ in range(8):
        batches.learn(256, 256, seconds=0.0)
    assert len(batches.take(deque(range(160)), 8)) == 10
    assert len(batches.take(deque(range(7)), 8)) == 1


class Ending:
    """A future that ends with each of these states in turn, and then gives its value."""

    def __init__(self, *states: str, gone: bool = False) -> None:
        self.key, self._states, self._gone = "process", list(states), gone

    def add_done_callback(self, tell) -> None:
        self.status = self._states.pop(0)
        tell(self)

    def exception(self) -> None:
        return None

    def result(self) -> tuple[list[str], float]:
        if self._gone:
            raise CommClosedError("in <TCP (closed)>: Stream is closed")
        return ["done"], 0.1


def outcomes_of(future: Ending) -> list[object]:
    client = Mock(spec=Client, submit=Mock(return_value=future))
    with unchecked():
        return [completed.value for completed in _stream(client, ["job"], str, Window(client, 1), _Batches(1))]


def test_a_value_that_is_lost_with_its_worker_is_waited_for():
    assert outcomes_of(Ending("lost", "pending", "finished")) == ["done"]


def test_a_scheduler_that_is_gone_as_a_value_is_fetched_is_told():
    with pytest.raises(ClusterError, match="make the same call again to go on"):
        outcomes_of(Ending("finished", gone=True))
    with pytest.raises(ClusterError, match="make the same call again to go on"):
        outcomes_of(Ending("cancelled"))
