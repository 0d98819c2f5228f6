"""Write the table of docs/bad-inputs.md from what happens: python docs/write_bad_inputs.py.

It makes every kind of tests/bad_inputs.py and processes it, which takes a minute, and needs dcm2niix.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import xarray as xr

PAGE = Path(__file__).with_name("bad-inputs.md")
sys.path.insert(0, str(PAGE.parents[1] / "tests"))
import bad_inputs  # noqa: E402

BEGIN = "<!-- begin: written by docs/write_bad_inputs.py -->"
END = "<!-- end -->"

Run = tuple[xr.Dataset, Path]
"""Results, and the folder that study and output were in."""


def tables(runs: Iterable[Run]) -> Iterator[str]:
    """A heading and a Markdown table for each chapter of ``tests/bad_inputs.py``."""
    runs = list(runs)
    for chapter, kinds in bad_inputs.CHAPTERS.items():
        yield f"### {chapter}\n"
        yield "| given | stage | error | what the user reads |\n|---|---|---|---|"
        yield from (row_of(kind, *_run_of(kind, runs)) for kind in kinds)
        yield ""


def _run_of(kind: bad_inputs.Kind, runs: list[Run]) -> Run:
    return next(run for run in runs if kind.name in run[0]["scan"].to_numpy())


def row_of(kind: bad_inputs.Kind, results: xr.Dataset, folder: Path) -> str:
    """The line of the page about one kind."""
    row = results.sel(scan=kind.name)
    text = bad_inputs.said(kind, row).replace(f"{folder}/study/", "")
    cells = [kind.given, row["stage"].item(), f"`{kind.error}`" if kind.error else "done", _plain(text)]
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for mark in "\\|*_<[`":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def renewed(page: str, runs: Iterable[Run]) -> str:
    """The page with its tables as the runs have them."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    lines = "\n".join(tables(runs))
    return f"{before}{BEGIN}\n\n{lines}\n{END}{after}"


def main() -> None:
    """Run every kind and write the page."""
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        files, heads = Path(first), Path(second)
        runs = [
            (bad_inputs.files_processed(files / "study", files / "out"), files),
            (bad_inputs.heads_processed(heads / "study", heads / "out"), heads),
        ]
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")


if __name__ == "__main__":
    main()
