"""Changes of a scan do what they say, before they judge anybody; and rows of them are judged by what is expected."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import hypodask
from benchmarks.validation import invariance, invariance_outcome
from benchmarks.validation.invariance_changes import CHANGES, SIZES, UNCHANGED, Change, Subject
from benchmarks.validation.invariance_outcome import DONE, FLAGGED, REFUSED, Outcome, compared, new_sentences
from hypodask import Scan, errors
from hypodask.core.grid import box_grid, transform_points

ROOT = Path(__file__).resolve().parents[2]

OF_INTENSITIES = {"offset", "z-scored", "centred", "gamma", "noise", "coil", "shaded", "stripped", "stripped-3mm"}

GRID = box_grid((60, 72, 64), (2.5, 2.5, 3.0), (4.0, -7.0, 11.0))


def ball(*, scale: float = 1.0) -> Subject:
    """A ball with a bright spot on its right, in air of intensity 10; its ICV mask is the inner half."""
    points = transform_points(GRID.space_from_vox, np.moveaxis(np.indices(GRID.shape), 0, -1)) - GRID.centre_mm
    radius = np.linalg.norm(points, axis=-1)
    spot = np.linalg.norm(points - (30, 10, 20), axis=-1)
    image = 10 + 90 / (1 + np.exp((radius - 60) / 2)) + 40 * np.exp(-((spot / 15) ** 2))
    stored = np.asfortranarray(np.rint(scale * image).astype(np.int16))
    return Subject(Scan(stored, GRID.moved(np.eye(4), "scanner")), radius < 45)


def intensities_where_they_went(change: Change, subject: Subject, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Intensities of the unchanged scan at random places, and of the changed one where these places must be now."""
    random = np.random.default_rng(0)
    grid = subject.scan.grid
    vox = random.uniform(10, np.array(grid.shape) - 11, (500, 3))
    moved = np.eye(4) if change.move is None else change.move(grid)
    there = transform_points(np.linalg.inv(scan.grid.space_from_vox) @ moved @ grid.space_from_vox, vox)
    before, after = (
        ndimage.map_coordinates(data, at.T, order=1) for data, at in ((subject.data, vox), (scan.data, there))
    )
    return before, after


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_anatomy_lies_where_the_table_says_after_each_change(change):
    subject = ball()
    scan = change.apply(subject)
    before, after = intensities_where_they_went(change, subject, scan)
    if change.group == "resampled":
        assert np.corrcoef(before, after)[0, 1] > 0.98
    elif change.group in OF_INTENSITIES:
        np.testing.assert_array_equal(scan.grid.space_from_vox, subject.scan.grid.space_from_vox)
    else:
        # In 8 bits the brightest voxels are cut.
        np.testing.assert_allclose(after, np.minimum(before, scan.data.max()), atol=0.6)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_leaves_the_scan_that_it_is_given_alone(change):
    subject = ball()
    stored, affine = subject.scan.stored.copy(), subject.scan.grid.space_from_vox.copy()
    scan = change.apply(subject)
    np.testing.assert_array_equal(subject.scan.stored, stored)
    np.testing.assert_array_equal(subject.scan.grid.space_from_vox, affine)
    assert scan.stored.flags.f_contiguous
    assert scan.stored.shape == scan.grid.shape


def test_sizes_scale_the_volume_of_the_field_of_view():
    subject = ball()
    for factor in set(SIZES) - {1.0}:
        change = CHANGES[f"size-{factor:.2f}"]
        larger = change.apply(subject).grid.voxel_volume_mm3 / subject.scan.grid.voxel_volume_mm3
        assert larger == pytest.approx(change.volume_factor) == pytest.approx(factor**3)


def test_a_mirrored_scan_has_its_right_on_the_left():
    subject = ball()
    scan = CHANGES["mirrored"].apply(subject)
    assert np.linalg.det(CHANGES["mirrored"].move(subject.scan.grid)[:3, :3]) == pytest.approx(-1)
    halves = np.array_split(subject.data, 2)
    flipped = np.array_split(scan.data, 2)
    assert halves[1].mean() > halves[0].mean()
    assert flipped[0].mean() == pytest.approx(halves[1].mean())


def test_orders_of_axes_have_both_handednesses():
    grids = [change.apply(ball()).grid for change in CHANGES.values() if change.group == "axes"]
    assert {np.sign(np.linalg.det(grid.space_from_vox[:3, :3])) for grid in grids} == {-1.0, 1.0}


def test_a_surface_coil_makes_the_surface_four_times_as_bright_as_the_centre():
    subject = ball()
    field = CHANGES["coil-4"].apply(subject).data / subject.data
    centre = tuple(np.array(GRID.shape) // 2)
    assert field[centre] == pytest.approx(1, abs=0.2)
    assert np.percentile(field[subject.foreground], 99) == pytest.approx(4, rel=0.1)
    assert np.abs(np.diff(np.log(field), axis=0)).max() < 0.2


def test_offsets_are_shares_of_the_foreground_and_clip_nothing():
    subject = ball()
    less = CHANGES["offset-0.50"].apply(subject).data
    np.testing.assert_allclose(subject.data - less, 0.5 * subject.data[subject.foreground].mean(), rtol=1e-5)
    assert less.min() < 0


def test_a_margin_of_3_mm_keeps_more_of_the_head_than_none():
    tight, wide = (CHANGES[name].apply(ball()).data > 0 for name in ("stripped", "stripped-3mm"))
    assert (tight == ball().icv).all()
    assert (wide >= tight).all()
    radii = [(3 / (4 * np.pi) * mask.sum() * GRID.voxel_volume_mm3) ** (1 / 3) for mask in (tight, wide)]
    assert radii[1] - radii[0] == pytest.approx(3, abs=1.3)


BEFORE = Outcome(
    DONE,
    volume_mm3={"hypothalamus": 900.0, "hypothalamus_left": 440.0, "hypothalamus_right": 460.0, "icv": 1.5e6},
    ac_mm=(1.0, 2.0, 3.0),
    pc_mm=(1.0, -24.0, 3.0),
    quality=0.9,
    warnings=("The correlation is 0.55.",),
)


def judged(name: str, after: Outcome, before: Outcome = BEFORE) -> str:
    return str(compared(CHANGES[name], GRID, before, after)["held"])


def scaled(factor: float, **icv: float) -> Outcome:
    volumes = {name: factor * volume for name, volume in BEFORE.volume_mm3.items()}
    return replace(BEFORE, volume_mm3=volumes | icv)


def test_the_same_result_holds_and_another_volume_does_not():
    assert judged("padded-1", BEFORE) == "yes"
    assert judged("padded-1", scaled(1.0009)) == "yes"
    assert judged("padded-1", scaled(1.002)) == "hypothalamus, icv"
    assert judged("gamma-1.3", scaled(1.0, icv=1.52e6)) == "icv"


def test_a_refusal_holds_only_where_the_table_allows_it():
    assert judged("offset+0.50", Outcome(REFUSED, "no human head")) == "yes"
    assert judged("coil-4", Outcome(REFUSED, "no human head")) == REFUSED


def test_a_new_flag_does_not_hold_and_an_old_one_does():
    flagged = replace(BEFORE, status=FLAGGED)
    assert judged("padded-1", flagged) == FLAGGED
    assert judged("padded-1", flagged, flagged) == "yes"


def test_nothing_is_judged_against_a_scan_that_was_refused_unchanged():
    assert judged("padded-1", BEFORE, Outcome(REFUSED)) == ""


def test_a_pose_is_compared_where_the_head_was_moved_to():
    change = CHANGES["pose-nod"]
    ac, pc = (transform_points(change.move(GRID), point) for point in (BEFORE.ac_mm, BEFORE.pc_mm))
    assert judged("pose-nod", replace(BEFORE, ac_mm=ac, pc_mm=pc)) == "yes"
    row = compared(change, GRID, BEFORE, replace(BEFORE, ac_mm=ac + np.array([0, 0, 0.5]), pc_mm=pc))
    assert row["ac_mm"] == pytest.approx(0.5, abs=1e-4)
    assert row["held"] == "pose"


def test_volumes_of_a_larger_head_must_follow_its_cube():
    ac, pc = (transform_points(CHANGES["size-1.12"].move(GRID), point) for point in (BEFORE.ac_mm, BEFORE.pc_mm))
    for exponent, expected in ((1.0, "yes"), (1.015, "yes"), (1.03, "hypothalamus, icv"), (0.5, "hypothalamus, icv")):
        larger = scaled(1.12 ** (3 * exponent))
        assert judged("size-1.12", replace(larger, ac_mm=ac, pc_mm=pc)) == expected


def test_sides_of_a_mirrored_scan_must_have_exchanged_their_volumes():
    ac, pc = (transform_points(CHANGES["mirrored"].move(GRID), point) for point in (BEFORE.ac_mm, BEFORE.pc_mm))
    same = replace(BEFORE, ac_mm=ac, pc_mm=pc)
    exchanged = {"hypothalamus_left": 460.0, "hypothalamus_right": 440.0}
    assert judged("mirrored", replace(same, volume_mm3={**BEFORE.volume_mm3, **exchanged})) == "yes"
    assert judged("mirrored", same) == "sides"


def test_a_missing_icv_of_a_stripped_scan_holds_only_with_a_new_warning():
    silent = scaled(1.0, icv=float("nan"))
    assert judged("stripped", silent) == "icv"
    assert judged("stripped", replace(silent, warnings=("The skull has been stripped: no ICV.",))) == "yes"


def test_a_warning_with_other_numbers_is_not_new():
    assert new_sentences(BEFORE.warnings, ("The correlation is 0.49.", "It is dark.")) == ["It is dark."]


def row_of(scan: str, name: str, after: Outcome) -> dict[str, object]:
    return {"folder": "scans", "scan": scan, "change": name, **compared(CHANGES[name], GRID, BEFORE, after)}


def test_the_exponent_of_a_volume_is_found_from_five_sizes(tmp_path):
    rows = [row_of("a.nii", UNCHANGED, BEFORE)]
    for name in ("size-0.88", "size-0.94", "size-1.06", "size-1.12"):
        grown = {key: v * CHANGES[name].volume_factor ** 1.1 for key, v in BEFORE.volume_mm3.items()}
        grown["icv"] = BEFORE.volume_mm3["icv"] * CHANGES[name].volume_factor
        rows.append(row_of("a.nii", name, replace(BEFORE, volume_mm3=grown)))
    table = tmp_path / "invariance.tsv"
    invariance.append(table, rows[:3])
    invariance.append(table, rows[3:])
    (line,) = invariance.exponents(invariance.read_rows(table)).to_dict("records")
    assert (line["scan"], line["sizes"]) == ("a.nii", 5)
    assert line["hypothalamus"] == pytest.approx(1.1, abs=1e-4)
    assert line["icv"] == pytest.approx(1.0, abs=1e-4)


def test_the_table_counts_what_became_of_each_scan(tmp_path):
    table = tmp_path / "invariance.tsv"
    afters = {"a": BEFORE, "b": scaled(1.01), "c": Outcome(REFUSED, "no\thead\n"), "d": replace(BEFORE, status=FLAGGED)}
    invariance.append(table, [row_of(scan, "padded-1", after) for scan, after in afters.items()])
    (line,) = invariance.by_change(invariance.read_rows(table)).to_dict("records")
    assert [line[name] for name in ("n", DONE, FLAGGED, REFUSED, "held", "of")] == [4, 2, 1, 1, 1, 4]
    assert line["hypothalamus_percent_largest"] == pytest.approx(1.0)
    figures = invariance.figures_of(invariance.read_rows(table))
    assert (figures["padded_held"], figures["padded_of"]) == (1, 4)
    assert pd.Series(figures).notna().all()


def test_the_program_records_each_figure_of_the_pages_table(tmp_path):
    table = tmp_path / "invariance.tsv"
    invariance.append(table, [row_of("a", name, BEFORE) for name in CHANGES])
    figures = invariance.figures_of(invariance.read_rows(table))
    template = (ROOT / "docs" / "tables" / "invariance.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\{invariance\.(\w+)", template))
    assert len(shown) > 50
    assert shown <= figures.keys()
    assert {change.group.replace("-", "_") for change in CHANGES.values()} - {UNCHANGED} <= {
        name.removesuffix("_held") for name in shown
    }


def test_rows_are_judged_again_when_the_table_is_made(tmp_path):
    table = tmp_path / "invariance.tsv"
    invariance.append(table, [row_of("a", "padded-1", scaled(1.01)) | {"held": "yes"}, row_of("a", UNCHANGED, BEFORE)])
    rows = invariance.judged(invariance.read_rows(table))
    assert rows["held"].tolist() == ["hypothalamus, icv", ""]


def test_a_second_call_does_only_what_is_missing(tmp_path):
    paths = [tmp_path / "scans" / name for name in ("a.nii", "b.nii")]
    table = tmp_path / "invariance.tsv"
    names = [UNCHANGED, "padded-1"]
    first = invariance.tasks_left(paths, names, table, alignment_only=False)
    assert [task.changes for task in first] == [tuple(names)] * 2
    done = [row_of("a.nii", UNCHANGED, BEFORE), *(row_of("b.nii", name, BEFORE) for name in names)]
    invariance.append(table, done)
    (task,) = invariance.tasks_left(paths, names, table, alignment_only=False)
    assert (task.path, task.changes) == (str(paths[0]), ("padded-1",))


def test_each_change_of_a_scan_gets_a_row(head_file, monkeypatch):
    path = head_file()
    monkeypatch.setattr(invariance_outcome, "_networks", tuple)
    monkeypatch.setattr(invariance_outcome, "outcome_of", lambda scan, networks: BEFORE)
    task = invariance_outcome.Task(str(path), "scans", (UNCHANGED, "padded-1", "stripped"))
    rows = list(invariance_outcome.rows_of(task))
    assert [(row["change"], row["status"], row["held"]) for row in rows] == [
        (UNCHANGED, DONE, ""),
        ("padded-1", DONE, "yes"),
        ("stripped", "skipped", ""),
    ]


def test_a_file_that_cannot_be_read_is_a_refused_row(tmp_path):
    task = invariance_outcome.Task(str(tmp_path / "absent.nii.gz"), "scans", (UNCHANGED, "padded-1"), True)
    (row,) = invariance_outcome.rows_of(task)
    assert (row["status"], row["held"]) == (REFUSED, "")


def test_a_scan_that_is_refused_says_why_and_one_that_crashes_too(monkeypatch):
    for error, status in ((errors.AlignmentError("no head"), REFUSED), (ZeroDivisionError("division"), "crashed")):

        def fail(scan, error=error):
            raise error

        monkeypatch.setattr(hypodask, "align", fail)
        outcome = invariance_outcome.outcome_of(ball().scan, None)
        assert (outcome.status, outcome.reason) == (status, f"{type(error).__name__}: {error}")


def test_changes_are_chosen_by_name_or_by_group():
    assert invariance.chosen(["padded", "coil-4"], alignment_only=False) == [
        UNCHANGED,
        *(f"padded-{n}" for n in (1, 2, 3, 20)),
        "coil-4",
    ]
    assert len(invariance.chosen(["size"], alignment_only=True)) == len(SIZES)
    assert set(invariance.chosen([], alignment_only=False)) == set(CHANGES)
    with pytest.raises(SystemExit, match="no change or group sizes"):
        invariance.chosen(["sizes"], alignment_only=False)
