"""The command line: ``hypodask demo | run | plan | status | verify | report | forget | align | phantoms | train``.

Every command calls one or two public functions and prints what a person needs to know. Exit status: 0 if everything is
done, 1 if a scan is not done, a label map was left out or a file has problems, 2 if nothing could be done, 130 if the
command was interrupted.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

import hypodask
from hypodask.core.errors import HypodaskError, ScanError
from hypodask.core.structures import HYPOTHALAMUS_SEED, MAIN

_FAILED, _UNUSABLE, _INTERRUPTED = 1, 2, 130

_app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_Out = Annotated[str, typer.Argument(help="Folder or URL of the results.")]
_Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; by default one per core.")]
_BidsDir = Annotated[str, typer.Argument(help="BIDS folder or URL with T1w scans.")]
_ParticipantLabel = Annotated[
    list[str] | None, typer.Option(help="Only this participant, with or without 'sub-'; may be repeated.")
]
_Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")]
_Model = Annotated[
    str | None,
    typer.Option(
        help=f"Weights of another {MAIN.name} network, or `{MAIN.name}-{HYPOTHALAMUS_SEED.protocol}`: the network of "
        "hypodask, its segmentation extended to the label protocol of Kassubek et al. 2025."
    ),
]
_Unlock = Annotated[
    bool,
    typer.Option(
        "--unlock", help="First remove every lease in OUT/locks; a run that still goes on there stops before it writes."
    ),
]
_RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Also try scans again that were refused.")]


def main() -> None:
    """Entry point of the ``hypodask`` command."""
    try:
        _app()
    except HypodaskError as error:
        typer.echo(_message(error), err=True)
        sys.exit(_UNUSABLE)
    except OSError as error:
        # An error of the disk or the network, not of the program.
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"hypodask: {where}{error.strerror or error} ({type(error).__name__})", err=True)
        sys.exit(_UNUSABLE)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Tell a user who presses Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo("\n".join(["", *(f"hypodask: {note}" for note in getattr(stopped, "__notes__", ()))]), err=True)
        raise typer.Exit(_INTERRUPTED) from None


def _message(error: HypodaskError) -> str:
    return "\n".join([f"hypodask: {error}", *getattr(error, "__notes__", ())])


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"hypodask {hypodask.__version__}")
        raise typer.Exit
    return asked


@_app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hypothalamic and intracranial volumes of a whole study of T1-weighted head scans."""


@_app.command()
def demo(
    out: _Out = "hypodask-demo",
    scans: Annotated[int | None, typer.Option(min=3, help="Scans to simulate.")] = None,
    workers: _Workers = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulated study.")] = 0,
) -> None:
    """Simulate a three-group study, process it and print the truth beside the estimate."""
    with _interruptible():
        results = hypodask.demo.run_demo(out, scans=scans, workers=workers, seed=seed)
    raise typer.Exit(_print_outcome(results))


@dataclass(frozen=True)
class _Study:
    """The arguments that ``run`` and ``plan`` share."""

    bids_dir: _BidsDir
    out: _Out
    participant_label: _ParticipantLabel = None
    workers: _Workers = None
    scheduler: _Scheduler = None
    model: _Model = None
    retry_failed: _RetryFailed = False

    def arguments(self) -> dict[str, Any]:
        """Arguments of ``hypodask.process`` and ``hypodask.plan``; notes about the cohort go to standard error."""
        cohort = hypodask.Cohort.from_bids(self.bids_dir, participant_labels=self.participant_label)
        for note in cohort.notes:
            typer.echo(note, err=True)
        options = {"client": self.scheduler, "workers": self.workers, "models": self.model}
        return {"cohort": cohort, "url": self.out, "retry_failed": self.retry_failed, **options}


def _of_a_study(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a :class:`_Study`; on the command line its fields take that place."""
    shared = inspect.signature(_Study).parameters
    own = list(inspect.signature(command).parameters.values())[1:]

    def with_study(**given: Any) -> None:
        command(_Study(**{name: given.pop(name) for name in shared}), **given)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*shared.values(), *own)]
    with_study.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_study.__annotations__ = {one.name: one.annotation for one in parameters}
    with_study.__name__, with_study.__doc__ = command.__name__, command.__doc__
    return with_study


@_app.command()
@_of_a_study
def run(
    study: _Study,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Only scans that failed before.")] = False,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that a scan may take.")] = 1800,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
    unlock: _Unlock = False,
) -> None:
    """Process the T1w scans of a BIDS folder; what is done already is not done again."""
    if unlock:
        hypodask.unlock(study.out)
    with _interruptible():
        only: Literal["failed"] | None = "failed" if only_failed else None
        results = hypodask.process(**study.arguments(), only=only, time_limit=time_limit)
        if report:
            typer.echo(f"report: {hypodask.report.write_report(study.out)}")
    raise typer.Exit(_print_outcome(results))


@_app.command()
@_of_a_study
def plan(
    study: _Study,
    pilot: Annotated[int, typer.Option(min=0, help="Process so many scans first, to measure time and memory.")] = 0,
) -> None:
    """Say what `run` would do, and how long it would take; starts nothing but a pilot."""
    typer.echo(hypodask.plan(**study.arguments(), pilot=pilot))


@_app.command()
def status(
    out: _Out, only: Annotated[str | None, typer.Option(help="Only `done`, `failed` or `waiting` scans.")] = None
) -> None:
    """Show the status of every scan, also while a run goes on; a table of tab-separated values."""
    table = hypodask.status(out, only=only).replace(r"\s+", " ", regex=True)
    typer.echo(table.mask(table == "").to_csv(sep="\t", na_rep="n/a").rstrip())


@_app.command()
def forget(
    out: _Out,
    participant: Annotated[str, typer.Argument(help="Participant, or one scan.")],
    unlock: _Unlock = False,
) -> None:
    """Remove a participant from stores, journal, results, tables and logs; deletes the report."""
    if unlock:
        hypodask.unlock(out)
    for scan in hypodask.forget(out, participant):
        typer.echo(f"{scan} was removed")
    typer.echo(f"Take them out of the input too. Write the report anew: hypodask report {out}")


@_app.command()
def align(
    scan: Annotated[str, typer.Argument(help="T1w scan: NIfTI, MGH or DICOM; a path or a URL.")],
    landmarks: Annotated[str | None, typer.Option(help="Commissures by hand: .fcsv, .mrk.json or BIDS JSON.")] = None,
    itk: Annotated[str | None, typer.Option(help="Write the transform for ANTs, SimpleITK and 3D Slicer.")] = None,
    fsl: Annotated[str | None, typer.Option(help="Write it for FSL's flirt -applyxfm.")] = None,
    matrix: Annotated[str | None, typer.Option(help="Write acpc_from_scanner as 4 x 4 numbers, RAS+ mm.")] = None,
    image: Annotated[str | None, typer.Option(help="Write the aligned scan, 1 mm, as NIfTI.")] = None,
) -> None:
    """Find the commissures of one scan and print its pose; exit status 1 if it cannot be trusted."""
    try:
        read = hypodask.read_scan(scan)
        from_vox = read.grid.space_from_vox
        placed = hypodask.read_landmarks(landmarks, scanner_from_vox=from_vox) if landmarks else None
        alignment = hypodask.align(read, landmarks=placed)
    except ScanError as error:
        typer.echo(_message(error), err=True)
        raise typer.Exit(_FAILED) from None
    kinds: dict[Literal["itk", "fsl", "matrix"], str | None] = {"itk": itk, "fsl": fsl, "matrix": matrix}
    for kind, path in kinds.items():
        if path:
            hypodask.save_transform(path, alignment.acpc_from_scanner, kind=kind, scan=read.grid)
    if image:
        hypodask.save_aligned(image, read, alignment.acpc_from_scanner)
    typer.echo(_pose(alignment))
    raise typer.Exit(_FAILED if alignment.flagged else 0)


@_app.command()
def verify(out: _Out) -> None:
    """Check every file for missing or damaged parts, and results, journal and stores for agreement."""
    problems = hypodask.verify(out)
    for problem in problems:
        typer.echo(problem)
    count = "no problems" if not problems else "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    typer.echo(f"{count} in {out}")
    raise typer.Exit(_FAILED if problems else 0)


@_app.command()
def report(
    out: _Out,
    reference: Annotated[str | None, typer.Option(help="Group that the others are compared with.")] = None,
) -> None:
    """Write the HTML report from the results alone."""
    typer.echo(f"report: {hypodask.report.write_report(out, reference=reference)}")


@_app.command()
def phantoms(
    out: Annotated[str, typer.Argument(help="New BIDS folder.")],
    scans: Annotated[int, typer.Option(min=3, help="Scans to simulate.")] = 6,
    labels: Annotated[bool, typer.Option(help="Write their true label maps too, to train on.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the simulated study.")] = 0,
) -> None:
    """Simulate head scans as a BIDS folder, with their true label maps as a derivative."""
    hypodask.phantom.simulate_cohort(out, scans, seed=seed, workers=workers, outlines=labels)
    typer.echo(f"{scans} scans in {out}" + (f", their label maps in {out}/derivatives/outlines" if labels else ""))


@_app.command()
def train(
    config: Annotated[str, typer.Argument(help="TOML file that says what to train on, and how.")],
    workers: _Workers = None,
    scheduler: _Scheduler = None,
) -> None:
    """Train a network on your own manual label maps; goes on where an earlier call stopped."""
    _show_log()
    trained = hypodask.train(config, client=scheduler, workers=workers)
    raise typer.Exit(_print_training(trained))


def _show_log() -> None:
    """Show the log of hypodask on standard error, without that of Dask and Orbax."""
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("hypodask")
    logger.addHandler(shown)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _print_training(trained: Any) -> int:
    """Print how good a trained network is and what was left out; the exit status."""
    for _, row in trained.left_out.iterrows():
        typer.echo(f"{row['scan']} was left out: {row['reason']}")
    for _, row in trained.agreement.iterrows():
        typer.echo(
            f"{row['structure']}: Dice {trained.mean_dice(row['structure']):.3f}, volume {row['bias_percent']:+.1f} % "
            f"with SD {row['sd_percent']:.1f} %, ICC {row['icc']:.2f}, {row['scans']} held-out scans"
        )
    typer.echo(f"weights: {trained.weights}")
    return _FAILED if len(trained.left_out) else 0


def _pose(alignment: "hypodask.Alignment") -> str:
    """The pose of a scan as text."""
    ac, pc = (" ".join(f"{x:8.2f}" for x in place) for place in (alignment.ac_mm, alignment.pc_mm))
    pitch, roll, yaw = hypodask.angles_deg(alignment.acpc_from_scanner)
    lines = [
        f"AC     {ac}  mm, scanner RAS+",
        f"PC     {pc}  mm, {alignment.acpc_distance_mm:.2f} mm from AC",
        f"angles {pitch:8.2f} {roll:8.2f} {yaw:8.2f}  degrees: pitch (nose up), roll (to the right), yaw (to the left)",
        f"source {alignment.source}, score {alignment.score:.2f}" + (", FLAGGED" if alignment.flagged else ""),
    ]
    return "\n".join([*lines, *alignment.warnings])


def _print_outcome(results: Any) -> int:
    """Print the outcome of every scan; the exit status. Types of xarray would make the command line start slowly."""
    status = results["status"].to_numpy().astype(str)
    counts = {name: int((status == name).sum()) for name in ("done", "failed", "skipped")}
    for scan in results["scan"].to_numpy()[status == "failed"]:
        one = results.sel(scan=scan)
        typer.echo(f"{scan} failed at {one.stage.item()}: {one.reason.item()}")
    typer.echo(f"{len(status)} scans: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    return 0 if counts["done"] == len(status) else _FAILED
