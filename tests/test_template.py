"""The brain that heads are aligned to is the one that nilearn gives, without the time that nilearn takes."""

import subprocess
import sys

import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from hypodask import template
from hypodask.errors import ModelError


@pytest.fixture
def unread():
    """No brain is kept from before, and none for later."""
    template.mni152_brain.cache_clear()
    yield
    template.mni152_brain.cache_clear()


def test_the_brain_is_that_of_nilearn_voxel_for_voxel():
    brain, theirs = template.mni152_brain(), load_mni152_template(resolution=1)
    np.testing.assert_array_equal(brain.data, theirs.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(brain.grid.space_from_vox, theirs.affine)
    assert (brain.data.dtype, brain.data.min(), brain.data.max()) == (np.float32, 0, 1)


def test_a_nilearn_that_keeps_it_elsewhere_is_named(monkeypatch, unread):
    monkeypatch.setattr(template, "BRAIN_FILE", "datasets/data/moved.nii.gz")
    with pytest.raises(ModelError, match=r"nilearn \S+ has no datasets/data/moved.nii.gz.*; install another nilearn"):
        template.mni152_brain()


def test_a_worker_imports_neither_the_data_sets_of_nilearn_nor_scikit_learn():
    imported = "import sys, hypodask.pipeline; print({'sklearn', 'nilearn.datasets'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", imported], text=True) == "set()\n"
