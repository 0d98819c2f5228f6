"""Where some workers have a GPU and others do not, networks run on the former and all else on the latter."""

import os
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dask.config
import numpy as np
import pandas as pd
import pytest
from clusters import forked
from distributed import Client, Nanny, Scheduler, SpecCluster
from flax import nnx

from hypodask.cluster import process
from hypodask.cohort import Cohort
from hypodask.labels import ICV
from hypodask.network.unet import UNet, UNetConfig
from hypodask.network.weights import InputGeometry, ModelCard
from hypodask.row import Row
from hypodask.segmentation.border import BorderedNetwork
from hypodask.segmentation.predict import ShippedNetwork

CONFIG = UNetConfig(in_channels=1, out_channels=2, widths=(2, 2))
DEADLY = "sub-deadly"
SHAPE = (32, 16, 32)


@dataclass(frozen=True, eq=False)
class Noted(ShippedNetwork):
    """A network that notes which process runs it, and dies of an image that is too bright."""

    folder: str = ""

    def outlined(self, image, *, sketch=False):
        Path(self.folder, str(os.getpid())).touch()
        if image.max() > 1e6:
            os._exit(1)
        return super().outlined(image, sketch=sketch)


Loaded = tuple[Noted, BorderedNetwork]


def load(folder: str) -> Loaded:
    """A network, and one that moves the outline of another."""
    geometry = InputGeometry((4.0, 4.0, 4.0), SHAPE, 1, 1, "as_it_is")
    card = ModelCard("tiny", "icv", ICV.protocol, CONFIG, geometry, "nothing", "BSD-3-Clause")
    one, other = (Noted((UNet(CONFIG, rngs=nnx.Rngs(n)),), card, f"{n}" * 64, folder=folder) for n in range(2))
    return one, BorderedNetwork(other, other)


def treat(path: str, *, scan: str, out: str, store: str, models: Loaded, stamp: str) -> Row:
    """A stand-in for the method: two networks on one block of voxels, unscaled, that is too large for the scheduler."""
    voxels = np.random.default_rng(len(scan)).normal(size=SHAPE).astype(np.float32)
    if scan == DEADLY:
        voxels += 1e7
    one, bordered = models
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": voxels.nbytes}), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = one.outlined(voxels).posteriors[1].sum()
        found += bordered.first.outlined(voxels, sketch=True).posteriors[1].sum()
    return Row(scan, "done", volume_mm3={"icv": float(found)}, warnings=str(os.getpid()))


@pytest.fixture(scope="module")
def client():
    kinds = {"cpu": {"CPU": 1}, "gpu": {"GPU": 1}}
    here = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    options, scheduler = here | {"nthreads": 1}, here | {"port": 0, "allowed_failures": 0}
    with (
        dask.config.set(forked()),
        SpecCluster(
            {name: {"cls": Nanny, "options": options | {"resources": kind}} for name, kind in kinds.items()},
            {"cls": Scheduler, "options": scheduler},
            silence_logs=60,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def study(tmp_path):
    def write(*scans: str) -> Cohort:
        for scan in scans:
            (tmp_path / f"{scan}.nii").touch()
        return Cohort(pd.DataFrame({"scan": scans, "path": [str(tmp_path / f"{scan}.nii") for scan in scans]}))

    return write


@pytest.fixture
def noted(tmp_path):
    (tmp_path / "noted").mkdir()
    return tmp_path / "noted"


@pytest.fixture
def run(client, tmp_path, noted):
    return partial(process, url=str(tmp_path / "out"), client=client, models=str(noted), load=load, progress=False)


def test_networks_run_on_the_gpu_worker_and_the_rest_elsewhere_with_the_same_result(run, study, noted):
    scans = ("sub-1", "sub-12", "sub-123")
    results = run(study(*scans), treat=treat)
    assert results["status"].to_numpy().tolist() == ["done"] * 3
    assert len(list(noted.iterdir())) == 1
    assert {path.name for path in noted.iterdir()}.isdisjoint(results["warnings"].to_numpy())
    here = [treat("", scan=scan, out="", store="", models=load(str(noted)), stamp="")["icv"] for scan in scans]
    assert results["volume_mm3"].sel(structure="icv").to_numpy().tolist() == here


def test_an_image_that_kills_the_gpu_worker_is_a_failed_row_and_stops_no_other(run, study):
    results = run(study("sub-1", DEADLY, "sub-12"), treat=treat)
    assert results["status"].to_numpy().tolist() == ["done", "failed", "done"]
    deadly = results.sel(scan=DEADLY)
    assert (deadly["stage"].item(), deadly["error"].item()) == ("cluster", "ConnectionError")
    assert "the worker that had the GPU died" in deadly["reason"].item()
