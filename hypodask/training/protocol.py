"""The labels of manual label maps: a BIDS ``dseg.tsv`` becomes a label table.

``index`` and ``name`` are BIDS's own columns, ``abbreviation`` and ``color`` its optional ones. ``hemisphere`` is
added by hypodask: a side is never guessed from a name.
"""

import re
from typing import Any

import pandas as pd

from hypodask.core.errors import CohortError, TrainingError
from hypodask.core.structures import MAIN, Hemisphere, Label, LabelTable
from hypodask.study.tables import read_text

_NEEDED = ("index", "name", "hemisphere")

_SIDES: dict[str, Hemisphere] = {
    "l": "left",
    "left": "left",
    "r": "right",
    "right": "right",
    "both": "both",
    "b": "both",
}
"""How a hemisphere may be written, in either case."""

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""For labels without one (Okabe & Ito 2008)."""


def read_label_table(path: str, protocol: str, whole: str = MAIN.name) -> LabelTable:
    """Read the label table of a protocol.

    Parameters
    ----------
    path
        TSV with columns ``index``, ``name`` and ``hemisphere`` (``L``, ``R``, ``both``), and optionally
        ``abbreviation`` and ``color``. A row of index 0 is background and is ignored.
    protocol
        Name of the rules by which the labels were drawn.
    whole
        Name of the structure that all labels together make up.

    Raises
    ------
    TrainingError
        If there is no such table, a column is absent, or a row is not one label: the message names the row.
    """
    try:
        table = read_text(path)
    except CohortError as err:
        raise TrainingError(f"{err}; a BIDS dseg.tsv with columns {', '.join(_NEEDED)} is needed") from err
    lacking = [name for name in _NEEDED if name not in table]
    if lacking:
        raise TrainingError(
            f"{path} has columns {list(table)} and lacks {', '.join(lacking)}; a row for each label with "
            f"{', '.join(_NEEDED)} is needed: add them (hemisphere is L, R or both)"
        )
    rows = [(number, row) for number, row in enumerate(table.to_dict("records"), start=2) if row["index"] != "0"]
    labels = tuple(
        _label(f"{path}, line {number}", row, whole, _COLOURS[place % len(_COLOURS)])
        for place, (number, row) in enumerate(rows)
    )
    _check_labels(path, labels)
    return LabelTable(protocol, whole, labels)


def _label(where: str, row: dict[Any, Any], whole: str, usual_colour: str) -> Label:
    index, name, side = (str(row[column]).strip() for column in _NEEDED)
    hemisphere = _SIDES.get(side.lower())
    if not re.fullmatch(r"[1-9]\d{0,4}", index) or name in ("", "nan") or hemisphere is None:
        raise TrainingError(
            f"{where}: index {index!r}, name {name!r}, hemisphere {side!r}; a whole number above 0, a "
            "name, and one of L, R and both are needed: correct the line"
        )
    structure = _structure_name(name, hemisphere, whole)
    optional = [row.get(column) for column in ("abbreviation", "color")]
    short, colour = ("" if pd.isna(value) else str(value).strip() for value in optional)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        colour = usual_colour
    return Label(int(index), structure, hemisphere, short or structure, colour.lower())


def _structure_name(name: str, hemisphere: Hemisphere, whole: str) -> str:
    """Name of a label in the results: lower case, its side at the end; ``whole`` where the name is only a side.

    >>> _structure_name("L", "left", "hypothalamus"), _structure_name("anterior superior", "right", "hypothalamus")
    ('hypothalamus_left', 'anterior_superior_right')
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    if hemisphere == "both":
        return "_".join(words)
    rest = [word for word in words if word not in (hemisphere, hemisphere[0], f"{hemisphere[0]}h")]
    return "_".join([*(rest or [whole]), hemisphere])


def _check_labels(path: str, labels: tuple[Label, ...]) -> None:
    if not labels:
        raise TrainingError(f"{path} has no row with an index above 0; a row for each label is needed")
    for kind, values in (
        ("index", [str(label.index) for label in labels]),
        ("structure", [label.structure for label in labels]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise TrainingError(f"{path} has {kind} {', '.join(twice)} in several rows; each label needs its own")
    for label in labels:
        other = {"left": "right", "right": "left"}.get(label.hemisphere)
        if other and label.structure.removesuffix(label.hemisphere) + other not in [x.structure for x in labels]:
            raise TrainingError(
                f"{path} has {label.structure} but not the same structure on the {other}; a network learns from "
                "mirrored heads too: add the other side, or mark the label as both"
            )
