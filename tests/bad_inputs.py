"""Kinds of bad input: how each is made, and the row that a user gets for it.

No data of a person are used: heads are made of the brain of the template. ``docs/write_bad_inputs.py`` writes a page
about the same kinds.
"""

import gzip
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from clusters import local_client
from conftest import head_voxels
from headers import overwritten
from scipy import ndimage
from segmentations import ellipsoid, labelled

from hypodask import pipeline
from hypodask.alignment import Alignment
from hypodask.cluster.processing import _process
from hypodask.core.grid import Grid, box_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SIDES, ICV, LabelTable
from hypodask.files.location import Location
from hypodask.scan import Scan, source
from hypodask.scan.landmarks import Landmarks
from hypodask.scan.template import MNI152
from hypodask.segmentation import Segmentation
from hypodask.segmentation.network import UNMEASURED, VolumeError
from hypodask.study.cohort import Cohort

AFFINE = np.array([[4.0, 0, 0, -94], [0, 4, 0, -94], [0, 0, 4, -94], [0, 0, 0, 1]])
SPACING_MM = 3
HAS_CONVERTER = bool(which("dcm2niix") or find_spec("dcm2niix"))
ZEROS_AT_ONCE = 2**20
BOMB_BYTES = 2**33
GROWING = "growing.nii.gz"
NAME = "Roe^Jane"
"""In headers of NIfTI and DICOM; it must reach no output."""
WICKED = "<script>alert(1)</script>"

Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Kind:
    """One input, and the row that is expected for it."""

    name: str
    given: str
    """What it is, in the words of the page."""
    make: Make
    """Writes it into an empty folder and returns the path that the cohort lists."""
    stage: str = ""
    error: str = ""
    """Empty where the scan is done."""
    words: tuple[str, ...] = ()
    """Of the reason what was found and what to do; of a scan that is done, words of the warnings."""
    landmarks: Make | None = None
    later: Callable[[Path], None] | None = None
    """What happens to the path once the cohort was made."""
    is_dicom: bool = False

    @property
    def status(self) -> str:
        return "failed" if self.error else "done"

    @property
    def is_aligned(self) -> bool:
        """Whether the real alignment is run on it, which takes a second; the other kinds get a given pose."""
        return self.name.startswith("head")


# Good scans, to be spoiled


@lru_cache(maxsize=1)
def brain() -> np.ndarray:
    return (MNI152.brain.data[::SPACING_MM, ::SPACING_MM, ::SPACING_MM] * 1000).astype(np.int16)


def brain_affine() -> np.ndarray:
    return MNI152.brain.grid.space_from_vox @ np.diag([SPACING_MM] * 3 + [1.0])


def places_mm() -> np.ndarray:
    """Where the brain's voxels are, the axis of x, y and z first."""
    index = np.moveaxis(np.indices(brain().shape), 0, -1)
    return np.moveaxis(transform_points(brain_affine(), index), -1, 0)


def noise(high: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, brain().shape)


def saved(folder: Path, img: Any, name: str = "scan.nii") -> Path:
    nib.save(img, folder / name)
    return folder / name


def written(folder: Path, content: bytes, name: str = "scan.nii.gz") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def small(dtype: str = "int16", kind: Any = nib.Nifti1Image, affine: np.ndarray = AFFINE) -> Any:
    return kind(head_voxels().astype(dtype), affine)


def good_scan(folder: Path, name: str = "scan.nii.gz") -> Path:
    """The brain, with a name wherever a header has room for one."""
    img = nib.Nifti1Image(brain(), brain_affine())
    for text in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        img.header[text] = NAME.encode()
    img.header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAME.encode()))
    return saved(folder, img, name)


def seen_as(folder: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A file of the head's size with other intensities, or in another place."""
    return saved(folder, nib.Nifti1Image(data.astype(np.int16), brain_affine() if affine is None else affine))


def patched(folder: Path, img: Any = None, **fields: Any) -> Path:
    """A file whose header was overwritten after saving, whatever nibabel thinks of it."""
    return overwritten(saved(folder, small() if img is None else img), **fields)


def patch_of_brain(folder: Path, **fields: Any) -> Path:
    return patched(folder, nib.Nifti1Image(brain(), brain_affine()), **fields)


def affine_rows(linear: Iterable[Iterable[float]]) -> dict[str, list[float]]:
    return {f"srow_{axis}": [*row, -94.0] for axis, row in zip("xyz", linear, strict=True)}


def of_voxels(folder: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    return saved(folder, nib.Nifti1Image(data, affine))


def with_voxel(folder: Path, share: float, value: float) -> Path:
    data = head_voxels().astype(np.float32)
    data[: max(1, round(share * len(data)))] = value
    return of_voxels(folder, data)


def raw_bytes(img: Any = None) -> bytes:
    return bytes((small() if img is None else img).to_bytes())


# Files that are no image, or not a whole one


def empty_folder(folder: Path) -> Path:
    (folder / "anat").mkdir()
    return folder / "anat"


def folder_of_text(folder: Path) -> Path:
    written(empty_folder(folder), b"a letter", "letter.txt")
    return folder / "anat"


def folder_of_nifti(folder: Path) -> Path:
    saved(empty_folder(folder), small())
    return folder / "anat"


def folder_with_pipe(folder: Path) -> Path:
    os.mkfifo(empty_folder(folder) / "1.dcm")
    return folder / "anat"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def link_to(folder: Path, target: str) -> Path:
    (folder / "scan.nii.gz").symlink_to(target)
    return folder / "scan.nii.gz"


def damaged_gzip(folder: Path) -> Path:
    raw = bytearray(gzip.compress(raw_bytes(), compresslevel=0))
    raw[5000] ^= 1
    return written(folder, bytes(raw))


def wrong_checksum(folder: Path) -> Path:
    raw = bytearray(gzip.compress(raw_bytes()))
    raw[-8] ^= 1
    return written(folder, bytes(raw))


def bomb(folder: Path) -> Path:
    """One gzip stream of a valid header and 8 GiB of zeros, made of one compressed block over and over."""
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(raw_bytes()) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(ZEROS_AT_ONCE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return written(folder, start + block * (BOMB_BYTES // ZEROS_AT_ONCE))


def terabytes(folder: Path) -> Path:
    raw = bytearray(raw_bytes(small(kind=nib.Nifti2Image)))
    raw[16:48] = struct.pack("<4q", 3, 2**40, 2**40, 2**40)
    return written(folder, bytes(raw), "scan.nii")


def only_voxels(folder: Path) -> Path:
    return written(folder, head_voxels().tobytes(), "scan.img")


def mgh_without_directions(folder: Path) -> Path:
    raw = bytearray(raw_bytes(small(kind=nib.MGHImage)))
    raw[28:30] = b"\0\0"
    return written(folder, bytes(raw), "scan.mgh")


def rgb(folder: Path) -> Path:
    return of_voxels(folder, np.zeros((48, 48, 48), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


def big_endian(folder: Path) -> Path:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    return saved(folder, nib.Nifti1Image(brain(), brain_affine(), header))


def two_forms(folder: Path) -> Path:
    img, moved = nib.Nifti1Image(brain(), brain_affine()), brain_affine()
    moved[0, 3] += 30
    img.set_qform(moved, code=1)
    img.set_sform(brain_affine(), code=2)
    return saved(folder, img)


# DICOM


def element(tag: int, vr: str, value: bytes) -> bytes:
    value += (b"\0" if vr in ("UI", "OB") else b" ") * (len(value) % 2)
    size = b"\0\0" + struct.pack("<I", len(value)) if vr == "OW" else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + size + value


def slice_of(plane: np.ndarray, k: int, series: int, kind: str, size_mm: float, at: int | None = None) -> bytes:
    """One slice as DICOM, explicit little endian."""
    sort = b"1.2.840.10008.5.1.4.1.1." + {"MR": b"4", "CT": b"2"}[kind]
    uid = f"1.2.826.0.1.3.{series}.{k}".encode()
    meta = element(0x00020002, "UI", sort) + element(0x00020003, "UI", uid)
    meta += element(0x00020010, "UI", b"1.2.840.10008.1.2.1")
    short = partial(struct.pack, "<H")
    place = f"-100\\-130\\{size_mm * (k if at is None else at) - 70:g}".encode()
    elements = [
        (0x00080016, "UI", sort),
        (0x00080018, "UI", uid),
        (0x00080020, "DA", b"20200101"),
        (0x00080060, "CS", kind.encode()),
        (0x0008103E, "LO", NAME.encode()),
        (0x00100010, "PN", NAME.encode()),
        (0x00180050, "DS", b"%g" % size_mm),
        (0x0020000D, "UI", b"1.2.826.0.1.1"),
        (0x0020000E, "UI", b"1.2.826.0.1.2.%d" % series),
        (0x00200011, "IS", b"%d" % series),
        (0x00200013, "IS", b"%d" % (k + 1)),
        (0x00200032, "DS", place),
        (0x00200037, "DS", b"1\\0\\0\\0\\1\\0"),
        (0x00280002, "US", short(1)),
        (0x00280004, "CS", b"MONOCHROME2"),
        (0x00280010, "US", short(plane.shape[0])),
        (0x00280011, "US", short(plane.shape[1])),
        (0x00280030, "DS", b"%g\\%g" % (size_mm, size_mm)),
        (0x00280100, "US", short(16)),
        (0x00280101, "US", short(16)),
        (0x00280102, "US", short(15)),
        (0x00280103, "US", short(1)),
        (0x7FE00010, "OW", plane.astype("<i2").tobytes()),
    ]
    head = bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta
    return head + b"".join(element(*one) for one in elements)


def slices(
    folder: Path, data: np.ndarray, keep: Iterable[int], *, series: int = 1, kind: str = "MR", size_mm: float = 4.0
) -> Path:
    """A DICOM series in ``folder/dicom``, of the slices whose numbers are given."""
    (folder / "dicom").mkdir(exist_ok=True)
    for k in keep:
        content = slice_of(data[:, ::-1, k].T, k, series, kind, size_mm)
        (folder / "dicom" / f"{series}-{k:03}.dcm").write_bytes(content)
    return folder / "dicom"


def missing_slice(folder: Path) -> Path:
    return slices(folder, head_voxels(), [k for k in range(40) if k != 17])


def two_series(folder: Path) -> Path:
    slices(folder, head_voxels(), range(40), series=7)
    return slices(folder, head_voxels(), range(40))


def zip_bomb(folder: Path) -> Path:
    """Five members that say, falsely, that each unpacks to 1 GiB."""
    path = folder / "series.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(5):
            packed.writestr(f"{number}.dcm", b"not much")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<II", 8, 8), struct.pack("<II", 8, 2**30)))
    return path


# What is not a head, or not all of one


def distance_mm(x: float, y: float, z: float) -> np.ndarray:
    return np.linalg.norm(places_mm() - np.array([x, y, z]).reshape(3, 1, 1, 1), axis=0)


def ct() -> np.ndarray:
    """Hounsfield units: a bright skull, brain without contrast, air."""
    inside = brain() > 0
    skull = ndimage.binary_dilation(inside, iterations=3) & ~ndimage.binary_dilation(inside)
    return np.where(skull, 1500, np.where(inside, 35, -1000)) + noise(8)


def t2() -> np.ndarray:
    return np.where(brain() > 0, 1100 - brain(), 0)


def functional_mean() -> np.ndarray:
    blurred = ndimage.gaussian_filter(brain().astype(float), 2.0)
    return np.where(brain() > 0, 1100 - 0.8 * blurred, 0) + noise(30)


def apple() -> np.ndarray:
    core = (np.hypot(places_mm()[0], places_mm()[1] + 20) < 8) & (distance_mm(0, -20, 10) < 25)
    return 800 * (distance_mm(0, -20, 10) < 40) - 500 * core + noise(30)


def neck() -> np.ndarray:
    x, y, _ = places_mm()
    airway = np.hypot(x, y + 50) < 10
    return np.where(np.hypot(x / 50, (y + 20) / 60) < 1, np.where(airway, 100, 600), 0) + noise(60)


def only_from(folder: Path, k: int) -> Path:
    """The brain above a slice."""
    affine = brain_affine()
    affine[:3, 3] += k * affine[:3, 2]
    return seen_as(folder, brain()[:, :, k:], affine)


def turned(folder: Path, signs: tuple[float, float, float]) -> Path:
    return seen_as(folder, brain(), np.diag([*signs, 1.0]) @ brain_affine())


def right_half_dark(folder: Path) -> Path:
    return seen_as(folder, brain() * (places_mm()[0] < 0))


# Landmarks by hand


def points(folder: Path, ac: Iterable[float], pc: Iterable[float]) -> Path:
    rows = [f"{','.join(map(str, place))},{name}" for name, place in (("AC", ac), ("PC", pc))]
    text = "\n".join(["# CoordinateSystem = RAS", "# columns = x,y,z,label", *rows])
    (folder / "acpc.fcsv").write_text(text + "\n")
    return folder / "acpc.fcsv"


def no_points(folder: Path) -> Path:
    return written(folder, b"AC is in the middle", "acpc.fcsv")


def link_to_annex(folder: Path) -> Path:
    return link_to(folder, written(folder, b"", "annex").name)


def vanish(path: Path) -> None:
    path.resolve().unlink()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def link_to_device(folder: Path) -> Path:
    return link_to(folder, "/dev/zero")


def forbidden(folder: Path) -> Path:
    path = good_scan(folder)
    path.chmod(0)
    return path


def growing(folder: Path) -> Path:
    return good_scan(folder, GROWING)


def newline(folder: Path) -> Path:
    return written(folder, b"a letter", "scan\nof 3 May.nii")


def named_in_unicode(folder: Path) -> Path:
    return good_scan(folder, "Müller 名前 🧠.nii.gz")


def twice_gzipped(folder: Path) -> Path:
    return written(folder, gzip.compress(gzip.compress(raw_bytes())))


def cut(folder: Path, content: bytes, name: str, keep: int | None = None) -> Path:
    return written(folder, content[: len(content) // 2 if keep is None else keep], name)


def cut_gzip(folder: Path) -> Path:
    return cut(folder, gzip.compress(raw_bytes()), "scan.nii.gz")


def cut_nifti(folder: Path) -> Path:
    return cut(folder, raw_bytes(), "scan.nii")


def cut_header(folder: Path) -> Path:
    return cut(folder, raw_bytes(), "scan.nii", 200)


def cut_mgz(folder: Path) -> Path:
    return cut(folder, gzip.compress(raw_bytes(small(kind=nib.MGHImage))), "scan.mgz")


def no_checksum(folder: Path) -> Path:
    return cut(folder, gzip.compress(raw_bytes()), "scan.nii.gz", -8)


def wrong_magic(folder: Path) -> Path:
    raw = bytearray(raw_bytes(small(kind=nib.Nifti2Image)))
    raw[4:8] = b"nix\0"
    return written(folder, bytes(raw), "scan.nii")


def one_slice(folder: Path) -> Path:
    return slices(folder, head_voxels(), [20]) / "1-020.dcm"


def doubled_slices(folder: Path) -> Path:
    slices(folder, head_voxels(), range(40))
    for k in range(3):
        (folder / "dicom" / f"again-{k}.dcm").write_bytes(
            slice_of(head_voxels()[:, ::-1, k].T, 40 + k, 1, "MR", 4.0, k)
        )
    return folder / "dicom"


def ct_series(folder: Path) -> Path:
    return slices(folder, ct(), range(brain().shape[2]), kind="CT", size_mm=SPACING_MM)


def linear(*rows: Iterable[float]) -> Make:
    return partial(patched, sform_code=1, qform_code=1, **affine_rows(rows))


def far_away(folder: Path) -> Path:
    affine = AFFINE.copy()
    affine[0, 3] = 1e9
    return saved(folder, small(affine=affine))


def voxels_of(size_mm: float) -> Make:
    return partial(of_voxels, data=head_voxels(), affine=np.diag([size_mm] * 3 + [1.0]))


def plane(folder: Path) -> Path:
    return of_voxels(folder, head_voxels()[..., 20])


def slab(folder: Path) -> Path:
    return of_voxels(folder, head_voxels()[..., :10])


def beyond_float32(folder: Path) -> Path:
    return of_voxels(folder, head_voxels() * 1e300)


def seen(make: Callable[[], np.ndarray]) -> Make:
    return lambda folder: seen_as(folder, make())


def sphere() -> np.ndarray:
    return (distance_mm(0, -20, 10) < 80) * 1000 + noise(30)


def swapped(folder: Path) -> Path:
    return points(folder, MNI152.pc_mm, MNI152.ac_mm)


def no_file(folder: Path) -> Path:
    return folder / "acpc.fcsv"


def pipe_of_points(folder: Path) -> Path:
    os.mkfifo(folder / "acpc.fcsv")
    return folder / "acpc.fcsv"


def word_points(folder: Path) -> Path:
    return written(folder, b"", "acpc.docx")


# The table

UNREADABLE = ("read", "UnreadableScanError")
CONVERTED = UNREADABLE
TRUNCATED = ("read", "TruncatedScanError")
BAD_AFFINE = ("read", "BadTransformError")
VOXEL_SIZE = ("read", "VoxelSizeError")
NOT_SCALAR = ("read", "NotScalarError")
NON_FINITE = ("read", "NonFiniteError")
CONSTANT = ("read", "ConstantImageError")
NO_HEAD = ("align", "AlignmentError", ("no human head", "check that this is a T1-weighted head scan"))
NOT_T1 = ("align", "AlignmentError", ("the contrast is not that of a T1-weighted scan", "T2-weighted or inverted"))
BAD_POINTS = ("align", "LandmarkError")


PATHS = (
    Kind(
        "gone",
        "a file that vanished after the cohort was made",
        good_scan,
        "read",
        "MissingScanError",
        ("no such file", "correct the path"),
        later=vanish,
    ),
    Kind(
        "dangling",
        "a link whose target vanished, as of git-annex",
        link_to_annex,
        "read",
        "MissingScanError",
        ("leads to no file", "datalad get"),
        later=vanish,
    ),
    Kind(
        "loop",
        "a link in a circle",
        good_scan,
        "read",
        "UnreadableScanError",
        ("symbolic links", "correct it"),
        later=link_to_itself,
    ),
    Kind("device", "a link to a device without end (/dev/zero)", link_to_device, *UNREADABLE, ("device", "copy it")),
    Kind("pipe", "a named pipe that nobody writes to", pipe, *UNREADABLE, ("pipe", "copy it")),
    Kind(
        "forbidden",
        "a file that this user may not read",
        forbidden,
        *UNREADABLE,
        ("permission denied", "grant this user"),
    ),
    Kind("growing", "a file that another program is writing", growing, *UNREADABLE, ("changed while", "finish")),
    Kind("newline", "a file of text, with a newline in its name", newline, *UNREADABLE, ("not an image",)),
    Kind("ünïcode-名前", "a good-quality scan with names beyond ASCII", named_in_unicode),
    Kind("empty-folder", "an empty folder", empty_folder, *UNREADABLE, ("folder is empty", "DICOM")),
    Kind("folder-of-text", "a folder without images", folder_of_text, *CONVERTED, ("no image", "give"), is_dicom=True),
    Kind(
        "folder-of-nifti",
        "the folder that the scan is in",
        folder_of_nifti,
        *CONVERTED,
        ("no image", "give a NIfTI"),
        is_dicom=True,
    ),
    Kind("folder-with-pipe", "a folder with a named pipe in it", folder_with_pipe, *UNREADABLE, ("pipe", "remove it")),
)
FILES = (
    Kind("empty", "an empty file", partial(written, content=b""), *UNREADABLE, ("is empty", "copy or export")),
    Kind(
        "empty-gzip",
        "gzip with nothing in it",
        partial(written, content=gzip.compress(b"")),
        *UNREADABLE,
        ("empty inside", "copy or export"),
    ),
    Kind(
        "text",
        "text renamed to .nii.gz",
        partial(written, content=b"Dear colleague,\n" * 99),
        *UNREADABLE,
        ("b'Dear'", "NIfTI or MGH"),
    ),
    Kind(
        "web-page",
        "a login page that was downloaded in place of the scan",
        partial(written, content=b"<!DOCTYPE html><html>"),
        *UNREADABLE,
        ("b'<!DO'", "NIfTI or MGH"),
    ),
    Kind(
        "picture",
        "a PNG picture",
        partial(written, content=b"\x89PNG\r\n\x1a\n" * 50),
        *UNREADABLE,
        ("PNG", "NIfTI or MGH"),
    ),
    Kind(
        "lfs-pointer",
        "a Git LFS pointer",
        partial(written, content=b"version https://git-lfs.github.com/spec/v1\n"),
        *UNREADABLE,
        ("pointer", "git lfs pull"),
    ),
    Kind("twice-gzipped", "a scan gzipped twice", twice_gzipped, *UNREADABLE, ("gzipped twice", "gunzip")),
    Kind("cut-gzip", "half of a .nii.gz", cut_gzip, *TRUNCATED, ("cut short", "copy it again")),
    Kind("cut-nifti", "half of a .nii", cut_nifti, *TRUNCATED, ("cut short", "copy it again")),
    Kind(
        "cut-header",
        "a .nii that ends within its header",
        cut_header,
        *TRUNCATED,
        ("ends within its header", "copy it again"),
    ),
    Kind("cut-mgz", "half of an .mgz", cut_mgz, *TRUNCATED, ("cut short", "copy it again")),
    Kind("no-checksum", "a .nii.gz that lost its last bytes", no_checksum, *TRUNCATED, ("breaks off", "copy it again")),
    Kind(
        "wrong-checksum",
        "a .nii.gz whose checksum is wrong",
        wrong_checksum,
        *UNREADABLE,
        ("damaged", "copy the file again"),
    ),
    Kind(
        "flipped-bit", "a .nii.gz with one flipped bit", damaged_gzip, *UNREADABLE, ("damaged", "copy the file again")
    ),
    Kind(
        "gzip-bomb",
        "8 MB of gzip that unpack to 8 GiB",
        bomb,
        *UNREADABLE,
        ("after its last voxel", "convert the scan again"),
    ),
    Kind(
        "terabytes",
        "a header that asks for 2^121 bytes",
        terabytes,
        "read",
        "OversizeScanError",
        ("at most", "header is damaged"),
    ),
    Kind("voxels-alone", "an .img without its .hdr", only_voxels, *UNREADABLE, ("not an image", "NIfTI or MGH")),
    Kind(
        "hdr-alone",
        "a .hdr without its .img",
        partial(patched, magic=b"ni1"),
        *UNREADABLE,
        (".hdr/.img", "convert it"),
    ),
    Kind(
        "wrong-magic",
        "a NIfTI-2 header with a wrong magic number",
        wrong_magic,
        *UNREADABLE,
        ("magic", "convert again"),
    ),
    Kind(
        "unknown-datatype",
        "a datatype that NIfTI does not have",
        partial(patched, datatype=77),
        *UNREADABLE,
        ("datatype 77", "convert"),
    ),
    Kind(
        "negative-dims",
        "a negative dimension",
        partial(patched, dim=[3, 48, -48, 48, 1, 1, 1, 1]),
        *UNREADABLE,
        ("-48", "convert again"),
    ),
    Kind(
        "zero-dims",
        "a dimension of zero",
        partial(patched, dim=[3, 48, 0, 48, 1, 1, 1, 1]),
        *UNREADABLE,
        ("(48, 0, 48)", "convert again"),
    ),
    Kind(
        "nine-dims",
        "a header with nine dimensions",
        partial(patched, dim=[9, 48, 48, 48, 1, 1, 1, 1]),
        *UNREADABLE,
        ("9 dimensions", "convert again"),
    ),
    Kind(
        "voxels-in-header",
        "voxels that begin within the header",
        partial(patched, vox_offset=0),
        *UNREADABLE,
        ("byte 0", "convert again"),
    ),
)
DICOM = (
    Kind(
        "one-slice",
        "one DICOM file of a series",
        one_slice,
        "read",
        "FieldOfViewError",
        ("field of view", "whole volume"),
        is_dicom=True,
    ),
    Kind(
        "missing-slice",
        "a DICOM series that lacks a slice",
        missing_slice,
        *CONVERTED,
        ("not equally far apart", "export it again"),
        is_dicom=True,
    ),
    Kind(
        "doubled-slices",
        "a DICOM series with slices twice",
        doubled_slices,
        *BAD_AFFINE,
        ("singular", "convert"),
        is_dicom=True,
    ),
    Kind(
        "two-series",
        "a DICOM folder of two series",
        two_series,
        *CONVERTED,
        ("2 volumes", "T1w series alone"),
        is_dicom=True,
    ),
    Kind(
        "no-zip",
        "a file that only begins like a zip",
        partial(written, content=b"PK\3\4 and no more"),
        *UNREADABLE,
        ("zip cannot be unpacked", "again"),
    ),
    Kind(
        "zip-bomb",
        "a zip that says it unpacks to 5 GiB",
        zip_bomb,
        "read",
        "OversizeScanError",
        ("unpacks to", "one series alone"),
    ),
    Kind(
        "head-ct-dicom",
        "a CT of the head, as DICOM",
        ct_series,
        "align",
        "AlignmentError",
        ("no human head", "T1-weighted"),
        is_dicom=True,
    ),
)
PLACES = (
    Kind(
        "no-form",
        "neither sform nor qform",
        partial(patched, sform_code=0, qform_code=0),
        "read",
        "NoTransformError",
        ("which side is left", "convert"),
    ),
    Kind(
        "analyze",
        "an ANALYZE 7.5 image",
        partial(patched, magic=b""),
        "read",
        "NoTransformError",
        ("ANALYZE", "convert"),
    ),
    Kind(
        "mgh-no-directions",
        "MGH whose directions are not to be trusted",
        mgh_without_directions,
        "read",
        "NoTransformError",
        ("goodRASFlag 0", "convert"),
    ),
    Kind(
        "singular", "a singular affine", linear([4, 0, 0], [0, 4, 0], [0, 0, 0]), *BAD_AFFINE, ("singular", "convert")
    ),
    Kind(
        "sheared",
        "a sheared affine",
        linear([4, 0.1, 0], [0, 4, 0], [0, 0, 4]),
        *BAD_AFFINE,
        ("sheared", "sform_code to 0"),
    ),
    Kind(
        "nan-affine",
        "an affine with NaN",
        linear([4, np.nan, 0], [0, 4, 0], [0, 0, 4]),
        *BAD_AFFINE,
        ("NaN", "convert"),
    ),
    Kind(
        "mirrored-forms",
        "sform and qform that are mirror images",
        linear([-4, 0, 0], [0, 4, 0], [0, 0, 4]),
        *BAD_AFFINE,
        ("left and right cannot be told", "set the code"),
    ),
    Kind("far-away", "a volume a thousand kilometres away", far_away, *BAD_AFFINE, ("centre", "convert")),
    Kind(
        "microns",
        "millimetres that the header calls microns",
        partial(patched, xyzt_units=3),
        *VOXEL_SIZE,
        ("0.004 x 0.004 x 0.004 mm", "check the unit"),
    ),
    Kind(
        "metres",
        "millimetres that the header calls metres",
        partial(patched, xyzt_units=1),
        *BAD_AFFINE,
        ("94000", "check the unit"),
    ),
    Kind(
        "unknown-unit",
        "a unit of length that NIfTI does not have",
        partial(patched, xyzt_units=5),
        *VOXEL_SIZE,
        ("code 5", "correct it"),
    ),
    Kind("giant-voxels", "voxels of 12 mm", voxels_of(12.0), *VOXEL_SIZE, ("12 x 12 x 12 mm", "check the unit")),
    Kind("tiny-voxels", "voxels of 0.05 mm", voxels_of(0.05), *VOXEL_SIZE, ("0.05", "check the unit")),
    Kind(
        "two-sizes",
        "a voxel size that is not that of the affine",
        partial(patched, pixdim=[1, 4, 4.1, 4, 0, 0, 0, 0]),
        *VOXEL_SIZE,
        ("must agree", "convert"),
    ),
    Kind("two-forms", "a qform that lies 30 mm beside the sform", two_forms, words=("sform was used", "30.0 mm")),
    Kind("plane", "a picture of two dimensions", plane, "read", "FieldOfViewError", ("field of view", "whole volume")),
    Kind("slab", "ten slices", slab, "read", "FieldOfViewError", ("field of view", "whole volume")),
)
VOXELS = (
    Kind(
        "series",
        "a functional series, 4D",
        partial(of_voxels, data=np.ones((48, 48, 48, 3), np.int16)),
        *NOT_SCALAR,
        ("(48, 48, 48, 3)", "extract one"),
    ),
    Kind("rgb", "colours", rgb, *NOT_SCALAR, ("RGB", "export the magnitude")),
    Kind(
        "complex",
        "complex numbers",
        partial(of_voxels, data=np.ones((48, 48, 48), np.complex64)),
        *NOT_SCALAR,
        ("complex", "export the magnitude"),
    ),
    Kind(
        "all-nan",
        "NaN everywhere",
        partial(with_voxel, share=1.0, value=np.nan),
        *NON_FINITE,
        ("110,592 of 110,592", "replace them"),
    ),
    Kind(
        "some-nan",
        "NaN in one plane",
        partial(with_voxel, share=0.0, value=np.nan),
        *NON_FINITE,
        ("2,304 of 110,592", "replace them"),
    ),
    Kind(
        "some-infinite",
        "infinity in one plane",
        partial(with_voxel, share=0.0, value=np.inf),
        *NON_FINITE,
        ("2,304 of 110,592", "replace them"),
    ),
    Kind("beyond-float32", "float64 voxels of 1e300", beyond_float32, *NON_FINITE, ("e+302", "rescale")),
    Kind(
        "nan-intercept",
        "an intercept of NaN",
        partial(patched, scl_slope=2, scl_inter=np.nan),
        *NON_FINITE,
        ("intercept", "scl_inter"),
    ),
    Kind(
        "huge-slope",
        "a slope that leads out of single precision",
        partial(patched, scl_slope=3e38),
        *NON_FINITE,
        ("single precision", "rescale"),
    ),
    Kind("nan-slope", "a slope of NaN: taken for none, as by nibabel", partial(patch_of_brain, scl_slope=np.nan)),
    Kind("zero-slope", "a slope of zero: no scaling, as NIfTI says", partial(patch_of_brain, scl_slope=0)),
    Kind("big-endian", "a good-quality scan of the other byte order", big_endian),
    Kind(
        "constant",
        "the same value everywhere",
        partial(of_voxels, data=np.full((48, 48, 48), 7, np.int16)),
        *CONSTANT,
        ("are 7", "export it again"),
    ),
    Kind(
        "zeros",
        "zeros everywhere",
        partial(of_voxels, data=np.zeros((48, 48, 48), np.int16)),
        *CONSTANT,
        ("are 0", "export it again"),
    ),
)
HEADS = (
    Kind("head", "a good-quality scan", good_scan),
    Kind("head-ct", "a CT", seen(ct), *NO_HEAD),
    Kind("head-t2", "a T2-weighted scan", seen(t2), *NOT_T1),
    Kind("head-functional", "the mean of a functional series", seen(functional_mean), *NOT_T1),
    Kind("head-sphere", "a phantom: a sphere", seen(sphere), *NO_HEAD),
    Kind("head-apple", "an apple", seen(apple), *NO_HEAD),
    Kind("head-neck", "a neck without its head", seen(neck), *NO_HEAD),
    Kind("head-upside-down", "a header that turns the head upside down", partial(turned, signs=(-1, 1, -1)), *NO_HEAD),
    Kind(
        "head-mirrored",
        "a header that mirrors the head, sform and qform alike: nobody can tell",
        partial(turned, signs=(-1, 1, 1)),
    ),
    Kind("head-half", "a head without signal on one side", right_half_dark, words=("not clear",)),
    Kind(
        "head-cut",
        "a field of view that begins in the hypothalamus",
        partial(only_from, k=20),
        words=("12 mm are needed",),
    ),
)
LANDMARKS = (
    Kind(
        "points-no-table",
        "a file of landmarks that is no table",
        good_scan,
        *BAD_POINTS,
        ("coordinate system", "needed"),
        landmarks=no_points,
    ),
    Kind(
        "points-gone",
        "a file of landmarks that is not there",
        good_scan,
        *BAD_POINTS,
        ("no such file of landmarks", "correct the path"),
        landmarks=no_file,
    ),
    Kind(
        "points-pipe",
        "a named pipe for a file of landmarks",
        good_scan,
        *BAD_POINTS,
        ("pipe", "copy it"),
        landmarks=pipe_of_points,
    ),
    Kind(
        "points-word",
        "a file of landmarks of another kind",
        good_scan,
        *BAD_POINTS,
        ("neither .fcsv nor .json", "save"),
        landmarks=word_points,
    ),
    Kind("head-points-swapped", "AC and PC swapped", good_scan, *BAD_POINTS, ("behind", "swapped"), landmarks=swapped),
)
CHAPTERS = {
    "What the path leads to": PATHS,
    "Files that are damaged, cut short or no image": FILES,
    "DICOM": DICOM,
    "Where the voxels are": PLACES,
    "What the voxels hold": VOXELS,
    "Not a head, or not all of one": HEADS,
    "Landmarks by hand": LANDMARKS,
}
KINDS = tuple(kind for kinds in CHAPTERS.values() for kind in kinds)


# One cohort of all of them


@dataclass(frozen=True)
class Fake:
    """A network that finds the same in every head."""

    found: Segmentation
    task: str
    name: str = "fake:1"
    protocol: str = "fake protocol"
    volume_error: VolumeError = UNMEASURED

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        return self.found

    def on(self, elsewhere: object) -> "Fake":
        return self


def fakes(models: object = None) -> tuple[Fake, Fake]:
    box = box_grid((40, 32, 32), (1.0, 1.0, 1.0), (0.0, -5.0, -6.0))
    head = box_grid((44, 52, 44), (4.0, 4.0, 4.0), (0.0, -16.0, 8.0))
    sides = [ellipsoid(box, (x, -5.0, -6.0), (4.0, 6.0, 4.0)) for x in (-6.0, 6.0)]
    intracranial = [ellipsoid(head, (0.0, -18.0, 12.0), (64.0, 78.0, 62.0))]
    return Fake(_of(box, HYPOTHALAMUS_SIDES, sides), "hypothalamus"), Fake(_of(head, ICV, intracranial), "icv")


def _of(grid: Grid, table: LabelTable, posteriors: list[np.ndarray]) -> Segmentation:
    return labelled(grid, table, posteriors)


def pose() -> Alignment:
    ac, pc = MNI152.commissures_mm
    acpc_from_scanner = np.eye(4)
    acpc_from_scanner[:3, 3] = -ac
    return Alignment(acpc_from_scanner, ac, pc, np.eye(4), score=0.7, flagged=False)


def stand_ins(models: object) -> tuple[Fake, Fake]:
    """What a worker loads: networks that find the same in every head.

    The pose is given: to find it each worker would compile programs for half a minute. And what a test cannot ask of a
    file system is played: that it refuses root, and that another program writes at that very moment.
    """
    pipeline.align = _align  # type: ignore[assignment]
    Location.open = _open  # type: ignore[method-assign]
    source.Source.require = _require  # type: ignore[method-assign]
    return fakes()


def _align(scan: Scan, *, landmarks: Landmarks | None = None) -> Alignment:
    return pose()


_really_open, _really_require = Location.open, source.Source.require


def _open(self: Location) -> BinaryIO:
    if Path(self.url).parent.name == "forbidden":
        raise PermissionError(13, "Permission denied", self.url)
    return _really_open(self)


def _require(self: source.Source, count: int) -> None:
    name = str(self._hashed._file.name)
    if name.endswith(GROWING):
        with Path(name).open("ab") as file:
            file.write(b"more")
    _really_require(self, count)


def given_here() -> tuple[Kind, ...]:
    """The kinds that can be made on this machine."""
    return tuple(kind for kind in KINDS if HAS_CONVERTER or not kind.is_dicom)


def made(folder: Path, kinds: Iterable[Kind]) -> Cohort:
    """One cohort of these kinds, below a folder."""
    kinds = tuple(kinds)
    cohort = Cohort.from_table(pd.DataFrame([_listed(kind, folder / kind.name) for kind in kinds]))
    for kind, path in zip(kinds, cohort.table["path"], strict=True):
        if kind.later is not None:
            kind.later(Path(path))
    return cohort


def _listed(kind: Kind, folder: Path) -> dict[str, str | None]:
    folder.mkdir(parents=True)
    landmarks = str(kind.landmarks(folder)) if kind.landmarks else None
    path = str(kind.make(folder))
    return {"participant_id": kind.name, "path": path, "landmarks": landmarks, "group": WICKED}


def files_processed(folder: Path, out: Path) -> xr.Dataset:
    """The rows of all kinds that need no alignment to be told, by two processes of this machine."""
    cohort = made(folder, (kind for kind in given_here() if not kind.is_aligned))
    return _process(cohort, str(out), workers=2, progress=False, load=stand_ins)


def heads_processed(folder: Path, out: Path) -> xr.Dataset:
    """The rows of all kinds that only the alignment can tell, by a worker that shares this process's programs."""
    cohort = made(folder, (kind for kind in given_here() if kind.is_aligned))
    with local_client(1, processes=False) as client:
        return _process(cohort, str(out), client, progress=False, load=fakes)


def said(kind: Kind, row: xr.Dataset) -> str:
    """What the user reads: the reason, or of a scan that is done the warnings that are meant."""
    if kind.error:
        return str(row["reason"].item())
    sentences = re.findall(r"\S.*?\.(?= |$)", row["warnings"].item())
    return " ".join(sentence for sentence in sentences if any(word in sentence for word in kind.words))
