"""How a study's table is made, and what stops it before anything runs."""

import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypodask import Cohort
from hypodask.core.errors import CohortError
from hypodask.core.variables import VARIABLES
from hypodask.study.cohort import Entry
from hypodask.study.ids import id_danger


def write(root, *names, text=""):
    """Files below ``root``, whatever folders they need."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def refused(words, make, *args, **options):
    with pytest.raises(CohortError) as caught:
        make(*args, **options)
    for word in [words] if isinstance(words, str) else words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.fixture
def study(tmp_path):
    """Three participants, one of them with two sessions and two runs in the second."""
    write(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii",
        "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz",
        "sub-03/ses-b/anat/sub-03_ses-b_run-1_T1w.nii.gz",
        "sub-03/ses-b/anat/sub-03_ses-b_run-2_T1w.nii.gz",
    )
    return tmp_path


def participants(root, *lines):
    write(root, "participants.tsv", text="\n".join("\t".join(line.split()) for line in lines) + "\n")


# BIDS


def test_every_participant_session_and_run_is_a_row(study):
    cohort = Cohort.from_bids(study)
    assert list(cohort.table.columns) == ["scan", "path", "participant_id", "session", "run", "site"]
    assert cohort.table["scan"].tolist() == [
        "sub-01",
        "sub-02",
        "sub-03_ses-a",
        "sub-03_ses-b_run-1",
        "sub-03_ses-b_run-2",
    ]
    assert len(cohort) == 5
    path = str(study / "sub-03/ses-b/anat/sub-03_ses-b_run-2_T1w.nii.gz")
    assert list(cohort.entries())[-1] == Entry("sub-03_ses-b_run-2", path, "", "sub-03", "b", "2")


def test_what_is_no_raw_t1w_image_is_ignored(study):
    write(
        study,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/._sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_part-phase_T1w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "derivatives/fs/sub-01/anat/sub-01_T1w.nii.gz",
        "sourcedata/sub-09/anat/sub-09_T1w.nii.gz",
    )
    assert len(Cohort.from_bids(study)) == 5


def test_participants_come_with_their_types(study):
    participants(
        study,
        "participant_id age sex group site code",
        "sub-01 61.5 M ALS 7 007",
        "sub-02 n/a F control 8 n/a",
        "sub-03 70 n/a PLS 8 12",
    )
    table = Cohort.from_bids(study).table.set_index("scan")
    assert table["age"].dtype == np.float64
    assert np.isnan(table.loc["sub-02", "age"])
    assert table.loc["sub-03_ses-a", "age"] == 70
    assert pd.isna(table.loc["sub-03_ses-a", "sex"])
    assert table.loc["sub-01", ["group", "site", "code"]].tolist() == ["ALS", "7", "007"]


def test_codes_with_levels_stay_text_and_their_meaning_is_kept(study):
    participants(study, "participant_id group handedness", "sub-01 1 1", "sub-02 2 2", "sub-03 2 1")
    levels = {"group": {"Levels": {"1": "control", "2": "ALS"}}, "age": {"Units": "years"}}
    write(study, "participants.json", text=json.dumps(levels))
    cohort = Cohort.from_bids(study)
    assert cohort.table["group"].tolist() == ["1", "2", "2", "2", "2"]
    assert cohort.table["handedness"].tolist() == [1, 2, 1, 1, 1]
    assert cohort.dictionary["group"]["Levels"]["2"] == "ALS"


def test_session_tables_are_merged_and_win_over_participants(study):
    participants(study, "participant_id age sex", "sub-01 61 M", "sub-03 70 F")
    text = "session_id\tage\talsfrs\nses-a\t70.5\t44\nses-b\t71.5\tn/a\n"
    write(study, "sub-03/sub-03_sessions.tsv", text=text)
    table = Cohort.from_bids(study).table
    assert table["age"].tolist()[2:] == [70.5, 71.5, 71.5]
    assert table["age"][0] == 61
    assert table["alsfrs"].tolist()[2] == 44
    assert table["alsfrs"].isna().tolist() == [True, True, False, True, True]


def test_participants_without_scan_and_scans_without_participant_are_noted(study):
    participants(study, "participant_id age", "01 61", "sub-09 50")
    cohort = Cohort.from_bids(study)
    assert len(cohort) == 5
    assert "2 participants with a scan" in cohort.notes[0]
    assert "sub-02, sub-03" in cohort.notes[0]
    assert "sub-09" in cohort.notes[1]
    assert len(Cohort.from_bids(study, participant_labels="01").notes) == 0


@pytest.mark.parametrize("labels", ["03", "sub-03", ["03"], ["sub-03", "03"]])
def test_labels_are_taken_with_and_without_prefix(study, labels):
    assert set(Cohort.from_bids(study, participant_labels=labels).table["participant_id"]) == {"sub-03"}


def test_unknown_labels_are_refused(study):
    refused(["sub-77", "sub-78"], Cohort.from_bids, study, participant_labels=["77", "sub-78", "01"])
    refused("no participant label", Cohort.from_bids, study, participant_labels=[])


def test_an_acquisition_tells_scans_apart(study):
    write(study, "sub-01/anat/sub-01_acq-mprage_T1w.nii.gz")
    assert "sub-01_acq-mprage" in Cohort.from_bids(study).table["scan"].tolist()


def test_a_bucket_is_read_like_a_folder(study):
    for path in study.rglob("*.nii*"):
        with fsspec.open(f"memory://bids/{path.relative_to(study)}", "wb") as file:
            file.write(b"")
    with fsspec.open("memory://bids/participants.tsv", "wb") as file:
        file.write(b"participant_id\tage\nsub-01\t61\n")
    cohort = Cohort.from_bids("memory://bids")
    assert cohort.table["scan"].tolist() == Cohort.from_bids(study).table["scan"].tolist()
    assert cohort.table["path"][0] == "memory://bids/sub-01/anat/sub-01_T1w.nii.gz"
    assert cohort.table["age"][0] == 61
    refused("no folder", Cohort.from_bids, "memory://nowhere")


def test_two_files_of_one_scan_are_refused(study):
    write(study, "sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T1w.nii.gz")
    refused(["2 problems", "sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"], Cohort.from_bids, study)


def test_ids_that_differ_only_in_case_are_refused(study):
    write(study, "sub-AB/anat/sub-AB_T1w.nii", "sub-ab/anat/sub-ab_T1w.nii")
    refused("sub-AB and sub-ab", Cohort.from_bids, study)


@pytest.mark.parametrize(
    "name",
    ["sub-01/anat/sub-02_T1w.nii", "sub-03/ses-a/anat/sub-03_T1w.nii", "sub-01/anat/first_T1w.nii",
     "sub-01_b/anat/sub-01_b_T1w.nii"],
)  # fmt: skip
def test_files_whose_name_contradicts_their_place_are_refused(study, name):
    refused(name, Cohort.from_bids, write(study, name))


def test_other_participants_trouble_does_not_stop_those_asked_for(study):
    write(study, "sub-01/anat/sub-02_T1w.nii")
    assert len(Cohort.from_bids(study, participant_labels="02")) == 1


def test_links_that_lead_nowhere_are_refused(study):
    (study / "sub-01/anat/sub-01_run-2_T1w.nii.gz").symlink_to("annex")
    refused("datalad get", Cohort.from_bids, study)


def test_folders_without_scans_are_refused_with_what_was_searched(tmp_path):
    refused(["sub-*/anat/*_T1w.*", str(tmp_path)], Cohort.from_bids, tmp_path)
    refused("no folder", Cohort.from_bids, tmp_path / "nowhere")
    refused("no folder", Cohort.from_bids, write(tmp_path, "file") / "file")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("id\tage\nsub-01\t3\n", "participant_id is needed"),
        ("participant_id,age\nsub-01,3\n", "participant_id is needed"),
        ("participant_id\tage\nsub-01\t3\n01\t4\n", "several rows for sub-01"),
        ("participant_id\trun\nsub-01\t3\n", "run"),
        ("participant_id\tstatus\nsub-01\tx\n", "name of a result"),
        ("participant_id\tage\nsub-01\t3\t4\t5\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_participants_tables_that_mislead_are_refused(study, text, word):
    refused(word, Cohort.from_bids, write(study, "participants.tsv", text=text))


def test_a_damaged_dictionary_is_refused(study):
    refused("not JSON", Cohort.from_bids, write(study, "participants.json", text="{"))
    refused("no object", Cohort.from_bids, write(study, "participants.json", text="[]"))


# Tables


@pytest.fixture
def files(tmp_path):
    return write(tmp_path, "raw/a.nii.gz", "raw/b.nii.gz", "raw/sub-03_ses-1_T1w.nii.gz")


@pytest.mark.parametrize("name", ["scans.csv", "scans.tsv", "scans.parquet"])
def test_a_table_gives_paths_relative_to_itself_and_covariates_untouched(files, name):
    table = pd.DataFrame(
        {"file": ["raw/a.nii.gz", str(files / "raw/b.nii.gz")], "participant_id": ["001", "002"], "site": ["Ulm", None],
         "group": ["ALS", "control"], "age": [61.5, None], "note": ["left, right", "x"]}
    )  # fmt: skip
    path = files / name
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(
        path, sep="," if name.endswith("csv") else "\t", index=False, na_rep="n/a"
    )
    cohort = Cohort.from_table(path).table
    assert cohort["scan"].tolist() == cohort["participant_id"].tolist() == ["001", "002"]
    assert cohort["path"].tolist() == [str(files / "raw/a.nii.gz"), str(files / "raw/b.nii.gz")]
    assert cohort["site"].tolist() == ["Ulm", ""]
    assert cohort["note"].tolist() == ["left, right", "x"]
    assert cohort["age"][0] == 61.5
    assert np.isnan(cohort["age"][1])
    assert list(cohort.columns[6:]) == ["group", "age", "note"]


def test_a_dataframe_starts_at_the_root_given(files):
    table = pd.DataFrame(
        {"path": [Path("a.nii.gz"), "b.nii.gz"], "session": [1.0, np.nan], "age": [1, 2]}, index=[7, 7]
    )
    cohort = Cohort.from_table(table, root=files / "raw").table
    assert cohort["scan"].tolist() == ["a_ses-1", "b"]
    assert cohort["age"].tolist() == [1, 2]
    assert list(table.columns) == ["path", "session", "age"]


def test_absent_ids_are_read_from_the_names(files):
    cohort = Cohort.from_table(pd.DataFrame({"path": ["a.nii.gz", "sub-03_ses-1_T1w.nii.gz"]}), root=files / "raw")
    assert cohort.table["participant_id"].tolist() == ["a", "sub-03"]
    assert cohort.table["session"].tolist() == ["", "1"]


def test_types_of_parquet_are_kept(files):
    table = pd.DataFrame({"path": [str(files / "raw/a.nii.gz")], "code": ["12"]})
    table.to_parquet(files / "t.parquet")
    assert Cohort.from_table(files / "t.parquet").table["code"].tolist() == ["12"]


def test_all_problems_of_a_table_are_listed_at_once(files):
    table = pd.DataFrame({"path": [f"gone{i}.nii" for i in range(14)]})
    message = refused(["14 problems", "gone0.nii", "gone9.nii", "and 4 more"], Cohort.from_table, table)
    assert "gone10.nii" not in message


def test_missing_objects_of_a_bucket_are_refused():
    with fsspec.open("memory://store/a.nii", "wb") as file:
        file.write(b"")
    assert len(Cohort.from_files(["memory://store/a.nii"])) == 1
    refused(["1 problem ", "b.nii"], Cohort.from_files, ["memory://store/a.nii", "memory://store/b.nii"])


def test_what_cannot_even_be_looked_at_is_left_to_the_worker_and_stops_nobody_else(files):
    odd = ["nonsense://store/b.nii", "zip://x::/nope.zip", "reference://x", "/data/a\0c.nii"]
    assert len(Cohort.from_files([files / "raw" / "a.nii.gz", *odd])) == 1 + len(odd)


@pytest.mark.parametrize("name", [*VARIABLES, "Status", "structure", "scan", "a/b", "__x"])
def test_columns_that_would_clash_with_results_are_refused(files, name):
    table = pd.DataFrame({"path": ["a.nii.gz"], name: [1]})
    refused([name, "rename"], Cohort.from_table, table, root=files / "raw")


def test_tables_without_one_column_of_paths_are_refused(files):
    refused("path and file", Cohort.from_table, pd.DataFrame({"paths": ["a"]}))
    refused("path and file", Cohort.from_table, pd.DataFrame({"path": ["a"], "file": ["a"]}))
    refused("row 2", Cohort.from_table, pd.DataFrame({"path": ["a.nii.gz", None]}), root=files / "raw")
    refused("more than once", Cohort.from_table, pd.DataFrame([["a", "b"]], columns=["path", "path"]))
    refused("rows", Cohort.from_table, pd.DataFrame({"path": []}))


def test_files_that_are_no_table_are_refused(tmp_path):
    refused("no table", Cohort.from_table, tmp_path / "none.csv")
    refused("folder", Cohort.from_table, tmp_path)
    refused(".parquet", Cohort.from_table, write(tmp_path, "t.xlsx") / "t.xlsx")
    refused("cannot be read", Cohort.from_table, write(tmp_path, "t.parquet", text="x") / "t.parquet")
    (tmp_path / "latin.csv").write_bytes("path\nJosé.nii\n".encode("latin-1"))
    refused("UTF-8", Cohort.from_table, tmp_path / "latin.csv")


@pytest.mark.parametrize(
    "name",
    ["../sub-01", "a/b", "a\\b", "..", "", " ", ".hidden", "a\nb", "a\0b", "x" * 300, "CON", "nul.txt", "a*", "a "],
)
def test_dangerous_ids_and_sites_are_refused(files, name):
    table = pd.DataFrame({"path": ["a.nii.gz", "b.nii.gz"], "participant_id": [name, "ok"], "site": ["here", "here"]})
    refused("scan id", Cohort.from_table, table, root=files / "raw")
    if name:
        table = table.assign(participant_id=["one", "two"], site=["ok", name])
        refused("site", Cohort.from_table, table, root=files / "raw")


@given(st.text(max_size=20))
def test_a_safe_id_is_one_component_of_a_path(name):
    if not id_danger(name):
        assert Path("out", name).parent == Path("out")
        assert os.path.normpath(f"out/{name}") == f"out/{name}"


def test_repeated_ids_and_files_are_refused(files):
    twice = pd.DataFrame({"path": ["a.nii.gz", "b.nii.gz"], "participant_id": ["x", "X"]})
    refused("x", Cohort.from_table, twice, root=files / "raw")
    shared = pd.DataFrame({"path": ["a.nii.gz", "a.nii.gz"], "participant_id": ["x", "y"]})
    refused("listed as x and y", Cohort.from_table, shared, root=files / "raw")
    sites = pd.DataFrame({"path": ["a.nii.gz", "b.nii.gz"], "site": ["ulm", "Ulm"]})
    refused("sites", Cohort.from_table, sites, root=files / "raw")
    columns = pd.DataFrame({"path": ["a.nii.gz"], "age": [1], "Age": [2]})
    refused("differ only in case", Cohort.from_table, columns, root=files / "raw")


# Files


def test_files_get_ids_from_their_names(files):
    names = ["sub-03_ses-1_T1w.nii.gz", "a.nii.gz"]
    cohort = Cohort.from_files(files / "raw" / name for name in names)
    assert cohort.table["scan"].tolist() == ["sub-03_ses-1", "a"]
    assert cohort.table["participant_id"].tolist() == ["sub-03", "a"]
    assert cohort.table["session"].tolist() == ["1", ""]


def test_a_lone_path_an_empty_list_and_equal_stems_are_refused(files):
    refused("a list is needed", Cohort.from_files, str(files / "raw/a.nii.gz"))
    refused("empty", Cohort.from_files, [])
    write(files, "other/a.nii")
    refused("scan id a", Cohort.from_files, [files / "raw/a.nii.gz", files / "other/a.nii"])


def test_a_file_that_cannot_be_read_is_found_by_the_worker_and_not_here(files):
    assert len(Cohort.from_files([files / "raw/a.nii.gz"])) == 1


def test_an_indexed_scan_can_be_read(tmp_path, head_file):
    head_file("sub-01_T1w.nii.gz", folder=tmp_path / "sub-01" / "anat")
    assert next(Cohort.from_bids(tmp_path).entries()).scan == "sub-01"
