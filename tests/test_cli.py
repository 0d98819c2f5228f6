"""The command line: what it passes on, what it prints, and the status it ends with."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import hypodask
from hypodask import cli
from hypodask.core.errors import CohortError
from hypodask.core.row import Row
from hypodask.storage.journal import Journal, read_journal
from hypodask.study.results import assemble, finalise, save_cohort

DONE = Row("sub-01", "done", volume_mm3={"hypothalamus": 850.0, "icv": 1.5e6}, store="scans/sub-01.nii.zarr")
REFUSED = Row("sub-02", "failed", stage="read", error="NonFiniteError", reason="7 voxels are NaN; use the scan before")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A BIDS folder of two scans; nothing here looks inside the files."""
    for participant in ("sub-01", "sub-02"):
        scan = tmp_path / "bids" / participant / "anat" / f"{participant}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.write_bytes(b"not looked at")
    return tmp_path / "bids"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the cluster: every scan gets the row it has in ``rows``; records what was asked for."""
    seen: dict[str, Any] = {"rows": [DONE, REFUSED]}

    def process(cohort: hypodask.Cohort, url: str, **options: Any) -> xr.Dataset:
        seen.update(scans=cohort.table["scan"].tolist(), url=url, **options)
        return assemble(cohort.table, [row.as_dict() for row in seen["rows"] if row.scan in seen["scans"]])

    monkeypatch.setattr(hypodask, "process", process)
    monkeypatch.setattr(hypodask.report, "write_report", lambda out: f"{out}/report.html")
    return seen


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli._app, [str(argument) for argument in arguments])


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["hypodask", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_run_processes_the_whole_folder_and_writes_the_report(study: Path, asked: dict[str, Any]) -> None:
    result = invoke("run", study, "out")
    assert (asked["scans"], asked["url"]) == (["sub-01", "sub-02"], "out")
    assert asked["client"] is asked["models"] is asked["workers"] is None
    assert asked["retry_failed"] is False
    assert "out/report.html" in result.output


def test_run_says_what_became_of_every_scan_and_why(study: Path, asked: dict[str, Any]) -> None:
    result = invoke("run", study, "out")
    assert "2 scans: 1 done, 1 failed, 0 skipped" in result.output
    assert "sub-02 failed at read: 7 voxels are NaN; use the scan before" in result.output


def test_a_failed_scan_is_exit_status_1_and_all_done_is_0(study: Path, asked: dict[str, Any]) -> None:
    assert invoke("run", study, "out").exit_code == 1
    asked["rows"] = [DONE, Row("sub-02", "done", volume_mm3=DONE.volume_mm3)]
    assert invoke("run", study, "out").exit_code == 0


def test_a_scan_that_was_not_run_is_no_success(study: Path, asked: dict[str, Any]) -> None:
    asked["rows"] = [DONE]
    assert invoke("run", study, "out").exit_code == 1


def test_run_passes_its_options_on(study: Path, asked: dict[str, Any]) -> None:
    options = ("--workers", 3, "--scheduler", "tcp://127.0.0.1:8786", "--model", "net.h5", "--retry-failed")
    result = invoke("run", study, "out", *options, "--no-report")
    assert asked["workers"] == 3
    assert asked["client"] == "tcp://127.0.0.1:8786"
    assert asked["models"] == "net.h5"
    assert asked["retry_failed"] is True
    assert "report" not in result.output


def test_participant_labels_restrict_the_run_with_or_without_prefix(study: Path, asked: dict[str, Any]) -> None:
    invoke("run", study, "out", "--participant-label", "02")
    assert asked["scans"] == ["sub-02"]
    invoke("run", study, "out", "--participant-label", "sub-01", "--participant-label", "02")
    assert asked["scans"] == ["sub-01", "sub-02"]


def test_an_unknown_participant_is_a_planning_error(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(monkeypatch, "run", study, "out", "--participant-label", "99") == 2


def test_an_error_of_ours_is_a_message_with_its_notes_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = CohortError("two scans are called sub-01; name them apart")
    error.add_note("while reading scans.tsv")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hypodask.Cohort, "from_bids", refuse)
    assert main(monkeypatch, "run", "study", "out") == 2
    printed = capsys.readouterr()
    assert printed.err == "hypodask: two scans are called sub-01; name them apart\nwhile reading scans.tsv\n"
    assert printed.out == ""


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(hypodask, "verify", fail)
    monkeypatch.setattr(sys, "argv", ["hypodask", "verify", "out"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_wrong_option_is_exit_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(monkeypatch, "run", "study", "out", "--speed", "11") == 2
    assert main(monkeypatch, "run", "study", "out", "--workers", "0") == 2
    assert main(monkeypatch, "run") == 2


def test_verify_lists_problems_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypodask, "verify", lambda out: ["sub-01: chunk c/0/0/0 is missing; delete the store"])
    result = invoke("verify", "out")
    assert result.exit_code == 1
    assert result.output == "sub-01: chunk c/0/0/0 is missing; delete the store\n1 problem in out\n"


def test_verify_of_a_sound_output_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypodask, "verify", lambda out: [])
    assert invoke("verify", "out").exit_code == 0


@pytest.mark.parametrize("command", ["verify", "report"])
def test_a_folder_without_results_is_exit_status_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, command, tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_report_is_written_from_the_results_alone(study: Path, tmp_path: Path) -> None:
    cohort, out = hypodask.Cohort.from_bids(study), str(tmp_path / "out")
    save_cohort(out, cohort.table)
    finalise(out, assemble(cohort.table, [DONE.as_dict(), REFUSED.as_dict()]))
    result = invoke("report", out)
    assert result.exit_code == 0
    assert "7 voxels are NaN" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_demo_passes_its_options_on_and_accounts(monkeypatch: pytest.MonkeyPatch, study: Path) -> None:
    asked: dict[str, Any] = {}

    def run_demo(out: str, **options: Any) -> xr.Dataset:
        asked.update(out=out, **options)
        return assemble(hypodask.Cohort.from_bids(study).table, [DONE.as_dict(), REFUSED.as_dict()])

    monkeypatch.setattr(hypodask.demo, "run_demo", run_demo)
    result = invoke("demo", "here", "--scans", 6, "--workers", 1, "--seed", 5)
    assert asked == {"out": "here", "scans": 6, "workers": 1, "seed": 5}
    assert result.exit_code == 1
    invoke("demo")
    assert asked == {"out": "hypodask-demo", "scans": None, "workers": None, "seed": 0}


@pytest.fixture
def posed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the alignment by a known pose; records what it was asked."""
    seen: dict[str, Any] = {"flagged": False, "warnings": ()}
    acpc_from_scanner = np.eye(4)
    acpc_from_scanner[:3, 3] = -1.0, -2.0, 4.0

    def align(scan: hypodask.Scan, *, landmarks: hypodask.Landmarks | None) -> hypodask.Alignment:
        seen.update(scan=scan, landmarks=landmarks)
        ac, pc = np.array([1.0, 2.0, -4.0]), np.array([1.0, -24.5, -4.0])
        doubts = {name: seen[name] for name in ("flagged", "warnings")}
        return hypodask.Alignment(acpc_from_scanner, ac, pc, np.eye(4), score=0.71, **doubts)

    monkeypatch.setattr(hypodask, "align", align)
    return seen


def test_align_prints_commissures_angles_and_trust(posed: dict[str, Any], head_file: Callable[..., Path]) -> None:
    result = invoke("align", head_file())
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "AC         1.00     2.00    -4.00  mm, scanner RAS+",
        "PC         1.00   -24.50    -4.00  mm, 26.50 mm from AC",
        "angles     0.00     0.00     0.00  degrees: pitch (nose up), roll (to the right), yaw (to the left)",
        "source automatic, score 0.71",
    ]
    assert posed["landmarks"] is None


def test_a_pose_that_is_flagged_is_exit_status_1(posed: dict[str, Any], head_file: Callable[..., Path]) -> None:
    posed.update(flagged=True, warnings=("The pose is odd.",))
    result = invoke("align", head_file())
    assert result.exit_code == 1
    assert result.output.splitlines()[-2:] == ["source automatic, score 0.71, FLAGGED", "The pose is odd."]


def test_align_writes_what_is_asked_for(
    posed: dict[str, Any], head_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypodask.storage.transforms._ALIGNED_SPACING_MM", 4.0)
    (tmp_path / "hand.fcsv").write_text("# CoordinateSystem = RAS\n# columns = x,y,z,label\n1,2,3,AC\n1,-24,3,PC\n")
    names = {"landmarks": "hand.fcsv", "itk": "a.txt", "fsl": "a.mat", "matrix": "b.txt", "image": "a.nii.gz"}
    result = invoke("align", head_file(), *(x for key, name in names.items() for x in (f"--{key}", tmp_path / name)))
    assert result.exit_code == 0
    assert posed["landmarks"] == hypodask.Landmarks((1, 2, 3), (1, -24, 3))
    for name, scan in (("a.txt", None), ("b.txt", None), ("a.mat", posed["scan"].grid)):
        found = hypodask.load_transform(tmp_path / name, scan=scan)
        np.testing.assert_allclose(found[:3, 3], (-1.0, -2.0, 4.0), atol=1e-9)
    assert hypodask.read_scan(tmp_path / "a.nii.gz").grid.spacing_mm == (4.0, 4.0, 4.0)


def test_a_scan_or_landmarks_that_cannot_be_used_are_exit_status_1_with_the_reason(
    posed: dict[str, Any], head_file: Callable[..., Path], tmp_path: Path
) -> None:
    for arguments in ((tmp_path / "none.nii",), (head_file(), "--landmarks", tmp_path / "none.fcsv")):
        result = invoke("align", *arguments)
        assert result.exit_code == 1
        assert "hypodask: " in result.stderr
        assert "no such file" in result.stderr
        assert result.stdout == ""


def test_version_is_that_of_the_package() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"hypodask {hypodask.__version__}\n")


def test_commands_are_those_that_are_promised() -> None:
    assert {command.callback.__name__ for command in cli._app.registered_commands if command.callback} == {
        "align",
        "demo",
        "forget",
        "phantoms",
        "plan",
        "report",
        "run",
        "status",
        "train",
        "verify",
    }


def test_the_module_can_be_imported_by_a_spawned_worker_without_running_anything() -> None:
    done = subprocess.run([sys.executable, "-c", "import hypodask.cli"], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.fixture
def accounted(tmp_path: Path) -> str:
    """An output of two scans of which one failed."""
    out = str(tmp_path / "accounted")
    table = pd.DataFrame({"scan": ["sub-01", "sub-02"], "path": "", "participant_id": ["sub-01", "sub-02"]})
    save_cohort(out, table)
    with Journal(out) as journal:
        journal.append(DONE.as_dict())
        journal.append(Row("sub-02", "failed", stage="read", error="NonFiniteError").as_dict())
    finalise(out, assemble(table, read_journal(out)))
    return out


def test_plan_says_what_would_run_and_runs_nothing(study: Path, tmp_path: Path) -> None:
    result = invoke("plan", study, tmp_path / "new", "--participant-label", "01", "--workers", 1)
    assert result.output.splitlines()[0].startswith("1 scans: 1 to process (")
    assert not (tmp_path / "new").exists()


def test_status_is_a_table_of_all_scans_or_of_those_that_failed(accounted: str) -> None:
    lines = invoke("status", accounted).output.splitlines()
    assert lines[0].split("\t")[:3] == ["scan", "status", "stage"]
    assert [line.split("\t")[:3] for line in lines[1:]] == [["sub-01", "done", "n/a"], ["sub-02", "failed", "read"]]
    assert len(invoke("status", accounted, "--only", "failed").output.splitlines()) == 2


def test_forget_removes_a_participant_and_says_what_is_left_to_do(accounted: str) -> None:
    result = invoke("forget", accounted, "01")
    assert "sub-01 was removed" in result.output
    assert "Take them out of the input too" in result.output
    assert hypodask.open_results(accounted)["scan"].to_numpy().tolist() == ["sub-02"]
