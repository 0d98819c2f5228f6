"""Nothing that came in is lost, and only one client writes."""

import json
import os
import platform

import pytest

import hypodask.journal
from hypodask.errors import ClusterError, StoreError
from hypodask.journal import PART_ROWS, Journal, read_journal, sole_writer
from hypodask.location import Location
from hypodask.row import Row


def row(scan: str, **values) -> dict:
    return Row(scan, values.pop("status", "done"), **values).as_dict()


def test_a_journal_nobody_wrote_is_empty(tmp_path):
    assert len(read_journal(str(tmp_path))) == 0


def test_the_latest_row_of_a_scan_is_true_over_several_runs(tmp_path):
    for icv in (1.0, 2.0):
        with Journal(str(tmp_path)) as journal:
            journal.append(row("sub-01", volume_mm3={"icv": icv}))
            journal.append(row("sub-02", status="failed", reason="ünreadable\n"))
    read = read_journal(str(tmp_path))
    assert read["volume_mm3.icv"].to_dict()["sub-01"] == 2.0
    assert read["reason"].to_dict() == {"sub-01": "", "sub-02": "ünreadable\n"}


def test_the_tenth_part_comes_after_the_ninth_and_the_hundredth_after_that(tmp_path):
    for icv in range(12):
        with Journal(str(tmp_path)) as journal:
            journal.append(row("sub-01", volume_mm3={"icv": float(icv)}))
    assert read_journal(str(tmp_path))["volume_mm3.icv"].tolist() == [11.0]


def test_a_part_is_written_when_it_is_full(tmp_path):
    journal = Journal(str(tmp_path))
    for number in range(PART_ROWS + 1):
        journal.append(row(f"sub-{number}"))
    assert len(read_journal(str(tmp_path))) == PART_ROWS


def test_a_part_is_written_when_it_is_due_even_if_nothing_comes_in(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    journal.append(row("sub-01"))
    journal.flush_if_due()
    assert len(read_journal(str(tmp_path))) == 0
    monkeypatch.setattr(hypodask.journal, "PART_SECONDS", 0.0)
    journal.flush_if_due()
    assert len(read_journal(str(tmp_path))) == 1


def test_rows_are_written_when_the_run_is_interrupted(tmp_path):
    journal = Journal(str(tmp_path))

    def interrupted_run() -> None:
        with journal:
            journal.append(row("sub-01"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert read_journal(str(tmp_path)).index.tolist() == ["sub-01"]


def test_half_a_part_of_a_killed_client_is_not_read(tmp_path):
    Location(str(tmp_path)).child("journal", ".00000001.parquet.0123").write(b"PAR")
    with Journal(str(tmp_path)) as journal:
        journal.append(row("sub-01"))
    assert len(read_journal(str(tmp_path))) == 1


def test_a_damaged_part_says_what_to_do(tmp_path):
    Location(str(tmp_path)).child("journal", "00000001.parquet").write(b"nonsense")
    with pytest.raises(StoreError, match=r"00000001\.parquet is damaged .* delete it and run the same call again"):
        read_journal(str(tmp_path))


@pytest.mark.parametrize("base", ["", "memory://lock-test"])
def test_a_second_client_is_kept_out_until_the_first_has_left(tmp_path, base):
    url = base or str(tmp_path)
    with sole_writer(url):
        with pytest.raises(ClusterError, match=f"process {os.getpid()} on .* delete .*running.json"), sole_writer(url):
            pass
        assert Location(url).child("running.json").exists()
    with sole_writer(url):
        pass
    assert Location(url).names() == []


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, caplog):
    gone = {"host": platform.node(), "pid": 2**22 + 1, "since": "yesterday"}
    (tmp_path / "running.json").write_text(json.dumps(gone))
    with sole_writer(str(tmp_path)):
        assert "was cut off" in caplog.text


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1, "since": "yesterday"}', "{", "{}"])
def test_the_lock_of_another_host_is_respected(tmp_path, content):
    (tmp_path / "running.json").write_text(content)
    with pytest.raises(ClusterError, match="if you know that it has ended, delete"), sole_writer(str(tmp_path)):
        pass
    assert (tmp_path / "running.json").exists()
