"""Commissures that a person placed, in scanner space (RAS+ mm), read from files of the usual tools.

A file is refused if its units, its axes or the names of its points are not clear: after a wrong guess the segmentation
would look for the hypothalamus in the wrong place.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.errors import LandmarkError, LocationError
from hypodask.files.location import Location

Point = tuple[float, float, float]
_Affine = Float[ndarray, "4 4"]

_NAMES = {
    "AC": frozenset({"ac", "anterior commissure"}),
    "PC": frozenset({"pc", "posterior commissure"}),
    "IH": frozenset({"ih", "midline", "interhemispheric"}),
}
"""Names of the points in files. IH is any point of the midsagittal plane, named as in AFNI and BIDS."""

_ALL_NAMES = _NAMES["AC"] | _NAMES["PC"] | _NAMES["IH"]

_SYSTEMS = {"RAS": (1.0, 1.0), "0": (1.0, 1.0), "LPS": (-1.0, -1.0), "1": (-1.0, -1.0)}
"""Signs of x and y in the coordinate systems of 3D Slicer; older versions write a number."""

_MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0}

_MAX_BYTES = 2**24
"""Largest file of landmarks; the usual size is a few kB. Not tuned."""

_BLOCKS = ("AnatomicalLandmark", "HeadCoil")
"""Where BIDS has landmarks: keys that begin with these, and end in Coordinates, CoordinateSystem, CoordinateUnits."""


@dataclass(frozen=True)
class Landmarks:
    """Commissures of one scan, placed by a person.

    Whether they can be those of a human head is checked when the scan is aligned by them.

    Raises
    ------
    LandmarkError
        If a point does not consist of three numbers.

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
    """A third point of the midsagittal plane, best far above the commissures. Without it, the automatic alignment finds
    the plane."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ac_mm", _point(self.ac_mm, "AC"))
        object.__setattr__(self, "pc_mm", _point(self.pc_mm, "PC"))
        if self.midline_mm is not None:
            object.__setattr__(self, "midline_mm", _point(self.midline_mm, "IH"))


class _Placed(NamedTuple):
    """One point of a file."""

    names: tuple[str, ...]
    """Its label and description in the file."""
    mm: Point


def read_landmarks(path: str | PathLike[str], *, scanner_from_vox: _Affine | None = None) -> Landmarks:
    """Landmarks from a file. Points are found by their names: AC, PC and, if there is one, IH.

    Parameters
    ----------
    path
        ``.fcsv`` or ``.mrk.json`` of 3D Slicer, also with AFIDs; or JSON of BIDS: a ``*_coordsystem.json`` in the
        scanner's RAS, or the ``*_T1w.json`` beside the scan. A local path or a URL.
    scanner_from_vox
        Affine of the scan; needed for a ``*_T1w.json``, whose landmarks are in voxels.

    Raises
    ------
    LandmarkError
        If the file cannot be read, if a commissure is missing or there twice, or if units or axes are not clear.

    Notes
    -----
    BIDS 1.9: landmarks in the file beside an image are in voxels of that image, and the first voxel is 0 0 0. Landmarks
    in a ``coordsystem.json`` have units and a coordinate system; ``ScanRAS`` is the scanner's RAS+.
    """
    name = fspath(path)
    try:
        if name.lower().endswith(".fcsv"):
            return _chosen(_fcsv_points(_text(name)))
        if name.lower().endswith(".json"):
            content = _json(_text(name))
            if not name.endswith("_T1w.json"):
                return _chosen(_json_points(content, None))
            if scanner_from_vox is None:
                raise LandmarkError("landmarks of a _T1w.json are in voxels; give scanner_from_vox of the scan with it")
            return _chosen(_json_points(content, scanner_from_vox))
    except LandmarkError as err:
        err.add_note(f"It was read from {name}.")
        raise
    raise LandmarkError(f"{name} is neither .fcsv nor .json; save the landmarks as one of these")


def _placed(names: Iterable[Any], numbers: Any, scanner_from_file: _Affine) -> _Placed:
    known = tuple(str(name) for name in names if name)
    point = _point(numbers, what := "/".join(known) or "a point without a name")
    if not all(map(math.isfinite, point)):
        raise LandmarkError(f"{what} is at {point}; three finite numbers are needed: place the point again")
    return _Placed(known, _point((scanner_from_file @ (*point, 1.0))[:3], "a point"))


def _point(numbers: Any, what: str) -> Point:
    try:
        x, y, z = (float(number) for number in numbers)
    except (TypeError, ValueError):
        raise LandmarkError(f"{what} is {numbers!r}; three numbers x, y, z are needed") from None
    return x, y, z


def _text(name: str) -> str:
    try:
        with Location(name).open() as file:
            content = bytes(file.read(_MAX_BYTES + 1))
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
    if len(content) > _MAX_BYTES:
        raise LandmarkError(f"the file of landmarks has more than {_MAX_BYTES:,} bytes; give one of points alone")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LandmarkError("the file of landmarks is not text; save it again as .fcsv or .json") from None


def _chosen(points: Iterable[_Placed]) -> Landmarks:
    """The commissures among the points of a file."""
    placed = list(points)
    found = {key: [p.mm for p in placed if _NAMES[key] & {_named(name) for name in p.names}] for key in _NAMES}
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


def _fcsv_points(text: str) -> Iterator[_Placed]:
    """Points of a table of 3D Slicer, whose first lines are comments with the axes and the columns."""
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


def _slicer_axes(system: Any) -> _Affine:
    """``scanner_from_file`` of a coordinate system."""
    if str(system) not in _SYSTEMS:
        raise LandmarkError(f"the coordinate system is {system!r}; one of RAS, LPS, 0 (RAS) and 1 (LPS) is needed")
    return np.diag([*_SYSTEMS[str(system)], 1.0, 1.0])


def _json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (json.JSONDecodeError, RecursionError) as err:
        raise LandmarkError(f"the file is not JSON ({err}); save it again") from err
    if not isinstance(content, dict):
        raise LandmarkError("the file holds no JSON object; give a .mrk.json of 3D Slicer or a JSON file of BIDS")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated keys; the JSON parser alone would take the last one silently."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise LandmarkError(f"one of {', '.join(content)} is there more than once; keep the one that is meant")
    return content


def _json_points(content: dict[str, Any], scanner_from_vox: _Affine | None) -> Iterator[_Placed]:
    if "markups" in content:
        yield from _markups_points(content["markups"])
        return
    for block in _BLOCKS:
        points = content.get(f"{block}Coordinates")
        # A file may also hold the nasion and the ears, in the coordinates of a head coil; they are not needed here.
        if isinstance(points, dict) and any(_named(name) in _ALL_NAMES for name in points):
            scanner_from_file = _bids_axes(content, block, scanner_from_vox)
            yield from (_placed((name,), numbers, scanner_from_file) for name, numbers in points.items())


def _markups_points(markups: Any) -> Iterator[_Placed]:
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


def _bids_axes(content: dict[str, Any], block: str, scanner_from_vox: _Affine | None) -> _Affine:
    """``scanner_from_file`` of a block of a BIDS file."""
    system, units = (content.get(f"{block}Coordinate{what}") for what in ("System", "Units"))
    if scanner_from_vox is not None and system is units is None:
        return scanner_from_vox
    if str(units) not in _MILLIMETRES:
        raise LandmarkError(f"{block}CoordinateUnits is {units!r}; mm, cm or m is needed: say which it is")
    described = str(content.get(f"{block}CoordinateSystemDescription", ""))
    says_scanner_ras = re.search(r"\bRAS\b", described) and re.search(r"\bscanner\b", described, re.IGNORECASE)
    if system != "ScanRAS" and not (system == "Other" and says_scanner_ras):
        raise LandmarkError(
            f"{block}CoordinateSystem is {system!r}; ScanRAS is needed, or Other with a description that says scanner "
            "and RAS: convert the points to the RAS mm of the scan's header"
        )
    return np.diag([*[_MILLIMETRES[str(units)]] * 3, 1.0])
