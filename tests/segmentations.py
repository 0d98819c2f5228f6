"""Posteriors of shapes whose volumes are known, for the tests of what comes after a network."""

import numpy as np

from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import LabelTable
from hypodask.segmentation import Segmentation


def ellipsoid(grid: Grid, centre_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> np.ndarray:
    """Share of every voxel that lies in an ellipsoid, nearly: linear over one voxel across its surface."""
    points = transform_points(grid.space_from_vox, np.moveaxis(np.indices(grid.shape), 0, -1)) - centre_mm
    scaled = np.linalg.norm(points / radii_mm, axis=-1)
    slope = np.linalg.norm(points / np.square(radii_mm), axis=-1) / np.maximum(scaled, 1e-9)
    outside_mm = (scaled - 1) / np.maximum(slope, 1e-9)
    return np.clip(0.5 - outside_mm / max(grid.spacing_mm), 0, 1).astype(np.float32)


def labelled(grid: Grid, table: LabelTable, posteriors: list[np.ndarray]) -> Segmentation:
    """A segmentation of these labels, background being what they leave."""
    return Segmentation(np.stack([1 - np.sum(posteriors, axis=0), *posteriors]).astype(np.float32), grid, table)
