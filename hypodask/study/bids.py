"""The T1w scans of a BIDS dataset.

Two glob patterns find them. bids2table 2.3 finds more (every file, every entity), but for 3000 participants with two
sessions it took 1.3-2.0 s, against 0.2-0.4 s here on the same busy machine; it opens buckets with cloudpathlib, not
fsspec, and depends on the BIDS schema.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from hypodask.core.errors import CohortError
from hypodask.files.location import Location, join
from hypodask.study.ids import entities, scan_stem
from hypodask.study.tables import infer_types, read_text

_PATTERNS = ("sub-*/anat/*_T1w.*", "sub-*/ses-*/anat/*_T1w.*")
_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
"""BIDS allows NIfTI only; files in FreeSurfer's formats are read too."""
_MISSING = ("n/a", "")
_OURS = frozenset({"scan", "path", "session", "run"})


def find_scans(root: str) -> pd.DataFrame:
    """One row per T1w image: ``scan``, ``path``, ``participant_id``, ``session``, ``run``, ``problem``.

    ``derivatives/`` and ``sourcedata/`` are not searched. The id is the file's name without ``_T1w``, so that ``acq-``
    and other entities tell scans apart. Phase images and real or imaginary parts are left out.

    Raises
    ------
    CohortError
        If there is no such folder, or no T1w image in it.
    """
    if not Location(root).is_folder():
        raise CohortError(f"there is no folder {root}; the root of a BIDS dataset is needed: correct the path")
    files = sorted(file for pattern in _PATTERNS for file in matching_files(root, pattern))
    rows = [_describe(root, file) for file in files]
    table = pd.DataFrame([row for row in rows if row], dtype=object)
    if table.empty:
        raise CohortError(
            f"no T1w scan in {root}: searched {' and '.join(_PATTERNS)} for names ending in {', '.join(_SUFFIXES)}; "
            "give the root of a BIDS dataset, or list the files in a table for Cohort.from_table"
        )
    return table


def matching_files(root: str, pattern: str) -> Iterator[str]:
    """Paths below the root, folder or URL, with forward slashes."""
    return Location(root).glob(pattern)


def _describe(root: str, file: str) -> dict[str, str]:
    """The row of a file; empty if it is no T1w image."""
    *folders, _, name = file.split("/")
    found = entities(name)
    if name.startswith(".") or not name.endswith(_SUFFIXES) or found.get("part", "mag") != "mag":
        return {}
    return {
        "scan": scan_stem(name),
        "path": join(root, file),
        "participant_id": folders[0],
        "session": found.get("ses", ""),
        "run": found.get("run", ""),
        "problem": _misplaced(file, folders, found),
    }


def _misplaced(file: str, folders: list[str], found: dict[str, str]) -> str:
    if not found:
        return f"{file}: the name is not made of BIDS entities such as sub-01_ses-1; rename it"
    named = [f"{key}-{found[key]}" for key in ("sub", "ses") if key in found]
    return "" if named == folders else f"{file}: the name says {'/'.join(named)}; move or rename it"


def strip_label(label: Any, prefix: str) -> str:
    """A label without its key.

    >>> strip_label("sub-01", "sub"), strip_label("01", "sub")
    ('01', '01')
    """
    return str(label).strip().removeprefix(f"{prefix}-")


def read_participants(root: str) -> pd.DataFrame:
    """participants.tsv as text, ``participant_id`` with ``sub-``; empty if there is none."""
    path = join(root, "participants.tsv")
    if not Location(path).exists():
        return pd.DataFrame({"participant_id": pd.Series(dtype=object)})
    return _keyed(read_text(path, missing=_MISSING), path, "participant_id", "sub")


def read_sessions(root: str) -> pd.DataFrame:
    """All sessions.tsv as text, with ``participant_id`` and ``session`` (without ``ses-``)."""
    tables = [pd.DataFrame({"participant_id": pd.Series(dtype=object), "session": pd.Series(dtype=object)})]
    for file in sorted(matching_files(root, "sub-*/sub-*_sessions.tsv")):
        table = _keyed(read_text(join(root, file), missing=_MISSING), join(root, file), "session_id", "ses")
        sessions = [strip_label(label, "ses") for label in table.pop("session_id")]
        tables.append(table.assign(participant_id=file.split("/")[0], session=sessions))
    return pd.concat(tables, ignore_index=True)


def _keyed(table: pd.DataFrame, path: str, key: str, prefix: str) -> pd.DataFrame:
    """The table with its key column checked and written with its prefix."""
    if key not in table:
        raise CohortError(f"{path} has columns {list(table)}; {key} is needed: add it, or save it as tab-separated")
    names = [f"{prefix}-{strip_label(label, prefix)}" for label in table[key].fillna("")]
    if _OURS & set(table):
        raise CohortError(f"{path} has columns {sorted(_OURS & set(table))}, which hypodask makes itself; rename them")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise CohortError(f"{path} has several rows for {', '.join(twice[:10])}; keep one, or use sessions.tsv")
    return table.assign(**{key: names})


def read_dictionary(root: str) -> dict[str, dict[str, Any]]:
    """participants.json: levels, units and descriptions by column; empty if there is none."""
    path = join(root, "participants.json")
    if not Location(path).exists():
        return {}
    try:
        found = json.loads(Location(path).read())
    except (ValueError, RecursionError) as err:
        raise CohortError(f"{path} is not JSON ({err}); correct or remove it") from err
    if not isinstance(found, dict):
        raise CohortError(f"{path} holds no object by column; correct or remove it")
    return {str(name): entry for name, entry in found.items() if isinstance(entry, dict)}


def merge_covariates(
    scans: pd.DataFrame, participants: pd.DataFrame, sessions: pd.DataFrame, coded: frozenset[str]
) -> pd.DataFrame:
    """Scans with the covariates of their participant, or of their session where both are given.

    Columns in ``coded`` have levels in participants.json and stay text.
    """
    both = scans.merge(participants, on="participant_id", how="left", suffixes=("", "_participants"))
    found = scans[["participant_id", "session"]].merge(sessions, on=["participant_id", "session"], how="left")
    for name in found.columns.drop(["participant_id", "session"]):
        both[name] = found[name].combine_first(both[name]) if name in both else found[name]
    return infer_types(both, text=frozenset({*scans, *coded, "site"}))
