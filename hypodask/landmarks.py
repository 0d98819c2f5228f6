"""Commissures that a person placed: in scanner space, RAS+ mm, read from the files that tools for it write.

A file that leaves a doubt about units, axes or which point is meant is refused: a wrong guess here is a
hypothalamus measured beside the hypothalamus.
"""

import csv
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.errors import LandmarkError, LocationError
from hypodask.location import Location, is_url

Point = tuple[float, float, float]
Affine = Float[ndarray, "4 4"]

NAMES = {
    "AC": frozenset({"ac", "anterior commissure"}),
    "PC": frozenset({"pc", "posterior commissure"}),
    "IH": frozenset({"ih", "midline", "interhemispheric"}),
}
"""What files call the points; IH is any point of the midsagittal plane, named as in AFNI and BIDS."""

ALL_NAMES = NAMES["AC"] | NAMES["PC"] | NAMES["IH"]

SYSTEMS = {"RAS": (1.0, 1.0), "0": (1.0, 1.0), "LPS": (-1.0, -1.0), "1": (-1.0, -1.0)}
"""Signs of x and y in 3D Slicer's coordinate systems; its older versions write a number."""

MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0}

MAX_BYTES = 2**24
"""A file of landmarks takes some kB; not tuned."""

BLOCKS = ("AnatomicalLandmark", "HeadCoil")
"""Where BIDS keeps landmarks: each of these, followed by Coordinates, CoordinateSystem and CoordinateUnits."""


@dataclass(frozen=True)
class Landmarks:
    """Commissures of one scan as a person saw them.

    Whether they can be those of a head is checked when the scan is aligned by them.

    Raises
    ------
    LandmarkError
        If a point is not made of three numbers.

    Examples
    --------
    >>> Landmarks(ac_mm=(0.5, 4, -5), pc_mm=(0.3, -23, -3.5)).ac_mm
    (0.5, 4.0, -5.0)
    """

    ac_mm: Point
    """Centre of the anterior commissure, scanner space, RAS+ mm."""
    pc_mm: Point
    """Centre of the posterior commissure, scanner space, RAS+ mm."""
    midline_mm: Point | None = None
    """A third point of the midsagittal plane, best far above the commissures; without it the plane is found
    by the automatic alignment."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ac_mm", _point(self.ac_mm, "AC"))
        object.__setattr__(self, "pc_mm", _point(self.pc_mm, "PC"))
        if self.midline_mm is not None:
            object.__setattr__(self, "midline_mm", _point(self.midline_mm, "IH"))


class Placed(NamedTuple):
    """One point of a file."""

    names: tuple[str, ...]
    """What the file calls it: label and description."""
    mm: Point


def read_landmarks(path: str | PathLike[str], *, scanner_from_vox: Affine | None = None) -> Landmarks:
    """Landmarks from a file, its points found by their names: AC, PC and, if there is one, IH.

    Parameters
    ----------
    path
        ``.fcsv`` or ``.mrk.json`` of 3D Slicer, AFIDs among them, or JSON of BIDS: a ``*_coordsystem.json`` in
        the scanner's RAS, or the ``*_T1w.json`` beside the scan. Any fsspec URL.
    scanner_from_vox
        Of the scan; needed for a ``*_T1w.json``, whose landmarks are in voxels.

    Raises
    ------
    LandmarkError
        If the file cannot be read, a commissure is absent or there twice, or units or axes are in doubt.

    Notes
    -----
    BIDS 1.9: landmarks in the file beside an image are in voxels of that image, the first being 0 0 0; those of
    a ``coordsystem.json`` have units and a system, of which ``ScanRAS`` is the scanner's RAS+.
    """
    name = fspath(path)
    try:
        if name.lower().endswith(".fcsv"):
            return _chosen(_fcsv_points(_text(name)))
        if name.lower().endswith(".json"):
            content = _json(_text(name))
            return _chosen(_json_points(content, _voxels(scanner_from_vox) if name.endswith("_T1w.json") else None))
    except LandmarkError as err:
        err.add_note(f"It was read from {name}.")
        raise
    raise LandmarkError(f"{name} is neither .fcsv nor .json; save the landmarks as one of these")


def _scaled(x: float, y: float, z: float) -> Affine:
    return np.diag([x, y, z, 1.0])


def _voxels(scanner_from_vox: Affine | None) -> Affine:
    if scanner_from_vox is None:
        raise LandmarkError("landmarks of a _T1w.json are in voxels; give scanner_from_vox of the scan with it")
    return scanner_from_vox


def _placed(names: Iterable[Any], numbers: Any, scanner_from_file: Affine) -> Placed:
    known = tuple(str(name) for name in names if name)
    point = _point(numbers, what := "/".join(known) or "a point without a name")
    if not all(map(math.isfinite, point)):
        raise LandmarkError(f"{what} is at {point}; three finite numbers are needed: place the point again")
    return Placed(known, _point((scanner_from_file @ (*point, 1.0))[:3], "a point"))


def _point(numbers: Any, what: str) -> Point:
    try:
        x, y, z = (float(number) for number in numbers)
    except (TypeError, ValueError):
        raise LandmarkError(f"{what} is {numbers!r}; three numbers x, y, z are needed") from None
    return x, y, z


def _text(name: str) -> str:
    if not is_url(name) and stat.S_IFMT(_mode(name)) not in (0, stat.S_IFREG, stat.S_IFDIR):
        # Opening a pipe would wait for ever, and a device such as /dev/zero would never end.
        raise LandmarkError("a pipe or device was given for landmarks; a regular file is needed: copy it there")
    try:
        with Location(name).open() as file:
            content = bytes(file.read(MAX_BYTES + 1))
    except FileNotFoundError:
        raise LandmarkError("there is no such file of landmarks; correct the path") from None
    except IsADirectoryError:
        raise LandmarkError("a folder was given as a file of landmarks; give the file in it") from None
    except PermissionError:
        raise LandmarkError("permission denied for the file of landmarks; grant this user access to it") from None
    except LocationError as err:
        raise LandmarkError(f"the file of landmarks cannot be opened: {err}") from err
    except ValueError as err:
        raise LandmarkError(f"the path of the landmarks cannot be opened ({err}); correct it") from err
    if len(content) > MAX_BYTES:
        raise LandmarkError(f"the file of landmarks has more than {MAX_BYTES:,} bytes; give one of points alone")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LandmarkError("the file of landmarks is not text; save it again as .fcsv or .json") from None


def _mode(path: str) -> int:
    """What kind of file a path leads to; 0 where there is none."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return 0


def _chosen(points: Iterable[Placed]) -> Landmarks:
    """The commissures among the points of a file."""
    placed = list(points)
    found = {key: [p.mm for p in placed if NAMES[key] & {_named(name) for name in p.names}] for key in NAMES}
    for key, places in found.items():
        if len(places) > 1:
            raise LandmarkError(
                f"{key} was placed {len(places)} times, at {_listed(places)}; keep the one that is meant"
            )
    lacking = [key for key in ("AC", "PC") if not found[key]]
    if lacking:
        known = ", ".join("/".join(point.names) for point in placed[:10]) or "none"
        raise LandmarkError(f"{' and '.join(lacking)} are needed, the points there are {known}; label them AC and PC")
    return Landmarks(found["AC"][0], found["PC"][0], *found["IH"])


def _named(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _listed(places: Sequence[Point]) -> str:
    return " and ".join("(" + ", ".join(f"{x:.1f}" for x in place) + ")" for place in places)


def _fcsv_points(text: str) -> Iterator[Placed]:
    """Points of 3D Slicer's table, whose first lines are comments that say the axes and the columns."""
    comments = (line[1:].partition("=") for line in text.splitlines() if line.startswith("#"))
    header = {key.strip().casefold(): value.strip() for key, _, value in comments}
    scanner_from_file = _slicer_axes(header.get("coordinatesystem"))
    columns = header.get("columns", "").split(",")
    lacking = [name for name in ("x", "y", "z", "label") if name not in columns]
    if lacking:
        raise LandmarkError(f"'# columns' lacks {', '.join(lacking)}; save the file again with 3D Slicer")
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    for cells in csv.reader(lines):
        row = dict(zip(columns, cells, strict=False))
        yield _placed((row.get("label"), row.get("desc")), [row.get(axis) for axis in "xyz"], scanner_from_file)


def _slicer_axes(system: Any) -> Affine:
    """``scanner_from_file`` of a coordinate system."""
    if str(system) not in SYSTEMS:
        raise LandmarkError(f"the coordinate system is {system!r}; one of RAS, LPS, 0 (RAS) and 1 (LPS) is needed")
    return _scaled(*SYSTEMS[str(system)], 1.0)


def _json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (json.JSONDecodeError, RecursionError) as err:
        raise LandmarkError(f"the file is not JSON ({err}); save it again") from err
    if not isinstance(content, dict):
        raise LandmarkError("the file holds no JSON object; give a .mrk.json of 3D Slicer or a JSON file of BIDS")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once; JSON itself would take the last without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise LandmarkError(f"one of {', '.join(content)} is there more than once; keep the one that is meant")
    return content


def _json_points(content: dict[str, Any], scanner_from_vox: Affine | None) -> Iterator[Placed]:
    if "markups" in content:
        yield from _markups_points(content["markups"])
        return
    for block in BLOCKS:
        points = content.get(f"{block}Coordinates")
        # A file may also hold the nasion and the ears in a head coil's own system: no concern of ours.
        if isinstance(points, dict) and any(_named(name) in ALL_NAMES for name in points):
            scanner_from_file = _bids_axes(content, block, scanner_from_vox)
            yield from (_placed((name,), numbers, scanner_from_file) for name, numbers in points.items())


def _markups_points(markups: Any) -> Iterator[Placed]:
    """Points of 3D Slicer's .mrk.json."""
    for markup in _objects(markups, "markups"):
        scanner_from_file = _slicer_axes(markup.get("coordinateSystem"))
        units = markup.get("coordinateUnits", "mm")
        if units not in ("mm", ["mm"] * 3):
            raise LandmarkError(f"coordinateUnits is {units!r}; mm is needed: save the points in mm")
        for point in _objects(markup.get("controlPoints", []), "controlPoints"):
            if point.get("positionStatus", "defined") == "defined":
                yield _placed((point.get("label"), point.get("description")), point.get("position"), scanner_from_file)


def _objects(found: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise LandmarkError(f"{what} is no list of objects; save the points again with 3D Slicer")
    return found


def _bids_axes(content: dict[str, Any], block: str, scanner_from_vox: Affine | None) -> Affine:
    """``scanner_from_file`` of a block of a BIDS file."""
    system, units = (content.get(f"{block}Coordinate{what}") for what in ("System", "Units"))
    if scanner_from_vox is not None and system is units is None:
        return scanner_from_vox
    if str(units) not in MILLIMETRES:
        raise LandmarkError(f"{block}CoordinateUnits is {units!r}; mm, cm or m is needed: say which it is")
    described = str(content.get(f"{block}CoordinateSystemDescription", ""))
    if system != "ScanRAS" and not (system == "Other" and _means_scanner_ras(described)):
        raise LandmarkError(
            f"{block}CoordinateSystem is {system!r}; ScanRAS is needed, or Other with a description that says scanner "
            "and RAS: convert the points to the RAS mm of the scan's header"
        )
    return _scaled(*[MILLIMETRES[str(units)]] * 3)


def _means_scanner_ras(description: str) -> bool:
    return bool(re.search(r"\bRAS\b", description) and re.search(r"\bscanner\b", description, re.IGNORECASE))
