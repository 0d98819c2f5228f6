"""DICOM series, as a folder, a zip or one multi-frame file, converted to NIfTI by dcm2niix.

dcm2niix knows the differences between vendors. This module does not read DICOM itself.
"""

import io
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from hypodask.core.errors import OversizeScanError, UnreadableScanError
from hypodask.files.digests import sha256_of, sha256_of_file
from hypodask.files.location import Location
from hypodask.scan.source import CHUNK_BYTES, open_file

_MAX_UNPACKED_BYTES = 2**32
_MAX_FILES = 20_000
_MAX_SECONDS = 600
"""Limits for one series; a head scan has a few hundred slices of at most a few MB each."""


def is_dicom(start: bytes) -> bool:
    r"""Whether a file with these first bytes is DICOM, or a zip that may hold DICOM.

    >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"PK\3\4")
    (True, True)
    """
    return start[128:132] == b"DICM" or start.startswith(b"PK\3\4")


@contextmanager
def converted_series(place: Location, start: bytes = b"") -> Iterator[tuple[str, str]]:
    """The path of a temporary NIfTI file made from a series, and the digest of the series.

    The digest of a folder is computed from the sorted digests of its files, so that renaming files does not change it.

    Parameters
    ----------
    place
        A folder on this machine, or a file.
    start
        The first bytes of the file; empty for a folder.

    Raises
    ------
    UnreadableScanError
        If dcm2niix is not installed or fails, or if it finds no series or several.
    """
    with TemporaryDirectory(prefix="hypodask-dicom-") as scratch:
        series, output = Path(scratch, "series"), Path(scratch, "output")
        series.mkdir()
        output.mkdir()
        if start:
            sha256 = _copy_or_unzip(place, start, series)
        else:
            series = Path(place.url)
            sha256 = sha256_of("".join(sorted(map(sha256_of_file, _files_of(series)))).encode())
        _convert(series, output)
        yield str(_only_volume(output)), sha256


def _copy_or_unzip(place: Location, start: bytes, series: Path) -> str:
    """Put a file, or the files of a zip, into a folder; the digest of the file."""
    with open_file(place) as file:
        sha256 = sha256_of(file)
        file.seek(0)
        if start.startswith(b"PK"):
            _unzip(file, series)
        else:
            with Path(series, "series.dcm").open("wb") as copy:
                shutil.copyfileobj(file, copy, CHUNK_BYTES)
    return sha256


def _unzip(file: io.BufferedReader, series: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            _extract(archive, series)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as err:
        # zipfile raises RuntimeError for passwords and NotImplementedError for rare kinds of compression.
        raise UnreadableScanError(
            f"the zip cannot be unpacked ({err}); zip the DICOM files of one series again"
        ) from err


def _extract(archive: zipfile.ZipFile, series: Path) -> None:
    members = [member for member in archive.infolist() if not member.is_dir()]
    size = sum(member.file_size for member in members)
    if size > _MAX_UNPACKED_BYTES or len(members) > _MAX_FILES:
        raise OversizeScanError(
            f"the zip unpacks to {len(members):,} files and {size:,} bytes; at most {_MAX_FILES:,} and "
            f"{_MAX_UNPACKED_BYTES:,} are unpacked: zip one series alone"
        )
    for number, member in enumerate(members):
        # The names in a zip may be the same or lead out of the folder, so files are named by numbers.
        with archive.open(member) as packed, Path(series, f"{number:06}.dcm").open("wb") as copy:
            shutil.copyfileobj(packed, copy, CHUNK_BYTES)


def _files_of(folder: Path) -> list[Path]:
    """The files of a series; the search in a folder ends when there are more than a series can have."""
    found = [path for path in islice(folder.rglob("*"), _MAX_FILES + 1) if not path.is_dir()]
    odd = [path.name for path in found if path.exists() and not path.is_file()]
    if odd:
        # The converter would wait for a pipe until its time limit.
        raise UnreadableScanError(
            f"this folder holds {odd[0]!r}, a pipe or device; only the files of one DICOM series are needed: remove it"
        )
    files = [path for path in found if path.is_file()]
    if not files:
        raise UnreadableScanError("this folder is empty; a scan, or a folder with the DICOM files of one, is needed")
    size = sum(path.stat().st_size for path in files)
    if len(found) > _MAX_FILES or size > _MAX_UNPACKED_BYTES:
        raise OversizeScanError(
            f"this folder holds {len(found):,} files or more, of {size:,} bytes; at most {_MAX_FILES:,} and "
            f"{_MAX_UNPACKED_BYTES:,} are read: give the folder of one DICOM series"
        )
    return files


def _convert(series: Path, output: Path) -> None:
    # Files are named by the number of the series only: its description is free text, and names may appear in results.
    command = [_converter(), "-z", "n", "-b", "n", "-f", "%s", "-o", str(output), str(series)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAX_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as err:
        raise UnreadableScanError(f"dcm2niix took more than {_MAX_SECONDS} s; give one DICOM series alone") from err
    if not any(output.iterdir()):
        last = " ".join((done.stdout + done.stderr).split())[-300:]
        raise UnreadableScanError(
            f"dcm2niix (exit status {done.returncode}) found no image in it and said: {last!r}; give a NIfTI or MGH "
            "file, or the complete DICOM files of one series"
        )


def _converter() -> str:
    found = shutil.which("dcm2niix")
    if found:
        return found
    try:
        return str(import_module("dcm2niix").bin)
    except ImportError as err:
        raise UnreadableScanError(
            "this is a folder, zip or DICOM file, and dcm2niix, which converts DICOM, is not installed; "
            "pip install 'hypodask[dicom]', or give a NIfTI or MGH file"
        ) from err


def _only_volume(output: Path) -> Path:
    volumes = sorted(output.glob("*.nii"))
    if any("_Eq" in volume.stem for volume in volumes):
        raise UnreadableScanError(
            "the slices are not equally far apart, so one is missing or does not belong here; the DICOM files of one "
            "whole series are needed: export it again"
        )
    if len(volumes) != 1:
        raise UnreadableScanError(
            f"dcm2niix made {len(volumes)} volumes, {[volume.stem for volume in volumes][:5]}; one is needed: "
            "give the DICOM files of the T1w series alone"
        )
    return volumes[0]
