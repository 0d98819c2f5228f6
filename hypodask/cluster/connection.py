"""A client of the user's cluster, or of workers that are started on this machine."""

import ast
import asyncio
import inspect
import logging
import multiprocessing.process
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import dask.config
from dask.system import CPU_COUNT
from distributed import Client, Future, LocalCluster, Security
from distributed.comm.core import connect
from distributed.system import MEMORY_LIMIT
from distributed.utils import LoopRunner

from hypodask.core.errors import ClusterError

AnyCluster = Client | str | None
"""How users say where to run: a client of Dask, the address of a scheduler, or nothing."""

_Value = TypeVar("_Value")

_WORKER_BYTES = 3 * 2**30
"""Memory for one worker; an estimate, not a measurement."""

_ALLOWED_DEATHS = 0
"""If a worker dies, each of its scans is set aside at once, and tried alone later."""

LOST_WORKER = "distributed.deploy.lost-worker-timeout"

RESTART_SECONDS = 600
"""How long a worker on this machine may take to restart before Dask gives it up. A new process has to import JAX, which
takes longer than Dask's own 15 seconds on a busy machine or a slow disk. Without workers a run would wait for ever."""

_CONNECT_SECONDS = 30
"""How long a scheduler may take to accept a connection, and again to answer."""

_ADDRESS_ADVICE = "give the address that `dask scheduler` printed, such as tcp://10.0.0.1:8786 or tls://10.0.0.1:8786"

_CERTIFICATE_ADVICE = (
    "name the files of its certificate by DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY, "
    "and see that the scheduler is there"
)


_UNGUARDED = (
    'the script {script} calls hypodask outside of `if __name__ == "__main__":`; workers on this machine are new '
    "processes that import the script, so it would start itself again in each of them: put what the script does under "
    "that line, as in the README, or give client= a cluster that is running"
)


_NOT_STARTED = (
    "workers could not be started on this machine ({cause!r}). They are new processes that import the script which "
    "called hypodask: see that nothing in it ends or fails as it is imported, and that what it does is under "
    '`if __name__ == "__main__":`, as in the README'
)


def has_client() -> bool:
    """Whether there is a current client of Dask."""
    with suppress(ValueError):
        Client.current()
        return True
    return False


def refuse_unguarded_script() -> None:
    """Stop a script that would start itself again in each of its workers, before anything is started or written.

    Raises
    ------
    ClusterError
        If this process is such a worker, or if this script would start such workers.
    """
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise ClusterError(_UNGUARDED.format(script=script or "that started this process"))
    module = getattr(getattr(main, "__spec__", None), "name", "")
    # New processes import neither code that was typed in nor the __main__.py of a package.
    if script is None or module.endswith("__main__"):
        return
    if not module and not Path(script).exists():
        raise ClusterError(
            f"what runs here was read from {script}, and workers on this machine are new processes that have to import "
            "it: save the script as a file, or give client= a cluster that is running"
        )
    line = _line_of_main(script)
    if line and not _is_guarded(script, line):
        raise ClusterError(_UNGUARDED.format(script=script))


def _line_of_main(script: str) -> int:
    """The line of a script, outside of all functions, from which this was called; 0 if there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        is_body = frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"
        if is_body and Path(frame.f_code.co_filename).absolute() == Path(script).absolute():
            return frame.f_lineno
        frame = frame.f_back
    return 0


def _is_guarded(script: str, line: int) -> bool:
    """Whether a line is below or after a test of ``__name__``, so that it does not run when the script is imported."""
    try:
        body = ast.parse(Path(script).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return True
    kinds = (ast.If, ast.IfExp, ast.BoolOp, ast.While, ast.Match)
    tests = [one for one in ast.walk(ast.Module(body, [])) if isinstance(one, kinds) and one.lineno <= line]
    known = {"__name__", "current_process"}
    return any(
        (isinstance(one, ast.Name) and one.id in known) or (isinstance(one, ast.Attribute) and one.attr in known)
        for test in tests
        for one in ast.walk(test)
    )


@contextmanager
def reached_cluster(client: AnyCluster, workers: int | None, jobs: int) -> Iterator[tuple[Client, int]]:
    """A client, and how many workers were started on this machine for it (0 on a cluster of the user)."""
    if isinstance(client, str):
        with _reached(client) as found:
            yield found, 0
        return
    with suppress(ValueError):
        client = client or Client.current()
    if client is not None:
        yield client, 0
        return
    refuse_unguarded_script()
    count = workers_here(jobs, workers)
    with _started(count) as cluster, Client(cluster) as own:
        yield own, count


@contextmanager
def _started(count: int) -> Iterator[LocalCluster]:
    """Workers on this machine, each of them a process."""
    # JAX can deadlock in forked processes. And the first of several processes would take nearly all memory of a GPU.
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn", LOST_WORKER: RESTART_SECONDS}):
        try:
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False, "allowed_failures": _ALLOWED_DEATHS},
                silence_logs=logging.CRITICAL,
                env={"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")},
            )
        except RuntimeError as err:
            raise ClusterError(_NOT_STARTED.format(cause=_first_cause(err))) from None
        with cluster:
            yield cluster


def _first_cause(error: BaseException) -> BaseException:
    """The first error in a chain of errors; each layer of Dask wraps the error of the one below."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def workers_here(jobs: int, workers: int | None) -> int:
    """How many workers are started on this machine."""
    return min(jobs, workers or max(1, min(CPU_COUNT, MEMORY_LIMIT // _WORKER_BYTES)))


@contextmanager
def _reached(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address."""
    try:
        # A client that fails to connect stays half open, and may block for ever when it is garbage-collected.
        LoopRunner().run_sync(_knock, address)
        client = Client(address, timeout=_CONNECT_SECONDS)
    # Dask raises a TypeError if it knows no certificate.
    except (OSError, TypeError, ValueError) as err:
        advice = _CERTIFICATE_ADVICE if address.startswith("tls://") else _ADDRESS_ADVICE
        said = str(err) or type(err).__name__
        raise ClusterError(f"no Dask scheduler answers at {address!r} ({said}); {advice}") from err
    with client:
        yield client


async def _knock(address: str) -> None:
    """Connect as a client would, and disconnect; fails in bounded time if a client would fail."""
    certificate = Security().get_connection_args("client")
    # Dask's own limit is for the connection, not for the first message.
    greeted = connect(address, timeout=_CONNECT_SECONDS, **certificate)
    (await asyncio.wait_for(greeted, 2 * _CONNECT_SECONDS)).abort()


def workers_of(client: Client, having: str | None = None) -> dict[str, int]:
    """Threads of every worker, or of every worker that has a resource, by the address of the worker."""
    try:
        if having is None:
            return {str(address): int(threads) for address, threads in client.nthreads().items()}
        known = client.scheduler_info(n_workers=-1)["workers"]
    except (OSError, TimeoutError) as err:
        raise ClusterError(f"the scheduler is gone ({err}); make the same call again to go on") from err
    return {str(address): int(one["nthreads"]) for address, one in known.items() if having in one["resources"]}


def resource_for_scans(client: Client) -> str | None:
    """Dask resource that a worker must have to process scans, or None if any worker will do.

    It is ``CPU`` if the cluster has workers with the resource ``CPU`` and others with the resource ``GPU``, which then
    run the networks. This asks the scheduler, and raises ``ClusterError`` if it is gone.
    """
    return "CPU" if workers_of(client, "GPU") and workers_of(client, "CPU") else None


def submit(
    client: Client, on: str | None, function: Callable[..., _Value], *args: Any, **options: Any
) -> "Future[_Value]":
    """Submit a call to a worker that has the resource ``on``; ``None``: to any worker."""
    needs = {} if on is None else {"resources": {on: 1}}
    return client.submit(function, *args, pure=False, **needs, **options)
