"""The example of each place where hypodask runs: started for real on loopback, or its configuration checked."""

import asyncio
import inspect
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from distributed import Client, Security
from distributed.comm.core import connect

from hypodask.cluster.processing import _process
from hypodask.core.errors import ClusterError
from hypodask.core.row import Row
from hypodask.study.cohort import Cohort

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> dict[str, Any]:
    """The names that an example defines, as if it were imported."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def stand_in(path: str, *, scan: str, out: str, store: str, models: object, stamp: str) -> Row:
    """A stand-in for the pipeline: who did it."""
    return Row(scan, "done", volume_mm3={"icv": 1.5e6}, warnings=str(os.getpid()))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    paths = [tmp_path / f"sub-{number}_T1w.nii" for number in range(4)]
    for path in paths:
        path.touch()
    return Cohort(pd.DataFrame({"scan": [path.stem for path in paths], "path": [str(path) for path in paths]}))


def listening(process_: psutil.Process) -> set[str]:
    """Addresses at which a process and those it started take connections."""
    family = [process_, *process_.children(recursive=True)]
    found = [connection for one in family for connection in one.net_connections("inet")]
    return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificate of the cluster is."""
    return tmp_path_factory.mktemp("certificate") / "cluster.pem"


@pytest.fixture(scope="module")
def encrypted(certificate: Path) -> Iterator[Client]:
    """Scheduler and worker that were started by hand, with TLS."""
    known = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patched:
        # Workers that are started from a command line find this file as well.
        patched.setenv("PYTHONPATH", os.pathsep.join(filter(None, known)))
        with example("scheduler_and_workers")["cluster"](certificate.parent, 1) as client:
            yield client


def test_scheduler_and_workers_talk_tls_on_loopback(encrypted, certificate, cohort, tmp_path):
    assert encrypted.scheduler.address.startswith("tls://127.0.0.1:")
    assert certificate.stat().st_mode & 0o077 == 0
    assert listening(psutil.Process()) == {"127.0.0.1"}
    results = _process(cohort, str(tmp_path / "out"), encrypted, progress=False, method=stand_in, load=None)
    assert results["status"].to_numpy().tolist() == ["done"] * 4
    assert str(os.getpid()) not in results["warnings"].to_numpy()


def test_who_lacks_the_certificate_is_turned_away(encrypted, cohort, tmp_path):
    places, address = example("scheduler_and_workers"), encrypted.scheduler.address
    stranger = places["security_of"](places["write_certificate"](tmp_path))
    for at, known in ((address, stranger), (address, Security()), (address.replace("tls://", "tcp://"), Security())):
        with pytest.raises((OSError, TypeError)):
            asyncio.run(connect(at, timeout=10, **known.get_connection_args("client")))
    with pytest.raises(ClusterError, match="name the files of its certificate by DASK_DISTRIBUTED__COMM__TLS__CA_FILE"):
        _process(cohort, str(tmp_path / "out"), address, progress=False, method=stand_in, load=None)


def test_the_command_line_is_let_in_by_the_certificate_that_dasks_variables_name(encrypted, certificate, tmp_path):
    scan = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.touch()
    parts = ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
    named = {f"DASK_DISTRIBUTED__COMM__TLS__{part}": str(certificate) for part in parts}
    command = ["run", str(tmp_path), str(tmp_path / "out"), "--scheduler", encrypted.scheduler.address, "--no-report"]
    main = [sys.executable, "-c", "from hypodask.cli import main; main()"]
    ended = subprocess.run([*main, *command], env=os.environ | named, capture_output=True, text=True)
    # The method itself was run, on a file that is no scan.
    assert (ended.returncode, ended.stderr.count("Error")) == (1, 0)
    assert "sub-01 failed at read" in ended.stdout
    assert "is empty" in ended.stdout


def test_each_gpu_has_a_worker_of_its_own_whose_device_was_set_before_it_started(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # No device at all, so that this says the same on machines with and without one.
    with example("gpu_workers")["cluster"]([""]) as client:
        for name, value in {
            "CUDA_VISIBLE_DEVICES": "",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
            # What Dask sets by itself is there too.
            "OMP_NUM_THREADS": "1",
        }.items():
            assert list(client.run(os.getenv, name).values()) == [value], name
        (worker,) = client.scheduler_info()["workers"].values()
        assert (worker["nthreads"], worker["resources"]) == (1, {"GPU": 1.0})
        assert listening(psutil.Process()) == {"127.0.0.1"}


def test_the_slurm_job_starts_one_worker_with_tls_that_ends_before_its_time(tmp_path):
    slurm = example("slurm")
    certificate = slurm["write_certificate"](tmp_path)
    with slurm["cluster"]("long", "study", "lo", certificate) as jobs:
        script = jobs.job_script()
    asked = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert {"-p long", "-A study", "-n 1", "--cpus-per-task=1", "--mem=4G", "-t 04:00:00"} <= asked
    command = script.split("distributed.cli.dask_worker ")[1].split()
    options = dict(pairwise(command))
    assert command[0].startswith("tls://127.0.0.1:")
    assert (options["--nthreads"], options["--interface"], options["--protocol"]) == ("1", "lo", "tls://")
    # The latest end of a worker, in minutes, against the four hours of its job.
    assert sum(int(options[name].rstrip("m")) for name in ("--lifetime", "--lifetime-stagger")) < 240
    assert {options[f"--tls-{part}"] for part in ("ca-file", "cert", "key")} == {str(certificate)}
    assert certificate.stat().st_mode & 0o077 == 0


def test_the_kubernetes_cluster_takes_credentials_from_a_secret_and_is_not_open_to_the_world():
    pytest.importorskip("dask_kubernetes")
    spec = example("on_kubernetes")["cluster_spec"]("registry/hypodask:1", "store", 3)
    assert (spec["kind"], spec["spec"]["worker"]["replicas"]) == ("DaskCluster", 3)
    assert spec["spec"]["scheduler"]["service"]["type"] == "ClusterIP"
    (worker,) = spec["spec"]["worker"]["spec"]["containers"]
    assert worker["image"] == "registry/hypodask:1"
    assert worker["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert worker["args"][-2:] == ["--nthreads", "1"]
    assert worker["resources"]["limits"] == {"memory": "4Gi"}


# What these packages warn of as they are imported is theirs.
@pytest.mark.filterwarnings("default")
def test_the_options_of_the_clouds_are_ones_they_know():
    coiled = pytest.importorskip("coiled")
    aws = pytest.importorskip("dask_cloudprovider.aws")
    cloud = example("cloud")
    assert set(cloud["coiled_options"]("eu-central-1", 3)) <= parameters(coiled.Cluster)
    options = cloud["ec2_options"](3, "registry/hypodask:1", "bucket-reader")
    assert {"region", "security_groups", *options} <= {
        name for base in aws.EC2Cluster.__mro__ for name in parameters(base)
    }


def parameters(kind: type) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters)
