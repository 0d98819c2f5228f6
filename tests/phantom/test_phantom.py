"""Simulated heads hold what their truth says, and a simulated study is a BIDS folder with the effect in it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from geometry import rigid_error

from hypodask.core.errors import CohortError, ModelError
from hypodask.core.grid import Grid, transform_points
from hypodask.phantom import HeadOptions, Truth, hypothalamus, simulate_cohort, simulate_head, template_hypothalamus
from hypodask.phantom.anatomy import _N_CODES, Contrast, head_codes
from hypodask.phantom.cohort import _SCALE_SD, _environment_of_many, draw_people, group_sizes
from hypodask.phantom.fields import Lattice, sample
from hypodask.phantom.hypothalamus import ATROPHY_BOX, SCALE_LIMITS, atrophy_field
from hypodask.phantom.imaging import _model_indices, _voxel_places, field_of_view
from hypodask.phantom.intracranial import BOX, COARSE_BOX, ellipsoid_distance, icv_distance, template_brain
from hypodask.phantom.truth import _SIDES, _template_posterior, template_icv_mm3
from hypodask.scan import Scan, read_scan
from hypodask.scan.template import MNI152
from hypodask.study.cohort import Cohort

COARSE = HeadOptions(spacing_mm=(4.0, 4.0))


@pytest.fixture(scope="session", autouse=True)
def hypothalamus_of_the_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the shipped one is not there, two ellipsoids about its size and place."""
    if hypothalamus._HYPOTHALAMUS_FILE.exists():
        yield
        return
    lattice = Lattice((-20.0, -28.0, -30.0), 1.0, (41, 45, 41))
    distances = [ellipsoid_distance(lattice, (x, -5.0, -11.5), (3.0, 8.0, 5.0)) for x in (-4.6, 4.6)]
    mni_from_vox = np.eye(4)
    mni_from_vox[:3, 3] = lattice.low_mm
    path = tmp_path_factory.mktemp("weights") / "hypothalamus.npz"
    np.savez(path, posteriors=np.clip(0.5 - np.array(distances), 0, 1).astype(np.float16), mni_from_vox=mni_from_vox)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hypothalamus, "_HYPOTHALAMUS_FILE", path)
        yield


@pytest.fixture(scope="module")
def head() -> tuple[Scan, Truth]:
    return simulate_head(3, options=replace(COARSE, hypothalamus_scale=0.85))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_cohort(tmp_path_factory.mktemp("study") / "bids", 6, seed=5, options=COARSE)


def pushed_volume_mm3(truth: Truth, structure: str, lattice: Lattice) -> float:
    """Volume by another way than the phantom's own: the Jacobian of template -> scanner, summed over the template."""
    places = lattice.points_mm()
    scanner = truth.head.to_scanner(places)
    jacobian = np.stack([np.stack(np.gradient(axis, lattice.step_mm)) for axis in scanner])
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    return float((_template_posterior(structure, places) * determinant).sum() * lattice.step_mm**3)


def test_a_seed_always_gives_the_same_head(head: tuple[Scan, Truth]) -> None:
    scan, truth = simulate_head(3, options=replace(COARSE, hypothalamus_scale=0.85))
    assert np.array_equal(scan.stored, head[0].stored)
    assert truth.volume_mm3 == head[1].volume_mm3
    assert np.array_equal(scan.grid.space_from_vox, head[0].grid.space_from_vox)


def test_another_seed_gives_another_head(head: tuple[Scan, Truth]) -> None:
    _, truth = simulate_head(4, options=COARSE)
    assert truth.volume_mm3["icv"] != head[1].volume_mm3["icv"]
    assert np.linalg.norm(truth.ac_mm - head[1].ac_mm) > 1


@pytest.mark.parametrize("side", _SIDES)
def test_volume_of_a_side_agrees_with_the_jacobian(head: tuple[Scan, Truth], side: str) -> None:
    places = template_hypothalamus().lattice.points_mm()[:, template_hypothalamus().posteriors.max(axis=0) > 0]
    low, high = places.min(axis=1) - 1.5, places.max(axis=1) + 1.5
    # Finer than the posteriors' own 0.5 mm: at 0.75 mm the sum over its sharp edges is itself off by 0.5 %.
    i, j, k = np.ceil((high - low) / 0.3).astype(int).tolist()
    x, y, z = low.tolist()
    pushed = pushed_volume_mm3(head[1], side, Lattice((x, y, z), 0.3, (i, j, k)))
    assert head[1].volume_mm3[side] == pytest.approx(pushed, rel=3e-3)


def test_intracranial_volume_agrees_with_the_jacobian(head: tuple[Scan, Truth]) -> None:
    pushed = pushed_volume_mm3(head[1], "icv", Lattice(BOX.low_mm, 5.0, (41, 53, 53)))
    assert head[1].volume_mm3["icv"] == pytest.approx(pushed, rel=3e-3)


def test_volume_agrees_with_a_count_on_a_fine_grid(head: tuple[Scan, Truth]) -> None:
    _, truth = head
    grid = Grid((100, 100, 100), np.diag([0.4, 0.4, 0.4, 1]) + _shift(-20, -26, -30), "acpc")
    counted = truth.posterior("hypothalamus", grid).sum(dtype=np.float64) * grid.voxel_volume_mm3
    assert truth.volume_mm3["hypothalamus"] == pytest.approx(counted, rel=2e-3)


def _shift(x: float, y: float, z: float) -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[:3, 3] = x, y, z
    return matrix


def test_sides_add_up_to_the_whole(head: tuple[Scan, Truth]) -> None:
    volume = head[1].volume_mm3
    assert volume["hypothalamus"] == pytest.approx(volume["hypothalamus_left"] + volume["hypothalamus_right"])


def test_commissures_map_back_onto_the_template(head: tuple[Scan, Truth]) -> None:
    _, truth = head
    mapped = truth.head.to_template(np.stack([truth.ac_mm, truth.pc_mm], axis=1))
    assert np.abs(mapped.T - MNI152.commissures_mm).max() < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_the_map_to_the_template_can_be_inverted_anywhere_in_the_head(seed: int) -> None:
    _, truth = simulate_head(seed, options=replace(COARSE, hypothalamus_scale=SCALE_LIMITS[seed % 2]))
    places = np.random.default_rng(seed).uniform(-70, 70, (3, 500))
    assert np.abs(truth.head.to_template(truth.head.to_scanner(places)) - places).max() < 0.01


def test_the_frame_is_rigid_and_puts_the_commissures_in_place(head: tuple[Scan, Truth]) -> None:
    _, truth = head
    ac, pc = transform_points(truth.acpc_from_scanner, np.stack([truth.ac_mm, truth.pc_mm]))
    assert rigid_error(truth.acpc_from_scanner) < 1e-9
    assert np.linalg.det(truth.acpc_from_scanner) > 0
    assert np.abs(ac).max() < 1e-6
    assert np.abs(pc[[0, 2]]).max() < 1e-6
    assert pc[1] < 0


def test_the_midsagittal_plane_divides_the_brain(head: tuple[Scan, Truth]) -> None:
    _, truth = head
    midline = np.array([[0.0, 50, 20], [0, -60, 40], [0, -20, 65], [0, -45, -50]]).T
    x = transform_points(truth.acpc_from_scanner, truth.head.to_scanner(midline).T)[:, 0]
    right = transform_points(truth.acpc_from_scanner, truth.head.to_scanner(np.array([40.0, 0, 0])))
    assert np.abs(x).max() < 5
    assert right[0] > 20


def test_heads_are_as_large_and_as_varied_as_adults() -> None:
    truths = [simulate_head(seed, options=replace(COARSE, spacing_mm=(8.0, 8.0)))[1] for seed in range(20, 28)]
    icv = np.array([truth.volume_mm3["icv"] for truth in truths])
    distance = np.array([np.linalg.norm(truth.ac_mm - truth.pc_mm) for truth in truths])
    assert 1.1e6 < icv.min() < icv.max() < 1.9e6
    assert 1.4e6 < icv.mean() < 1.6e6
    assert 22 < distance.min() < distance.max() < 31


@pytest.mark.parametrize("scale", [0.7, 0.9, 1.1])
def test_imposed_atrophy_is_in_the_truth_and_nowhere_else(scale: float) -> None:
    _, plain = simulate_head(7, options=COARSE)
    _, changed = simulate_head(7, options=replace(COARSE, hypothalamus_scale=scale))
    ratio = {name: changed.volume_mm3[name] / plain.volume_mm3[name] for name in plain.volume_mm3}
    assert ratio["hypothalamus"] == pytest.approx(scale, abs=0.005)
    assert ratio["hypothalamus_left"] == pytest.approx(ratio["hypothalamus_right"], abs=0.02)
    assert ratio["icv"] == pytest.approx(1, abs=1e-4)
    assert np.linalg.norm(changed.ac_mm - plain.ac_mm) < 0.5
    assert np.linalg.norm(changed.pc_mm - plain.pc_mm) < 0.5


def test_csf_takes_the_place_of_lost_tissue() -> None:
    options = replace(COARSE, noise=0.0, any_axes=False)
    plain, truth = simulate_head(8, options=options)
    shrunken, _ = simulate_head(8, options=replace(options, hypothalamus_scale=0.7))
    i, j, k = np.rint(transform_points(np.linalg.inv(plain.grid.space_from_vox), truth.ac_mm)).astype(int)
    around = (slice(i - 3, i + 4), slice(j - 5, j + 2), slice(k - 5, k + 2))
    assert shrunken.data[around].mean() < plain.data[around].mean()
    far = np.ones(plain.stored.shape, dtype=bool)
    far[i - 9 : i + 10, j - 12 : j + 9, k - 12 : k + 9] = False
    assert np.array_equal(plain.stored[far], shrunken.stored[far])


@pytest.mark.parametrize("scale", SCALE_LIMITS)
def test_the_local_warp_does_not_fold(scale: float) -> None:
    displacement = atrophy_field().amount_for(scale) * atrophy_field()(ATROPHY_BOX.points_mm())
    jacobian = np.eye(3) + np.moveaxis([np.stack(np.gradient(axis)) for axis in displacement], (0, 1), (-2, -1))
    assert np.linalg.det(jacobian).min() > 0.2


@pytest.mark.parametrize("seed", range(5))
def test_axes_of_the_array_do_not_move_the_head(seed: int) -> None:
    """The image sampled through its own affine shows the template's brain where the truth says."""
    scan, truth = simulate_head(seed, options=COARSE)
    places = np.random.default_rng(seed).uniform(-60, 60, (3, 4000))
    places = places[:, _template_posterior("icv", places) > 0]
    vox = transform_points(np.linalg.inv(scan.grid.space_from_vox), truth.head.to_scanner(places).T).T
    seen, expected = sample(scan.data, vox), sample(template_brain(), BOX.indices(places))
    assert np.corrcoef(seen, expected)[0, 1] > 0.75


def test_all_axis_orders_and_both_hands_occur() -> None:
    affines = [
        simulate_head(s, options=replace(COARSE, spacing_mm=(8.0, 8.0)))[0].grid.space_from_vox for s in range(8)
    ]
    assert len({nib.aff2axcodes(affine) for affine in affines}) > 4
    assert {np.sign(np.linalg.det(affine[:3, :3])) for affine in affines} == {-1, 1}


def test_deformation_between_nodes_is_right_to_a_twentieth_of_a_millimetre() -> None:
    _, truth = simulate_head(11, options=replace(COARSE, hypothalamus_scale=0.8))
    grid = field_of_view(truth.head, (1.1, 1.0, 0.9), neck=True)
    indices = _model_indices(truth.head, grid)[:, ::7, ::7, ::7]
    every = slice(None, None, 7)
    exact = BOX.indices(truth.head.to_template(_voxel_places(grid, (every, every, every))))
    assert np.abs(indices - exact).max() * BOX.step_mm < 0.05


def test_the_icv_is_whole_in_the_field_of_view(head: tuple[Scan, Truth]) -> None:
    scan, truth = head
    inside = truth.posterior("icv", scan.grid)
    assert inside.sum() * scan.grid.voxel_volume_mm3 == pytest.approx(truth.volume_mm3["icv"], rel=0.01)
    assert max(np.take(inside, end, axis).max() for axis in range(3) for end in (0, -1)) == 0


def test_a_field_without_neck_ends_under_the_icv() -> None:
    options = replace(COARSE, any_axes=False)
    with_neck, _ = simulate_head(2, options=options)
    without, _ = simulate_head(2, options=replace(options, neck=False))
    shorter = with_neck.grid.extent_mm[2] - without.grid.extent_mm[2]
    assert shorter == pytest.approx(42, abs=4)


def test_truth_refuses_what_it_does_not_know(head: tuple[Scan, Truth]) -> None:
    _, truth = head
    with pytest.raises(ValueError, match=r"'amygdala' .* the phantom knows"):
        truth.posterior("amygdala", head[0].grid)
    with pytest.raises(ValueError, match="'mni' space"):
        truth.posterior("icv", Grid((2, 2, 2), np.eye(4), "mni"))


@pytest.mark.parametrize("wrong", [{"spacing_mm": (0.0, 1.0)}, {"spacing_mm": (2.0, 1.0)}, {"hypothalamus_scale": 3.0}])
def test_options_outside_the_phantoms_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HeadOptions(**wrong)  # type: ignore[arg-type]


def test_brain_is_inside_the_icv_and_skull_and_scalp_are_around_it() -> None:
    x, y, z = (round(place - low) for place, low in zip((0, 0, 0), BOX.low_mm, strict=True))
    column = Contrast().brightness()[head_codes()][x + 50, y, z:]
    top = int(np.flatnonzero(template_brain()[x + 50, y, z:])[-1])
    outside = column[top + 1 :]
    darkest, brightest = int(outside[:12].argmin()), int(outside.argmax())
    assert outside[darkest] < 0.1
    assert outside[brightest] > 1
    assert brightest > darkest
    assert outside[-1] == 0


def test_every_code_of_the_head_has_a_brightness() -> None:
    assert len(Contrast().brightness()) == _N_CODES
    assert head_codes().max() < _N_CODES


def test_the_templates_icv_holds_its_brain_and_little_else() -> None:
    brain_above = template_brain()[::2, ::2, ::2] * (COARSE_BOX.axes_mm()[2] > -60)
    assert np.mean(icv_distance()[brain_above > 0] < 0) > 0.999
    assert 1.05 < template_icv_mm3() / (template_brain() > 0).sum() < 1.1


def test_a_missing_hypothalamus_is_a_model_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hypothalamus, "_HYPOTHALAMUS_FILE", tmp_path / "absent.npz")
    with pytest.raises(ModelError, match=r"absent\.npz could not be read .* install hypodask again"):
        template_hypothalamus.__wrapped__()


def test_a_hypothalamus_on_turned_axes_is_a_model_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "turned.npz"
    np.savez(path, posteriors=np.zeros((2, 2, 2, 2), np.float16), mni_from_vox=np.diag([-1.0, 1.0, 1.0, 1.0]))
    monkeypatch.setattr(hypothalamus, "_HYPOTHALAMUS_FILE", path)
    with pytest.raises(ModelError, match="cubic voxels along"):
        template_hypothalamus.__wrapped__()


def test_groups_follow_the_paper_and_none_is_too_small_to_test() -> None:
    assert group_sizes(30) == {"control": 9, "ALS": 12, "PLS": 9}
    for n in (3, 7, 12, 30, 564, 5000):
        sizes = group_sizes(n)
        assert sum(sizes.values()) == n
        assert min(sizes.values()) >= min(8, n // 3)
    assert group_sizes(100_000)["ALS"] / 100_000 == pytest.approx(411 / 564, abs=0.001)


def test_the_people_of_a_study_are_its_groups_and_strata() -> None:
    people = pd.DataFrame([person.covariates for person in draw_people(30)])
    assert people["group"].value_counts().to_dict() == group_sizes(30)
    assert people["subgroup"].value_counts().to_dict() == {"probable": 5, "definite": 4}


def test_too_few_scans_for_three_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="at least 3"):
        simulate_cohort(tmp_path, 2)


def test_covariates_follow_table_1_and_the_effect_is_in_the_patients() -> None:
    people = draw_people(3000, seed=1, effect_percent=10)
    table = pd.DataFrame([{**p.covariates, "scale": p.options.hypothalamus_scale} for p in people])
    means = table.groupby("group")["scale"].mean()
    assert means["ALS"] / means["control"] == pytest.approx(0.9, abs=0.01)
    assert table[table["group"] == "control"]["scale"].std() == pytest.approx(_SCALE_SD, abs=0.005)
    als = table[table["group"] == "ALS"]
    assert als["disease_duration_years"].mean() == pytest.approx(1.5, abs=0.1)
    assert als["alsfrs_r"].between(0, 47).all()
    assert als["age"].between(21, 93).all()
    assert table.loc[table["group"] == "control", "alsfrs_r"].isna().all()
    assert set(table.loc[table["group"] == "PLS", "subgroup"]) == {"probable", "definite"}


def test_a_simulated_study_is_a_cohort(study: Path) -> None:
    cohort = Cohort.from_bids(study)
    assert len(cohort) == 6
    assert set(cohort.table["group"]) == {"control", "ALS", "PLS"}
    assert cohort.table["true_hypothalamus_mm3"].between(300, 1500).all()
    assert {"age", "sex", "alsfrs_r", "disease_duration_years", "subgroup"} <= set(cohort.table.columns)


def test_every_scan_of_a_study_can_be_read_and_lies_where_it_was_made(study: Path) -> None:
    person = draw_people(6, seed=5, options=COARSE)[2]
    made, _ = simulate_head(person.seed, options=person.options)
    path = study / person.participant_id / "anat" / f"{person.participant_id}_T1w.nii.gz"
    read = read_scan(str(path))
    assert np.array_equal(read.stored, made.stored)
    assert np.abs(nib.load(path).affine - made.grid.space_from_vox).max() < 1e-4
    assert len(made.header) == 348


def test_truth_of_a_study_is_beside_its_scans(study: Path) -> None:
    participants = pd.read_csv(study / "participants.tsv", sep="\t")
    truth = pd.read_csv(study / "derivatives" / "phantom" / "truth.tsv", sep="\t")
    assert participants["true_icv_mm3"].to_numpy() == pytest.approx(truth["icv_mm3"].to_numpy(), abs=0.01)
    ac, pc = (truth[[f"{name}_{axis}_mm" for axis in "xyz"]].to_numpy() for name in ("ac", "pc"))
    assert np.linalg.norm(ac - pc, axis=1) == pytest.approx(26, abs=4)


def test_a_studys_tables_are_described(study: Path) -> None:
    columns = pd.read_csv(study / "participants.tsv", sep="\t").columns
    described = json.loads((study / "participants.json").read_text())
    assert list(columns) == ["participant_id", *described]
    for folder in (study, study / "derivatives" / "phantom"):
        assert {"Name", "BIDSVersion", "DatasetType"} <= set(
            json.loads((folder / "dataset_description.json").read_text())
        )
    assert (study / "README").read_text().startswith("6 simulated")
    assert not list(study.rglob("*.part"))


def test_processes_that_simulate_together_do_not_each_take_all_cores_or_a_gpu(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with _environment_of_many():
        found = [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "JAX_PLATFORMS")]
    assert found == ["3", "1", "cpu"]
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert not {"OPENBLAS_NUM_THREADS", "JAX_PLATFORMS"} & set(os.environ)


def test_heads_that_are_there_are_not_made_again(study: Path) -> None:
    images = sorted(study.glob("sub-*/anat/*.nii.gz"))
    before = [image.stat().st_mtime_ns for image in images]
    images[0].unlink()
    simulate_cohort(study, 6, seed=5, options=COARSE)
    after = [image.stat().st_mtime_ns for image in images]
    assert before[0] != after[0]
    assert before[1:] == after[1:]


def test_a_folder_with_other_participants_is_refused(study: Path) -> None:
    with pytest.raises(CohortError, match=r"already holds 3 other participants, such as sub-004"):
        simulate_cohort(study, 3, options=COARSE)


def test_simulating_heads_needs_no_jax():
    imported = "import sys, hypodask.phantom.cohort; print({'jax'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", imported], text=True) == "set()\n"
