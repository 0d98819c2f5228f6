r"""How well the hypothalamus is measured: overlap, repeatability, sensitivity, hard conditions, two visits, pictures.

::

    python -m benchmarks.validation.hypothalamus_accuracy DATA OUT --folds WORK \
        [--only overlap repeat shrink hard visits pictures]

DATA is the folder of validation scans (``scans/``, ``scans_stripped/``, ``scans_thick/``, ``scans_2mm/``,
``template/``, ``models/``). WORK is where ``python -m recipes hypothalamus`` kept each head's consensus and
its runs with heads left out: each head is then measured with the network that did not learn from it. Without
``--folds`` one network measures all heads, and the column ``held_out`` says which of them it may have learnt from.

Each part writes ``OUT/<part>.tsv`` with a row for every measurement, after every head, and ``OUT/<part>_summary.tsv``;
all summaries are in ``OUT/summary.md``. One process and one core: start several with other heads or parts, each with
an OUT of its own.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.validation.hypothalamus_hard import hard_figures, run_hard, summarize_hard
from benchmarks.validation.hypothalamus_heads import COARSE, LEARNT, OTHERS, Effort, RealHead, Study
from benchmarks.validation.hypothalamus_overlap import run_overlap, summarize_overlap
from benchmarks.validation.hypothalamus_pictures import run_pictures
from benchmarks.validation.hypothalamus_repeat import (
    VISITS,
    repeat_figures,
    run_repeat,
    run_visit,
    summarize_repeat,
    summarize_visits,
    visit_figures,
)
from benchmarks.validation.hypothalamus_shrink import run_shrink, shrink_figures, summarize_shrink
from benchmarks.validation.results import add_record_option, write_results
from benchmarks.validation.scoring import markdown

Rows = Iterator[dict[str, object]]


@dataclass(frozen=True)
class Part:
    """One thing to measure."""

    run: Callable[[RealHead, Effort], Rows]
    """Rows of one head."""
    summarize: Callable[[pd.DataFrame], pd.DataFrame]
    patterns: tuple[str, ...]
    """Heads that it is measured on."""
    cases: int
    """Poses or draws on each head."""
    note: str
    """What the summary's columns say."""
    indivisible: bool = False
    """Whether it needs all of its heads, however few were asked for."""


def parts(out: Path) -> dict[str, Part]:
    """All parts by name."""
    return {
        "overlap": Part(
            run_overlap,
            summarize_overlap,
            LEARNT + OTHERS + COARSE,
            0,
            "Against the consensus of 24 runs of the published network (pseudo-labels, not manual outlines), on its "
            "grid of 0.5 mm and in its pose.",
        ),
        "repeat": Part(
            run_repeat,
            summarize_repeat,
            LEARNT,
            12,
            "Turned by up to 15 degrees about each axis, shifted by up to 10 mm, cubic voxels of 0.8 to 1.2 mm, noise "
            "of 1 %. Known pose: give or take 0.5 mm and 0.7 degrees. Trends are those of soft volumes.",
        ),
        "shrink": Part(
            run_shrink,
            summarize_shrink,
            LEARNT,
            4,
            "Scans warped so that the consensus shrinks by 0, 2, 4, 6, 10 %. Paired SD: of measured less true change.",
        ),
        "hard": Part(run_hard, summarize_hard, LEARNT, 1, "Against the same scan undegraded."),
        "visits": Part(
            run_visit, summarize_visits, VISITS, 0, "One person with MS, slices of 3 mm, two visits.", indivisible=True
        ),
        "pictures": Part(lambda real, _: run_pictures(real, out), pd.DataFrame, LEARNT + OTHERS, 0, "To be looked at."),
    }


def run_part(name: str, options: argparse.Namespace) -> None:
    """Measure one part on all heads, and summarize it."""
    part = parts(options.out)[name]
    effort = Effort(min(part.cases, options.cases), options.teacher)
    study = Study(options.data, options.folds or options.out, options.weights, use_folds=options.folds is not None)
    rows: list[dict[str, object]] = []
    paths = study.paths(part.patterns)
    for path in paths if part.indivisible else chosen(paths, options):
        print(f"{name}: {path.name}", flush=True)
        real = study.real_head(path)
        rows += [{**real.row(), **row} for row in part.run(real, effort)]
        pd.DataFrame(rows).to_csv(options.out / f"{name}.tsv", sep="\t", index=False)
    if rows:
        table = summarize(name, part, options.out)
        if options.record and name in FIGURES:
            figures, what = FIGURES[name]
            data = f"{table['head'].nunique()} real scans, each by networks that had not learnt from it"
            networks = ("commissures", "hypothalamus")
            write_results(f"hypothalamus_{name}", figures(table), what=what, data=data, networks=networks)


FIGURES: dict[str, tuple[Callable[[pd.DataFrame], dict[str, float]], str]] = {
    "repeat": (repeat_figures, "Coefficient of variation of the volume over re-poses"),
    "shrink": (shrink_figures, "How much of an imposed shrinkage is measured"),
    "hard": (hard_figures, "Change of the volume when the image gets worse"),
    "visits": (visit_figures, "Two visits of one person"),
}
"""What ``--record`` writes of a part, and what that is."""


def chosen(paths: list[Path], options: argparse.Namespace) -> list[Path]:
    """The heads that were asked for."""
    named = [path for path in paths if not options.held_out_only or path.name.split(".")[0] in options.held_out_only]
    return named[: options.heads]


def summarize(name: str, part: Part, out: Path) -> pd.DataFrame:
    """The table of a part, whose summary is written, and all summaries as one page."""
    table = pd.read_csv(out / f"{name}.tsv", sep="\t")
    for column, default in {"failed": "", "flagged": False}.items():
        table[column] = (
            table[column].astype(object).where(table[column].notna(), default) if column in table else default
        )
    summary = part.summarize(table).astype(object)
    summary.where(summary.notna(), "").to_csv(out / f"{name}_summary.tsv", sep="\t", index=False)
    sections = {other: section(other, known, out) for other, known in parts(out).items()}
    (out / "summary.md").write_text("# Hypothalamus\n\n" + "\n".join(filter(None, sections.values())))
    print(sections[name])
    return table


def section(name: str, part: Part, out: Path) -> str:
    """A summary that was written, as Markdown; nothing if it was not."""
    path = out / f"{name}_summary.tsv"
    if not path.exists():
        return ""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    return f"## {name.capitalize()}\n\n{part.note}\n\n{markdown(table)}\n"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = list(parts(Path()))
    parser.add_argument("data", type=Path, help="folder of validation scans")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--folds", type=Path, help="the recipe's WORK, with a network for every head that was left out")
    parser.add_argument("--weights", default="hypothalamus", help="network for heads that no run left out")
    parser.add_argument("--held-out-only", nargs="+", metavar="NAME", help="only these heads, named without suffix")
    parser.add_argument("--heads", type=int, help="only the first so many heads of each part")
    parser.add_argument("--cases", type=int, default=1_000, help="at most so many poses or draws of each head")
    parser.add_argument("--teacher", type=int, default=2, help="cases that the published network sees too")
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="parts to run")
    add_record_option(parser)
    return parser.parse_args(words)


def main() -> None:
    """Run the parts one after the other."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        run_part(name, options)


if __name__ == "__main__":
    main()
