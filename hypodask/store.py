"""One Zarr store per scan: its voxels, its label maps, what is known about it, and a done-mark.

A store is a NIfTI-Zarr image (Zarr v3, OME-Zarr 0.5 multiscales, the NIfTI header in the array
``nifti``), so that other readers open it::

    <scan>.nii.zarr/
        zarr.json                      multiscales, and the affine in full precision
        0/                             voxels (z, y, x) in the file's own dtype, unscaled
        nifti/                         NIfTI header: affine, slope, units
        labels/<name>/{zarr.json, 0/, nifti/}   a label map is a NIfTI-Zarr image too
        <name>.json                    records, such as the alignment
        <scan>_from-T1w_to-ACPC_mode-image_xfm.txt    the pose for ANTs, SimpleITK and 3D Slicer
        done.json, done.json.sha256    written last: every file with its size and sha256

Each array is one shard, hence one file, that holds chunks of 128^3 voxels: a scan stays a handful of files.
Every chunk carries its CRC32C and empty ones are written too. The readers here take each file whole, compare its
sha256 with the one that the done-mark lists, and decode what they compared: Zarr by itself reads a lost chunk as 0,
which in a label map is background and in a volume is atrophy.
"""

import io
import json
import re
from collections.abc import Iterator
from itertools import product
from math import ceil
from typing import Any, NamedTuple, cast

import nibabel as nib
import numpy as np
import zarr
from jaxtyping import Shaped, UInt8
from numpy import ndarray
from zarr.buffer import cpu
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec
from zarr.storage import MemoryStore

from hypodask.cohort import Entry
from hypodask.cohort.ids import id_danger
from hypodask.digests import SEAL, decoded, delete_sealed, read_sealed, sha256_of, write_sealed
from hypodask.errors import StoreError
from hypodask.grid import Grid
from hypodask.labels import Label, LabelTable
from hypodask.leases import check_claim
from hypodask.location import Location
from hypodask.scan import Scan

STORE_FORMAT = 2
"""Raised when a newer layout could not be read by older code, or the other way round."""

DONE = "done.json"
"""The done-mark: what made the store, and every file of it."""

SUFFIX = ".nii.zarr"
"""Ending of a store's name, after the scan's identifier."""

CHUNK = 128
"""Voxels of a chunk along each axis."""

FREE_TEXT = ("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")
"""Header fields that scanners and converters fill with names, dates and file paths."""

SPACE_CODES = {"scanner": 1, "acpc": 2, "mni": 4}
"""NIfTI's number for each space."""

AXES = ("z", "y", "x")
"""NIfTI-Zarr prescribes the reverse of NIfTI's order."""

Record = dict[str, Any]


CURE = "delete the store and run the scan again"


def store_path(entry: Entry) -> str:
    """Where the store of a scan lies, relative to the output.

    >>> store_path(Entry(scan="sub-01", path="a.nii", site="Ulm", participant_id="sub-01", session="", run=""))
    'scans/Ulm/sub-01.nii.zarr'

    Raises
    ------
    StoreError
        If the identifier cannot be the name of a file.
    """
    if danger := id_danger(entry.scan):
        raise StoreError(f"scan {entry.scan!r} cannot name its store: {danger}; rename it")
    site = re.sub(r"[^\w+-]+", "-", entry.site).strip("-")
    return "/".join(part for part in ("scans", site, f"{entry.scan}{SUFFIX}") if part)


def write_scan(url: str | Location, scan: Scan, *, keep_free_text: bool = False) -> None:
    """Begin the store of a scan with its voxels and header; what a killed worker left there is removed.

    Parameters
    ----------
    url
        Folder or URL of the store; a :class:`~hypodask.location.Location` keeps to the output it is of.
    scan
        Written in its own dtype; the slope stays in the header.
    keep_free_text
        Keep header fields and extensions that may name the participant.
    """
    check_claim()
    place = _place(url)
    delete_store(place)
    scale = {"slope": scan.slope, "intercept": scan.intercept, "sha256": scan.sha256}
    _write_image(place, scan.stored, scan.grid, _scan_header(scan, keep_free_text=keep_free_text), scale)


def read_stored_scan(url: str | Location) -> Scan:
    """The scan as it was read, its source now being the store.

    Raises
    ------
    StoreError
        If there is no finished store, or a file of it is missing or not as it was written.
    """
    image = _read_image(_place(url))
    known, header = image.known, image.header
    return Scan(
        image.voxels, image.grid, known["slope"], known["intercept"], header, str(_place(url).url), known["sha256"]
    )


def write_label_map(
    url: str | Location, name: str, label_map: UInt8[ndarray, "i j k"], grid: Grid, labels: LabelTable
) -> None:
    """Add a label map to a store, as an OME-Zarr label image that is a NIfTI-Zarr image as well.

    Parameters
    ----------
    name
        Such as ``hypothalamus_slab``; a label map of that name is replaced.
    label_map
        Numbers of ``labels``, 0 for background.
    grid
        Where its voxels are; it need not be the scan's grid.
    """
    place = _place(url).child("labels", name)
    place.delete()
    header = _new_header(label_map, grid)
    header.set_intent("label")
    of_labels = {"protocol": labels.protocol, "whole": labels.whole}
    _write_image(place, label_map, grid, header, of_labels, _image_label(labels))
    group = zarr.open_group(_place(url).child("labels").zarr_store(), mode="a", zarr_format=3)
    known = group.attrs.get("ome", {})
    names = known.get("labels", []) if isinstance(known, dict) else []
    group.attrs["ome"] = {"version": "0.5", "labels": sorted({*names, name})}


def read_label_map(url: str | Location, name: str) -> tuple[UInt8[ndarray, "i j k"], Grid]:
    """A label map of a store and its grid.

    Raises
    ------
    StoreError
        If it is not there, or a file of it is missing or not as it was written.
    """
    image = _read_image(_place(url), f"labels/{name}/")
    return image.voxels, image.grid


def read_label_table(url: str | Location, name: str) -> LabelTable:
    """What the numbers in a label map of a store stand for, as it was written with them.

    Raises
    ------
    StoreError
        If it is not there, or not as it was written.
    """
    place = _place(url)
    group = _opened(place, f"labels/{name}/")
    try:
        known, ome = (cast(Record, group.attrs[part]) for part in ("hypodask", "ome"))
        colours = {one["label-value"]: bytes(one["rgba"][:3]).hex() for one in ome["image-label"]["colors"]}
        labels = tuple(
            Label(
                number := one["label-value"],
                one["structure"],
                one["hemisphere"],
                one["abbreviation"],
                f"#{colours[number]}",
            )
            for one in ome["image-label"]["properties"]
        )
        return LabelTable(known["protocol"], known["whole"], labels)
    except (KeyError, TypeError, ValueError) as err:
        raise StoreError(f"{place.url}/labels/{name} has no label table of ours ({err!r}); {CURE}") from err


def write_record(url: str | Location, name: str, record: Record) -> None:
    """Keep plain values beside the arrays, as ``<name>.json``."""
    _place(url).child(f"{name}.json").write(_json(record))


def read_record(url: str | Location, name: str) -> Record:
    """A record of a store.

    Raises
    ------
    StoreError
        If it is not there, or not as it was written.
    """
    place = _place(url)
    files = _verified(place, f"{name}.json")
    if f"{name}.json" not in files:
        raise StoreError(f"{place.url} has no {name}.json; {CURE}")
    return decoded(files[f"{name}.json"], f"{place.url}/{name}.json", CURE)


def mark_done(url: str | Location, record: Record) -> None:
    """Say that a store is complete; the last thing written into it.

    Parameters
    ----------
    record
        What made it: input sha256, hashes of configuration and models, versions. The sizes and digests
        of all files and the number of chunks are added.

    Raises
    ------
    StoreError
        If an array lacks chunks: then the store is not complete.
    ClusterError
        If this process lost its claim of the scan meanwhile.
    """
    place = _place(url)
    files = _own_files(place)
    chunks = [chunk for name in files for chunk in _expected_chunks(place, name)]
    missing = [chunk for chunk in chunks if not files.get(chunk)]
    if missing:
        raise StoreError(f"{place.url} lacks {', '.join(missing)} and cannot be marked as done; write it again")
    check_claim()
    sizes = {name: {"bytes": size, "sha256": _digest(place.child(name))} for name, size in files.items()}
    done = {**record, "store_format": STORE_FORMAT, "chunks": len(chunks), "files": sizes}
    write_sealed(place.child(DONE), _json(done))


def read_done(url: str | Location) -> Record | None:
    """What :func:`mark_done` wrote, or ``None`` for a store that is not complete.

    Raises
    ------
    StoreError
        If it is not as it was written.
    """
    place = _place(url)
    try:
        return decoded(read_sealed(place.child(DONE), CURE), f"{place.url}/{DONE}", CURE)
    except FileNotFoundError:
        return None


def verify_store(url: str | Location, *, digests: bool = True) -> list[str]:
    """Compare a store with its done-mark.

    Parameters
    ----------
    digests
        Read every byte. Without it sizes are compared, which finds what is lost or cut short but not
        what was altered.

    Returns
    -------
    list of str
        Problems in words, empty when the store is sound.
    """
    place = _place(url)
    files = _own_files(place)
    if not files:
        return ["there is no store; run the scan again"]
    try:
        done = read_done(place)
        if done is None:
            return ["done.json is missing: the scan was interrupted; run it again"]
        listed: dict[str, Record] = done["files"]
        problems = [*_differences(place, files, listed, digests=digests), *_lost_chunks(place, files, done)]
    except (StoreError, AttributeError, KeyError, TypeError, ValueError) as err:
        problems = [f"the store cannot be checked ({err}); delete it and run the scan again"]
    return problems


def delete_store(url: str | Location) -> None:
    """Forget one scan: remove its store, where there is one.

    The done-mark goes first, so that a deletion that is interrupted never leaves a store that looks
    complete. A store that is a link is removed as the link that it is.
    """
    place = _place(url)
    if place.folder is None or not place.folder.is_symlink():
        delete_sealed(place.child(DONE))
    place.delete()


def _place(url: str | Location) -> Location:
    """A store by itself may be replaced and deleted; what lies beside it may not be touched."""
    if isinstance(url, Location):
        return url
    store = Location(url)
    return Location(store.url, store.url.removesuffix(store.name).rstrip("/\\") or store.url)


def _write_image(
    place: Location, voxels: ndarray, grid: Grid, header: nib.Nifti1Header, known: Record, ome: Record | None = None
) -> None:
    attributes = {
        "ome": {"version": "0.5", "multiscales": [_multiscale(grid)], **(ome or {})},
        # OME-Zarr 0.5 has no rotations and NIfTI-1 has float32: neither holds the affine as it is.
        "hypodask": {"space": grid.space, "space_from_vox": grid.space_from_vox.tolist(), **known},
    }
    group = zarr.create_group(place.zarr_store(), attributes=attributes, zarr_format=3)
    _write_voxels(group, voxels)
    stream = io.BytesIO()
    header.write_to(stream)
    raw = stream.getvalue() if header.extensions else header.binaryblock
    group.create_array("nifti", data=np.frombuffer(raw, np.uint8), chunks=(len(raw),), compressors=None)


def _write_voxels(group: zarr.Group, voxels: ndarray) -> None:
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False).transpose()
    chunks = tuple(min(CHUNK, n) for n in native.shape)
    array = group.create_array(
        "0",
        shape=native.shape,
        dtype=native.dtype,
        chunks=chunks,
        shards=tuple(chunk * ceil(n / chunk) for n, chunk in zip(native.shape, chunks, strict=True)),
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle=BloscShuffle.shuffle), Crc32cCodec()],
        fill_value=0,
        dimension_names=AXES,
        # A chunk that is all background must be there: else it could not be told from a lost one.
        config={"write_empty_chunks": True},
    )
    array[...] = native


class _Image(NamedTuple):
    """A NIfTI-Zarr image of a store."""

    voxels: Shaped[ndarray, "i j k"]
    grid: Grid
    known: Record
    """What is ours in the attributes of its group."""
    header: bytes


def _read_image(place: Location, inside: str = "") -> _Image:
    group = _opened(place, inside)
    known = group.attrs.get("hypodask")
    if not isinstance(known, dict):
        raise StoreError(f"{place.url} was not written by hypodask; its affine would be a guess")
    try:
        voxels, header = (np.asarray(cast("zarr.Array[Any]", group[name])[...]) for name in ("0", "nifti"))
        grid = Grid(voxels.shape[::-1], np.array(known["space_from_vox"]), known["space"])
    except Exception as err:
        # Each codec complains in its own way. What was written so is what is read here, so nobody should see this.
        raise StoreError(f"{place.url}/{inside} cannot be decoded ({err!r}); {CURE}") from err
    return _Image(voxels.transpose(), grid, known, header.tobytes())


def _opened(place: Location, inside: str) -> zarr.Group:
    """The group of an image, its files in memory, each compared with its digest."""
    files = _verified(place, inside)
    if "zarr.json" not in files:
        raise StoreError(f"{place.url} has no {inside or 'image'}; {CURE}")
    store = MemoryStore({name: cpu.Buffer.from_bytes(content) for name, content in files.items()}, read_only=True)
    return zarr.open_group(store, mode="r", zarr_format=3)


def _verified(place: Location, inside: str) -> dict[str, bytes]:
    """Files of a store below a prefix, or one file, whole and as they were written; label maps only where asked for.

    Raises
    ------
    StoreError
        If the store is not complete, or a file is missing or altered.
    """
    done = read_done(place)
    if done is None:
        raise StoreError(f"there is no finished store at {place.url}; run the scan again")
    try:
        listed = {name: str(known["sha256"]) for name, known in done["files"].items()}
    except (KeyError, TypeError, AttributeError) as err:
        raise StoreError(f"{place.url}/{DONE} lists no files ({err!r}); {CURE}") from err
    wanted = [name for name in listed if name.startswith(inside) and (inside or not name.startswith("labels/"))]
    return {name.removeprefix(inside) or name: _read_verified(place, name, listed[name]) for name in wanted}


def _read_verified(place: Location, name: str, digest: str) -> bytes:
    try:
        content = place.child(name).read()
    except FileNotFoundError:
        raise StoreError(f"{place.url} lacks {name}; {CURE}") from None
    if sha256_of(content) != digest:
        raise StoreError(f"{place.url}/{name} is damaged: it is not what was written; {CURE}")
    return content


def _expected_chunks(place: Location, name: str) -> Iterator[str]:
    """Paths of the files that an array must have; nothing when ``name`` is not an array's metadata."""
    folder, _, leaf = name.rpartition("/")
    if leaf != "zarr.json":
        return
    try:
        metadata = json.loads(place.child(name).read())
    except (FileNotFoundError, ValueError, RecursionError) as err:
        raise StoreError(f"{place.url}/{name} is missing or damaged; {CURE}") from err
    if metadata["node_type"] == "array":
        sizes = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        counts = [range(ceil(n / size)) for n, size in zip(metadata["shape"], sizes, strict=True)]
        yield from ("/".join([folder, "c", *map(str, index)]) for index in product(*counts))


def _own_files(place: Location) -> dict[str, int]:
    """The files of a store but its done-mark and what file systems hide in folders (.nfs0001, .DS_Store)."""
    files = place.files()
    return {
        name: files[name]
        for name in files
        if name not in (DONE, DONE + SEAL) and not name.rpartition("/")[2].startswith(".")
    }


def _differences(place: Location, files: dict[str, int], listed: dict[str, Record], *, digests: bool) -> Iterator[str]:
    for name, known in listed.items():
        if name not in files:
            yield f"{name} is missing"
        elif files[name] != known["bytes"]:
            yield f"{name} has {files[name]} bytes, not the {known['bytes']} that were written"
        elif digests and _digest(place.child(name)) != known["sha256"]:
            yield f"{name} was altered: its sha256 differs"
    yield from (f"{name} was added after the scan was done" for name in files if name not in listed)


def _lost_chunks(place: Location, files: dict[str, int], done: Record) -> Iterator[str]:
    chunks = [chunk for name in files for chunk in _expected_chunks(place, name)]
    if len(chunks) != done["chunks"]:
        yield f"the arrays have {len(chunks)} chunk files, not the {done['chunks']} that were written"


def _scan_header(scan: Scan, *, keep_free_text: bool) -> nib.Nifti1Header:
    """The file's own header, agreeing with what is stored and free of text about the participant."""
    header: nib.Nifti1Header
    if not scan.header:
        header = _new_header(scan.stored, scan.grid)
        header.set_slope_inter(scan.slope, scan.intercept)
        return header
    size = int(np.frombuffer(scan.header[:4], "<i4")[0])
    kind = nib.Nifti1Header if size in (348, 1543569408) else nib.Nifti2Header
    given = kind.from_fileobj(io.BytesIO(scan.header), check=False)
    header = given.as_byteswapped("<")
    header.extensions = given.extensions
    if not keep_free_text:
        _drop_free_text(header)
    header.set_data_shape(scan.grid.shape)
    header.set_data_dtype(scan.stored.dtype.newbyteorder("="))
    header.set_slope_inter(scan.slope, scan.intercept)
    # The file's own sform and qform are kept where they say what the grid says.
    if not np.allclose(header.get_best_affine(), scan.grid.space_from_vox, rtol=1e-5, atol=1e-4):
        header.set_sform(scan.grid.space_from_vox, SPACE_CODES["scanner"])
    return header


def _new_header(voxels: ndarray, grid: Grid) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_dtype(voxels.dtype.newbyteorder("="))
    header.set_data_shape(voxels.shape)
    header.set_zooms(grid.spacing_mm)
    header.set_sform(grid.space_from_vox, SPACE_CODES[grid.space])
    header.set_xyzt_units("mm")
    return header


def _drop_free_text(header: nib.Nifti1Header) -> None:
    for name in FREE_TEXT:
        if name in header.structarr.dtype.names:
            header.structarr[name] = b""
    header.extensions.clear()


def _multiscale(grid: Grid) -> Record:
    scale = {"type": "scale", "scale": list(reversed(grid.spacing_mm))}
    return {
        "name": "",
        "axes": [{"name": name, "type": "space", "unit": "millimeter"} for name in AXES],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }


def _image_label(labels: LabelTable) -> Record:
    colours = [{"label-value": label.index, "rgba": [*bytes.fromhex(label.colour[1:]), 255]} for label in labels]
    properties = [
        {
            "label-value": label.index,
            "structure": label.structure,
            "hemisphere": label.hemisphere,
            "abbreviation": label.abbreviation,
        }
        for label in labels
    ]
    return {"image-label": {"colors": colours, "properties": properties, "source": {"image": "../../"}}}


def _digest(place: Location) -> str:
    return sha256_of(place.read())


def _json(record: Record) -> bytes:
    return json.dumps(_plain(record), indent=1, sort_keys=True, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, and null for a number that was not measured."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
