"""What is known of a simulated head: its commissures, its frame and its volumes."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Real
from numpy import ndarray

from hypodask.alignment.pose import acpc_frame
from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import HEAD_SIZE, HYPOTHALAMUS_SIDES, MAIN
from hypodask.phantom.deformation import HeadMap
from hypodask.phantom.fields import Lattice, sample
from hypodask.phantom.hypothalamus import template_hypothalamus
from hypodask.phantom.intracranial import BOX, COARSE_BOX, icv_distance, template_brain
from hypodask.scan.template import MNI152

_SIDES = HYPOTHALAMUS_SIDES.structures
"""Left and right, in the order of the posteriors of the template's hypothalamus."""

_FINE_MM = 0.5
_COARSE_MM = 3.0
"""Distances between the nodes on which hypothalamus and ICV are summed: within 0.1 and 0.02 % of sums on finer ones."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a simulated head."""

    ac_mm: Float[ndarray, "3"]
    """Anterior commissure, scanner RAS+ mm."""
    pc_mm: Float[ndarray, "3"]
    """Posterior commissure, scanner RAS+ mm."""
    acpc_from_scanner: Float[ndarray, "4 4"]
    """Rigid move that puts AC at the origin, PC on -y and the midsagittal plane at x = 0."""
    volume_mm3: dict[str, float]
    """By name: the hypothalamus, its left and its right side, and the ICV."""
    head: HeadMap = field(repr=False)
    """The deformation that the head was made with."""

    def posterior(self, structure: str, grid: Grid) -> Float32[ndarray, "i j k"]:
        """How much of a structure is at each voxel centre of a grid in scanner or AC-PC space, 0 to 1.

        Raises
        ------
        ValueError
            If the structure is not one of ``volume_mm3``, or the grid is in MNI space.
        """
        if structure not in self.volume_mm3 or grid.space == "mni":
            raise ValueError(
                f"{structure!r} was asked for on a grid in {grid.space!r} space; the phantom knows "
                f"{sorted(self.volume_mm3)} in 'scanner' and 'acpc' space"
            )
        scanner_from_space = np.eye(4) if grid.space == "scanner" else np.linalg.inv(self.acpc_from_scanner)
        voxels = np.indices(grid.shape).reshape(3, -1).T
        points = transform_points(scanner_from_space @ grid.space_from_vox, voxels).T
        return _template_posterior(structure, self.head.to_template(points)).reshape(grid.shape)


def measure_truth(head: HeadMap) -> Truth:
    """Commissures, frame and volumes of a deformed head."""
    ac, pc = head.to_scanner(MNI152.commissures_mm.T).T
    sides = {side: _volume_mm3(head, side, _hypothalamus_places(), _FINE_MM) for side in _SIDES}
    icv = _volume_mm3(head, HEAD_SIZE.name, icv_surface(), _COARSE_MM)
    volumes = {MAIN.name: sum(sides.values()), **sides, HEAD_SIZE.name: icv}
    return Truth(ac, pc, acpc_frame(ac, pc, _midsagittal_normal(head)), volumes, head)


def _template_posterior(structure: str, points_mm: Real[ndarray, "3 *n"]) -> Float32[ndarray, "*n"]:
    """How much of a structure is at points of the template, 0 to 1."""
    if structure == HEAD_SIZE.name:
        distance = sample(icv_distance(), COARSE_BOX.indices(points_mm), outside=99.0)
        return np.clip(np.float32(0.5) - distance, 0, 1)
    if structure in _SIDES:
        return template_hypothalamus().posterior(_SIDES.index(structure), points_mm)
    left, right = (_template_posterior(side, points_mm) for side in _SIDES)
    return left + right


@lru_cache(maxsize=1)
def template_icv_mm3() -> float:
    """Intracranial volume of the template itself, mm3."""
    return (
        float(_template_posterior(HEAD_SIZE.name, COARSE_BOX.points_mm()).sum(dtype=np.float64)) * COARSE_BOX.step_mm**3
    )


@lru_cache(maxsize=1)
def icv_surface() -> Float[ndarray, "3 n"]:
    """A thousand or so points on the boundary of the ICV, MNI mm."""
    points = COARSE_BOX.points_mm()[:, np.abs(icv_distance()) < 1.0]
    return points[:, :: max(1, points.shape[1] // 1000)]


@lru_cache(maxsize=1)
def _hypothalamus_places() -> Float[ndarray, "3 n"]:
    """Voxels where the template's hypothalamus is not zero, MNI mm."""
    hypothalamus = template_hypothalamus()
    return hypothalamus.lattice.points_mm()[:, hypothalamus.posteriors.max(axis=0) > 0]


def _volume_mm3(head: HeadMap, structure: str, places_mm: Float[ndarray, "3 n"], step_mm: float) -> float:
    """Volume in the scanner, summed on nodes around the places of the template that hold the structure."""
    places = head.to_scanner(places_mm)
    low, high = places.min(axis=1) - 3.0, places.max(axis=1) + 3.0
    i, j, k = np.ceil((high - low) / step_mm).astype(int).tolist()
    x, y, z = low.tolist()
    points = Lattice((x, y, z), step_mm, (i, j, k)).points_mm()
    return float(_template_posterior(structure, head.to_template(points)).sum(dtype=np.float64)) * step_mm**3


def _midsagittal_normal(head: HeadMap) -> Float[ndarray, "3"]:
    """Normal of the plane that fits the brain's midsagittal points best, towards the subject's right."""
    y, z = np.meshgrid(np.arange(-90.0, 61, 10), np.arange(-40.0, 71, 10), indexing="ij")
    points = np.stack([np.zeros(y.size), y.ravel(), z.ravel()])
    midline = head.to_scanner(points[:, sample(template_brain(), BOX.indices(points)) > 0]).T
    normal: Float[ndarray, " 3"] = np.linalg.svd(midline - midline.mean(axis=0))[2][2]
    right = np.linalg.inv(head.mni_from_scanner)[:3, 0]
    return normal if normal @ right > 0 else -normal
