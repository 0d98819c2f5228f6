"""The template's hypothalamus, and the warp that makes it smaller while the CSF beside it grows."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Real
from numpy import ndarray
from scipy import ndimage

from hypodask.core.errors import ModelError
from hypodask.core.structures import MAIN
from hypodask.phantom.fields import Lattice, sample
from hypodask.phantom.intracranial import BOX, COARSE_BOX, icv_distance, template_brain

_HYPOTHALAMUS_FILE = Path(__file__).parents[1] / "weights" / "hypothalamus_mni152.npz"

_TAIL = 0.01
"""Probability under which a voxel is not hypothalamus at all."""

ATROPHY_BOX = Lattice(low_mm=(-32.0, -36.0, -42.0), step_mm=1.0, shape=(65, 65, 65))
"""Where local atrophy moves anything, MNI mm: the hypothalamus in the middle, nothing moves at the faces."""

_CSF_LEVEL = 110.0
"""Template brightness (0-255) under which tissue is mostly CSF: between third ventricle (70) and grey matter (170)."""

_CSF_REACH_MM = 4.0
"""How far around the hypothalamus CSF gives way, as the SD of a Gaussian; chosen, not measured."""

SCALE_LIMITS = (0.6, 1.4)
"""Local volume changes within which the warp stays well away from folding (tested)."""


@dataclass(frozen=True, eq=False)
class TemplateHypothalamus:
    """Posteriors of both sides on a crop of the template's grid."""

    posteriors: Float32[ndarray, "2 i j k"]
    """Probability of left and of right, 0 to 1."""
    lattice: Lattice
    """Where the crop's voxels are, MNI mm."""

    def posterior(self, side: int, points_mm: Real[ndarray, "3 *n"]) -> Float32[ndarray, "*n"]:
        """Probability of the left (0) or right (1) hypothalamus at points of the template."""
        return sample(self.posteriors[side], self.lattice.indices(points_mm))


@lru_cache(maxsize=1)
def template_hypothalamus() -> TemplateHypothalamus:
    """The hypothalamus of the template, left and right, as shipped with hypodask.

    Raises
    ------
    ModelError
        If the file is absent or holds no such posteriors.
    """
    try:
        with np.load(_HYPOTHALAMUS_FILE) as file:
            posteriors, mni_from_vox = file["posteriors"], file["mni_from_vox"]
    except (OSError, KeyError, ValueError) as err:
        raise ModelError(
            f"{_HYPOTHALAMUS_FILE} could not be read ({err}); the phantom needs the template's {MAIN.name} from it, "
            "arrays 'posteriors' (2, i, j, k) and 'mni_from_vox' (4, 4); install hypodask again"
        ) from err
    scale = 255 if posteriors.dtype == np.uint8 else 1
    posteriors = posteriors.astype(np.float32) / np.float32(scale)
    # A network's posteriors have a thin tail everywhere, which is no tissue.
    posteriors[posteriors < _TAIL] = 0
    return TemplateHypothalamus(posteriors, _as_lattice(mni_from_vox, posteriors.shape[1:]))


def _as_lattice(mni_from_vox: Float[ndarray, "4 4"], shape: tuple[int, int, int]) -> Lattice:
    step = float(mni_from_vox[0, 0])
    if step <= 0 or not np.allclose(mni_from_vox[:3, :3], step * np.eye(3)):
        raise ModelError(
            f"the template's {MAIN.name} has axes {mni_from_vox[:3, :3].tolist()}; the phantom needs cubic voxels "
            "along +x, +y, +z; resample the posteriors to the template's grid"
        )
    x, y, z = mni_from_vox[:3, 3].tolist()
    return Lattice((x, y, z), step, shape)


@dataclass(frozen=True, eq=False)
class AtrophyField:
    """A displacement that pulls the surroundings into the hypothalamus, on :data:`ATROPHY_BOX`.

    ``point -> point + amount * displacement(point)`` says where in the template a shrunken head finds the
    tissue at ``point``. Its divergence is about 1 in the hypothalamus and negative in the CSF beside it.
    """

    displacement_mm: Float32[ndarray, "3 i j k"]
    amounts: Float[ndarray, "n"]
    scales: Float[ndarray, "n"]
    """Volume of the hypothalamus relative to the template's, measured at each of ``amounts``."""

    def amount_for(self, scale: float) -> float:
        """How much of the displacement makes the hypothalamus ``scale`` times its volume."""
        return float(np.interp(scale, self.scales[::-1], self.amounts[::-1]))

    def __call__(self, points_mm: Real[ndarray, "3 *n"]) -> Float32[ndarray, "3 *n"]:
        """Displacement at points of the template, mm; zero outside the box."""
        indices = ATROPHY_BOX.indices(points_mm)
        return np.stack([sample(component, indices) for component in self.displacement_mm])


@lru_cache(maxsize=1)
def atrophy_field() -> AtrophyField:
    """The displacement for the shipped hypothalamus, calibrated once per process."""
    displacement = _displacement_with_divergence(_tissue_exchange())
    amounts = np.linspace(-0.7, 0.8, 16)
    volumes = _volumes_after(AtrophyField(displacement, np.empty(0), np.empty(0)), amounts)
    return AtrophyField(displacement, amounts, volumes / np.interp(0.0, amounts, volumes))


def _tissue_exchange() -> Float[ndarray, "i j k"]:
    """Where volume goes (hypothalamus, positive) and where it comes from (CSF), summing to zero."""
    points = ATROPHY_BOX.points_mm()
    hypothalamus = template_hypothalamus().posterior(0, points) + template_hypothalamus().posterior(1, points)
    distance = ndimage.distance_transform_edt(hypothalamus < 0.5)
    csf = _csf(points) * (1 - hypothalamus) * np.exp(-((distance / _CSF_REACH_MM) ** 2) / 2)
    return ndimage.gaussian_filter(hypothalamus - csf * (hypothalamus.sum() / csf.sum()), 0.7)


def _csf(points_mm: Real[ndarray, "3 *n"]) -> Float32[ndarray, "*n"]:
    level = sample(template_brain(), BOX.indices(points_mm))
    inside = sample(icv_distance(), COARSE_BOX.indices(points_mm), outside=1.0) < 0
    csf: Float32[ndarray, "*n"] = np.clip((_CSF_LEVEL - level) / np.float32(30), 0, 1) * inside
    return csf


def _displacement_with_divergence(divergence: Float[ndarray, "i j k"]) -> Float32[ndarray, "3 i j k"]:
    """Gradient of the potential whose Laplacian is ``divergence``, faded out towards the faces."""
    waves = np.stack(np.meshgrid(*(2j * np.pi * np.fft.fftfreq(n) for n in divergence.shape), indexing="ij"))
    laplacian = (waves**2).sum(axis=0)
    laplacian[0, 0, 0] = 1
    gradient = np.fft.ifftn(waves * (np.fft.fftn(divergence) / laplacian), axes=(1, 2, 3)).real
    fade_i, fade_j, fade_k = (np.clip((n // 2 - np.abs(np.arange(n) - n // 2)) / 10, 0, 1) for n in divergence.shape)
    window = fade_i[:, None, None] * fade_j[:, None] * fade_k
    displacement: Float32[ndarray, "3 i j k"] = (gradient * window).astype(np.float32)
    return displacement


def _volumes_after(field: AtrophyField, amounts: Float[ndarray, "n"]) -> Float[ndarray, "n"]:
    """Volume of the hypothalamus after each amount of the warp, in voxels of half a millimetre."""
    box = Lattice(ATROPHY_BOX.low_mm, 0.5, (129, 129, 129))
    points = box.points_mm()
    hypothalamus = template_hypothalamus()
    both = hypothalamus.posterior(0, points) + hypothalamus.posterior(1, points)
    # Nothing moves by more than 2 mm, so nodes further away stay empty.
    nodes = points[:, ndimage.maximum_filter(both, 9) > 0]
    displacement = field(nodes)
    warped = (nodes + np.float32(amount) * displacement for amount in amounts)
    return np.array([sum(hypothalamus.posterior(side, places).sum() for side in (0, 1)) for places in warped])
