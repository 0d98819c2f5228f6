"""Scans in and results out on an object store: the same run as in folders, and the same table.

The store is a real S3-compatible server on loopback, moto's, and the workers are processes of their own that
reach it as users would: by fsspec's environment variables.
"""

import gc
import os
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from clusters import local_client
from conftest import head_voxels
from distributed import Client

from hypodask.cluster import process
from hypodask.cluster.processing import _process
from hypodask.core.errors import ClusterError
from hypodask.core.row import Row
from hypodask.core.structures import ICV
from hypodask.files.leases import held
from hypodask.files.location import Location
from hypodask.phantom import simulate_cohort
from hypodask.scan import read_scan
from hypodask.storage.store import mark_done, read_label_map, read_stored_scan, write_label_map, write_scan
from hypodask.study.cohort import Cohort
from hypodask.study.results import open_results, verify

SCANS = 2

OF_A_RUN = ["path", "peak_memory_mib"]
"""Where a scan lay, and how much memory a worker took for it: all that may differ."""

START_SECONDS = 60


def stand_in(path: str, *, scan: str, out: str, store: str, models: object, stamp: str) -> Row:
    """A stand-in for the pipeline that reads the scan and writes a store: it counts the bright voxels."""
    Location(out).child("calls", f"{scan}.{uuid4().hex}").write(b"")
    head = read_scan(path)
    place = Location(out).child(store).url
    write_scan(place, head)
    inside = (head.stored > 160).astype(np.uint8)
    write_label_map(place, "icv_scan", inside, head.grid, ICV)
    mark_done(place, {"scan": scan, "sha256": head.sha256})
    volume = float(inside.sum()) * head.grid.voxel_volume_mm3
    return Row(scan, "done", volume_mm3={"icv": volume}, store=store, sha256=head.sha256)


def calls(out: str) -> Counter[str]:
    return Counter(name.partition(".")[0] for name in Location(out).child("calls").names())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 server with a bucket ``study``; fsspec here and in new processes knows it."""
    log = tmp_path_factory.mktemp("s3") / "server.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as written, subprocess.Popen(command, stdout=written, stderr=written) as running:
        try:
            address = first_match(r"Running on (http://127\.0\.0\.1:\d+)", log)
            with pytest.MonkeyPatch.context() as patched:
                for key, value in {"endpoint_url": address, "key": "somebody", "secret": "unguessable"}.items():
                    # fsspec reads the environment as it is imported, which workers do and this process has done.
                    patched.setenv(f"FSSPEC_S3_{key.upper()}", value)
                    patched.setitem(fsspec.config.conf.setdefault("s3", {}), key, value)
                fsspec.filesystem("s3").mkdir("study")
                yield address
                close_connections()
        finally:
            running.terminate()


def close_connections() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with warnings.catch_warnings():
        # Zarr never closes its own, which aiohttp says as they are collected.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def first_match(pattern: str, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(pattern, log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise TimeoutError(f"no {pattern} in {log.read_text()}")


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[Client]:
    # Forks would not see the variables of the store.
    with local_client(1, forks=False) as client:
        yield client


@pytest.fixture(scope="module")
def study(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same BIDS folder twice, in a folder and in the object store, each processed; where by ``file`` and ``s3``."""
    places = {"file": str(tmp_path_factory.mktemp("study")), "s3": f"s3://study/{uuid4().hex}"}
    folder = Path(places["file"], "bids")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -94.0
    for number in range(SCANS):
        participant = f"sub-{number:02d}"
        (folder / participant / "anat").mkdir(parents=True)
        head = nib.Nifti1Image(head_voxels(seed=number), affine)
        nib.save(head, folder / participant / "anat" / f"{participant}_T1w.nii.gz")
    participants = pd.DataFrame(
        {"participant_id": [f"sub-{n:02d}" for n in range(SCANS)], "age": range(60, 60 + SCANS)}
    )
    participants.to_csv(folder / "participants.tsv", sep="\t", index=False)
    fsspec.filesystem("s3").put(str(folder), f"{places['s3']}/bids", recursive=True)
    for place in places.values():
        run(client, place)
    return places


def run(client: Client, place: str) -> xr.Dataset:
    cohort = Cohort.from_bids(f"{place}/bids")
    return _process(cohort, f"{place}/out", client, progress=False, method=stand_in, load=None)


def test_a_study_on_an_object_store_gives_the_table_of_the_same_study_in_a_folder(study):
    local, remote = (open_results(f"{place}/out") for place in study.values())
    assert local["status"].to_numpy().tolist() == ["done"] * SCANS
    assert len(set(local["volume_mm3"].sel(structure="icv").to_numpy())) == SCANS
    assert [path.startswith("s3://study/") for path in remote["path"].to_numpy()] == [True] * SCANS
    xr.testing.assert_identical(remote.drop_vars(OF_A_RUN), local.drop_vars(OF_A_RUN))
    for store in remote["store"].to_numpy():
        stores = [f"{place}/out/{store}" for place in study.values()]
        np.testing.assert_array_equal(*(read_stored_scan(store).stored for store in stores))
        np.testing.assert_array_equal(*(read_label_map(store, "icv_scan")[0] for store in stores))


@pytest.mark.thorough
def test_the_method_itself_measures_the_same_on_an_object_store(server, tmp_path):
    remote = f"s3://study/{uuid4().hex}"
    simulate_cohort(tmp_path / "bids", 3)
    fsspec.filesystem("s3").put(str(tmp_path / "bids"), f"{remote}/bids", recursive=True)
    # A client of its own: a worker keeps the networks that it once loaded.
    with local_client(1, forks=False) as client:
        tables = [
            process(Cohort.from_bids(f"{place}/bids"), f"{place}/out", client, progress=False)
            for place in (tmp_path, remote)
        ]
    assert tables[0]["status"].to_numpy().tolist() == ["done"] * 3
    assert (tables[0]["volume_mm3"].sel(structure="hypothalamus") > 0).all()
    xr.testing.assert_identical(*(table.drop_vars([*OF_A_RUN, "seconds"]) for table in tables))
    assert verify(f"{remote}/out") == []


def test_a_second_call_on_an_object_store_does_nothing(client, study):
    out = Location(f"{study['s3']}/out")
    before, done = out.names(), calls(out.url)
    xr.testing.assert_identical(run(client, study["s3"]), open_results(out.url))
    assert calls(out.url) == done
    # The results have a name of their own each time that they are written.
    assert out.names() == before


def test_a_chunk_that_an_object_store_lost_is_told_and_its_scan_made_anew(client, study):
    out = Location(f"{study['s3']}/out")
    results, done = open_results(out.url), calls(out.url)
    assert verify(out.url) == []
    store = out.child(results["store"].sel(scan="sub-01").item())
    store.child("labels/icv_scan/0/c/0/0/0").delete()
    problems = verify(out.url, digests=False)
    assert "sub-01: labels/icv_scan/0/c/0/0/0 is missing" in problems
    assert all(problem.startswith("sub-01: ") for problem in problems)
    store.child("done.json").delete()
    own = ["peak_memory_mib"]
    xr.testing.assert_identical(run(client, study["s3"]).drop_vars(own), results.drop_vars(own))
    assert calls(out.url) - done == {"sub-01": 1}
    assert verify(out.url) == []


def test_a_lease_is_respected_on_an_object_store(study):
    out = Location(f"{study['s3']}/out")
    before = out.names()
    with (
        held(out, "results"),
        pytest.raises(ClusterError, match=f"process {os.getpid()} on .* is at work"),
        held(out, "results", patience=0),
    ):
        pass
    assert out.names() == before


def test_siblings_on_an_object_store_survive_a_deletion(server):
    place = Location("s3://study").child(uuid4().hex)
    for name in ("study/a", "studyA/a", "study[AB]/a", "study*/a"):
        place.child(name).write(b"1")
    for name in ("study*", "study[AB]", "study"):
        place.child(name).delete()
    assert place.files() == {"studyA/a": 1}


def test_of_two_that_create_an_object_at_once_one_is_refused_by_the_store(server, monkeypatch):
    lock = Location("s3://study").child(uuid4().hex, "running.json")
    with monkeypatch.context() as racing:
        # Both looked before either wrote.
        racing.setattr(Location, "exists", lambda self: False)
        lock.create(b"first")
        with pytest.raises(FileExistsError):
            lock.create(b"second")
    assert lock.read() == b"first"
