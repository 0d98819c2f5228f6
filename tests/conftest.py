"""What several tests share: a folder of real scans, and the smallest files that pass for a head."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

# Recipes and benchmarks are no part of the installed package; it is the installed one that is tested.
sys.path.append(str(Path(__file__).parents[1]))

# Workers of several tests compile the same programs; a folder of this run's own lets them share what is compiled.
_compiled = tempfile.TemporaryDirectory(prefix="hypodask-xla-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)

# Machines that run tests are busy; a slow example is not a wrong one.
settings.register_profile("hypodask", deadline=None, max_examples=60)
settings.load_profile("hypodask")


@pytest.fixture(scope="session")
def validation_data() -> Path:
    """Folder of real scans; the test is skipped where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HYPODASK_VALIDATION_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no validation data: set HYPODASK_VALIDATION_DATA")
    return folder


def head_voxels(shape: tuple[int, int, int] = (48, 48, 48), seed: int = 0) -> np.ndarray:
    """A bright ball with some noise on black, uint8."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = sum(axis**2 for axis in axes) < 0.6
    return (ball * 150 + np.random.default_rng(seed).integers(0, 50, shape)).astype(np.uint8)


@pytest.fixture
def head_file(tmp_path: Path) -> Callable[..., Path]:
    """``head_file("sub-01_T1w.nii.gz")`` writes a tiny valid scan, 48 x 48 x 48 voxels of 4 mm."""

    def write(name: str = "sub-01_T1w.nii.gz", *, folder: Path = tmp_path, seed: int = 0) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = -94.0
        nib.save(nib.Nifti1Image(head_voxels(seed=seed), affine), path)
        return path

    return write
