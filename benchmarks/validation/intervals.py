"""Whether 95 % intervals cover the truth in 95 of 100 scans, and widen where they have to.

    python -m benchmarks.validation.intervals sensitivities RUNS    # how much pose and noise change a volume
    python -m benchmarks.validation.intervals coverage RUNS         # simulated scans of known volume
    python -m benchmarks.validation.intervals heads HELD_OUT.json ...    # real scans

``sensitivities`` writes what :mod:`benchmarks.validation.quality` puts into the reference ranges. In ``heads`` the
interval of each real scan is made from the errors of the others. ``RUNS`` is the folder that
``benchmarks.validation.quality_runs`` wrote. All simulated scans share the brain of the template, from which no network
learnt, and therefore one common error. ``coverage`` counts intervals that hold the true volume, and intervals that
hold it once the common error is taken off.
"""

import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from benchmarks.validation.planting import UNDISTURBED, as_scan
from benchmarks.validation.quality import is_phantom, measured_runs, reference_of
from benchmarks.validation.quality_runs import Run, kept, read_run
from benchmarks.validation.results import add_record_option, write_results
from benchmarks.validation.scoring import markdown
from hypodask.pipeline import load_models
from hypodask.quality import image
from hypodask.quality.intervals import Conditions, interval, relative_error
from hypodask.quality.reference import VolumeErrors
from hypodask.scan import Scan
from hypodask.segmentation import Network
from hypodask.segmentation.volumes import measure

POSE_MM = (1.0, 2.0)
"""Errors of both commissures, in random directions of their own."""

NOISES = (0.03, 0.06, 0.12)
"""Standard deviations of Rician noise, relative to white matter."""

COMMISSURES_APART_MM = 26.5


# --- Sensitivities ---------------------------------------------------------------------------------------------------


def pose_changes(run: Run, network: Network, random: Generator) -> Iterator[float]:
    """Change of the volume per mm of error of the pose, as logarithms."""
    start = _volume(network, run.scan, run)
    for error_mm in POSE_MM:
        pose = erring(run.alignment.acpc_from_scanner, error_mm, random)
        posed = replace(run, alignment=replace(run.alignment, acpc_from_scanner=pose))
        yield float(np.log(_volume(network, run.scan, posed) / start) / error_mm)


def erring(acpc_from_scanner: Float[ndarray, "4 4"], error_mm: float, random: Generator) -> Float[ndarray, "4 4"]:
    """A pose whose AC is off by so much, and whose axes are turned by as much as that is at the PC."""
    shift, axis = (v / np.linalg.norm(v) for v in random.standard_normal((2, 3)))
    error = np.eye(4)
    error[:3, :3] = Rotation.from_rotvec(error_mm / COMMISSURES_APART_MM * axis).as_matrix()
    error[:3, 3] = error_mm * shift
    return error @ acpc_from_scanner


def noise_changes(run: Run, network: Network, random: Generator) -> Iterator[tuple[float, float]]:
    """Increase of the measured noise, and change of the volume as a logarithm, for each noise that is added."""
    levels = image.levels(run.scan.data[run.scan.data > np.percentile(run.scan.data, 60)])
    start, before = _volume(network, run.scan, run), _noise(run.scan, run)
    for noise in NOISES:
        real, imaginary = noise * levels.white * random.standard_normal((2, *run.scan.data.shape), dtype=np.float32)
        noisy = as_scan(np.hypot(run.scan.data + real, imaginary), run.scan.grid, run.scan.source)
        increase = (_noise(noisy, run) - before) / levels.contrast
        yield increase, float(np.log(_volume(network, noisy, run) / start))


def _noise(scan: Scan, run: Run) -> float:
    return image.noise_sd(scan.data[image.box_about_hypothalamus(scan.grid, run.alignment.acpc_from_scanner)])


def _volume(network: Network, scan: Scan, run: Run) -> float:
    return measure(network.segment(scan, run.alignment)).soft_mm3["hypothalamus"]


def sensitivities(folder: Path, heads: list[str]) -> dict[str, float]:
    """Both sensitivities over sound heads; kept in ``sensitivities.json``."""
    network, *_ = load_models()
    poses, noises = [], []
    for head in heads:
        run = read_run(kept(folder, head, UNDISTURBED))
        random = np.random.default_rng([*head.encode()])
        poses += pose_changes(run, network, random)
        noises += noise_changes(run, network, random)
        print(head, np.round(poses[-len(POSE_MM) :], 4), np.round(noises[-len(NOISES) :], 4).tolist(), flush=True)
    increase, change = np.array(noises).T
    found = {
        "pose_per_mm": round(float(np.sqrt(np.mean(np.square(poses)))), 4),
        "per_squared_noise": round(float(np.sqrt((change**2).sum() / (increase**4).sum())), 4),
    }
    (folder / "sensitivities.json").write_text(json.dumps(found))
    return found


# --- Coverage on simulated heads -------------------------------------------------------------------------------------


def with_intervals(table: pd.DataFrame, network: Network, errors: VolumeErrors) -> pd.DataFrame:
    """Simulated heads that were measured, with their relative errors and intervals as logarithms."""
    table = table[is_phantom(table) & (table["refused"] == "")].copy()
    table["error"] = np.log(table["hypothalamus_mm3"] / table["true_hypothalamus_mm3"])
    table["half_width"] = [half_width(row, network, errors) for row in table.to_dict("records")]
    return table


def half_width(row: dict[str, float], network: Network, errors: VolumeErrors) -> float:
    """Logarithm of the upper end of the interval over the volume."""
    conditions = Conditions(
        uncertainty=row["border_entropy"],
        spread=row["member_spread"],
        members=getattr(getattr(network, "card", None), "members", 1),
        pose_mm=row["alignment_error_mm"],
        noise=row["noise"],
        unseen=row["unseen"],
    )
    known = network.volume_error
    if known.relative_sd is None:
        raise SystemExit(f"{network.name} has no measured error: its card needs relative_volume_sd")
    return float(np.log(interval(1.0, relative_error(known.relative_sd, known.participants, conditions, errors))[1]))


def coverage(table: pd.DataFrame) -> pd.DataFrame:
    """How often intervals cover, as they are and about the mean error of the sound simulated heads."""
    bias = table.loc[table["failure"] == UNDISTURBED, "error"].mean()
    lines = []
    for failure, own in table.groupby("failure", sort=False):
        lines.append(
            {
                "scans": f"{failure} ({len(own)})",
                "error, mean %": f"{100 * own['error'].mean():+.1f}",
                "SD %": f"{100 * own['error'].std():.1f}",
                "half width, median %": f"{100 * own['half_width'].median():.0f}",
                "covered": f"{(own['error'].abs() <= own['half_width']).mean():.2f}",
                "covered about the mean error": f"{((own['error'] - bias).abs() <= own['half_width']).mean():.2f}",
            }
        )
    return pd.DataFrame(lines)


def coverage_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show of the same, as numbers."""
    bias = table.loc[table["failure"] == UNDISTURBED, "error"].mean()
    figures: dict[str, float] = {}
    for failure, own in table.groupby("failure", sort=False):
        key, error, width = re.sub(r"\W", "_", str(failure)), own["error"], own["half_width"]
        figures[f"{key}_error_percent_mean"] = 100 * error.mean()
        if len(own) > 1:
            figures[f"{key}_error_percent_sd"] = 100 * error.std()
        figures[f"{key}_half_width_percent"] = 100 * width.median()
        figures[f"{key}_covered"] = int((error.abs() <= width).sum())
        figures[f"{key}_covered_about_mean"] = int(((error - bias).abs() <= width).sum())
        figures[f"{key}_scans"] = len(own)
    return figures


# --- Real heads ------------------------------------------------------------------------------------------------------


def left_out_figures(ratios: Float[ndarray, "head"]) -> dict[str, float]:
    """Coverage on real scans: the interval of each is made from the errors of the others alone."""
    errors, covered, widths = np.log(ratios), [], []
    for number, error in enumerate(errors):
        others = np.delete(errors, number)
        known = relative_error(float(np.sqrt(np.mean(others**2))), len(others), Conditions(), NO_CONDITIONS)
        widths.append(np.log(interval(1.0, known)[1]))
        covered.append(abs(error) <= widths[-1])
    return {
        "scans": len(errors),
        "error_percent_mean": 100 * errors.mean(),
        "error_percent_sd": 100 * errors.std(ddof=1),
        "half_width_percent": 100 * float(np.median(widths)),
        "covered": sum(covered),
    }


def heads_left_out(ratios: Float[ndarray, "head"]) -> pd.DataFrame:
    """The same as a table."""
    found = left_out_figures(ratios)
    return pd.DataFrame(
        [
            {
                "heads": found["scans"],
                "error, mean %": f"{found['error_percent_mean']:+.1f}",
                "SD %": f"{found['error_percent_sd']:.1f}",
                "half width, median %": f"{found['half_width_percent']:.0f}",
                "covered": f"{found['covered']} of {found['scans']}",
            }
        ]
    )


NO_CONDITIONS = VolumeErrors(0.0, 0.0, 0.0, 1.0, 0.0)
"""Nothing but the error on held-out heads."""


def held_out_ratios(paths: list[Path]) -> Float[ndarray, "head"]:
    """Predicted over true volume of every head that some network did not learn from."""
    figures = {name: figure for path in paths for name, figure in json.loads(path.read_text()).items()}
    return np.array([figure["volume_mm3"] / figure["consensus_mm3"] for figure in figures.values()])


# --- Commands --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure intervals."""
    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("command", choices=["sensitivities", "coverage", "heads"])
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--heads", nargs="*", default=[], help="sound runs to measure sensitivities on")
    add_record_option(parser)
    options = parser.parse_args()
    folder = options.paths[0]
    if options.command == "sensitivities":
        print(sensitivities(folder, options.heads))
    elif options.command == "coverage":
        table = measured_runs(folder)
        network, *_ = load_models()
        judged = with_intervals(table, network, reference_of(table, folder).errors)
        print(markdown(coverage(judged)))
        if options.record:
            what = "95 % intervals of simulated scans of known volume"
            data = f"phantoms, {(judged['failure'] == UNDISTURBED).sum()} as they are, some of them spoilt"
            write_results("intervals_coverage", coverage_figures(judged), what=what, data=data)
    else:
        ratios = held_out_ratios(options.paths)
        print(markdown(heads_left_out(ratios)))
        if options.record:
            what, data = (
                "95 % intervals of held-out real scans",
                f"{len(ratios)} real scans, each with the others' errors",
            )
            write_results("intervals_heads", left_out_figures(ratios), what=what, data=data, networks=("hypothalamus",))


if __name__ == "__main__":
    main()
