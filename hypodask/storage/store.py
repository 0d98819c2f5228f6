"""One Zarr store per scan: its voxels, its label maps, records, and a done-mark.

A store is a NIfTI-Zarr image (Zarr v3, OME-Zarr 0.5 multiscales, the NIfTI header in the array
``nifti``), so that other readers open it::

    <scan>.nii.zarr/
        zarr.json                      multiscales, and the affine in full precision
        0/                             voxels (z, y, x) in the file's own dtype, unscaled
        nifti/                         NIfTI header: affine, slope, units
        labels/<name>/{zarr.json, 0/, nifti/}    label maps, each a NIfTI-Zarr image too
        <name>.json                    records, such as the alignment
        <scan>_from-T1w_to-ACPC_mode-image_xfm.txt   the pose for ANTs, SimpleITK and 3D Slicer
        done.json, done.json.sha256    written last: the size and sha256 of every other file

Each array is one shard, hence one file, with chunks of 128^3 voxels, so that a scan has few files. Every chunk has a
checksum (CRC32C), and empty chunks are written too. The readers in this module read each file whole, compare its sha256
with the one in the done-mark, and decode the bytes that they compared. This is needed because Zarr by itself reads a
lost chunk as 0, which in a label map means background, and in a volume looks like atrophy.
"""

import json
from collections.abc import Iterator
from itertools import product
from math import ceil

import zarr
from jaxtyping import UInt8
from numpy import ndarray
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from hypodask.core.errors import StoreError
from hypodask.core.grid import Grid
from hypodask.core.structures import LabelTable
from hypodask.files.digests import SEAL, delete_sealed, read_sealed, sha256_of, write_sealed
from hypodask.files.encoding import from_json, to_json
from hypodask.files.leases import check_claim
from hypodask.files.location import Location
from hypodask.scan.scan import Scan
from hypodask.storage.images import (
    Record,
    StoredImage,
    decoded_image,
    decoded_label_table,
    label_attributes,
    new_header,
    scan_header,
    write_image,
)

_STORE_FORMAT = 2
"""Raised when older code could not read a newer layout, or newer code an older one."""

_DONE = "done.json"
"""The done-mark: what made the store, and every file of it."""

_CURE = "delete the store and run the scan again"


def write_scan(url: str | Location, scan: Scan) -> None:
    """Begin the store of a scan with its voxels and header; an older or unfinished store is removed first.

    Header fields and extensions that may name the participant are left empty.

    Parameters
    ----------
    url
        Folder or URL of the store. A :class:`~hypodask.files.location.Location` also says which output it belongs to.
    scan
        Written in its own dtype; slope and intercept stay in the header.
    """
    check_claim()
    place = _place(url)
    delete_store(place)
    scale = {"slope": scan.slope, "intercept": scan.intercept, "sha256": scan.sha256}
    write_image(place, scan.stored, scan.grid, scan_header(scan), scale)


def read_stored_scan(url: str | Location) -> Scan:
    """The scan as it was read from its file; its ``source`` is now the store.

    Raises
    ------
    StoreError
        If there is no finished store, or one of its files is missing or not as it was written.
    """
    image = _read_image(_place(url))
    known, header = image.known, image.header
    return Scan(
        image.voxels, image.grid, known["slope"], known["intercept"], header, str(_place(url).url), known["sha256"]
    )


def write_label_map(
    url: str | Location, name: str, label_map: UInt8[ndarray, "i j k"], grid: Grid, labels: LabelTable
) -> None:
    """Add a label map to a store, as an OME-Zarr label image that is also a NIfTI-Zarr image.

    Parameters
    ----------
    url
        The store.
    name
        For example ``hypothalamus_slab``. A label map of the same name is replaced.
    label_map
        Numbers of ``labels``, 0 for background.
    grid
        Where its voxels are; this may differ from the grid of the scan.
    labels
        Stored with the label map, for :func:`read_label_table`.
    """
    place = _place(url).child("labels", name)
    place.delete()
    header = new_header(label_map, grid)
    header.set_intent("label")
    write_image(place, label_map, grid, header, *label_attributes(labels))
    group = zarr.open_group(_place(url).child("labels").zarr_store(), mode="a", zarr_format=3)
    known = group.attrs.get("ome", {})
    names = known.get("labels", []) if isinstance(known, dict) else []
    group.attrs["ome"] = {"version": "0.5", "labels": sorted({*names, name})}


def read_label_map(url: str | Location, name: str) -> tuple[UInt8[ndarray, "i j k"], Grid]:
    """A label map of a store and its grid.

    Raises
    ------
    StoreError
        If there is none, or one of its files is missing or not as it was written.
    """
    image = _read_image(_place(url), f"labels/{name}/")
    return image.voxels, image.grid


def read_label_table(url: str | Location, name: str) -> LabelTable:
    """What the numbers in a label map of a store mean.

    Raises
    ------
    StoreError
        If there is no such label map, or it is not as it was written.
    """
    place = _place(url)
    group = _opened(place, f"labels/{name}/")
    try:
        return decoded_label_table(group)
    except (AttributeError, KeyError, TypeError, ValueError, StoreError) as err:
        raise StoreError(f"{place.url}/labels/{name} has no label table of hypodask ({err!r}); {_CURE}") from err


def write_record(url: str | Location, name: str, record: Record) -> None:
    """Keep numbers and texts beside the arrays, as ``<name>.json``."""
    _place(url).child(f"{name}.json").write(to_json(record))


def read_record(url: str | Location, name: str) -> Record:
    """A record of a store.

    Raises
    ------
    StoreError
        If there is none, or it is not as it was written.
    """
    place = _place(url)
    files = _verified(place, f"{name}.json")
    if f"{name}.json" not in files:
        raise StoreError(f"{place.url} has no {name}.json; {_CURE}")
    return from_json(files[f"{name}.json"], f"{place.url}/{name}.json", _CURE)


def mark_done(url: str | Location, record: Record) -> None:
    """Say that a store is complete; the last thing written into it.

    Parameters
    ----------
    record
        What the store was made from: sha256 of the input, stamp of the run, versions. The sizes and digests of all
        files and the number of chunks are added.

    Raises
    ------
    StoreError
        If an array lacks chunks, so that the store is not complete.
    ClusterError
        If this process lost its lease of the scan meanwhile.
    """
    place = _place(url)
    files = _own_files(place)
    chunks = [chunk for name in files for chunk in _expected_chunks(place, name)]
    missing = [chunk for chunk in chunks if not files.get(chunk)]
    if missing:
        raise StoreError(f"{place.url} lacks {', '.join(missing)} and cannot be marked as done; write it again")
    check_claim()
    sizes = {name: {"bytes": size, "sha256": sha256_of(place.child(name).read())} for name, size in files.items()}
    done = {**record, "store_format": _STORE_FORMAT, "chunks": len(chunks), "files": sizes}
    write_sealed(place.child(_DONE), to_json(done))


def read_done(url: str | Location) -> Record | None:
    """What :func:`mark_done` wrote, or ``None`` for a store that is not complete.

    Raises
    ------
    StoreError
        If it is not as it was written.
    """
    place = _place(url)
    try:
        return from_json(read_sealed(place.child(_DONE), _CURE), f"{place.url}/{_DONE}", _CURE)
    except FileNotFoundError:
        return None


def verify_store(url: str | Location, *, digests: bool = True) -> list[str]:
    """Compare a store with its done-mark.

    Parameters
    ----------
    url
        The store.
    digests
        Read every byte. Otherwise only sizes are compared, which finds files that are lost or cut short, but not files
        that were altered.

    Returns
    -------
    list of str
        Problems in words; empty if there are none.
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
    """Remove the store of one scan, if there is one.

    The done-mark is removed first, so that a deletion which is interrupted never leaves a store that looks complete. If
    the store is a symbolic link, only the link is removed.
    """
    place = _place(url)
    if place.folder is None or not place.folder.is_symlink():
        delete_sealed(place.child(_DONE))
    place.delete()


def _place(url: str | Location) -> Location:
    """The place of a store. Given by path, the store itself may be replaced and deleted, but nothing beside it."""
    if isinstance(url, Location):
        return url
    store = Location(url)
    return Location(store.url, store.url.removesuffix(store.name).rstrip("/\\") or store.url)


def _read_image(place: Location, inside: str = "") -> StoredImage:
    group = _opened(place, inside)
    if not isinstance(group.attrs.get("hypodask"), dict):
        raise StoreError(f"{place.url} was not written by hypodask; its affine would be a guess")
    try:
        return decoded_image(group)
    except Exception as err:
        # Each codec has its own kinds of errors. All files have the right digest, so this should never happen.
        raise StoreError(f"{place.url}/{inside} cannot be decoded ({err!r}); {_CURE}") from err


def _opened(place: Location, inside: str) -> zarr.Group:
    """The group of an image. Its files are in memory, and each was compared with its digest."""
    files = _verified(place, inside)
    if "zarr.json" not in files:
        raise StoreError(f"{place.url} has no {inside or 'image'}; {_CURE}")
    store = MemoryStore({name: cpu.Buffer.from_bytes(content) for name, content in files.items()}, read_only=True)
    return zarr.open_group(store, mode="r", zarr_format=3)


def _verified(place: Location, inside: str) -> dict[str, bytes]:
    """Files of a store whose names begin with ``inside``, each compared with its digest; all but label maps by default.

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
        raise StoreError(f"{place.url}/{_DONE} lists no files ({err!r}); {_CURE}") from err
    found = {}
    for name, digest in listed.items():
        if not name.startswith(inside) or (not inside and name.startswith("labels/")):
            continue
        try:
            content = place.child(name).read()
        except FileNotFoundError:
            raise StoreError(f"{place.url} lacks {name}; {_CURE}") from None
        if sha256_of(content) != digest:
            raise StoreError(f"{place.url}/{name} is damaged: it is not what was written; {_CURE}")
        found[name.removeprefix(inside) or name] = content
    return found


def _expected_chunks(place: Location, name: str) -> Iterator[str]:
    """Paths of the files that an array must have; none if ``name`` is not the metadata of an array."""
    folder, _, leaf = name.rpartition("/")
    if leaf != "zarr.json":
        return
    try:
        metadata = json.loads(place.child(name).read())
    except (FileNotFoundError, ValueError, RecursionError) as err:
        raise StoreError(f"{place.url}/{name} is missing or damaged; {_CURE}") from err
    if metadata["node_type"] == "array":
        sizes = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        counts = [range(ceil(n / size)) for n, size in zip(metadata["shape"], sizes, strict=True)]
        yield from ("/".join([folder, "c", *map(str, index)]) for index in product(*counts))


def _own_files(place: Location) -> dict[str, int]:
    """The files of a store, without its done-mark and without hidden files of file systems (.nfs0001, .DS_Store)."""
    files = place.files()
    return {
        name: files[name]
        for name in files
        if name not in (_DONE, _DONE + SEAL) and not name.rpartition("/")[2].startswith(".")
    }


def _differences(place: Location, files: dict[str, int], listed: dict[str, Record], *, digests: bool) -> Iterator[str]:
    for name, known in listed.items():
        if name not in files:
            yield f"{name} is missing"
        elif files[name] != known["bytes"]:
            yield f"{name} has {files[name]} bytes, not the {known['bytes']} that were written"
        elif digests and sha256_of(place.child(name).read()) != known["sha256"]:
            yield f"{name} was altered: its sha256 differs"
    yield from (f"{name} was added after the scan was done" for name in files if name not in listed)


def _lost_chunks(place: Location, files: dict[str, int], done: Record) -> Iterator[str]:
    chunks = [chunk for name in files for chunk in _expected_chunks(place, name)]
    if len(chunks) != done["chunks"]:
        yield f"the arrays have {len(chunks)} chunk files, not the {done['chunks']} that were written"
