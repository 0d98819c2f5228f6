"""A whole scan by hypodask, and by the chain of programs that it replaces: antspyx, SimpleITK and PyTorch.

::

    pip install antspyx SimpleITK torch
    python -m benchmarks.validation.chain DATA OUT [--rounds 3] [--scans 3] [--only networks whole-scans]

DATA is the folder of validation scans (``scans/``, ``template/``, ``landmarks/``). Both do the same on one core, one
after the other on every scan, in rounds: read the file, find the AC-PC pose, resample, run the shipped networks with
their own weights, carry the outlines back to the scan and write them. The chain registers a template affinely and
carries its landmarks over, resamples by B-splines of ITK, and runs the networks in PyTorch; it does not look at the
border of the cavity, keeps no store, and judges nothing, which hypodask does. Each takes every scan once before clocks
start, so that all is compiled.

``OUT/chain.tsv`` has a row for every run and stage, ``OUT/chain_summary.tsv`` the medians and their ratio. What both
make of the same images is compared too: posteriors must be alike within 0.01.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# One core each, which is settled when they are imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy import ndarray

import hypodask
from benchmarks.validation import ants_peer, torch_peer
from benchmarks.validation.posing import COLIN
from benchmarks.validation.results import add_record_option, write_results
from benchmarks.validation.scoring import Clock, markdown
from hypodask.core.grid import Grid
from hypodask.image.intensity import SCALINGS
from hypodask.pipeline import load_models
from hypodask.segmentation.icv_border import BoundaryNetwork
from hypodask.segmentation.network import FINE_MM, Ensemble, mirrored_channels, neighbours

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

OURS, CHAIN = "hypodask", "antspyx + SimpleITK + PyTorch"
WHOLE = "whole scan"
INFERENCE, CAVITY = "network of the hypothalamus, alone", "network of the cavity, alone"

ALIKE = 0.01
"""Posteriors of both, at most so far apart: they differ in the order of sums only."""


class Chain:
    """The chain, with the networks loaded."""

    def __init__(self, data: Path) -> None:
        torch_peer.one_thread()
        self.data = data
        hypothalamus, cavity = load_models()
        assert isinstance(hypothalamus, Ensemble)
        assert isinstance(cavity, BoundaryNetwork)
        self.hypothalamus, self.cavity = hypothalamus, cavity.coarse
        self.of_members = [torch_peer.slice_predictor(member) for member in hypothalamus.members]  # type: ignore[arg-type]
        self.of_cavity = torch_peer.volume_predictor(self.cavity.members[0])  # type: ignore[arg-type]

    def process(self, path: Path, out: Path, seconds: dict[str, float]) -> None:
        """One scan, from file to files, with the seconds of every stage."""
        scan = _timed(seconds, "read", lambda: _read(path))
        # As a pose of Colin27 is: registered to MNI152 2009c, which is none of the scans.
        pose = _timed(seconds, "align", lambda: ants_peer.find_commissures(scan, self.data, COLIN, 0)[2])
        image = _itk(scan.data, scan.grid)
        for network, run in ((self.hypothalamus, self.outlined), (self.cavity, self.filled)):
            seen = _timed(seconds, "resample", partial(self.resampled, image, network, pose))
            inside = _timed(seconds, f"segment {network.task}", partial(run, seen))
            _timed(seconds, "write", partial(_write, inside, network, pose, image, out / f"{network.task}.nii.gz"))

    def resampled(self, image: Any, network: Ensemble, pose: ndarray) -> ndarray:
        """What a network looks at."""
        import SimpleITK

        grid = network.card.geometry.grid.moved(np.linalg.inv(pose), "scanner")
        how = SimpleITK.sitkBSpline if max(grid.spacing_mm) < FINE_MM else SimpleITK.sitkLinear
        values = SimpleITK.Resample(image, _frame(grid), SimpleITK.Transform(), how)
        return SCALINGS[network.card.geometry.intensity](SimpleITK.GetArrayFromImage(values).T)

    def outlined(self, image: ndarray) -> ndarray:
        """Posterior of the hypothalamus."""
        return 1 - self.posteriors(image)[..., 0].transpose(1, 0, 2)

    def posteriors(self, image: ndarray) -> ndarray:
        """Mean of all members over the image and its mirror image, by slices."""
        slices = np.asarray(neighbours(jnp.asarray(image), self.hypothalamus.card.geometry))
        back = mirrored_channels(self.hypothalamus.labels)
        both = [predict(slices) + predict(slices[:, ::-1])[:, ::-1][..., back] for predict in self.of_members]
        return np.mean(both, axis=0) / 2

    def filled(self, image: ndarray) -> ndarray:
        """Posterior of the cavity."""
        return self.of_cavity(np.ascontiguousarray(image.transpose(1, 0, 2))[..., None])[..., 1].transpose(1, 0, 2)


def _timed(seconds: dict[str, float], stage: str, run: Callable[[], Any]) -> Any:
    """What a stage gives; its seconds of this process's core are added to what it took before."""
    clock = Clock()
    result = run()
    seconds[stage] = seconds.get(stage, 0.0) + float(clock.row()["cpu_seconds"])  # type: ignore[arg-type]
    return result


def _read(path: Path) -> hypodask.Scan:
    scan = hypodask.read_scan(path)
    _ = scan.data
    return scan


def _itk(values: ndarray, grid: Grid) -> Any:
    """An array as an image of ITK."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T, np.float32))
    frame = _frame(grid)
    image.SetSpacing(frame.GetSpacing())
    image.SetOrigin(frame.GetOrigin())
    image.SetDirection(frame.GetDirection())
    return image


def _frame(grid: Grid) -> Any:
    """An empty image where a grid is, in ITK's axes."""
    import SimpleITK

    matrix = LPS_FROM_RAS @ grid.space_from_vox
    frame = SimpleITK.Image(grid.shape, SimpleITK.sitkUInt8)
    frame.SetSpacing(grid.spacing_mm)
    frame.SetOrigin(matrix[:3, 3].tolist())
    frame.SetDirection((matrix[:3, :3] / grid.spacing_mm).ravel().tolist())
    return frame


def _write(inside: ndarray, network: Ensemble, pose: ndarray, image: Any, path: Path) -> None:
    """An outline, carried back to the scan's voxels."""
    import SimpleITK

    grid = network.card.geometry.grid.moved(np.linalg.inv(pose), "scanner")
    back = SimpleITK.Resample(_itk(inside, grid), image, SimpleITK.Transform(), SimpleITK.sitkLinear)
    SimpleITK.WriteImage(SimpleITK.Cast(back > 0.5, SimpleITK.sitkUInt8), str(path))


def whole_scans(chain: Chain, paths: list[Path], rounds: int) -> Iterator[dict[str, object]]:
    """Every scan by both in turn, once before that counts."""
    for number in range(rounds + 1):
        for path in paths:
            for method, process in ((OURS, _ours), (CHAIN, chain.process)):
                seconds: dict[str, float] = {}
                with TemporaryDirectory(prefix="hypodask-chain-") as out:
                    _timed(seconds, WHOLE, partial(process, path, Path(out), seconds))
                if number:
                    yield from _rows(method, path, number, seconds)


def _ours(path: Path, out: Path, _: dict[str, float]) -> None:
    row = hypodask.process_scan(path, out=out)
    assert row.status == "done", row.reason


def networks(chain: Chain, paths: list[Path], rounds: int) -> Iterator[dict[str, object]]:
    """The networks alone on what they see of every scan, and by how much their answers differ."""
    for path in paths:
        scan = _read(path)
        alignment = hypodask.align(scan)
        outline = chain.hypothalamus.network_image(scan, alignment)
        cavity = chain.cavity.network_image(scan, alignment)
        for number in range(rounds + 1):
            timed = {method: dict[str, float]() for method in (OURS, CHAIN)}
            for stage, ours, theirs in (
                (INFERENCE, partial(_outlined, chain.hypothalamus, outline), partial(chain.outlined, outline)),
                (CAVITY, partial(_filled, chain.cavity, cavity), partial(chain.filled, cavity)),
            ):
                answers = _timed(timed[OURS], stage, ours), _timed(timed[CHAIN], stage, theirs)
                off = float(np.abs(np.subtract(*answers)).max())
                assert off < ALIKE, f"{path.name}: {stage}: posteriors differ by {off:.4f}"
            for method, seconds in timed.items() if number else ():
                yield from _rows(method, path, number, seconds)


def _outlined(network: Ensemble, image: ndarray) -> ndarray:
    return 1 - network.posteriors(image)[0]


def _filled(network: Ensemble, image: ndarray) -> ndarray:
    return network.segment_image(image, quick=True).posteriors[1]


def _rows(method: str, path: Path, number: int, seconds: dict[str, float]) -> Iterator[dict[str, object]]:
    for stage, value in seconds.items():
        row = {"scan": path.name, "round": number, "method": method, "stage": stage}
        yield row | {"cpu_seconds": round(value, 3)}


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of every stage, and how many times as long the chain takes as hypodask, scan by scan."""
    by_scan = table.pivot_table("cpu_seconds", ["stage", "scan", "round"], "method", sort=False)
    by_scan["ratio"] = by_scan[CHAIN] / by_scan[OURS] if OURS in by_scan else np.nan
    return by_scan.groupby("stage", sort=False).median().round(2).reset_index()


def figures_of(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show of both parts: seconds of a whole scan, and how many times as long the chain takes."""
    summary = summarize(table).set_index("stage")
    return {
        "ratio": summary.loc[WHOLE, "ratio"],
        "chain_seconds": summary.loc[WHOLE, CHAIN],
        "hypodask_seconds": summary.loc[WHOLE, OURS],
        "ants_seconds": summary.loc["align", CHAIN],
        "hypothalamus_ratio": summary.loc[INFERENCE, "ratio"],
        "icv_ratio": summary.loc[CAVITY, "ratio"],
    }


PARTS = {"networks": networks, "whole-scans": whole_scans}


def main() -> None:
    """Time both, and compare what the networks say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of validation scans")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scans", type=int, default=3, help="only the first so many whole heads")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    add_record_option(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chain, paths = Chain(options.data), sorted((options.data / "scans").iterdir())[: options.scans]
    rows: list[dict[str, object]] = []
    for part in options.only:
        for row in PARTS[part](chain, paths, options.rounds):
            rows.append(row)
            pd.DataFrame(rows).to_csv(options.out / "chain.tsv", sep="\t", index=False)
    summary = summarize(pd.DataFrame(rows))
    summary.to_csv(options.out / "chain_summary.tsv", sep="\t", index=False)
    print(markdown(summary.astype(object).where(summary.notna(), "")))
    if options.record and len(options.only) == len(PARTS):
        what = "CPU time beside antspyx, SimpleITK and PyTorch with the same networks"
        data = f"{len(paths)} public scans, {options.rounds} times each in turn"
        write_results("chain", figures_of(pd.DataFrame(rows)), what=what, data=data)


if __name__ == "__main__":
    main()
