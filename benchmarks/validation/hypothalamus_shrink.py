"""How much of a known shrinkage of the hypothalamus is found.

The scan is warped about the middle of each side: what is seen at a point comes from further out, by a share that
falls off as a Gaussian. (The examples that the network learns from are warped by another field, the solution of a
Poisson equation over the whole structure.) How much smaller the hypothalamus has become is read off its consensus,
warped in the same way and measured as any segmentation is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy import ndarray
from scipy import ndimage
from scipy.optimize import brentq

from benchmarks.validation.hypothalamus_heads import (
    KNOWN_POSE,
    PUBLISHED,
    UNSURE,
    Effort,
    RealHead,
    erring,
    known,
    measured,
    volumes_of,
)
from hypodask.core.grid import Grid, transform_points
from hypodask.scan import Scan
from hypodask.segmentation import Segmentation

LEVELS_PERCENT = (0.0, 2.0, 4.0, 6.0, 10.0)

SPREAD = 3.0
"""The Gaussian's covariance, in covariances of a side's posterior: it falls to 0.43 at the edge of an ellipsoid."""

REACH_MM = 16.0
"""Box around the consensus beyond which nothing moves: there the Gaussian is below 1e-3."""

SPLINE_MARGIN = 12
"""Voxels around the box that the spline's coefficients are made from."""

SAME_POSE, OWN_POSE = "same pose", "each in its own pose"
"""Whether all levels are seen in one pose, or each is off by its own usual error of alignment."""


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """A map of AC-PC space onto itself that pulls the surroundings of two points towards them."""

    middles_mm: ndarray
    """Of each side, (side, 3)."""
    precisions: ndarray
    """Inverse covariances of the Gaussians, (side, 3, 3), 1/mm2."""
    strength: float
    """By how much of its distance from a middle a point there comes from further out."""

    def source(self, points_mm: ndarray) -> ndarray:
        """Where what is seen at points (..., 3) came from."""
        moved = np.array(points_mm, float)
        for middle, precision in zip(self.middles_mm, self.precisions, strict=True):
            away = points_mm - middle
            weight = np.exp(-0.5 * np.einsum("...a,ab,...b->...", away, precision, away))
            moved += self.strength * weight[..., None] * away
        return moved


def run_shrink(real: RealHead, effort: Effort) -> Iterator[dict[str, object]]:
    """Every level of shrinkage in one pose, by both networks; then with errors of alignment of their own."""
    for level, scan, truth in shrunken(real):
        case = {"level_percent": level, **truth}
        yield {**case, "setting": SAME_POSE, "number": 0, **_by(KNOWN_POSE, real.network, scan, real.pose)}
        if effort.teacher:
            yield {**case, "setting": SAME_POSE, "number": 0, **_by(PUBLISHED, real.teacher, scan, real.pose)}
        for number in range(effort.cases):
            pose = erring(real.pose, np.random.default_rng([number, round(level), *real.name.encode()]))
            yield {**case, "setting": OWN_POSE, "number": number, **_by(KNOWN_POSE, real.network, scan, pose)}


def _by(method: str, network: object, scan: Scan, pose: ndarray) -> dict[str, object]:
    return {"method": method, **measured(network, scan, known(pose))}


def shrunken(real: RealHead) -> Iterator[tuple[float, Scan, dict[str, float]]]:
    """Each level in percent, the scan with it, and the true volumes."""
    still = still_map(real.consensus)
    for level in LEVELS_PERCENT:
        shrinkage = replace(still, strength=strength_for(still, real.consensus, level / 100))
        truth = volumes_of(warped_posteriors(real.consensus, shrinkage))
        yield level, warped_scan(real, shrinkage), {f"true_{name}": volume for name, volume in truth.items()}


def still_map(consensus: Segmentation) -> Shrinkage:
    """Middle and extent of each side; nothing moves yet."""
    sides = [moments(side_posterior(consensus, side), consensus.grid) for side in ("left", "right")]
    precisions = [np.linalg.inv(SPREAD * covariance) for _, covariance in sides]
    return Shrinkage(np.array([middle for middle, _ in sides]), np.array(precisions), strength=0.0)


def side_posterior(segmentation: Segmentation, side: str) -> ndarray:
    """Posterior of one side where it is more likely than not."""
    channels = [1 + number for number, label in enumerate(segmentation.labels) if label.hemisphere == side]
    posterior = segmentation.posteriors[channels].sum(axis=0)
    return np.where(posterior > 0.5, posterior, 0)


def moments(weights: ndarray, grid: Grid) -> tuple[ndarray, ndarray]:
    """Middle (mm) and covariance (mm2) of a distribution over the voxels of a grid."""
    points, weights = voxel_points(grid)[weights > 0], weights[weights > 0]
    middle = np.average(points, axis=0, weights=weights)
    return middle, np.cov(points.T, aweights=weights, ddof=0)


def voxel_points(grid: Grid) -> ndarray:
    """Places of all voxels, (i, j, k, 3)."""
    return transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1))


def strength_for(still: Shrinkage, consensus: Segmentation, share: float) -> float:
    """Strength at which the consensus, as far as it is more likely than not, loses this share of its volume."""
    if not share:
        return 0.0
    whole = 1 - consensus.posteriors[0]
    whole = np.where(whole > 0.5, whole, 0)
    points = voxel_points(consensus.grid)

    def lost(strength: float) -> float:
        moved = pulled(whole, consensus.grid, replace(still, strength=strength).source(points), order=1)
        return float(1 - moved.sum(dtype=float) / whole.sum(dtype=float))

    return float(brentq(lambda strength: lost(strength) - share, 0.0, 0.3, xtol=1e-5))


def pulled(data: ndarray, grid: Grid, points_mm: ndarray, *, order: int) -> ndarray:
    """Values of a volume at points (..., 3) in the space of its grid."""
    vox = transform_points(np.linalg.inv(grid.space_from_vox), points_mm)
    return ndimage.map_coordinates(data, np.moveaxis(vox, -1, 0), order=order, mode="nearest", output=np.float32)


def warped_posteriors(consensus: Segmentation, shrinkage: Shrinkage) -> Segmentation:
    """The consensus of the head that shrank."""
    source = shrinkage.source(voxel_points(consensus.grid))
    posteriors = np.stack([pulled(channel, consensus.grid, source, order=1) for channel in consensus.posteriors])
    return Segmentation(posteriors, consensus.grid, consensus.labels)


def warped_scan(real: RealHead, shrinkage: Shrinkage) -> Scan:
    """The scan of the head that shrank, on its own voxels; cubic B-spline within reach, untouched elsewhere."""
    data, acpc = np.array(real.scan.data), real.scan.grid.moved(real.pose, "acpc")
    room = box_within_reach(shrinkage, acpc)
    around = tuple(slice(max(0, side.start - SPLINE_MARGIN), side.stop + SPLINE_MARGIN) for side in room)
    block = subgrid(acpc, around)
    there = shrinkage.source(voxel_points(subgrid(acpc, room)))
    data[room] = pulled(data[around], replace(block, shape=data[around].shape), there, order=3)
    return Scan(data, real.scan.grid, source=f"{real.name} shrunk")


def box_within_reach(shrinkage: Shrinkage, grid: Grid) -> tuple[slice, ...]:
    """Voxels of a grid in AC-PC space that hold everything within reach of the middles."""
    low, high = shrinkage.middles_mm.min(axis=0) - REACH_MM, shrinkage.middles_mm.max(axis=0) + REACH_MM
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T
    vox = transform_points(np.linalg.inv(grid.space_from_vox), corners)
    first, last = np.maximum(np.floor(vox.min(axis=0)), 0).astype(int), np.ceil(vox.max(axis=0)).astype(int) + 1
    last = np.minimum(last, grid.shape)
    return tuple(slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))


def subgrid(grid: Grid, room: tuple[slice, ...]) -> Grid:
    """The part of a grid that is in a box."""
    matrix = np.array(grid.space_from_vox)
    matrix[:3, 3] = transform_points(grid.space_from_vox, np.array([side.start for side in room]))
    return Grid(tuple(side.stop - side.start for side in room), matrix, grid.space)


def summarize_shrink(table: pd.DataFrame) -> pd.DataFrame:
    """Slope of measured on true change, and the SD of their paired differences, over heads and levels."""
    table = table[table["failed"] == ""]
    changes = changes_of(table)
    lines = []
    for (method, setting), group in changes.groupby(["method", "setting"], sort=False):
        line: dict[str, object] = {
            "method": method,
            "setting": setting,
            "heads": group["head"].nunique(),
            "rows": len(group),
        }
        lines.append(
            line | {name: text for kind in ("soft", "outline") for name, text in _recovered(group, kind).items()}
        )
    return pd.DataFrame(lines)


def shrink_figures(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show: slopes, and errors of a change; heads whose consensus is unsure stand apart."""
    changes = changes_of(table[table["failed"] == ""])
    changes = changes[changes["method"] == KNOWN_POSE]
    unsure = changes["head"].isin(UNSURE)
    same, own = (changes[~unsure & (changes["setting"] == setting)] for setting in (SAME_POSE, OWN_POSE))
    figures: dict[str, float] = {}
    for prefix, kind, group in (("", "soft", same), ("outline_", "outline", same), ("own_pose_", "soft", own)):
        slopes = [slope_of(head, kind) for _, head in group.groupby("head")]
        slope = slope_of(group, kind)
        error = group[f"{kind}_percent"] - slope * group[f"true_{kind}_percent"]
        figures |= {f"{prefix}slope": slope, f"{prefix}error_sd_points": float(error.std())}
        figures |= {f"{prefix}slope_lowest": min(slopes), f"{prefix}slope_highest": max(slopes)}
    if unsure.any():
        figures["unsure_slope"] = slope_of(changes[unsure & (changes["setting"] == SAME_POSE)], "soft")
    return figures


def changes_of(table: pd.DataFrame) -> pd.DataFrame:
    """Measured and true change of every row, percent of the unshrunken head's of the same method and number."""
    same = ["method", "setting", "head", "number"]
    names = [f"{prefix}{kind}_mm3" for prefix in ("", "true_") for kind in ("soft", "outline")]
    start = table[table["level_percent"] == 0].set_index(same)[names]
    changes = table[table["level_percent"] > 0].join(start.add_suffix("_before"), on=same)
    for name in names:
        changes[name.replace("mm3", "percent")] = 100 * (changes[name] / changes[f"{name}_before"] - 1)
    return changes


def _recovered(group: pd.DataFrame, kind: str) -> dict[str, str]:
    slope, slopes = slope_of(group, kind), [slope_of(head, kind) for _, head in group.groupby("head")]
    true, found = group[f"true_{kind}_percent"], group[f"{kind}_percent"]
    return {
        f"{kind} slope, lowest to highest head": f"{slope:.2f}, {min(slopes):.2f} to {max(slopes):.2f}",
        # The second is what is left when the slope is taken off: how sure one pair of scans is.
        f"{kind} paired SD, about the slope, points": f"{(found - true).std():.2f}, {(found - slope * true).std():.2f}",
    }


def slope_of(group: pd.DataFrame, kind: str) -> float:
    """Least squares through no change."""
    true, found = group[f"true_{kind}_percent"], group[f"{kind}_percent"]
    return float((true * found).sum() / (true**2).sum())
