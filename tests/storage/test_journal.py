"""Nothing that came in is lost or altered without a word, and any number of clients may write."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import hypodask.storage.journal
from hypodask.core.errors import ClusterError, StoreError
from hypodask.core.row import Row
from hypodask.files.location import Location
from hypodask.storage.journal import (
    PART_ROWS,
    Journal,
    drop_legacy_parts,
    flat_table,
    forget_rows,
    journal_problems,
    read_journal,
    seal_parts,
    to_parquet,
)


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
    monkeypatch.setattr(hypodask.storage.journal, "_PART_SECONDS", 0.0)
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
    with pytest.raises(
        StoreError,
        match=r"00000001\.parquet is damaged .* delete it and the file .sha256 beside it, then make the same call",
    ):
        read_journal(str(tmp_path))


def part_of(out: Path) -> Path:
    return next(out.joinpath("journal").glob("*.parquet"))


def one_row(out: Path) -> str:
    with Journal(str(out)) as journal:
        journal.append(row("sub-01", volume_mm3={"icv": 1.5e6}))
    return str(out)


def test_every_changed_bit_of_a_part_is_noticed(tmp_path):
    url = one_row(tmp_path)
    sound = part_of(tmp_path).read_bytes()
    for position in np.random.default_rng(0).integers(0, 8 * len(sound), 100):
        changed = bytearray(sound)
        changed[position // 8] ^= 1 << position % 8
        part_of(tmp_path).write_bytes(changed)
        with pytest.raises(StoreError, match=r"\.parquet is damaged"):
            read_journal(url)
    part_of(tmp_path).write_bytes(sound)
    assert read_journal(url)["volume_mm3.icv"].tolist() == [1.5e6]


def test_a_lost_part_is_told_and_a_lost_digest_costs_nothing(tmp_path):
    url = one_row(tmp_path)
    seal = Path(f"{part_of(tmp_path)}.sha256")
    text = seal.read_bytes()
    seal.unlink()
    assert read_journal(url).index.tolist() == ["sub-01"]
    assert "its digest beside it is missing" in journal_problems(url)[0]
    seal_parts(url)
    assert seal.read_bytes() == text
    assert journal_problems(url) == []
    part_of(tmp_path).unlink()
    with pytest.raises(StoreError, match=r"is missing, though its digest is there; delete .*\.parquet\.sha256, then"):
        read_journal(url)


def test_what_sha256sum_checks_is_what_we_check(tmp_path):
    one_row(tmp_path)
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("no sha256sum here")
    checked = [program, "--check", f"{part_of(tmp_path).name}.sha256"]
    assert subprocess.run(checked, cwd=tmp_path / "journal", capture_output=True, check=False).returncode == 0


def test_foreign_files_in_the_journal_are_no_rows_but_are_told(tmp_path):
    url = one_row(tmp_path)
    for name in (".DS_Store", "notes.parquet", "0000001a.parquet", "readme.txt"):
        (tmp_path / "journal" / name).write_bytes(b"mine")
    assert read_journal(url).index.tolist() == ["sub-01"]
    assert len(journal_problems(url)) == 4


def test_two_clients_at_once_have_parts_of_their_own(tmp_path):
    with Journal(str(tmp_path)) as first, Journal(str(tmp_path)) as second:
        first.append(row("sub-01"))
        second.append(row("sub-02"))
    assert sorted(read_journal(str(tmp_path)).index) == ["sub-01", "sub-02"]


def test_of_calls_that_overlap_the_row_that_was_written_last_is_the_latest(tmp_path):
    for _ in range(8):  # names of parts end at random
        with Journal(str(tmp_path)) as first, Journal(str(tmp_path)) as second:
            for journal, icv in ((second, 1.0), (first, 2.0)):
                journal.append(row("sub-01", volume_mm3={"icv": icv}))
                journal.flush()
        assert read_journal(str(tmp_path))["volume_mm3.icv"].tolist() == [2.0]


def test_later_rows_stay_later_where_somebody_leaves(tmp_path):
    for status in ("failed", "done"):
        with Journal(str(tmp_path)) as journal:
            journal.append(row("sub-01"))
            journal.append(row("sub-02", status=status))
    forget_rows(str(tmp_path), ["sub-01"])
    assert read_journal(str(tmp_path))["status"].to_dict() == {"sub-02": "done"}


def test_parts_of_version_0_1_0_are_read(tmp_path):
    old = to_parquet(flat_table([row("sub-01", quality=0.5)]))
    Location(str(tmp_path)).child("journal", "00000001.parquet").write(old)
    with Journal(str(tmp_path)) as journal:
        journal.append(row("sub-02"))
    assert read_journal(str(tmp_path))["quality"].to_dict()["sub-01"] == 0.5
    assert "of hypodask 0.1.0" in journal_problems(str(tmp_path))[0]
    drop_legacy_parts(str(tmp_path))
    assert len(journal_problems(str(tmp_path))) == 1
    with Journal(str(tmp_path)) as journal:
        journal.append(row("sub-01"))
    drop_legacy_parts(str(tmp_path))
    assert journal_problems(str(tmp_path)) == []
    assert sorted(read_journal(str(tmp_path)).index) == ["sub-01", "sub-02"]


def test_nothing_is_written_by_a_client_that_may_not(tmp_path):
    def lost() -> None:
        raise ClusterError("lost")

    with pytest.raises(ClusterError, match="lost"), Journal(str(tmp_path), check=lost) as journal:
        journal.append(row("sub-01"))
    assert Location(str(tmp_path)).names() == []
