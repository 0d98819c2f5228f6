"""Where some workers have a GPU and others do not, networks run on the former and all else on the latter."""

import os
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import dask.config
import numpy as np
import pandas as pd
import pytest
from clusters import forked
from distributed import Client, Nanny, Scheduler, SpecCluster
from flax import nnx
from segmentation.test_published_network import random_weights, write_h5

from hypodask.alignment.pose import Alignment
from hypodask.cluster.processing import _process
from hypodask.core.grid import Grid
from hypodask.core.row import Row
from hypodask.core.structures import BOUNDARY_TASK, HEAD_SIZE, HYPOTHALAMUS_SIDES, ICV, MAIN
from hypodask.networks.cards import InputGeometry, ModelCard
from hypodask.networks.profiles import ProfileNet
from hypodask.networks.unet import UNet, UNetConfig
from hypodask.scan.scan import Scan
from hypodask.segmentation.icv_border import BOUNDARY_ARCHITECTURE, BoundaryNetwork
from hypodask.segmentation.load import load_network
from hypodask.segmentation.network import Ensemble, part_of
from hypodask.segmentation.seed_protocol import SeedNetwork
from hypodask.study.cohort import Cohort

DEADLY = "sub-deadly"
SHAPE = (32, 16, 32)
RESOURCE = "HYPODASK_TEST_RESOURCE"
"""Variable in the environment of each worker that names its resource, since a plugin cannot ask for it."""


@dataclass(frozen=True)
class Noting:
    """A stand-in for a network that notes which process runs it, and ends it if an image is too bright."""

    folder: str
    elsewhere: object = None

    def on(self, elsewhere):
        return replace(self, elsewhere=elsewhere)

    def total(self, image, *, times=1):
        if self.elsewhere is not None:
            return self.elsewhere("total", image, times=times)
        Path(self.folder, str(os.getpid())).touch()
        if image.max() > 1e6:
            os._exit(1)
        return times * float(image.sum())


@dataclass(frozen=True)
class Outer:
    """A stand-in for a network around another one."""

    inner: Noting

    def on(self, elsewhere):
        return Outer(self.inner.on(part_of(elsewhere, "inner")))


def load(folder):
    return Noting(folder), Outer(Noting(folder))


def stand_in(path, *, scan, out, store, models, stamp):
    """A stand-in for the method: two networks on one block of voxels that is too large for the scheduler."""
    voxels = np.random.default_rng(len(scan)).normal(size=SHAPE).astype(np.float32)
    if scan == DEADLY:
        voxels += 1e7
    one, outer = models
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": voxels.nbytes}), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = one.total(voxels) + outer.inner.total(voxels, times=2)
    return Row(scan, "done", volume_mm3={HEAD_SIZE.name: found}, warnings=str(os.getpid()))


@pytest.fixture(scope="module")
def client():
    kinds = {kind: {"resources": {kind: 1}, "env": {RESOURCE: kind}} for kind in ("CPU", "GPU")}
    here = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    options, scheduler = here | {"nthreads": 1}, here | {"port": 0, "allowed_failures": 0}
    with (
        dask.config.set(forked()),
        SpecCluster(
            {name: {"cls": Nanny, "options": options | kind} for name, kind in kinds.items()},
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
def run(client, tmp_path):
    client.wait_for_workers(2)
    return partial(_process, url=str(tmp_path / "out"), client=client, progress=False)


def test_networks_run_on_the_gpu_worker_and_the_rest_elsewhere_with_the_same_result(run, study, noted):
    scans = ("sub-1", "sub-12", "sub-123")
    results = run(study(*scans), models=str(noted), load=load, method=stand_in)
    assert results["status"].to_numpy().tolist() == ["done"] * 3
    assert len(list(noted.iterdir())) == 1
    assert {path.name for path in noted.iterdir()}.isdisjoint(results["warnings"].to_numpy())
    here = [stand_in("", scan=scan, out="", store="", models=load(str(noted)), stamp="") for scan in scans]
    assert results["volume_mm3"].sel(structure="icv").to_numpy().tolist() == [row["icv"] for row in here]


# Every kind of network


def unet(task, protocol, out_channels, *, seed):
    config = UNetConfig(in_channels=1, out_channels=out_channels, widths=(2, 2))
    geometry = InputGeometry((1.0, 1.0, 1.0), (32, 16, 32), 1, 1, "head_dark")
    card = ModelCard("tiny", task, protocol, config, geometry, "nothing", "BSD-3-Clause")
    return Ensemble((UNet(config, rngs=nnx.Rngs(seed)),), card, f"{seed}" * 64)


def every_kind(published, *, seed):
    """A network of each kind; the weights of what should run on a GPU are drawn by the seed."""
    of_sides = unet(MAIN.name, HYPOTHALAMUS_SIDES.protocol, 3, seed=seed)
    of_head = unet(HEAD_SIZE.name, ICV.protocol, 2, seed=seed)
    geometry = of_head.card.geometry
    card = ModelCard("tiny", BOUNDARY_TASK, ICV.protocol, BOUNDARY_ARCHITECTURE, geometry, "nothing", "BSD-3-Clause")
    boundary = Ensemble((ProfileNet(BOUNDARY_ARCHITECTURE, rngs=nnx.Rngs(0)),), card, "0" * 64)
    return of_sides, SeedNetwork(of_sides), BoundaryNetwork(of_head, boundary), load_network(published)


def load_by_resource(models):
    """The right weights where a GPU is, and others elsewhere: a heavy step that runs there gives another result."""
    right, others = models
    has_gpu = os.environ[RESOURCE] == "GPU"
    return every_kind(right if has_gpu else others, seed=1 if has_gpu else 2)


def segmented(models):
    """A number for each network that depends on all that it found in one simulated scan."""
    voxels = np.random.default_rng(0).integers(50, 200, (40, 40, 40)).astype(np.int16)
    grid = Grid(voxels.shape, np.diag([2.0, 2.0, 2.0, 1.0]), "scanner")
    acpc_from_scanner = np.eye(4)
    acpc_from_scanner[:3, 3] = -39.0
    pose = Alignment(acpc_from_scanner, np.full(3, 39.0), np.array([39.0, 13.0, 39.0]), np.eye(4), 0.7, flagged=False)
    return [float(np.cos(100 * network.segment(Scan(voxels, grid), pose).posteriors).sum()) for network in models]


def segment_with_all(path, *, scan, out, store, models, stamp):
    """A stand-in for the method: what each network finds, in the text of the row."""
    return Row(scan, "done", warnings=" ".join(map(repr, segmented(models))))


def test_every_kind_of_network_runs_its_heavy_step_on_the_gpu_worker_with_the_same_result(run, study, tmp_path):
    right, others = tmp_path / "right.h5", tmp_path / "others.h5"
    weights = random_weights(width=1)
    write_h5(right, weights)
    weights["unet_likelihood"]["bias"] += np.arange(11)
    write_h5(others, weights)
    results = run(study("sub-1"), models=[str(right), str(others)], load=load_by_resource, method=segment_with_all)
    assert results["reason"].item() == ""
    found = [float(number) for number in results["warnings"].item().split()]
    assert found == segmented(every_kind(right, seed=1))
    assert not set(found) & set(segmented(every_kind(others, seed=2)))


# Last, because the worker that dies is away for a while


def test_an_image_that_kills_the_gpu_worker_is_a_failed_row_and_stops_no_other(run, study, noted):
    results = run(study("sub-1", DEADLY, "sub-12"), models=str(noted), load=load, method=stand_in)
    assert results["status"].to_numpy().tolist() == ["done", "failed", "done"]
    deadly = results.sel(scan=DEADLY)
    assert (deadly["stage"].item(), deadly["error"].item()) == ("cluster", "ConnectionError")
    assert "the worker that had the GPU died" in deadly["reason"].item()
