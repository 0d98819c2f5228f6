"""Label tables: what the numbers in a label map stand for.

A label is looked up by name; its hemisphere is a column, never the first or second half of a list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

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
    """Who drew these outlines, and how; volumes of two protocols are never pooled silently."""
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
"""The ten subunits as the consensus of many runs of the published network outlines them."""

HYPOTHALAMUS_SIDES = LabelTable(
    protocol=HYPOTHALAMUS.protocol,
    whole="hypothalamus",
    labels=(
        Label(1, "hypothalamus_left", "left", "L-Hyp", "#ff6b3d"),
        Label(2, "hypothalamus_right", "right", "R-Hyp", "#2ec4b6"),
    ),
)
"""The same outlines, left and right only."""

HYPOTHALAMUS_SEED = LabelTable(protocol="seed", whole="hypothalamus", labels=HYPOTHALAMUS_SIDES.labels)
"""Left and right, extended by what the authors of the seed paper (Kassubek et al., 2025) outline as well: fornix, wall
of the ventricle, dorsal strip and floor."""

HYPOTHALAMUS_SUBUNITS = LabelTable(protocol="billot2020", whole="hypothalamus", labels=tuple(_subunit_labels()))
"""The ten subunits of the published network (Billot et al., NeuroImage 2020), in its own numbering."""

ICV = LabelTable(protocol="intracranial-cavity", whole="icv", labels=(Label(1, "icv", "both", "ICV", "#4361ee"),))
"""Everything inside the inner skull: brain, meninges, ventricles and subarachnoid CSF."""

STRUCTURES = (
    "hypothalamus",
    "icv",
    "hypothalamus_left",
    "hypothalamus_right",
    *HYPOTHALAMUS_SUBUNITS.structures,
)
"""Every name of the ``structure`` dimension, in the order of the results dataset."""
