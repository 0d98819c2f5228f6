"""Commissures by hand: read without a guess, refused where they cannot be right, and followed where they can."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pandas as pd
import pytest
from array_types import unchecked
from clusters import local_client
from distributed import Client
from geometry import rigid_error
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hypodask import Cohort, align, pipeline, process_scan
from hypodask.alignment import Alignment, acpc, acpc_frame
from hypodask.alignment.manual import align_to
from hypodask.cluster.processing import _process
from hypodask.core.errors import AlignmentError, CohortError, LandmarkError
from hypodask.core.grid import Grid, transform_points
from hypodask.core.row import Row
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.phantom import HeadOptions, Truth, simulate_head
from hypodask.scan import Scan
from hypodask.scan.landmarks import Landmarks, read_landmarks
from hypodask.segmentation.network import UNMEASURED, VolumeError

AC, PC, IH = (0.5, 4.0, -5.0), (0.2, -23.0, -3.0), (1.0, -10.0, 50.0)
PLACED = Landmarks(AC, PC)
HEADER = (
    "# Markups fiducial file version = 4.6\n# CoordinateSystem = {}\n# columns = id,x,y,z,ow,ox,oy,oz,vis,label,desc\n"
)


def cube(spacing_mm: float = 2.0, size: int = 96) -> Scan:
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = -spacing_mm * (size - 1) / 2
    return Scan(np.zeros((size,) * 3, np.uint8), Grid((size,) * 3, matrix, "scanner"))


def found(ac: Any = AC, pc: Any = PC, right: Any = (1.0, 0.0, 0.0)) -> Alignment:
    ac, pc, right = (np.array(x, float) for x in (ac, pc, right))
    return Alignment(acpc_frame(ac, pc, right), ac, pc, np.eye(4), score=0.7, flagged=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """``write("a.fcsv", text)`` is the path of a file; what is no text is written as JSON."""

    def put(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return put


def fcsv(*rows: tuple[Any, ...], system: str = "RAS") -> str:
    lines = (f"{i},{x},{y},{z},0,0,0,1,1,{label},{desc}" for i, ((x, y, z), label, desc) in enumerate(rows))
    return HEADER.format(system) + "\n".join(lines) + "\n"


def markups(*points: tuple[str, Any], system: Any = "LPS", **more: Any) -> dict[str, Any]:
    controls = [{"label": name, "position": list(place)} for name, place in points]
    return {"markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": controls, **more}]}


def bids(points: dict[str, Any], system: Any = "ScanRAS", units: Any = "mm", **more: Any) -> dict[str, Any]:
    block = "AnatomicalLandmark"
    return {f"{block}Coordinates": points, f"{block}CoordinateSystem": system, f"{block}CoordinateUnits": units} | more


def lps(point: tuple[float, ...]) -> tuple[float, ...]:
    return -point[0], -point[1], point[2]


def refused(words: str, make: Callable[..., Any], *args: Any, **options: Any) -> LandmarkError:
    with pytest.raises(LandmarkError, match=words) as caught:
        make(*args, **options)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes
    return caught.value


# Files


@pytest.mark.parametrize(("system", "sign"), [("RAS", 1), ("0", 1), ("LPS", -1), ("1", -1)])
def test_points_of_a_slicer_table_are_found_by_label_or_description(
    write: Callable[..., str], system: str, sign: int
) -> None:
    given = [point if sign == 1 else lps(point) for point in (PC, IH, AC, (9.0, 9.0, 9.0))]
    rows = zip(given, ("pc", "midline", "1", "2"), ("", "", "AC", "genu, of CC"), strict=True)
    quoted = fcsv(*[(p, label, f'"{desc}"') for p, label, desc in rows], system=system)
    assert read_landmarks(write("a.fcsv", quoted)) == Landmarks(AC, PC, IH)


def test_the_published_landmarks_of_a_template_are_read(validation_data: Path) -> None:
    landmarks = read_landmarks(validation_data / "landmarks" / "tpl-MNI152NLin2009cAsym_afids.fcsv")
    np.testing.assert_allclose(landmarks.ac_mm, (-0.231, 2.933, -4.899), atol=1e-3)
    np.testing.assert_allclose(landmarks.pc_mm, (-0.241, -25.075, -2.169), atol=1e-3)
    assert landmarks.midline_mm is None


@pytest.mark.parametrize(("system", "carry"), [("LPS", lps), ("RAS", tuple)])
def test_points_of_slicers_newer_format_are_read(write: Callable[..., str], system: str, carry: Any) -> None:
    content = markups(("AC", carry(AC)), ("PC", carry(PC)), ("F-3", (1, 2, 3)), system=system, coordinateUnits="mm")
    content["markups"][0]["controlPoints"].append({"label": "AC", "positionStatus": "undefined"})
    assert read_landmarks(write("a.mrk.json", content)) == PLACED


@pytest.mark.parametrize(("units", "scale"), [("mm", 1), ("cm", 10), ("m", 1000)])
def test_landmarks_of_a_bids_coordsystem_come_with_their_units(
    write: Callable[..., str], units: str, scale: float
) -> None:
    points = {name: [x / scale for x in place] for name, place in (("AC", AC), ("PC", PC), ("IH", IH))}
    read = read_landmarks(write("sub-01_coordsystem.json", bids(points, units=units)))
    np.testing.assert_allclose((read.ac_mm, read.pc_mm, read.midline_mm), (AC, PC, IH), atol=1e-9)


def test_head_coils_in_a_system_of_their_own_do_not_matter(write: Callable[..., str]) -> None:
    coils = {"HeadCoilCoordinates": {"NAS": [1, 2, 3]}, "HeadCoilCoordinateSystem": "CTF"}
    assert read_landmarks(write("a.json", bids({"AC": AC, "PC": PC}) | coils)) == PLACED


def test_another_system_is_taken_if_it_is_described_as_the_scanners_ras(write: Callable[..., str]) -> None:
    points, key = {"AC": AC, "PC": PC}, "AnatomicalLandmarkCoordinateSystemDescription"
    said = {key: "RAS millimetres of the scanner, as in the header"}
    assert read_landmarks(write("a.json", bids(points, "Other", **said))) == PLACED
    refused("ScanRAS is needed", read_landmarks, write("a.json", bids(points, "Other", **{key: "LPS of the scanner"})))


def test_landmarks_beside_a_bids_image_are_in_its_voxels(write: Callable[..., str]) -> None:
    scanner_from_vox = np.array([[0, 0, 2.0, -90], [-1, 0, 0, 80], [0, 1.5, 0, -70], [0, 0, 0, 1]])
    vox = [transform_points(np.linalg.inv(scanner_from_vox), np.array(place)).tolist() for place in (AC, PC)]
    path = write("sub-01_T1w.json", {"AnatomicalLandmarkCoordinates": {"AC": vox[0], "PC": vox[1], "NAS": [1, 2, 3]}})
    read = read_landmarks(path, scanner_from_vox=scanner_from_vox)
    np.testing.assert_allclose((read.ac_mm, read.pc_mm), (AC, PC), atol=1e-9)
    refused("give scanner_from_vox", read_landmarks, path)


def test_a_file_on_an_object_store_is_read() -> None:
    with fsspec.open("memory://hand/a.fcsv", "wb") as file:
        file.write(fcsv((AC, "AC", ""), (PC, "PC", "")).encode("utf-8-sig"))
    assert read_landmarks("memory://hand/a.fcsv") == PLACED


GOOD = ((AC, "AC", ""), (PC, "PC", ""))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.fcsv", fcsv((AC, "AC", ""), (PC, "F-2", "")), "^PC are needed, the points there are AC, F-2; label"),
        ("a.fcsv", fcsv(), "AC and PC are needed, the points there are none"),
        ("a.fcsv", fcsv(*GOOD, (IH, "1", "ac")), r"AC was placed 2 times, at \(0.5, 4.0, -5.0\) and"),
        ("a.fcsv", fcsv(*GOOD, system="2"), "the coordinate system is '2'; one of RAS, LPS"),
        ("a.fcsv", "0,1,2,3,AC\n", "the coordinate system is None"),
        ("a.fcsv", "# CoordinateSystem = RAS\n0,1,2,3,AC\n", "'# columns' lacks x, y, z, label"),
        ("a.fcsv", fcsv(*GOOD).replace("-23.0", "back"), "PC is .*'back'.*; three numbers"),
        ("a.fcsv", fcsv((AC, "AC", ""), ((0, np.inf, 0), "PC", "")), "PC is at .*inf.*; three finite numbers"),
        ("a.fcsv", fcsv(*GOOD) + "7,1\n", "a point without a name is .*None"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[]", "no JSON object"),
        ("a.json", '{"AC": [1], "AC": [2]}', "one of AC is there more than once"),
        ("a.json", {"AC": AC, "PC": PC}, "AC and PC are needed, the points there are none"),
        ("a.json", bids({"AC": AC, "PC": PC, "ac": AC}), "AC was placed 2 times"),
        ("a.json", bids({"AC": AC, "PC": PC}, units="n/a"), "Units is 'n/a'; mm, cm or m is needed"),
        ("a.json", bids({"AC": AC, "PC": PC}, units=None), "Units is None"),
        ("a.json", bids({"AC": AC, "PC": PC}, "CTF"), "System is 'CTF'; ScanRAS is needed"),
        ("sub-01_T1w.json", bids({"AC": AC, "PC": PC}, None, "mm"), "System is None"),
        ("a.json", bids({"AC": AC[:2], "PC": PC}), "AC is .*three numbers"),
        ("a.mrk.json", markups(("AC", AC), ("PC", PC), system=None), "coordinate system is None"),
        ("a.mrk.json", markups(("AC", AC), ("PC", PC), coordinateUnits="cm"), "coordinateUnits is 'cm'"),
        ("a.mrk.json", {"markups": {"AC": AC}}, "markups is no list of objects"),
        ("a.mrk.json", {"markups": [{"coordinateSystem": "RAS", "controlPoints": 3}]}, "controlPoints is no list"),
        ("a.txt", "AC 1 2 3", "neither .fcsv nor .json"),
    ],
)
def test_files_that_leave_a_doubt_are_refused(write: Callable[..., str], name: str, content: Any, words: str) -> None:
    refused(words, read_landmarks, write(name, content), scanner_from_vox=np.eye(4))


def test_files_that_cannot_be_read_are_refused_with_their_name(tmp_path: Path) -> None:
    error = refused("no such file", read_landmarks, tmp_path / "none.fcsv")
    assert error.__notes__ == [f"It was read from {tmp_path / 'none.fcsv'}."]
    (tmp_path / "folder.json").mkdir()
    refused("a folder was given", read_landmarks, tmp_path / "folder.json")
    (tmp_path / "binary.fcsv").write_bytes(b"\xff\xfe\x00")
    refused("not text", read_landmarks, tmp_path / "binary.fcsv")


def test_points_are_three_numbers() -> None:
    assert hash(PLACED) == hash(Landmarks(AC, PC))
    with unchecked():
        assert Landmarks(np.array(AC), list(PC), np.array(IH)) == Landmarks(AC, PC, IH)
        refused("AC is .*three numbers", Landmarks, (1, 2), PC)
        refused("IH is 'top'", Landmarks, AC, PC, "top")


# Alignment


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_pose_is_that_of_the_points(seed: int, above: bool) -> None:
    turn = Rotation.from_rotvec(np.random.default_rng(seed).uniform(-0.5, 0.5, 3)).as_matrix()
    places = np.array([(0, 0, 0), (0, -26, 0), (0, -9, 40 if above else -40)]) + 3
    ac, pc, midline = (tuple((turn @ place).tolist()) for place in places)
    pose = align_to(cube(), Landmarks(ac, pc, midline), None)
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = turn.T, -3
    np.testing.assert_allclose(pose.acpc_from_scanner, expected, atol=1e-9)
    np.testing.assert_allclose(pose.ac_mm, ac)
    assert (pose.source, pose.flagged, pose.acpc_distance_mm) == ("landmarks", False, pytest.approx(26))
    assert rigid_error(pose.mni_from_scanner) < 1e-9


def test_without_a_midline_point_the_head_is_rolled_as_the_automatic_pose_says() -> None:
    automatic = found(right=(1.0, 0.0, -0.2))
    pose = align_to(cube(), Landmarks(AC, PC), automatic)
    np.testing.assert_allclose(pose.acpc_from_scanner, automatic.acpc_from_scanner, atol=1e-9)
    assert (pose.score, pose.source, pose.warnings) == (0.7, "landmarks", ())
    assert pose.mni_from_scanner is automatic.mni_from_scanner


def test_a_pose_that_differs_from_the_automatic_one_says_by_how_much() -> None:
    wrong = replace(found((0.5, 8.0, -2.0), (0.2, -23.0, -2.0)), flagged=True, warnings=("Odd.",))
    pose = align_to(cube(), PLACED, wrong)
    assert pose.warnings == ("Commissures were given by hand; automatic ones lie 5.0 mm (AC) and 1.0 mm (PC) away.",)
    assert not pose.flagged
    (warning,) = align_to(cube(), Landmarks(AC, PC, (9.0, -10.0, 50.0)), found()).warnings
    assert warning.startswith("The midline point given by hand rolls the head 9.")


@pytest.mark.parametrize(
    ("landmarks", "words"),
    [
        (Landmarks(AC, (0.2, -8.0, -3.0)), "12.2 mm apart; 15 to 40 mm"),
        (Landmarks(AC, (0.2, -43.0, -3.0)), "47.0 mm apart"),
        (Landmarks(PC, AC), "AC was given 27.0 mm behind PC; .* not swapped, .* RAS and not LPS"),
        (Landmarks((np.nan, 4.0, -5.0), PC), r"AC was given at \[nan, 4.0, -5.0\]"),
        (Landmarks(AC, (0.2, -np.inf, -3.0)), "PC was given at .*inf"),
        (
            Landmarks((0.5, 97.0, -5.0), (0.2, 70.0, -3.0)),
            r"voxel .* of a scan of \[96, 96, 96\]; it must lie in the scan",
        ),
        (Landmarks(AC, PC, (0.0, 0.0, 200.0)), "IH was given at"),
        (Landmarks(AC, PC, (0.0, 40.0, -6.0)), "the midline point .IH. lies .* mm from the line .* at least 15 mm"),
    ],
)
def test_landmarks_that_cannot_be_those_of_a_head_in_the_scan_are_refused(landmarks: Landmarks, words: str) -> None:
    refused(words, align_to, cube(), landmarks, found())


def test_a_head_that_was_not_found_is_aligned_by_hand_if_a_midline_point_tells_its_roll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_none(scan: Scan) -> Alignment:
        raise AlignmentError("no human head was found")

    monkeypatch.setattr(acpc, "align", find_none)
    refused(r"give a third point of the midsagittal plane \(IH\)", align, cube(), landmarks=PLACED)
    pose = align(cube(), landmarks=Landmarks(AC, PC, IH))
    assert (pose.source, pose.flagged, np.isnan(pose.score)) == ("landmarks", False, True)
    assert "no automatic alignment was found that could confirm them." in pose.warnings[0]
    assert "that of an average adult's is taken" in pose.warnings[0]


@pytest.fixture(scope="module")
def head() -> tuple[Scan, Truth]:
    return simulate_head(1, options=HeadOptions(spacing_mm=(2.0, 2.0)))


def test_a_head_is_aligned_by_the_commissures_that_were_placed_and_not_by_those_found(head: tuple[Scan, Truth]) -> None:
    scan, truth = head
    above = truth.ac_mm + np.array([0, 2.0, 0])
    placed = Landmarks(tuple(above.tolist()), tuple(truth.pc_mm.tolist()))
    pose, automatic = align(scan, landmarks=placed), align(scan)
    assert (automatic.source, pose.source) == ("automatic", "landmarks")
    np.testing.assert_allclose(pose.ac_mm, placed.ac_mm)
    np.testing.assert_allclose(transform_points(pose.acpc_from_scanner, np.array(placed.ac_mm)), 0, atol=1e-9)
    assert pose.acpc_from_scanner[0, :3] @ automatic.acpc_from_scanner[0, :3] > np.cos(np.radians(5))
    assert pose.score == automatic.score


# Pipeline and cohort


@pytest.fixture
def aligned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the landmarks that scans are aligned by; nothing goes on after that."""
    seen: list[Any] = []

    def stop(scan: Scan, *, landmarks: Landmarks | None = None) -> Alignment:
        seen.append(landmarks)
        raise AlignmentError("that is enough")

    monkeypatch.setattr(pipeline, "align", stop)
    monkeypatch.setattr(pipeline, "load_models", lambda models: (_Network(MAIN.name), _Network(HEAD_SIZE.name)))
    return seen


class _Network(NamedTuple):
    task: str
    name: str = "none"
    protocol: str = "none"
    volume_error: VolumeError = UNMEASURED

    def segment(self, scan: object, alignment: object) -> None:
        """Not called: alignment is where the scan stops."""

    def on(self, elsewhere: object) -> "_Network":
        return self


def test_a_scan_is_processed_with_landmarks_or_with_a_file_of_them(
    aligned: list[Any], head_file: Callable[..., Path], write: Callable[..., str]
) -> None:
    path = head_file()
    process_scan(path, landmarks=PLACED)
    process_scan(path, landmarks=write("a.fcsv", fcsv(*GOOD)))
    voxels = {"AnatomicalLandmarkCoordinates": {"AC": [23.5, 24.5, 23.5], "PC": [23.5, 17.5, 23.5]}}
    process_scan(path, landmarks=write("sub-01_T1w.json", voxels))
    process_scan(path)
    assert aligned == [PLACED, PLACED, Landmarks((0, 4, 0), (0, -24, 0)), None]


def test_a_bad_file_of_landmarks_is_a_failed_row_that_names_it(
    aligned: list[Any], head_file: Callable[..., Path], write: Callable[..., str]
) -> None:
    file = write("a.fcsv", fcsv(GOOD[0]))
    row = process_scan(head_file(), landmarks=file)
    assert (row.status, row.stage, row.error) == ("failed", "align", "LandmarkError")
    assert row.reason.startswith("PC are needed")
    assert row.reason.endswith(f"It was read from {file}.")
    assert process_scan(head_file(), landmarks="nowhere.fcsv").stage == "align"
    assert aligned == []


COLUMNS = [f"{point}_{axis}_mm" for point in ("ac", "pc", "ih") for axis in "xyz"]


def same(names: list[str], *values: Any) -> dict[str, list[Any]]:
    return {name: list(values) for name in names}


def table_of(paths: list[str], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"path": paths} | columns)


@pytest.fixture
def paths(head_file: Callable[..., Path]) -> list[str]:
    return [str(head_file(f"sub-0{n}_T1w.nii.gz", seed=n)) for n in (1, 2, 3)]


def test_a_table_says_the_landmarks_of_each_scan(paths: list[str], tmp_path: Path) -> None:
    rows = [(*AC, *PC, *IH), (*AC, *PC[:2], -4.0, *[np.nan] * 3), [np.nan] * 9]
    numbers = pd.DataFrame(rows, columns=COLUMNS)
    entries = list(Cohort.from_table(pd.concat([table_of(paths), numbers], axis=1)).entries())
    placed = [entry.landmarks for entry in entries]
    assert placed == [Landmarks(AC, PC, IH), Landmarks(AC, (*PC[:2], -4.0)), None]
    table_of(paths, landmarks=["hand/a.fcsv", "", None]).to_csv(tmp_path / "scans.csv", index=False)
    files = [entry.landmarks for entry in Cohort.from_table(tmp_path / "scans.csv").entries()]
    assert files == [str(tmp_path / "hand/a.fcsv"), None, None]
    assert [entry.landmarks for entry in Cohort.from_files(paths).entries()] == [None] * 3


def test_a_point_that_is_not_whole_is_left_to_the_alignment_to_refuse(paths: list[str]) -> None:
    rows = [(AC[0], np.nan, AC[2], *PC), (*AC, *[np.nan] * 3), [np.nan] * 6]
    cohort = Cohort.from_table(pd.concat([table_of(paths), pd.DataFrame(rows, columns=COLUMNS[:6])], axis=1))
    placed = [entry.landmarks for entry in cohort.entries()]
    assert [landmarks is None for landmarks in placed] == [False, False, True]
    for landmarks, name in zip(placed[:2], ("AC", "PC"), strict=True):
        assert isinstance(landmarks, Landmarks)
        refused(f"{name} was given at", align_to, cube(), landmarks, found())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"ac_x_mm": [1.0] * 3}, "ac_y_mm, ac_z_mm, pc_x_mm, pc_y_mm, pc_z_mm must be there too"),
        (same([*COLUMNS[:6], "ih_x_mm"], 1.0, 2.0, 3.0), "ih_y_mm, ih_z_mm must be there too"),
        (same(COLUMNS[:6], "1", "2", "three"), "column 'ac_x_mm': not every value is a number"),
        ({"AC_x_mm": [1.0] * 3}, "column 'AC_x_mm': it is read as 'ac_x_mm' only"),
        (same(COLUMNS[:6], 1.0, 2.0, 3.0) | {"landmarks": ["a", "", ""]}, "sub-01: landmarks as a file and"),
        ({"landmarks": ["a.fcsv", "b.fcsv", "a.fcsv"]}, "scans sub-01, sub-03: they have the same landmarks"),
        (same(COLUMNS[:6], 1.0, 1.0, 3.0), "scans sub-01, sub-02: they have the same landmarks"),
    ],
)
def test_columns_of_landmarks_that_mislead_are_refused(paths: list[str], columns: dict[str, Any], words: str) -> None:
    with pytest.raises(CohortError, match=words):
        Cohort.from_table(table_of(paths, **columns))


def test_landmarks_of_sessions_are_read_from_a_bids_folder(
    write: Callable[..., str], head_file: Callable[..., Path], tmp_path: Path
) -> None:
    for session in ("a", "b"):
        head_file(f"sub-01_ses-{session}_T1w.nii.gz", folder=tmp_path / f"sub-01/ses-{session}/anat")
    write("participants.tsv", "participant_id\tlandmarks\nsub-01\thand/a.fcsv\n")
    with pytest.raises(CohortError, match=r"sessions\.tsv"):
        Cohort.from_bids(tmp_path)
    write("sub-01/sub-01_sessions.tsv", "session_id\tlandmarks\nses-a\thand/a.fcsv\nses-b\thand/b.fcsv\n")
    placed = [entry.landmarks for entry in Cohort.from_bids(tmp_path).entries()]
    assert placed == [str(tmp_path / f"hand/{session}.fcsv") for session in ("a", "b")]


def stand_in(path: str, *, scan: str, out: str, store: str, models: object, stamp: str, landmarks: Any = None) -> Row:
    """A stand-in for the pipeline that says what it was given."""
    return Row(scan, "done", alignment_source="landmarks" if landmarks else "automatic", warnings=repr(landmarks))


@pytest.fixture
def client() -> Iterator[Client]:
    with local_client(1, processes=False) as client:
        yield client


def test_a_cohort_is_processed_with_its_landmarks_and_again_where_they_change(
    client: Client, paths: list[str], tmp_path: Path, write: Callable[..., str]
) -> None:
    file = write("a.fcsv", fcsv(*GOOD))

    def run(*given: str | None) -> list[float]:
        cohort = Cohort.from_table(table_of(paths, landmarks=list(given)))
        results = _process(cohort, str(tmp_path / "out"), client, method=stand_in, load=None, progress=False)
        expected = ["landmarks" if one else "automatic" for one in given]
        assert results["alignment_source"].to_numpy().tolist() == expected
        parts = sorted((tmp_path / "out" / "journal").glob("*.parquet"))
        return [len(pd.read_parquet(part)) for part in parts]

    assert run(file, None, None) == [3]
    assert run(file, None, None) == [3]
    write("a.fcsv", fcsv(*GOOD) + "\n")
    assert run(file, None, None) == [3, 1]
    assert run(None, None, None) == [3, 1, 1]
