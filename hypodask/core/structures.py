"""Everything about each structure: label tables by protocol, rule for holes, usual volumes, what a report shows.

To measure a further structure, add its :class:`Structure` to :data:`STRUCTURES`. Nothing outside of this module decides
anything by the name of a structure: other code asks for the two roles, :data:`MAIN` and :data:`HEAD_SIZE`, or for a
field of a record.

A label is looked up by name; its hemisphere is a column, never the first or second half of a list.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hypodask.core.errors import ModelError

Hemisphere = Literal["left", "right", "both"]


@dataclass(frozen=True)
class Label:
    """One row of a label table."""

    index: int
    """Number in the label map; 0 is background and never a row."""
    structure: str
    """Name in the ``structure`` dimension of the results, such as ``hypothalamus_left``."""
    hemisphere: Hemisphere
    abbreviation: str
    colour: str
    """``#rrggbb``, for figures and for the BIDS ``dseg.tsv``."""


@dataclass(frozen=True)
class LabelTable:
    """The labels of one protocol.

    Examples
    --------
    >>> HYPOTHALAMUS_SIDES["hypothalamus_right"].index
    2
    >>> [label.abbreviation for label in HYPOTHALAMUS.of("left")]
    ['L-aiHyp', 'L-asHyp', 'L-posHyp', 'L-infTub', 'L-supTub']
    """

    protocol: str
    """Name of the rules by which the label maps are made; volumes of two protocols are never pooled silently."""
    whole: str
    """Structure that all labels together make up."""
    labels: tuple[Label, ...]

    def __getitem__(self, structure: str) -> Label:
        for label in self.labels:
            if label.structure == structure:
                return label
        raise KeyError(f"protocol {self.protocol!r} has no {structure!r}; it has {list(self.structures)}")

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the channels that follow background."""
        return tuple(label.structure for label in self.labels)

    def of(self, hemisphere: Hemisphere) -> tuple[Label, ...]:
        """The labels of one side."""
        return tuple(label for label in self.labels if label.hemisphere == hemisphere)


_SUBUNITS = (
    ("anterior_inferior", "aiHyp", ("#c85a5a", "#e07a5f")),
    ("anterior_superior", "asHyp", ("#e9c46a", "#f4d58d")),
    ("posterior", "posHyp", ("#2a9d8f", "#52b69a")),
    ("tubular_inferior", "infTub", ("#457b9d", "#6ba6cd")),
    ("tubular_superior", "supTub", ("#8d6cab", "#b297d1")),
)


def _subunit_labels() -> Iterator[Label]:
    sides: tuple[Hemisphere, Hemisphere] = ("left", "right")
    for side, hemisphere in enumerate(sides):
        for number, (subunit, abbreviation, colours) in enumerate(_SUBUNITS):
            yield Label(
                index=1 + number + len(_SUBUNITS) * side,
                structure=f"{subunit}_{hemisphere}",
                hemisphere=hemisphere,
                abbreviation=f"{hemisphere[0].upper()}-{abbreviation}",
                colour=colours[side],
            )


HYPOTHALAMUS = LabelTable(protocol="billot2020-consensus", whole="hypothalamus", labels=tuple(_subunit_labels()))
"""The ten subunits, as the consensus of many runs of the published network segments them."""

HYPOTHALAMUS_SIDES = LabelTable(
    protocol=HYPOTHALAMUS.protocol,
    whole="hypothalamus",
    labels=(
        Label(1, "hypothalamus_left", "left", "L-Hyp", "#ff6b3d"),
        Label(2, "hypothalamus_right", "right", "R-Hyp", "#2ec4b6"),
    ),
)
"""The same segmentation, left and right only."""

HYPOTHALAMUS_SEED = LabelTable(protocol="seed", whole="hypothalamus", labels=HYPOTHALAMUS_SIDES.labels)
"""Left and right, with what the authors of the seed paper (Kassubek et al., 2025) include as well: fornix, wall of the
ventricle, dorsal strip and floor."""

HYPOTHALAMUS_SUBUNITS = LabelTable(protocol="billot2020", whole="hypothalamus", labels=tuple(_subunit_labels()))
"""The ten subunits of the published network (Billot et al., NeuroImage 2020), in its own numbering."""

ICV = LabelTable(protocol="intracranial-cavity", whole="icv", labels=(Label(1, "icv", "both", "ICV", "#4361ee"),))
"""Everything inside the inner skull: brain, meninges, ventricles and subarachnoid CSF."""

THIRD_VENTRICLE = LabelTable(
    protocol="third-ventricle",
    whole="third_ventricle",
    labels=(Label(1, "third_ventricle", "both", "3V", "#118ab2"),),
)
"""Fluid between the two thalami and hypothalami, from the lamina terminalis to the aqueduct."""


@dataclass(frozen=True)
class Structure:
    """One structure that networks segment and whose volume is measured.

    Examples
    --------
    >>> structure("icv").title, structure("icv").usual_volume_mm3("intracranial-cavity")
    ('ICV', (1100000.0, 2000000.0))
    """

    label_tables: tuple[LabelTable, ...]
    """Label tables that its label maps may have, the usual one first; all have the same ``whole``, its name."""
    title: str
    """Its name in headings."""
    box_centre_mm: tuple[float, float, float]
    """Centre, in AC-PC space, of the input of a network that is trained on label maps of this structure."""
    box_mm: tuple[float, float, float]
    """Size of that input along x, y, z: the structure in every participant, and about 5 mm around it."""
    usual_mm3: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Generous range of adult volumes by protocol; under ``""`` that of all other protocols. A volume outside of it is
    reported with a warning."""
    largest_hole_mm3: float = math.inf
    """Holes up to this volume that the segmentation of one side encloses are filled; larger ones stay open."""
    uncalibrated: tuple[str, ...] = ()
    """Protocols of networks whose posteriors are not calibrated: their volume is that of the labels."""
    network: str = ""
    """Name of the network that hypodask ships for it; empty where there is none."""
    outlet_mm2: float = 0.0
    """Largest cross-section that it may have at the bottom of its network's box without a warning."""
    on_slab: bool = False
    """Whether it lies in the coronal slab of the paper. If so, its label map is stored on the slab too, and the report
    shows it in coronal slices."""
    unit: Literal["mm³", "ml"] = "mm³"
    """Unit of its volume in reports; tables for machines are always in mm3."""

    @property
    def name(self) -> str:
        """Its name in the ``structure`` dimension of the results, and the task of its networks."""
        return self.label_tables[0].whole

    @property
    def mm3_per_unit(self) -> float:
        """Volume of one ``unit``."""
        return {"mm³": 1.0, "ml": 1000.0}[self.unit]

    @property
    def has_sides(self) -> bool:
        """Whether label tables tell left from right."""
        return any(label.hemisphere != "both" for table in self.label_tables for label in table)

    def usual_volume_mm3(self, protocol: str) -> tuple[float, float]:
        """Range of adult volumes in a protocol; from 0 to infinity where none is known."""
        return self.usual_mm3.get(protocol, self.usual_mm3.get("", (0.0, math.inf)))

    def labels_for(self, channels: int, protocol: str) -> LabelTable | None:
        """The usual labels, in the given protocol, of a network with so many channels, background included."""
        fitting = (table for table in self.label_tables if 1 + len(table) == channels)
        return next((replace(table, protocol=protocol) for table in fitting), None)


MAIN = Structure(
    label_tables=(HYPOTHALAMUS, HYPOTHALAMUS_SIDES, HYPOTHALAMUS_SEED, HYPOTHALAMUS_SUBUNITS),
    title="Hypothalamus",
    # It reaches 10 mm to the sides and from 0 to 15 mm below the AC (14 scans).
    box_centre_mm=(0.0, -5.5, -6.0),
    box_mm=(40.0, 25.0, 36.0),
    # Segmentations of the first protocol are 0.67 of those of the seed protocol (docs/networks.md).
    usual_mm3={"": (500.0, 1400.0), HYPOTHALAMUS_SEED.protocol: (750.0, 2100.0)},
    # The fornix passes through it, and the protocols go around the fornix. On the consensus of 14 heads, 7 of 28 sides
    # enclose holes of 0.1 to 3.9 mm3, all of which the fornix makes; less than 1 mm3, a voxel of most scans, is nothing
    # that a scan can show. Coronal slices have holes of up to 11 mm3 in all, which are open at their ends and stay too.
    largest_hole_mm3=1.0,
    uncalibrated=(HYPOTHALAMUS_SUBUNITS.protocol,),
    network="hypothalamus",
    on_slab=True,
)
"""The structure that a study is about: the default of every statistic, and the one that most measures of quality are
about."""

HEAD_SIZE = Structure(
    label_tables=(ICV,),
    title="ICV",
    box_centre_mm=(0.0, -18.0, 4.0),
    box_mm=(176.0, 216.0, 192.0),
    usual_mm3={"": (1.1e6, 2.0e6)},
    network="icv",
    # The fluid in the spinal canal belongs to the ICV, and continues below the box.
    outlet_mm2=300.0,
    unit="ml",
)
"""The structure whose volume other volumes are adjusted by."""

STRUCTURES: Mapping[str, Structure] = {
    one.name: one
    for one in (
        MAIN,
        HEAD_SIZE,
        Structure(
            label_tables=(THIRD_VENTRICLE,),
            title="Third ventricle",
            box_centre_mm=(0.0, -12.0, -2.0),
            box_mm=(40.0, 44.0, 36.0),
        ),
    )
}
"""Every structure that can be measured, by name; those with a ``network`` are measured by default."""

NAMES: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *STRUCTURES,
            *(f"{one.name}_{side}" for one in STRUCTURES.values() if one.has_sides for side in ("left", "right")),
            *(name for one in STRUCTURES.values() for table in one.label_tables for name in table.structures),
        ]
    )
)
"""Every structure, side and part, in the order of the ``structure`` dimension of the results."""

SHIPPED = tuple(one.name for one in STRUCTURES.values() if one.network)
"""Structures that hypodask has networks for: every scan's row has their volumes."""

BOUNDARY_TASK, COMMISSURES_TASK = "icv-border", "commissures"
"""Tasks of networks that segment nothing: one moves the boundary of the ICV mask, one finds the AC and the PC."""


TASKS: tuple[str, ...] = (*STRUCTURES, BOUNDARY_TASK, COMMISSURES_TASK)
"""Every task that a network can have."""


SHIPPED_MODELS: tuple[str, ...] = (*(STRUCTURES[name].network for name in SHIPPED), BOUNDARY_TASK, COMMISSURES_TASK)
"""Names of the weights that come with hypodask."""


def structure(name: str) -> Structure:
    """The record of a structure.

    Raises
    ------
    ModelError
        If there is no such structure.
    """
    if name not in STRUCTURES:
        raise ModelError(
            f"{name!r} is no structure that hypodask measures; it knows {', '.join(STRUCTURES)}: "
            "give a network for one of these, or add a record to hypodask/core/structures.py"
        )
    return STRUCTURES[name]


def title_of(name: str) -> str:
    """Name, in headings, of a structure, or of a side or a part of one.

    >>> title_of("icv"), title_of("hypothalamus_left")
    ('ICV', 'Hypothalamus left')
    """
    return STRUCTURES[name].title if name in STRUCTURES else name.replace("_", " ").capitalize()


def in_order(names: Iterable[str]) -> list[str]:
    """Names of structures, sides and parts in the order of the results: structures, sides, parts, unknown names.

    >>> in_order(["posterior_left", "icv", "hypothalamus_right", "hypothalamus"])
    ['hypothalamus', 'icv', 'hypothalamus_right', 'posterior_left']
    """
    given = set(names)
    return [name for name in NAMES if name in given] + sorted(given.difference(NAMES))
