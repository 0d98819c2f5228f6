"""The command line: ``hypodask demo | run | plan | status | verify | report | forget | align | phantoms | train``.

Every command calls one or two public names and prints what a person needs to know. Exit status: 0 when all is
well, 1 when a scan is not done, an outline was left out or a file has problems, 2 when nothing could be done, 130 when
it was interrupted.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

import hypodask
from hypodask.errors import HypodaskError, ScanError

if TYPE_CHECKING:
    import xarray as xr

    from hypodask.alignment import Alignment
    from hypodask.cohort import Cohort
    from hypodask.training import Trained
    from hypodask.transforms import Kind

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Out = Annotated[str, typer.Argument(help="Folder or URL of the results.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; by default one per core.")]
BidsDir = Annotated[str, typer.Argument(help="BIDS folder or URL with T1w scans.")]
ParticipantLabel = Annotated[
    list[str] | None, typer.Option(help="Only this participant, with or without 'sub-'; may be repeated.")
]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Weights of another hypothalamus network, or `hypothalamus-seed`: ours, its outlines extended to the "
        "label protocol of Kassubek et al. 2025."
    ),
]
Unlock = Annotated[
    bool,
    typer.Option(
        "--unlock", help="First remove every lease in OUT/locks; a run that still goes on there stops before it writes."
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Also try scans again that were refused.")]


def main() -> None:
    """Entry point of the ``hypodask`` command."""
    try:
        app()
    except HypodaskError as error:
        typer.echo(_message(error), err=True)
        sys.exit(UNUSABLE)
    except OSError as error:
        # The disk or the network, and no defect of the program.
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"hypodask: {where}{error.strerror or error} ({type(error).__name__})", err=True)
        sys.exit(UNUSABLE)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say to whoever presses Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo("\n".join(["", *(f"hypodask: {note}" for note in getattr(stopped, "__notes__", ()))]), err=True)
        raise typer.Exit(INTERRUPTED) from None


def _message(error: HypodaskError) -> str:
    return "\n".join([f"hypodask: {error}", *getattr(error, "__notes__", ())])


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hypodask {hypodask.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hypothalamic and intracranial volumes of a whole study of T1-weighted head scans."""


@app.command()
def demo(
    out: Out = "hypodask-demo",
    scans: Annotated[int | None, typer.Option(min=3, help="Heads to simulate.")] = None,
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulated study.")] = 0,
) -> None:
    """Simulate a three-group study, process it and print the truth beside the estimate."""
    with _interruptible():
        results = hypodask.demo.run_demo(out, scans=scans, workers=workers, seed=seed)
    raise typer.Exit(_account(results))


@app.command()
def run(
    bids_dir: BidsDir,
    out: Out,
    participant_label: ParticipantLabel = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    model: Model = None,
    retry_failed: RetryFailed = False,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Only scans that failed before.")] = False,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that a scan may take.")] = 1800,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
    unlock: Unlock = False,
) -> None:
    """Process the T1w scans of a BIDS folder; what is done already is not done again."""
    if unlock:
        hypodask.unlock(out)
    with _interruptible():
        results = hypodask.process(
            _cohort(bids_dir, participant_label),
            out,
            client=scheduler,
            workers=workers,
            models=model,
            retry_failed=retry_failed,
            only="failed" if only_failed else None,
            time_limit=time_limit,
        )
        if report:
            typer.echo(f"report: {hypodask.report.write(results, out)}")
    raise typer.Exit(_account(results))


@app.command()
def plan(
    bids_dir: BidsDir,
    out: Out,
    participant_label: ParticipantLabel = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    model: Model = None,
    retry_failed: RetryFailed = False,
    pilot: Annotated[int, typer.Option(min=0, help="Process so many scans first, to measure time and memory.")] = 0,
) -> None:
    """Say what `run` would do, and how long it would take; starts nothing but a pilot."""
    planned = hypodask.plan(
        _cohort(bids_dir, participant_label),
        out,
        client=scheduler,
        workers=workers,
        models=model,
        retry_failed=retry_failed,
        pilot=pilot,
    )
    typer.echo(planned)


def _cohort(bids_dir: str, participant_label: list[str] | None) -> "Cohort":
    """The scans asked for; what should be known of them is said on standard error."""
    cohort = hypodask.Cohort.from_bids(bids_dir, participant_labels=participant_label)
    for note in cohort.notes:
        typer.echo(note, err=True)
    return cohort


@app.command()
def status(
    out: Out, only: Annotated[str | None, typer.Option(help="Only `done`, `failed` or `waiting` scans.")] = None
) -> None:
    """What became of every scan so far, also while a run goes on; a table of tab-separated values."""
    table = hypodask.status(out, only=only).replace(r"\s+", " ", regex=True)
    typer.echo(table.mask(table == "").to_csv(sep="\t", na_rep="n/a").rstrip())


@app.command()
def forget(
    out: Out,
    participant: Annotated[str, typer.Argument(help="Participant, or one scan.")],
    unlock: Unlock = False,
) -> None:
    """Remove a participant from stores, journal, results, tables and logs; deletes the report."""
    if unlock:
        hypodask.unlock(out)
    for scan in hypodask.forget(out, participant):
        typer.echo(f"{scan} was removed")
    typer.echo(f"Take them out of the input too. Write the report anew: hypodask report {out}")


@app.command()
def align(
    scan: Annotated[str, typer.Argument(help="T1w scan: NIfTI, MGH or DICOM; a path or a URL.")],
    landmarks: Annotated[str | None, typer.Option(help="Commissures by hand: .fcsv, .mrk.json or BIDS JSON.")] = None,
    itk: Annotated[str | None, typer.Option(help="Write the transform for ANTs, SimpleITK and 3D Slicer.")] = None,
    fsl: Annotated[str | None, typer.Option(help="Write it for FSL's flirt -applyxfm.")] = None,
    matrix: Annotated[str | None, typer.Option(help="Write acpc_from_scanner as 4 x 4 numbers, RAS+ mm.")] = None,
    image: Annotated[str | None, typer.Option(help="Write the aligned scan, 1 mm, as NIfTI.")] = None,
) -> None:
    """Find the commissures of one scan and print its pose; exit status 1 if it is not to be trusted."""
    try:
        read = hypodask.read_scan(scan)
        from_vox = read.grid.space_from_vox
        placed = hypodask.read_landmarks(landmarks, scanner_from_vox=from_vox) if landmarks else None
        alignment = hypodask.align(read, landmarks=placed)
    except ScanError as error:
        typer.echo(_message(error), err=True)
        raise typer.Exit(FAILED) from None
    kinds: dict[Kind, str | None] = {"itk": itk, "fsl": fsl, "matrix": matrix}
    for kind, path in kinds.items():
        if path:
            hypodask.save_transform(path, alignment.acpc_from_scanner, kind=kind, scan=read.grid)
    if image:
        hypodask.save_aligned(image, read, alignment.acpc_from_scanner)
    typer.echo(_pose(alignment))
    raise typer.Exit(FAILED if alignment.flagged else 0)


@app.command()
def verify(out: Out) -> None:
    """Check every file for missing or damaged parts, and results, journal and stores for agreement."""
    problems = hypodask.verify(out)
    for problem in problems:
        typer.echo(problem)
    count = "no problems" if not problems else "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    typer.echo(f"{count} in {out}")
    raise typer.Exit(FAILED if problems else 0)


@app.command()
def report(
    out: Out,
    reference: Annotated[str | None, typer.Option(help="Group that the others are compared with.")] = None,
) -> None:
    """Write the HTML report from the results alone."""
    typer.echo(f"report: {hypodask.report.write_report(out, reference=reference)}")


@app.command()
def phantoms(
    out: Annotated[str, typer.Argument(help="New BIDS folder.")],
    scans: Annotated[int, typer.Option(min=3, help="Heads to simulate.")] = 6,
    labels: Annotated[bool, typer.Option(help="Write their true outlines too, to train on.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the simulated study.")] = 0,
) -> None:
    """Simulate heads as a BIDS folder, with their outlines as a derivative."""
    hypodask.phantom.simulate_cohort(out, scans, seed=seed, workers=workers, outlines=labels)
    typer.echo(f"{scans} heads in {out}" + (f", their outlines in {out}/derivatives/outlines" if labels else ""))


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="TOML file that says what to train on, and how.")],
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Train a network on outlines of your own; goes on where an earlier call stopped."""
    _show_log()
    trained = hypodask.train(config, client=scheduler, workers=workers)
    raise typer.Exit(_account_of_training(trained) if trained else 0)


def _show_log() -> None:
    """What hypodask says while it works, on standard error; not what Dask and Orbax say."""
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("hypodask")
    logger.addHandler(shown)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _account_of_training(trained: "Trained") -> int:
    """Print how good the network is and what was left out; return the exit status."""
    for _, row in trained.left_out.iterrows():
        typer.echo(f"{row['scan']} was left out: {row['reason']}")
    for _, row in trained.agreement.iterrows():
        typer.echo(
            f"{row['structure']}: Dice {trained.mean_dice(row['structure']):.3f}, volume {row['bias_percent']:+.1f} % "
            f"with SD {row['sd_percent']:.1f} %, ICC {row['icc']:.2f}, {row['scans']} held-out scans"
        )
    typer.echo(f"weights: {trained.weights}")
    return FAILED if len(trained.left_out) else 0


def _pose(alignment: "Alignment") -> str:
    """The pose of a head as a person reads it."""
    ac, pc = (" ".join(f"{x:8.2f}" for x in place) for place in (alignment.ac_mm, alignment.pc_mm))
    pitch, roll, yaw = hypodask.angles_deg(alignment.acpc_from_scanner)
    lines = [
        f"AC     {ac}  mm, scanner RAS+",
        f"PC     {pc}  mm, {alignment.acpc_distance_mm:.2f} mm from AC",
        f"angles {pitch:8.2f} {roll:8.2f} {yaw:8.2f}  degrees: pitch (nose up), roll (to the right), yaw (to the left)",
        f"source {alignment.source}, score {alignment.score:.2f}" + (", FLAGGED" if alignment.flagged else ""),
    ]
    return "\n".join([*lines, *alignment.warnings])


def _account(results: "xr.Dataset") -> int:
    """Print what became of every scan; return the exit status."""
    status = results["status"].to_numpy().astype(str)
    counts = {name: int((status == name).sum()) for name in ("done", "failed", "skipped")}
    for scan in results["scan"].to_numpy()[status == "failed"]:
        one = results.sel(scan=scan)
        typer.echo(f"{scan} failed at {one.stage.item()}: {one.reason.item()}")
    typer.echo(f"{len(status)} scans: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    return 0 if counts["done"] == len(status) else FAILED
