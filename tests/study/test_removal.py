"""A participant can leave: nothing of them is left, and everything of everybody else is."""

import multiprocessing
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from outputs import PICTURE, SCANS, TELLING, make_output, study_with_somebody
from traces import traces

from hypodask.core.errors import ClusterError, CohortError
from hypodask.core.grid import Grid
from hypodask.core.row import Row
from hypodask.files import leases
from hypodask.files.leases import FORGETTING, held
from hypodask.files.location import Location
from hypodask.report import page
from hypodask.scan import Scan
from hypodask.storage.journal import Journal, read_journal
from hypodask.storage.store import write_scan
from hypodask.study.removal import forget
from hypodask.study.results import finalise, open_results, read_cohort, save_cohort, verify
from hypodask.study.runs import at_work, status


@pytest.fixture(params=["folder", "memory"])
def out(request, tmp_path):
    url = str(tmp_path / "out") if request.param == "folder" else f"memory://tests/{tmp_path.name}"
    make_output(url)
    yield url
    if request.param == "memory":
        Location("memory://tests").child(tmp_path.name).delete()


@pytest.mark.parametrize("name", ["sub-07", "07"])
def test_a_participant_is_removed_from_everywhere_and_nobody_else_is(out, name):
    assert forget(out, name) == ["sub-07_ses-1", "sub-07_ses-2"]
    place = Location(out)
    left = {file: place.child(file).read() for file in place.files()}
    assert [file for file, content in left.items() if "sub-07" in file or b"sub-07" in content] == []
    assert open_results(out)["scan"].to_numpy().tolist() == ["sub-70_ses-1", "sub-8"]
    assert read_journal(out).index.tolist() == ["sub-70_ses-1", "sub-8"]
    assert verify(out) == []


def test_one_scan_can_be_removed_alone_and_an_unfinished_store_goes_with_it(out):
    store = f"{out}/scans/sub-8.nii.zarr"
    write_scan(store, Scan(np.full((4, 4, 4), 7, np.uint8), Grid((4, 4, 4), np.eye(4), "scanner")))
    assert forget(out, "sub-8") == ["sub-8"]
    assert not Location(store).exists()
    assert status(out).index.tolist() == list(SCANS[:3])


def test_the_last_participant_can_leave_too(out):
    for person in ("sub-07", "sub-70", "sub-8"):
        forget(out, person)
    assert open_results(out).sizes["scan"] == 0
    assert Location(out).child("scans").names() in ([], ["Ulm"])


def test_scans_of_a_participant_that_left_the_cohort_earlier_are_removed_too(out):
    with Journal(out) as journal:
        journal.append(Row("sub-70_run-2", "done", volume_mm3={"icv": 1.5e6}).as_dict())
    assert forget(out, "sub-70") == ["sub-70_run-2", "sub-70_ses-1"]
    assert read_journal(out).index.tolist() == ["sub-07_ses-1", "sub-07_ses-2", "sub-8"]


def test_an_unknown_name_is_an_error_and_removes_nothing(out):
    before = Location(out).files()
    with pytest.raises(CohortError, match=r"neither a participant nor a scan of .* is called 'sub-0'"):
        forget(out, "sub-0")
    assert Location(out).files() == before


def test_nobody_is_removed_while_a_run_is_under_way(out):
    with held(Location(out), "run-1"), pytest.raises(ClusterError, match=r"a run goes on .* is at work"):
        forget(out, "sub-8")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "_EXPIRES_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.01)


@pytest.mark.parametrize(
    "before", ["", "results.json", "cohort.parquet", "cohort.parquet.sha256", "journal", "results"]
)
def test_nothing_of_a_person_is_left_whatever_was_lost_before(tmp_path, quick, before):
    url = study_with_somebody(tmp_path / "out")
    assert {found.rpartition(": ")[2] for found in traces(tmp_path, TELLING, PICTURE)} == {
        *TELLING,
        "picture",
        "picture in a page",
    }
    if before == "results":
        next((tmp_path / "out").glob("results-*.zarr/scan/c/0")).unlink()
    elif before == "journal":
        part = next((tmp_path / "out" / "journal").glob("*.parquet"))
        part.write_bytes(part.read_bytes()[:-9])
    elif before:
        (tmp_path / "out" / before).unlink()
    assert {"sub-07_acq-hires_run-2", "sub-07_ses-1", "sub-07_ses-9"} == set(forget(url, "07"))
    assert traces(tmp_path, TELLING, PICTURE) == []
    assert "sub-8" in read_journal(url).index
    assert (tmp_path / "out/scans/Bern/sub-8.nii.zarr/done.json").exists()
    with pytest.raises(CohortError, match="neither a participant nor a scan"):
        forget(url, "07")


def test_a_link_out_of_the_output_is_removed_and_what_it_leads_to_is_not(tmp_path, quick):
    url = study_with_somebody(tmp_path / "out")
    others = tmp_path / "elsewhere" / "sub-07_ses-1.nii.zarr"
    shutil.copytree(tmp_path / "out/scans/Bern/sub-8.nii.zarr", others)
    before = Location(str(others)).files()
    shutil.rmtree(tmp_path / "out/scans/Ulm/sub-07_ses-1.nii.zarr")
    (tmp_path / "out/scans/Ulm/sub-07_ses-1.nii.zarr").symlink_to(others)
    forget(url, "sub-07")
    assert Location(str(others)).files() == before
    assert not (tmp_path / "out/scans/Ulm").exists()


def processes() -> "multiprocessing.context.ForkServerContext":
    """Processes that have imported all that they need before they begin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hypodask.cluster", "pytest"])
    return context


def remove(url: str) -> None:
    leases._EXPIRES_SECONDS, leases._LOOK_SECONDS = 0.2, 0.01
    forget(url, "07")


def kill_in_the_middle(url: str, seconds: float) -> bool:
    """Begin to remove a person in a process of its own and kill it; whether it was still at it."""
    process = processes().Process(target=remove, args=(url,))
    process.start()
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode != 0


def kills(folder: Path, number: int) -> int:
    """How many of so many removals were killed in the middle; after each the same call is made again."""
    whole = 0.0
    for attempt in range(2):  # the first starts the server of processes
        process = processes().Process(target=remove, args=(study_with_somebody(folder / f"timed-{attempt}"),))
        began = time.monotonic()
        process.start()
        process.join()
        whole = time.monotonic() - began
    moments, killed = np.random.default_rng(0).uniform(0, whole, number), 0
    for attempt, moment in enumerate(moments):
        out = folder / f"out-{attempt}"
        url = study_with_somebody(out)
        killed += kill_in_the_middle(url, moment)
        with suppress(CohortError):
            forget(url, "07")
        assert traces(out, TELLING, PICTURE) == []
        assert open_results(url)["scan"].to_numpy().tolist() == ["sub-8"]
        assert verify(url) == []
        shutil.rmtree(out)
    return killed


def test_killed_at_any_moment_the_same_call_again_leaves_nothing(tmp_path, quick):
    assert kills(tmp_path, 4) > 0


@pytest.mark.thorough
def test_fifty_kills_at_random_moments_leave_nothing(tmp_path, quick):
    assert kills(tmp_path, 50) > 20


def test_a_report_that_was_begun_before_somebody_left_does_not_show_them(tmp_path, quick, monkeypatch):
    url = study_with_somebody(tmp_path / "out")
    before = open_results(url)
    forget(url, "07")
    monkeypatch.setattr(page, "render", lambda ds, pictures, reference=None: str(ds["scan"].to_numpy()))
    monkeypatch.setattr(page, "open_results", lambda url: before)
    page.write_report(url)
    assert "sub-8" in (tmp_path / "out" / "report.html").read_text()
    assert traces(tmp_path, TELLING, PICTURE) == []
    with held(Location(url), FORGETTING), pytest.raises(ClusterError, match="a participant is being removed"):
        page.write_report(url)


def test_the_others_keep_their_places_and_covariates_where_the_table_is_damaged(tmp_path, quick):
    url = study_with_somebody(tmp_path / "out")
    (tmp_path / "out" / "cohort.parquet").write_bytes(b"PAR1 and nothing else")
    forget(url, "07")
    assert read_cohort(url)[["scan", "participant_id"]].to_numpy().tolist() == [["sub-8", "sub-8"]]
    assert open_results(url)["scan"].to_numpy().tolist() == ["sub-8"]


def test_files_of_the_user_in_an_output_stay(tmp_path, quick):
    url = study_with_somebody(tmp_path / "out")
    mine = ["results-paper.json", "results-final.zarr/a", "runs/.hydra/config.yaml", "logs/.gitkeep", ".of-mine.2024"]
    for name in mine:
        Location(url).child(name).write(b"mine")
    for _ in range(2):
        with at_work(Location(url)):
            finalise(url, open_results(url))
    forget(url, "07")
    assert set(mine) <= Location(url).files().keys()


def test_somebody_who_is_known_by_results_alone_leaves_them_and_an_empty_name_is_nobody(tmp_path, quick):
    url = study_with_somebody(tmp_path / "out")
    cohort = read_cohort(url)
    save_cohort(url, cohort[cohort["participant_id"] == "sub-8"])
    forget(url, "sub-07")
    assert traces(tmp_path, TELLING, PICTURE) == []
    with pytest.raises(CohortError, match="no participant was named"):
        forget(url, "")
