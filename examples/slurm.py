"""A study on a SLURM cluster: each worker is a batch job, replaced when its time is up.

    python slurm.py BIDS_DIR OUT --queue NAME [--account NAME] [--jobs 20] [--interface ib0]

Start it on a login node or in a small job of its own, in an environment that the compute nodes see too. It needs
``pip install 'hypodask[slurm,tls]'``. ``--show`` prints the job script and submits nothing.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from dask_jobqueue import SLURMCluster
from distributed import Client, Security

import hypodask

NO_DASHBOARD = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]


def main() -> None:
    """Process the study with up to ``--jobs`` jobs at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", help="BIDS folder with T1w scans, on a disk that all nodes share")
    parser.add_argument("out", help="folder or URL for the results; run again to do only what is missing")
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--account")
    parser.add_argument("--jobs", type=int, default=20, help="most jobs at a time")
    parser.add_argument("--interface", help="network between the nodes, such as ib0; see ip link")
    parser.add_argument(
        "--shared", default=Path.home(), help="folder that all nodes see, for the certificate of the run"
    )
    parser.add_argument("--show", action="store_true", help="print the job script only")
    arguments = parser.parse_args()

    cohort = hypodask.Cohort.from_bids(arguments.bids_dir)
    wanted = min(arguments.jobs, len(cohort))
    with (
        TemporaryDirectory(prefix=".hypodask-", dir=arguments.shared) as folder,
        cluster(arguments.queue, arguments.account, arguments.interface, write_certificate(Path(folder))) as jobs,
    ):
        if arguments.show:
            print(jobs.job_script())
            return
        # Both bounds are the same, so that each job that ends is replaced until the study is done.
        jobs.adapt(minimum_jobs=wanted, maximum_jobs=wanted)
        with Client(jobs) as client:
            results = hypodask.process(cohort, arguments.out, client)
    print(results["status"].to_series().value_counts().to_string())


def cluster(queue: str | None, account: str | None, interface: str | None, certificate: Path) -> SLURMCluster:
    """One scan at a time in each job, an orderly end before the time limit, and TLS between all."""
    roles = ("scheduler", "worker", "client")
    pairs = {f"tls_{role}_{part}": str(certificate) for role in roles for part in ("cert", "key")}
    return SLURMCluster(
        queue=queue,
        account=account,
        cores=1,
        processes=1,
        memory="4GB",
        walltime="04:00:00",
        # A worker that ends by itself hands its scan to another; one that SLURM kills is counted against the scan.
        worker_extra_args=["--lifetime", "225m", "--lifetime-stagger", "10m", *NO_DASHBOARD],
        interface=interface,
        scheduler_options={"dashboard_address": "127.0.0.1:0", "allowed_failures": 0, "interface": interface},
        security=Security(tls_ca_file=str(certificate), require_encryption=True, **pairs),
    )


def write_certificate(folder: Path) -> Path:
    """A new certificate with its private key, that only this user can read."""
    made = Security.temporary()
    path = folder / "cluster.pem"
    path.touch(mode=0o600)
    path.write_text(made.tls_scheduler_cert + made.tls_scheduler_key)
    return path


if __name__ == "__main__":
    main()
