"""Runs of hypodask on sound and on spoilt scans, kept whole, so that measures of quality can be tried on them."""

import pickle
import zlib
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.validation.planting import FAILURES, HARMLESS, UNDISTURBED, Subject
from hypodask.alignment import Alignment, align
from hypodask.core.errors import ScanError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.phantom import HeadOptions, simulate_head
from hypodask.pipeline import load_models
from hypodask.scan import Scan, read_scan
from hypodask.segmentation import Network, Segmentation
from hypodask.segmentation.label_maps import label_map_on

SCALE_SD = 0.06
"""SD between phantoms of the hypothalamus relative to the head."""


@dataclass(frozen=True, eq=False)
class Run:
    """One scan, and what hypodask made of it."""

    head: str
    """``phantom-<seed>``, or the name of a scan."""
    failure: str
    scan: Scan
    alignment: Alignment | None
    hypothalamus: Segmentation | None
    icv: Segmentation | None
    refused: str
    """Why there is no result; empty where there is one."""
    truth_mm3: dict[str, float]
    """Volumes that are known, of phantoms."""
    models: str = ""
    """Networks that were asked."""


def run_scan(head: str, failure: str, scan: Scan, networks: Sequence[Network], truth_mm3: dict[str, float]) -> Run:
    """Align and segment, as the pipeline does."""
    alignment, refused = None, ""
    found: dict[str, Segmentation] = {}
    try:
        alignment = align(scan)
        found = {network.task: network.segment(scan, alignment) for network in networks}
    except ScanError as err:
        refused = f"{type(err).__name__}: {err}"
    return Run(
        head,
        failure,
        scan,
        alignment,
        found.get(MAIN.name),
        found.get(HEAD_SIZE.name),
        refused,
        truth_mm3,
        models=" ".join(network.name for network in networks),
    )


def phantom(seed: int) -> tuple[Scan, dict[str, float]]:
    """A simulated head whose hypothalamus is larger or smaller than its head would have it."""
    scale = float(np.clip(np.random.default_rng([seed, 77]).normal(1, SCALE_SD), 0.8, 1.2))
    scan, truth = simulate_head(seed, options=HeadOptions(hypothalamus_scale=scale))
    return scan, truth.volume_mm3


def sound_run(name: str, data: Path, networks: Sequence[Network]) -> Run:
    """A phantom or a real scan as it is; scans of the same name are told apart as ``folder+name``."""
    if name.startswith("phantom-"):
        scan, truth = phantom(int(name.removeprefix("phantom-")))
    else:
        *folder, stem = name.split("+")
        scan, truth = read_scan(next(data.glob(f"{folder[0] if folder else 'scans*'}/{stem}.*"))), {}
    return run_scan(name, UNDISTURBED, scan, networks, truth)


def spoilt_run(sound: Run, failure: str, networks: Sequence[Network]) -> Run:
    """The same with a failure planted."""
    cavity = label_map_on(sound.icv, sound.scan.grid, np.linalg.inv(sound.alignment.acpc_from_scanner)) > 0
    subject = Subject(sound.scan, sound.alignment.acpc_from_scanner, cavity)
    random = np.random.default_rng([*sound.head.encode(), *failure.encode()])
    return run_scan(sound.head, failure, (FAILURES | HARMLESS)[failure](subject, random), networks, sound.truth_mm3)


def keep(path: Path, run: Run) -> None:
    """Write a run, intensities as they were stored and posteriors as half precision."""
    halves = [
        found and replace(found, posteriors=found.posteriors.astype(np.float16))
        for found in (run.hypothalamus, run.icv)
    ]
    bare = replace(run, scan=replace(run.scan), hypothalamus=halves[0], icv=halves[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zlib.compress(pickle.dumps(bare), 1))


def read_run(path: Path) -> Run:
    """A run as it was, posteriors as float32."""
    run = pickle.loads(zlib.decompress(path.read_bytes()))  # noqa: S301 - written by keep
    full = [
        found and replace(found, posteriors=found.posteriors.astype(np.float32))
        for found in (run.hypothalamus, run.icv)
    ]
    return replace(run, hypothalamus=full[0], icv=full[1])


def kept(folder: Path, head: str, failure: str) -> Path:
    return folder / f"{head}__{failure.replace(' ', '-')}.pkl"


def make(folder: Path, data: Path, heads: list[str], failures: list[str]) -> None:
    """Run what is not kept yet: every head as it is, then spoilt."""
    networks = load_models()
    for head in heads:
        if not (path := kept(folder, head, UNDISTURBED)).exists():
            keep(path, sound_run(head, data, networks))
            print(head, flush=True)
    for failure, head in product(failures, heads):
        if not (path := kept(folder, head, failure)).exists():
            keep(path, spoilt_run(read_run(kept(folder, head, UNDISTURBED)), failure, networks))
            print(head, failure, flush=True)


def main() -> None:
    """Run sound and spoilt scans into a folder."""
    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--heads", nargs="+", required=True, help="phantom-<seed>, or names of scans without suffix")
    parser.add_argument("--failures", nargs="*", default=[], choices=list(FAILURES | HARMLESS))
    parser.add_argument("--all-failures", action="store_true")
    options = parser.parse_args()
    failures = (
        [name for name in FAILURES | HARMLESS if name != UNDISTURBED] if options.all_failures else options.failures
    )
    make(options.folder, options.data, options.heads, failures)


if __name__ == "__main__":
    main()
