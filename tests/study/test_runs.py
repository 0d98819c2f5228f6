"""What became of every scan can be read at any time, and each call leaves a record and no unfinished files."""

from pathlib import Path

import pandas as pd
import pytest
from outputs import SCANS, make_output, study_with_somebody

from hypodask.core.errors import ResultsError
from hypodask.core.row import Row
from hypodask.files import leases
from hypodask.files.leases import held
from hypodask.files.location import Location
from hypodask.storage.journal import Journal
from hypodask.study.results import save_cohort
from hypodask.study.runs import at_work, kept_record, status


@pytest.fixture(params=["folder", "memory"])
def out(request, tmp_path):
    url = str(tmp_path / "out") if request.param == "folder" else f"memory://tests/{tmp_path.name}"
    make_output(url)
    yield url
    if request.param == "memory":
        Location("memory://tests").child(tmp_path.name).delete()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "_EXPIRES_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.01)


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


def test_the_record_of_a_run_that_broke_off_says_by_what(tmp_path):
    with pytest.raises(KeyboardInterrupt), kept_record(str(tmp_path), 5, "abc", {"tcp://a": 2, "tcp://b": 1}):
        raise KeyboardInterrupt
    (record,) = Path(tmp_path, "runs").glob("*.json")
    assert '"stopped_by": "KeyboardInterrupt"' in record.read_text()
    assert '"threads": 3' in record.read_text()


def test_the_status_asked_for_must_be_one_that_there_is(out):
    with pytest.raises(ResultsError, match="no scan can be 'foo'; give one of done, failed, waiting"):
        status(out, only="foo")


def test_unfinished_files_of_killed_processes_are_cleaned_as_a_run_begins_unless_another_goes_on(tmp_path, quick):
    url = study_with_somebody(tmp_path / "out")
    place = Location(url)
    unfinished = [name for name in place.files() if name.rpartition("/")[2].startswith(".")]
    assert len(unfinished) == 3
    place.child(".of-mine.2024").write(b"not of hypodask")
    with held(place, "run-other"), at_work(place):
        assert set(unfinished) <= place.files().keys()
    with at_work(place):
        assert not set(unfinished) & place.files().keys()
        assert ".of-mine.2024" in place.files()
