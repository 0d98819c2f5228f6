"""Changes of a scan that must not matter, or that the result must follow, as a table.

Every change is one record of :data:`CHANGES`: what is done to a scan, and what is expected of the result. Only public
names of hypodask are used, so that the same table measures other versions too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy import ndarray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hypodask import Grid, Scan

UNCHANGED = "unchanged"

SIZES = tuple(round(0.88 + 0.02 * step, 2) for step in range(13))
"""Factors of the voxel size for which a scan is aligned; 1.0 is the unchanged scan."""

MEASURED_SIZES = (0.88, 0.94, 1.0, 1.06, 1.12)
"""Factors for which its volumes are measured too."""

EXPONENTS = (0.98, 1.02)
"""Expected exponent of a volume over the cube of the factor, over all sizes of one scan."""

COMMISSURE_MM = 0.4
"""How far AC and PC may move when only the description of the same voxels changes."""

SIDES_PERCENT = 1.0
"""How much the right half of a mirrored scan may differ from the left half of the scan."""

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))

COARSE_MM = 4.0
"""About the voxel size at which the head is outlined for smooth fields."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A scan before a change, and what changes need to know of it."""

    scan: Scan
    icv: ndarray | None = None
    """Its ICV mask as hypodask finds it in the unchanged scan; None where it is refused or only aligned."""

    @property
    def data(self) -> ndarray:
        """Intensities, float32."""
        return self.scan.data

    @cached_property
    def foreground(self) -> ndarray:
        """Mask of what is not air: above 0.3 of the median of the voxels above the mean."""
        bright = self.data[self.data > self.data.mean()]
        return self.data > 0.3 * np.median(bright)

    @cached_property
    def air(self) -> float:
        """Intensity of air: the median of the background."""
        return float(np.median(self.data[~self.foreground]))

    @cached_property
    def white(self) -> float:
        """Intensity of white matter above air: the 90th percentile in the ICV.

        Where no ICV is known, roughly: the 75th percentile of the foreground. Only the strength of the noise depends
        on it.
        """
        inside, percentile = (self.foreground, 75) if self.icv is None else (self.icv, 90)
        return float(np.percentile(self.data[inside], percentile)) - self.air

    def with_data(self, data: ndarray) -> Scan:
        """The scan with other intensities on the same voxels, float32."""
        return self.with_voxels(data.astype(np.float32), self.scan.grid)

    def with_voxels(self, stored: ndarray, grid: Grid, slope: float = 1.0, intercept: float = 0.0) -> Scan:
        """The scan with other voxels."""
        return replace(self.scan, stored=np.asfortranarray(stored), grid=grid, slope=slope, intercept=intercept)

    def with_grid(self, moved_from_scanner: ndarray) -> Scan:
        """The scan with another affine in its header."""
        return replace(self.scan, grid=self.scan.grid.moved(moved_from_scanner, "scanner"))


@dataclass(frozen=True)
class Change:
    """One change, and what is expected of the result."""

    name: str
    group: str
    """Changes of one kind; ``--only`` takes names and groups, and the pages show groups."""
    apply: Callable[[Subject], Scan]
    percent: float | None = None
    """How much the volume of hypothalamus and ICV may differ; None where :data:`EXPONENTS` say it (sizes)."""
    move: Callable[[Grid], ndarray] | None = None
    """``moved_from_scanner`` of the anatomy; None where it stays where it is."""
    within_mm: float | None = None
    """How far AC and PC, carried back to the unchanged scan, may lie from where they were; None: only reported."""
    volume_factor: float = 1.0
    """By how much volumes must grow."""
    swaps_sides: bool = False
    """Whether left and right exchange their places."""
    may_refuse: bool = False
    """Whether a refusal with its reason is as good as the same volumes."""
    icv_may_be_missing: bool = False
    """Whether no ICV and a warning that says why is as good as the same ICV."""
    is_measured: bool = True
    """Whether volumes are asked for; otherwise the scan is only aligned."""
    needs_icv: bool = False
    """Whether it uses the ICV mask of the unchanged scan."""

    @property
    def goal(self) -> str:
        """What is expected, in words."""
        low, high = EXPONENTS
        volume = f"exponent {low}-{high}" if self.percent is None else f"{self.percent:g} %"
        words = [volume] if self.is_measured else ["aligned"]
        words += [f"{self.within_mm:g} mm"] if self.within_mm is not None else []
        return ", ".join(words) + (", or refused" if self.may_refuse else "")


def about_centre(linear: ndarray, shift_mm: tuple[float, float, float], grid: Grid) -> ndarray:
    """``moved_from_scanner`` of a linear map about the centre of the field of view, then a shift."""
    moved = np.eye(4)
    moved[:3, :3] = linear
    moved[:3, 3] = grid.centre_mm - linear @ grid.centre_mm + shift_mm
    return moved


def lateral_axis(grid: Grid) -> int:
    """The array axis that runs most nearly from left to right."""
    return int(np.abs(grid.space_from_vox[0, :3] / grid.spacing_mm).argmax())


def mirrored(subject: Subject) -> Scan:
    """The array flipped from left to right, the affine kept."""
    grid = subject.scan.grid
    return subject.with_voxels(np.flip(subject.scan.stored, lateral_axis(grid)), grid)


def reflection(grid: Grid) -> ndarray:
    """Where :func:`mirrored` puts the anatomy."""
    axis, flip = lateral_axis(grid), np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, grid.shape[axis] - 1
    return grid.space_from_vox @ flip @ np.linalg.inv(grid.space_from_vox)


def reordered(order: tuple[int, int, int], flipped: tuple[int, ...], subject: Subject) -> Scan:
    """The same voxels in the same places: array axes in another order, some of the new axes reversed."""
    stored, grid = subject.scan.stored, subject.scan.grid
    old_from_new = np.zeros((4, 4))
    old_from_new[3, 3] = 1
    for new, old in enumerate(order):
        sign = -1 if new in flipped else 1
        old_from_new[old, new] = sign
        old_from_new[old, 3] = stored.shape[old] - 1 if sign < 0 else 0
    voxels = np.flip(stored.transpose(order), flipped)
    return subject.with_voxels(voxels, Grid(voxels.shape, grid.space_from_vox @ old_from_new, "scanner"))


def padded(voxels: int, subject: Subject) -> Scan:
    """Air on every side."""
    scan = subject.scan
    air = np.median(scan.stored[~subject.foreground]).astype(scan.stored.dtype)
    first = np.full(3, -voxels)
    wider = tuple(n + 2 * voxels for n in scan.grid.shape)
    stored = np.pad(scan.stored, voxels, constant_values=air)
    return subject.with_voxels(stored, scan.grid.block(first, wider), scan.slope, scan.intercept)


def cropped(subject: Subject) -> Scan:
    """Without the air around the head: the box of its largest part, and 2 voxels on each side."""
    scan = subject.scan
    parts, _ = ndimage.label(ndimage.binary_opening(subject.foreground))
    largest = np.bincount(parts.ravel())[1:].argmax()
    box = ndimage.find_objects(parts)[largest]
    first = np.array([max(side.start - 2, 0) for side in box])
    last = np.array([min(side.stop + 2, n) for side, n in zip(box, scan.grid.shape, strict=True)])
    part = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    stored = scan.stored[part]
    return subject.with_voxels(stored, scan.grid.block(first, stored.shape), scan.slope, scan.intercept)


def shifted(share: float, subject: Subject) -> Scan:
    """A share of the mean of the foreground added to every voxel; nothing is clipped."""
    return subject.with_data(subject.data + np.float32(share * subject.data[subject.foreground].mean()))


def z_scored(subject: Subject) -> Scan:
    """Mean 0 and SD 1 over the whole image."""
    return subject.with_data((subject.data - subject.data.mean()) / subject.data.std())


def centred(subject: Subject) -> Scan:
    """From -0.5 to 0.5."""
    low, high = subject.data.min(), subject.data.max()
    return subject.with_data((subject.data - low) / (high - low) - np.float32(0.5))


def contrast(gamma: float, subject: Subject) -> Scan:
    """A power of the intensities above air, relative to their 99th percentile in the foreground."""
    above = np.maximum(subject.data - subject.air, 0)
    top = np.percentile(above[subject.foreground], 99)
    return subject.with_data(top * (above / top) ** gamma + subject.air)


def noisy(share: float, subject: Subject) -> Scan:
    """Complex Gaussian noise whose SD is a share of white matter; the magnitude, as a scanner stores it."""
    random = np.random.default_rng(5)
    sd, shape = share * subject.white, subject.data.shape
    real = subject.data + sd * random.standard_normal(shape, np.float32)
    return subject.with_data(np.hypot(real, sd * random.standard_normal(shape, np.float32)))


def shaded(factor: float, subject: Subject) -> Scan:
    """The right of the head brighter than its left by a factor, smoothly."""
    grid = subject.scan.grid
    i, j, k = (np.arange(n, dtype=np.float32) for n in grid.shape)
    along_i, along_j, along_k = grid.space_from_vox[0, :3].astype(np.float32)
    x_mm = along_i * i[:, None, None] + along_j * j[:, None] + along_k * k
    low, high = np.percentile(x_mm[subject.foreground], (1, 99))
    across = np.clip((x_mm - (low + high) / 2) / (high - low), -0.5, 0.5)
    return subject.with_data(subject.data * np.float32(factor) ** across)


def shaded_by_coil(factor: float, subject: Subject) -> Scan:
    """The surface of the head brighter than its centre by a factor, smoothly, as a surface coil makes it."""
    grid = subject.scan.grid
    steps = np.maximum(1, np.round(COARSE_MM / np.array(grid.spacing_mm))).astype(int)
    sampling = steps * grid.spacing_mm
    thin = subject.foreground[tuple(slice(None, None, step) for step in steps)]
    head = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(thin, 4), iterations=3)[4:-4, 4:-4, 4:-4])
    depth = ndimage.distance_transform_edt(head, sampling=sampling)
    middle = np.unravel_index(depth.argmax(), depth.shape)
    offsets = [(np.arange(n) - m) * s for n, m, s in zip(depth.shape, middle, sampling, strict=True)]
    reach = np.sqrt(offsets[0][:, None, None] ** 2 + offsets[1][:, None] ** 2 + offsets[2] ** 2)
    outward = ndimage.gaussian_filter(reach / (reach + depth + 1e-6), 8 / sampling, mode="nearest")
    low, high = outward[head].min(), outward[head].max()
    where = [np.minimum(np.arange(n) / step, m - 1) for n, step, m in zip(grid.shape, steps, depth.shape, strict=True)]
    field = np.clip((outward - low) / (high - low), 0, 1)
    for axis, places in enumerate(where):
        field = interpolated(field, places, axis)
    return subject.with_data(subject.data * np.float32(factor) ** field.astype(np.float32))


def interpolated(values: ndarray, places: ndarray, axis: int) -> ndarray:
    """Linear interpolation along one axis."""
    low = np.minimum(np.floor(places).astype(int), values.shape[axis] - 1)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = (places - low).reshape([-1 if other == axis else 1 for other in range(values.ndim)])
    return values.take(low, axis) * (1 - share) + values.take(high, axis) * share


def resampled(spacing_mm: float, subject: Subject) -> Scan:
    """Larger voxels along every axis that has smaller ones: a Gaussian low pass, then a cubic B-spline."""
    grid = subject.scan.grid
    ratio = np.maximum(spacing_mm / np.array(grid.spacing_mm), 1)
    smooth = ndimage.gaussian_filter(subject.data, FWHM_TO_SIGMA * np.sqrt(ratio**2 - 1), mode="nearest")
    shape = tuple(int(n) for n in np.floor(np.array(grid.shape) / ratio))
    first = (ratio - 1) / 2
    image = ndimage.affine_transform(smooth, ratio, first, shape, np.float32, order=3, mode="nearest")
    old_from_new = np.diag([*ratio, 1.0])
    old_from_new[:3, 3] = first
    return subject.with_voxels(
        np.maximum(image, subject.data.min()), Grid(shape, grid.space_from_vox @ old_from_new, "scanner")
    )


def stored_as(kind: str, top_percentile: float, subject: Subject) -> Scan:
    """Whole numbers of a kind with slope and intercept; what is brighter than a percentile is cut."""
    low, high = float(subject.data.min()), float(np.percentile(subject.data, top_percentile))
    slope = (high - low) / np.iinfo(kind).max
    stored = np.rint((np.minimum(subject.data, high) - low) / slope).astype(kind)
    return subject.with_voxels(stored, subject.scan.grid, slope, low)


def stripped(margin_mm: float, subject: Subject) -> Scan:
    """0 outside the ICV mask of the unchanged scan, or beyond a margin around it."""
    assert subject.icv is not None
    distance = ndimage.distance_transform_edt(~subject.icv, sampling=subject.scan.grid.spacing_mm)
    return subject.with_data(np.where(distance <= margin_mm, subject.data, 0))


def _size(factor: float) -> Change:
    move = partial(about_centre, factor * np.eye(3), (0.0, 0.0, 0.0))
    return Change(
        f"size-{factor:.2f}",
        "size" if factor in MEASURED_SIZES else "size-aligned",
        lambda subject: subject.with_grid(move(subject.scan.grid)),
        move=move,
        within_mm=COMMISSURE_MM,
        volume_factor=factor**3,
        is_measured=factor in MEASURED_SIZES,
    )


def _pose(name: str, angles_deg: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> Change:
    turn = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    move = partial(about_centre, turn, shift_mm)
    return Change(
        f"pose-{name}",
        "pose",
        lambda subject: subject.with_grid(move(subject.scan.grid)),
        0.3,
        move=move,
        within_mm=COMMISSURE_MM,
    )


def _axes(name: str, order: tuple[int, int, int], flipped: tuple[int, ...]) -> Change:
    return Change(f"axes-{name}", "axes", partial(reordered, order, flipped), 0.1, within_mm=COMMISSURE_MM)


def _shifted(share: float) -> Change:
    return Change(f"offset{share:+.2f}", "offset", partial(shifted, share), 0.5, may_refuse=True)


_TABLE = (
    Change(UNCHANGED, UNCHANGED, lambda subject: subject.scan, 0.0),
    *(_size(factor) for factor in MEASURED_SIZES if factor != 1.0),
    *(_shifted(share) for share in (-0.25, 0.25, -0.5, 0.5)),
    Change("z-scored", "z-scored", z_scored, 0.5, may_refuse=True),
    Change("centred", "centred", centred, 0.5, may_refuse=True),
    Change("mirrored", "mirrored", mirrored, 0.1, move=reflection, within_mm=COMMISSURE_MM, swaps_sides=True),
    *(
        Change(f"padded-{voxels}", "padded", partial(padded, voxels), 0.1, within_mm=COMMISSURE_MM)
        for voxels in (1, 2, 3, 20)
    ),
    Change("coil-4", "coil", partial(shaded_by_coil, 4.0), 1.0),
    Change("stripped", "stripped", partial(stripped, 0.0), 1.0, needs_icv=True, icv_may_be_missing=True),
    Change("stripped-3mm", "stripped-3mm", partial(stripped, 3.0), 1.0, needs_icv=True, icv_may_be_missing=True),
    Change("gamma-0.75", "gamma", partial(contrast, 0.75), 1.0),
    Change("gamma-1.3", "gamma", partial(contrast, 1.3), 1.0),
    Change("noise-5", "noise", partial(noisy, 0.05), 1.0),
    Change("shaded-1.5", "shaded", partial(shaded, 1.5), 1.0),
    Change("2mm", "resampled", partial(resampled, 2.0), 3.0),
    Change("cropped", "cropped", cropped, 0.1, within_mm=COMMISSURE_MM),
    Change("8-bit", "bits", partial(stored_as, "uint8", 99.9), 0.1, within_mm=COMMISSURE_MM),
    Change("16-bit", "bits", partial(stored_as, "int16", 100.0), 0.1, within_mm=COMMISSURE_MM),
    _axes("jki", (1, 2, 0), ()),
    _axes("kij-i", (2, 0, 1), (0,)),
    _axes("ikj", (0, 2, 1), ()),
    _axes("ijk-ijk", (0, 1, 2), (0, 1, 2)),
    _pose("nod", (25.0, 0.0, 5.0), (0.0, 30.0, -25.0)),
    _pose("turn", (12.0, -6.0, 8.0), (15.0, -20.0, 30.0)),
    _pose("tilt", (-12.0, 10.0, -10.0), (-20.0, 10.0, 5.0)),
    *(_size(factor) for factor in SIZES if factor not in MEASURED_SIZES),
)

CHANGES: dict[str, Change] = {change.name: change for change in _TABLE}
"""Every change by name, in the order in which a scan gets them; the unchanged scan comes first."""

GROUPS = tuple(dict.fromkeys(change.group for change in _TABLE))
