"""The method, for one scan: read, align, segment, measure.

Kassubek et al. 2025 align each T1-weighted scan to the AC-PC axis, outline the hypothalamus on a slab of
fine coronal slices and the intracranial cavity on the whole head with two networks, and take the volumes.
``process_scan`` is that, for one file, with everything that is known about the result in one row.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike, fspath
from time import perf_counter
from typing import Any, cast

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment import Alignment, align
from hypodask.cohort import Entry
from hypodask.cohort.ids import scan_stem
from hypodask.digests import sha256_of
from hypodask.errors import ModelError, ScanError, StoreError
from hypodask.grid import Grid, slab_grid
from hypodask.labels import ICV
from hypodask.landmarks import Landmarks, read_landmarks
from hypodask.location import Location, absolute
from hypodask.network.weights import Task
from hypodask.quality import Measures, examine, judge
from hypodask.reference import load_reference, reference_digest
from hypodask.row import MadeBy, Row, Stage
from hypodask.scan import Scan, read_scan
from hypodask.segmentation import Network, Segmentation, load_network
from hypodask.segmentation.restore import label_map_on, slab_label_map
from hypodask.store import (
    delete_store,
    mark_done,
    read_done,
    store_path,
    write_label_map,
    write_record,
    write_scan,
)
from hypodask.template import template_digest
from hypodask.transforms import save_transform
from hypodask.uncertainty import Conditions, interval, relative_error
from hypodask.volumes import Volumes, faces_reached, measure, unusual

Networks = tuple[Network, ...]
Model = str | PathLike[str] | Network
Models = Model | Sequence[Model] | None

METHOD_VERSION = "2"
"""Raised whenever the volumes of a scan, or what its row says of them, may differ with the same weights: rows of
another version are made anew."""

SHIPPED: tuple[Task, ...] = ("hypothalamus", "icv")
"""Networks that come with hypodask, one for each task."""

CANAL_MM2 = 300.0
"""Cross-section of the spinal canal, at most: the fluid in it counts as cavity, and leaves the box downwards."""

STRIPPED_SHARE = 0.05
"""Less tissue than this outside the skull, relative to the cavity, and the skull has been stripped."""

UNSEEN_SHARE = 0.01
"""More of the cavity than this outside the field of view is worth a warning."""


def load_models(models: Models = None) -> Networks:
    """The networks to use: those named, and the shipped one for each task that none was named for.

    Parameters
    ----------
    models
        Name or path of weights, or several. Networks that are loaded already are taken as they are, so that
        what this returns can be given again.

    Returns
    -------
    tuple of Network
        For the hypothalamus, then for the cavity.

    Raises
    ------
    ModelError
        If weights cannot be loaded, or two are for the same task.
    """
    several = isinstance(models, Sequence) and not isinstance(models, str)
    named = cast(Sequence[Model], models if several else () if models is None else (models,))
    networks: dict[Task, Network] = {}
    for network in map(_loaded, named):
        if network.task in networks:
            raise ModelError(f"{networks[network.task].name} and {network.name} are both for {network.task}; name one")
        networks[network.task] = network
    return tuple(networks.get(task) or _loaded(task) for task in SHIPPED)


def _loaded(model: Model) -> Network:
    return load_network(model) if isinstance(model, str | PathLike) else model


def made_by(networks: str) -> MadeBy:
    """What the rows of a run depend on beside their input.

    Parameters
    ----------
    networks
        Digest of the networks of the run.
    """
    return MadeBy(METHOD_VERSION, networks, reference_digest()[:12], template_digest()[:12])


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
        Commissures that a person placed, or a file of them (:func:`hypodask.read_landmarks`); they win over
        what is found.
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
    name = scan or scan_stem(fspath(path))
    if out is not None:
        store = store or store_path(Entry(name, fspath(path)))
    keeper = Keeper(None if out is None else Location(fspath(out)).child(store), name)
    keeper.refuse_store_of_another(fspath(path), is_named=bool(scan))
    started = perf_counter()
    try:
        outcome = _done(fspath(path), networks, keeper, landmarks) | {"store": store if keeper.place else ""}
    except _Stopped as stopped:
        outcome = stopped.outcome
        keeper.discard()
    row = Row(
        scan=name,
        protocol=networks[0].protocol,
        model=" ".join(network.name for network in networks),
        version=version("hypodask"),
        host=platform.node(),
        seconds=perf_counter() - started,
        **outcome,
    )
    keeper.finish(row, stamp, fspath(path))
    return row


def _done(
    path: str, networks: Networks, keeper: "Keeper", placed: Landmarks | str | PathLike[str] | None
) -> dict[str, Any]:
    """The method; what it found, as fields of a row."""
    with _at("read"):
        scan = read_scan(path)
    keeper.keep_scan(scan)
    with _at("align"):
        landmarks = _landmarks(placed, scan)
        alignment = align(scan, landmarks=landmarks)
    with _at("segment"):
        segmentations = [network.segment(scan, alignment) for network in networks]
    with _at("measure"):
        volumes = [measure(segmentation) for segmentation in segmentations]
    icv_map = keeper.keep_results(scan, alignment, [one.tidied for one in volumes])
    measures = examine(scan, alignment, volumes[0], volumes[1], icv_map)
    keeper.keep_measures(measures)
    quality = judge(measures)
    found = _volumes(networks, volumes, measures)
    warnings = [
        *scan.warnings,
        *alignment.warnings,
        *unusual(found["volume_mm3"], networks[0].protocol),
        *_cut_off(volumes, alignment),
        *_coverage(scan, icv_map, volumes),
        *quality.reasons,
    ]
    return found | {
        "status": "done",
        "flagged": alignment.flagged,
        "quality": quality.score,
        "alignment_score": alignment.score,
        "alignment_error_mm": alignment.error_mm,
        "alignment_source": alignment.source,
        "acpc_distance_mm": alignment.acpc_distance_mm,
        "warnings": " ".join(warnings),
        "sha256": scan.sha256,
    }


def _landmarks(placed: Landmarks | str | PathLike[str] | None, scan: Scan) -> Landmarks | None:
    if placed is None or isinstance(placed, Landmarks):
        return placed
    return read_landmarks(placed, scanner_from_vox=scan.grid.space_from_vox)


def _volumes(networks: Networks, volumes: list[Volumes], measures: Measures) -> dict[str, dict[str, float]]:
    """The volumes of all networks and their intervals, by kind and structure."""
    chosen, low, high = {}, {}, {}
    for network, one, conditions in zip(networks, volumes, _conditions(volumes[0], measures), strict=True):
        for name, volume in (one.soft_mm3 if network.calibrated else one.label_mm3).items():
            chosen[name] = volume
            if ends := _interval(network, name, volume, conditions):
                low[name], high[name] = ends
    return {
        "volume_mm3": chosen,
        "soft_volume_mm3": {name: v for one in volumes for name, v in one.soft_mm3.items()},
        "label_volume_mm3": {name: v for one in volumes for name, v in one.label_mm3.items()},
        "volume_low_mm3": low,
        "volume_high_mm3": high,
    }


def _conditions(hypothalamus: Volumes, measures: Measures) -> tuple[Conditions, Conditions]:
    """What of this scan bears on the error of the hypothalamus, and of the cavity."""
    wholes = hypothalamus.tidied.member_wholes
    of_hypothalamus = Conditions(
        uncertainty=measures["border_entropy"],
        spread=measures["member_spread"],
        members=1 if wholes is None else len(wholes),
        pose_mm=measures["alignment_error_mm"],
        noise=measures["noise"],
        unseen=measures["unseen"],
    )
    return of_hypothalamus, Conditions(unseen=measures["cavity_unseen"])


def _interval(network: Network, name: str, volume_mm3: float, conditions: Conditions) -> tuple[float, float] | None:
    """95 % interval of a volume; none where nobody measured how far the network is off."""
    whole = network.relative_volume_sd if name in SHIPPED else None
    known_sd = network.part_volume_sd.get(name, whole)
    if known_sd is None:
        return None
    return interval(volume_mm3, relative_error(known_sd, network.volume_heads, conditions, load_reference().errors))


def _cut_off(volumes: list[Volumes], alignment: Alignment) -> Iterator[str]:
    """Sentences about outlines that end where a network's box or the slab of the paper ends."""
    for tidied in (one.tidied for one in volumes):
        if faces := _box_faces(tidied):
            yield (
                f"The outline of the {tidied.labels.whole} ends at the {_listed(faces)} of the box that its network "
                "looks at; what lies beyond does not count."
            )
    hypothalamus = volumes[0].tidied
    to_slab = acpc_from_space(hypothalamus.grid, alignment)
    # A box of our own networks lies inside the slab; other networks look further.
    if hypothalamus.grid.space != "acpc" and (
        faces := faces_reached(hypothalamus.label_map > 0, hypothalamus.grid, slab_grid(), to_slab)
    ):
        yield f"The outline of the hypothalamus ends at the {_listed(faces)} of the slab in its label map there."


def _box_faces(tidied: Segmentation) -> tuple[str, ...]:
    """Faces of its network's box that an outline ends at, but for a cavity that goes on down the spinal canal."""
    outline, grid = tidied.label_map > 0, tidied.grid
    faces = faces_reached(outline, grid, grid, np.eye(4))
    canal = outline[:, :, 0].sum() * grid.spacing_mm[0] * grid.spacing_mm[1] < CANAL_MM2
    return tuple(face for face in faces if not (tidied.labels == ICV and face == "bottom" and canal))


def _listed(faces: tuple[str, ...]) -> str:
    return " and ".join(faces)


def acpc_from_space(grid: Grid, alignment: Alignment) -> Float[ndarray, "4 4"]:
    """From the space of a network's grid to AC-PC space."""
    return np.eye(4) if grid.space == "acpc" else alignment.acpc_from_scanner


def _coverage(scan: Scan, icv_map: UInt8[ndarray, "i j k"], volumes: list[Volumes]) -> list[str]:
    """Sentences about a skull that was stripped, or a cavity that was not wholly scanned."""
    coarse = (slice(None, None, 2),) * 3
    cavity, data = icv_map[coarse] > 0, scan.data[coarse]
    if not cavity.any():
        return ["The cranial cavity lies outside the field of view."]
    sentences = []
    around = ~ndimage.binary_dilation(cavity, iterations=2)
    tissue = (data[around] > 0.15 * np.median(data[cavity])).sum()
    if tissue < STRIPPED_SHARE * cavity.sum():
        sentences.append("The skull has been stripped: the intracranial volume is inferred from the brain.")
    unseen = 1 - (icv_map > 0).sum() * scan.grid.voxel_volume_mm3 / volumes[1].label_mm3["icv"]
    if unseen > UNSEEN_SHARE:
        sentences.append(f"{100 * unseen:.0f} % of the cranial cavity lies outside the field of view and is inferred.")
    return sentences


@dataclass(frozen=True)
class Keeper:
    """Writes what a scan gives into its own store; without a URL nothing is kept."""

    place: Location | None
    scan: str
    """The scan's identifier, which names the file of its transform."""

    def refuse_store_of_another(self, path: str, *, is_named: bool) -> None:
        """Never write over the store of another scan.

        The same scan may be processed again, and so may another version of its file. Where the identifier was taken
        from the file's name, a file of that name elsewhere is another scan.
        """
        if self.place is None:
            return
        try:
            done = read_done(self.place) or {}
        except StoreError:
            return  # what is damaged is made anew
        if (holds := done.get("scan", self.scan)) != self.scan:
            raise StoreError(f"{self.place.url} holds the scan {holds!r}, not {self.scan!r}; give another store")
        if not is_named and done.get("source_sha256", source := _digest_of(path)) != source:
            raise StoreError(
                f"{self.place.url} holds another file of the same name as {path}; tell them apart: give scan="
            )

    def keep_scan(self, scan: Scan) -> None:
        """Begin the store with the voxels as they were read."""
        if self.place:
            write_scan(self.place, scan)

    def keep_results(
        self, scan: Scan, alignment: Alignment, segmentations: list[Segmentation]
    ) -> UInt8[ndarray, "i j k"]:
        """Write pose and label maps; return the map of the cavity in the scan's own space."""
        hypothalamus, icv = segmentations
        scanner_from_acpc = np.linalg.inv(alignment.acpc_from_scanner)
        icv_map = label_map_on(icv, scan.grid, scanner_from_acpc)
        if self.place:
            to_slab = acpc_from_space(hypothalamus.grid, alignment)
            table = hypothalamus.labels
            write_record(self.place, "alignment", alignment_record(alignment))
            save_transform(self.place.child(transform_name(self.scan)).url, alignment.acpc_from_scanner)
            write_label_map(self.place, "icv_scan", icv_map, scan.grid, ICV)
            in_scan = label_map_on(hypothalamus, scan.grid, scanner_from_acpc @ to_slab)
            write_label_map(self.place, "hypothalamus_scan", in_scan, scan.grid, table)
            write_label_map(self.place, "hypothalamus_slab", slab_label_map(hypothalamus, to_slab), slab_grid(), table)
        return icv_map

    def keep_measures(self, measures: Measures) -> None:
        """Write what quality was judged by."""
        if self.place:
            write_record(self.place, "quality", dict(measures))

    def finish(self, row: Row, stamp: str, path: str) -> None:
        """Say that the store is complete; the last thing written."""
        if self.place and row.status == "done":
            made_by = {"scan": row.scan, "sha256": row.sha256, "model": row.model, "version": row.version}
            mark_done(self.place, {**made_by, "source_sha256": _digest_of(path), "stamp": stamp, "row": row.as_dict()})

    def discard(self) -> None:
        """A scan that failed leaves no store."""
        if self.place:
            delete_store(self.place)


def _digest_of(path: str) -> str:
    """What tells where a scan was read from without saying it: paths may hold names of people."""
    return sha256_of(absolute(path).encode(errors="surrogateescape"))


def alignment_record(alignment: Alignment) -> dict[str, Any]:
    """The pose as plain values."""
    return {
        "acpc_from_scanner": alignment.acpc_from_scanner.tolist(),
        "mni_from_scanner": alignment.mni_from_scanner.tolist(),
        "ac_mm": alignment.ac_mm.tolist(),
        "pc_mm": alignment.pc_mm.tolist(),
        "score": alignment.score,
        "error_mm": alignment.error_mm,
        "flagged": alignment.flagged,
        "warnings": list(alignment.warnings),
        "source": alignment.source,
    }


def transform_name(scan: str) -> str:
    """Name of ITK's file of a scan's pose, as BIDS names transforms.

    >>> transform_name("sub-01_ses-2")
    'sub-01_ses-2_from-T1w_to-ACPC_mode-image_xfm.txt'
    """
    return f"{scan.removesuffix('_T1w')}_from-T1w_to-ACPC_mode-image_xfm.txt"


class _Stopped(Exception):  # noqa: N818 - it stops a scan, it is no error
    """A scan was refused at some stage."""

    def __init__(self, outcome: dict[str, Any]) -> None:
        super().__init__()
        self.outcome = outcome


@contextmanager
def _at(stage: Stage) -> Iterator[None]:
    """Say at which stage a scan was refused."""
    try:
        yield
    except ScanError as err:
        reason = " ".join([str(err), *getattr(err, "__notes__", ())])
        raise _Stopped({"status": "failed", "stage": stage, "error": type(err).__name__, "reason": reason}) from err
