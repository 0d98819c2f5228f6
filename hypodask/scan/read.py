"""From a path to a trusted scan."""

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy import ndarray

from hypodask.errors import OversizeScanError, ScanError, UnreadableScanError
from hypodask.location import absolute, is_url
from hypodask.scan.checks import check_geometry, check_intensities, check_place, check_size
from hypodask.scan.dicom import converted_series, is_dicom
from hypodask.scan.layout import Layout
from hypodask.scan.mgh import is_mgh, nifti_header, read_mgh_layout
from hypodask.scan.nifti import is_nifti, read_nifti_layout
from hypodask.scan.scan import Scan
from hypodask.scan.source import GZIP, Source, open_file

MAX_HEADER_BYTES = 2**26
"""Header with extensions; a DICOM header kept as an extension takes about 100 kB."""


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """Read one scan and refuse what cannot be trusted.

    The format is told from the bytes, not from the name: NIfTI-1 and -2 in either byte order, MGH, each
    plain or gzipped; a DICOM series as a folder or zip, through dcm2niix. The file is read once, and its
    memory is bounded by what its header promises, which is checked before any is taken.

    Parameters
    ----------
    path
        A local path, or a URL (``s3://``, ``gs://``, ``az://``; others as docs/safety.md says).

    Returns
    -------
    Scan
        Voxels as stored, their place in RAS+ mm whole (oblique or not), slope, intercept, sha256.

    Raises
    ------
    ScanError
        A subclass for each reason, see :mod:`hypodask.errors`; the message names the path, what was found,
        what was needed and what to do.
    OSError
        If disk or network fail; another try may succeed.

    Examples
    --------
    >>> read_scan("nowhere.nii.gz")
    Traceback (most recent call last):
    hypodask.errors.MissingScanError: nowhere.nii.gz: there is no such file; correct the path or drop the scan ...
    """
    return _named(path, _read_any)


def read_label_map(path: str | os.PathLike[str]) -> Scan:
    """Read a label map as a scan is read, by the same rules of where its voxels are, left and right included.

    It may be a small block of any voxel size, and its values are not looked at.

    Parameters
    ----------
    path
        NIfTI or MGH, a local path or a URL, as for :func:`read_scan`.

    Raises
    ------
    ScanError
        A subclass for each reason, as :func:`read_scan`.
    OSError
        If disk or network fail; another try may succeed.
    """

    def read(name: str) -> Scan:
        with open_file(name) as file:
            return _read_image(Source(file), name, of_head=False)

    return _named(path, read)


def _named(path: str | os.PathLike[str], read: Callable[[str], Scan]) -> Scan:
    """A scan, or an error that begins with its path."""
    name = os.fspath(path)
    try:
        return read(absolute(name) if is_url(name) or name.startswith("~") else name)
    except ScanError as err:
        raise type(err)(f"{name}: {err}") from err


def _read_any(name: str) -> Scan:
    if not is_url(name) and os.path.isdir(name):  # noqa: PTH112 - Path.is_dir raises for names that are too long
        return _read_series(name)
    with open_file(name) as file:
        source = Source(file)
        if not is_dicom(source.start):
            return _read_image(source, name)
        start = source.start
    return _read_series(name, start)


def _read_series(name: str, start: bytes = b"") -> Scan:
    with converted_series(name, start) as (nifti, sha256), open_file(nifti) as file:
        return replace(_read_image(Source(file), name), sha256=sha256)


def _read_image(source: Source, name: str, *, of_head: bool = True) -> Scan:
    with np.errstate(all="ignore"):  # numbers of a damaged header overflow on their way to the checks
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
    if layout.offset > MAX_HEADER_BYTES:
        raise OversizeScanError(
            f"the header says that voxels begin at byte {layout.offset:,}; at most {MAX_HEADER_BYTES:,} are passed "
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
