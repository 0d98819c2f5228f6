"""One subject becomes one file that training reads: image and soft labels on the training grid.

Runs in a worker. A file that is there already is kept while scan, label map and transform have the size and time that
they had, and the labels are the same.
"""

import io
import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy import ndarray

from hypodask.alignment.acpc import align
from hypodask.core.errors import OutlineError, TransformError
from hypodask.core.structures import LabelTable
from hypodask.files.digests import sha256_of
from hypodask.files.location import Location
from hypodask.image.resampling import resample
from hypodask.learning.training_box import seen_labels, training_grid
from hypodask.networks.cards import InputGeometry
from hypodask.scan.air import above_air
from hypodask.scan.read import read_scan
from hypodask.storage.transforms import load_transform
from hypodask.study.planning import input_stamp
from hypodask.training.manual_labels import ManualLabels, check_grid, check_inside, check_sides, soft_labels
from hypodask.training.pairs import Pair


@dataclass(frozen=True)
class Prepared:
    """What is known of a subject that can be learnt from."""

    pair: Pair
    path: str
    """``.npz`` with ``image``, ``truth`` (without background), ``volumes_mm3`` and ``pose``."""
    volumes_mm3: tuple[float, ...]
    """Of each label of the manual label map."""
    stamp: str
    """Digest of everything that the file was made from."""
    warnings: str = ""


def prepare(pair: Pair, table: LabelTable, geometry: InputGeometry, folder: Path) -> Prepared:
    """Read, align and resample one subject, once.

    Raises
    ------
    OutlineError
        If the label map cannot be learnt from.
    ScanError
        If the scan cannot be trusted, or its pose cannot be found.
    OSError
        If a disk or the network fails.
    """
    if pair.problem:
        raise OutlineError(pair.problem)
    inputs = [input_stamp(path) for path in (pair.scan_path, pair.labels_path, pair.transform) if path]
    stamp = sha256_of(json.dumps([asdict(pair), inputs, repr(table), repr(geometry)]).encode())
    path = folder / f"{pair.scan}.npz"
    known = _known(path, stamp)
    if known is None:
        known = _made(pair, table, geometry) | {"stamp": np.array(stamp)}
        content = io.BytesIO()
        np.savez_compressed(content, **known)  # type: ignore[arg-type]
        Location(path).write(content.getvalue())
    return Prepared(pair, str(path), tuple(known["volumes_mm3"].tolist()), stamp, str(known["warnings"]))


def load_head(path: str | PathLike[str]) -> dict[str, ndarray]:
    """The arrays of a prepared subject."""
    with np.load(path) as file:
        return dict(file)


def _made(pair: Pair, table: LabelTable, geometry: InputGeometry) -> dict[str, ndarray]:
    manual = ManualLabels.read(pair.labels_path, table)
    scan = above_air(read_scan(pair.scan_path))
    check_grid(manual, scan.grid, pair.space)
    alignment = align(scan)
    acpc_from_manual = alignment.acpc_from_scanner
    if pair.transform:
        try:
            acpc_from_manual = acpc_from_manual @ np.linalg.inv(load_transform(pair.transform))
        except TransformError as err:
            raise OutlineError(f"{pair.labels_path}: {err}") from err
    check_sides(manual, acpc_from_manual)
    grid = training_grid(geometry, alignment.head_size)
    truth = soft_labels(manual, grid, acpc_from_manual)
    check_inside(manual, seen_labels(truth), geometry.grid_for(alignment.head_size), acpc_from_manual)
    image = resample(scan.data, scan.grid, grid, onto_from_grid=alignment.acpc_from_scanner, order=3)
    return {
        "image": image,
        "truth": truth.astype(np.float16),
        "volumes_mm3": manual.volumes_mm3,
        "pose": alignment.acpc_from_scanner,
        "head_size": np.array(alignment.head_size),
        "warnings": np.array(" ".join([*scan.warnings, *alignment.warnings])),
    }


def _known(path: Path, stamp: str) -> dict[str, ndarray] | None:
    if not path.exists():
        return None
    with np.load(path) as file:
        if str(file["stamp"]) != stamp:
            return None
        return {name: file[name] for name in ("volumes_mm3", "warnings")}
