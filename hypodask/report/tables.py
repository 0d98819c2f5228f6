"""Tables of the statistics as text for readers: units in the heading, only digits that carry information."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from hypodask.core.structures import HEAD_SIZE, MAIN, STRUCTURES, title_of
from hypodask.core.variables import LOW_QUALITY
from hypodask.report.figures import format_p
from hypodask.stats.samples import done_scans, group_labels, values_of

_ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """Headings and rows of text, and notes on some of the rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


_TEST_NAMES = {
    "student": "Student's t",
    "mann-whitney": "Mann–Whitney",
    "kruskal-wallis": "Kruskal–Wallis",
    "chi-square": "χ²",
    "fisher": "Fisher",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
"""Names of the tests for readers."""


def _number(value: float, digits: int = 0) -> str:
    """A number with a space between thousands and a true minus sign.

    >>> _number(-1234.5, 1)
    '−1 234.5'
    """
    return f"{value:,.{digits}f}".replace(",", " ").replace("-", "−") if np.isfinite(value) else _ABSENT


def _mean_sd(mean: float, sd: float, digits: int = 0) -> str:
    if not np.isfinite(mean):
        return _ABSENT
    return f"{_number(mean, digits)} ± {_number(sd, digits)}" if np.isfinite(sd) else _number(mean, digits)


def _interval(low: float, high: float, digits: int = 0) -> str:
    return f"{_number(low, digits)} to {_number(high, digits)}" if np.isfinite([low, high]).all() else _ABSENT


def _estimate(value: float, low: float, high: float, digits: int) -> str:
    interval = f" ({_interval(low, high, digits)})" if np.isfinite([low, high]).all() else ""
    return _number(value, digits) + interval


def _p(value: float) -> str:
    return format_p(value).removeprefix("p ").removeprefix("= ") or _ABSENT


def _test(name: str, p: float) -> str:
    """Name of a test for readers; a dash where no test could be made."""
    return _TEST_NAMES.get(name, name) if np.isfinite(p) else _ABSENT


def _table(frame: pd.DataFrame, columns: Mapping[str, Callable[[Any], str]], *, of: Iterable[str] = ()) -> Table:
    """One cell per heading and row, each made from the row; columns that are empty in every row are left out.

    Where headings are given in ``of``, each reason in the frame becomes one note beneath the table, which begins with
    the cells of its rows under these headings.
    """
    rows = [tuple(cell(row) for cell in columns.values()) for row in _rows(frame)]
    told = [i for i in range(len(columns)) if any(row[i] for row in rows)] if rows else range(len(columns))
    headings = tuple(columns)
    notes = _notes(frame, [columns[heading] for heading in of]) if of else ()
    return Table(tuple(headings[i] for i in told), tuple(tuple(row[i] for i in told) for row in rows), notes)


def _notes(frame: pd.DataFrame, named_by: list[Callable[[Any], str]]) -> tuple[str, ...]:
    """Each reason once, behind the names of its rows."""
    concerned: dict[str, dict[str, None]] = {}
    for row in _rows(frame):
        concerned.setdefault(row.reason, {})[": ".join(cell(row) for cell in named_by)] = None
    return tuple(f"{', '.join(names)}: {reason}" for reason, names in concerned.items() if reason)


def _rows(frame: pd.DataFrame) -> Iterable[Any]:
    """Rows whose columns are attributes."""
    return frame.itertuples(index=False)


def _unit_of(structure: str) -> tuple[str, float]:
    """Unit in which a volume is shown, and its size in mm3; mm3 for sides and parts, which have no record."""
    record = STRUCTURES.get(structure)
    return (record.unit, record.mm3_per_unit) if record else ("mm³", 1.0)


def _in_text(structure: str) -> str:
    """A structure in the middle of a sentence.

    >>> _in_text("icv"), _in_text("hypothalamus_left")
    ('ICV', 'hypothalamus left')
    """
    title = title_of(structure)
    return title if title.isupper() else title[:1].lower() + title[1:]


def other_structures(ds: xr.Dataset) -> list[str]:
    """Structures with a record, beside the main one and that of the head size, that some scan has a volume of."""
    known = ds["structure"].to_numpy().astype(str)
    others = [name for name in STRUCTURES if name in known and name not in (MAIN.name, HEAD_SIZE.name)]
    return [name for name in others if np.isfinite(_volumes(ds, "volume_mm3", name)).any()]


def volume_table(summaries: pd.DataFrame) -> Table:
    """Volumes of the groups: one row per group, mean and SD of each variable and structure."""
    columns: dict[str, dict[str, str]] = {"Group": {}, "Scans": {}}
    for row in _rows(summaries):
        columns["Group"][row.group] = row.group
        columns["Scans"][row.group] = str(row.n)
        unit, mm3 = _unit_of(row.structure)
        kind = f", {HEAD_SIZE.title}-normalized" if row.variable.startswith("normalized") else ""
        heading = f"{title_of(row.structure)}{kind} ({unit}), mean ± SD"
        columns.setdefault(heading, {})[row.group] = _mean_sd(row.mean / mm3, row.sd / mm3)
    rows = [tuple(cells[group] for cells in columns.values()) for group in columns["Group"]]
    return Table(tuple(columns), tuple(rows))


_COMPARED: dict[str, Callable[[Any], str]] = {
    "Groups": lambda r: f"{r.group_a} − {r.group_b}",
    "n": lambda r: f"{r.n_a}, {r.n_b}",
    "Difference (95 % CI), mm³": lambda r: _estimate(r.difference, r.difference_low, r.difference_high, 1),
    "%": lambda r: _number(r.percent, 2),
}
"""Columns of every comparison of two groups."""


def comparison_table(comparisons: pd.DataFrame) -> Table:
    """Group against group: effects and tests; within each ``group`` or ``structure`` if there is such a column."""
    columns: dict[str, Callable[[Any], str]] = {
        **_COMPARED,
        "Hedges' g (95 % CI)": lambda r: _estimate(r.hedges_g, r.hedges_g_low, r.hedges_g_high, 2),
        "Test": lambda r: _test(r.test, r.p_recommended),
        "p, Holm": lambda r: _p(r.p_holm),
        "t (df)": lambda r: f"{_number(r.t, 3)} ({_number(r.df)})" if np.isfinite(r.t) else _ABSENT,
        "p, Student": lambda r: _p(r.p),
        "p, Welch": lambda r: _p(r.p_welch),
        "p, Mann–Whitney": lambda r: _p(r.p_mannwhitney),
        "p, Shapiro–Wilk": lambda r: f"{_p(r.p_shapiro_a)}; {_p(r.p_shapiro_b)}",
    }
    if "structure" in comparisons:
        return _table(
            comparisons, {"Structure": lambda r: title_of(r.structure), **columns}, of=["Structure", "Groups"]
        )
    if "group" in comparisons:
        return _table(comparisons, {"Within": lambda r: r.group, **columns}, of=["Within", "Groups"])
    return _table(comparisons, columns, of=["Groups"])


def adjustment_table(adjustments: pd.DataFrame) -> Table:
    """Group against group under each adjustment for the size of the head."""
    columns: dict[str, Callable[[Any], str]] = {
        "Head size taken out by": lambda r: r.method,
        **_COMPARED,
        "Cohen's d": lambda r: _number(r.cohens_d, 2),
        "p": lambda r: _p(r.p),
        "p, Holm": lambda r: _p(r.p_holm),
        "p, equal slopes": lambda r: _p(r.p_slopes),
    }
    return _table(adjustments, columns, of=["Groups"])


def rule_table(rules: pd.DataFrame) -> Table:
    """Group against group under each rule of exclusion."""
    columns: dict[str, Callable[[Any], str]] = {
        "Excluded": lambda r: r.rule,
        **_COMPARED,
        "Test": lambda r: _test(r.test, r.p_recommended),
        "p": lambda r: _p(r.p_recommended),
    }
    return _table(rules, columns, of=["Excluded", "Groups"])


def exclusion_test_table(checks: pd.DataFrame) -> Table:
    """Whether being excluded depends on the group."""
    columns: dict[str, Callable[[Any], str]] = {
        "Groups": lambda r: r.groups,
        "Excluded": lambda r: f"{r.excluded} of {r.scans}",
        "%": lambda r: r.percent,
        "Test": lambda r: _test(r.test, r.p),
        "Effect (95 % CI)": lambda r: (
            f"{r.effect_name} {_estimate(r.effect, r.effect_low, r.effect_high, 2)}" if pd.notna(r.effect) else _ABSENT
        ),
        "p": lambda r: _p(r.p),
    }
    return _table(checks, columns, of=["Groups"])


def association_table(associations: pd.DataFrame) -> Table:
    """Correlation of the volume with each covariate."""
    columns: dict[str, Callable[[Any], str]] = {
        "Covariate": lambda r: r.covariate.replace("_", " "),
        "Scans of": lambda r: r.group,
        "n": lambda r: str(r.n),
        "Pearson r (95 % CI)": lambda r: _estimate(r.r, r.r_low, r.r_high, 2),
        "p, Pearson": lambda r: _p(r.p),
        "Spearman ρ": lambda r: _number(r.rho, 2),
        "p, Spearman": lambda r: _p(r.p_spearman),
        "Test": lambda r: _test(r.test, r.p_recommended),
    }
    return _table(associations, columns, of=["Covariate", "Scans of"])


def exclusion_table(exclusions: pd.DataFrame) -> Table:
    """The outliers, and the fences of their group."""

    def volume(row: Any, value: float) -> str:
        unit, mm3 = _unit_of(row.structure)
        return f"{_number(value / mm3)} {unit}"

    columns: dict[str, Callable[[Any], str]] = {
        "Scan": lambda r: str(r.scan),
        "Group": lambda r: r.group,
        "Structure": lambda r: title_of(r.structure),
        "Volume": lambda r: volume(r, r.volume),
        "Fences of the group": lambda r: f"{volume(r, r.low)} to {volume(r, r.high)}",
    }
    return _table(exclusions, columns)


def exclusion_count_table(counts: pd.DataFrame) -> Table:
    """How many scans of each group were recruited, done and excluded."""
    columns: dict[str, Callable[[Any], str]] = {
        "Group": lambda r: r.group,
        "Scans": lambda r: str(r.scans),
        "Done": lambda r: str(r.done),
        "Excluded": lambda r: str(r.excluded),
        "% of done": lambda r: _number(r.percent, 1),
    }
    return _table(counts, columns)


_TABLE_1 = {
    "sex": "Sex (m/f)",
    "age": "Age (years): mean ± SD; median (range)",
    "progression_per_year": "Slope* (1/year)",
    "alsfrs_r": "ALSFRS-R",
    "disease_duration_years": "Disease duration (years)",
}


def demographics_table(demographics: pd.DataFrame) -> Table:
    """Table 1: a row per group and subgroup, a column per characteristic, the p of the tests below."""
    present = [name for name in _TABLE_1 if (demographics["characteristic"] == name).any()]
    strata = _rows(demographics[["group", "subgroup", "scans"]].drop_duplicates())
    named = zip(demographics["characteristic"], demographics["group"], demographics["subgroup"], strict=True)
    indexed = dict(zip(named, _rows(demographics), strict=True))
    rows = []
    for group, subgroup, scans in strata:
        name = f"{group}: {subgroup}" if subgroup else group
        cells = [
            _characteristic(characteristic, indexed[characteristic, group, subgroup]) for characteristic in present
        ]
        rows.append((f"{name} (N = {scans})", *cells))
    tests = {row.characteristic: row for row in _rows(demographics)}
    tested = (tests[name] for name in present)
    rows.append(("p", *(f"{_p(row.p)} ({_test(row.test, row.p)})" if pd.notna(row.p) else _ABSENT for row in tested)))
    return Table(("Group", *(_TABLE_1[name] for name in present)), tuple(rows))


def _characteristic(name: str, row: Any) -> str:
    if not row.n:
        return _ABSENT
    if name == "sex":
        return f"{row.male:.0f} / {row.female:.0f}"
    text = _mean_sd(row.mean, row.sd, 1)
    return f"{text}; {row.median:.0f} ({row.low:.0f}–{row.high:.0f})" if name == "age" else text


def failure_table(ds: xr.Dataset) -> Table:
    """Every scan that failed, with stage, error and reason."""
    failed = ds.isel(scan=ds["status"].to_numpy().astype(str) == "failed")
    columns = [failed[name].to_numpy().astype(str) for name in ("scan", "stage", "error", "reason")]
    return Table(("Scan", "Stage", "Error", "Reason"), tuple(zip(*columns, strict=True)))


def low_quality_table(ds: xr.Dataset) -> Table:
    """Every done scan of low quality with its reasons, the worst first."""
    quality = np.array(_volumes(ds, "quality", None))
    low = np.flatnonzero(done_scans(ds) & (quality < LOW_QUALITY))
    chosen = ds.isel(scan=low[np.argsort(quality[low], kind="stable")])
    reasons = chosen["warnings"].to_numpy().astype(str) if "warnings" in chosen else [""] * chosen.sizes["scan"]
    names = chosen["scan"].to_numpy().astype(str)
    cells = [_number(v, 2) for v in _volumes(chosen, "quality", None)]
    return Table(("Scan", "Quality", "Why"), tuple(zip(names, cells, reasons, strict=True)))


def failure_count_table(ds: xr.Dataset) -> Table:
    """How many scans failed with each error."""
    failed = ds.isel(scan=ds["status"].to_numpy().astype(str) == "failed")
    kinds = pd.DataFrame({name: failed[name].to_numpy().astype(str) for name in ("stage", "error")})
    counts = kinds.value_counts().reset_index(name="scans").sort_values(["scans", "error"], ascending=[False, True])
    return Table(("Stage", "Error", "Scans"), tuple((r.stage, r.error, str(r.scans)) for r in _rows(counts)))


def scan_table(ds: xr.Dataset, by: str | None) -> Table:
    """One row per scan: its status, its volumes, and what to know before using them."""
    low, high = (_volumes(ds, name, MAIN.name) for name in ("volume_low_mm3", "volume_high_mm3"))
    columns = {
        "Scan": ds["scan"].to_numpy().astype(str).tolist(),
        "Group": [label or _ABSENT for label in group_labels(ds, by)],
        "Status": ds["status"].to_numpy().astype(str).tolist(),
        **_volume_column(ds, MAIN.name),
        "95 % interval": [_interval(*ends) for ends in zip(low, high, strict=True)],
        **_volume_column(ds, HEAD_SIZE.name),
        f"{HEAD_SIZE.title}-normalized (mm³)": [_number(v) for v in _volumes(ds, "normalized_volume_mm3", MAIN.name)],
    }
    for name in other_structures(ds):
        columns |= _volume_column(ds, name)
    columns["Quality"] = [_number(v, 2) for v in _volumes(ds, "quality", None)]
    columns["Notes"] = ["; ".join(notes) for notes in scan_notes(ds)]
    if by is None:
        del columns["Group"]
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _volume_column(ds: xr.Dataset, structure: str) -> dict[str, list[str]]:
    unit, mm3 = _unit_of(structure)
    return {f"{title_of(structure)} ({unit})": [_number(v / mm3) for v in _volumes(ds, "volume_mm3", structure)]}


def _volumes(ds: xr.Dataset, variable: str, structure: str | None) -> list[float]:
    """One number per scan, all NaN where the dataset has no such variable or structure."""
    if variable not in ds.variables or (structure and structure not in ds["structure"].to_numpy()):
        return [float("nan")] * ds.sizes["scan"]
    numbers: list[float] = values_of(ds, variable, structure).tolist()
    return numbers


def scan_notes(ds: xr.Dataset) -> list[list[str]]:
    """What to know before using the volumes of each scan."""
    notes: list[list[str]] = [[] for _ in range(ds.sizes["scan"])]
    if "flagged" in ds:
        for i in np.flatnonzero(ds["flagged"].to_numpy().astype(bool)):
            notes[i].append("flagged")
    if "excluded" in ds:
        for structure in ds["excluded"].attrs.get("structures", ()):
            for i in np.flatnonzero(ds["outlier"].sel(structure=structure).to_numpy().astype(bool)):
                notes[i].append(f"excluded: outlier in {_in_text(structure)}")
    if "warnings" in ds:
        for own, text in zip(notes, ds["warnings"].to_numpy().astype(str), strict=True):
            own.extend([text] if text else [])
    return notes
