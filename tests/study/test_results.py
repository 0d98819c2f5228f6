"""Journal and cohort become one dataset: every scan once, every value typed, readable tables beside it."""

import io
import json
import multiprocessing
from itertools import count
from multiprocessing.synchronize import Event

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from hypodask.core.errors import CohortError, ResultsError
from hypodask.core.grid import Grid
from hypodask.core.row import Row
from hypodask.core.structures import HYPOTHALAMUS, NAMES
from hypodask.core.variables import RESULTS
from hypodask.files.digests import write_sealed
from hypodask.files.location import Location
from hypodask.scan import Scan
from hypodask.storage.journal import Journal, read_journal
from hypodask.storage.manifest import TABLES
from hypodask.storage.store import mark_done, write_scan
from hypodask.study.results import (
    assemble,
    finalise,
    open_results,
    read_cohort,
    save_cohort,
    tidy_table,
    verify,
    wide_table,
)


def cohort_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "scan": ["sub-03", "sub-01", "sub-02"],
            "path": ["c.nii", "a.nii", "b.nii"],
            "participant_id": ["sub-03", "sub-01", "sub-02"],
            "site": ["", "", ""],
            "group": ["PLS", None, "contról"],
            "age": [61, None, 55.5],
            "visits": [1, 2, 3],
            "smoker": [True, False, True],
            "sex": pd.Series(["F", "M", None], dtype="category"),
            "alsfrs_r": pd.array([40, None, 48], dtype="Int64"),
            "scanned": pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"]),
            "mixed": ["a", 1, None],
        }
    )


def rows() -> list[dict]:
    volumes = {"hypothalamus": 850.0, "icv": 1.5e6, "hypothalamus_left": 420.0}
    return [
        Row("sub-01", "done", volume_mm3={"icv": 1.0}, seconds=3.0).as_dict(),
        Row("sub-02", "failed", stage="read", error="NonFiniteError", reason="NaN\tin\nvoxels").as_dict(),
        Row("sub-01", "done", volume_mm3=volumes, label_volume_mm3={"icv": 1.6e6}, quality=0.9, flagged=True).as_dict(),
    ]


@pytest.fixture
def results() -> xr.Dataset:
    return assemble(cohort_table(), rows())


def test_every_scan_of_the_cohort_has_one_place_in_the_cohorts_order(results):
    assert results["scan"].to_numpy().tolist() == ["sub-03", "sub-01", "sub-02"]
    assert results["status"].to_numpy().tolist() == ["skipped", "done", "failed"]


def test_the_latest_row_of_a_scan_is_the_one_that_counts(results):
    assert results["volume_mm3"].sel(scan="sub-01", structure="icv").item() == 1.5e6
    assert np.isnan(results["seconds"].sel(scan="sub-01"))


def test_every_documented_variable_is_there_with_its_dims_units_and_meaning(results):
    assert list(results.data_vars) == [variable.name for variable in RESULTS]
    for variable in RESULTS:
        assert results[variable.name].dims == variable.dims
        assert results[variable.name].attrs.get("units", "") == variable.units
        assert results[variable.name].attrs["description"] == variable.description
        assert results[variable.name].dtype.kind == {"float64": "f", "str": "U", "bool": "b"}[variable.dtype]


def test_structures_are_those_measured_in_the_order_of_the_label_tables(results):
    assert results["structure"].to_numpy().tolist() == ["hypothalamus", "icv", "hypothalamus_left"]
    assert assemble(cohort_table(), [])["structure"].to_numpy().tolist() == ["hypothalamus", "icv"]


def test_all_ten_subunits_reach_the_tables_with_their_sides_and_intervals():
    volumes = dict.fromkeys(reversed(NAMES), 1.0)
    row = {"scan": "sub-01", "status": "done", "volume_mm3": volumes, "volume_low_mm3": volumes}
    results = assemble(cohort_table(), [row])
    assert results["structure"].to_numpy().tolist() == list(NAMES)
    table = wide_table(results).set_index("scan")
    assert len(HYPOTHALAMUS) == 10
    for structure in (*HYPOTHALAMUS.structures, "hypothalamus_left", "hypothalamus", "icv"):
        assert table.loc["sub-01", f"{structure}_volume_mm3"] == table.loc["sub-01", f"{structure}_volume_low_mm3"] == 1
        assert np.isnan(table.loc["sub-02", f"{structure}_volume_mm3"])


def test_a_structure_of_a_foreign_model_is_not_dropped():
    row = Row("sub-01", "done", volume_mm3={"optic_tract": 3.0}).as_dict()
    assert assemble(cohort_table(), [row])["structure"].to_numpy().tolist() == ["hypothalamus", "icv", "optic_tract"]


def test_covariates_are_coordinates_of_one_type_without_objects(results):
    kinds = {name: results[name].dtype.kind for name in cohort_table().columns if name != "scan"}
    assert kinds == {
        **dict.fromkeys(["path", "participant_id", "site", "group", "sex", "mixed"], "U"),
        "age": "f",
        "visits": "i",
        "smoker": "b",
        "alsfrs_r": "f",
        "scanned": "M",
    }
    assert results["group"].to_numpy().tolist() == ["PLS", "", "contról"]
    assert results["mixed"].to_numpy().tolist() == ["a", "1", ""]
    np.testing.assert_array_equal(results["alsfrs_r"], [40, np.nan, 48])


@pytest.mark.parametrize("column", ["stage", "volume_mm3", "structure", "m/f"])
def test_a_covariate_that_would_hide_a_result_is_refused_before_anything_runs(column):
    with pytest.raises(CohortError, match=f"the columns {column} .* rename them"):
        assemble(cohort_table().assign(**{column: 1}), [])


def test_rows_through_the_journal_make_the_same_dataset(tmp_path, results):
    for row in rows():
        with Journal(str(tmp_path)) as journal:
            journal.append({**row, "stamp": "not a result"})
    xr.testing.assert_identical(assemble(cohort_table(), read_journal(str(tmp_path))), results)


@pytest.mark.parametrize("base", ["", "memory://dataset-test"])
def test_results_are_opened_as_they_were_made(tmp_path, results, base):
    url = base or str(tmp_path)
    finalise(url, results)
    opened = open_results(url)
    xr.testing.assert_identical(opened, results)
    assert {opened[name].dtype.kind for name in opened.variables} == set("UfibM")
    assert opened["scan"].dtype.kind == "U"


def test_an_empty_cohort_has_empty_results(tmp_path):
    empty = assemble(cohort_table().iloc[:0], rows())
    finalise(str(tmp_path), empty)
    assert open_results(str(tmp_path)).sizes == {"scan": 0, "structure": 3}


def test_newer_results_take_the_place_of_older_ones(tmp_path, results):
    finalise(str(tmp_path), results)
    finalise(str(tmp_path), results.isel(scan=[0]))
    assert open_results(str(tmp_path)).sizes["scan"] == 1
    finalise(str(tmp_path), results)
    # Those before stay for readers who are in the middle of them.
    assert len(list(tmp_path.glob("results-*.zarr"))) == 2
    assert len(list(tmp_path.glob("results-*.old.json"))) == 1


def test_the_older_results_stand_when_writing_newer_ones_fails(tmp_path, results, monkeypatch):
    finalise(str(tmp_path), results)

    def disk_full(dataset: xr.Dataset) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hypodask.study.results._tables", disk_full)
    with pytest.raises(OSError, match="No space left"):
        finalise(str(tmp_path), results.isel(scan=[0]))
    xr.testing.assert_identical(open_results(str(tmp_path)), results)


def test_missing_or_broken_results_say_what_to_do(tmp_path, results):
    with pytest.raises(ResultsError, match="process a cohort into it, to the end, first"):
        open_results(str(tmp_path))
    finalise(str(tmp_path), results)
    Location(str(tmp_path)).child(next(tmp_path.glob("results-*.zarr")).name).delete()
    with pytest.raises(ResultsError, match="is missing; process the cohort again"):
        open_results(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b"[" * 200_000, b'{"results": 1, "manifest_sha256": ""}']
)
def test_a_pointer_of_another_kind_is_an_error_of_ours(tmp_path, results, content):
    finalise(str(tmp_path), results)
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ResultsError, match=r"results\.json (is damaged|names 1)"):
        open_results(str(tmp_path))


def test_an_old_pointer_is_told_from_the_one_in_force(tmp_path, results):
    finalise(str(tmp_path), results)
    old = (tmp_path / "results.json").read_bytes()
    finalise(str(tmp_path), results.isel(scan=[0]))
    (tmp_path / "results.json").write_bytes(old)
    with pytest.raises(ResultsError, match="which newer results have replaced"):
        open_results(str(tmp_path))


def test_results_of_version_0_1_0_are_refused_with_a_sentence(tmp_path, results):
    finalise(str(tmp_path), results)
    name = next(tmp_path.glob("results-*.zarr")).name
    (tmp_path / "results.json").write_text(json.dumps({"results": name}))
    with pytest.raises(ResultsError, match=r"written by hypodask 0\.1\.0, .* process the cohort again"):
        open_results(str(tmp_path))


def test_every_file_of_results_that_is_changed_or_gone_is_noticed(tmp_path, results):
    finalise(str(tmp_path), results)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in TABLES]
    assert len(files) > 50
    for path in files:
        intact = path.read_bytes()
        changed = bytearray(intact)
        changed[len(intact) // 2] ^= 4
        path.write_bytes(changed)
        with pytest.raises(ResultsError):
            open_results(str(tmp_path))
        path.unlink()
        with pytest.raises(ResultsError):
            open_results(str(tmp_path))
        path.write_bytes(intact)
    xr.testing.assert_identical(open_results(str(tmp_path)), results)


def test_the_wide_table_has_a_row_per_scan_and_is_one_line_each(tmp_path, results):
    finalise(str(tmp_path), results)
    table = pd.read_csv(tmp_path / "volumes.tsv", sep="\t", na_values="n/a", index_col="scan")
    assert table.loc["sub-01", ["hypothalamus_volume_mm3", "icv_label_volume_mm3"]].tolist() == [850.0, 1.6e6]
    assert table.loc["sub-02", "reason"] == "NaN in voxels"
    assert table["hypothalamus_left_volume_mm3"].isna().tolist() == [True, False, True]
    assert len((tmp_path / "volumes.tsv").read_text(encoding="utf-8").splitlines()) == 4


def test_the_data_dictionary_explains_every_column(tmp_path, results):
    finalise(str(tmp_path), results)
    meaning = json.loads((tmp_path / "volumes.json").read_text(encoding="utf-8"))
    assert list(meaning) == list(wide_table(results).columns)
    assert meaning["icv_volume_mm3"]["Units"] == "mm3"
    assert meaning["icv_volume_mm3"]["Description"].startswith("icv: Volume to publish")
    assert meaning["acpc_distance_mm"]["Units"] == "mm"
    assert meaning["age"]["Description"] == "As given in the table of participants."


def test_the_tidy_table_has_a_row_per_scan_and_structure(tmp_path, results):
    finalise(str(tmp_path), results)
    table = pd.read_parquet(io.BytesIO((tmp_path / "volumes.parquet").read_bytes()))
    assert table.shape[0] == 9
    assert table.columns[:2].tolist() == ["scan", "structure"]
    chosen = table[(table["scan"] == "sub-01") & (table["structure"] == "hypothalamus")]
    assert chosen[["volume_mm3", "visits"]].iloc[0].tolist() == [850.0, 2]
    pd.testing.assert_frame_equal(table, tidy_table(results))


def test_the_same_rows_make_the_same_tables_to_the_byte(tmp_path, results):
    for name in ("one", "two"):
        finalise(str(tmp_path / name), assemble(cohort_table(), reversed(rows()[1:])))
    for name in ("volumes.tsv", "volumes.json", "volumes.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_cohort_is_kept_so_that_results_can_be_remade(tmp_path, results):
    save_cohort(str(tmp_path), cohort_table())
    xr.testing.assert_identical(assemble(read_cohort(str(tmp_path)), rows()), results)
    with pytest.raises(ResultsError, match="no run was started in"):
        read_cohort(str(tmp_path / "none"))


@pytest.fixture
def study(tmp_path):
    """An output with one scan done, one failed, and its results."""
    url = str(tmp_path)
    table = cohort_table().iloc[1:]
    save_cohort(url, table)
    store = "scans/Ulm/sub-01.nii.zarr"
    write_scan(f"{url}/{store}", Scan(np.ones((3, 3, 3), np.uint8), Grid((3, 3, 3), np.eye(4), "scanner")))
    row = Row("sub-01", "done", store=store, volume_mm3={"icv": 1.5e6}).as_dict()
    mark_done(f"{url}/{store}", {"row": row})
    with Journal(url) as journal:
        journal.append(row)
        journal.append(Row("sub-02", "failed", store="scans/sub-02.nii.zarr").as_dict())
    finalise(url, assemble(table, read_journal(url)))
    return tmp_path


def test_an_intact_output_has_no_problems(study):
    assert verify(str(study)) == []


def test_verification_names_the_scan_and_what_is_wrong_with_its_store(study):
    shard = study / "scans/Ulm/sub-01.nii.zarr/0/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    assert verify(str(study)) == ["sub-01: 0/c/0/0/0 was altered: its sha256 differs"]
    assert verify(str(study), digests=False) == []


def test_verification_compares_results_with_the_journal_and_the_journal_with_the_stores(study):
    url = str(study)
    doubled = open_results(url)
    finalise(url, doubled.assign(volume_mm3=2 * doubled["volume_mm3"]))
    assert verify(url) == [f"the results in {url} are not what its journal says (volume_mm3); process the cohort again"]
    with Journal(url) as journal:
        store = "scans/Ulm/sub-01.nii.zarr"
        journal.append(Row("sub-01", "done", store=store, volume_mm3={"icv": 3e6}).as_dict())
    finalise(url, assemble(read_cohort(url), read_journal(url)))
    (problem,) = verify(url)
    assert problem.startswith("sub-01: its row in the journal is not that of its store (volume_mm3.icv)")


@pytest.mark.parametrize("name", ["volumes.tsv", "volumes.json", "volumes.parquet", "cohort.parquet", "runs/a.json"])
def test_verification_finds_tables_and_records_that_were_changed_or_lost(study, name):
    write_sealed(Location(str(study)).child("runs", "a.json"), b"{}")
    assert verify(str(study)) == []
    intact = (study / name).read_bytes()
    (study / name).write_bytes(intact[:-1])
    assert any(name in problem for problem in verify(str(study)))
    (study / name).unlink()
    assert any(name in problem for problem in verify(str(study)))


def test_verification_finds_scans_without_a_row_stores_without_a_scan_and_stale_results(study):
    save_cohort(str(study), cohort_table())
    for name in ("sub-09.nii.zarr", "Ulm/sub-08.nii.zarr"):
        (study / "scans" / name).mkdir()
    problems = verify(str(study))
    assert problems[0] == "sub-03: was not run; process the cohort again"
    assert [problem.partition(":")[0] for problem in problems[1:3]] == [
        "scans/Ulm/sub-08.nii.zarr",
        "scans/sub-09.nii.zarr",
    ]
    assert "are not those of its cohort" in problems[3]


def test_verification_of_an_interrupted_run_names_every_scan(tmp_path):
    save_cohort(str(tmp_path), cohort_table())
    problems = verify(str(tmp_path))
    assert [problem.partition(":")[0] for problem in problems[:3]] == ["sub-03", "sub-01", "sub-02"]
    assert "there are no results" in problems[3]


def versions_of(results: xr.Dataset) -> list[xr.Dataset]:
    """Two datasets of which every number differs, so that a mixture is neither."""
    numbers = [name for name in results.data_vars if results[name].dtype.kind == "f"]
    return [results.assign({name: results[name] * 0 + n for name in numbers}).fillna(n) for n in range(2)]


def write_again_and_again(url: str, results: xr.Dataset, over: "Event") -> None:
    for number in count(1):
        finalise(url, versions_of(results)[number % 2])
        if over.is_set():
            return


def seen_beside_a_writer(url: str, results: xr.Dataset, reads: int) -> set[int]:
    """Which of two datasets a reader sees while another process writes one after the other."""
    versions, seen = versions_of(results), set()
    finalise(url, versions[0])
    context = multiprocessing.get_context("forkserver")
    over = context.Event()
    writer = context.Process(target=write_again_and_again, args=(url, results, over))
    writer.start()
    try:
        for _ in range(reads):
            opened = open_results(url)
            matching = [number for number, one in enumerate(versions) if opened.identical(one)]
            assert len(matching) == 1
            seen.update(matching)
    finally:
        over.set()
        writer.join()
    return seen


def test_a_reader_beside_a_writer_sees_the_old_results_or_the_new_and_no_mixture(tmp_path, results):
    assert seen_beside_a_writer(str(tmp_path), results, 60) == {0, 1}


@pytest.mark.thorough
def test_five_hundred_reads_beside_a_writer_are_no_mixture(tmp_path, results):
    assert seen_beside_a_writer(str(tmp_path), results, 500) == {0, 1}
