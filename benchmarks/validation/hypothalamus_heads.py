"""Real heads with their consensus, the network that did not learn from each, and the published network.

The consensus of many runs of the published network (``hypodask.learning.teacher``) stands in for the truth:
pseudo-labels of another tool, not manual outlines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial.transform import Rotation

import hypodask
from benchmarks.validation.posing import Head, real_head, tilt_deg
from hypodask.alignment import Alignment
from hypodask.core.errors import HypodaskError, SegmentationError
from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS
from hypodask.image.resampling import resample
from hypodask.learning.training_box import training_grid
from hypodask.scan import Scan
from hypodask.segmentation import Network, Segmentation, load_network
from hypodask.segmentation.volumes import LEAST_MM3, measure
from recipes.hypothalamus import HYPOTHALAMUS_GEOMETRY, hypothalamus_head

LEARNT = ("scans/*", "scans_stripped/*")
"""Heads that the recipe learns from; each must be measured with a network that did not."""

UNSURE = ("visualqc_id001_orig",)
"""Heads among them whose consensus is unsure; the recipe does not learn from them."""

OTHERS = ("scans_thick/*.nii.gz", "template/*.nii.gz")
"""Heads that no network learnt from."""

COARSE = ("scans_2mm/*.nii.gz",)
"""As many of these as time allows: a consensus takes two minutes, and the published network is unsure of most."""

WHOLE = "hypothalamus"

ALL_OF_IT, KNOWN_POSE, PUBLISHED = "hypodask", "network in a known pose", "published network"
"""Who measures: alignment and network; the network alone; one run of the published network, as published."""

VOLUMES = ("soft_mm3", "outline_mm3")
"""Columns of the volumes of the whole."""

ALIGNMENT_ERROR_MM, ALIGNMENT_ERROR_DEG = 0.5, 0.7
"""Of the alignment on real scans; a known pose is shifted and turned by as much in a random direction."""

USUAL_PC_MM = (0.0, -26.4, 0.0)
"""PC of a pose of which only the frame was kept; no network looks at it."""


@dataclass(frozen=True)
class Effort:
    """How much is measured on each head."""

    cases: int
    """Poses or draws."""
    teacher: int
    """How many of them the published network sees; it takes ten times as long."""


@dataclass(frozen=True)
class Study:
    """Where scans, consensus and networks are."""

    data: Path
    work: Path
    """The consensus of each head is in ``work/hypothalamus``, runs without some heads in
    ``work/hypothalamus-without-*``."""
    weights: str
    """Network for heads that no run left out: name of a shipped one, or path."""
    use_folds: bool = False

    @cached_property
    def folds(self) -> dict[str, Path]:
        """Weights that did not learn from a head, by the head's name."""
        files = sorted(self.work.glob("hypothalamus-without-*/held-out.json")) if self.use_folds else []
        return {
            name: file.with_name("hypothalamus.safetensors") for file in files for name in json.loads(file.read_text())
        }

    @property
    def teacher_weights(self) -> Path:
        """Of the published network."""
        return next((self.data / "models").glob("*.h5"))

    def paths(self, patterns: tuple[str, ...]) -> list[Path]:
        """Scans below the data folder."""
        return [path for pattern in patterns for path in sorted(self.data.glob(pattern))]

    def real_head(self, path: Path) -> "RealHead":
        """One head with everything known about it."""
        name = path.name.split(".")[0]
        kept = hypothalamus_head(path, self.teacher_weights, self.work / "hypothalamus")
        truth = kept["truth"].astype(np.float32)
        posteriors = np.concatenate([1 - truth.sum(0, keepdims=True), truth])
        return RealHead(
            name=name,
            folder=path.parent.name,
            head=real_head(path, known(kept["pose"])),
            scan=hypodask.read_scan(path),
            image=kept["image"],
            consensus=Segmentation(
                posteriors, training_grid(HYPOTHALAMUS_GEOMETRY, float(kept["head_size"])), HYPOTHALAMUS
            ),
            run_volumes_mm3=kept["volumes"] * float(kept["head_size"]) ** 3,
            network=load_network(self.folds.get(name, self.weights)),
            teacher=load_network(self.teacher_weights),
            held_out=name in self.folds or path.parent.name not in {pattern.split("/")[0] for pattern in LEARNT},
        )


@dataclass(frozen=True, eq=False)
class RealHead:
    """A scan, its consensus, and who is to outline it."""

    name: str
    folder: str
    head: Head
    """As intensities with white matter 1, to be posed and degraded; its pose is that of the consensus."""
    scan: Scan
    image: ndarray
    """The scan on the grid of the consensus."""
    consensus: Segmentation
    run_volumes_mm3: ndarray
    """Of the runs that the consensus is made from, those included that it leaves out."""
    network: Network
    teacher: Network
    held_out: bool
    """Whether the network did not learn from this head."""

    @property
    def pose(self) -> ndarray:
        """``acpc_from_scanner`` of the consensus."""
        return self.head.acpc_from_scanner

    def row(self) -> dict[str, object]:
        """Columns that say whose row it is."""
        return {"head": self.name, "folder": self.folder, "network": self.network.name, "held_out": self.held_out}


def known(acpc_from_scanner: ndarray) -> Alignment:
    """A pose that need not be looked for."""
    ac_mm, pc_mm = transform_points(np.linalg.inv(acpc_from_scanner), np.array([(0.0, 0.0, 0.0), USUAL_PC_MM]))
    return Alignment(acpc_from_scanner, ac_mm, pc_mm, np.eye(4), score=np.nan, flagged=False, source="landmarks")


def erring(acpc_from_scanner: ndarray, random: Generator) -> ndarray:
    """A pose that is off by the usual error, in a random direction and about a random axis through the AC."""
    shift, axis = (v / np.linalg.norm(v) for v in random.standard_normal((2, 3)))
    error = np.eye(4)
    error[:3, :3] = Rotation.from_rotvec(ALIGNMENT_ERROR_DEG * axis, degrees=True).as_matrix()
    error[:3, 3] = ALIGNMENT_ERROR_MM * shift
    return error @ acpc_from_scanner


def measured(network: Network, scan: Scan, alignment: Alignment) -> dict[str, object]:
    """Volumes of the whole by one network, as columns."""
    try:
        return {"failed": "", **volumes_of(network.segment(scan, alignment))}
    except SegmentationError as err:
        return {"failed": str(err)}


def volumes_of(segmentation: Segmentation) -> dict[str, float]:
    """Volumes of the whole: posteriors summed, and voxels that are more likely in it than not."""
    soft = measure(segmentation).soft_mm3[WHOLE]
    # Not by the most probable of ten subunits: where three meet, none may beat the background that they beat together.
    pieces, _ = ndimage.label(segmentation.posteriors[0] < 0.5, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())[1:] * segmentation.grid.voxel_volume_mm3
    return {"soft_mm3": round(soft, 2), "outline_mm3": round(float(sizes[sizes > LEAST_MM3].sum()), 2)}


def measured_in_known_pose(
    real: RealHead, scan: Scan, pose: ndarray, *, with_teacher: bool
) -> Iterator[dict[str, object]]:
    """Volumes of one scan by the network and, if wanted, by one run of the published one as published."""
    yield {"method": KNOWN_POSE, **measured(real.network, scan, known(pose))}
    if with_teacher:
        yield {"method": PUBLISHED, **measured(real.teacher, scan, known(pose))}


def measured_by_all_of_it(real: RealHead, scan: Scan, true_pose: ndarray) -> dict[str, object]:
    """Volumes of one scan whose pose has to be found, and how far the pose found is from the true one."""
    row: dict[str, object] = {"method": ALL_OF_IT}
    try:
        alignment = hypodask.align(scan)
    except HypodaskError as err:
        return {**row, "failed": str(err)}
    off_mm = np.linalg.norm(transform_points(true_pose, alignment.ac_mm))
    pitch_deg, *_ = tilt_deg(true_pose @ np.linalg.inv(alignment.acpc_from_scanner))
    row |= {
        "flagged": bool(alignment.flagged),
        "ac_off_mm": round(float(off_mm), 3),
        "pitch_off_deg": round(pitch_deg, 3),
    }
    return {**row, **measured(real.network, scan, alignment)}


def whole_on(segmentation: Segmentation, onto: Grid, acpc_from_scanner: ndarray) -> ndarray:
    """Posterior of the whole hypothalamus on a grid in AC-PC space; 0 where the network did not look."""
    whole = 1 - segmentation.posteriors[0]
    moved = acpc_from_scanner if segmentation.grid.space == "scanner" else np.eye(4)
    return resample(np.asarray(whole, np.float32), segmentation.grid, onto, onto_from_grid=moved)
