"""DICOM series, as a folder, a zip or one multi-frame file, turned into NIfTI by dcm2niix.

dcm2niix knows the vendors' dialects; nothing here reads DICOM itself.
"""

import hashlib
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
from typing import BinaryIO

from hypodask.errors import OversizeScanError, UnreadableScanError
from hypodask.scan.source import CHUNK_BYTES, open_file

MAX_UNPACKED_BYTES = 2**32
MAX_FILES = 20_000
MAX_SECONDS = 600
"""Limits of one series: a head has a few hundred slices of at most a few MB."""


def is_dicom(start: bytes) -> bool:
    r"""Whether a file that begins so is DICOM, or a zip that may hold it.

    >>> is_dicom(bytes(128) + b"DICM"), is_dicom(b"PK\3\4")
    (True, True)
    """
    return start[128:132] == b"DICM" or start.startswith(b"PK\3\4")


@contextmanager
def converted_series(path: str, start: bytes = b"") -> Iterator[tuple[str, str]]:
    """The path of a temporary NIfTI file made from a series, and the digest of the series.

    ``start`` holds the first bytes of a file; a folder has none. The digest of a folder is that of its
    files' digests in sorted order, so renaming files does not change it.

    Raises
    ------
    UnreadableScanError
        If dcm2niix is absent or fails, or finds no series or several.
    """
    with TemporaryDirectory(prefix="hypodask-dicom-") as scratch:
        series, output = Path(scratch, "series"), Path(scratch, "output")
        series.mkdir()
        output.mkdir()
        sha256 = _stage(path, start, series) if start else _folder_digest(Path(path))
        _convert(series if start else Path(path), output)
        yield str(_only_volume(output)), sha256


def _stage(path: str, start: bytes, series: Path) -> str:
    with open_file(path) as file:
        sha256 = _digest(file)
        file.seek(0)
        if start.startswith(b"PK"):
            _unzip(file, series)
        else:
            with Path(series, "series.dcm").open("wb") as copy:
                shutil.copyfileobj(file, copy, CHUNK_BYTES)
    return sha256


def _unzip(file: BinaryIO, series: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            _extract(archive, series)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as err:
        # RuntimeError and NotImplementedError are how zipfile speaks of passwords and rare compressions.
        raise UnreadableScanError(
            f"the zip cannot be unpacked ({err}); zip the DICOM files of one series again"
        ) from err


def _extract(archive: zipfile.ZipFile, series: Path) -> None:
    members = [member for member in archive.infolist() if not member.is_dir()]
    size = sum(member.file_size for member in members)
    if size > MAX_UNPACKED_BYTES or len(members) > MAX_FILES:
        raise OversizeScanError(
            f"the zip unpacks to {len(members):,} files and {size:,} bytes; at most {MAX_FILES:,} and "
            f"{MAX_UNPACKED_BYTES:,} are unpacked: zip one series alone"
        )
    for number, member in enumerate(members):
        # Numbered names: those in a zip may collide, or lead out of the folder.
        with archive.open(member) as packed, Path(series, f"{number:06}.dcm").open("wb") as copy:
            shutil.copyfileobj(packed, copy, CHUNK_BYTES)


def _folder_digest(folder: Path) -> str:
    digests = sorted(_file_digest(file) for file in _files_of(folder))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _files_of(folder: Path) -> list[Path]:
    """The files of a series; no more of a folder is looked at than a series can have."""
    found = [path for path in islice(folder.rglob("*"), MAX_FILES + 1) if not path.is_dir()]
    odd = [path.name for path in found if path.exists() and not path.is_file()]
    if odd:
        # The converter would wait for a pipe until its time is over.
        raise UnreadableScanError(
            f"this folder holds {odd[0]!r}, a pipe or device; only the files of one DICOM series are needed: remove it"
        )
    files = [path for path in found if path.is_file()]
    if not files:
        raise UnreadableScanError("this folder is empty; a scan, or a folder with the DICOM files of one, is needed")
    size = sum(path.stat().st_size for path in files)
    if len(found) > MAX_FILES or size > MAX_UNPACKED_BYTES:
        raise OversizeScanError(
            f"this folder holds {len(found):,} files or more, of {size:,} bytes; at most {MAX_FILES:,} and "
            f"{MAX_UNPACKED_BYTES:,} are read: give the folder of one DICOM series"
        )
    return files


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _convert(series: Path, output: Path) -> None:
    # Named by the series' number alone: its description is free text, and the names reach the results in messages.
    command = [_converter(), "-z", "n", "-b", "n", "-f", "%s", "-o", str(output), str(series)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as err:
        raise UnreadableScanError(f"dcm2niix took more than {MAX_SECONDS} s; give one DICOM series alone") from err
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
