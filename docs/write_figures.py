"""Put measured figures into the pages: python docs/write_figures.py [--check].

A figure is kept in one place: in ``docs/results/<name>.json``, which a program of ``benchmarks/validation`` writes, or
in the card of a network, ``hypodask/weights/<name>.json``, which its recipe writes. A page shows it in one of two ways:

- in a sentence, between marks that a reader does not see:
  ``<!-- figure: icv_accuracy.dice_mean:.3f -->0.986<!-- /figure -->``;
- in a table that is written from ``docs/tables/<table>.md``, where the figure is ``{icv_accuracy.dice_mean:.3f}``.
  The page holds the table between ``<!-- begin: docs/tables/<table>.md, written by docs/write_figures.py -->`` and
  ``<!-- end -->``.

After the name comes Python's format of numbers. Figures of a card are named ``card_hypothalamus.dice_mean``.
With ``--check`` nothing is written; the exit status is 1 if a page differs from its results.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TABLES, WEIGHTS = ROOT / "docs" / "results", ROOT / "docs" / "tables", ROOT / "hypodask" / "weights"

NAME = r"(?P<name>\w+\.\w+)(?::(?P<format>[^ }]*))?"
FIGURE = re.compile(rf"(<!-- figure: {NAME} -->).*?(<!-- /figure -->)", re.DOTALL)
CELL = re.compile(rf"\{{{NAME}\}}")
TABLE = re.compile(
    r"(<!-- begin: docs/tables/(?P<table>[\w-]+)\.md, written by docs/write_figures\.py -->\n).*?(\n<!-- end -->)",
    re.DOTALL,
)


def known_figures() -> dict[str, float]:
    """Every figure by its name: ``<file>.<key>``."""
    figures: dict[str, float] = {}
    for path in sorted(RESULTS.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))["values"]
        figures |= {f"{path.stem}.{key}": entry["value"] for key, entry in values.items()}
    for path in sorted(WEIGHTS.glob("*.json")):
        metrics = json.loads(path.read_text(encoding="utf-8")).get("metrics", {})
        stem = f"card_{path.stem.replace('-', '_')}"
        figures |= {f"{stem}.{key}": value for key, value in metrics.items() if not isinstance(value, str)}
    return figures


def shown(match: re.Match[str], figures: dict[str, float]) -> str:
    """A figure as a page shows it."""
    name, style = match["name"], match["format"] or ""
    if name not in figures:
        raise SystemExit(f"no results file has the figure {name}; measure it, or take it out of the page")
    return format(figures[name], style).replace("%", " %")


def renewed(page: str, figures: dict[str, float]) -> str:
    """The page with the figures that the results have now."""

    def table(match: re.Match[str]) -> str:
        template = (TABLES / f"{match['table']}.md").read_text(encoding="utf-8").strip()
        return f"{match[1]}\n{CELL.sub(lambda cell: shown(cell, figures), template)}\n{match[3]}"

    page = TABLE.sub(table, page)
    return FIGURE.sub(lambda match: f"{match[1]}{shown(match, figures)}{match[4]}", page)


def outdated() -> dict[Path, str]:
    """Pages that differ from their results, with the text that they should have."""
    figures = known_figures()
    texts = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    return {path: new for path, text in texts.items() if (new := renewed(text, figures)) != text}


def main() -> None:
    """Renew the pages, or say which of them are not up to date."""
    pages = outdated()
    if "--check" in sys.argv[1:]:
        for path in pages:
            print(f"{path.relative_to(ROOT)} differs from its results; run python docs/write_figures.py")
        sys.exit(bool(pages))
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
