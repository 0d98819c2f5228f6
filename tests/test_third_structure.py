"""A further structure is trained, run beside the two that are shipped, stored, reported and compared.

Nothing of the package knows the third ventricle but its record in ``hypodask/core/structures.py``.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import hypodask
from hypodask.core.errors import ModelError
from hypodask.core.grid import transform_points
from hypodask.core.structures import STRUCTURES, THIRD_VENTRICLE
from hypodask.learning.loop import Schedule
from hypodask.networks import load_weights
from hypodask.phantom import simulate_head
from hypodask.pipeline import load_models, measure_scan
from hypodask.storage import read_label_map, read_label_table, verify_store
from hypodask.study import assemble
from hypodask.study.results import finalise
from hypodask.training import Architecture, Data, Folds, TrainingConfig

pytestmark = pytest.mark.thorough

NAME = THIRD_VENTRICLE.whole
PEOPLE = {"sub-01": "control", "sub-02": "control", "sub-03": "PLS", "sub-04": "PLS"}
LOW_MM, HIGH_MM = np.array([-4.0, -22.0, -12.0]), np.array([4.0, 2.0, 6.0])
"""Box in AC-PC space whose fluid is taken for the third ventricle."""


def ventricle_of(scan: hypodask.Scan, truth) -> np.ndarray:
    """A label map as a person might draw it: what is dark in a box at the midline."""
    vox = np.moveaxis(np.indices(scan.grid.shape), 0, -1)
    places = transform_points(truth.acpc_from_scanner @ scan.grid.space_from_vox, vox)
    inside = ((places > LOW_MM) & (places < HIGH_MM)).all(axis=-1)
    white = np.percentile(scan.data[inside], 95)
    return (inside & (scan.data < 0.45 * white)).astype(np.uint8)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Four simulated people as a BIDS folder, with label maps of their third ventricles as a derivative."""
    folder = tmp_path_factory.mktemp("study")
    for seed, person in enumerate(PEOPLE):
        scan, truth = simulate_head(seed)
        for path, voxels in (
            (folder / person / "anat" / f"{person}_T1w.nii", scan.data),
            (
                folder / "derivatives" / "ventricles" / person / "anat" / f"{person}_dseg.nii.gz",
                ventricle_of(scan, truth),
            ),
        ):
            path.parent.mkdir(parents=True)
            nib.save(nib.Nifti1Image(voxels, scan.grid.space_from_vox), path)
    (folder / "derivatives" / "ventricles" / "dseg.tsv").write_text(f"index\tname\themisphere\n1\t{NAME}\tboth\n")
    pd.DataFrame({"participant_id": list(PEOPLE), "group": list(PEOPLE.values())}).to_csv(
        folder / "participants.tsv", sep="\t", index=False
    )
    return folder


@pytest.fixture(scope="module")
def weights(study) -> Path:
    config = TrainingConfig(
        str(study / "trained"),
        Data("dark-midline", structure=NAME, bids=str(study), outlines=str(study / "derivatives" / "ventricles")),
        network=Architecture(widths=(16, 16)),
        schedule=Schedule(steps=100, heads=2, slices=4, learning_rate=0.03, average=0.9, checkpoint_every=100),
        folds=Folds(count=0),
    )
    hypodask.train(config)
    return study / "trained" / f"{NAME}.safetensors"


@pytest.fixture(scope="module")
def output(study, weights) -> Path:
    """Every person processed, here and not by workers, which would compile the networks again."""
    cohort, out = hypodask.Cohort.from_bids(study), study / "out"
    models = load_models([weights])
    rows = [hypodask.process_scan(one.path, scan=one.scan, out=out, models=models) for one in cohort.entries()]
    finalise(str(out), assemble(cohort.table, [row.as_dict() for row in rows]))
    return out


def test_its_weights_are_for_it(weights):
    _, card = load_weights(weights)
    assert (card.task, card.name, card.protocol) == (NAME, NAME, "dark-midline")
    assert card.labels.structures == (NAME,)


def test_its_volume_stands_beside_those_of_the_shipped_networks(output):
    results = hypodask.open_results(str(output))
    assert results["status"].to_numpy().tolist() == ["done"] * len(PEOPLE)
    assert {"hypothalamus", "icv", NAME} <= set(results["structure"].to_numpy())
    volumes = results["volume_mm3"].sel(structure=NAME).to_numpy()
    assert (volumes > 50).all()
    table = pd.read_csv(output / "volumes.tsv", sep="\t")
    np.testing.assert_allclose(table[f"{NAME}_volume_mm3"], volumes)


def test_its_label_map_is_stored_with_its_label_table(output):
    results = hypodask.open_results(str(output))
    for scan in results["scan"].to_numpy():
        store = output / results["store"].sel(scan=scan).item()
        label_map, _ = read_label_map(str(store), f"{NAME}_scan")
        assert set(np.unique(label_map)) == {0, 1}
        assert read_label_table(str(store), f"{NAME}_scan").structures == (NAME,)
        assert verify_store(str(store)) == []


def test_the_other_volumes_are_those_without_it(output, study):
    scan = hypodask.read_scan(study / "sub-01" / "anat" / "sub-01_T1w.nii")
    alone = measure_scan(scan, load_models()).volume_mm3
    beside = hypodask.open_results(str(output))["volume_mm3"].isel(scan=0)
    assert {name: beside.sel(structure=name).item() for name in alone} == dict(alone)


def test_groups_are_compared_by_it(output):
    results = hypodask.open_results(str(output)).pipe(hypodask.stats.normalize_icv, reference="control")
    found = hypodask.stats.compare_groups(results, "normalized_volume_mm3", structure=NAME)
    assert found[["n_a", "n_b"]].to_numpy().tolist() == [[2, 2]]
    assert np.isfinite(found["difference"]).all()


def test_the_report_shows_it(output):
    hypodask.report.write_report(str(output))
    assert STRUCTURES[NAME].title in (output / "report.html").read_text(encoding="utf-8")


def test_a_network_of_an_unknown_structure_is_refused_and_not_dropped(monkeypatch, weights):
    network = load_models([weights])[-1]
    unknown = dict(STRUCTURES)
    del unknown[NAME]
    monkeypatch.setattr("hypodask.core.structures.STRUCTURES", unknown)
    with pytest.raises(ModelError, match=f"'{NAME}' is no structure"):
        load_models([network])
