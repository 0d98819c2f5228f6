"""Whatever dies or fails while a study runs, the table is the same in the end, and no work is done twice."""

import errno
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from chaos import (
    OUT_OF_MEMORY,
    STORE_ERRORS,
    WORKER_BYTES,
    calls,
    disk_fails,
    disturbed_stand_in,
    killer,
    python,
    small_study,
    stand_in,
    steady,
    wait_until,
)
from clusters import local_client
from distributed import Client

from hypodask.cluster.processing import _process
from hypodask.core.errors import ClusterError, OutputError, StoreError
from hypodask.files.location import Location
from hypodask.storage.journal import read_journal
from hypodask.study.cohort import Cohort
from hypodask.study.results import open_results, verify

SCANS, KILLS = 60, 2
MANY, MORE_KILLS = 200, 4
RECONNECT_SECONDS = 5
"""How long a client looks for a scheduler that is gone; Dask's own half minute would be waited for in vain."""


@pytest.fixture(scope="module")
def client():
    with local_client(memory_limit=WORKER_BYTES) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def cohort(folder):
    return small_study(folder / "scans", SCANS)


@pytest.fixture(scope="module")
def undisturbed(cohort, folder, client):
    return _process(cohort, new(folder / "undisturbed"), client, progress=False, method=stand_in, load=None)


@pytest.fixture
def run(client):
    return partial(_process, client=client, progress=False, method=stand_in, load=None)


@pytest.fixture
def out(tmp_path):
    return new(tmp_path / "out")


def new(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def first(cohort: Cohort, scans: int) -> Cohort:
    return Cohort(cohort.table.iloc[:scans])


def assert_same(results: xr.Dataset, undisturbed: xr.Dataset) -> None:
    """Bit for bit; an undisturbed run has a volume of its own for every scan."""
    assert len(np.unique(undisturbed["volume_mm3"].sel(structure="icv"))) == undisturbed.sizes["scan"]
    xr.testing.assert_identical(steady(results), steady(undisturbed.isel(scan=slice(results.sizes["scan"]))))


def assert_complete(out: str, cohort: Cohort) -> None:
    assert sorted(read_journal(out).index) == sorted(cohort.table["scan"])
    assert verify(out) == []
    assert not any(call.was_done for call in calls(out))


def disturbed(cohort: Cohort, out: str, run: Callable[..., xr.Dataset], kills: int) -> xr.Dataset:
    """The results where workers are killed, one runs out of memory and the disk fails; all of it did happen."""
    with killer(out, kills, len(cohort)) as killed:
        results = run(cohort, out, method=disturbed_stand_in)
    often = Counter(call.scan for call in calls(out))
    failing = [scan for scan in cohort.table["scan"] if disk_fails(scan, attempt=1)]
    assert (len(killed), len(failing)) == (kills, pytest.approx(STORE_ERRORS * len(cohort), abs=1))
    assert min(often[scan] for scan in (OUT_OF_MEMORY, *failing)) > 1
    return results


def test_dying_workers_and_a_failing_disk_change_nothing(undisturbed, cohort, out, run):
    assert_same(disturbed(cohort, out, run, KILLS), undisturbed)
    assert_complete(out, cohort)


@pytest.mark.thorough
def test_more_dying_workers_and_a_failing_disk_change_nothing_of_more_scans(tmp_path, out, run):
    cohort = small_study(tmp_path / "scans", MANY)
    assert_same(disturbed(cohort, out, run, MORE_KILLS), run(cohort, new(tmp_path / "undisturbed")))
    assert_complete(out, cohort)


def test_a_client_that_is_killed_goes_on_where_it_stopped(undisturbed, cohort, out, run, tmp_path):
    cohort.table.to_parquet(tmp_path / "cohort.parquet")
    arguments = (str(tmp_path / "cohort.parquet"), out, 8)
    with python("-c", f"import chaos; chaos.run_client(*{arguments})") as client:
        wait_until(lambda: len(calls(out)) > SCANS // 2, "half of the scans")
        client.send_signal(signal.SIGKILL)
        client.wait()
    before, kept = len(calls(out)), set(read_journal(out).index)
    assert 8 <= len(kept) < SCANS
    assert_same(run(cohort, out), undisturbed)
    assert not kept & {call.scan for call in calls(out)[before:]}
    assert_complete(out, cohort)


def test_a_scheduler_that_is_killed_ends_the_run_with_the_advice_to_call_again(undisturbed, cohort, out, run, tmp_path):
    file = tmp_path / "scheduler.json"
    options = ("--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard")
    with python("-m", "distributed.cli.dask_scheduler", "--port", "0", *options) as scheduler:
        wait_until(file.exists, "the start of the scheduler")
        with python("-m", "distributed.cli.dask_worker", "--nthreads", "2", "--no-nanny", *options):

            def kill_scheduler() -> None:
                wait_until(lambda: len(calls(out)) > SCANS // 2, "half of the scans")
                scheduler.send_signal(signal.SIGKILL)

            thread = threading.Thread(target=kill_scheduler)
            thread.start()
            with (
                Client(scheduler_file=str(file), timeout=RECONNECT_SECONDS, set_as_default=False) as client,
                pytest.raises(ClusterError, match="make the same call again"),
            ):
                _process(cohort, out, client, progress=False, method=stand_in, load=None)
            thread.join()
    before, kept = len(calls(out)), set(read_journal(out).index)
    assert kept
    assert_same(run(cohort, out), undisturbed)
    assert not kept & {call.scan for call in calls(out)[before:]}
    assert_complete(out, cohort)


@pytest.mark.parametrize("filling", ["/cohort.parquet", ".parquet", "volumes.tsv", "results.json"])
def test_a_full_disk_stops_the_run_and_costs_nothing_that_was_done(undisturbed, cohort, out, run, monkeypatch, filling):
    cohort = first(cohort, 4)
    write = Location.write

    def full(self: Location, content: bytes, *, durable: bool = True) -> None:
        if self.url.endswith(filling):
            raise OSError(errno.ENOSPC, "No space left on device", self.url)
        write(self, content, durable=durable)

    with monkeypatch.context() as patched:
        patched.setattr(Location, "write", full)
        with pytest.raises(OutputError, match=r"cannot be written .*No space left on device") as error:
            run(cohort, out)
    assert error.value.errno == errno.ENOSPC
    assert_same(run(cohort, out), undisturbed)
    assert max(Counter(call.scan for call in calls(out)).values()) == 1
    assert_complete(out, cohort)


def test_a_lost_part_of_the_journal_is_told_and_made_again_from_the_stores(undisturbed, cohort, out, run):
    cohort = first(cohort, 4)
    run(cohort, out)
    part = part_of(out)
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(
        StoreError,
        match=r"parquet is damaged.* delete it and the file .sha256 beside it, then make the same call again",
    ):
        run(cohort, out)
    part.unlink()
    with pytest.raises(StoreError, match=r"parquet is missing, though its digest is there"):
        run(cohort, out)
    Path(f"{part}.sha256").unlink()
    assert_same(run(cohort, out), undisturbed)
    assert len(calls(out)) == 4
    assert_complete(out, cohort)


def test_a_store_that_was_cut_short_is_not_taken_for_a_row_that_was_lost(undisturbed, cohort, out, run):
    cohort = first(cohort, 2)
    results = run(cohort, out)
    voxels = next(path for path in Path(out, results["store"].item(0), "0", "c").rglob("*") if path.is_file())
    os.truncate(voxels, voxels.stat().st_size // 2)
    assert "bytes" in verify(out)[0]
    lose_journal(out)
    assert_same(run(cohort, out), undisturbed)
    assert [call.scan for call in calls(out)[2:]] == ["sub-000"]
    assert verify(out) == []


def test_clocks_that_differ_do_no_harm(undisturbed, cohort, out, run, tmp_path):
    paths = [tmp_path / Path(path).name for path in first(cohort, 4).table["path"]]
    for path, source, changed in zip(paths, cohort.table["path"], (1, 1e9, 4e9, 9e9), strict=False):
        path.write_bytes(Path(source).read_bytes())
        os.utime(path, (changed, changed))
    skewed = Cohort(first(cohort, 4).table.assign(path=[str(path) for path in paths]))
    for scans in (2, 4):
        run(first(skewed, scans), out)
    os.utime(part_of(out), (4e9, 4e9))
    stem, ahead = open_results_name(out).removesuffix(".zarr"), "results-21991231T235959-ffffff"
    for suffix in (".zarr", ".json"):
        Path(out, stem + suffix).rename(Path(out, ahead + suffix))
    pointer = Path(out, "results.json")
    pointer.write_text(pointer.read_text().replace(stem, ahead))
    results = run(Cohort(skewed.table.assign(group="PLS")), out)
    assert len(calls(out)) == 4
    assert set(open_results(out)["group"].to_numpy()) == {"PLS"}
    given = {name: undisturbed[name].isel(scan=slice(4)) for name in ("group", "path")}
    assert_same(results.assign_coords(given), undisturbed)


def open_results_name(out: str) -> str:
    return str(json.loads(Path(out, "results.json").read_text())["results"])


def part_of(out: str) -> Path:
    """The first part of the journal."""
    return min(Path(out, "journal").glob("*.parquet"))


def lose_journal(out: str) -> None:
    for path in Path(out, "journal").iterdir():
        path.unlink()
