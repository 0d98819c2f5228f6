"""Which label map belongs to which scan: from a BIDS dataset and its derivative, or from a table."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from hypodask.core.errors import CohortError, TrainingError
from hypodask.files.location import join
from hypodask.study.bids import matching_files
from hypodask.study.cohort import Cohort, Entry
from hypodask.study.ids import entities, id_danger, scan_stem
from hypodask.study.tables import as_text, read_text
from hypodask.training.config import Data

_PATTERNS = ("sub-*/anat/*_dseg.nii*", "sub-*/ses-*/anat/*_dseg.nii*")

_OWN_SPACES = frozenset({"", "orig", "T1w", "individual", "scanner"})
"""Values of BIDS's ``space`` that mean the scan's own space."""

ALIGNED_SPACES = frozenset({"ACPC", "acpc"})

_TELLING = ("run", "acq", "rec", "ce")
"""Entities that tell scans of one session apart, where the name of a label map has them."""


@dataclass(frozen=True)
class Pair:
    """A scan and its manual label map, or the reason why they are no pair."""

    scan: str
    """Identifier, ``sub-01[_ses-1]``."""
    participant_id: str
    session: str = ""
    scan_path: str = ""
    labels_path: str = ""
    space: str = ""
    """Space of the label map, as its name or the table says; empty where neither does."""
    transform: str = ""
    """File of ``acpc_from_scanner`` for a label map in AC-PC space."""
    problem: str = ""
    """What was found, what was needed, what to do; empty for a pair."""


def find_pairs(data: Data) -> list[Pair]:
    """All label maps of a run's data with the scan that each was drawn on.

    Raises
    ------
    TrainingError
        If there is no scan, or no label map at all.
    """
    try:
        pairs = list(_from_table(data) if data.table else _from_bids(data))
    except CohortError as err:
        raise TrainingError(str(err)) from err
    if not pairs:
        raise TrainingError(
            f"no label map in {data.outlines}: searched {' and '.join(_PATTERNS)}"
            + (f" for names with {dict(data.entities)}" if data.entities else "")
            + "; give the root of a BIDS derivative with label maps, or list pairs in a table"
        )
    names = [pair.scan for pair in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TrainingError(f"several label maps are of {', '.join(twice[:10])}; one of each scan is needed: keep one")
    return [_checked(pair) for pair in pairs]


def label_table_path(data: Data) -> str:
    """The label table: the one that was named, or the only one at the root of the derivative.

    Raises
    ------
    TrainingError
        If none was named and there is none, or several.
    """
    if data.labels:
        return data.labels
    found = sorted(matching_files(data.outlines, "*dseg.tsv"))
    if len(found) != 1:
        raise TrainingError(
            f"{data.outlines} has {len(found)} label tables at its root ({', '.join(found) or 'no *dseg.tsv'}); one is "
            "needed, with columns index, name and hemisphere: add dseg.tsv, or set [data] labels to its path"
        )
    return join(data.outlines, found[0])


def _from_bids(data: Data) -> Iterator[Pair]:
    scans: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in Cohort.from_bids(data.bids).entries():
        scans[entry.participant_id, entry.session].append(entry)
    label_maps: dict[str, list[Pair]] = defaultdict(list)
    for file in sorted({file for pattern in _PATTERNS for file in matching_files(data.outlines, pattern)}):
        found = entities(file.rsplit("/", 1)[-1])
        if data.entities.items() <= found.items():
            pair = _pair_of(join(data.outlines, file), found, scans)
            label_maps[pair.scan].append(pair)
    for scan, pairs in label_maps.items():
        if len(pairs) == 1:
            yield pairs[0]
        else:
            names = ", ".join(PurePosixPath(pair.labels_path).name for pair in pairs)
            problem = f"{scan} has {len(pairs)} label maps, {names}; one is needed: choose it with [data] entities"
            yield _refused(pairs[0], problem)


def _pair_of(path: str, found: Mapping[str, str], scans: Mapping[tuple[str, str], list[Entry]]) -> Pair:
    participant, session = f"sub-{found.get('sub', '')}", found.get("ses", "")
    fitting = [
        entry
        for entry in scans.get((participant, session), [])
        if all(entities(entry.path).get(name, "") == found[name] for name in _TELLING if name in found)
    ]
    space = found.get("space", "")
    if len(fitting) == 1:
        entry = fitting[0]
        return Pair(entry.scan, participant, session, entry.path, path, space, _transform_beside(path, space))
    name = participant + (f"_ses-{session}" if session else "")
    scans_found = ", ".join(entry.scan for entry in fitting) or "no T1w scan"
    problem = (
        f"{path}: {scans_found} of {name} for this label map; exactly one is needed: name it after the scan, with its "
        f"session and, of {', '.join(_TELLING)}, what tells the scan from the others"
    )
    return Pair(name, participant, session, labels_path=path, problem=problem)


def _transform_beside(path: str, space: str) -> str:
    """The transform of a label map in AC-PC space, as hypodask and BIDS name it; empty where there is none."""
    if space not in ALIGNED_SPACES:
        return ""
    folder, name = path.rsplit("/", 1) if "/" in path else (".", path)
    start = name.split("_space-")[0]
    found = sorted(matching_files(folder, f"{start}_from-T1w_to-ACPC_*xfm.txt"))
    return join(folder, found[0]) if found else ""


def _from_table(data: Data) -> Iterator[Pair]:
    table = read_text(data.table)
    if missing := {"scan", "labels"} - set(table):
        raise TrainingError(
            f"{data.table} has columns {list(table)} and lacks {', '.join(sorted(missing))}; scan and labels are "
            "needed, each the path of an image: add them, or save the table as tab-separated"
        )
    folder = data.table.rsplit("/", 1)[0]
    columns = {
        name: as_text(table[name]) if name in table else [""] * len(table)
        for name in ("scan", "labels", "participant_id", "session", "space", "transform")
    }
    for row, values in enumerate(zip(*columns.values(), strict=True), start=2):
        scan, labels, participant, session, space, transform = values
        name = scan_stem(scan)
        participant = participant or (f"sub-{entities(scan)['sub']}" if entities(scan) else name)
        problem = "" if scan and labels else f"{data.table}, line {row}: scan {scan!r}, labels {labels!r}; both needed"
        paths = (join(folder, path) for path in (scan, labels, transform))
        scan_path, labels_path, transform_path = paths
        yield Pair(name, participant, session, scan_path, labels_path, space, transform_path, problem)


def _checked(pair: Pair) -> Pair:
    """The pair, refused if its name cannot be that of a file or if its label map is in a space that cannot be used."""
    if pair.problem:
        return pair
    if danger := id_danger(pair.scan):
        return _refused(pair, f"{pair.scan!r} cannot name a file: {danger}; rename the scan")
    if pair.space in ALIGNED_SPACES and not pair.transform:
        return _refused(
            pair,
            f"{pair.labels_path} is in space {pair.space}, and the pose that it was aligned with is not known; put "
            f"{pair.scan}_from-T1w_to-ACPC_mode-image_xfm.txt beside it, or resample it to the scan as space-orig",
        )
    if pair.space not in _OWN_SPACES | ALIGNED_SPACES:
        return _refused(
            pair,
            f"{pair.labels_path} is in space {pair.space}; the scan's own (no space in the name, or space-orig), or "
            "space-ACPC with its transform, is needed: carry it back to the scan with the inverse of the transform "
            "that led there, nearest neighbour",
        )
    return pair


def _refused(pair: Pair, problem: str) -> Pair:
    return Pair(pair.scan, pair.participant_id, pair.session, pair.scan_path, pair.labels_path, problem=problem)
