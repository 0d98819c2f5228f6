"""One subject becomes one file that training reads: image and soft labels on the training grid.

Runs in a worker. A file that is there already is kept while scan, outline and transform have the size and time they
had, and the labels are the same.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.alignment import align
from hypodask.errors import OutlineError, TransformError
from hypodask.labels import LabelTable
from hypodask.network.weights import InputGeometry
from hypodask.planning import input_stamp
from hypodask.recipes.hypothalamus import CORE, hypothalamus_stored_grid
from hypodask.resample import resample
from hypodask.scan import read_scan
from hypodask.training.outlines import check_grid, check_inside, check_sides, read_outline, soft_labels
from hypodask.training.pairs import Pair
from hypodask.transforms import load_transform


@dataclass(frozen=True)
class Prepared:
    """What is known of a subject that can be learnt from."""

    pair: Pair
    path: str
    """``.npz`` with ``image``, ``truth`` (without background), ``volumes_mm3`` and ``pose``."""
    volumes_mm3: tuple[float, ...]
    """Of each label, as drawn."""
    stamp: str
    """Changes with what the file was made of."""
    warnings: str = ""


def prepare(pair: Pair, table: LabelTable, geometry: InputGeometry, folder: Path) -> Prepared:
    """Read, align and resample one subject, once.

    Raises
    ------
    OutlineError
        If the outline cannot be learnt from.
    ScanError
        If the scan cannot be trusted, or its pose cannot be told.
    OSError
        If a disk or the network fails.
    """
    if pair.problem:
        raise OutlineError(pair.problem)
    path, stamp = folder / f"{pair.scan}.npz", _stamp(pair, table, geometry)
    known = _known(path, stamp)
    if known is None:
        known = _made(pair, table, geometry) | {"stamp": np.array(stamp)}
        _save(path, known)
    return Prepared(pair, str(path), tuple(known["volumes_mm3"].tolist()), stamp, str(known["warnings"]))


def load_head(path: str) -> dict[str, ndarray]:
    """The arrays of a prepared subject."""
    with np.load(path) as file:
        return dict(file)


def _made(pair: Pair, table: LabelTable, geometry: InputGeometry) -> dict[str, ndarray]:
    outline = read_outline(pair.labels_path, table)
    scan = read_scan(pair.scan_path)
    check_grid(outline, scan.grid, pair.space)
    alignment = align(scan)
    acpc_from_outline = alignment.acpc_from_scanner @ _scanner_from_outline(pair)
    check_sides(outline, acpc_from_outline)
    grid = hypothalamus_stored_grid(geometry)
    truth = soft_labels(outline, grid, acpc_from_outline)
    check_inside(outline, truth[(slice(None), *CORE)], geometry.grid, acpc_from_outline)
    image = resample(scan.data, scan.grid, grid, onto_from_grid=alignment.acpc_from_scanner, order=3)
    return {
        "image": image,
        "truth": truth.astype(np.float16),
        "volumes_mm3": outline.volumes_mm3,
        "pose": alignment.acpc_from_scanner,
        "warnings": np.array(" ".join([*scan.warnings, *alignment.warnings])),
    }


def _scanner_from_outline(pair: Pair) -> Float[ndarray, "4 4"]:
    if not pair.transform:
        return np.eye(4)
    try:
        return np.linalg.inv(load_transform(pair.transform))
    except TransformError as err:
        raise OutlineError(f"{pair.labels_path}: {err}") from err


def _stamp(pair: Pair, table: LabelTable, geometry: InputGeometry) -> str:
    inputs = [input_stamp(path) for path in (pair.scan_path, pair.labels_path, pair.transform) if path]
    asked = json.dumps([asdict(pair), inputs, repr(table), repr(geometry)])
    return hashlib.sha256(asked.encode()).hexdigest()


def _known(path: Path, stamp: str) -> dict[str, ndarray] | None:
    if not path.exists():
        return None
    with np.load(path) as file:
        if str(file["stamp"]) != stamp:
            return None
        return {name: file[name] for name in ("volumes_mm3", "warnings")}


def _save(path: Path, arrays: dict[str, ndarray]) -> None:
    """Write a whole file or none; two workers never write one subject."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
