"""The head around the brain: skull, scalp, face and neck, generated in template space.

The model of the head is one array of tissue codes, made once. The contrast of a head is a table from code to
brightness, so the thickness of the skull, fat and marrow differ between heads at the cost of one look-up.
Shapes and sizes are rounded from figures in anatomy textbooks and set by eye; none was measured.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt16
from numpy import ndarray
from scipy import ndimage

from hypodask.phantom.fields import Lattice, upsampled
from hypodask.phantom.intracranial import (
    BOX,
    COARSE_BOX,
    FORAMEN_MAGNUM_MM,
    Triple,
    ellipsoid_distance,
    skull_distance,
    smooth_union,
    template_brain,
)

_Tissue = Literal["air", "csf", "bone", "marrow", "fat", "muscle", "mucosa", "vitreous", "gland", "cord"]
_TISSUES: tuple[_Tissue, ...] = get_args(_Tissue)

_BRAIN_CODES = 256
"""Codes below are brightness levels of the template brain; 0 is air."""
_TISSUE_CODE = {tissue: _BRAIN_CODES + number for number, tissue in enumerate(_TISSUES)}
_SKULL_CODE = _BRAIN_CODES + len(_TISSUES)
"""First of the codes that say how deep in the skull a voxel is, from the inside, in steps of ``_STEP_MM``."""
_SKULL_MM = 10.0
_BASE_MM = 5.5
"""Thickness of bone at the base of the skull."""
_SKIN_CODE = _SKULL_CODE + 40
"""First of the codes that say how deep under the skin a voxel is, in steps of ``_STEP_MM``."""
_SKIN_MM = 8.0
_FLESH_CODE = _SKIN_CODE + 32
"""First of the codes of muscle with more and more fat in it."""
_N_FLESH = 16
_N_CODES = _FLESH_CODE + _N_FLESH
_STEP_MM = 0.25

_SCALP_MM = 14.0
"""From the inner surface of the skull to the skin of the calvaria, in the (enlarged) template."""


@dataclass(frozen=True)
class _Blob:
    """An ellipsoid of one tissue, MNI mm; with its mirror image when ``paired``."""

    tissue: _Tissue
    centre_mm: Triple
    radii_mm: Triple
    paired: bool = False


_OUTSIDE = (
    _Blob("muscle", (0, 40, -60), (64, 56, 66)),  # face
    _Blob("muscle", (0, 48, -108), (46, 48, 34)),  # jaw
    _Blob("muscle", (0, 96, -60), (13, 20, 21)),  # nose
    _Blob("muscle", (0, -30, -150), (64, 68, 145)),  # neck
    _Blob("muscle", (88, -24, -42), (5, 15, 26), paired=True),  # ears
)
"""Bodies whose union is the head below the calvaria."""

_INSIDE = (
    _Blob("bone", (0, 16, -44), (17, 19, 13)),  # sphenoid
    _Blob("marrow", (0, -12, -46), (9, 7, 15)),  # clivus
    _Blob("air", (8, 20, -44), (7, 12, 9), paired=True),  # sphenoid sinus
    _Blob("gland", (0, 3, -32), (6, 5, 4)),  # pituitary
    _Blob("air", (9, 79, -14), (8, 3, 9), paired=True),  # frontal sinus
    _Blob("fat", (31, 57, -34), (18, 25, 17), paired=True),  # orbit
    _Blob("muscle", (43, 54, -34), (2, 17, 5), paired=True),  # lateral rectus
    _Blob("muscle", (20, 54, -34), (2, 17, 5), paired=True),  # medial rectus
    _Blob("muscle", (31, 54, -22), (5, 17, 2), paired=True),  # superior rectus
    _Blob("muscle", (31, 54, -46), (5, 17, 2), paired=True),  # inferior rectus
    _Blob("cord", (24, 42, -33), (2.5, 18, 2.5), paired=True),  # optic nerve
    _Blob("vitreous", (32, 67, -34), (12.5, 12.5, 12.5), paired=True),
    _Blob("muscle", (32, 77, -34), (4.5, 2.2, 4.5), paired=True),  # lens
    _Blob("bone", (27, 56, -62), (16, 19, 18), paired=True),
    _Blob("air", (27, 56, -62), (14, 17, 16), paired=True),  # maxillary sinus
    _Blob("air", (0, 68, -62), (10, 32, 18)),  # nasal cavity
    _Blob("mucosa", (0, 68, -62), (1.2, 32, 18)),  # septum
    _Blob("mucosa", (6, 62, -68), (2.6, 22, 5), paired=True),  # lower turbinate
    _Blob("mucosa", (6, 60, -56), (2.2, 18, 4), paired=True),  # middle turbinate
    _Blob("bone", (0, 66, -82), (26, 24, 3)),  # palate
    _Blob("bone", (0, 76, -96), (27, 14, 10)),  # teeth
    _Blob("muscle", (0, 46, -100), (22, 32, 15)),  # tongue
    _Blob("bone", (40, 45, -108), (6, 34, 13), paired=True),
    _Blob("marrow", (40, 45, -108), (4, 31, 10), paired=True),  # mandible
    _Blob("bone", (0, 80, -122), (18, 7, 9)),
    _Blob("marrow", (0, 80, -122), (16, 4, 6)),  # chin
    _Blob("air", (0, 18, -76), (11, 12, 12)),  # nasopharynx
    _Blob("air", (0, 10, -120), (7, 5, 45)),  # pharynx
    *(_Blob("bone", (0, -14, z), (12, 11, 9)) for z in (-78, -94, -110, -126, -142, -158)),
    *(_Blob("marrow", (0, -14, z), (10, 9, 6.5)) for z in (-78, -94, -110, -126, -142, -158)),  # vertebrae
    *(_Blob("bone", (0, -64, z), (3, 14, 5)) for z in (-80, -98, -116, -134, -152)),  # spinous processes
)
"""What lies in the face and neck, painted in this order."""

_CANAL_CENTRE_MM = (0.0, -42.0, -120.0)
"""Spinal canal: an upright column from the medulla down."""


_CANAL_LAYERS: tuple[tuple[float, _Tissue], ...] = ((15.0, "bone"), (10.0, "csf"), (6.0, "cord"))
"""Radius of each layer from the outside in, mm."""


@lru_cache(maxsize=1)
def head_codes() -> UInt16[ndarray, "i j k"]:
    """_Tissue code of every node of :data:`~hypodask.phantom.intracranial.BOX`."""
    skull = upsampled(skull_distance(), BOX.shape)
    depth = upsampled(_skin_depth(), BOX.shape)
    codes = _flesh_and_skin(depth)
    _paint(codes, depth > 2.0, _INSIDE)
    _wrap_in_skull(codes, skull, depth < 1.2 * _SKIN_MM)
    _paint_spine(codes)
    brain = template_brain()
    below = BOX.axes_mm()[2] < FORAMEN_MAGNUM_MM
    codes[(skull <= 0) & ~below] = _TISSUE_CODE["csf"]
    np.copyto(codes, brain, where=brain > 0)
    return codes


@lru_cache(maxsize=1)
def _skin_depth() -> Float32[ndarray, "a b c"]:
    """Depth under the skin on :data:`~hypodask.phantom.intracranial.COARSE_BOX`, mm, negative in air."""
    # The scalp does not follow the gyri, which the inner surface of the skull here does a little.
    outside = ndimage.gaussian_filter(skull_distance(), 3.0) - np.float32(_SCALP_MM)
    for blob in _OUTSIDE:
        for centre in _centres(blob):
            outside = smooth_union(outside, ellipsoid_distance(COARSE_BOX, centre, blob.radii_mm), rounding_mm=12.0)
    return -outside


def _centres(blob: _Blob) -> list[Triple]:
    x, y, z = blob.centre_mm
    return [(x, y, z), (-x, y, z)] if blob.paired else [(x, y, z)]


def _flesh_and_skin(depth: Float32[ndarray, "i j k"]) -> UInt16[ndarray, "i j k"]:
    streaks = np.random.default_rng(152).standard_normal(COARSE_BOX.shape, dtype=np.float32)
    streaks = ndimage.gaussian_filter(streaks, (1.0, 1.5, 2.5))
    fat = upsampled(np.clip(streaks / streaks.std() - 0.6, 0, 1.5) / 1.5, BOX.shape)
    skin = _SKIN_CODE + np.maximum(depth, 0) / _STEP_MM
    flesh = _FLESH_CODE + np.minimum(fat * _N_FLESH, _N_FLESH - 1)
    codes = np.where(depth < _SKIN_MM, skin, flesh).astype(np.uint16)
    codes[depth <= 0] = 0
    return codes


def _wrap_in_skull(
    codes: UInt16[ndarray, "i j k"], distance: Float32[ndarray, "i j k"], near_skin: Bool[ndarray, "i j k"]
) -> None:
    # Under the scalp the codes run on to its fat; at the base muscle lies on the bone.
    reach = np.where(near_skin, _SKULL_MM, _BASE_MM)
    bone = (distance > 0) & (distance < reach) & (BOX.axes_mm()[2] > FORAMEN_MAGNUM_MM - 12)
    # Sinuses, orbits and the pituitary lie against the inner table; there only that is kept.
    painted = (codes < _SKULL_CODE) & (distance > 2.0)
    shell = bone & ~painted
    codes[shell] = _SKULL_CODE + (distance[shell] / _STEP_MM).astype(np.uint16)


def _paint(codes: UInt16[ndarray, "i j k"], deep: Bool[ndarray, "i j k"], blobs: tuple[_Blob, ...]) -> None:
    for blob in blobs:
        for centre in _centres(blob):
            room, lattice = _room(centre, blob.radii_mm)
            inside = (ellipsoid_distance(lattice, centre, blob.radii_mm) < 0) & deep[room]
            codes[room][inside] = _TISSUE_CODE[blob.tissue]


def _room(centre_mm: Triple, radii_mm: Triple) -> tuple[tuple[slice, ...], Lattice]:
    """The part of the box that holds an ellipsoid."""
    middle, reach = BOX.indices(np.array(centre_mm)), np.array(radii_mm) / BOX.step_mm
    first = np.clip(np.floor(middle - reach), 0, None).astype(int)
    last = np.minimum(np.ceil(middle + reach) + 1, BOX.shape).astype(int)
    x, y, z = (np.array(BOX.low_mm) + first * BOX.step_mm).tolist()
    i, j, k = (last - first).tolist()
    return tuple(slice(a, b) for a, b in zip(first, last, strict=True)), Lattice((x, y, z), BOX.step_mm, (i, j, k))


def _paint_spine(codes: UInt16[ndarray, "i j k"]) -> None:
    x, y, z = BOX.axes_mm()
    radius = np.hypot(x, (y - _CANAL_CENTRE_MM[1]) / 0.85)
    below = (z < FORAMEN_MAGNUM_MM) & (codes > 0)
    for limit, tissue in _CANAL_LAYERS:
        codes[(radius < limit) & below] = _TISSUE_CODE[tissue]


@dataclass(frozen=True)
class Contrast:
    """What differs between the brightness of one head and the next."""

    gamma: float = 1.0
    """Exponent on the brain's brightness: above 1 grey and white matter differ more."""
    skull_mm: float = 6.5
    """Thickness of the skull in the template."""
    fat_mm: float = 4.5
    """Subcutaneous fat in the template."""
    fat: float = 1.1
    """Brightness of fat; white matter is about 0.87."""
    marrow: float = 0.6
    muscle: float = 0.38

    def brightness(self) -> Float32[ndarray, " code"]:
        """Brightness of every code, 0 (air) to about 1."""
        csf = 0.27**self.gamma
        tissues: dict[_Tissue, float] = {
            "air": 0.0,
            "csf": csf,
            "bone": 0.07,
            "marrow": self.marrow,
            "fat": self.fat,
            "muscle": self.muscle,
            "mucosa": 0.5,
            "vitreous": 0.8 * csf,
            "gland": 0.62,
            "cord": 0.85**self.gamma,
        }
        brain = (np.arange(_BRAIN_CODES) / 255) ** self.gamma
        flesh = self.muscle + (self.fat - self.muscle) * np.linspace(0, 1, _N_FLESH)
        parts = [brain, np.array([tissues[name] for name in _TISSUES]), self._skull(), self._skin(), flesh]
        table: Float32[ndarray, " code"] = np.concatenate(parts).astype(np.float32)
        return table

    def _skull(self) -> Float[ndarray, " depth"]:
        """Inner table, diploe, outer table, then the scalp's fat."""
        depth = np.arange(_SKIN_CODE - _SKULL_CODE) * _STEP_MM
        corners = [0.0, 1.2, 2.4, self.skull_mm - 2.2, self.skull_mm - 1.2, self.skull_mm - 0.2, self.skull_mm + 0.6]
        profile: Float[ndarray, " depth"] = np.interp(
            depth, corners, [0.1, 0.06, 0.6 * self.marrow, 0.7 * self.marrow, 0.06, 0.08, self.fat]
        )
        return profile

    def _skin(self) -> Float[ndarray, " depth"]:
        depth = np.arange(_FLESH_CODE - _SKIN_CODE) * _STEP_MM
        corners = [0.0, 1.0, 1.8, self.fat_mm, self.fat_mm + 0.8]
        profile: Float[ndarray, " depth"] = np.interp(depth, corners, [0.3, 0.5, self.fat, self.fat, self.muscle])
        return profile
