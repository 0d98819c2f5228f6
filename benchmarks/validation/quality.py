"""Whether the quality score catches what is wrong with a scan, and better than the rule on volumes does.

Failures are planted into simulated and real scans (``benchmarks.validation.planting``), hypodask is run on each
(``benchmarks.validation.quality_runs``), and this looks at what the runs left:

    python -m benchmarks.validation.quality_runs RUNS DATA --heads phantom-1000 ... --all-failures
    python -m benchmarks.validation.quality table RUNS          sensitivity and area under the curve, per failure
    python -m benchmarks.validation.quality missing RUNS        segmentations that lack a part, and sound ones flagged
    python -m benchmarks.validation.quality reference RUNS      reference ranges, for hypodask/weights/reference.json

In the table each head is judged by the ranges of the other heads, never by its own; the rule on volumes
(Kassubek et al. 2025: beyond 1.5 interquartile ranges) has its fences from the undisturbed scans alone, which is more
than a cohort with failures in it would give it. ``missing`` judges one half of the people by the ranges of the
other half; the shipped ranges are from the first half of the people of each data set, and of all phantoms.
"""

import json
import re
import zlib
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from benchmarks.validation.planting import FAILURES, HARMLESS, MISSING, UNDISTURBED
from benchmarks.validation.quality_runs import Run, kept, read_run
from benchmarks.validation.results import add_record_option, write_results
from benchmarks.validation.scoring import markdown
from hypodask.core.errors import SegmentationError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.quality import MEASURES, examine, judge
from hypodask.quality.reference import Range, Reference, VolumeErrors, load_reference, save_reference
from hypodask.quality.score import comparable_value, examine_segmentation, steps_outside
from hypodask.segmentation.label_maps import label_map_on
from hypodask.segmentation.volumes import measure
from recipes.hypothalamus import FOLDS

NAMES = [one.name for one in MEASURES]
VOLUMES = ("hypothalamus", "icv")
UNDETECTABLE = "left-right flip"
"""A perfect mirror image is a possible head: no single image shows it."""

PASSES = 0.5
"""Scores below this count as caught."""

FENCE = 1.5

OF_OUTLINE = ("border_entropy", "member_spread", "member_overlap")
"""Measures of how sure the networks are."""

LEARNT_FROM = {name for fold in FOLDS for name in fold}
"""Heads that some of the shipped networks know, and are surer of than of others."""


# --- What the runs left ----------------------------------------------------------------------------------------------


def measured_runs(folder: Path, *, again: bool = False) -> pd.DataFrame:
    """One row per run, with its measures and volumes; each is kept beside its run."""
    return pd.DataFrame([_kept_row(path, again=again) for path in sorted(folder.glob("*.pkl"))])


def _kept_row(path: Path, *, again: bool) -> dict[str, object]:
    beside = path.with_suffix(".json")
    if again or not beside.exists() or beside.stat().st_mtime < path.stat().st_mtime:
        beside.write_text(json.dumps(row_of(read_run(path))))
    return dict(json.loads(beside.read_text()))


def row_of(run: Run) -> dict[str, object]:
    """Measures and volumes of one run."""
    row: dict[str, object] = {"head": run.head, "failure": run.failure, "refused": run.refused, "models": run.models}
    row |= {f"true_{name}_mm3": run.truth_mm3.get(name, np.nan) for name in VOLUMES}
    if run.refused:
        return row
    try:
        hypothalamus, icv = measure(run.hypothalamus), measure(run.icv)
    except SegmentationError as err:
        return row | {"refused": f"SegmentationError: {err}"}
    scanner_from_icv = np.linalg.inv(run.alignment.acpc_from_scanner) @ icv.to_acpc(run.alignment)
    icv_map = label_map_on(icv.cleaned, run.scan.grid, scanner_from_icv)
    row |= {"hypothalamus_mm3": hypothalamus.soft_mm3["hypothalamus"], "icv_mm3": icv.soft_mm3["icv"]}
    return row | examine(run.scan, run.alignment, {MAIN.name: hypothalamus, HEAD_SIZE.name: icv}, icv_map)


def is_phantom(table: pd.DataFrame) -> pd.Series:
    return table["head"].str.startswith("phantom-")


def in_first_half(table: pd.DataFrame) -> pd.Series:
    """Whether a scan sets the limits: all phantoms, and about half of the people, drawn by their names."""
    people = table["head"].str.replace(r"_study\d+_.*$", "", regex=True)
    return people.map(lambda name: zlib.crc32(name.encode()) % 2 == 0) | is_phantom(table)


# --- Ranges of sound scans -------------------------------------------------------------------------------------------


LARGEST_USUAL_MM = 1.5
"""Networks had their errors measured on scans of 0.7 to 1 mm: for intervals, what such scans have is usual."""

REACH_SD = 2.5
"""Ranges reach at least this many standard deviations to both sides: the extremes of few scans are no limits."""


def ranges_of(sound: pd.DataFrame) -> dict[str, Range]:
    """Range of every measure that was taken."""
    rows = sound.to_dict("records")
    taken = {one: np.array([comparable_value(one, row) for row in rows], dtype=float) for one in MEASURES}
    known = {one: values[np.isfinite(values)] for one, values in taken.items()}
    return {one.name: _range(values, logarithmic=one.logarithmic) for one, values in known.items() if len(values)}


def _range(values: Float[ndarray, "n"], *, logarithmic: bool) -> Range:
    v = np.log(np.maximum(values, 1e-6)) if logarithmic else values
    reach = REACH_SD * v.std()
    ends = np.array([min(v.min(), v.mean() - reach), max(v.max(), v.mean() + reach)])
    low, high = np.exp(ends) if logarithmic else ends
    # What is never negative, such as a share, has no range that is.
    return Range(_short(max(low, 0.0) if values.min() >= 0 else low), _short(high), len(values))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def errors_of(sound: pd.DataFrame, sensitivities: dict[str, float]) -> VolumeErrors:
    """Noise and uncertainty of good-quality scans, and the sensitivities that ``validation.intervals`` measured.

    Only of scans with voxels like those that the networks' errors on held-out scans were measured on.
    """
    sound = sound[sound["voxel_mm"] <= LARGEST_USUAL_MM]
    spread = sound["member_spread"].dropna() if "member_spread" in sound else pd.Series(dtype=float)
    return VolumeErrors(
        pose_per_mm=sensitivities["pose_per_mm"],
        per_squared_noise=sensitivities["per_squared_noise"],
        usual_noise=_short(sound["noise"].median()),
        usual_uncertainty=_short(sound["border_entropy"].median()),
        usual_spread=_short(np.sqrt((spread**2).mean())) if len(spread) else 0.0,
    )


def reference_of(table: pd.DataFrame, folder: Path) -> Reference:
    """The reference that the sound runs of a folder give: of all phantoms, and of the first half of the people."""
    sound = sound_runs(table[in_first_half(table)])
    kept = folder / "sensitivities.json"
    sensitivities = json.loads(kept.read_text()) if kept.exists() else vars(load_reference().errors)
    phantoms = int(is_phantom(sound).sum())
    finest, coarsest = sound["voxel_mm"].min(), sound["voxel_mm"].max()
    return Reference(
        measured_on=f"{phantoms} simulated heads and {len(sound) - phantoms} public scans, with voxels of {finest:.1f} "
        f"to {coarsest:.1f} mm, as they are",
        models=" or ".join(sorted(set(sound["models"]))),
        ranges=ranges_of(sound),
        errors=errors_of(sound, sensitivities),
    )


def sound_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Undisturbed scans whose pose was not doubted; how sure networks are of heads that they know does not count."""
    sound = table[(table["failure"] == UNDISTURBED) & (table["refused"] == "") & (table["flagged"] == 0)].copy()
    sound.loc[sound["head"].isin(LEARNT_FROM), sound.columns.intersection(OF_OUTLINE)] = np.nan
    return sound


# --- Missing parts ---------------------------------------------------------------------------------------------------


def missing_parts(folder: Path, table: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """Every undisturbed scan, as it is and with each part missing: quality, volume left, and whether it is flagged."""
    sound = table[(table["failure"] == UNDISTURBED) & (table["refused"] == "")]
    rows = []
    for (_, row), first in zip(sound.iterrows(), in_first_half(sound), strict=True):
        run = read_run(kept(folder, row["head"], UNDISTURBED))
        icv, whole = measure(run.icv), row["hypothalamus_mm3"]
        random = np.random.default_rng([*row["head"].encode()])
        for name, take_out in {UNDISTURBED: None, **MISSING}.items():
            found = measure(run.hypothalamus if take_out is None else take_out(run.hypothalamus, random))
            measures = row.to_dict() | examine_segmentation(found, icv, run.alignment)
            quality = judge({key: measures[key] for key in NAMES}, reference)
            rows.append(
                {
                    "head": row["head"],
                    "first half": first,
                    "missing": name,
                    "left": found.soft_mm3["hypothalamus"] / whole,
                    "quality": quality.score,
                    "flagged": bool(quality.missing),
                    "why": " ".join(quality.missing),
                }
            )
    return pd.DataFrame(rows)


def missing_summary(parts: pd.DataFrame) -> pd.DataFrame:
    """Share that is flagged, of the half of the people that set the limits and of the other half."""
    lines = []
    for name, own in parts.groupby("missing", sort=False):
        line: dict[str, object] = {"missing": "nothing" if name == UNDISTURBED else name}
        for half, chosen in (("set", own[own["first half"]]), ("other", own[~own["first half"]])):
            line[f"{half}: flagged"] = f"{int(chosen['flagged'].sum())} of {len(chosen)}"
            line[f"{half}: below {PASSES}"] = f"{int((chosen['quality'] < PASSES).sum())} of {len(chosen)}"
        lines.append(line | {"volume left": f"{own['left'].min():.2f} to {own['left'].max():.2f}"})
    return pd.DataFrame(lines)


def missing_figures(parts: pd.DataFrame) -> dict[str, float]:
    """What the pages show of the other half."""
    other = parts[~parts["first half"]]
    figures: dict[str, float] = {}
    for name, own in other.groupby("missing", sort=False):
        key = re.sub(r"\W", "_", str(name))
        figures |= {f"{key}_flagged": int(own["flagged"].sum()), f"{key}_scans": len(own)}
    return figures


# --- Two detectors ---------------------------------------------------------------------------------------------------


def scored(table: pd.DataFrame, errors: VolumeErrors) -> pd.DataFrame:
    """The table with ``ours``, 1 - quality, and ``rule``, interquartile ranges beyond the quartiles.

    What was refused is caught by both.
    """
    ours = pd.Series(np.nan, index=table.index)
    for head, own in table.groupby("head"):
        reference = Reference("", "", ranges_of(sound_runs(table[table["head"] != head])), errors)
        ours[own.index] = [1 - judge(row, reference).score for row in own[NAMES].to_dict("records")]
    caught = table["refused"] != ""
    return table.assign(ours=ours.where(~caught, np.inf), rule=beyond_quartiles(table).where(~caught, np.inf))


def beyond_quartiles(table: pd.DataFrame) -> pd.Series:
    """Interquartile ranges by which either volume lies beyond the quartiles of the undisturbed scans of its cohort."""
    beyond = pd.DataFrame(-np.inf, index=table.index, columns=list(VOLUMES))
    for _, cohort in table.groupby(is_phantom(table)):
        sound = sound_runs(cohort)
        for name in VOLUMES:
            first, third = np.percentile(sound[f"{name}_mm3"], (25, 75))
            distance = np.maximum(first - cohort[f"{name}_mm3"], cohort[f"{name}_mm3"] - third)
            beyond.loc[cohort.index, name] = distance / (third - first)
    return beyond.max(axis=1)


def area_under_curve(sound: Float[ndarray, "n"], spoilt: Float[ndarray, "m"]) -> float:
    """Chance that a spoilt scan looks worse than a sound one; ties count half."""
    difference = np.sign(np.nan_to_num(spoilt[:, None], posinf=1e9) - np.nan_to_num(sound[None], posinf=1e9))
    return float((difference.mean() + 1) / 2)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Sensitivity, specificity and area under the curve of both, per failure and over all that can be seen."""
    sound = table[table["failure"] == UNDISTURBED]
    lines = [_line(name, sound, table[table["failure"] == name]) for name in FAILURES if name != UNDISTURBED]
    seen = table[~table["failure"].isin((UNDISTURBED, UNDETECTABLE, *HARMLESS))]
    harmless = [_line(f"harmless: {name}", sound, table[table["failure"] == name]) for name in HARMLESS]
    return pd.DataFrame([*lines, _line(f"all but the {UNDETECTABLE}", sound, seen), *harmless])


def _line(name: str, sound: pd.DataFrame, spoilt: pd.DataFrame) -> dict[str, object]:
    line: dict[str, object] = {"failure": name, "scans": len(spoilt), "refused": int((spoilt["refused"] != "").sum())}
    detectors: dict[str, tuple[str, Callable[[pd.Series], pd.Series]]] = {
        "quality": ("ours", lambda v: v > 1 - PASSES),
        "IQR rule": ("rule", lambda v: v > FENCE),
    }
    for shown, (column, caught) in detectors.items():
        line[f"{shown}: caught"] = f"{caught(spoilt[column]).mean():.2f}" if len(spoilt) else "-"
        line[f"{shown}: sound kept"] = f"{1 - caught(sound[column]).mean():.2f}"
        area = area_under_curve(sound[column].to_numpy(), spoilt[column].to_numpy()) if len(spoilt) else np.nan
        line[f"{shown}: AUC"] = f"{area:.2f}"
    line["quality: caught, as many sound kept as by the rule"] = f"{_caught_like_the_rule(sound, spoilt):.2f}"
    return line


def _caught_like_the_rule(sound: pd.DataFrame, spoilt: pd.DataFrame) -> float:
    """Share of spoilt scans whose score is below one that keeps as many sound scans as the rule does."""
    lost = int((sound["rule"] > FENCE).sum())
    limit = np.sort(sound["ours"].to_numpy())[::-1][lost]
    return float((spoilt["ours"] > limit).mean()) if len(spoilt) else np.nan


def figures_of(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show of the same, as numbers."""
    sound = table[table["failure"] == UNDISTURBED]
    seen = ~table["failure"].isin((UNDISTURBED, UNDETECTABLE, *HARMLESS))
    groups = {name: table["failure"] == name for name in FAILURES | HARMLESS if name != UNDISTURBED} | {"all": seen}
    detectors = {"quality": ("ours", 1 - PASSES), "rule": ("rule", FENCE)}
    figures = {
        f"{name}_sound_kept": float((sound[column] <= limit).mean()) for name, (column, limit) in detectors.items()
    }
    for failure, chosen in groups.items():
        spoilt, key = table[chosen], re.sub(r"\W", "_", failure)
        figures[f"{key}_refused"] = int((spoilt["refused"] != "").sum())
        for name, (column, limit) in detectors.items() if len(spoilt) else ():
            figures[f"{key}_{name}_caught"] = float((spoilt[column] > limit).mean())
            figures[f"{key}_{name}_auc"] = area_under_curve(sound[column].to_numpy(), spoilt[column].to_numpy())
    return figures


def main_reasons(table: pd.DataFrame, errors: VolumeErrors) -> pd.DataFrame:
    """Which measure is furthest out on each run, and how far."""
    lines = []
    for _, row in table[table["refused"] == ""].iterrows():
        reference = Reference("", "", ranges_of(sound_runs(table[table["head"] != row["head"]])), errors)
        steps = {m.name: steps_outside(m, comparable_value(m, row), reference) for m in MEASURES}
        worst = sorted(steps, key=steps.get, reverse=True)[:4]
        told = ", ".join(f"{name} {steps[name]:.1f}" for name in worst if steps[name] > 0.3)
        lines.append(
            {"failure": row["failure"], "head": row["head"], "quality": f"{1 - row['ours']:.2f}", "worst": told}
        )
    return pd.DataFrame(lines)


# --- Commands --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Look at kept runs."""
    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("command", choices=["table", "reasons", "missing", "reference"])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--write", type=Path, help="folder of the weights, to write the reference into")
    parser.add_argument("--again", action="store_true", help="take all measures again, as after a change of one")
    add_record_option(parser)
    options = parser.parse_args()
    table = measured_runs(options.runs, again=options.again)
    reference = reference_of(table, options.runs)
    if options.command == "reference":
        print(reference.to_json())
        if options.write:
            print(save_reference(reference, options.write))
        return
    if options.command == "missing":
        parts = missing_parts(options.runs, table, reference)
        print(markdown(missing_summary(parts)))
        if options.record:
            write_results(
                "quality_missing",
                missing_figures(parts),
                what="How many segmentations that lack a part are flagged, and how many sound ones",
                data=f"{len(parts) // (1 + len(MISSING))} scans; limits from half of the people, figures of the others",
            )
        return
    judged = scored(table, reference.errors)
    shown = summary(judged) if options.command == "table" else main_reasons(judged, reference.errors)
    print(markdown(shown))
    if options.record and options.command == "table":
        spoilt = table.loc[table["failure"] != UNDISTURBED, "head"].nunique()
        write_results(
            "quality",
            figures_of(judged),
            what="How many spoilt scans the quality score catches, beside the rule on volumes",
            data=f"{len(sound_runs(table))} good-quality scans, {spoilt} of them spoilt in {len(FAILURES) - 1} ways",
        )


if __name__ == "__main__":
    main()
