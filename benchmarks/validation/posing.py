"""Heads whose commissures are known, put into any pose and scanned again.

A pose is made with one interpolation (cubic B-spline) of the original onto a grid such as a scanner would have:
a box along the acquisition's axes that covers the head. What the original never saw is 0, as air is.
"""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial.transform import Rotation

import hypodask
from hypodask.alignment import Alignment
from hypodask.core.grid import Grid, transform_points
from hypodask.scan import Scan
from hypodask.scan.template import MNI152

COLIN, MNI = "colin27", "mni2009c"
IMAGES = {COLIN: "scans/colin27_ch2.nii.gz", MNI: "template/tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"}
FIDUCIALS = {COLIN: "landmarks/tpl-Colin27_afids.fcsv", MNI: "landmarks/tpl-MNI152NLin2009cAsym_afids.fcsv"}
FIDUCIALS_OFFSET_MM = {COLIN: (0.0, 1.0, 1.0), MNI: (0.0, 0.0, 0.0)}
"""From the frame of the fiducials to that of the image: Colin27's differ by one voxel."""

MIDLINE = ("AC", "PC", "infracollicular sulcus", "PMJ", "superior interpeduncular fossa", "culmen")
MIDLINE += ("intermammillary sulcus", "pineal gland", "genu of CC", "splenium of CC")
"""AFIDs that lie in the midsagittal plane; the others come in pairs, named ``R ...`` and ``L ...``."""

AXES = tuple(product(permutations(range(3)), product((1, -1), repeat=3)))
"""The 48 orders and directions of three axes."""

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


@dataclass(frozen=True, eq=False)
class Head:
    """One scan, and where its commissures are."""

    name: str
    data: ndarray
    """Intensities, white matter 1."""
    grid: Grid
    acpc_from_scanner: ndarray
    """AC at the origin, midsagittal plane x = 0, y along the AC-PC line in that plane."""
    ac_mm: ndarray
    pc_mm: ndarray
    surface_mm: ndarray
    """Points all over the head."""
    midline_from_scanner: ndarray | None = None
    """As ``acpc_from_scanner``, its plane fitted to structures of the midline alone; for published heads."""
    brain: ndarray | None = None
    """Mask of the brain on the same voxels, where one is known."""


@dataclass(frozen=True)
class Pose:
    """How a head is put into the scanner and imaged."""

    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    yaw_deg: float = 0.0
    """Turns about x, y and z, in this order, of a head that looks straight ahead (or as it was scanned)."""
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    oblique_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Turns of the acquisition's grid."""
    axes: int = 0
    """Number of the order and direction of the array's axes, 0 to 47."""
    noise: float = 0.0
    """SD of the Rician noise, relative to white matter."""
    bias: float = 0.0
    """Largest departure of the receive field from 1."""
    gamma: float = 1.0
    cut: bool = False
    """Whether the field of view ends just below the brain."""
    stripped: bool = False
    """Whether only the brain is left."""
    seed: int = 0
    """Of margins, bias field, noise and gain."""

    def row(self) -> dict[str, object]:
        """One column for each number."""
        columns: dict[str, object] = {}
        for name, value in asdict(self).items():
            if isinstance(value, tuple):
                stem, _, unit = name.rpartition("_")
                columns |= {f"{stem}_{axis}_{unit}": round(v, 3) for axis, v in zip("xyz", value, strict=True)}
            else:
                columns[name] = round(value, 4) if isinstance(value, float) else value
        return columns


@dataclass(frozen=True)
class Ranges:
    """What poses are drawn from."""

    pitch_deg: float = 35.0
    roll_deg: float = 15.0
    yaw_deg: float = 15.0
    shift_mm: float = 40.0
    spacing: tuple[float, float] = (0.7, 1.5)
    """Lowest and highest voxel size, relative to the original's."""
    oblique_deg: float = 20.0
    """In half the poses; in the other half the grid lies along the scanner's axes (or the original's)."""
    noise: float = 0.05
    bias: float = 0.30
    gamma: tuple[float, float] = (0.75, 1.3)
    cut: float = 0.5
    stripped: float = 0.1
    """Shares of the poses, where the brain is known."""


MILD = Ranges(
    pitch_deg=15.0,
    roll_deg=10.0,
    yaw_deg=10.0,
    shift_mm=20.0,
    spacing=(0.9, 1.2),
    oblique_deg=10.0,
    noise=0.0,
    bias=0.0,
    gamma=(1.0, 1.0),
    cut=0.0,
    stripped=0.0,
)
"""Where what is asked is not the pose, and for real scans, whose pose must not change the answer."""


def draw_pose(head: Head, ranges: Ranges, seed: int) -> Pose:
    """A pose of a head; the same seed gives the same pose."""
    random = np.random.default_rng([seed, *head.name.encode()])
    angles = random.uniform(-1, 1, 3) * (ranges.pitch_deg, ranges.roll_deg, ranges.yaw_deg)
    oblique = random.uniform(-1, 1, 3) * ranges.oblique_deg * (random.random() < 0.5)
    shift = random.uniform(-1, 1, 3) * ranges.shift_mm
    spacing = random.uniform(*ranges.spacing, 3) * head.grid.spacing_mm
    known = head.brain is not None
    return Pose(
        *angles.tolist(),
        shift_mm=tuple(shift.tolist()),
        spacing_mm=tuple(spacing.tolist()),
        oblique_deg=tuple(oblique.tolist()),
        axes=int(random.integers(len(AXES))),
        noise=random.uniform(0, ranges.noise),
        bias=random.uniform(0, ranges.bias),
        gamma=random.uniform(*ranges.gamma),
        cut=bool(known & (random.random() < ranges.cut)),
        stripped=bool(known & (random.random() < ranges.stripped)),
        seed=seed,
    )


def repose(head: Head, pose: Pose) -> tuple[Scan, ndarray]:
    """The scan of a head in a pose, int16, and ``moved_from_scanner``: the rigid move that led there."""
    random = np.random.default_rng([pose.seed, 1])
    moved_from_scanner = _move(head, pose)
    grid = _field_of_view(head, pose, moved_from_scanner, random)
    data = head.data * head.brain if pose.stripped and head.brain is not None else head.data
    image = _interpolated(data, head.grid.moved(moved_from_scanner, "scanner"), grid)
    stored, grid = reordered(acquired(image, pose, random), grid, pose.axes)
    return Scan(stored, grid, source=f"{head.name} re-posed, seed {pose.seed}"), moved_from_scanner


def _move(head: Head, pose: Pose) -> ndarray:
    """Turn about the AC: from the frame of the commissures if it is known, or else from the pose it was scanned in."""
    turn, back = np.eye(4), np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (pose.pitch_deg, pose.roll_deg, pose.yaw_deg), degrees=True).as_matrix()
    turn[:3, 3] = pose.shift_mm
    back[:3, 3] = -head.ac_mm
    return turn @ (head.acpc_from_scanner if head.name in IMAGES else back)


def _field_of_view(head: Head, pose: Pose, moved_from_scanner: ndarray, random: Generator) -> Grid:
    """A box along the acquisition's axes with 2 to 15 mm of air on each side."""
    matrix = np.array(head.grid.space_from_vox[:3, :3]) / head.grid.spacing_mm
    directions = Rotation.from_euler("xyz", pose.oblique_deg, degrees=True).as_matrix() @ matrix
    along = transform_points(moved_from_scanner, head.surface_mm) @ directions
    low, high = along.min(axis=0) - random.uniform(2, 15, 3), along.max(axis=0) + random.uniform(2, 15, 3)
    if pose.cut and head.brain is not None:
        places = transform_points(head.grid.space_from_vox, np.argwhere(head.brain[::3, ::3, ::3]) * 3)
        low[2] = (transform_points(moved_from_scanner, places) @ directions)[:, 2].min() - random.uniform(2, 10)
    shape = np.ceil((high - low) / pose.spacing_mm).astype(int)
    scanner_from_vox = np.eye(4)
    scanner_from_vox[:3, :3] = directions * pose.spacing_mm
    scanner_from_vox[:3, 3] = directions @ (low + np.array(pose.spacing_mm) / 2)
    return Grid(tuple(shape.tolist()), scanner_from_vox, "scanner")


def _interpolated(data: ndarray, grid: Grid, onto: Grid) -> ndarray:
    """Cubic B-spline, after a low-pass for what the wanted voxels are coarser; its width is that along the old axes."""
    vox_from_onto = np.linalg.inv(grid.space_from_vox) @ onto.space_from_vox
    # A wanted voxel's Gaussian, in old voxels: the diagonal of its covariance, less that of the old voxel.
    variance = (vox_from_onto[:3, :3] ** 2).sum(axis=1) - 1
    smooth = ndimage.gaussian_filter(data, FWHM_TO_SIGMA * np.sqrt(np.maximum(variance, 0)), mode="nearest")
    return ndimage.affine_transform(
        smooth, vox_from_onto, output_shape=onto.shape, output=np.float32, order=3, mode="constant"
    )


def acquired(image: ndarray, pose: Pose, random: Generator) -> ndarray:
    """Contrast, receive field, Rician noise and gain of an image whose white matter is 1; int16."""
    image = np.maximum(image, 0.0) ** np.float32(pose.gamma)
    if pose.bias:
        image *= 1 + np.float32(pose.bias) * _smooth_field(image.shape, random)
    if pose.noise:
        real = image + np.float32(pose.noise) * random.standard_normal(image.shape, dtype=np.float32)
        image = np.hypot(real, np.float32(pose.noise) * random.standard_normal(image.shape, dtype=np.float32))
    # Gain and ceiling leave fat and vessels, several times brighter than white matter, below the end of int16.
    gain = np.float32(random.uniform(300, 3000))
    return np.rint(np.minimum(gain * image, 32_000)).astype(np.int16)


def _smooth_field(shape: tuple[int, ...], random: Generator) -> ndarray:
    """A sum of low cosines between -1 and 1."""
    waves = [np.cos(np.pi * np.outer(np.arange(3), np.linspace(0, 1, n))).astype(np.float32) for n in shape]
    weights = random.standard_normal((3, 3, 3)).astype(np.float32)
    weights[0, 0, 0] = 0
    field = np.einsum("abc,ai,bj,ck->ijk", weights, *waves, optimize=True)
    return field / np.abs(field).max()


def reordered(image: ndarray, grid: Grid, axes: int) -> tuple[ndarray, Grid]:
    """The same voxels in the same places, the array's axes in another order and direction."""
    order, directions = AXES[axes]
    moves = np.array([[order.index(old), directions[order.index(old)]] for old in range(3)])
    turned = nib.orientations.apply_orientation(image, moves)
    matrix = grid.space_from_vox @ nib.orientations.inv_ornt_aff(moves, image.shape)
    return np.asfortranarray(turned), Grid(turned.shape, matrix, grid.space)


@lru_cache(maxsize=2)
def published_head(folder: Path, name: str) -> Head:
    """Colin27 or MNI2009c with the landmarks of several raters (AFIDs; Lau et al., Hum Brain Mapp 2019)."""
    scan = hypodask.read_scan(folder / IMAGES[name])
    table = pd.read_csv(folder / "landmarks/acpc.tsv", sep="\t").set_index(["image", "landmark"])
    ac, pc = (table.loc[(IMAGES[name], landmark)].to_numpy(float) for landmark in ("AC", "PC"))
    points = midline_points(folder, name)
    head = _head(name, scan, plane_frame(ac, pc, points), ac, pc)
    midline = plane_frame(ac, pc, points[: len(MIDLINE)])
    return replace(head, midline_from_scanner=midline, brain=_mni_brain(scan.grid) if name == MNI else None)


def real_head(path: Path, alignment: Alignment | None = None) -> Head:
    """A scan whose commissures are known from an alignment only, or, without one, not at all."""
    scan = hypodask.read_scan(path)
    if alignment is None:
        centre = transform_points(scan.grid.space_from_vox, (np.array(scan.grid.shape) - 1) / 2)
        return _head(path.name.split(".")[0], scan, np.eye(4), centre, centre)
    return _head(path.name.split(".")[0], scan, alignment.acpc_from_scanner, alignment.ac_mm, alignment.pc_mm)


def _head(name: str, scan: Scan, acpc_from_scanner: ndarray, ac_mm: ndarray, pc_mm: ndarray) -> Head:
    surface = _surface(scan)
    data = scan.data / _white(scan, ac_mm)
    return Head(name, data, scan.grid, acpc_from_scanner, ac_mm, pc_mm, surface)


def _white(scan: Scan, centre_mm: ndarray) -> float:
    """Intensity of white matter: the 90th percentile within 45 mm of a point in the brain."""
    vox = transform_points(np.linalg.inv(scan.grid.space_from_vox), centre_mm)
    reach = 45 / np.array(scan.grid.spacing_mm)
    low, high = np.maximum(vox - reach, 0).astype(int), np.maximum(vox + reach, 1).astype(int)
    return float(np.percentile(scan.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], 90))


def _surface(scan: Scan) -> ndarray:
    """Points about 4 mm apart all over the head, mm: the largest thing that is not dark."""
    steps = np.maximum(1, np.round(4 / np.array(scan.grid.spacing_mm))).astype(int)
    thin = scan.data[tuple(slice(None, None, step) for step in steps)]
    bright = ndimage.binary_opening(thin > 0.25 * np.percentile(thin[thin > thin.mean()], 75))
    parts, _ = ndimage.label(bright)
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    return transform_points(scan.grid.space_from_vox, np.argwhere(parts == largest) * steps)


def _mni_brain(grid: Grid) -> ndarray:
    """The brain of MNI152 2009a on the voxels of 2009c: two averages of the same heads."""
    brain = MNI152.brain
    vox_from_grid = np.linalg.inv(brain.grid.space_from_vox) @ grid.space_from_vox
    mask = (brain.data > 0.2).astype(np.float32)
    return ndimage.affine_transform(mask, vox_from_grid, output_shape=grid.shape, order=1) > 0.5


def midline_points(folder: Path, name: str) -> ndarray:
    """Fiducials in the midsagittal plane, then the midpoints of pairs, mm, in the frame of the image.

    The two do not agree: Colin27's ventricles are not symmetric, and the plane through the midpoints of its pairs is
    rolled by 1.1 degrees against that through its midline, whose own points span only 32 mm of height.
    """
    table = pd.read_csv(folder / FIDUCIALS[name], comment="#", header=None)
    places = {row[12]: np.array([row[1], row[2], row[3]], float) for row in table.itertuples(index=False)}
    pairs = [label[2:] for label in places if label.startswith("R ")]
    points = [places[label] for label in MIDLINE]
    points += [(places[f"R {label}"] + places[f"L {label}"]) / 2 for label in pairs]
    return np.array(points) + FIDUCIALS_OFFSET_MM[name]


def plane_frame(ac_mm: ndarray, pc_mm: ndarray, midline_mm: ndarray) -> ndarray:
    """``acpc_from_scanner``: x normal to the plane through the midline, y along the AC-PC line within that plane."""
    normal = np.linalg.svd(midline_mm - midline_mm.mean(axis=0))[2][2]
    right = normal * np.sign(normal[0])
    return frame(ac_mm, pc_mm, right)


def frame(ac_mm: ndarray, pc_mm: ndarray, right: ndarray) -> ndarray:
    """``acpc_from_scanner`` of the commissures and a normal of the midsagittal plane, which is kept."""
    right = right / np.linalg.norm(right)
    anterior = (ac_mm - pc_mm) - right * ((ac_mm - pc_mm) @ right)
    anterior /= np.linalg.norm(anterior)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, anterior, np.cross(right, anterior)])
    matrix[:3, 3] = -matrix[:3, :3] @ ac_mm
    return matrix


def tilt_deg(true_from_found: ndarray) -> tuple[float, float, float]:
    """Pitch, roll and yaw, signed degrees, by which a found frame is turned against the true one.

    Pitch and yaw are those of its AC-PC line about x and z, roll that of its midsagittal plane about y.
    """
    right, anterior = true_from_found[:3, 0], true_from_found[:3, 1]
    pitch, yaw = np.arctan2(anterior[2], anterior[1]), np.arctan2(-anterior[0], anterior[1])
    roll = np.arctan2(-right[2], right[0])
    return float(np.degrees(pitch)), float(np.degrees(roll)), float(np.degrees(yaw))
