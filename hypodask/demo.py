"""A whole study without any data: simulate it, process it, and compare the estimate with the truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from hypodask import stats
from hypodask.cluster.processing import process
from hypodask.core.errors import ResultsError
from hypodask.core.grid import transform_points
from hypodask.core.structures import HEAD_SIZE, MAIN, STRUCTURES
from hypodask.files.location import Location, absolute
from hypodask.phantom.cohort import EFFECT_PERCENT, GROUPS, TRUTH_FOLDER, group_sizes, simulate_cohort
from hypodask.report.page import write_report
from hypodask.storage.store import read_record
from hypodask.study.cohort import Cohort

_SCANS = 30
"""The fewest scans that both groups of patients need, so that the simulated effect is found with a power of
:data:`_POWER` (:func:`_plan_demo`); few enough for two cores to finish in minutes."""

_POWER = 0.9
"""Probability, over all seeds, that a comparison of patients with controls gives p < 0.05."""

_SD_PERCENT = 7.0
"""SD between people of one group of the hypothalamus relative to the ICV, as the demo estimates it: 6.4 % of the true
volumes (150 simulated heads) and 2.9 % of errors (30 scans of the demo)."""

_SPARE = 1
"""Scans of each group that may be refused or be excluded as outliers; the power is that of the rest."""

_WORKERS = 2

_TRUTHS = {one.name: f"true_{one.name}_mm3" for one in (MAIN, HEAD_SIZE)}
"""Structures whose true volume is a column of the simulated study, and that column."""

_NORMALIZED = "normalized_volume_mm3"


def run_demo(
    out: str = "hypodask-demo", *, scans: int | None = None, workers: int | None = None, seed: int = 0
) -> xr.Dataset:
    """Simulate a study of three groups, process it, write its report and print truth beside estimate.

    The study is written to ``OUT/bids``, the results and the report to ``OUT``. A second call goes on where the first
    one stopped.

    Parameters
    ----------
    out
        Folder on this machine.
    scans
        Scans to simulate. The default, 30, is the fewest that find the simulated effect with a power of 90 %.
    workers
        Processes, 2 by default, for the simulation and for the run.
    seed
        Seed of the simulated study.

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
    scans, workers = scans or _SCANS, workers or _WORKERS
    effect = f"in patients the {MAIN.name} is {EFFECT_PERCENT:g} % smaller"
    console.print(f"Simulating {scans} scans in three groups; {effect} ...")
    console.print(_as_power(_plan_demo(scans)))
    bids = simulate_cohort(Path(absolute(out)) / "bids", scans, seed=seed, workers=workers)
    results = process(Cohort.from_bids(bids), out, workers=workers)
    page = write_report(out)
    _show(results, console)
    errors = _commissure_errors(results, out, bids)
    console.print("AC and PC against the truth, median and largest distance:", _as_distances(errors))
    console.print(f"Results: hypodask.open_results({str(out)!r})\nReport:  {page}", soft_wrap=True)
    return results


def _plan_demo(scans: int) -> pd.DataFrame:
    """Find the smallest differences that a demo of so many scans finds, before any of them is simulated.

    The groups have the sizes that :func:`~hypodask.phantom.simulate_cohort` gives them, less one scan that may be
    refused or excluded, and the mean and SD that the simulation and the method give them; the seed does not count.

    Parameters
    ----------
    scans
        Of all groups, at least 3.

    Returns
    -------
    DataFrame
        Of :func:`~hypodask.stats.plan_groups` at a power of 90 %: one row for each group of patients beside the
        controls, with ``detectable_percent``; NaN for a group that is too small for a test.

    Raises
    ------
    CohortError
        If there are fewer scans than groups.

    Examples
    --------
    >>> _plan_demo(30)["detectable_percent"].round(1).tolist()
    [10.4, 11.5]
    """
    volumes: dict[str, Float[ndarray, " n"]] = {}
    for name, size in group_sizes(scans).items():
        kept = max(size - _SPARE, 1)
        middles = norm.ppf((np.arange(kept) + 0.5) / kept)
        spread = middles.std(ddof=1) if kept > 1 else 1.0
        mean = 1.0 if name == "control" else 1 - EFFECT_PERCENT / 100
        volumes[name] = mean * (1 + _SD_PERCENT / 100 * middles / spread)
    groups = np.repeat(list(volumes), [len(values) for values in volumes.values()])
    ds = xr.Dataset({"volume": ("scan", np.concatenate(list(volumes.values())))}, coords={"group": ("scan", groups)})
    plan = stats.plan_groups(ds, "volume", reference="control", power=[_POWER])
    return plan[plan["group_b"] == "control"].reset_index(drop=True)


def _as_power(plan: pd.DataFrame) -> str:
    """What a demo of this size can find, in one sentence."""
    found = plan.set_index("group_a")["detectable_percent"]
    if plan.empty or found.isna().any():
        return "With groups this small, it is left to chance whether a difference gives p < 0.05."
    differences = " and ".join(f"{percent:.1f} % ({name})" for name, percent in found.items())
    return f"Groups of this size find differences from controls of {differences} with a power of {100 * _POWER:.0f} %."


def _show(results: xr.Dataset, console: Console) -> None:
    """Print the estimates beside the truth."""
    console.print(_as_rich(_narrowed(_compare_with_truth(results)), "Truth beside estimate, all scans that were done"))
    try:
        console.print(
            _as_rich(_compare_effects(results), f"{MAIN.title} / {HEAD_SIZE.title}, after exclusion of outliers")
        )
    except ResultsError as error:
        console.print(f"The groups could not be compared: {error}")


def _compare_with_truth(results: xr.Dataset) -> pd.DataFrame:
    """Volumes of each group, true and estimated.

    Returns
    -------
    DataFrame
        One row per structure and group, and one for all scans: ``structure``, ``group``, ``n``, mean and SD of truth
        and estimate in mm3 (ICV too), their mean difference ``bias_percent`` with its SD, and their correlation ``r``
        (NaN for fewer than three scans).
    """
    group = results["group"].to_numpy().astype(str)
    done = (results["status"] == "done").to_numpy()
    members = {name: done & (group == name) for name in GROUPS} | {"all": done}
    rows = [
        {"structure": structure, "group": name, **_agreement(results, structure, chosen)}
        for structure in _TRUTHS
        for name, chosen in members.items()
    ]
    return pd.DataFrame(rows)


def _narrowed(table: pd.DataFrame) -> pd.DataFrame:
    """The table of truth and estimate with few columns, so that it fits into a terminal of 80 characters."""
    records = [STRUCTURES[name] for name in table["structure"]]
    scale = np.array([1 / one.mm3_per_unit for one in records])
    mean_sd = {
        shown: [f"{m:,.0f} ± {s:.0f}" for m, s in zip(table[mean] * scale, table[sd] * scale, strict=True)]
        for shown, mean, sd in (("true", "true_mean", "true_sd"), ("estimate", "mean", "sd"))
    }
    bias = [f"{b:+.1f} ± {s:.1f}" for b, s in zip(table["bias_percent"], table["bias_sd"], strict=True)]
    columns = {"structure": [f"{one.title} {one.unit}" for one in records], "group": table["group"], "n": table["n"]}
    return pd.DataFrame(columns | mean_sd | {"bias %": bias, "r": table["r"]})


def _agreement(results: xr.Dataset, structure: str, chosen: Bool[ndarray, "scan"]) -> dict[str, float]:
    true = results[_TRUTHS[structure]].to_numpy().astype(np.float64)[chosen]
    found = results["volume_mm3"].sel(structure=structure).to_numpy()[chosen]
    figures: dict[str, float] = {"n": len(true)}
    for mean, sd, values in (
        ("true_mean", "true_sd", true),
        ("mean", "sd", found),
        ("bias_percent", "bias_sd", 100 * (found / true - 1)),
    ):
        figures[mean] = float(values.mean()) if len(values) else float("nan")
        figures[sd] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return figures | {
        "r": float(np.corrcoef(true, found)[0, 1]) if len(true) > 2 else float("nan"),
    }


def _compare_effects(results: xr.Dataset) -> pd.DataFrame:
    """Group differences of the normalised volume, as measured and as they are in truth in the same scans.

    Returns
    -------
    DataFrame
        One row per pair of groups: ``group_a, group_b, n_a, n_b, true_percent, percent, t, p``.
    """
    measured = stats.paper(results).dataset
    true = stats.normalize_icv(_with_true_volumes(measured), reference="control")
    table, truth = (
        stats.compare_groups(ds, _NORMALIZED, structure=MAIN.name, reference="control") for ds in (measured, true)
    )
    table = table.assign(true_percent=truth["percent"])
    return table[["group_a", "group_b", "n_a", "n_b", "true_percent", "percent", "t", "p"]]


def _with_true_volumes(results: xr.Dataset) -> xr.Dataset:
    """The results of a perfect method: true volumes, and the same exclusions."""
    true = results["volume_mm3"].copy(deep=True)
    for structure, column in _TRUTHS.items():
        true.loc[{"structure": structure}] = results[column].to_numpy().astype(np.float64)
    return results.assign(volume_mm3=true)


def _commissure_errors(results: xr.Dataset, out: str, bids: Path) -> pd.DataFrame:
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
    """A cell: large numbers without decimals, others with three digits."""
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
