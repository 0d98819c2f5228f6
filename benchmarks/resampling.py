# SimpleITK comes without annotations.
# mypy: disable-error-code="no-untyped-call"
"""Resampling against scipy and SimpleITK, side by side; kernels compiled for a cohort of mixed sizes."""

from collections.abc import Callable
from statistics import median
from time import process_time

import jax
import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own documentation's name
from numpy import ndarray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hypodask import phantom
from hypodask.core.grid import Grid, slab_grid
from hypodask.image.resampling import interpolate, low_pass, resample

TURNS = 3
"""How often each of those compared has its turn."""

SCANS = 20
"""Scans of different sizes that one process treats."""

COMPILED = "/jax/core/compile/backend_compile_duration"

CUBES = ((2.0, 80), (4.0, 80), (10.0, 32))
"""Spacing in mm and voxels a side of what alignment looks at."""


def head(spacing_mm: float) -> tuple[ndarray, Grid]:
    """A simulated head of about 220 x 210 x 170 mm, tilted, with cubic voxels of this size, RAS."""
    scan, _ = phantom.simulate_head(7)
    shape = np.ceil(np.array(scan.grid.extent_mm) / spacing_mm).astype(int)
    matrix = scan.grid.space_from_vox @ np.diag([*(np.array(scan.grid.extent_mm) / shape / scan.grid.spacing_mm), 1.0])
    grid = Grid(tuple(shape.tolist()), matrix, "scanner")
    return right_handed(resample(scan.data, scan.grid, grid, order=3), grid)


def right_handed(data: ndarray, grid: Grid) -> tuple[ndarray, Grid]:
    """The same voxels with the first axis turned round if need be, which is all that SimpleITK takes."""
    if np.linalg.det(grid.space_from_vox) > 0:
        return data, grid
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[0, 3] = grid.shape[0] - 1
    return data[::-1], Grid(grid.shape, grid.space_from_vox @ turned, grid.space)


def pose_of(grid: Grid) -> ndarray:
    """``acpc_from_scanner`` of a head whose commissures are in the middle of the field, nodding and turned."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", [12, 5, -4], degrees=True).as_matrix()
    pose[:3, 3] = -pose[:3, :3] @ grid.centre_mm
    return pose


def ours(data: ndarray, grid: Grid) -> Callable[[], ndarray]:
    """The slab as the pipeline makes it."""
    return lambda: resample(data, grid, slab_grid(), onto_from_grid=pose_of(grid), order=3)


def scipys(data: ndarray, grid: Grid) -> Callable[[], ndarray]:
    """The slab as a user of scipy makes it, prefilter included."""
    onto = slab_grid()
    vox_from_slab = np.linalg.inv(pose_of(grid) @ grid.space_from_vox) @ onto.space_from_vox
    return lambda: ndimage.affine_transform(
        data, vox_from_slab, output_shape=onto.shape, output=np.float32, order=3, mode="grid-constant"
    )


def simpleitks(data: ndarray, grid: Grid) -> Callable[[], ndarray]:
    """The slab as a user of SimpleITK makes it, on one thread."""
    onto = slab_grid()
    image, wanted = placed(sitk.GetImageFromArray(data.T), grid.space_from_vox), sitk.ResampleImageFilter()
    wanted.SetReferenceImage(
        placed(sitk.Image(*onto.shape, sitk.sitkUInt8), np.linalg.inv(pose_of(grid)) @ onto.space_from_vox)
    )
    wanted.SetInterpolator(sitk.sitkBSpline3)
    wanted.SetNumberOfThreads(1)
    return lambda: sitk.GetArrayFromImage(wanted.Execute(image)).T


def placed(image: sitk.Image, space_from_vox: ndarray) -> sitk.Image:
    """With its voxels there; SimpleITK's LPS would only turn both images alike."""
    spacing = np.linalg.norm(space_from_vox[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(space_from_vox[:3, 3].tolist())
    image.SetDirection((space_from_vox[:3, :3] / spacing).ravel().tolist())
    return image


def times_faster(run: Callable[[], ndarray], than: Callable[[], ndarray]) -> float:
    """Median ratio of the processor time of two ways, which take turns.

    Time is that of all threads of the process together, so it is what one core needs, however many there are and
    whatever else they do.
    """
    run()
    return median(seconds(than) / seconds(run) for _ in range(TURNS))


def seconds(run: Callable[[], ndarray]) -> float:
    """Processor time of one call."""
    start = process_time()
    run()
    return process_time() - start


class Slab:
    """A simulated head, about 220 x 210 x 170 mm in voxels of 1 or 0.7 mm, onto the slab of 512 x 50 x 512 voxels.

    Cubic B-spline. Compiled before the clock starts.
    """

    params = (1.0, 0.7)
    param_names = ("voxel size, mm",)
    timeout = 600

    def setup_cache(self) -> dict[float, tuple[ndarray, Grid]]:
        """The heads, made once."""
        return {spacing_mm: head(spacing_mm) for spacing_mm in self.params}

    def setup(self, heads: dict[float, tuple[ndarray, Grid]], spacing_mm: float) -> None:
        """Compile."""
        self.head = heads[spacing_mm]
        self.run = ours(*self.head)
        self.run()

    def time_slab(self, heads: dict[float, tuple[ndarray, Grid]], spacing_mm: float) -> None:
        """Wall-clock time of one call, on as many cores as there are."""
        self.run()

    def peakmem_slab(self, heads: dict[float, tuple[ndarray, Grid]], spacing_mm: float) -> None:
        """Peak memory of the process: interpreter, libraries and the compilation included; the slab itself is 52 MB."""
        self.run()

    def track_times_faster_than_scipy(self, heads: dict[float, tuple[ndarray, Grid]], spacing_mm: float) -> float:
        """Against ``scipy.ndimage.affine_transform`` of order 3."""
        return times_faster(self.run, scipys(*self.head))

    def track_times_faster_than_simpleitk(self, heads: dict[float, tuple[ndarray, Grid]], spacing_mm: float) -> float:
        """Against ``SimpleITK.ResampleImageFilter`` with ``sitkBSpline3``."""
        return times_faster(self.run, simpleitks(*self.head))

    def track_deviation_percent(self, heads: dict[float, tuple[ndarray, Grid]], spacing_mm: float) -> float:
        """Root mean square of the difference from scipy's slab, in percent of white matter (98th percentile)."""
        difference = self.run() - scipys(*self.head)()
        return float(100 * np.sqrt((difference**2).mean()) / np.percentile(self.head[0], 98))


class Cube:
    """A head of 256 x 256 x 256 voxels of 1 mm onto the cubes that alignment looks at; trilinear, low-pass included."""

    params = (CUBES,)
    param_names = ("spacing in mm, voxels a side",)

    def setup(self, cube: tuple[float, int]) -> None:
        """Compile."""
        self.grid = Grid((256, 256, 256), np.eye(4), "scanner")
        self.data = np.asfortranarray(np.random.default_rng(0).random(self.grid.shape, np.float32))
        self.onto = centred_cube(self.grid, *cube)
        self.time_cube(cube)

    def time_cube(self, cube: tuple[float, int]) -> None:
        """Wall-clock time of one call, on as many cores as there are."""
        resample(self.data, self.grid, self.onto)


def centred_cube(grid: Grid, spacing_mm: float, size: int) -> Grid:
    """A cube of voxels along the scanner's axes in the middle of the field."""
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = grid.centre_mm - spacing_mm * (size - 1) / 2
    return Grid((size,) * 3, matrix, "scanner")


class Compilations:
    """Kernels compiled by one process that treats 20 scans of 120 to 320 voxels a side, 0.7 to 1.3 mm, any tilt."""

    timeout = 300
    unit = "kernels"

    def track_slab(self) -> int:
        """Onto the slab, cubic."""
        return self._compiled(lambda data, grid: ours(data, grid)())

    def track_cubes(self) -> int:
        """Onto the three cubes of alignment, trilinear, the two coarse ones from one thinned volume."""
        return self._compiled(onto_cubes)

    def _compiled(self, treat: Callable[[ndarray, Grid], object]) -> int:
        compiled: list[float] = []

        def note(event: str, duration_secs: float, **_: str | int) -> None:
            if event == COMPILED:
                compiled.append(duration_secs)

        jax.monitoring.register_event_duration_secs_listener(note)
        for seed in range(SCANS):
            grid = any_grid(seed)
            treat(np.broadcast_to(np.float32(1), grid.shape), grid)
        jax.monitoring.unregister_event_duration_listener(note)
        return len(compiled)


def onto_cubes(data: ndarray, grid: Grid) -> None:
    """What alignment asks of a scan."""
    near, medium, coarse = (centred_cube(grid, *cube) for cube in CUBES)
    resample(data, grid, near)
    thinned, thin_grid = low_pass(data, grid, medium.spacing_mm[0])
    interpolate(thinned, thin_grid, medium)
    resample(thinned, thin_grid, coarse)


def any_grid(seed: int) -> Grid:
    """Voxels of 0.7 to 1.3 mm that fill 160 to 256 mm a side, tilted by up to 20 degrees about each axis."""
    random = np.random.default_rng(seed)
    spacing_mm = random.uniform(0.7, 1.3)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", random.uniform(-20, 20, 3), degrees=True).as_matrix() * spacing_mm
    return Grid(tuple((random.uniform(160, 256, 3) / spacing_mm).astype(int).tolist()), matrix, "scanner")
