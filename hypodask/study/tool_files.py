"""Files of volumes that other tools write: which tool wrote one, and what its numbers are called here.

==================================================  ==========================================================
file                                                written by
==================================================  ==========================================================
``mri/hypothalamic_subunits_volumes.v1.csv``        FreeSurfer 7.2 and later, ``mri_segment_hypothalamic_subunits``,
                                                    one subject or all of a folder
``stats/hypothalamic_subunits_volumes.v1.stats``    the same
``stats/aseg.stats``                                FreeSurfer, FastSurfer, SAMSEG
a table with ``Measure:volume``                     ``asegstats2table``, separated by tabs, commas, semicolons or blanks
``stats/hypothalamus.HypVINN.stats``                FastSurfer, HypVINN
a table with ``subject``, ``total intracranial``    SynthSeg, ``mri_synthseg --vol``
==================================================  ==========================================================

All of these tools write mm3. The kind of a file is told from its content.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from hypodask.core.errors import ResultsError
from hypodask.core.structures import HEAD_SIZE, HYPOTHALAMUS_SUBUNITS, MAIN
from hypodask.files.location import Location

Volumes = dict[str, float]
"""Volume (mm3) by structure: first by the names of the file, later by those of hypodask."""

_ROUNDING_MM3 = 0.02
"""Largest difference between a whole and the sum of its parts, each of which is rounded to 0.001 mm3."""

_ETIV = "EstimatedTotalIntraCranialVol"

_FREESURFER_NAMES = {
    f"{side} {theirs}": f"{ours}_{side}"
    for side in ("left", "right")
    for theirs, ours in (
        ("anterior-inferior", "anterior_inferior"),
        ("anterior-superior", "anterior_superior"),
        ("posterior", "posterior"),
        ("tubular inferior", "tubular_inferior"),
        ("tubular superior", "tubular_superior"),
    )
} | {f"whole {side}": f"{MAIN.name}_{side}" for side in ("left", "right")}
"""Structures by the columns of FreeSurfer's CSV."""

_HYPVINN_NAMES = {
    f"{side[0].upper()}-{theirs}": f"{ours}_{side}"
    for side in ("left", "right")
    for theirs, ours in (
        ("Ant-Hypothalamus", "hypvinn_anterior"),
        ("Post-Hypothalamus", "hypvinn_posterior"),
        ("Med-Hypothalamus", "hypvinn_medial"),
        ("Lat-Hypothalamus", "hypvinn_lateral"),
        ("C.mammilare", "hypvinn_mammillary_body"),
    )
} | {"Tuberal-Region": "hypvinn_tuberal_region"}
"""Labels of HypVINN whose sum is the hypothalamus here, since HypVINN has no whole. Its subunits are not those of
FreeSurfer. The mammillary bodies count because the posterior subunit of FreeSurfer contains them."""

_NO_VOLUME = re.compile(r"Vol$|Vol-to-eTIV$|SurfaceHoles$|^eTIV$|^Euler")
"""Columns of asegstats2table that are sums of other columns, ratios or counts."""


@dataclass(frozen=True)
class Tool:
    """The program that measured the volumes, and its label protocol."""

    name: str
    protocol: str
    """Label protocol of the hypothalamus; of the whole brain if the tool does not segment the hypothalamus."""
    rename: Callable[[Volumes, str], Volumes]
    """Volumes by the names of the file, and a description of the file for messages -> volumes by our names."""


def _hypothalamus_of_freesurfer(found: Volumes, source: str) -> Volumes:
    _require(found, _FREESURFER_NAMES, source)
    ours = {name: found[theirs] for theirs, name in _FREESURFER_NAMES.items()}
    for side in ("left", "right"):
        whole = ours[f"{MAIN.name}_{side}"]
        parts = sum(ours[label.structure] for label in HYPOTHALAMUS_SUBUNITS if label.hemisphere == side)
        if abs(parts - whole) > _ROUNDING_MM3:
            raise ResultsError(
                f"{source}: whole {side} is {whole:g} mm3 but its subunits sum to {parts:g}: "
                "columns were shifted or edited, export the file again"
            )
    return ours | {MAIN.name: ours[f"{MAIN.name}_left"] + ours[f"{MAIN.name}_right"]}


def _hypothalamus_of_hypvinn(found: Volumes, source: str) -> Volumes:
    # A label without a voxel has no row in the file.
    ours = {name: found.get(theirs, 0.0) for theirs, name in _HYPVINN_NAMES.items()}
    others = {f"hypvinn_{_plain(name)}": volume for name, volume in found.items() if name not in _HYPVINN_NAMES}
    return {MAIN.name: sum(ours.values())} | ours | others


def _brain_of_aseg(found: Volumes, source: str) -> Volumes:
    _require(found, [_ETIV], source)
    kept = {_plain(name): volume for name, volume in found.items() if not _NO_VOLUME.search(name)}
    return {HEAD_SIZE.name: found[_ETIV]} | {f"aseg_{name}": volume for name, volume in kept.items()}


def _brain_of_synthseg(found: Volumes, source: str) -> Volumes:
    kept = {f"synthseg_{_plain(name)}": volume for name, volume in found.items() if name != "total intracranial"}
    return ({HEAD_SIZE.name: found["total intracranial"]} if "total intracranial" in found else {}) | kept


_FREESURFER_HYPOTHALAMUS = Tool(
    "FreeSurfer mri_segment_hypothalamic_subunits v1", HYPOTHALAMUS_SUBUNITS.protocol, _hypothalamus_of_freesurfer
)
_FREESURFER_ASEG = Tool("FreeSurfer aseg", "freesurfer-aseg", _brain_of_aseg)
_HYPVINN = Tool("FastSurfer HypVINN", "hypvinn", _hypothalamus_of_hypvinn)
_SYNTHSEG = Tool("SynthSeg", "synthseg", _brain_of_synthseg)


def _require(found: Mapping[str, float], needed: Iterable[str], source: str) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise ResultsError(f"{source}: found {sorted(found)}, needed also {missing}: export the file again, whole")


def _plain(name: str) -> str:
    """Name of a structure in the style of hypodask: lower case, underscores, the side last.

    >>> _plain("Left-Cerebral-White-Matter"), _plain("right cerebral white matter"), _plain("ctx-lh-bankssts")
    ('cerebral_white_matter_left', 'cerebral_white_matter_right', 'ctx_bankssts_left')
    """
    words = re.findall(r"[a-z0-9+]+", name.lower())
    sides = {"left": "left", "right": "right", "lh": "left", "rh": "right", "l": "left", "r": "right"}
    for word in words[:2]:
        if word in sides:
            words.remove(word)
            return "_".join([*words, sides[word]])
    return "_".join(words)


def read_tool_file(path: str) -> tuple[Tool, list[tuple[str, Volumes]]]:
    """The tool that wrote a file, and the volumes of each of its subjects by our names.

    Raises
    ------
    ResultsError
        If the file is missing, of no known kind, damaged or incomplete.
    """
    try:
        text = Location(path).read().decode()
    except (FileNotFoundError, IsADirectoryError):
        raise ResultsError(f"{path}: no such file, needed a table of volumes: check the path") from None
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: found bytes that are no text, needed a table of volumes: check the path") from None
    tool, subjects = _read_stats(path, text) if text.startswith("#") else _read_table(path, text)
    return tool, [(subject, tool.rename(found, f"{path}, {subject}")) for subject, found in subjects]


def _read_stats(path: str, text: str) -> tuple[Tool, list[tuple[str, Volumes]]]:
    lines = text.splitlines()
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if lines[0].startswith("# Hypothalamic Subunit"):
        found = {_csv_name(row[4]): _number(row[3], path) for row in _long_enough(rows, path)}
        return _FREESURFER_HYPOTHALAMUS, [(_subject(path, lines), found)]
    headers = next((line.split()[2:] for line in lines if line.startswith("# ColHeaders")), [])
    if headers[3:5] != ["Volume_mm3", "StructName"]:
        raise ResultsError(
            f"{path}: found columns {headers}, needed Index SegId NVoxels Volume_mm3 StructName: "
            f"give an aseg.stats or {MAIN.name}.HypVINN.stats"
        )
    found = {row[4]: _number(row[3], path) for row in _long_enough(rows, path)}
    if any(name.endswith("-Hypothalamus") for name in found):
        return _HYPVINN, [(_subject(path, lines), found)]
    return _FREESURFER_ASEG, [(_subject(path, lines), found | _etiv(path, lines))]


def _long_enough(rows: list[list[str]], path: str) -> list[list[str]]:
    short = [row for row in rows if len(row) < 5]
    if short or not rows:
        raise ResultsError(f"{path}: found {short[:1] or 'no row'}, needed five columns a row: the file was cut off")
    return rows


def _csv_name(name: str) -> str:
    """Name in FreeSurfer's CSV for a name in its stats file, one of which is misspelt (``Ssuperior``).

    >>> _csv_name("Right-Anterior-Ssuperior"), _csv_name("Left-Tubular-Inferior"), _csv_name("Whole-Left")
    ('right anterior-superior', 'left tubular inferior', 'whole left')
    """
    plain = name.lower().replace("ssuperior", "superior").replace("-", " ")
    return plain.replace("anterior ", "anterior-")


def _etiv(path: str, lines: list[str]) -> Volumes:
    for line in lines:
        if line.startswith(f"# Measure {_ETIV}"):
            *_, value, unit = [part.strip() for part in line.split(",")]
            if unit != "mm^3":
                raise ResultsError(f"{path}: {_ETIV} is in {unit!r}, needed mm^3: export the file again")
            return {_ETIV: _number(value, path)}
    return {}


def _subject(path: str, lines: list[str]) -> str:
    folders = PurePath(path).parts
    if len(folders) > 2 and folders[-2] in ("stats", "mri"):
        return folders[-3]
    named = next((line.split()[2:] for line in lines if line.startswith("# subjectname")), [])
    if not named:
        raise ResultsError(
            f"{path}: nothing says whose it is, needed a path SUBJECT/stats/FILE: keep the tool's folders"
        )
    return named[0]


def _read_table(path: str, text: str) -> tuple[Tool, list[tuple[str, Volumes]]]:
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t,;" if mark in header), " ")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True) if any(row)]
    names = [name.strip() for name in rows[0]] if rows else []
    tool = _tool_of_table(names, path)
    subjects = []
    for row in rows[1:]:
        if len(row) != len(names):
            raise ResultsError(f"{path}: {row[0]} has {len(row)} columns, needed {len(names)}: the file was cut off")
        numbers = zip(names[1:], row[1:], strict=True)
        subjects.append((row[0].strip(), {name: _number(value, path) for name, value in numbers}))
    return tool, subjects


def _tool_of_table(names: list[str], path: str) -> Tool:
    first, others = (names[0], set(names[1:])) if names else ("", set())
    if first == "subject" and "left anterior-inferior" in others:
        return _FREESURFER_HYPOTHALAMUS
    if first == "subject" and others & {"total intracranial", "left cerebral white matter"}:
        return _SYNTHSEG
    if first == "Measure:volume":
        return _FREESURFER_ASEG
    raise ResultsError(
        f"{path}: found the columns {names[:4]}, needed those of FreeSurfer's hypothalamic subunits, SynthSeg or "
        "asegstats2table --meas volume: give one of these files"
    )


def _number(value: str, path: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise ResultsError(f"{path}: found {value!r}, needed a volume in mm3 that is not negative: export it again")
    return number
