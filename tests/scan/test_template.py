"""The brain that scans are aligned to comes with hypodask, and is the one that its card describes."""

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files

import numpy as np
import pytest

from hypodask.core.errors import ModelError
from hypodask.scan.template import MNI152, Template


@pytest.fixture
def copy(tmp_path) -> Template:
    """A template like MNI152 whose files may be damaged."""
    for path in MNI152.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return replace(MNI152, folder=tmp_path)


def test_the_installed_package_holds_the_file_of_the_card_and_its_licence():
    folder = files("hypodask.scan").joinpath("mni152")
    card = json.loads(folder.joinpath("card.json").read_text(encoding="utf-8"))
    assert sha256(folder.joinpath(card["file"]).read_bytes()).hexdigest() == card["sha256"] == MNI152.digest
    assert card["copyright"].removeprefix("1993-2004 ").split(",")[0] in folder.joinpath("LICENSE").read_text()
    assert "Fonov" in card["citation"]


def test_the_template_is_the_one_that_stamps_of_rows_name():
    assert MNI152.digest[:12] == "421a10e872fd"


def test_the_brain_is_that_of_nilearn_voxel_for_voxel():
    datasets = pytest.importorskip("nilearn.datasets", reason="nilearn is not installed")
    brain, theirs = MNI152.brain, datasets.load_mni152_template(resolution=1)
    np.testing.assert_array_equal(brain.data, theirs.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(brain.grid.space_from_vox, theirs.affine)


def test_the_brain_is_from_0_to_1_and_cannot_be_changed():
    data = MNI152.brain.stored
    assert (data.dtype, data.min(), data.max()) == (np.float32, 0, 1)
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0, 0] = 1


def test_the_commissures_lie_in_the_midsagittal_plane_of_a_symmetric_brain():
    ac, pc = MNI152.commissures_mm
    data, grid = MNI152.brain.data, MNI152.brain.grid
    assert ac[0] == pc[0] == 0
    assert grid.centre_mm[0] == pytest.approx(0, abs=1)
    assert np.abs(data - data[::-1]).mean() < 0.01
    low, high = np.argwhere(data > 0.2).min(axis=0), np.argwhere(data > 0.2).max(axis=0)
    sides_mm = (high - low + 1) * grid.spacing_mm
    assert sides_mm == pytest.approx(2 * MNI152.radius_mm, rel=0.3)


def test_another_file_than_that_of_the_card_is_refused(copy):
    path = copy.folder / copy.card["file"]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match=r"has the sha256 .* but its card says 421a10e872fd.*install hypodask again"):
        _ = copy.brain


def test_a_missing_brain_is_refused(copy):
    (copy.folder / copy.card["file"]).unlink()
    with pytest.raises(ModelError, match=r"could not be read .* install hypodask again"):
        _ = copy.brain


@pytest.mark.parametrize(("text", "says"), [("{", "could not be read"), ('{"name": "x"}', "lacks file, sha256")])
def test_a_card_that_says_too_little_is_refused(copy, text, says):
    (copy.folder / "card.json").write_text(text)
    with pytest.raises(ModelError, match=says):
        _ = copy.digest


def test_a_worker_imports_neither_nilearn_nor_scikit_learn():
    imported = "import sys, hypodask.pipeline; print({'sklearn', 'nilearn'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", imported], text=True) == "set()\n"
