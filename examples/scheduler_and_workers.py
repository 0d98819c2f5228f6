"""A Dask scheduler and workers as processes of their own, with TLS, all on this machine.

    python scheduler_and_workers.py BIDS_DIR OUT [--workers 2]

On several machines the commands are the same: start the scheduler on one of them with its own address as ``--host``,
copy ``cluster.pem`` to all machines, start workers on them, and run the three lines of ``main`` anywhere.
It needs ``pip install 'hypodask[tls]'``.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed import Client, Security

import hypodask

ONLY_HERE = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
"""Without these Dask listens on every network of the machine; without a dashboard there is still a health page."""


def main() -> None:
    """Start a cluster, process the study on it, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", help="BIDS folder with T1w scans")
    parser.add_argument("out", help="folder or URL for the results; run again to do only what is missing")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, each for one scan at a time")
    arguments = parser.parse_args()

    cohort = hypodask.Cohort.from_bids(arguments.bids_dir)
    with TemporaryDirectory() as folder, cluster(Path(folder), arguments.workers) as client:
        results = hypodask.process(cohort, arguments.out, client)
    print(results["status"].to_series().value_counts().to_string())


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Client]:
    """A scheduler and workers that talk only to whoever has the certificate in ``folder``."""
    certificate = write_certificate(folder)
    tls = [f"--tls-{part}={certificate}" for part in ("ca-file", "cert", "key")]
    meeting_point = ["--scheduler-file", str(folder / "scheduler.json")]
    with ExitStack() as running:
        start(running, "scheduler", "--port", "0", "--protocol", "tls", *meeting_point, *ONLY_HERE, *tls)
        for _ in range(workers):
            start(running, "worker", "--nthreads", "1", *meeting_point, *ONLY_HERE, *tls)
        security = security_of(certificate)
        client = running.enter_context(Client(scheduler_file=meeting_point[1], security=security, set_as_default=False))
        client.wait_for_workers(workers, timeout=120)
        yield client


def write_certificate(folder: Path) -> Path:
    """A new certificate with its private key, valid for a year, that only this user can read."""
    made = Security.temporary()
    path = folder / "cluster.pem"
    path.touch(mode=0o600)
    path.write_text(made.tls_scheduler_cert + made.tls_scheduler_key)
    return path


def security_of(certificate: Path) -> Security:
    """What a client needs to be let in."""
    whole = str(certificate)
    return Security(tls_ca_file=whole, tls_client_cert=whole, tls_client_key=whole, require_encryption=True)


def start(running: ExitStack, *command: str) -> None:
    """Start ``dask scheduler`` or ``dask worker``, to be stopped at the end."""
    process = running.enter_context(subprocess.Popen([sys.executable, "-m", "dask", *command]))  # noqa: S603
    running.callback(process.terminate)


# Workers are new processes, which may import this file again: only the first may run main().
if __name__ == "__main__":
    main()
