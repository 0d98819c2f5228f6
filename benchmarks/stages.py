"""Time and peak memory of each stage of one scan."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import nibabel as nib
import numpy as np

import hypodask
from hypodask import phantom
from hypodask.alignment import Alignment
from hypodask.core.grid import slab_grid
from hypodask.image.resampling import resample
from hypodask.scan import Scan
from hypodask.storage import store


@dataclass(frozen=True)
class Head:
    """One simulated head as a file, as a store, and as what the stages take."""

    path: str
    url: str
    scan: Scan
    alignment: Alignment


def simulate() -> Head:
    """A head with 1 mm voxels in a random pose."""
    folder = Path(mkdtemp(prefix="hypodask-bench-"))
    scan, _ = phantom.simulate_head(7)
    path, url = str(folder / "head_T1w.nii.gz"), str(folder / "head.nii.zarr")
    nib.save(nib.Nifti1Image(scan.stored, np.array(scan.grid.space_from_vox)), path)
    store.write_scan(url, scan)
    store.mark_done(url, {})
    return Head(path, url, scan, hypodask.align(scan))


def resample_slab(head: Head) -> object:
    """One interpolation from the scan to the slab of the paper, 512 x 50 x 512."""
    acpc_from_scanner = head.alignment.acpc_from_scanner
    return resample(head.scan.data, head.scan.grid, slab_grid(), onto_from_grid=acpc_from_scanner, order=3)


STAGES: dict[str, Callable[[Head], object]] = {
    "read": lambda head: hypodask.read_scan(head.path),
    "write store": lambda head: store.write_scan(f"{head.url}-again", head.scan),
    "read store": lambda head: store.read_stored_scan(head.url),
    "align": lambda head: hypodask.align(head.scan),
    "resample slab": resample_slab,
    "segment hypothalamus": lambda head: hypodask.segment(head.scan, head.alignment, model="hypothalamus"),
    "segment icv": lambda head: hypodask.segment(head.scan, head.alignment, model="icv"),
    "whole scan": lambda head: hypodask.process_scan(head.path, out=f"{head.url}-out"),
}


class Stage:
    """Each stage on a simulated head of about 190 x 230 x 240 voxels of 1 mm, compiled before the clock starts.

    Peak memory is that of the process: interpreter, libraries and the compilation included.
    """

    params = tuple(STAGES)
    param_names = ("stage",)
    timeout = 300

    def setup_cache(self) -> Head:
        """The head, made once for all stages."""
        return simulate()

    def setup(self, head: Head, stage: str) -> None:
        """Compile."""
        self.run = partial(STAGES[stage], head)
        self.run()

    def time_stage(self, head: Head, stage: str) -> None:
        """Wall-clock time of one call."""
        self.run()

    def peakmem_stage(self, head: Head, stage: str) -> None:
        """Peak memory of a process that does only this stage."""
        self.run()
