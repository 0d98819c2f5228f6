"""Whether a difference between groups depends on how head size was taken out, and errors of single scans on head size.

    python -m benchmarks.validation.head_size image OUT              # simulate and measure the scans of five studies
    python -m benchmarks.validation.head_size compare OUT --record   # all twenty studies, and the tables

A study is that of ``hypodask demo``: three groups of simulated heads whose volumes are known. ``image`` makes a scan of
each head and measures it with all of hypodask (:func:`hypodask.pipeline.measure_scan`), in one process, about ten
seconds a scan. Each scan has a file in OUT. A second call does what is missing, or was measured by another version of
the method or by other networks; if the code of the method changed without its version, give a new OUT.

``compare`` compares the groups by each way to take head size out of a volume, once with the estimated and once with the
true volumes of the same scans, nobody excluded. In the studies that were not imaged, the estimated volumes are the true
ones with errors like those of the imaged scans (:class:`ErrorModel`). Men are compared with women too: by chance the
groups of a study have heads of much the same size on average, and the sexes never have.
"""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy import stats as scipy_stats

from benchmarks.validation.results import add_record_option, write_results
from benchmarks.validation.scoring import markdown
from hypodask import stats
from hypodask.core.errors import ScanError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.phantom.cohort import EFFECT_PERCENT, Person, draw_people
from hypodask.phantom.head import draw_head_map, simulate_head
from hypodask.phantom.truth import measure_truth
from hypodask.pipeline import METHOD_VERSION, load_models, measure_scan
from hypodask.segmentation import Network

SEEDS = tuple(range(1, 21))
"""Seeds of the studies, fixed before any of them was simulated; ``hypodask demo`` uses seed 0."""

IMAGED = 5
"""Studies, the first of :data:`SEEDS`, of which ``image`` makes scans unless it is told otherwise."""

SCANS = 24
"""Scans of each study."""

STRUCTURES = (MAIN.name, HEAD_SIZE.name)

PAIRS = {"als": ("ALS", "control"), "pls": ("PLS", "control"), "sex": ("M", "F")}
"""Groups that are compared, by the part of a figure's name that stands for them."""

METHODS = ("none", "proportion", "residual", "power", "covariate")
"""Ways to take head size out, as :func:`hypodask.stats.compare_icv_adjustments` has them."""

GOAL_POINTS, GOAL_R = 1.5, 0.2
"""How far a difference may be from the true one on average, and how closely errors may follow head size."""


# --- Scans -----------------------------------------------------------------------------------------------------------


def people_of(seed: int) -> list[Person]:
    """The participants of a study."""
    return draw_people(SCANS, seed=seed, effect_percent=EFFECT_PERCENT)


def image_studies(out: Path, seeds: Sequence[int]) -> None:
    """Simulate and measure every scan of these studies that was not measured yet by this method."""
    networks = load_models()
    stamp = " ".join([METHOD_VERSION, *(network.name for network in networks)])
    for seed in seeds:
        for person in people_of(seed):
            path = out / str(seed) / f"{person.participant_id}.json"
            known = read_scan_file(path, person)
            if known.get("stamp") != stamp:
                write_scan_file(path, person, {"stamp": stamp, **measure_person(person, networks)})
                print(path, flush=True)


def measure_person(person: Person, networks: Sequence[Network]) -> dict[str, Any]:
    """True and estimated volumes of a participant, mm3, from a scan that is simulated here."""
    scan, truth = simulate_head(person.seed, options=person.options)
    true_mm3 = {name: truth.volume_mm3[name] for name in STRUCTURES}
    try:
        measured = measure_scan(scan, networks)
    except ScanError as error:
        return {"true_mm3": true_mm3, "reason": f"{error.stage}: {error.reason}"}
    row = measured.row_fields()
    return {"true_mm3": true_mm3, "found_mm3": {name: row["volume_mm3"][name] for name in STRUCTURES}} | {
        name: row[name] for name in ("flagged", "quality", "warnings")
    }


def read_scan_file(path: Path, person: Person) -> dict[str, Any]:
    """What is known of a participant's scan; empty if nothing is, or if the head was drawn otherwise."""
    if not path.exists():
        return {}
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return known if known["head"] == _recipe(person) else {}


def write_scan_file(path: Path, person: Person, known: Mapping[str, Any]) -> None:
    """Keep it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"head": _recipe(person), **known}, indent=1), encoding="utf-8")
    part.replace(path)


def _recipe(person: Person) -> dict[str, Any]:
    """What a head is drawn from, as JSON has it."""
    recipe: dict[str, Any] = json.loads(json.dumps({"seed": person.seed, **asdict(person.options)}))
    return recipe


# --- Errors of single scans ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """How estimated volumes differ from true ones: the logarithm of their ratio, of each structure.

    It is ``bias + size_exponent (log ICV - mean) + relative_exponent (log MAIN / ICV - mean) + a residual``, and it is
    fitted to all imaged scans. A method that shrinks differences between people has a negative ``relative_exponent``.
    """

    coefficients: Float[ndarray, "3 structure"]
    """Bias, exponent of the true ICV, and exponent of the true ratio of the main structure to the ICV."""
    means: Float[ndarray, "2"]
    """Mean of the logarithms of true ICV and true ratio."""
    residuals: Float[ndarray, "scan structure"]
    """What is left of each imaged scan; a scan gets those of one of them, of all structures together."""

    @classmethod
    def fit(cls, true_mm3: pd.DataFrame, found_mm3: pd.DataFrame) -> "ErrorModel":
        """From the volumes of imaged scans, a column for each structure."""
        predictors = _predictors(true_mm3)
        means = predictors.mean(axis=0)
        design = np.column_stack([np.ones(len(predictors)), predictors - means])
        errors = np.log(found_mm3[list(STRUCTURES)].to_numpy() / true_mm3[list(STRUCTURES)].to_numpy())
        coefficients = np.linalg.lstsq(design, errors)[0]
        return cls(coefficients, means, errors - design @ coefficients)

    def simulate(self, true_mm3: pd.DataFrame, random: Generator) -> pd.DataFrame:
        """Estimated volumes of scans that were not made."""
        predictors = _predictors(true_mm3) - self.means
        errors = np.column_stack([np.ones(len(predictors)), predictors]) @ self.coefficients
        errors += self.residuals[random.integers(len(self.residuals), size=len(predictors))]
        return true_mm3[list(STRUCTURES)] * np.exp(errors)


def _predictors(true_mm3: pd.DataFrame) -> Float[ndarray, "scan 2"]:
    head_size = np.log(true_mm3[HEAD_SIZE.name].to_numpy())
    return np.column_stack([head_size, np.log(true_mm3[MAIN.name].to_numpy()) - head_size])


def describe_errors(true_mm3: pd.DataFrame, found_mm3: pd.DataFrame) -> pd.DataFrame:
    """How the errors of scans go with the true head size: a row for each structure, and for their ratio.

    Returns
    -------
    DataFrame
        By name of the structure or ``ratio``: ``scans``; ``bias_percent`` and ``sd_percent`` of estimated / true;
        ``r`` of the logarithm of estimated / true with that of the true ICV; ``exponent``, the slope of that
        regression, with its 95 % interval; ``relative_exponent`` of the true ratio of the main structure to the ICV,
        beside that of head size (:class:`ErrorModel`).
    """
    logarithms = np.log(found_mm3 / true_mm3)
    logarithms["ratio"] = logarithms[MAIN.name] - logarithms[HEAD_SIZE.name]
    size = np.log(true_mm3[HEAD_SIZE.name])
    relative = dict(zip(STRUCTURES, ErrorModel.fit(true_mm3, found_mm3).coefficients[2].tolist(), strict=True))
    relative["ratio"] = relative[MAIN.name] - relative[HEAD_SIZE.name]
    rows = {}
    for name, errors in logarithms.items():
        line = scipy_stats.linregress(size, errors)
        reach = scipy_stats.t.ppf(0.975, len(size) - 2) * line.stderr
        rows[name] = {
            "scans": len(size),
            "bias_percent": 100 * np.expm1(errors.mean()),
            "sd_percent": 100 * errors.std(),
            "r": line.rvalue,
            "exponent": line.slope,
            "exponent_low": line.slope - reach,
            "exponent_high": line.slope + reach,
            "relative_exponent": relative[str(name)],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# --- Differences between groups --------------------------------------------------------------------------------------


def compare_study(labels: pd.DataFrame, true_mm3: pd.DataFrame, found_mm3: pd.DataFrame) -> pd.DataFrame:
    """Differences between the groups of one study, by each way to take head size out.

    Parameters
    ----------
    labels
        ``group`` and ``sex`` of each scan.
    true_mm3, found_mm3
        True and estimated volumes of the same scans, a column for each structure.

    Returns
    -------
    DataFrame
        One row per ``method`` and ``pair``: ``true_percent`` and ``found_percent``, the difference in percent of the
        second group, and ``gap_points``, what the second is above the first.
    """
    true, found = (_differences(labels, volumes) for volumes in (true_mm3, found_mm3))
    table = pd.DataFrame({"true_percent": true, "found_percent": found})
    return table.assign(gap_points=table["found_percent"] - table["true_percent"]).reset_index()


def _differences(labels: pd.DataFrame, volumes: pd.DataFrame) -> pd.Series:
    ds = xr.Dataset(
        {"volume_mm3": (("scan", "structure"), volumes[list(STRUCTURES)].to_numpy())},
        coords={"structure": list(STRUCTURES), **{name: ("scan", labels[name].to_numpy(str)) for name in labels}},
    )
    by_group = stats.compare_icv_adjustments(ds, reference="control", by="group")
    by_sex = stats.compare_icv_adjustments(ds, reference="F", by="sex")
    table = pd.concat([by_group, by_sex]).set_index(["method", "group_a", "group_b"])["percent"]
    keys = [(method, name) for method in METHODS for name in PAIRS]
    index = pd.MultiIndex.from_tuples(keys, names=["method", "pair"])
    return pd.Series([float(table[method, *PAIRS[name]]) for method, name in keys], index)


def summarize_studies(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over studies of the differences, and mean, SD and largest size of the gaps, per method and pair."""
    groups = table.groupby(["method", "pair"], sort=False)
    return pd.DataFrame(
        {
            "studies": groups.size(),
            "true_percent": groups["true_percent"].mean(),
            "found_percent": groups["found_percent"].mean(),
            "gap_points": groups["gap_points"].mean(),
            "gap_sd_points": groups["gap_points"].std(),
            "gap_largest_points": groups["gap_points"].agg(lambda gaps: gaps.abs().max()),
        }
    )


# --- Twenty studies --------------------------------------------------------------------------------------------------


def load_studies(out: Path) -> pd.DataFrame:
    """All scans of all studies: labels, true volumes and, where a scan was imaged, what was found.

    True volumes that are not known yet are measured on the deformation of the head, half a second a scan, and kept.

    Raises
    ------
    ValueError
        If the scans were measured by several versions of the method or several sets of networks.
    """
    rows = []
    for seed in SEEDS:
        for person in people_of(seed):
            path = out / str(seed) / f"{person.participant_id}.json"
            known = read_scan_file(path, person)
            if not known:
                truth = measure_truth(draw_head_map(person.seed, person.options)).volume_mm3
                known = {"true_mm3": {name: truth[name] for name in STRUCTURES}}
                if not read_scan_file(path, person):  # image may have measured it meanwhile
                    write_scan_file(path, person, known)
            row = {"seed": seed, "stamp": known.get("stamp", ""), "flagged": known.get("flagged", False)}
            row |= {name: person.covariates[name] for name in ("group", "sex")}
            row |= {f"true_{name}": known["true_mm3"][name] for name in STRUCTURES}
            rows.append(row | {f"found_{name}": known.get("found_mm3", {}).get(name, np.nan) for name in STRUCTURES})
    table = pd.DataFrame(rows)
    if len(stamps := set(table["stamp"]) - {""}) > 1:
        raise ValueError(f"{out} holds scans measured by {' and by '.join(sorted(stamps))}: run image again")
    return table


def find_imaged(table: pd.DataFrame) -> list[int]:
    """Seeds of the studies of which every scan was imaged."""
    whole = (table["stamp"] != "").groupby(table["seed"]).all()
    return [int(seed) for seed in whole.index[whole]]


def volumes_of(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """True or found volumes, mm3, a column for each structure."""
    return table[[f"{kind}_{name}" for name in STRUCTURES]].set_axis(list(STRUCTURES), axis=1)


def compare_studies(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the groups of all studies, and describe the errors of the imaged scans.

    Parameters
    ----------
    table
        As :func:`load_studies` returns it. Scans that were refused count neither with their true nor with any other
        volume.

    Returns
    -------
    studies
        As :func:`compare_study`, with ``seed`` and ``imaged``.
    errors
        As :func:`describe_errors`, of the imaged studies.
    """
    imaged = find_imaged(table)
    measured = table[table["seed"].isin(imaged) & table[f"found_{MAIN.name}"].notna()]
    model = ErrorModel.fit(volumes_of(measured, "true"), volumes_of(measured, "found"))
    studies = []
    for seed, scans in table.groupby("seed"):
        of_study = scans[scans[f"found_{MAIN.name}"].notna()] if seed in imaged else scans
        true = volumes_of(of_study, "true")
        found = volumes_of(of_study, "found") if seed in imaged else model.simulate(true, np.random.default_rng(seed))
        compared = compare_study(of_study[["group", "sex"]], true, found)
        studies.append(compared.assign(seed=seed, imaged=seed in imaged))
    errors = describe_errors(volumes_of(measured, "true"), volumes_of(measured, "found"))
    return pd.concat(studies, ignore_index=True), errors


def head_size_figures(table: pd.DataFrame, studies: pd.DataFrame, errors: pd.DataFrame) -> dict[str, float]:
    """What the pages show; of the few imaged studies no SD, but the largest gap."""
    imaged = table[table["seed"].isin(find_imaged(table))]
    figures: dict[str, float] = {"studies": len(SEEDS), "studies_imaged": imaged["seed"].nunique()}
    figures |= {"seed_first": SEEDS[0], "seed_last": SEEDS[-1], "seed_last_imaged": int(imaged["seed"].max())}
    refused = imaged[f"found_{MAIN.name}"].isna()
    figures |= {"scans_imaged": len(imaged), "refused": int(refused.sum()), "flagged": int(imaged["flagged"].sum())}
    few = studies[studies["imaged"]]
    for prefix, chosen, left_out in (("", studies, ["studies"]), ("imaged_", few, ["studies", "gap_sd_points"])):
        summary = summarize_studies(chosen).drop(columns=left_out)
        for (method, pair), row in summary.iterrows():
            figures |= {f"{prefix}{method}_{pair}_{name}": float(value) for name, value in row.items()}
    for name, row in errors.drop(columns="scans").iterrows():
        figures |= {f"{name}_{column}": float(value) for column, value in row.items()}
    return figures


def show(studies: pd.DataFrame, errors: pd.DataFrame) -> None:
    """Print the tables, and what falls short of the goals."""
    print(markdown(errors.round(3).reset_index(names="of")))
    imaged = studies["imaged"]
    for title, chosen in (("imaged", studies[imaged]), ("simulated errors", studies[~imaged]), ("all", studies)):
        if len(chosen):
            seeds = ", ".join(map(str, sorted(chosen["seed"].unique())))
            summary = summarize_studies(chosen).round(2).reset_index()
            print(f"\nStudies, {title}: seeds {seeds}\n\n{markdown(summary)}")
    summary = summarize_studies(studies)["gap_points"]
    far = [f"{method} {pair} {gap:+.1f}" for (method, pair), gap in summary.items() if abs(gap) > GOAL_POINTS]
    print(f"\nMore than {GOAL_POINTS} points from the truth on average: {', '.join(far) or 'none'}")
    near = [f"{name} {r:+.2f}" for name, r in errors["r"].items() if abs(r) >= GOAL_R]
    print(f"Errors that follow head size, |r| of {GOAL_R} or more: {', '.join(near) or 'none'}")


def main() -> None:
    """Read the command line, and do what it says."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=("image", "compare"))
    parser.add_argument("out", type=Path, help="folder with a file for each scan")
    parser.add_argument("--studies", type=int, default=IMAGED, help="studies to image, in the order of their seeds")
    add_record_option(parser)
    asked = parser.parse_args()
    if asked.mode == "image":
        image_studies(asked.out, SEEDS[: asked.studies])
        return
    table = load_studies(asked.out)
    if not find_imaged(table):
        parser.error(f"{asked.out} holds no study of which every scan was imaged; run image first")
    studies, errors = compare_studies(table)
    show(studies, errors)
    if asked.record:
        imaged = find_imaged(table)
        write_results(
            "head_size",
            head_size_figures(table, studies, errors),
            what="Group differences by each adjustment for head size, against the same on true volumes",
            data=f"{len(SEEDS)} simulated studies of {SCANS} heads, seeds {SEEDS[0]} to {SEEDS[-1]}; imaged: seeds "
            f"{', '.join(map(str, imaged))}; in the others errors were simulated",
        )


if __name__ == "__main__":
    main()
