"""Failures planted into scans whose pose is known, and into segmentations: what a quality score has to catch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hypodask.core.grid import Grid, transform_points
from hypodask.scan import Scan
from hypodask.segmentation import Segmentation


@dataclass(frozen=True, eq=False)
class Subject:
    """A sound scan and what its sound run says of it."""

    scan: Scan
    acpc_from_scanner: Float[ndarray, "4 4"]
    cavity: Bool[ndarray, "i j k"]
    """The cranial cavity on the scan's voxels."""

    @property
    def white(self) -> float:
        """Intensity of white matter, roughly."""
        return float(np.percentile(self.scan.data[self.cavity], 85))

    @property
    def places_mm(self) -> Float[ndarray, "i j k 3"]:
        """AC-PC coordinates of every voxel."""
        acpc_from_vox = self.acpc_from_scanner @ self.scan.grid.space_from_vox
        return transform_points(acpc_from_vox, np.moveaxis(np.indices(self.scan.grid.shape), 0, -1))

    def array_axis(self, world: int) -> tuple[int, int]:
        """The array axis that runs along an axis of AC-PC space, and its direction."""
        directions = (self.acpc_from_scanner @ self.scan.grid.space_from_vox)[world, :3] / self.scan.grid.spacing_mm
        axis = int(np.abs(directions).argmax())
        return axis, int(np.sign(directions[axis]))


def as_scan(data: Float[ndarray, "i j k"], grid: Grid, source: str) -> Scan:
    """Intensities as a scanner would store them."""
    return Scan(np.asfortranarray(np.clip(np.rint(data), -32768, 32767).astype(np.int16)), grid, source=source)


def undisturbed(subject: Subject, random: Generator) -> Scan:
    """The scan as it is."""
    return subject.scan


def flipped(subject: Subject, random: Generator) -> Scan:
    """A header that takes left for right."""
    mirrored = np.diag([-1.0, 1.0, 1.0, 1.0]) @ subject.scan.grid.space_from_vox
    return replace(subject.scan, grid=Grid(subject.scan.grid.shape, mirrored, "scanner"))


def wrong_voxel_size(subject: Subject, random: Generator) -> Scan:
    """A header whose voxels are 15 to 25 % too long or too short along one axis."""
    matrix, axis = np.array(subject.scan.grid.space_from_vox), int(random.integers(3))
    factor = random.uniform(1.15, 1.25)
    matrix[:3, axis] *= factor if random.uniform() < 0.5 else 1 / factor
    return replace(subject.scan, grid=Grid(subject.scan.grid.shape, matrix, "scanner"))


def wrong_axes(subject: Subject, random: Generator) -> Scan:
    """A header that turns the head by 90 degrees about one axis."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz"[random.integers(3)], random.choice([-90, 90]), degrees=True).as_matrix()
    centre = subject.scan.grid.centre_mm
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return replace(subject.scan, grid=subject.scan.grid.moved(turn, "scanner"))


def cropped(subject: Subject, random: Generator) -> Scan:
    """A field of view that ends in the hypothalamus: 4 to 9 mm below, or 3 to 8 mm behind the AC."""
    below = random.uniform() < 0.5
    world, place = (2, -random.uniform(4, 9)) if below else (1, -random.uniform(3, 8))
    axis, direction = subject.array_axis(world)
    keep = _beyond(subject, axis, world, place)
    part = slice(keep, None) if direction > 0 else slice(None, keep + 1)
    return _kept(subject.scan, axis, part)


def _beyond(subject: Subject, axis: int, world: int, place_mm: float) -> int:
    """Index along an array axis of the place, on the line through the AC."""
    at = np.zeros(3)
    at[world] = place_mm
    vox_from_acpc = np.linalg.inv(subject.acpc_from_scanner @ subject.scan.grid.space_from_vox)
    return round(float(transform_points(vox_from_acpc, at)[axis]))


def _kept(scan: Scan, axis: int, part: slice) -> Scan:
    parts = [slice(None)] * 3
    parts[axis] = part
    stored, matrix = scan.stored[tuple(parts)], np.array(scan.grid.space_from_vox)
    matrix[:3, 3] += matrix[:3, axis] * (part.start or 0)
    return replace(scan, stored=np.asfortranarray(stored), grid=Grid(stored.shape, matrix, "scanner"))


def moved_in_the_scanner(subject: Subject, random: Generator) -> Scan:
    """Motion: in 30 to 45 % of the phase-encoding lines the head was turned by 4 to 8 degrees and shifted by 3 to 6 mm.

    The lines come in bursts of six, one of them next to the middle of k-space.
    """
    data, axis = subject.scan.data, subject.array_axis(int(random.integers(1, 3)))[0]
    moved = _nodded(subject, random)
    lines = data.shape[axis]
    burst = np.repeat(random.uniform(size=lines // 6 + 1), 6)[:lines] < random.uniform(0.30, 0.45)
    burst[1:7] = True
    spectrum = np.where(
        np.moveaxis(burst[:, None, None], 0, axis), np.fft.fft(moved, axis=axis), np.fft.fft(data, axis=axis)
    )
    return as_scan(np.abs(np.fft.ifft(spectrum, axis=axis)), subject.scan.grid, subject.scan.source)


def _nodded(subject: Subject, random: Generator) -> Float[ndarray, "i j k"]:
    """The head turned and shifted, on the same voxels."""
    grid = subject.scan.grid
    turn = np.eye(4)
    axis = random.standard_normal(3)
    angle = random.uniform(4, 8) * axis / np.linalg.norm(axis)
    turn[:3, :3] = Rotation.from_rotvec(angle, degrees=True).as_matrix()
    centre, shift = grid.centre_mm, random.standard_normal(3)
    turn[:3, 3] = centre - turn[:3, :3] @ centre + random.uniform(3, 6) * shift / np.linalg.norm(shift)
    vox = np.linalg.inv(grid.space_from_vox) @ turn @ grid.space_from_vox
    return ndimage.affine_transform(subject.scan.data, vox, order=1)


def half_missing(subject: Subject, random: Generator) -> Scan:
    """Signal of one side lost from 0 to 6 mm beside the midline on."""
    side, from_mm = random.choice([-1, 1]), random.uniform(0, 6)
    x = subject.places_mm[..., 0] * side
    kept = 0.03 + 0.97 / (1 + np.exp(np.clip((x - from_mm) / 1.0, -50, 50)))
    return as_scan(subject.scan.data * kept, subject.scan.grid, subject.scan.source)


def bright_fluid(subject: Subject, random: Generator) -> Scan:
    """A contrast in which fluid is as bright as grey matter or brighter, so that outlines leak into it."""
    level = random.uniform(0.6, 0.9) * subject.white
    data = subject.scan.data.copy()
    inside = ndimage.binary_dilation(subject.cavity, iterations=2)
    # What is darker than grey matter becomes as bright as the fluid should be, the darker the more.
    dark = inside & (data < 0.55 * subject.white)
    data[dark] = level - 0.2 * data[dark]
    return as_scan(data, subject.scan.grid, subject.scan.source)


def noisy(subject: Subject, random: Generator) -> Scan:
    """Rician noise of 12 to 20 % of white matter."""
    sigma = random.uniform(0.12, 0.20) * subject.white
    real, imaginary = sigma * random.standard_normal((2, *subject.scan.data.shape), dtype=np.float32)
    return as_scan(np.hypot(subject.scan.data + real, imaginary), subject.scan.grid, subject.scan.source)


def blurred(subject: Subject, random: Generator) -> Scan:
    """Resolution lost: a point spread of 5 to 7 mm full width at half maximum."""
    sigma_mm = random.uniform(5, 7) / np.sqrt(8 * np.log(2))
    data = ndimage.gaussian_filter(subject.scan.data, sigma_mm / np.array(subject.scan.grid.spacing_mm))
    return as_scan(data, subject.scan.grid, subject.scan.source)


def shaded_across(subject: Subject, random: Generator) -> Scan:
    """A smooth shading from left to right, by a factor of 1.5 over the head; it moves no volume by more than 1 %."""
    slope = random.choice([-1, 1]) * np.log(1.5) / _HEAD_MM
    return as_scan(
        subject.scan.data * np.exp(slope * subject.places_mm[..., 0]), subject.scan.grid, subject.scan.source
    )


def shaded_inwards(subject: Subject, random: Generator) -> Scan:
    """The shading of a surface coil: by a factor of 2 from the centre of the brain to the surface."""
    radius = np.linalg.norm(subject.places_mm - (0.0, -18.0, 12.0), axis=-1) / (_HEAD_MM / 2)
    field = np.exp(np.log(2) * np.minimum(radius, 1.2))
    return as_scan(subject.scan.data * field, subject.scan.grid, subject.scan.source)


_HEAD_MM = 150.0
"""Width of a head."""

UNDISTURBED = "undisturbed"

FAILURES: dict[str, Callable[[Subject, Generator], Scan]] = {
    UNDISTURBED: undisturbed,
    "left-right flip": flipped,
    "wrong voxel size": wrong_voxel_size,
    "wrong axes": wrong_axes,
    "cropped": cropped,
    "motion": moved_in_the_scanner,
    "half missing": half_missing,
    "bright fluid": bright_fluid,
    "heavy noise": noisy,
    "blur": blurred,
}
"""What is done to a scan, by name."""

HARMLESS: dict[str, Callable[[Subject, Generator], Scan]] = {
    "shading, left to right": shaded_across,
    "shading, centre to surface": shaded_inwards,
}
"""What is done to a scan and should not lower its quality, since it moves no volume."""


# --- Segmentations that lack a part ----------------------------------------------------------------------------------


def lacking(found: Segmentation, gone: Bool[ndarray, "i j k"], labels: slice = slice(None)) -> Segmentation:
    """The segmentation without some voxels of some labels, which become background."""
    posteriors = found.posteriors.copy()
    posteriors[1:][labels, gone] = 0
    posteriors[0] = 1 - posteriors[1:].sum(axis=0)
    members = found.member_wholes
    kept = (posteriors[0] < 0.5) | (found.posteriors[0] > 0.5)
    return replace(found, posteriors=posteriors, member_wholes=None if members is None else members * kept)


def ends_early(found: Segmentation, axis: int, direction: int, share: float) -> Segmentation:
    """Without the share of the volume that lies furthest along an axis of AC-PC space (x, y, z: 0, 1, 2)."""
    voxels = np.moveaxis(np.indices(found.grid.shape), 0, -1)
    at = direction * transform_points(found.grid.space_from_vox, voxels)[..., axis]
    whole = 1 - found.posteriors[0]
    order = np.argsort(at, axis=None)
    below = np.cumsum(whole.ravel()[order], dtype=np.float64) / whole.sum(dtype=np.float64)
    return lacking(found, at > at.ravel()[order[np.searchsorted(below, 1 - share)]])


def ends_early_somewhere(axis: int, direction: int) -> Callable[[Segmentation, Generator], Segmentation]:
    """A third to a half of the volume missing at one end."""
    return lambda found, random: ends_early(found, axis, direction, random.uniform(0.33, 0.5))


def one_side_missing(found: Segmentation, random: Generator) -> Segmentation:
    """One side missing, or more than half of it: all of its voxels behind a place that half of it is in front of."""
    side = str(random.choice(["left", "right"]))
    own = found.side_posterior(side) > 0.5  # type: ignore[arg-type]
    y = transform_points(found.grid.space_from_vox, np.moveaxis(np.indices(found.grid.shape), 0, -1))[..., 1]
    mine = found.side_posterior(side) > found.side_posterior("right" if side == "left" else "left")  # type: ignore[arg-type]
    return lacking(found, mine & (y < np.quantile(y[own], random.choice([1.0, 0.55]))))


def subunit_missing(found: Segmentation, random: Generator) -> Segmentation:
    """One subunit missing on one side."""
    label = int(random.integers(len(found.labels)))
    return lacking(found, np.ones(found.grid.shape, bool), slice(label, label + 1))


MISSING: dict[str, Callable[[Segmentation, Generator], Segmentation]] = {
    "back": ends_early_somewhere(1, -1),
    "front": ends_early_somewhere(1, 1),
    "bottom": ends_early_somewhere(2, -1),
    "top": ends_early_somewhere(2, 1),
    "one side": one_side_missing,
    "one subunit of one side": subunit_missing,
}
"""What is taken out of a segmentation, by name."""
