"""The method, for one scan: read, align, segment, measure, judge.

Kassubek et al. (Scientific Reports 2025) align each T1-weighted scan to the AC-PC axis, segment the hypothalamus on a
slab of thin coronal slices and the intracranial volume on the whole head with two networks, and take the volumes.
:func:`measure_scan` is that method, from arrays to numbers. :func:`process_scan` does it for one file, stores what was
found and returns the scan's row.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike, fspath
from time import perf_counter
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from hypodask.alignment.acpc import align
from hypodask.alignment.pose import Alignment
from hypodask.core.errors import ModelError, ScanError, StoreError, at_stage
from hypodask.core.grid import slab_grid
from hypodask.core.row import MadeBy, Row
from hypodask.core.structures import HEAD_SIZE, MAIN, SHIPPED, STRUCTURES, structure
from hypodask.files.digests import sha256_of
from hypodask.files.location import Location, absolute
from hypodask.quality.intervals import volume_intervals
from hypodask.quality.reference import reference_digest
from hypodask.quality.score import Measures, Quality, examine, judge
from hypodask.quality.warnings import scan_warnings
from hypodask.scan.air import above_air
from hypodask.scan.landmarks import Landmarks, read_landmarks
from hypodask.scan.read import read_scan
from hypodask.scan.scan import Scan
from hypodask.scan.template import MNI152
from hypodask.segmentation.label_maps import label_map_on
from hypodask.segmentation.load import load_network
from hypodask.segmentation.network import Network
from hypodask.segmentation.volumes import Volumes, measure
from hypodask.storage.store import (
    delete_store,
    mark_done,
    read_done,
    write_label_map,
    write_record,
    write_scan,
)
from hypodask.storage.transforms import save_transform
from hypodask.study.cohort import Entry, store_path
from hypodask.study.ids import scan_stem

Model = str | PathLike[str] | Network
Models = Model | Sequence[Model] | None

METHOD_VERSION = "3"
"""Raised whenever the volumes of a scan, or what its row says of them, may differ with the same weights: rows of
another version are made anew."""


def load_models(models: Models = None) -> tuple[Network, ...]:
    """The networks to use: those named, and the shipped one for each structure that none was named for.

    Parameters
    ----------
    models
        Name or path of weights, or several. Networks that are loaded already are taken as they are, so what this
        function returns can be given again.

    Returns
    -------
    tuple of Network
        One for each structure: those that hypodask ships a network for, then further ones.

    Raises
    ------
    ModelError
        If weights cannot be loaded, segment no structure that hypodask knows, or two are for the same structure.
    """
    several = isinstance(models, Sequence) and not isinstance(models, str)
    named = cast(Sequence[Model], models if several else () if models is None else (models,))
    networks: dict[str, Network] = {}
    for model in named:
        network = load_network(model) if isinstance(model, str | PathLike) else model
        if structure(network.task).name in networks:
            raise ModelError(f"{networks[network.task].name} and {network.name} are both for {network.task}; name one")
        networks[network.task] = network
    shipped = {name: networks.get(name) or load_network(STRUCTURES[name].network) for name in SHIPPED}
    return tuple((shipped | networks).values())


def made_by(networks: str) -> MadeBy:
    """What the rows of a run depend on beside their input; ``networks`` is the digest of its networks."""
    return MadeBy(METHOD_VERSION, networks, reference_digest()[:12], MNI152.digest[:12])


@dataclass(frozen=True, eq=False)
class Measured:
    """What the method finds in one scan."""

    alignment: Alignment
    """The AC-PC pose."""
    volumes: Mapping[str, Volumes]
    """Cleaned posteriors and volumes of each structure, by its name."""
    label_maps: Mapping[str, UInt8[ndarray, "i j k"]]
    """Label map of each structure on the voxels of the scan, by its name."""
    volume_mm3: Mapping[str, float]
    """Volume to publish of each structure, side and part, mm3."""
    interval_mm3: Mapping[str, tuple[float, float]]
    """95 % intervals of these volumes, mm3; only where the error of the network was measured and the volume was not
    flagged."""
    measures: Measures
    """What quality was judged by."""
    quality: Quality
    """How far the result can be trusted."""
    warnings: tuple[str, ...]
    """What a reader should know before trusting the volumes."""

    def row_fields(self) -> dict[str, Any]:
        """The fields of a :class:`~hypodask.core.row.Row` that are about the method's result."""
        volumes = self.volumes.values()
        return {
            "volume_mm3": dict(self.volume_mm3),
            "soft_volume_mm3": {name: v for one in volumes for name, v in one.soft_mm3.items()},
            "label_volume_mm3": {name: v for one in volumes for name, v in one.label_mm3.items()},
            "volume_low_mm3": {name: low for name, (low, _) in self.interval_mm3.items()},
            "volume_high_mm3": {name: high for name, (_, high) in self.interval_mm3.items()},
            "flagged": self.alignment.flagged or bool(self.quality.missing),
            "quality": self.quality.score,
            "alignment_score": self.alignment.score,
            "alignment_error_mm": self.alignment.error_mm,
            "alignment_source": self.alignment.source,
            "acpc_distance_mm": self.alignment.acpc_distance_mm,
            "warnings": " ".join(self.warnings),
        }


def measure_scan(scan: Scan, networks: Sequence[Network], *, landmarks: Landmarks | None = None) -> Measured:
    """Align, segment, measure and judge one scan: the method, from arrays to numbers.

    It reads and writes no file and changes no argument. Networks that run elsewhere (``Network.on``) use other
    processes.

    Parameters
    ----------
    scan
        T1-weighted, as :func:`hypodask.read_scan` returns it.
    networks
        As :func:`load_models` returns them: one for each structure, among them the hypothalamus
        and the ICV.
    landmarks
        Commissures that a person placed; by default they are looked for.

    Returns
    -------
    Measured
        Pose, label maps on the voxels of the scan, volumes and their 95 % intervals in mm3, quality and warnings.

    Raises
    ------
    ScanError
        If the scan is no human head that can be aligned, or a structure is not found. The ``stage`` of the error is
        ``align``, ``segment`` or ``measure``.
    ModelError
        If there is no network for the main structure (the hypothalamus) or for the head's size (the ICV), or two are
        for the same structure.
    """
    if len({network.task for network in networks}) < len(networks):
        names = ", ".join(network.name for network in networks)
        raise ModelError(f"two networks are for the same structure: {names}; give one for each")
    if missing := {MAIN.name, HEAD_SIZE.name} - {network.task for network in networks}:
        raise ModelError(f"no network for {' and '.join(sorted(missing))} was given; load_models() adds those shipped")
    with at_stage("align"):
        scan = above_air(scan)
        alignment = align(scan, landmarks=landmarks)
    with at_stage("segment"):
        segmentations = {network.task: network.segment(scan, alignment) for network in networks}
    with at_stage("measure"):
        volumes = {name: measure(segmentation) for name, segmentation in segmentations.items()}
    label_maps = {
        name: label_map_on(one.cleaned, scan.grid, np.linalg.inv(alignment.acpc_from_scanner) @ one.to_acpc(alignment))
        for name, one in volumes.items()
    }
    volume_mm3 = {name: volume for network in networks for name, volume in volumes[network.task].to_publish().items()}
    measures = examine(scan, alignment, volumes, label_maps[HEAD_SIZE.name])
    quality = judge(measures)
    intervals = volume_intervals(networks, volumes, volume_mm3, measures)
    # The errors of a wrong pose or a missing part were not measured: no interval is better than a narrow one.
    incomplete = volumes[MAIN.name].soft_mm3 if quality.missing else {}
    return Measured(
        alignment=alignment,
        volumes=volumes,
        label_maps=label_maps,
        volume_mm3=volume_mm3,
        interval_mm3={} if alignment.flagged else {n: v for n, v in intervals.items() if n not in incomplete},
        measures=measures,
        quality=quality,
        warnings=scan_warnings(scan, alignment, volumes, volume_mm3, label_maps, quality),
    )


def process_scan(
    path: str | PathLike[str],
    *,
    scan: str = "",
    out: str | PathLike[str] | None = None,
    store: str = "",
    models: Models = None,
    landmarks: Landmarks | str | PathLike[str] | None = None,
    stamp: str = "",
) -> Row:
    """Volumes of one scan; a scan that cannot be trusted becomes a failed row, not an error.

    Parameters
    ----------
    path
        NIfTI, MGH or DICOM; a local path or a URL, as for :func:`hypodask.read_scan`.
    scan
        Identifier for the row; by default the name of the file or folder without the suffix of an image and ``_T1w``,
        as :meth:`hypodask.Cohort.from_files` has it.
    out, store
        Output folder or URL, and where in it the scan's own store goes; nothing is kept without ``out``.
    models
        As for :func:`load_models`, or what it returned: then nothing is loaded here.
    landmarks
        Commissures that a person placed, or a file of them (:func:`hypodask.read_landmarks`); they are used instead of
        those that alignment would find.
    stamp
        What the run knows its input and networks by; kept in the done-mark with the row.

    Returns
    -------
    Row
        ``row["hypothalamus"]`` and ``row["icv"]`` in mm3, ``row.status``, ``row.reason`` and more.

    Raises
    ------
    ModelError
        If weights cannot be loaded.
    StoreError
        If the identifier cannot name a store, or its store in ``out`` holds another scan.
    OSError
        If a disk or the network fails: worth another try, which a scan that is refused is not.
    """
    networks = load_models(models)
    source, name = fspath(path), scan or scan_stem(fspath(path))
    place = None
    if out is not None:
        store = store or store_path(Entry(name, source))
        place = Location(fspath(out)).child(store)
        _refuse_store_of_another(place, name, source, is_named=bool(scan))
    started = perf_counter()
    try:
        outcome = _measured_and_stored(source, name, networks, landmarks, place)
        outcome |= {"status": "done", "store": "" if place is None else store}
    except ScanError as err:
        outcome = {"status": "failed", "stage": err.stage, "error": type(err).__name__, "reason": err.reason}
        if place is not None:
            delete_store(place)
    row = Row(
        scan=name,
        protocol=next(network.protocol for network in networks if network.task == MAIN.name),
        model=" ".join(network.name for network in networks),
        version=version("hypodask"),
        host=platform.node(),
        seconds=perf_counter() - started,
        **outcome,
    )
    if place is not None and row.status == "done":
        made = {"scan": row.scan, "sha256": row.sha256, "model": row.model, "version": row.version}
        mark_done(place, {**made, "source_sha256": _digest_of(source), "stamp": stamp, "row": row.as_dict()})
    return row


def _measured_and_stored(
    source: str,
    name: str,
    networks: Sequence[Network],
    landmarks: Landmarks | str | PathLike[str] | None,
    place: Location | None,
) -> dict[str, Any]:
    """Read and measure a scan, and write what was found to its store; the fields of its row."""
    with at_stage("read"):
        scan = read_scan(source)
    if place is not None:
        # Written first: if the disk is full, that is known before the scan is measured.
        write_scan(place, scan)
    with at_stage("align"):
        if landmarks is not None and not isinstance(landmarks, Landmarks):
            landmarks = read_landmarks(landmarks, scanner_from_vox=scan.grid.space_from_vox)
    measured = measure_scan(scan, networks, landmarks=landmarks)
    if place is not None:
        _store(place, name, scan, measured)
    return measured.row_fields() | {"sha256": scan.sha256}


def _store(place: Location, name: str, scan: Scan, measured: Measured) -> None:
    """Write the pose, the label maps and the measures of quality."""
    alignment = measured.alignment
    write_record(place, "alignment", _alignment_record(alignment))
    save_transform(place.child(_transform_name(name)).url, alignment.acpc_from_scanner)
    for task, volumes in measured.volumes.items():
        labels = volumes.cleaned.labels
        write_label_map(place, f"{task}_scan", measured.label_maps[task], scan.grid, labels)
        if STRUCTURES[task].on_slab:
            slab = slab_grid()
            label_map = label_map_on(volumes.cleaned, slab, volumes.to_acpc(alignment))
            write_label_map(place, f"{task}_slab", label_map, slab, labels)
    write_record(place, "quality", dict(measured.measures))


def _refuse_store_of_another(place: Location, name: str, source: str, *, is_named: bool) -> None:
    """Never write over the store of another scan.

    The same scan may be processed again, and so may another version of its file. Where the identifier was taken from
    the file's name, a file of that name elsewhere is another scan.
    """
    try:
        done = read_done(place) or {}
    except StoreError:
        return  # what is damaged is made anew
    if (holds := done.get("scan", name)) != name:
        raise StoreError(f"{place.url} holds the scan {holds!r}, not {name!r}; give another store")
    if not is_named and done.get("source_sha256", digest := _digest_of(source)) != digest:
        raise StoreError(f"{place.url} holds another file of the same name as {source}; tell them apart: give scan=")


def _digest_of(source: str) -> str:
    """Digest of where a scan was read from: the path itself may hold a person's name."""
    return sha256_of(absolute(source).encode(errors="surrogateescape"))


def _alignment_record(alignment: Alignment) -> dict[str, Any]:
    """The pose as plain values."""
    return {
        "acpc_from_scanner": alignment.acpc_from_scanner.tolist(),
        "mni_from_scanner": alignment.mni_from_scanner.tolist(),
        "ac_mm": alignment.ac_mm.tolist(),
        "pc_mm": alignment.pc_mm.tolist(),
        "score": alignment.score,
        "head_size": alignment.head_size,
        "error_mm": alignment.error_mm,
        "flagged": alignment.flagged,
        "warnings": list(alignment.warnings),
        "source": alignment.source,
    }


def _transform_name(scan: str) -> str:
    """Name of ITK's file of a scan's pose, as BIDS names transforms.

    >>> _transform_name("sub-01_ses-2")
    'sub-01_ses-2_from-T1w_to-ACPC_mode-image_xfm.txt'
    """
    return f"{scan.removesuffix('_T1w')}_from-T1w_to-ACPC_mode-image_xfm.txt"
