"""How good the intracranial volume is: on label maps with a known cavity, with a smaller brain, and on real scans.

Label maps (1 mm, whole head) are imaged here with intensities of one's own for every label, not by the generator that
the network learns from, and go the whole way: alignment, resampling, network. The truth is the count of labels 1 to
499 in the map as it is, holes, islands and all. A cavity that has grown outwards through the skull by 2 mm, in the
same pose, tells whether the network looks at its border or guesses it from the shape of the head. Real scans have no
truth: what can be told is whether a scan, re-posed and imaged again, keeps its volume.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage

import hypodask
from benchmarks.validation.posing import MILD, draw_pose, real_head, repose
from benchmarks.validation.results import add_record_option, write_results
from hypodask.alignment import Alignment
from hypodask.core.errors import AlignmentError
from hypodask.core.grid import Grid, transform_points
from hypodask.image.agreement import dice
from hypodask.image.resampling import resample
from hypodask.scan import Scan
from hypodask.segmentation.icv_border import BoundaryNetwork
from hypodask.segmentation.load import load_network
from hypodask.segmentation.network import Network
from recipes.icv import read_labels

HELD_OUT = tuple(f"training_seg_{number}" for number in (13, 14, 15, 16))
SHRINKAGE = 0.15
CSF, LAST_INTRACRANIAL = 24, 499
FLUID = (4, 5, 14, 15, 24, 43, 44)
SKULL = (515, 516)
GROWTH_VOXELS = 2
MEAN = {
    2: 1.0,
    41: 1.0,
    7: 0.97,
    46: 0.97,
    3: 0.66,
    42: 0.66,
    8: 0.68,
    47: 0.68,
    16: 0.9,
    515: 0.10,
    516: 0.8,
    507: 0.6,
}
MEAN |= dict.fromkeys(FLUID, 0.22) | {511: 0.9, 514: 0.5, 502: 0.7, 506: 0.2, 512: 0.85, 13: 0.9, 52: 0.9}
OTHER = 0.75
"""Intensities in T1-weighted scans, white matter 1, each varied by its own random factor: by eye from MPRAGE scans but
for fluid and bone, whose difference is all that shows the inner table. In seven heads of the data the 5th percentile
of deep fluid was 0.11 to 0.30, mean 0.20, and the 25th 0.17 to 0.34; the 10th percentile of what lies 2 to 6 mm outside
the cavity, marrow and skin among it, 0.03 to 0.21, mean 0.13."""

FAINT = {515: 0.12} | dict.fromkeys(FLUID, 0.18)
"""A harder contrast, with ``--faint``: for half of the seeds bone and fluid then differ by less than their noise."""


def image_of(labels: ndarray, grid: Grid, seed: int, mean: dict[int, float] = MEAN) -> Scan:
    """A T1-weighted scan of a label map: contrast, texture, blur, bias field and noise from one seed."""
    random = np.random.default_rng(seed)
    table = np.array([0.0, *(mean.get(number, OTHER) for number in range(1, 1000))]) * random.lognormal(0, 0.12, 1000)
    image = table.astype(np.float32)[labels]
    image *= 1 + np.float32(0.05) * random.standard_normal(image.shape, np.float32)
    image = ndimage.gaussian_filter(image, random.uniform(0.3, 0.8))
    image *= np.exp(0.15 * _smooth(image.shape, random))
    sd = np.float32(random.uniform(0.005, 0.03))
    real, imaginary = (sd * random.standard_normal(image.shape, np.float32) for _ in range(2))
    return Scan(800 * np.hypot(image + real, imaginary), grid, source=f"seed {seed}")


def _smooth(shape: tuple[int, ...], random: Generator) -> ndarray:
    """A sum of low cosines, at most 1 in size."""
    waves = [np.cos(np.pi * np.outer(np.arange(3), np.linspace(0, 1, n))).astype(np.float32) for n in shape]
    field = np.einsum("abc,ai,bj,ck->ijk", random.standard_normal((3, 3, 3)), *waves, optimize=True)
    return (field / np.abs(field).max()).astype(np.float32)


def peeled(labels: ndarray) -> ndarray:
    """The brain without its outermost 15 %, by depth from fluid and skull: wider sulci and ventricles."""
    brain = _brain(labels)
    depth = ndimage.distance_transform_edt(brain)
    depth += np.random.default_rng(0).uniform(0, 0.5, depth.shape)  # many voxels are equally deep
    return np.where(brain & (depth <= np.quantile(depth[brain], SHRINKAGE)), CSF, labels)


def contracted(labels: ndarray) -> ndarray:
    """The brain 15 % smaller about its centre, as it is in shape: a gap beneath the skull."""
    brain = _brain(labels)
    centre = np.argwhere(brain).mean(axis=0)
    larger = (1 - SHRINKAGE) ** (-1 / 3)
    smaller = ndimage.affine_transform(
        np.where(intracranial(labels), labels, CSF), np.eye(3) * larger, centre * (1 - larger), order=0, cval=CSF
    )
    return np.where(intracranial(labels), np.where(intracranial(smaller), smaller, CSF), labels)


def grown(labels: ndarray) -> ndarray:
    """The cavity wider by 2 mm of fluid, where bone or marrow had been."""
    reached = ndimage.binary_dilation(intracranial(labels), iterations=GROWTH_VOXELS)
    return np.where(reached & np.isin(labels, SKULL), CSF, labels)


def intracranial(labels: ndarray) -> ndarray:
    """The cavity of a label map as it is, holes, islands and all."""
    return (labels > 0) & (labels <= LAST_INTRACRANIAL)


def _brain(labels: ndarray) -> ndarray:
    return intracranial(labels) & ~np.isin(labels, FLUID)


SHRUNKEN: dict[str, Callable[[ndarray], ndarray]] = {"peeled": peeled, "contracted": contracted}


def measured(network: Network, scan: Scan, alignment: Alignment) -> tuple[dict[str, float], ndarray, Grid]:
    """Volume and time of one scan whose pose is known; the posteriors and their grid."""
    start = perf_counter()
    found = network.segment(scan, alignment)
    volume = float(found.posteriors[1].sum() * found.grid.voxel_volume_mm3)
    return {"icv_ml": volume / 1000, "seconds": perf_counter() - start}, found.posteriors[1], found.grid


def label_map_rows(network: Network, path: Path, images: int, mean: dict[int, float]) -> Iterator[dict[str, object]]:
    """Volume error and overlap for several images of a label map, and drift of the volume when its brain shrinks."""
    labels, grid = read_labels(path)
    truth = intracranial(labels)
    smaller = {name: shrink(labels) for name, shrink in SHRUNKEN.items()}
    larger = grown(labels)
    added_ml = (intracranial(larger).sum() - truth.sum()) * grid.voxel_volume_mm3 / 1000
    for seed in range(images):
        scan = image_of(labels, grid, seed, mean)
        alignment = hypodask.align(scan)
        row, cavity, onto = measured(network, scan, alignment)
        wanted = resample(truth.astype(np.float32), grid, onto, onto_from_grid=alignment.acpc_from_scanner)
        true_ml = truth.sum() * grid.voxel_volume_mm3 / 1000
        row |= {"true_ml": true_ml, "error_percent": 100 * (row["icv_ml"] / true_ml - 1)}
        row["dice"] = dice(cavity > 0.5, wanted > 0.5)
        for name, small in smaller.items() if seed < 2 else ():
            again = image_of(small, grid, seed, mean)
            try:
                drifted, _, _ = measured(network, again, hypodask.align(again))
            except AlignmentError as refusal:
                print(f"{path.name}, brain {name}: {refusal}")
                continue
            row[f"{name}_drift_percent"] = 100 * (drifted["icv_ml"] / row["icv_ml"] - 1)
        if seed < 2:
            wide, _, _ = measured(network, image_of(larger, grid, seed, mean), alignment)
            row["growth_seen_percent"] = 100 * (wide["icv_ml"] - row["icv_ml"]) / added_ml
        yield {"head": path.name.split(".")[0], "number": seed, **row}


def real_rows(network: Network, path: Path, poses: int) -> Iterator[dict[str, object]]:
    """Volume of a scan as it is and re-posed."""
    scan = hypodask.read_scan(path)
    alignment = hypodask.align(scan)
    head = real_head(path, alignment)
    yield {"head": head.name, "number": 0, **measured(network, scan, alignment)[0]}
    for seed in range(1, poses + 1):
        posed, _ = repose(head, draw_pose(head, MILD, seed))
        try:
            row, _, _ = measured(network, posed, hypodask.align(posed))
        except AlignmentError as refusal:
            print(refusal)
            continue
        yield {"head": head.name, "number": seed, **row}


def outlines(network: Network, paths: list[Path], out: Path) -> None:
    """Pictures of the cavity's outline in three planes through real scans."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, len(paths), figsize=(4 * len(paths), 12), squeeze=False)
    for column, path in zip(axes.T, paths, strict=True):
        scan = hypodask.read_scan(path)
        alignment = hypodask.align(scan)
        _, cavity, grid = measured(network, scan, alignment)
        image = resample(scan.data, scan.grid, grid, onto_from_grid=alignment.acpc_from_scanner)
        x, y, z = transform_points(np.linalg.inv(grid.space_from_vox), np.array([3.0, -25.0, 15.0])).astype(int)
        for axis, cut in zip(column, (np.s_[x], np.s_[:, y], np.s_[:, :, z]), strict=True):
            axis.imshow(image[cut].T, cmap="gray", origin="lower", vmax=np.percentile(image, 99))
            axis.contour(cavity[cut].T, [0.5], colors="red", linewidths=0.8)
            axis.axis("off")
        column[0].set_title(path.name[:28], fontsize=9)
    figure.tight_layout()
    figure.savefig(out / "icv_outlines.png", dpi=60)


def summary(maps: pd.DataFrame, real: pd.DataFrame) -> str:
    """The figures that count, one line each."""
    lines = []
    if len(maps):
        errors = maps["error_percent"]
        lines.append(f"volume error: mean absolute {errors.abs().mean():.2f} %, bias {errors.mean():+.2f} %")
        lines.append(f"Dice: mean {maps['dice'].mean():.4f}, lowest {maps['dice'].min():.4f}")
        for name in SHRUNKEN:
            drift = maps[f"{name}_drift_percent"].dropna()
            largest = drift.abs().max()
            lines.append(f"brain {name}: drift mean {drift.mean():+.2f} %, largest {largest:.2f} % (of {len(drift)})")
        seen = maps["growth_seen_percent"].dropna()
        lines.append(f"cavity grown by 2 mm: {seen.mean():.0f} % of it seen ({seen.min():.0f} to {seen.max():.0f} %)")
    if len(real):
        spread = real.groupby("head")["icv_ml"].agg(["mean", "std"])
        cov = 100 * spread["std"] / spread["mean"]
        lines += [f"{name}: {spread['mean'][name]:.0f} ml, CoV {value:.2f} %" for name, value in cov.items()]
        lines.append(f"re-posed real scans: CoV median {cov.median():.2f} %, largest {cov.max():.2f} %")
    return "\n".join(lines)


def map_figures(maps: pd.DataFrame) -> dict[str, float]:
    """What the pages show of the images of label maps."""
    errors = maps["error_percent"]
    figures = {"volume_error_percent_mean": errors.abs().mean(), "volume_bias_percent": errors.mean()}
    figures |= {"dice_mean": maps["dice"].mean(), "dice_lowest": maps["dice"].min()}
    for name in SHRUNKEN:
        drift = maps[f"{name}_drift_percent"]
        figures |= {f"{name}_drift_percent_mean": drift.mean(), f"{name}_drift_percent_largest": drift.abs().max()}
    return figures | {"growth_seen_percent": maps["growth_seen_percent"].mean()}


def real_figures(real: pd.DataFrame) -> dict[str, float]:
    """What the pages show of real scans."""
    spread = real.groupby("head")["icv_ml"].agg(["mean", "std"])
    cov = 100 * spread["std"] / spread["mean"]
    return {"cov_percent_median": cov.median(), "cov_percent_largest": cov.max()}


def record(maps: pd.DataFrame, real: pd.DataFrame, network: Network) -> None:
    """Write the figures of both tables for the pages."""
    alone = not isinstance(network, BoundaryNetwork)
    networks = ("commissures", "icv") if alone else ("commissures", "icv", "icv-border")
    if len(maps):
        data = f"{len(maps)} synthetic images of {maps['head'].nunique()} label maps that were not trained on"
        by_map = maps.groupby("head")["error_percent"].mean()
        tables = {"icv_alone" if alone else "icv_accuracy": map_figures(maps)}
        if not alone:
            tables["icv_maps"] = {f"map_{name.split('_')[-1]}_error_percent": error for name, error in by_map.items()}
        for name, figures in tables.items():
            write_results(name, figures, what="The ICV on images of label maps", data=data, networks=networks)
    if len(real) and not alone:
        data = f"{real['head'].nunique()} real scans, {real['number'].nunique()} poses each"
        what = "Coefficient of variation of the ICV over re-poses of real scans"
        write_results("icv_repeat", real_figures(real), what=what, data=data, networks=networks)


def main() -> None:
    """Measure, write tables and pictures, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of validation data")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--network", default="icv", help="name of a shipped network, or a weights file")
    parser.add_argument("--images", type=int, default=4, help="images of each label map; two also with smaller brains")
    parser.add_argument("--poses", type=int, default=2, help="re-poses of each real scan")
    parser.add_argument("--maps", nargs="*", default=HELD_OUT, help="label maps that the network was not trained on")
    parser.add_argument("--faint", action="store_true", help="bone and fluid nearly alike in the images of label maps")
    parser.add_argument("--match", default="", help="only real scans with this in their path")
    add_record_option(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mean = MEAN | FAINT if options.faint else MEAN
    network = load_network(options.network)
    folders = ("scans", "scans_stripped", "scans_thick")
    scans = [path for folder in folders for path in sorted((options.data / folder).glob("*.*z"))]
    scans = [path for path in scans if options.match in str(path)]
    tables = {
        "maps": [options.data / "label_maps" / f"{name}.nii.gz" for name in options.maps],
        "real": scans,
    }
    rows = {
        "maps": [row for path in tables["maps"] for row in label_map_rows(network, path, options.images, mean)],
        "real": [row for path in tables["real"] for row in real_rows(network, path, options.poses)],
    }
    frames = {name: pd.DataFrame(found) for name, found in rows.items()}
    for name, frame in frames.items():
        frame.to_csv(options.out / f"icv_{name}.tsv", sep="\t", index=False, float_format="%.4f")
    text = summary(frames["maps"], frames["real"])
    (options.out / "icv_summary.txt").write_text(text + "\n")
    print(text)
    if options.record:
        record(frames["maps"], frames["real"], network)
    if scans:
        outlines(network, scans, options.out)


if __name__ == "__main__":
    main()
