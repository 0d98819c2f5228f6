"""Whatever a cohort is given, N scans in are N rows out, and each row says what was found and what to do."""

import gzip
import os
import re
import runpy
from html import escape as html_escape
from pathlib import Path

import bad_inputs
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from bad_inputs import KINDS, Kind, given_here, said

from hypodask import Cohort, report
from hypodask.core.errors import CohortError
from hypodask.study.results import read_cohort, verify

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILES = [kind for kind in given_here() if not kind.is_aligned]
HEADS = [kind for kind in given_here() if kind.is_aligned]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, Path]:
    """All kinds in one cohort, processed under a strict umask, and the folder of it."""
    folder = tmp_path_factory.mktemp("files")
    before = os.umask(0o027)
    try:
        return bad_inputs.files_processed(folder / "study", folder / "out"), folder
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return bad_inputs.heads_processed(folder / "study", folder / "out"), folder


def check(kind: Kind, results: xr.Dataset) -> None:
    row = results.sel(scan=kind.name)
    found = (row["status"].item(), row["stage"].item(), row["error"].item())
    assert found == (kind.status, kind.stage, kind.error), row["reason"].item()
    for word in kind.words:
        assert word in said(kind, row)
    assert bool(np.isfinite(row["volume_mm3"].sel(structure="icv")).item()) == (kind.status == "done")


def test_there_are_more_than_forty_kinds_with_names_of_their_own() -> None:
    assert len({kind.name for kind in KINDS}) == len({kind.given for kind in KINDS}) == len(KINDS)
    assert len([kind for kind in KINDS if kind.error]) > 60


def test_every_scan_of_the_cohort_has_its_row(files: tuple[xr.Dataset, Path]) -> None:
    results, folder = files
    assert results["scan"].to_numpy().tolist() == [kind.name for kind in FILES]
    assert set(results["status"].to_numpy()) == {"done", "failed"}
    assert verify(str(folder / "out")) == []


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.name)
def test_a_bad_file_is_a_row_that_says_what_was_found_and_what_to_do(
    files: tuple[xr.Dataset, Path], kind: Kind
) -> None:
    check(kind, files[0])


@pytest.mark.thorough
@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.name)
def test_what_is_no_whole_head_is_refused_or_flagged_by_its_alignment(
    heads: tuple[xr.Dataset, Path], kind: Kind
) -> None:
    check(kind, heads[0])
    assert heads[0].sel(scan=kind.name)["flagged"].item() == (kind.status == "done" and bool(kind.words))


def test_a_reason_names_the_file_and_leaves_no_store(files: tuple[xr.Dataset, Path]) -> None:
    results, folder = files
    paths = read_cohort(str(folder / "out")).set_index("scan")["path"]
    for kind in FILES:
        row = results.sel(scan=kind.name)
        if kind.stage == "read":
            assert row["reason"].item().startswith(f"{paths[kind.name]}: ")
        assert bool(row["store"].item()) == (folder / "out" / "scans" / f"{kind.name}.nii.zarr").exists()
        assert bool(row["store"].item()) == (kind.status == "done")


def test_names_in_headers_are_nowhere_below_the_output(files: tuple[xr.Dataset, Path]) -> None:
    _, folder = files
    name = bad_inputs.NAME.encode()
    with gzip.open(next((folder / "study").glob("ünïcode*/*.gz"))) as given:
        assert given.read().count(name) >= 5
    written = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert len(written) > 50
    # dcm2niix would put the description of a series, here the same name with other marks, into names of files.
    assert [path for path in written if name in (content := path.read_bytes()) or b"Roe" in content] == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_outputs_are_as_private_as_the_umask_of_who_runs_it(files: tuple[xr.Dataset, Path]) -> None:
    _, folder = files
    open_to_others = [path for path in (folder / "out").rglob("*") if path.stat().st_mode & 0o027]
    assert open_to_others == []


def test_a_covariate_that_is_a_script_is_text_in_the_report(files: tuple[xr.Dataset, Path]) -> None:
    results, _ = files
    assert set(results["group"].to_numpy()) == {bad_inputs.WICKED}
    html = report.render(results, {})
    assert "<script" not in html
    assert html_escape(bad_inputs.WICKED) in html


@pytest.mark.skipif(not bad_inputs.HAS_CONVERTER, reason="the page has DICOM, for which dcm2niix is not installed")
def test_the_page_of_bad_inputs_is_what_happens_to_files(files: tuple[xr.Dataset, Path]) -> None:
    page = without_figures((DOCS / "bad-inputs.md").read_text(encoding="utf-8")).splitlines()
    row_of = runpy.run_path(str(DOCS / "write_bad_inputs.py"))["row_of"]
    rows = [without_figures(row_of(kind, *files)) for kind in FILES]
    assert [row for row in rows if row not in page] == [], "run docs/write_bad_inputs.py"


@pytest.mark.thorough
@pytest.mark.skipif(not bad_inputs.HAS_CONVERTER, reason="the page has DICOM, for which dcm2niix is not installed")
def test_the_whole_page_of_bad_inputs_is_what_happens(
    files: tuple[xr.Dataset, Path], heads: tuple[xr.Dataset, Path]
) -> None:
    page = (DOCS / "bad-inputs.md").read_text(encoding="utf-8")
    written = runpy.run_path(str(DOCS / "write_bad_inputs.py"))
    assert without_figures(written["renewed"](page, [files, heads])) == without_figures(page), (
        "run docs/write_bad_inputs.py"
    )


def without_figures(page: str) -> str:
    """The last digits of a correlation or the words of another dcm2niix do not make a page untrue."""
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"and said: .*?; give", "and said: ...; give", page))


# What stops a cohort before anything runs


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for name in ("sub-01", "sub-02"):
        folder = tmp_path / name / "anat"
        folder.mkdir(parents=True)
        (folder / f"{name}_T1w.nii").write_bytes(b"")
    return tmp_path


def table(study: Path, ids: list[str]) -> pd.DataFrame:
    paths = sorted(str(path) for path in study.rglob("*.nii"))
    return pd.DataFrame({"path": paths[: len(ids)], "participant_id": ids})


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["a", "a"], ("belongs to 2 files", "keep one")),
        (["a", "A"], ("scan id A and a", "tell them apart")),
        (["é", "e\u0301"], ("belongs to 2 files", "tell them apart")),
        (["../a"], ("'/'", "rename it")),
        (["a..b"], ("two in a row", "rename it")),
        (["/etc/passwd"], ("'/'", "rename it")),
        (["C:\\a"], ("rename it",)),
        (["~/a"], ("'/'", "rename it")),
        ([".hidden"], ("begins or ends with a dot", "rename it")),
        (["a\nb"], ("'\\n'", "rename it")),
        (["a\0b"], ("'\\x00'", "rename it")),
        (["a\u202eb"], ("'\\u202e'", "rename it")),
        (["con"], ("Windows reserves", "rename it")),
        (["x" * 200], ("200 characters", "rename it")),
        (["<script>"], ("'<'", "rename it")),
    ],
    ids=ascii,
)
def test_ids_that_could_leave_the_output_or_meet_there_stop_the_cohort(
    study: Path, ids: list[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(CohortError) as caught:
        Cohort.from_table(table(study, ids))
    for word in (*words, "nothing was run"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("participant_id\tname\nsub-01\tMüller\n".encode("latin-1"), ("cannot be read as a table", "UTF-8")),
        ("participant_id\tage\nsub-01\t61\n".encode("utf-16"), ("cannot be read as a table", "UTF-8")),
        (b"", ("cannot be read as a table", "UTF-8")),
        (b"PK\3\4\xff\xfe" * 9, ("cannot be read as a table", "UTF-8")),
        (b"participant_id,age\nsub-01,61\n", ("participant_id is needed", "tab-separated")),
        (b"participant_id\tage\nsub-01\t61\nsub-01\t62\n", ("several rows for sub-01", "sessions.tsv")),
        (b"participant_id\tage\nsub-01\t61\t7\n", ("cannot be read as a table",)),
        (b"participant_id\tvolume_mm3\nsub-01\t61\n", ("name of a result", "rename it")),
    ],
    ids=["latin-1", "utf-16", "empty", "spreadsheet", "commas", "twice", "long row", "name of a result"],
)
def test_a_damaged_table_of_participants_stops_the_cohort(study: Path, content: bytes, words: tuple[str, ...]) -> None:
    (study / "participants.tsv").write_bytes(content)
    with pytest.raises(CohortError) as caught:
        Cohort.from_bids(study)
    for word in words:
        assert word in str(caught.value)


def test_a_table_of_participants_with_a_byte_order_mark_is_read(study: Path) -> None:
    (study / "participants.tsv").write_bytes("\ufeffparticipant_id\tage\nsub-01\t61\nsub-02\t62\n".encode())
    assert Cohort.from_bids(study).table["age"].tolist() == [61, 62]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_names_of_files_that_are_not_utf8_stop_the_cohort(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/sub-\xff_T1w.nii")
    made = ([name], pd.DataFrame({"path": [Path(name).name], "participant_id": ["a"]}, dtype=object))
    for make, given in zip((Cohort.from_files, lambda one: Cohort.from_table(one, root=tmp_path)), made, strict=True):
        with pytest.raises(CohortError, match="not UTF-8 text; rename the file"):
            make(given)
