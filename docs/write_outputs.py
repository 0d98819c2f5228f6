"""Write the tables of docs/outputs.md from the code: python docs/write_outputs.py."""

from collections.abc import Iterable
from pathlib import Path

from hypodask.core.structures import (
    NAMES,
    STRUCTURES,
    Label,
)
from hypodask.core.variables import DERIVED, RESULTS, Variable

PAGE = Path(__file__).with_name("outputs.md")
BEGIN = "<!-- begin: written by docs/write_outputs.py -->"
END = "<!-- end -->"


def variable_table(variables: Iterable[Variable]) -> str:
    """A Markdown table with a row per variable."""
    rows = [f"| `{v.name}` | {', '.join(v.dims)} | {v.dtype} | {v.units} | {v.description} |" for v in variables]
    return "\n".join(["| variable | dimensions | type | unit | meaning |", "|---|---|---|---|---|", *rows])


def structure_table() -> str:
    """A Markdown table with a row per entry of the ``structure`` dimension."""
    rows = [f"| `{structure}` | {', '.join(dict.fromkeys(_sources(structure)))} |" for structure in NAMES]
    return "\n".join(["| structure | label protocol: number in its label map |", "|---|---|", *rows])


def _sources(structure: str) -> Iterable[str]:
    for table in (table for one in STRUCTURES.values() for table in one.label_tables):
        found = [f"{table.protocol}: {_number(label)}" for label in table if label.structure == structure]
        whole = [f"{table.protocol}: all labels"] if table.whole == structure and not found else []
        yield from [*found, *whole]


def _number(label: Label) -> str:
    return f"{label.index} ({label.abbreviation})"


def tables() -> str:
    """Everything that stands between the two marks of the page."""
    return "\n\n".join(
        [
            "### Measured",
            variable_table(RESULTS),
            "### Added by the analysis",
            variable_table(DERIVED),
            "### Structures",
            structure_table(),
        ]
    )


def renewed(page: str) -> str:
    """The page with its tables as the code has them now."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
