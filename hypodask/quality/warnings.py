"""Sentences for the column ``warnings``: what to know before trusting the volumes of a scan."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from scipy import ndimage

from hypodask.alignment.pose import Alignment
from hypodask.core.grid import slab_grid
from hypodask.core.structures import HEAD_SIZE, STRUCTURES, title_of
from hypodask.quality.score import Quality
from hypodask.scan.scan import Scan
from hypodask.segmentation.volumes import Volumes, faces_reached

_STRIPPED_SHARE = 0.05
"""The skull has been stripped if there is less tissue than this outside the ICV mask, relative to the mask."""

_TISSUE_LEVEL = 0.15
"""Tissue is brighter than this, relative to the median inside the ICV mask."""

_UNSEEN_SHARE = 0.01
"""There is a warning if more of the intracranial volume than this lies outside the field of view."""


def scan_warnings(
    scan: Scan,
    alignment: Alignment,
    volumes: Mapping[str, Volumes],
    volume_mm3: Mapping[str, float],
    label_maps: Mapping[str, UInt8[ndarray, "i j k"]],
    quality: Quality,
) -> tuple[str, ...]:
    """All warnings of one scan: of its file, its pose, its volumes, its field of view and its quality, in this order.

    Parameters
    ----------
    scan, alignment
        The scan and its pose.
    volumes, label_maps
        Of each structure: its cleaned posteriors and volumes, and its label map on the voxels of the scan.
    volume_mm3
        The volume to publish of each structure, mm3.
    quality
        Its reasons are added at the end.
    """
    return (
        *scan.warnings,
        *alignment.warnings,
        *(sentence for name, one in volumes.items() for sentence in _unusual(name, one, volume_mm3)),
        *(sentence for name, one in volumes.items() for sentence in _cut_off(name, one, alignment)),
        *_coverage(scan, label_maps[HEAD_SIZE.name], volumes[HEAD_SIZE.name]),
        *quality.reasons,
    )


def _unusual(name: str, volumes: Volumes, volume_mm3: Mapping[str, float]) -> Iterator[str]:
    """A sentence about a volume that few adults have in its label protocol."""
    low, high = STRUCTURES[name].usual_volume_mm3(volumes.cleaned.labels.protocol)
    if not volumes.cleaned.inferred and not low <= volume_mm3[name] <= high:
        yield f"The {_called(name)} of {volume_mm3[name]:.0f} mm3 is outside the usual {low:.0f}-{high:.0f} mm3."


def _cut_off(name: str, volumes: Volumes, alignment: Alignment) -> Iterator[str]:
    """Sentences about a segmentation that ends where its network's box or the slab of the paper ends."""
    found, structure = volumes.cleaned, STRUCTURES[name]
    mask = found.label_map > 0
    faces = faces_reached(mask, found.grid, found.grid, np.eye(4))
    bottom_mm2 = mask[:, :, 0].sum() * found.grid.spacing_mm[0] * found.grid.spacing_mm[1]
    if bottom_mm2 < structure.outlet_mm2:
        faces = tuple(face for face in faces if face != "bottom")
    if faces:
        yield (
            f"The segmentation of the {_called(name)} ends at the {' and '.join(faces)} of the box that its network "
            "sees; what lies outside of the box is not counted."
        )
    # The boxes of hypodask's own networks lie inside the slab; other networks see more.
    if structure.on_slab and found.grid.space != "acpc":
        faces = faces_reached(mask, found.grid, slab_grid(), volumes.to_acpc(alignment))
        if faces:
            yield (
                f"The segmentation of the {_called(name)} reaches the {' and '.join(faces)} of the slab; its label map "
                "on the slab is cut off there."
            )


def _called(name: str) -> str:
    """What a structure is called within a sentence; an abbreviation keeps its capitals."""
    title = title_of(name)
    return title if title.isupper() else title.lower()


def _coverage(scan: Scan, icv_map: UInt8[ndarray, "i j k"], icv: Volumes) -> Iterator[str]:
    """Sentences about a skull that was stripped, or an intracranial volume that was not scanned completely."""
    coarse = (slice(None, None, 2),) * 3
    inside, data = icv_map[coarse] > 0, scan.data[coarse]
    if not inside.any():
        yield "The intracranial volume lies outside the field of view."
        return
    if icv.cleaned.inferred:
        yield (
            "The skull has been stripped: the boundary of the intracranial volume was not imaged, and no ICV is given; "
            "its label map follows the edge of the brain mask. Measure the ICV on the scan before stripping."
        )
        return
    around = ~ndimage.binary_dilation(inside, iterations=2)
    tissue = (data[around] > _TISSUE_LEVEL * np.median(data[inside])).sum()
    if tissue < _STRIPPED_SHARE * inside.sum():
        yield "The skull has been stripped: the intracranial volume is inferred from the brain."
    unseen = 1 - (icv_map > 0).sum() * scan.grid.voxel_volume_mm3 / icv.label_mm3[HEAD_SIZE.name]
    if unseen > _UNSEEN_SHARE:
        yield f"{100 * unseen:.0f} % of the intracranial volume lies outside the field of view and is inferred."
