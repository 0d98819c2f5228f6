"""From a path to a trusted scan."""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike, fspath

import numpy as np
from numpy import ndarray

from hypodask.core.errors import LocationError, OversizeScanError, ScanError, UnreadableScanError
from hypodask.files.location import Location
from hypodask.scan.checks import check_geometry, check_intensities, check_place, check_size
from hypodask.scan.dicom import converted_series, is_dicom
from hypodask.scan.layout import Layout
from hypodask.scan.mgh import is_mgh, nifti_header, read_mgh_layout
from hypodask.scan.nifti import is_nifti, read_nifti_layout
from hypodask.scan.scan import Scan
from hypodask.scan.source import GZIP, Source, open_file

_MAX_HEADER_BYTES = 2**26
"""Largest header with its extensions; a DICOM header that is kept as an extension has about 100 kB."""


def read_scan(path: str | PathLike[str]) -> Scan:
    """Read one scan and refuse what cannot be trusted.

    The format is recognised by the content, not by the name of the file: NIfTI-1 and -2 in either byte order, and MGH,
    each plain or gzipped; a DICOM series as a folder or zip, converted by dcm2niix. The file is read once. The size
    that its header promises is checked before memory is allocated.

    Parameters
    ----------
    path
        A local path, or a URL (``s3://``, ``gs://``, ``az://``; others as docs/safety.md says).

    Returns
    -------
    Scan
        Voxels as stored, the whole affine in RAS+ mm (oblique or not), slope, intercept, sha256.

    Raises
    ------
    ScanError
        A subclass for each reason, see :mod:`hypodask.core.errors`. The message names the path, what was found, what
        was needed and what to do.
    OSError
        If the disk or the network fails; another attempt may succeed.

    Examples
    --------
    >>> read_scan("nowhere.nii.gz")
    Traceback (most recent call last):
    hypodask.core.errors.MissingScanError: nowhere.nii.gz: there is no such file; correct the path or drop the scan ...
    """
    return _named(path, _read_any)


def read_label_map(path: str | PathLike[str]) -> Scan:
    """Read a label map like a scan, with the same rules for the position of its voxels, left and right included.

    It may be a small block with any voxel size, and its values are not checked.

    Parameters
    ----------
    path
        NIfTI or MGH, a local path or a URL, as for :func:`read_scan`.

    Raises
    ------
    ScanError
        A subclass for each reason, as :func:`read_scan`.
    OSError
        If the disk or the network fails; another attempt may succeed.
    """

    def read(place: Location) -> Scan:
        with open_file(place) as file:
            return _read_image(Source(file), place.url, of_head=False)

    return _named(path, read)


def _named(path: str | PathLike[str], read: Callable[[Location], Scan]) -> Scan:
    """A scan, or an error that begins with its path."""
    try:
        return read(Location(path))
    except LocationError as err:
        raise UnreadableScanError(f"{fspath(path)}: {err}") from err
    except ScanError as err:
        raise type(err)(f"{fspath(path)}: {err}") from err


def _read_any(place: Location) -> Scan:
    # Whether a URL is a prefix is not asked: that takes a request, and DICOM folders must be local.
    if place.folder is not None and place.is_folder():
        return _read_series(place)
    with open_file(place) as file:
        source = Source(file)
        if not is_dicom(source.start):
            return _read_image(source, place.url)
        start = source.start
    return _read_series(place, start)


def _read_series(place: Location, start: bytes = b"") -> Scan:
    with converted_series(place, start) as (nifti, sha256), open_file(Location(nifti)) as file:
        return replace(_read_image(Source(file), place.url), sha256=sha256)


def _read_image(source: Source, name: str, *, of_head: bool = True) -> Scan:
    with np.errstate(all="ignore"):  # numbers of a damaged header may overflow before they are checked
        layout = _read_layout(source)
        check_size(layout)
        grid = check_geometry(layout) if of_head else check_place(layout)
    stored = _read_voxels(source, layout)
    sha256 = source.finish()
    if of_head:
        check_intensities(stored, layout.slope, layout.intercept)
    return Scan(
        stored,
        grid,
        slope=layout.slope,
        intercept=layout.intercept,
        header=layout.header or nifti_header(layout),
        source=name,
        sha256=sha256,
        warnings=layout.warnings,
    )


def _read_layout(source: Source) -> Layout:
    start = source.read(4)
    if is_nifti(start):
        return read_nifti_layout(start, source)
    if is_mgh(start):
        return read_mgh_layout(start, source)
    raise UnreadableScanError(_not_an_image(start, source))


def _not_an_image(start: bytes, source: Source) -> str:
    needed = "a NIfTI or MGH file, or a DICOM series, is needed"
    if not source.start:
        return f"the file is empty; {needed}: copy or export it again"
    if not start:
        return f"the file is gzipped but empty inside; {needed}: copy or export it again"
    if source.start.startswith(b"version https://git-lfs"):
        return f"this is a Git LFS pointer, not the scan; {needed}: run git lfs pull"
    if source.gzipped and start.startswith(GZIP):
        return f"the file was gzipped twice; {needed}, gzipped once or not at all: unpack it with gunzip"
    return f"this is not an image: it begins with {start!r}; {needed}: convert or export it again"


def _read_voxels(source: Source, layout: Layout) -> ndarray:
    if layout.offset > _MAX_HEADER_BYTES:
        raise OversizeScanError(
            f"the header says that voxels begin at byte {layout.offset:,}; at most {_MAX_HEADER_BYTES:,} are passed "
            "over: the header is damaged, convert the scan again"
        )
    source.skip_to(layout.offset)
    source.require(layout.byte_count)
    try:
        flat = np.empty(layout.voxel_count, dtype=layout.dtype)
    except MemoryError as err:
        raise OversizeScanError(
            f"the header promises {layout.byte_count:,} bytes of voxels, more than this machine's memory; "
            "read it on a larger one, or resample it"
        ) from err
    source.fill(flat.view(np.uint8).data)
    if not layout.dtype.isnative:
        flat = flat.byteswap(inplace=True).view(layout.dtype.newbyteorder("="))
    return flat.reshape(layout.shape, order="F")
