"""What became of every scan can be read at any time, and a participant can leave."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hypodask.accounts import forget, kept_record, status
from hypodask.dataset import assemble, finalise, open_results, save_cohort, verify
from hypodask.errors import ClusterError, CohortError, ResultsError
from hypodask.grid import Grid
from hypodask.journal import Journal, read_journal, sole_writer
from hypodask.location import Location
from hypodask.row import Row
from hypodask.scan import Scan
from hypodask.store import mark_done, write_scan

SCANS = ("sub-07_ses-1", "sub-07_ses-2", "sub-70_ses-1", "sub-8")


@pytest.fixture(params=["folder", "memory"])
def out(request, tmp_path):
    """An output of four scans of three people, one of them failed, with a log, a report and a stray store."""
    url = str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"
    cohort = pd.DataFrame({"scan": SCANS, "path": [f"/bids/{scan}.nii" for scan in SCANS]})
    cohort["participant_id"] = [scan.partition("_")[0] for scan in SCANS]
    save_cohort(url, cohort)
    with Journal(url) as journal:
        for scan in SCANS[:3]:
            store = f"scans/Ulm/{scan}.nii.zarr"
            write_scan(f"{url}/{store}", Scan(np.full((4, 4, 4), 7, np.uint8), Grid((4, 4, 4), np.eye(4), "scanner")))
            mark_done(f"{url}/{store}", {})
            journal.append(Row(scan, "done", volume_mm3={"icv": 1.5e6}, store=store, seconds=9.0).as_dict())
        journal.flush()
        journal.append(
            Row("sub-8", "failed", stage="read", error="NonFiniteError", reason="3 voxels are NaN").as_dict()
        )
    finalise(url, assemble(cohort, read_journal(url)))
    Location(url).child("logs", "sub-07_ses-1.log").write(b"sub-07 was dark")
    Location(url).child("report.html").write(b"a picture of sub-07")
    yield url
    Location(url).delete()


def test_the_status_of_every_scan_is_told(out):
    table = status(out)
    assert table["status"].to_dict() == dict(zip(SCANS, ["done", "done", "done", "failed"], strict=True))
    assert table.loc["sub-8", ["stage", "error", "reason"]].tolist() == ["read", "NonFiniteError", "3 voxels are NaN"]
    assert table["seconds"].tolist()[:3] == [9.0, 9.0, 9.0]
    assert status(out, only="failed").index.tolist() == ["sub-8"]


def test_scans_that_have_no_row_yet_are_waiting(tmp_path):
    save_cohort(str(tmp_path), pd.DataFrame({"scan": ["sub-1", "sub-2"], "path": "", "participant_id": ""}))
    assert status(str(tmp_path))["status"].tolist() == ["waiting", "waiting"]
    with Journal(str(tmp_path)) as journal:
        journal.append(Row("sub-2", "done").as_dict())
    assert status(str(tmp_path))["status"].tolist() == ["waiting", "done"]
    assert status(str(tmp_path))["stage"].tolist() == ["", ""]


def test_a_place_without_a_run_has_no_status(tmp_path):
    with pytest.raises(ResultsError, match="no run was started"):
        status(str(tmp_path))


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
    with sole_writer(out), pytest.raises(ClusterError, match="has been writing here since"):
        forget(out, "sub-8")


def test_the_record_of_a_run_that_broke_off_says_by_what(tmp_path):
    with pytest.raises(KeyboardInterrupt), kept_record(str(tmp_path), 5, "abc", {"tcp://a": 2, "tcp://b": 1}):
        raise KeyboardInterrupt
    (record,) = Path(tmp_path, "runs").iterdir()
    assert '"stopped_by": "KeyboardInterrupt"' in record.read_text()
    assert '"threads": 3' in record.read_text()
