"""A whole study without any data: simulate it, process it, and hold the estimate against the truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool
from numpy import ndarray
from rich import box
from rich.console import Console
from rich.table import Table

from hypodask import stats
from hypodask.cluster import process
from hypodask.cohort import Cohort
from hypodask.errors import ResultsError
from hypodask.grid import transform_points
from hypodask.location import Location, absolute
from hypodask.phantom.cohort import EFFECT_PERCENT, GROUPS, TRUTH_FOLDER, simulate_cohort
from hypodask.report import write
from hypodask.store import read_record

SCANS = 30
"""Enough to see the simulated effect, few enough for two cores to finish in minutes."""

WORKERS = 2

TRUTHS = {"hypothalamus": "true_hypothalamus_mm3", "icv": "true_icv_mm3"}
"""Structures whose true volume is a column of the simulated study."""

NORMALIZED = "normalized_volume_mm3"


def run_demo(
    out: str = "hypodask-demo", *, scans: int | None = None, workers: int | None = None, seed: int = 0
) -> xr.Dataset:
    """Simulate a study of three groups, process it, write its report and print truth beside estimate.

    The study goes to ``OUT/bids``, the results and the report to ``OUT``. A second call goes on where the
    first one stopped.

    Parameters
    ----------
    out
        Folder on this machine.
    scans
        Heads to simulate, 30 by default.
    workers
        Processes, 2 by default, for the simulation and for the run.
    seed
        Names the study.

    Returns
    -------
    Dataset
        The results, one row per simulated scan.

    Raises
    ------
    CohortError
        If the folder holds another study.
    """
    console = Console()
    scans, workers = scans or SCANS, workers or WORKERS
    console.print(f"Simulating {scans} heads in three groups, patients' hypothalami {EFFECT_PERCENT:g} % smaller ...")
    bids = simulate_cohort(Path(absolute(out)) / "bids", scans, seed=seed, workers=workers)
    results = process(Cohort.from_bids(bids), out, workers=workers)
    page = write(results, out)
    show(results, console)
    errors = commissure_errors(results, out, bids)
    console.print("AC and PC against the truth, median and largest distance:", _as_distances(errors))
    console.print(f"Results: hypodask.open_results({str(out)!r})\nReport:  {page}", soft_wrap=True)
    return results


def show(results: xr.Dataset, console: Console) -> None:
    """Print what was found beside what is true."""
    console.print(_as_rich(_narrowed(compare_with_truth(results)), "Truth beside estimate, all scans that were done"))
    try:
        console.print(_as_rich(compare_effects(results), "Hypothalamus / ICV, after exclusion of outliers"))
    except ResultsError as error:
        console.print(f"The groups could not be compared: {error}")


def compare_with_truth(results: xr.Dataset) -> pd.DataFrame:
    """Volumes of each group, true and estimated.

    Returns
    -------
    DataFrame
        One row per structure and group, and for all together: ``structure``, ``group``, ``n``, mean and SD
        of truth and estimate in mm3 (ICV too), their mean difference ``bias_percent`` with its SD, and their
        correlation ``r`` (NaN for fewer than three scans).
    """
    group = results["group"].to_numpy().astype(str)
    done = (results["status"] == "done").to_numpy()
    members = {name: done & (group == name) for name in GROUPS} | {"all": done}
    rows = [
        {"structure": structure, "group": name, **_agreement(results, structure, chosen)}
        for structure in TRUTHS
        for name, chosen in members.items()
    ]
    return pd.DataFrame(rows)


def _narrowed(table: pd.DataFrame) -> pd.DataFrame:
    """The table of truth and estimate in few columns, so that a terminal of 80 characters shows it whole."""
    ml = table["structure"] == "icv"
    scale = np.where(ml, 1e-3, 1.0)
    mean_sd = {
        shown: [f"{m:,.0f} ± {s:.0f}" for m, s in zip(table[mean] * scale, table[sd] * scale, strict=True)]
        for shown, mean, sd in (("true", "true_mean", "true_sd"), ("estimate", "mean", "sd"))
    }
    bias = [f"{b:+.1f} ± {s:.1f}" for b, s in zip(table["bias_percent"], table["bias_sd"], strict=True)]
    columns = {"structure": np.where(ml, "ICV (ml)", "hypothal. (mm3)"), "group": table["group"], "n": table["n"]}
    return pd.DataFrame(columns | mean_sd | {"bias %": bias, "r": table["r"]})


def _agreement(results: xr.Dataset, structure: str, chosen: Bool[ndarray, "scan"]) -> dict[str, float]:
    true = results[TRUTHS[structure]].to_numpy().astype(np.float64)[chosen]
    found = results["volume_mm3"].sel(structure=structure).to_numpy()[chosen]
    difference = 100 * (found / true - 1)
    return {
        "n": len(true),
        "true_mean": _mean(true),
        "true_sd": _sd(true),
        "mean": _mean(found),
        "sd": _sd(found),
        "bias_percent": _mean(difference),
        "bias_sd": _sd(difference),
        "r": float(np.corrcoef(true, found)[0, 1]) if len(true) > 2 else float("nan"),
    }


def _mean(values: ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _sd(values: ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def compare_effects(results: xr.Dataset) -> pd.DataFrame:
    """Group differences of the normalised hypothalamus, as measured and as they truly are in the same scans.

    Returns
    -------
    DataFrame
        One row per pair of groups: ``group_a, group_b, n_a, n_b, true_percent, percent, t, p``.
    """
    measured = stats.paper(results).dataset
    true = stats.normalize_icv(with_true_volumes(measured), reference="control")
    table, truth = (
        stats.compare_groups(ds, NORMALIZED, structure="hypothalamus", reference="control") for ds in (measured, true)
    )
    table = table.assign(true_percent=truth["percent"])
    return table[["group_a", "group_b", "n_a", "n_b", "true_percent", "percent", "t", "p"]]


def with_true_volumes(results: xr.Dataset) -> xr.Dataset:
    """The results as a perfect method would have given them: true volumes, the same exclusions."""
    true = results["volume_mm3"].copy(deep=True)
    for structure, column in TRUTHS.items():
        true.loc[{"structure": structure}] = results[column].to_numpy().astype(np.float64)
    return results.assign(volume_mm3=true)


def commissure_errors(results: xr.Dataset, out: str, bids: Path) -> pd.DataFrame:
    """Distances between found and true commissures, ``ac_mm`` and ``pc_mm``, one row per scan that was done."""
    truth = pd.read_csv(bids / TRUTH_FOLDER / "truth.tsv", sep="\t", index_col="participant_id")
    done = results.isel(scan=(results["status"] == "done").to_numpy())
    rows = [
        _commissure_error(Location(out).child(str(store)).url, float(distance), truth.loc[person].to_dict())
        for store, distance, person in zip(
            done["store"].values, done["acpc_distance_mm"].values, done["participant_id"].values, strict=True
        )
    ]
    return pd.DataFrame(rows, index=done["scan"].to_numpy(), columns=["ac_mm", "pc_mm"])


def _commissure_error(store: str, distance_mm: float, truth: dict[str, float]) -> dict[str, float]:
    scanner_from_acpc = np.linalg.inv(np.array(read_record(store, "alignment")["acpc_from_scanner"]))
    found = transform_points(scanner_from_acpc, np.array([[0.0, 0.0, 0.0], [0.0, -distance_mm, 0.0]]))
    true = [[truth[f"{name}_{axis}_mm"] for axis in "xyz"] for name in ("ac", "pc")]
    ac, pc = np.linalg.norm(found - true, axis=1).tolist()
    return {"ac_mm": ac, "pc_mm": pc}


def _as_distances(errors: pd.DataFrame) -> str:
    return ", ".join(
        f"{name} {errors[column].median():.2f} and {errors[column].max():.2f} mm"
        for name, column in (("AC", "ac_mm"), ("PC", "pc_mm"))
    )


def _as_rich(table: pd.DataFrame, title: str) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in table.columns:
        numeric = pd.api.types.is_numeric_dtype(table[name])
        shown.add_column(str(name), justify="right" if numeric else "left")
    for row in table.itertuples(index=False):
        shown.add_row(*map(_as_text, row))
    return shown


def _as_text(value: object) -> str:
    """A cell: volumes without decimals, everything smaller to three digits."""
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
