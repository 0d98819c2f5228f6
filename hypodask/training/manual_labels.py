"""A manual label map becomes soft labels on the training grid, or is refused with the reason.

Refused are: values that are no labels, labels that are unknown or absent, a grid that contradicts the scan's, a place
outside the network's box, and left exchanged with right.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy import ndarray

from hypodask.core.errors import OutlineError
from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import LabelTable
from hypodask.image.resampling import resample
from hypodask.scan.read import read_label_map
from hypodask.scan.scan import Scan
from hypodask.training.pairs import ALIGNED_SPACES

_SAME_MM = 0.05
"""Voxels of two grids that lie nearer than this are the same; headers are rounded to a few micrometres."""

_INSIDE_SHARE = 0.95
"""Least share of a label map that must lie in the network's box. On six phantoms of 1 mm the share was 0.99 to 1.01;
the rest of the five per cent is for coarser label maps."""

_TEMPLATE_CODES = {3: "Talairach", 4: "MNI152"}
"""NIfTI's codes of spaces of templates, not of scanners."""


@dataclass(frozen=True, eq=False)
class ManualLabels:
    """A label map that has every label of the protocol, and no other."""

    path: str
    numbers: Int[ndarray, "i j k"]
    grid: Grid
    table: LabelTable

    @classmethod
    def read(cls, path: str, table: LabelTable) -> "ManualLabels":
        """Read a manual label map.

        Raises
        ------
        OutlineError
            If a value is no whole number or no label of the table, or a label of the table has no voxel.
        ScanError
            If the file cannot be read, or does not say where its voxels are.
        """
        image = read_label_map(path)
        if (code := _space_code(image)) in _TEMPLATE_CODES:
            raise OutlineError(
                f"{path}: the header says that it is in {_TEMPLATE_CODES[code]} space; the scan's own is needed: carry "
                "it back to the scan, or correct sform_code if it is there already"
            )
        values = image.data
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            odd = values[~np.isfinite(values) | (values != np.rint(values))]
            raise OutlineError(
                f"{path}: {odd.size:,} values are no whole numbers, the first is {odd[0]:g}; a label map is needed: "
                "save labels, not probabilities, and resample them with nearest neighbour"
            )
        numbers = values.astype(np.int32)
        _check_numbers(path, numbers, table)
        return cls(path, numbers, image.grid, table)

    @property
    def volumes_mm3(self) -> Float[ndarray, " label"]:
        """Volume of each label: its voxels times their volume."""
        counts = [int((self.numbers == label.index).sum()) for label in self.table]
        return np.array(counts) * self.grid.voxel_volume_mm3

    def centre_mm(self, numbers: list[int]) -> Float[ndarray, "3"]:
        """Mean position of some labels in the grid's space."""
        voxels = np.argwhere(np.isin(self.numbers, numbers))
        return transform_points(self.grid.space_from_vox, voxels.mean(axis=0))


def _space_code(image: Scan) -> int:
    """NIfTI's code of the space of a NIfTI-1 header's affine; 0 for other headers."""
    if len(image.header) < 348 or int.from_bytes(image.header[:4], "little") != 348:
        return 0
    qform, sform = np.frombuffer(image.header[252:256], "<i2").tolist()
    return int(sform or qform)


def _check_numbers(path: str, numbers: Int[ndarray, "i j k"], table: LabelTable) -> None:
    known = {label.index: label.structure for label in table}
    present = set(np.unique(numbers).tolist()) - {0}
    if not present:
        raise OutlineError(f"{path}: no voxel has a label; a segmentation is needed: draw it, or leave the file out")
    if unknown := sorted(present - known.keys()):
        raise OutlineError(
            f"{path}: labels {', '.join(map(str, unknown[:10]))} are not in the label table, which has "
            f"{_listed(known)}; add them to it, or save the map without them"
        )
    absent = {index: name for index, name in known.items() if index not in present}
    hemispheres = {label.hemisphere for label in table if label.index not in absent}
    sides = {label.hemisphere for label in table} - hemispheres - {"both"}
    if sides:
        raise OutlineError(
            f"{path}: no voxel of the {' and '.join(sorted(sides))} side; it has {_listed(present)}, and "
            f"{_listed(known)} are needed: segment the other side, or leave the file out"
        )
    if absent:
        raise OutlineError(
            f"{path}: no voxel of {_listed(absent)}; every label of the table is needed, because a missing one "
            "would be learnt as background: segment it, or take the label out of the table"
        )


def _listed(labels: dict[int, str] | set[int]) -> str:
    if isinstance(labels, set):
        return ", ".join(map(str, sorted(labels)))
    return ", ".join(f"{index} ({name})" for index, name in labels.items())


def check_grid(manual: ManualLabels, scan: Grid, space: str) -> None:
    """Refuse a label map whose grid contradicts the scan's.

    Another grid than the scan's is allowed, such as a crop or a finer one. Refused are: the scan's affine with another
    number of voxels; the scan's number of voxels in another place, unless ``space`` says that the header is right; and
    labels that lie outside the scan.

    Raises
    ------
    OutlineError
        Naming what differs.
    """
    if space in ALIGNED_SPACES:
        return
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in scan.shape])).reshape(3, -1).T
    # The largest distance between voxels of one index, mm.
    between = transform_points(manual.grid.space_from_vox - scan.space_from_vox, corners)
    apart = float(np.linalg.norm(between, axis=1).max())
    if manual.grid.shape != scan.shape and apart < _SAME_MM:
        raise OutlineError(
            f"{manual.path}: {_shape(manual.grid)} voxels with the affine of the scan, which has {_shape(scan)}; one "
            "of the two headers is wrong: save the label map on the scan it was drawn on"
        )
    if manual.grid.shape == scan.shape and apart >= _SAME_MM and not space:
        raise OutlineError(
            f"{manual.path}: as many voxels as the scan, {_shape(scan)}, but another affine, up to {apart:.1f} mm "
            "apart; the scan's own is needed: copy the scan's header to the label map if they were drawn voxel for "
            "voxel, or say space-orig in its name if its own header is right"
        )
    voxel = transform_points(np.linalg.inv(scan.space_from_vox), manual.centre_mm([x.index for x in manual.table]))
    if (voxel < 0).any() or (voxel > np.array(scan.shape) - 1).any():
        raise OutlineError(
            f"{manual.path}: the labels lie outside the scan, about its voxel "
            f"{np.round(voxel).astype(int).tolist()} of {_shape(scan)}; the "
            "scan's own space is needed: it may belong to another scan, or to a template"
        )


def _shape(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))


def soft_labels(
    manual: ManualLabels, onto: Grid, onto_from_manual: Float[ndarray, "4 4"]
) -> Float32[ndarray, "label x y z"]:
    """Share of each label in every voxel of another grid, 0 to 1: each label is resampled as a mask, trilinearly."""
    masks = ((manual.numbers == label.index).astype(np.float32) for label in manual.table)
    soft = [resample(mask, manual.grid, onto, onto_from_grid=onto_from_manual, order=1) for mask in masks]
    # Only rounding takes them out of range, or their sum above 1.
    soft = np.clip(np.stack(soft), 0, 1)
    return soft / np.maximum(soft.sum(axis=0), 1)


def check_sides(manual: ManualLabels, acpc_from_manual: Float[ndarray, "4 4"]) -> None:
    """Refuse a label map whose left labels lie to the right of its right ones, in AC-PC space.

    Raises
    ------
    OutlineError
        With both positions.
    """
    sides = {side: [label.index for label in manual.table.of(side)] for side in ("left", "right")}
    if not all(sides.values()):
        return
    left, right = (
        float(transform_points(acpc_from_manual, manual.centre_mm(numbers))[0]) for numbers in sides.values()
    )
    if left >= right:
        raise OutlineError(
            f"{manual.path}: left and right are exchanged: the middle of the left labels {sides['left']} lies at x = "
            f"{left:+.1f} mm of AC-PC space, of the right ones {sides['right']} at {right:+.1f} mm, and left must have "
            "the smaller x; exchange the sides in the label table or the map, or correct the header that mirrors it"
        )


def check_inside(
    manual: ManualLabels, soft: Float32[ndarray, "label x y z"], box: Grid, acpc_from_manual: Float[ndarray, "4 4"]
) -> None:
    """Refuse a label map that does not lie within the network's box, on which ``soft`` is.

    Raises
    ------
    OutlineError
        With the share that does, and both positions.
    """
    share = float(soft.sum(dtype=np.float64)) * box.voxel_volume_mm3 / manual.volumes_mm3.sum()
    if share >= _INSIDE_SHARE:
        return
    centre = transform_points(acpc_from_manual, manual.centre_mm([label.index for label in manual.table]))
    reach = ", ".join(
        f"{middle - extent / 2:g} to {middle + extent / 2:g}"
        for middle, extent in zip(box.centre_mm, box.extent_mm, strict=True)
    )
    raise OutlineError(
        f"{manual.path}: {100 * share:.0f} % of the labels lie in the network's box; {100 * _INSIDE_SHARE:.0f} % is "
        f"needed. Its middle is at {', '.join(f'{mm:.1f}' for mm in centre)} mm of AC-PC space, the box reaches "
        f"{reach} mm: it may be another structure, a label map of another scan, or a scan whose pose was not found"
    )
