"""Commissures placed by hand, from columns of a study's table."""

import math
from collections.abc import Iterator
from typing import Any, cast

import pandas as pd

from hypodask.files.location import join
from hypodask.scan.landmarks import Landmarks, Point
from hypodask.study.tables import as_text

_FILE = "landmarks"
"""Column with the path of a file of landmarks."""

_AC, _PC, _IH = (tuple(f"{point}_{axis}_mm" for axis in "xyz") for point in ("ac", "pc", "ih"))
"""Columns with coordinates in scanner RAS+ mm; _IH is any third point of the midsagittal plane."""


def landmarks_of(table: pd.DataFrame) -> Iterator[Landmarks | str | None]:
    """Manual landmarks of each scan: points, a file, or nothing.

    >>> list(landmarks_of(pd.DataFrame({"scan": ["a", "b"], "landmarks": ["a.fcsv", None]})))
    ['a.fcsv', None]
    """
    files = as_text(table[_FILE]) if _FILE in table else [""] * len(table)
    ac, pc, ih = (_points(table, columns) for columns in (_AC, _PC, _IH))
    for file, *points in zip(files, ac, pc, ih, strict=True):
        yield file or _landmarks(*points)


def _points(table: pd.DataFrame, columns: tuple[str, ...]) -> list[Point | None]:
    """A point of each scan; an incomplete one is kept, since the alignment says what is wrong with it."""
    if not set(columns) <= set(table):
        return [None] * len(table)
    numbers = table[list(columns)].to_numpy(dtype="float64", na_value=float("nan"))
    return [None if all(map(math.isnan, point)) else cast(Point, tuple(point)) for point in numbers.tolist()]


def _landmarks(*points: Point | None) -> Landmarks | None:
    ac, pc, ih = points
    missing = (math.nan,) * 3
    return Landmarks(ac or missing, pc or missing, ih) if any(points) else None


def with_landmark_paths(table: pd.DataFrame, folder: str) -> pd.DataFrame:
    """The table with relative paths of landmarks made absolute."""
    if _FILE not in table:
        return table
    return table.assign(**{_FILE: [join(folder, path) for path in as_text(table[_FILE])]})


def landmark_problems(table: pd.DataFrame) -> list[str]:
    """Columns that are incomplete, hold no numbers or contradict each other, and landmarks that several scans share."""
    known = {_FILE, *_AC, *_PC, *_IH}
    alike = [name for name in table if name not in known and str(name).casefold() in known]
    if alike:
        return [f"column {name!r}: it is read as {str(name).casefold()!r} only; rename it" for name in alike]
    given = [name for name in (*_AC, *_PC, *_IH) if name in table]
    wanted = (*_AC, *_PC) + (_IH if set(_IH) & set(given) else ())
    lacking = [name for name in wanted if given and name not in table]
    if lacking:
        return [f"columns {given}: {', '.join(lacking)} must be there too; add them"]
    texts = [name for name in given if not pd.api.types.is_numeric_dtype(table[name]) and not table[name].isna().all()]
    if texts:
        return [f"column {name!r}: not every value is a number; correct it, n/a where there is none" for name in texts]
    return _contradictions(table) + _shared(table)


def _contradictions(table: pd.DataFrame) -> list[str]:
    if _FILE not in table or _AC[0] not in table:
        return []
    both = [
        file != "" and points is not None
        for file, points in zip(as_text(table[_FILE]), _points(table, _AC), strict=True)
    ]
    return [f"scan {scan}: landmarks as a file and as numbers; keep one of them" for scan in table["scan"][both]]


def _shared(table: pd.DataFrame) -> list[str]:
    """Landmarks that several scans share: they are in the space of one scan, so the other scans need their own."""
    scans: dict[Any, list[str]] = {}
    for scan, landmarks in zip(table["scan"], landmarks_of(table), strict=True):
        if landmarks is not None:
            scans.setdefault(landmarks, []).append(scan)
    return [
        f"scans {', '.join(names)}: they have the same landmarks, which are in the space of one scan; list those of "
        "each in sessions.tsv, or in a table for Cohort.from_table"
        for names in scans.values()
        if len(names) > 1
    ]
