"""One simulated head, from a seed."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from hypodask.phantom.anatomy import Contrast
from hypodask.phantom.deformation import WARP_NODES, HeadMap
from hypodask.phantom.hypothalamus import SCALE_LIMITS, atrophy_field
from hypodask.phantom.imaging import acquire, as_scan, field_of_view, head_image, reordered
from hypodask.phantom.truth import Truth, measure_truth, template_icv_mm3
from hypodask.scan.scan import Scan

_STREAMS = ("pose", "shape", "contrast", "grid", "noise", "axes")


@dataclass(frozen=True)
class HeadOptions:
    """Ranges that a seed draws a head from, and the atrophy to impose.

    Raises
    ------
    ValueError
        If a value is outside what the phantom was built for.

    Examples
    --------
    >>> HeadOptions(hypothalamus_scale=0.9).hypothalamus_scale
    0.9
    """

    spacing_mm: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest voxel size, drawn for each axis on its own."""
    pitch_deg: float = 20.0
    """The head nods by at most this much either way."""
    roll_deg: float = 10.0
    """It tilts to a shoulder by at most this much."""
    yaw_deg: float = 10.0
    """It turns by at most this much."""
    shift_mm: float = 15.0
    """Its centre lies at most this far from the scanner's along each axis."""
    icv_mean_mm3: float = 1.5e6
    icv_sd_mm3: float = 0.13e6
    shape_sd: float = 0.03
    """SD of the relative stretch along each axis, volume kept."""
    warp_sd_mm: float = 1.0
    """SD of the smooth random displacement."""
    hypothalamus_scale: float = 1.0
    """Volume of the hypothalamus relative to what the rest of the head would give it: 0.9 is 10 % atrophy.
    CSF of the third ventricle and the cisterns beside it takes the space."""
    noise: float = 0.015
    """SD of the Rician noise relative to white matter."""
    bias: float = 0.08
    """SD of the logarithm of the smooth receive field."""
    blur_voxels: float = 0.5
    """SD of the point spread."""
    neck: bool = True
    """Whether the field of view reaches 45 mm below the intracranial volume or ends there."""
    any_axes: bool = True
    """Whether the array has one of the 48 orders and directions of axes, or R, A, S."""

    def __post_init__(self) -> None:
        low, high = self.spacing_mm
        if not 0.3 <= low <= high <= 8.0:
            raise ValueError(f"spacing_mm is {self.spacing_mm}; the phantom needs 0.3 <= low <= high <= 8 mm")
        if not SCALE_LIMITS[0] <= self.hypothalamus_scale <= SCALE_LIMITS[1]:
            raise ValueError(
                f"hypothalamus_scale is {self.hypothalamus_scale}; the local warp holds from {SCALE_LIMITS[0]} to "
                f"{SCALE_LIMITS[1]}: give a ratio of volumes such as 0.9"
            )


DEFAULT_OPTIONS = HeadOptions()


def simulate_head(seed: int, *, options: HeadOptions = DEFAULT_OPTIONS) -> tuple[Scan, Truth]:
    """A T1-weighted head in a random pose, with its commissures and volumes known.

    The same seed gives the same head. Pose, shape, contrast and noise are drawn from streams of their own,
    so heads that differ in one option differ in nothing else: atrophy can be imposed on one person.

    Parameters
    ----------
    seed
        Names the person, 0 or more.
    options
        Ranges to draw from, and the atrophy to impose.

    Returns
    -------
    scan
        int16 voxels and a NIfTI-1 header, as if read from a file.
    truth
        Landmarks in scanner space, mm, and volumes, mm3.

    Raises
    ------
    ModelError
        If the template's hypothalamus is not installed.

    Examples
    --------
    >>> scan, truth = simulate_head(1, options=HeadOptions(spacing_mm=(4.0, 4.0)))
    >>> bool(1.1e6 < truth.volume_mm3["icv"] < 1.9e6)
    True
    """
    head = draw_head_map(seed, options)
    x, y, z = _stream(seed, "grid").uniform(*options.spacing_mm, size=3).tolist()
    grid = field_of_view(head, (x, y, z), neck=options.neck)
    image = head_image(head, grid, _draw_contrast(_stream(seed, "contrast")))
    stored = acquire(
        image, _stream(seed, "noise"), noise=options.noise, bias=options.bias, blur_voxels=options.blur_voxels
    )
    if options.any_axes:
        stored, grid = reordered(stored, grid, _stream(seed, "axes"))
    return as_scan(stored, grid, f"phantom, seed {seed}"), measure_truth(head)


def _stream(seed: int, purpose: str) -> Generator:
    return np.random.default_rng([seed, _STREAMS.index(purpose)])


def draw_head_map(seed: int, options: HeadOptions) -> HeadMap:
    """The deformation of a person's head, before any image of it is simulated."""
    pose, shape = _draw_pose(_stream(seed, "pose"), options), _stream(seed, "shape")
    # Beyond 2.5 SD a head would not be an ordinary adult's.
    icv = options.icv_mean_mm3 + options.icv_sd_mm3 * np.clip(shape.standard_normal(), -2.5, 2.5)
    stretch = np.exp(options.shape_sd * shape.standard_normal(3))
    stretch *= (icv / template_icv_mm3() / stretch.prod()) ** (1 / 3)
    # A cubic B-spline of independent coefficients of SD 1 has an SD of 0.33.
    warp = (options.warp_sd_mm / 0.33) * shape.standard_normal((3, *WARP_NODES.shape))
    atrophy = 0.0 if options.hypothalamus_scale == 1 else atrophy_field().amount_for(options.hypothalamus_scale)
    mni_from_scanner = np.linalg.inv(pose @ np.diag([*stretch, 1.0]))
    return HeadMap(mni_from_scanner, warp.astype(np.float32), atrophy)


def _draw_pose(random: Generator, options: HeadOptions) -> Float[ndarray, "4 4"]:
    """Rigid move that takes a head's centre, 20 mm behind the MNI origin, near the scanner's."""
    angles = random.uniform(-1, 1, 3) * (options.pitch_deg, options.roll_deg, options.yaw_deg)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    pose[:3, 3] = random.uniform(-1, 1, 3) * options.shift_mm - pose[:3, :3] @ (0.0, -20.0, 0.0)
    return pose


def _draw_contrast(random: Generator) -> Contrast:
    return Contrast(
        gamma=random.uniform(0.85, 1.25),
        skull_mm=random.uniform(5.5, 7.5),
        fat_mm=random.uniform(3.0, 6.0),
        fat=random.uniform(0.95, 1.25),
        marrow=random.uniform(0.45, 0.8),
        muscle=random.uniform(0.33, 0.43),
    )
