"""Growth and shrinkage of a structure by a known amount: displacement fields whose divergence is the structure itself.

A displacement u with div u = m, where m is 1 in a structure and 0 elsewhere, moves everything around the structure
without changing its volume, and changes the structure's own volume by one hundred per cent for each unit of amplitude.
It is the gradient of the solution of Poisson's equation, and falls off with the square of the distance. Atrophy is
such a field with a negative sign; a widened ventricle is one with a positive sign.
"""

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import MAIN, LabelTable, Structure
from hypodask.image.intensity import FLUID_LEVEL, FLUID_WIDTH

_PADDING = 2
"""The fields are computed by Fourier transform on a block this many times as long, so that its periodic images are far
away."""

_VENTRICLE_LOW_MM, _VENTRICLE_HIGH_MM = np.array([-4.0, -26.0, -16.0]), np.array([4.0, 4.0, 6.0])
"""Box in AC-PC space whose fluid counts as third ventricle."""

_SIDES = ("left", "right")

_WHOLE_SD, _SIDE_SD, _VENTRICLE_SD = 0.4, 0.08, 0.3
"""Standard deviations of the logarithm of relative volume: half to twice the structure. The narrower they are, the more
a change is understated: volumes are drawn to the mean."""


def growth_sd(structure: Structure) -> dict[str, float]:
    """What grows in examples of a structure, and by how much: standard deviations of the logarithm of relative volume.

    Structures that have sides also grow on each side alone. The hypothalamus is the wall of the third ventricle, which
    widens in age and disease, so that one must be told from the other.

    >>> growth_sd(MAIN)
    {'whole': 0.4, 'left': 0.08, 'right': 0.08, 'ventricle': 0.3}
    """
    sides = dict.fromkeys(_SIDES, _SIDE_SD) if structure.has_sides else {}
    return {"whole": _WHOLE_SD, **sides, **({"ventricle": _VENTRICLE_SD} if structure.name == MAIN.name else {})}


def growth_fields(
    image: Float[ndarray, "i j k"],
    truth: Float[ndarray, "label i j k"],
    labels: LabelTable,
    grid: Grid,
    growing: tuple[str, ...],
) -> Float32[ndarray, "field 3 x y z"]:
    """Displacements in mm that double the volume of each of ``growing``, on voxels of twice the size.

    Parameters
    ----------
    image
        In units of white matter.
    truth
        Soft labels without background.
    grid
        Where their voxels are, in AC-PC space.
    growing
        Keys of :func:`growth_sd`.
    """
    coarse = _halved_grid(grid)
    coarse_image, *parts = (_halved(volume) for volume in (image, *truth))
    fields = []
    for name in growing:
        match name:
            case "whole":
                grows = np.sum(parts, axis=0)
            case "ventricle":
                places = transform_points(coarse.space_from_vox, np.moveaxis(np.indices(coarse.shape), 0, -1))
                grows = _third_ventricle(coarse_image, places)
            case side:
                of_side = [part * (label.hemisphere == side) for part, label in zip(parts, labels, strict=True)]
                grows = np.sum(of_side, axis=0)
        fields.append(_growth_field(grows, coarse.spacing_mm))
    return np.stack(fields)


def _growth_field(
    structure: Float[ndarray, "i j k"], spacing_mm: tuple[float, float, float]
) -> Float32[ndarray, "3 i j k"]:
    """Displacement in mm, along the array's axes, whose divergence is ``structure``.

    Parameters
    ----------
    structure
        Share of the structure in each voxel, 0 to 1; near zero at the edge of the array.
    spacing_mm
        Voxel sizes along its axes.

    Examples
    --------
    >>> ball = np.zeros((24, 24, 24))
    >>> ball[10:14, 10:14, 10:14] = 1.0
    >>> field = _growth_field(ball, (1.0, 1.0, 1.0))
    >>> slope = sum(np.gradient(field[axis], axis=axis) for axis in range(3))
    >>> bool(slope[11, 11, 11] > 0.6), bool(abs(slope[3, 3, 3]) < 0.01)
    (True, True)
    """
    shape = tuple(_PADDING * n for n in structure.shape)
    spectrum = np.fft.rfftn(structure, shape, axes=(0, 1, 2))
    steps = [np.fft.fftfreq(n, s) for n, s in zip(shape[:2], spacing_mm, strict=False)]
    steps.append(np.fft.rfftfreq(shape[2], spacing_mm[2]))
    waves = np.stack(np.meshgrid(*(2 * np.pi * step for step in steps), indexing="ij"))
    squares = (waves**2).sum(axis=0)
    squares[0, 0, 0] = np.inf  # the mean cannot grow in a periodic block; far from the structure it does not matter
    inside = tuple(slice(n) for n in structure.shape)
    fields = [np.fft.irfftn(-1j * wave / squares * spectrum, shape, axes=(0, 1, 2))[inside] for wave in waves]
    return np.stack(fields).astype(np.float32)


def _third_ventricle(image: Float[ndarray, "i j k"], acpc_mm: Float[ndarray, "i j k 3"]) -> Float[ndarray, "i j k"]:
    """Share of ventricular fluid in each voxel of an image in units of white matter."""
    fluid = 1 / (1 + np.exp((image - FLUID_LEVEL) / FLUID_WIDTH))
    within = ((acpc_mm > _VENTRICLE_LOW_MM) & (acpc_mm < _VENTRICLE_HIGH_MM)).all(axis=-1)
    return fluid * within


def _halved(volume: Float[ndarray, "i j k"]) -> Float[ndarray, "i//2 j//2 k//2"]:
    """Mean of every two voxels along each axis: growth fields are smooth enough for voxels of twice the size."""
    i, j, k = (n // 2 for n in volume.shape)
    return volume[: 2 * i, : 2 * j, : 2 * k].reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5), dtype=np.float32)


def _halved_grid(grid: Grid) -> Grid:
    """Where the voxels of ``_halved`` are."""
    matrix = grid.space_from_vox @ np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = grid.space_from_vox[:3, :3] @ (0.5, 0.5, 0.5) + grid.space_from_vox[:3, 3]
    i, j, k = (n // 2 for n in grid.shape)
    return Grid((i, j, k), matrix, grid.space)
