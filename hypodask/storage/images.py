"""Images as they lie in a store: NIfTI-Zarr, that is a Zarr group with an array of voxels and a NIfTI header.

A label map is such an image too. The attributes of its group hold its label table in the form of OME-Zarr.
"""

import io
from math import ceil
from typing import Any, NamedTuple, cast

import nibabel as nib
import numpy as np
import zarr
from jaxtyping import Shaped
from numpy import ndarray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from hypodask.core.documents import from_document
from hypodask.core.errors import StoreError
from hypodask.core.grid import Grid
from hypodask.core.structures import LabelTable
from hypodask.files.location import Location
from hypodask.scan.scan import Scan

_CHUNK = 128
"""Voxels of a chunk along each axis."""

_FREE_TEXT = ("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")
"""Header fields that scanners and converters fill with names, dates and file paths."""

_SPACE_CODES = {"scanner": 1, "acpc": 2, "mni": 4}
"""NIfTI's number for each space."""

_AXES = ("z", "y", "x")
"""NIfTI-Zarr prescribes the reverse of NIfTI's order."""

Record = dict[str, Any]
"""An object of a JSON file."""


class StoredImage(NamedTuple):
    """An image as it was read from a store."""

    voxels: Shaped[ndarray, "i j k"]
    grid: Grid
    known: Record
    """The attributes of its group that hypodask wrote."""
    header: bytes


def write_image(
    place: Location, voxels: ndarray, grid: Grid, header: nib.Nifti1Header, known: Record, ome: Record | None = None
) -> None:
    """Write an image as a new group; ``known`` and ``ome`` are further attributes of hypodask and of OME-Zarr."""
    attributes = {
        "ome": {"version": "0.5", "multiscales": [_multiscale(grid)], **(ome or {})},
        # OME-Zarr 0.5 has no rotations, and NIfTI-1 has float32: neither can hold the affine exactly.
        "hypodask": {"space": grid.space, "space_from_vox": grid.space_from_vox.tolist(), **known},
    }
    group = zarr.create_group(place.zarr_store(), attributes=attributes, zarr_format=3)
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False).transpose()
    chunks = tuple(min(_CHUNK, n) for n in native.shape)
    array = group.create_array(
        "0",
        shape=native.shape,
        dtype=native.dtype,
        chunks=chunks,
        shards=tuple(chunk * ceil(n / chunk) for n, chunk in zip(native.shape, chunks, strict=True)),
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle=BloscShuffle.shuffle), Crc32cCodec()],
        fill_value=0,
        dimension_names=_AXES,
        # A chunk of background only must be written too: otherwise a lost chunk would look the same.
        config={"write_empty_chunks": True},
    )
    array[...] = native
    stream = io.BytesIO()
    header.write_to(stream)
    raw = stream.getvalue() if header.extensions else header.binaryblock
    group.create_array("nifti", data=np.frombuffer(raw, np.uint8), chunks=(len(raw),), compressors=None)


def decoded_image(group: zarr.Group) -> StoredImage:
    """The image of a group; any error means that its files are damaged."""
    known = cast(Record, group.attrs["hypodask"])
    voxels, header = (np.asarray(cast("zarr.Array[Any]", group[name])[...]) for name in ("0", "nifti"))
    grid = Grid(voxels.shape[::-1], np.array(known["space_from_vox"]), known["space"])
    return StoredImage(voxels.transpose(), grid, known, header.tobytes())


def scan_header(scan: Scan) -> nib.Nifti1Header:
    """The file's own header, made to agree with what is stored, without text about the participant."""
    header: nib.Nifti1Header
    if not scan.header:
        header = new_header(scan.stored, scan.grid)
        header.set_slope_inter(scan.slope, scan.intercept)
        return header
    size = int(np.frombuffer(scan.header[:4], "<i4")[0])
    kind = nib.Nifti1Header if size in (348, 1543569408) else nib.Nifti2Header
    header = kind.from_fileobj(io.BytesIO(scan.header), check=False).as_byteswapped("<")
    for name in _FREE_TEXT:
        if name in header.structarr.dtype.names:
            header.structarr[name] = b""
    header.extensions.clear()
    header.set_data_shape(scan.grid.shape)
    header.set_data_dtype(scan.stored.dtype.newbyteorder("="))
    header.set_slope_inter(scan.slope, scan.intercept)
    # The file's own sform and qform are kept if they agree with the grid.
    if not np.allclose(header.get_best_affine(), scan.grid.space_from_vox, rtol=1e-5, atol=1e-4):
        header.set_sform(scan.grid.space_from_vox, _SPACE_CODES["scanner"])
    return header


def new_header(voxels: ndarray, grid: Grid) -> nib.Nifti1Header:
    """A NIfTI-1 header for voxels that did not come from a file."""
    header = nib.Nifti1Header()
    header.set_data_dtype(voxels.dtype.newbyteorder("="))
    header.set_data_shape(voxels.shape)
    header.set_zooms(grid.spacing_mm)
    header.set_sform(grid.space_from_vox, _SPACE_CODES[grid.space])
    header.set_xyzt_units("mm")
    return header


def label_attributes(labels: LabelTable) -> tuple[Record, Record]:
    """A label table as attributes of a group: those of hypodask, and those of OME-Zarr."""
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
    ome = {"image-label": {"colors": colours, "properties": properties, "source": {"image": "../../"}}}
    return {"protocol": labels.protocol, "whole": labels.whole}, ome


def decoded_label_table(group: zarr.Group) -> LabelTable:
    """The label table that :func:`label_attributes` wrote.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the attributes hold none.
    StoreError
        If a value is missing, unknown or of another type.
    """
    known, ome = (cast(Record, group.attrs[part]) for part in ("hypodask", "ome"))
    colours = {one["label-value"]: bytes(one["rgba"][:3]).hex() for one in ome["image-label"]["colors"]}
    labels = [
        {("index" if key == "label-value" else key): value for key, value in one.items()}
        | {"colour": f"#{colours[one['label-value']]}"}
        for one in ome["image-label"]["properties"]
    ]
    table = {"protocol": known["protocol"], "whole": known["whole"], "labels": labels}
    return from_document(
        LabelTable, table, what="the label table", error=StoreError, cure="delete the store and run the scan again"
    )


def _multiscale(grid: Grid) -> Record:
    scale = {"type": "scale", "scale": list(reversed(grid.spacing_mm))}
    return {
        "name": "",
        "axes": [{"name": name, "type": "space", "unit": "millimeter"} for name in _AXES],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
