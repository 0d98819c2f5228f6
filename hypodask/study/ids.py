"""Ids of scans: read from file names, built from parts, and checked.

An id becomes the name of a folder or of an object in a store, so an id that is unsafe as either is refused.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_MAX_LENGTH = 128
"""Characters of an id."""
_MAX_BYTES = 180
"""File systems allow names of 255 bytes; what follows the id takes at most 75 of them."""
_FORBIDDEN = frozenset('/\\:*?"<>|#%[]{}')
"""Separators, wildcards, and characters with a meaning in Windows or in URLs."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".zip", ".dcm")
_ENTITY = re.compile(r"([a-z]+)-([^_-]+)")


def _file_stem(path: str) -> str:
    """The last part of a path or URL without the suffix of an image.

    >>> _file_stem("s3://study/sub-01_T1w.nii.gz")
    'sub-01_T1w'
    """
    # No file can have a name with a zero byte, but its failed row needs an id.
    name = re.split(r"[/\\]", path.rstrip("/\\"))[-1].replace("\0", "-")
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def scan_stem(path: str) -> str:
    """The id that a file's name suggests: its stem without ``_T1w``.

    >>> scan_stem("study/sub-01_ses-2_T1w.nii.gz"), scan_stem("colin27_ch2.nii")
    ('sub-01_ses-2', 'colin27_ch2')
    """
    return _file_stem(path).removesuffix("_T1w")


def entities(path: str) -> dict[str, str]:
    """BIDS entities in a file's name; empty unless it begins with ``sub-``.

    >>> entities("sub-01_ses-2_run-1_T1w.nii.gz")
    {'sub': '01', 'ses': '2', 'run': '1'}
    >>> entities("visit-2_sub-01.nii")
    {}
    """
    parts = [_ENTITY.fullmatch(part) for part in scan_stem(path).split("_")]
    found = {match[1]: match[2] for match in parts if match}
    return found if next(iter(found), "") == "sub" and parts[0] else {}


def scan_id(participant_id: str, session: str, run: str) -> str:
    """The id of a scan from its parts, of which session and run may be empty.

    >>> scan_id("sub-01", "2", "")
    'sub-01_ses-2'
    """
    return participant_id + (f"_ses-{session}" if session else "") + (f"_run-{run}" if run else "")


def participant_of(scan: str) -> str:
    """The participant of a scan, by its id.

    >>> participant_of("sub-01_ses-2_acq-hires_run-1"), participant_of("P7_ses-2"), participant_of("colin27_ch2")
    ('sub-01', 'P7', 'colin27_ch2')
    """
    found = entities(scan)
    return f"sub-{found['sub']}" if found else re.sub(r"(_ses-[^_]+)?(_run-[^_]+)?$", "", scan)


def id_danger(name: str) -> str:
    """Why a name must not become that of a folder; empty if it may.

    >>> id_danger("sub-01"), id_danger("../sub-01")
    ('', "it holds '/'")
    """
    if not name.strip():
        return "it is empty"
    bad = [character for character in name if character in _FORBIDDEN or not character.isprintable()]
    if bad:
        return f"it holds {bad[0]!r}"
    if name.startswith(".") or ".." in name or name.endswith("."):
        return "it begins or ends with a dot, or holds two in a row"
    if name != name.strip():
        return "it begins or ends with a space"
    if len(name) > _MAX_LENGTH:
        return f"it has {len(name)} characters, of {_MAX_LENGTH} allowed"
    if len(name.encode()) > _MAX_BYTES:
        return f"it has {len(name.encode())} bytes, of {_MAX_BYTES} allowed, as file names have at most 255"
    if _RESERVED.fullmatch(name):
        return "Windows reserves this name"
    return ""


def repeated(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that are one name to some file systems: equal, or different in case or Unicode form only.

    >>> repeated(["sub-a", "sub-A", "sub-b"])
    [['sub-a', 'sub-A']]
    """
    names = list(names)
    keys = [unicodedata.normalize("NFC", name).casefold() for name in names]
    counts = Counter(keys)
    groups: dict[str, list[str]] = {}
    for key, name in zip(keys, names, strict=True):
        if counts[key] > 1:
            groups.setdefault(key, []).append(name)
    return list(groups.values())
