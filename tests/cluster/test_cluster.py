"""N scans in, N rows out, whatever happens to a scan or to a worker; and nothing is done twice."""

import json
import os
import shutil
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import dask.config
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from clusters import local_client
from dask.utils import parse_timedelta
from distributed import Client

import hypodask
import hypodask.pipeline
from hypodask.cluster import LOST_WORKER, connection, each, plan, process
from hypodask.cluster.connection import reached_cluster
from hypodask.cluster.processing import _plan, _process
from hypodask.core.errors import ClusterError, CohortError, LocationError, ModelError, NonFiniteError, OutputError
from hypodask.core.grid import Grid
from hypodask.core.progress import Progress
from hypodask.core.row import Row
from hypodask.files.leases import FORGETTING, held
from hypodask.files.location import Location
from hypodask.scan import Scan, read_scan
from hypodask.storage.journal import read_journal
from hypodask.storage.store import delete_store, mark_done, write_scan
from hypodask.study.cohort import Cohort
from hypodask.study.planning import input_stamp
from hypodask.study.results import open_results, verify

SOUND, REFUSED, FAILED_INSIDE = "sound", "refused", "failed inside"
BUG, DISK, FLAKY, DEADLY, ONCE_DEADLY, ENDLESS = "bug", "disk", "flaky", "deadly", "once deadly", "endless"


def stand_in(path: str, *, scan: str, out: str, store: str, models: object, stamp: str) -> Row:
    """A stand-in for the pipeline: the content of a file says what happens to it."""
    with Path(out, "calls.txt").open("a") as calls:
        calls.write(f"{scan}\n")
    before = Path(out, "calls.txt").read_text().split().count(scan)
    order = Path(path).read_text()
    if order == DEADLY or (order == ONCE_DEADLY and before == 1):
        os._exit(1)
    if order == ENDLESS:
        time.sleep(600)
    if order == REFUSED:
        raise NonFiniteError("3 voxels are NaN; export the scan again")
    if order == FAILED_INSIDE:
        return Row(scan, "failed", stage="align", error="AlignmentError", reason="no head was found")
    if order == BUG:
        raise KeyError("unforeseen")
    if order == DISK or (order == FLAKY and before <= 2):
        raise OSError(28, "No space left on device")
    voxels = np.full((4, 4, 4), len(scan), np.uint8)
    write_scan(f"{out}/{store}", Scan(voxels, Grid((4, 4, 4), np.eye(4), "scanner")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    row = Row(scan, "done", volume_mm3={"icv": 1.5e6}, seconds=0.1, store=store, model=str(models), warnings=str(cores))
    mark_done(f"{out}/{store}", {"stamp": stamp, "row": row.as_dict()})
    return row


HANG_SECONDS = 25.0


def hang(path: str, **_: object) -> Row:
    """A stand-in for the pipeline that takes longer than anybody waits."""
    time.sleep(HANG_SECONDS)
    raise AssertionError(path)


def read_alone(path: str, *, scan: str, out: str, store: str, models: object, stamp: str) -> Row:
    """A stand-in for the pipeline that reads the scan and writes nothing."""
    return Row(scan, "done", sha256=read_scan(path).sha256)


def load(models: object) -> str:
    if models == "broken":
        raise ModelError("broken holds no weights; name another file")
    return f"loaded {models} in {os.getpid()}"


@pytest.fixture(scope="module")
def client():
    with local_client() as client:
        yield client


@pytest.fixture
def study(tmp_path):
    """``study(sound, refused)`` is a cohort of files with these contents."""

    def write(*orders: str) -> Cohort:
        (tmp_path / "bids").mkdir(exist_ok=True)
        paths = [tmp_path / "bids" / f"sub-{number:02d}.nii" for number in range(len(orders))]
        for path, order in zip(paths, orders, strict=True):
            path.write_text(order)
        scans = [path.stem for path in paths]
        text = {"participant_id": scans, "session": "", "run": "", "site": "", "group": "control"}
        return Cohort(pd.DataFrame({"scan": scans, "path": [str(path) for path in paths], **text}))

    return write


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return str(tmp_path / "out")


@pytest.fixture
def run(client, out):
    return partial(_process, url=out, client=client, progress=False, method=stand_in, load=None)


def calls(out: str) -> Counter:
    log = Path(out, "calls.txt")
    return Counter(log.read_text().split() if log.exists() else [])


def forget_calls(out: str) -> None:
    Path(out, "calls.txt").unlink()


def test_every_scan_has_a_row_whatever_happened_to_it(run, study, out):
    results = run(study(SOUND, REFUSED, FAILED_INSIDE, BUG, DISK, FLAKY, SOUND))
    assert results["scan"].to_numpy().tolist() == [f"sub-{number:02d}" for number in range(7)]
    assert results["status"].to_numpy().tolist() == ["done", *["failed"] * 4, "done", "done"]
    assert results["stage"].to_numpy().tolist() == ["", "read", "align", "cluster", "cluster", "", ""]
    assert results["error"].to_numpy().tolist()[1:5] == ["NonFiniteError", "AlignmentError", "KeyError", "OSError"]
    assert results["reason"].to_numpy().tolist()[1] == "3 voxels are NaN; export the scan again"
    assert results["volume_mm3"].sel(scan="sub-00", structure="icv").item() == 1.5e6
    xr.testing.assert_identical(open_results(out), results)
    assert verify(out) == []


def test_only_errors_of_the_disk_or_the_network_are_tried_again(run, study, out):
    run(study(SOUND, REFUSED, BUG, DISK, FLAKY))
    assert list(dict(sorted(calls(out).items())).values()) == [1, 1, 1, 3, 3]


def test_a_second_call_does_nothing(run, study, out):
    cohort = study(SOUND, REFUSED, SOUND)
    first = run(cohort)
    before = {path: path.stat().st_mtime_ns for path in Path(out).rglob("*") if path.name != "cohort.parquet"}
    second = run(cohort)
    after = {path: path.stat().st_mtime_ns for path in before if path != Path(out)}
    assert after == {path: stamp for path, stamp in before.items() if path != Path(out)}
    assert calls(out) == {"sub-00": 1, "sub-01": 1, "sub-02": 1}
    xr.testing.assert_identical(first, second)


def test_after_one_store_was_deleted_one_scan_is_done(run, study, out):
    cohort = study(SOUND, SOUND, SOUND)
    first = run(cohort)
    delete_store(f"{out}/{first['store'].sel(scan='sub-01').item()}")
    forget_calls(out)
    run(cohort)
    assert calls(out) == {"sub-01": 1}
    assert verify(out) == []


def test_a_store_without_a_done_mark_is_made_anew(run, study, out):
    cohort = study(SOUND, SOUND)
    run(cohort)
    Location(out).child("scans/sub-00.nii.zarr/done.json").delete()
    run(cohort)
    assert calls(out) == {"sub-00": 2, "sub-01": 1}


def test_a_scan_whose_file_changed_is_done_anew(run, study, out):
    run(study(REFUSED, SOUND))
    Path(study(SOUND, SOUND).table["path"][1]).write_text(SOUND + " ")
    cohort = study(SOUND, SOUND)
    os.utime(cohort.table["path"][1], ns=(0, 0))
    assert run(cohort)["status"].to_numpy().tolist() == ["done", "done"]
    assert calls(out) == {"sub-00": 2, "sub-01": 2}


def test_a_refused_scan_is_tried_again_only_when_asked_but_what_was_not_its_fault_always(run, study, out):
    cohort = study(REFUSED, DISK)
    run(cohort)
    forget_calls(out)
    run(cohort)
    assert calls(out) == {"sub-01": 3}
    forget_calls(out)
    run(cohort, retry_failed=True)
    assert calls(out) == {"sub-00": 1, "sub-01": 3}


def test_new_scans_of_a_study_are_added_and_lost_ones_leave_the_results(run, study, out):
    run(study(SOUND, SOUND))
    forget_calls(out)
    cohort = study(SOUND, SOUND, SOUND)
    # Writing the files again changed their time; put it back to that of the journal.
    stamps = read_journal(out)["stamp"]
    for scan, path in zip(cohort.table["scan"][:2], cohort.table["path"][:2], strict=True):
        os.utime(path, (0, float(stamps[scan].split(";")[0].split(":")[1])))
    assert run(cohort).sizes["scan"] == 3
    assert calls(out) == {"sub-02": 1}
    assert run(Cohort(cohort.table.iloc[2:])).sizes["scan"] == 1


def test_changed_covariates_reach_the_results_without_any_scan_being_done(run, study, out):
    cohort = study(SOUND)
    run(cohort)
    run(Cohort(cohort.table.assign(group="PLS")))
    assert open_results(out)["group"].item() == "PLS"
    assert calls(out) == {"sub-00": 1}


def test_networks_are_loaded_once_in_each_worker(run, study, out):
    results = run(study(*[SOUND] * 8), models="name", load=load)
    loaded = set(results["model"].to_numpy())
    assert 1 <= len(loaded) <= 2
    assert all(model.startswith("loaded name in ") for model in loaded)


def test_other_weights_make_a_scan_undone(run, study, out, tmp_path):
    cohort = study(SOUND)
    weights = tmp_path / "weights.h5"
    for content in (b"one", b"one", b"two"):
        weights.write_bytes(content)
        run(cohort, models=weights)
    assert calls(out) == {"sub-00": 2}


def test_weights_that_cannot_be_loaded_stop_the_run_before_any_scan(run, study, out):
    with pytest.raises(ModelError, match="broken holds no weights"):
        run(study(SOUND), models="broken", load=load)
    assert calls(out) == {}


def test_no_more_than_a_window_of_scans_is_in_flight(client, study, out, monkeypatch):
    submitted, released, most = [], [], []
    submit, count = Client.submit, Progress.count

    def counted_submit(self, *args, **kwargs):
        submitted.append(1)
        most.append(len(submitted) - len(released))
        return submit(self, *args, **kwargs)

    def counted_row(self, status):
        released.append(1)
        count(self, status)

    monkeypatch.setattr(Client, "submit", counted_submit)
    monkeypatch.setattr(Progress, "count", counted_row)
    _process(study(*[SOUND] * 9), out, client, window=3, progress=False, method=stand_in, load=None)
    assert (max(most), len(submitted)) == (3, 9)


def test_nothing_is_left_in_the_cluster(client, run, study):
    run(study(SOUND, BUG))
    deadline = time.monotonic() + 5
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0


def test_an_interrupted_run_keeps_what_came_in_and_goes_on_from_there(client, study, out, monkeypatch):
    def interrupt(self: Progress, status: str) -> None:
        raise KeyboardInterrupt

    cohort = study(*[SOUND] * 4)
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "count", interrupt)
        with pytest.raises(KeyboardInterrupt) as stopped:
            _process(cohort, out, client, window=1, progress=False, method=stand_in, load=None)
    assert "make the same call again to go on" in stopped.value.__notes__[0]
    assert len(read_journal(out)) == 1
    assert "locks" not in Location(out).names()
    _process(cohort, out, client, progress=False, method=stand_in, load=None)
    assert max(calls(out)[scan] for scan in read_journal(out).index[:1]) == 1
    assert verify(out) == []


def test_two_clients_at_once_do_each_scan_once_and_both_have_all_results(client, study, out):
    cohort = study(*[SOUND] * 6)

    def processed(_: int) -> xr.Dataset:
        return _process(cohort, out, client, progress=False, method=stand_in, load=None)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(processed, range(2))
    assert set(first["status"].to_numpy()) == set(second["status"].to_numpy()) == {"done"}
    assert set(calls(out).values()) == {1}
    assert verify(out) == []
    assert "locks" not in Location(out).names()


def test_a_table_that_was_damaged_is_made_again_by_the_next_call(run, study, out):
    cohort = study(SOUND)
    run(cohort)
    sound = Path(out, "volumes.tsv").read_bytes()
    Path(out, "volumes.tsv").write_bytes(sound[:-3])
    assert "process the cohort again" in verify(out)[0]
    run(cohort)
    assert Path(out, "volumes.tsv").read_bytes() == sound
    assert verify(out) == []


def test_a_scan_that_hangs_where_no_nanny_can_end_it_holds_up_no_later_call(study, out):
    with local_client(1, processes=False, threads_per_worker=2) as client:
        asked = {"progress": False, "method": hang, "load": None, "retry_failed": True, "time_limit": 1.0}
        began = time.monotonic()
        for _ in range(2):
            results = _process(study(SOUND), out, client, **asked)
            assert results["error"].item() == "ScanTimeoutError"
        assert time.monotonic() - began < HANG_SECONDS


def test_nothing_is_run_while_a_participant_is_removed(run, study, out):
    with held(Location(out), FORGETTING), pytest.raises(ClusterError, match="a participant is being removed"):
        run(study(SOUND))
    assert calls(out) == {}
    assert Location(out).names() == []


def test_an_output_that_is_deleted_or_unlocked_while_a_run_goes_on_is_an_error(client, study, out, monkeypatch):
    def delete(self: Progress, status: str) -> None:
        shutil.rmtree(out, ignore_errors=True)

    monkeypatch.setattr(Progress, "count", delete)
    with pytest.raises(ClusterError, match=r"lost its lease .* unlocked or deleted"):
        _process(study(SOUND), out, client, progress=False, method=stand_in, load=None)
    assert "results.json" not in Location(out).names()


def test_an_output_that_cannot_be_written_is_an_error_of_ours_before_anything_runs(run, study, out, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "locks").write_text("")
    for url, message in (
        (str(tmp_path / "file"), "is a file; give a folder"),
        (str(tmp_path / "file" / "out"), "cannot be written .*Not a directory"),
        (out, "cannot be written .*a file is where a folder is needed"),
        (f"{out}/{'x' * 300}", "cannot be written .*File name too long"),
    ):
        with pytest.raises(OutputError, match=message):
            run(study(SOUND), url=url)
    for url in ("foo://out", "reference://out", "memory://a::b", "simplecache::s3://out", ""):
        with pytest.raises(LocationError, match=r"protocol|chains|names no place"):
            run(study(SOUND), url=url)


@pytest.mark.parametrize(
    "lock",
    [
        '{"host": "node17", "pid": 4242, "since": "2026-11-01 01:00:00 UTC"}',
        *('{"host": "node17", "pid": 1e300}', "", "[]", "null", "{", "[" * 200_000),
    ],
)
def test_a_lock_of_an_earlier_version_holds_up_nobody(run, study, out, lock):
    Path(out, "running.json").write_text(lock)
    assert run(study(SOUND))["status"].to_numpy().tolist() == ["done"]
    assert not Path(out, "running.json").exists()


def test_the_home_folder_is_expanded(run, study, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run(study(SOUND), url="~/out")
    assert (tmp_path / "home" / "out" / "results.json").exists()
    assert not (tmp_path / "~").exists()


def test_a_sibling_whose_name_begins_alike_survives_a_run_into_a_name_with_a_chain_in_it(run, study, tmp_path):
    cohort = study(SOUND)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "raw.nii").write_text("raw data")
    run(cohort, url=str(tmp_path / "study::v2"))
    run(cohort, url=str(tmp_path / "study[AB]*"))
    assert (tmp_path / "study" / "raw.nii").read_text() == "raw data"
    assert verify(str(tmp_path / "study::v2")) == verify(str(tmp_path / "study[AB]*")) == []


def test_one_bad_path_is_one_failed_row(client, out, head_file, monkeypatch):
    for name in ("FSSPEC_S3_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    bad = ["s3://nobody-s-bucket/a.nii", "hdfs://a/b.nii", "foo://a/b.nii", "/data/a\0b.nii", "zip://x::/nope.zip"]
    bad += ["reference://x::file:///some/refs.json"]
    table = pd.DataFrame({"path": [str(head_file()), *bad], "participant_id": [f"P{n}" for n in range(1 + len(bad))]})
    results = _process(Cohort.from_table(table), out, client, progress=False, method=read_alone, load=None)
    assert results["status"].to_numpy().tolist() == ["done"] + ["failed"] * len(bad)
    assert all(results["reason"].to_numpy()[1:])
    assert verify(out) == []


def test_rows_of_another_method_reference_template_or_version_are_made_anew_and_the_plan_says_why(
    run, study, out, monkeypatch
):
    cohort = study(SOUND)
    run(cohort)
    planned = partial(_plan, cohort, out, workers=1, method=stand_in, load=None)
    for name, other, why in (
        ("METHOD_VERSION", "9", "made by another version of the method"),
        ("reference_digest", lambda: "9" * 12, "judged by other reference ranges"),
        ("MNI152", SimpleNamespace(digest="9" * 12), "aligned to another template"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(hypodask.pipeline, name, other)
            assert planned().reasons == {why: 1}
    assert planned().reasons == {"done": 1}


def test_a_covariate_with_the_name_of_a_result_is_refused_before_anything_runs(run, study, out):
    with pytest.raises(CohortError):
        run(Cohort(study(SOUND).table.assign(stage="IVa")))
    assert Location(out).names() == []


def test_workers_started_here_survive_a_scan_that_ends_one_of_them(study, out, capsys):
    cohort = study(SOUND, ONCE_DEADLY, SOUND, SOUND)
    results = _process(cohort, out, workers=2, method=stand_in, load=load)
    assert results["status"].to_numpy().tolist() == ["done"] * 4
    # Dask itself did not try it again, but told hypodask at once.
    assert results["attempts"].sel(scan="sub-01") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("hypodask: done 4, failed 0, left 0")
    if hasattr(os, "sched_getaffinity"):
        share = -(-len(os.sched_getaffinity(0)) // 2)
        assert set(results["warnings"].to_numpy()) <= {str(share), str(max(1, share - 1))}


def test_a_deadly_scan_is_blamed_and_no_other(run, study, capsys):
    results = run(study(SOUND, DEADLY, SOUND, ONCE_DEADLY, SOUND, SOUND), progress=True)
    assert results["status"].to_numpy().tolist() == ["done", "failed", "done", "done", "done", "done"]
    killed = results.sel(scan="sub-01")
    assert (killed["error"].item(), killed["stage"].item()) == ("KilledWorker", "cluster")
    assert "ran out of memory or crashed" in killed["reason"].item()
    assert capsys.readouterr().err.splitlines()[-1].startswith("hypodask: done 5, failed 1, left 0")


def test_a_scan_that_kills_its_workers_is_set_aside_until_it_is_asked_for(run, study, out):
    cohort = study(SOUND, DEADLY)
    assert run(cohort)["attempts"].to_numpy().tolist() == [pytest.approx(1, abs=1), 4]
    forget_calls(out)
    run(cohort)
    assert calls(out) == {}
    run(cohort, only="failed")
    assert calls(out) == {"sub-01": 4}


def test_a_scan_that_takes_too_long_is_a_failed_row_and_holds_up_no_other(run, study, out):
    cohort = study(SOUND, ENDLESS, SOUND, SOUND)
    started = time.monotonic()
    results = run(cohort, time_limit=2.0)
    assert time.monotonic() - started < 60
    assert results["status"].to_numpy().tolist() == ["done", "failed", "done", "done"]
    overdue = results.sel(scan="sub-01")
    assert (overdue["error"].item(), overdue["stage"].item()) == ("ScanTimeoutError", "cluster")
    assert "longer than its time limit" in overdue["reason"].item()
    forget_calls(out)
    run(cohort, time_limit=2.0)
    assert calls(out) == {}


def test_only_failed_keeps_to_the_scans_that_failed(run, study, out):
    run(study(REFUSED, DISK, SOUND))
    forget_calls(out)
    results = run(study(REFUSED, DISK, SOUND, SOUND), only="failed")
    assert set(calls(out)) == {"sub-00", "sub-01"}
    assert results["status"].to_numpy().tolist() == ["failed", "failed", "done", "skipped"]


def test_attempts_and_memory_are_kept_of_every_scan(run, study, out):
    results = run(study(SOUND, FLAKY, DISK, REFUSED))
    assert results["attempts"].to_numpy().tolist() == [1, 3, 3, 1]
    assert (results["peak_memory_mib"] > 50).all()


def test_what_is_logged_of_a_scan_is_kept_with_the_trace_of_its_error(run, study, out):
    run(study(SOUND, BUG, FLAKY))
    logs = [name for name in Location(out).child("logs").names() if name.endswith(".log")]
    assert logs == ["sub-01.log", "sub-02.log"]
    assert "KeyError: 'unforeseen'" in Path(out, "logs", "sub-01.log").read_text()
    assert Path(out, "logs", "sub-02.log").read_text().count("No space left on device") == 2


def test_a_run_leaves_a_record_of_versions_and_workers(run, study, out):
    run(study(SOUND, REFUSED))
    (record,) = (json.loads(path.read_text()) for path in Path(out, "runs").glob("*.json"))
    assert (record["scans"], record["workers"], record["threads"]) == (2, 2, 2)
    assert record["versions"]["hypodask"] == hypodask.__version__
    assert record["began"] <= record["ended"]
    run(study(SOUND, REFUSED))


def test_a_plan_says_what_would_run_and_why_and_starts_nothing(run, study, out):
    cohort = study(SOUND, REFUSED, SOUND)
    first = _plan(cohort, out, workers=2, method=stand_in, load=None)
    assert (first.to_run, first.to_skip, first.reasons) == (3, 0, {"new": 3})
    assert first.input_bytes == len(SOUND + REFUSED + SOUND)
    assert "time and memory are not known" in str(first)
    assert Location(out).names() == []
    run(cohort)
    Location(out).child("scans/sub-02.nii.zarr/done.json").delete()
    os.utime(cohort.table["path"][0], (1, 1))
    second = _plan(cohort, out, workers=2, method=stand_in, load=None)
    assert second.table["runs"].tolist() == [True, False, True]
    reasons = ["its file has changed", "refused or set aside before", "its store is not complete"]
    assert second.table["why"].tolist() == reasons
    assert calls(out) == {"sub-00": 1, "sub-01": 1, "sub-02": 1}


def test_a_pilot_measures_time_and_memory_and_is_not_done_again(client, run, study, out):
    cohort = study(*[SOUND] * 5)
    piloted = _plan(cohort, out, client, pilot=2, method=stand_in, load=None)
    assert (piloted.to_run, piloted.to_skip, piloted.measured_on) == (3, 2, 2)
    assert calls(out) == {"sub-00": 1, "sub-02": 1}
    assert piloted.memory_mib > 50
    assert "by the 2 scans done in this output" in str(piloted)
    assert "results.json" not in Location(out).names()
    run(cohort)
    assert set(calls(out).values()) == {1}


def test_the_keywords_that_earlier_versions_took_still_work_with_a_warning(client, study, out):
    cohort = study(SOUND)
    with pytest.warns(DeprecationWarning, match=r"load and treat of hypodask\.plan\(\) will be removed"):
        assert plan(cohort, out, workers=1, treat=stand_in, load=None).to_run == 1
    with pytest.warns(DeprecationWarning, match=r"load and treat of hypodask\.process\(\) will be removed"):
        results = process(cohort, out, client, progress=False, treat=stand_in, load=None)
    assert results["status"].to_numpy().tolist() == ["done"]
    assert calls(out) == {"sub-00": 1}


@pytest.mark.parametrize("call", [process, plan])
def test_a_keyword_that_nothing_knows_is_refused_before_anything_runs(call, study, out):
    with pytest.raises(TypeError, match=rf"{call.__name__}\(\) got an unexpected keyword argument 'retry'"):
        call(study(SOUND), out, retry=True, treat=stand_in)
    assert Location(out).names() == []


def test_the_stamp_of_a_file_changes_with_its_size_or_time_and_never_fails(tmp_path):
    path = tmp_path / "a.nii"
    assert input_stamp(str(path)) == "missing"
    path.write_bytes(b"1")
    os.utime(path, (1, 1))
    stamps = [input_stamp(str(path))]
    os.utime(path, (2, 2))
    stamps.append(input_stamp(str(path)))
    path.write_bytes(b"12")
    os.utime(path, (2, 2))
    stamps.append(input_stamp(str(path)))
    assert len(set(stamps)) == 3
    Location("memory://stamp/a").write(b"1")
    assert input_stamp("memory://stamp/a") == input_stamp("memory://stamp/a") != "missing"


def answer(order: str) -> str:
    """A stand-in for any function: what it is given says what happens."""
    if order == BUG:
        raise NonFiniteError("3 voxels are NaN; export the scan again")
    if order == DISK:
        raise OSError(28, "No space left on device")
    if order == DEADLY:
        os._exit(1)
    return order.upper()


def test_each_item_has_an_outcome_whatever_happened_to_it(client):
    items = ["a", BUG, "b", DISK, DEADLY, "c"]
    outcomes = {outcome.item: outcome for outcome in each(answer, items, client=client)}
    assert len(outcomes) == len(items)
    assert {name: outcomes[name].value for name in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert str(outcomes[BUG].error) == "3 voxels are NaN; export the scan again"
    assert isinstance(outcomes[DISK].error, OSError)
    with pytest.raises(ClusterError, match="the worker process died each time"):
        outcomes[DEADLY].get()


def test_outcomes_come_as_they_are_done_and_no_more_than_a_window_is_in_flight(client, tmp_path):
    outcomes = each(partial(touched, tmp_path), range(6), client=client, window=2)
    first = next(outcomes)
    time.sleep(1.0)
    # One came in, and nobody asked for another yet: only its window was ever submitted.
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted([first.value, *(outcome.value for outcome in outcomes)]) == list(range(6))


def touched(folder: Path, number: int) -> int:
    (folder / str(number)).touch()
    return number


def test_a_run_waits_for_workers_and_says_that_there_are_none(caplog):
    with local_client(0, processes=False) as client:
        joining = threading.Timer(1.0, client.cluster.scale, (1,))
        joining.start()
        assert [outcome.get() for outcome in each(len, ["ab"], client=client)] == [2]
        joining.join()
    assert [record.message for record in caplog.records if record.name == "hypodask.cluster.window"] == [
        "the scheduler has no worker; the run goes on as soon as one joins"
    ]


def test_each_without_items_starts_nothing():
    assert list(each(answer, [], client="tcp://127.0.0.1:1")) == []


def test_each_starts_workers_of_its_own_where_there_is_no_client():
    outcomes = list(each(process_of, range(4), workers=2))
    assert sorted(outcome.item for outcome in outcomes) == [0, 1, 2, 3]
    assert len({outcome.value for outcome in outcomes} - {os.getpid()}) == 2


def test_the_place_of_a_worker_that_is_slow_to_come_back_is_kept():
    with dask.config.set({LOST_WORKER: "15s"}):
        with reached_cluster(None, 1, 1):
            assert parse_timedelta(dask.config.get(LOST_WORKER)) == 600
        assert parse_timedelta(dask.config.get(LOST_WORKER)) == 15


@pytest.mark.parametrize(("set_by_the_user", "found"), [(None, "cpu"), ("cuda,cpu", "cuda,cpu")])
def test_workers_that_share_this_machine_leave_its_gpu_alone_unless_they_are_told(monkeypatch, set_by_the_user, found):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if set_by_the_user:
        monkeypatch.setenv("JAX_PLATFORMS", set_by_the_user)
    with reached_cluster(None, 1, 1) as (client, _):
        assert list(client.run(os.getenv, "JAX_PLATFORMS").values()) == [found]


@pytest.mark.parametrize(
    ("scheme", "advice"),
    [
        ("tcp://", "such as tcp://10.0.0.1:8786"),
        ("tls://", "name the files of its certificate"),
        ("", "such as tcp://"),
    ],
)
def test_who_is_no_scheduler_is_not_waited_for_and_no_thread_is_left(monkeypatch, scheme, advice):
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 0.2)
    before = set(threading.enumerate())
    # Takes every connection and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Dask scheduler answers at '{address}'.*{advice}"):
            list(each(len, ["item"], client=address))
    assert set(threading.enumerate()) <= before


def process_of(_: int) -> int:
    time.sleep(0.5)
    return os.getpid()
