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
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from hypodask.cluster import process
from hypodask.cohort import Cohort
from hypodask.dataset import open_results, verify
from hypodask.errors import ClusterError
from hypodask.journal import sole_writer
from hypodask.labels import ICV
from hypodask.location import Location
from hypodask.row import Row
from hypodask.scan import read_scan
from hypodask.store import mark_done, read_label_map, read_stored_scan, write_label_map, write_scan

SCANS = 2
START_SECONDS = 60


def treat(path: str, *, scan: str, out: str, store: str, models: object) -> Row:
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
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def study(server: str, tmp_path: Path, head_file: Callable[..., Path]) -> tuple[str, str]:
    """The same BIDS folder twice: in a folder, and in the object store."""
    folder, bucket = tmp_path / "bids", f"s3://study/{uuid4().hex}/bids"
    for number in range(SCANS):
        participant = f"sub-{number:02d}"
        head_file(f"{participant}_T1w.nii.gz", folder=folder / participant / "anat", seed=number)
    participants = pd.DataFrame(
        {"participant_id": [f"sub-{n:02d}" for n in range(SCANS)], "age": range(60, 60 + SCANS)}
    )
    participants.to_csv(folder / "participants.tsv", sep="\t", index=False)
    fsspec.filesystem("s3").put(str(folder), bucket, recursive=True)
    return str(folder), bucket


def run(client: Client, bids: str, out: str) -> xr.Dataset:
    return process(Cohort.from_bids(bids), out, client, progress=False, treat=treat, load=None)


def results_of(bids: str) -> str:
    return f"{bids.removesuffix('/bids')}/out"


def test_a_study_on_an_object_store_gives_the_table_of_the_same_study_in_a_folder(client, study):
    local, remote = (run(client, bids, results_of(bids)) for bids in study)
    assert local["status"].to_numpy().tolist() == ["done"] * SCANS
    assert len(set(local["volume_mm3"].sel(structure="icv").to_numpy())) == SCANS
    assert [path.startswith("s3://study/") for path in remote["path"].to_numpy()] == [True] * SCANS
    xr.testing.assert_identical(remote.drop_vars("path"), local.drop_vars("path"))
    folder, bucket = map(results_of, study)
    xr.testing.assert_identical(open_results(bucket), remote)
    assert Location(bucket).child("volumes.json").read() == Location(folder).child("volumes.json").read()
    for store in remote["store"].to_numpy():
        np.testing.assert_array_equal(*(read_stored_scan(f"{out}/{store}").stored for out in (folder, bucket)))
        np.testing.assert_array_equal(*(read_label_map(f"{out}/{store}", "icv_scan")[0] for out in (folder, bucket)))


def test_a_second_call_on_an_object_store_does_nothing_and_what_is_lost_is_told_and_made_anew(client, study):
    bids, out = study[1], results_of(study[1])
    first = run(client, bids, out)
    assert calls(out) == {f"sub-{number:02d}": 1 for number in range(SCANS)}
    assert verify(out) == []
    before = {name: size for name, size in Location(out).files().items() if name.startswith("results")}
    xr.testing.assert_identical(run(client, bids, out), first)
    assert sum(calls(out).values()) == SCANS
    assert {name: size for name, size in Location(out).files().items() if name.startswith("results")} == before

    chunk = next(name for name in Location(out).files() if "sub-01" in name and "labels/icv_scan/0/c" in name)
    Location(out).child(chunk).delete()
    problems = verify(out, digests=False)
    assert problems
    assert all(problem.startswith("sub-01: ") for problem in problems)
    assert any("labels/icv_scan/0/c/0/0/0 is missing" in problem for problem in problems)

    Location(out).child(first["store"].sel(scan="sub-01").item(), "done.json").delete()
    xr.testing.assert_identical(run(client, bids, out), first)
    assert calls(out)["sub-01"] == 2
    assert sum(calls(out).values()) == SCANS + 1
    assert verify(out) == []


def test_a_second_client_is_refused_on_an_object_store(client, study):
    out = results_of(study[1])
    with sole_writer(out), pytest.raises(ClusterError, match=f"process {os.getpid()} on .* has been writing here"):
        run(client, study[1], out)
    assert Location(out).names() == []


def test_of_two_that_create_an_object_at_once_one_is_refused_by_the_store(server, monkeypatch):
    lock = Location("s3://study").child(uuid4().hex, "running.json")
    with monkeypatch.context() as racing:
        # Both looked before either wrote.
        racing.setattr(Location, "exists", lambda self: False)
        lock.create(b"first")
        with pytest.raises(FileExistsError):
            lock.create(b"second")
    assert lock.read() == b"first"
