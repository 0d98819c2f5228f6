"""A label map that a person drew becomes soft labels on the training grid, or the reason why it cannot.

What is refused: values that are no labels, labels that are unknown or absent, a grid that is not the scan's, a place
outside what the network sees, left for right.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy import ndarray

from hypodask.errors import OutlineError
from hypodask.grid import Grid, transform_points
from hypodask.labels import LabelTable
from hypodask.resample import resample
from hypodask.scan import Scan, read_label_map
from hypodask.training.pairs import ALIGNED_SPACES

SAME_MM = 0.05
"""Voxels of two grids that lie nearer than this are the same; headers are rounded to a few micrometres."""

INSIDE_SHARE = 0.95
"""Of an outline must lie in the network's box. On six phantoms of 1 mm 0.99 to 1.01 of it came to lie there: the rest
of the five per cent is for coarser label maps."""

TEMPLATE_CODES = {3: "Talairach", 4: "MNI152"}
"""NIfTI's codes of spaces that are no scanner's."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A label map whose values are labels of the protocol, all of them."""

    path: str
    numbers: Int[ndarray, "i j k"]
    grid: Grid
    table: LabelTable

    @property
    def volumes_mm3(self) -> Float[ndarray, " label"]:
        """Voxels of each label times their volume."""
        counts = [int((self.numbers == label.index).sum()) for label in self.table]
        return np.array(counts) * self.grid.voxel_volume_mm3

    def centre_mm(self, numbers: list[int]) -> Float[ndarray, "3"]:
        """Middle of some labels in the grid's space."""
        voxels = np.argwhere(np.isin(self.numbers, numbers))
        return transform_points(self.grid.space_from_vox, voxels.mean(axis=0))


def read_outline(path: str, table: LabelTable) -> Outline:
    """Read a label map.

    Raises
    ------
    OutlineError
        If a value is no whole number or no label of the table, or a label of the table has no voxel.
    ScanError
        If the file cannot be read, or does not say where its voxels are.
    """
    image = read_label_map(path)
    if (code := _space_code(image)) in TEMPLATE_CODES:
        raise OutlineError(
            f"{path}: the header says that it is in {TEMPLATE_CODES[code]} space; the scan's own is needed: carry it "
            "back to the scan, or correct sform_code if it is there already"
        )
    values = image.data
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        odd = values[~np.isfinite(values) | (values != np.rint(values))]
        raise OutlineError(
            f"{path}: {odd.size:,} values are no whole numbers, the first is {odd[0]:g}; a label map is needed: save "
            "labels, not probabilities, and resample them with nearest neighbour"
        )
    numbers = values.astype(np.int32)
    _check_numbers(path, numbers, table)
    return Outline(path, numbers, image.grid, table)


def _space_code(image: Scan) -> int:
    """NIfTI's code of the space that a NIfTI-1 header's affine leads to."""
    if len(image.header) < 348 or int.from_bytes(image.header[:4], "little") != 348:
        return 0
    qform, sform = np.frombuffer(image.header[252:256], "<i2").tolist()
    return int(sform or qform)


def _check_numbers(path: str, numbers: Int[ndarray, "i j k"], table: LabelTable) -> None:
    known = {label.index: label.structure for label in table}
    present = set(np.unique(numbers).tolist()) - {0}
    if not present:
        raise OutlineError(f"{path}: no voxel has a label; an outline is needed: draw it, or leave the file out")
    if unknown := sorted(present - known.keys()):
        raise OutlineError(
            f"{path}: labels {', '.join(map(str, unknown[:10]))} are not in the label table, which has "
            f"{_listed(known)}; add them to it, or save the map without them"
        )
    absent = {index: name for index, name in known.items() if index not in present}
    sides = {label.hemisphere for label in table} - {label.hemisphere for label in table if label.index in present}
    if sides:
        raise OutlineError(
            f"{path}: no voxel of the {' and '.join(sorted(sides))} side; it has {_listed(present)}, and "
            f"{_listed(known)} are needed: outline the other side, or leave the file out"
        )
    if absent:
        raise OutlineError(
            f"{path}: no voxel of {_listed(absent)}; every label of the table is needed, since what is not there would "
            "be learnt as background: outline it, or take the label out of the table"
        )


def _listed(labels: dict[int, str] | set[int]) -> str:
    if isinstance(labels, set):
        return ", ".join(map(str, sorted(labels)))
    return ", ".join(f"{index} ({name})" for index, name in labels.items())


def check_grid(outline: Outline, scan: Grid, space: str) -> None:
    """Refuse a label map whose grid contradicts the scan's.

    Another grid than the scan's is fine if it lies in the same place. What cannot be meant is: the scan's affine with
    another number of voxels; the scan's number of voxels in another place, unless ``space`` says that the header is
    right; no overlap at all.

    Raises
    ------
    OutlineError
        Naming what differs.
    """
    if space in ALIGNED_SPACES:
        return
    apart = _apart_mm(outline.grid, scan)
    if outline.grid.shape != scan.shape and apart < SAME_MM:
        raise OutlineError(
            f"{outline.path}: {_shape(outline.grid)} voxels with the affine of the scan, which has {_shape(scan)}; one "
            "of the two headers is wrong: save the label map on the scan it was drawn on"
        )
    if outline.grid.shape == scan.shape and apart >= SAME_MM and not space:
        raise OutlineError(
            f"{outline.path}: as many voxels as the scan, {_shape(scan)}, but another affine, up to {apart:.1f} mm "
            "apart; the scan's own is needed: copy the scan's header to the label map if they were drawn voxel for "
            "voxel, or say space-orig in its name if its own header is right"
        )
    voxel = transform_points(np.linalg.inv(scan.space_from_vox), outline.centre_mm([x.index for x in outline.table]))
    if (voxel < 0).any() or (voxel > np.array(scan.shape) - 1).any():
        raise OutlineError(
            f"{outline.path}: the outline lies outside the scan, about its voxel "
            f"{np.round(voxel).astype(int).tolist()} of {_shape(scan)}; the "
            "scan's own space is needed: it may belong to another scan, or to a template"
        )


def _apart_mm(a: Grid, b: Grid) -> float:
    """Largest distance between voxels of one index, mm."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in b.shape])).reshape(3, -1).T
    return float(np.linalg.norm(transform_points(a.space_from_vox - b.space_from_vox, corners), axis=1).max())


def _shape(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))


def soft_labels(
    outline: Outline, onto: Grid, onto_from_outline: Float[ndarray, "4 4"]
) -> Float32[ndarray, "label x y z"]:
    """How much of each label is at every voxel of another grid, 0 to 1: labels one by one, trilinear."""
    masks = ((outline.numbers == label.index).astype(np.float32) for label in outline.table)
    soft = [resample(mask, outline.grid, onto, onto_from_grid=onto_from_outline, order=1) for mask in masks]
    # Rounding alone takes them out of range, or their sum above 1.
    soft = np.clip(np.stack(soft), 0, 1)
    return soft / np.maximum(soft.sum(axis=0), 1)


def check_sides(outline: Outline, acpc_from_outline: Float[ndarray, "4 4"]) -> None:
    """Refuse an outline whose left lies to the right of its right, in AC-PC space.

    Raises
    ------
    OutlineError
        With both places.
    """
    sides = {side: [label.index for label in outline.table.of(side)] for side in ("left", "right")}
    if not all(sides.values()):
        return
    left, right = (
        float(transform_points(acpc_from_outline, outline.centre_mm(numbers))[0]) for numbers in sides.values()
    )
    if left >= right:
        raise OutlineError(
            f"{outline.path}: left and right are exchanged: the middle of the left labels {sides['left']} lies at x = "
            f"{left:+.1f} mm of AC-PC space, of the right ones {sides['right']} at {right:+.1f} mm, and left must have "
            "the smaller x; exchange the sides in the label table or the map, or correct the header that mirrors it"
        )


def check_inside(
    outline: Outline, soft: Float32[ndarray, "label x y z"], box: Grid, acpc_from_outline: Float[ndarray, "4 4"]
) -> None:
    """Refuse an outline that does not lie within the network's box, on which ``soft`` is.

    Raises
    ------
    OutlineError
        With the share that does, and both places.
    """
    share = float(soft.sum(dtype=np.float64)) * box.voxel_volume_mm3 / outline.volumes_mm3.sum()
    if share >= INSIDE_SHARE:
        return
    centre = transform_points(acpc_from_outline, outline.centre_mm([label.index for label in outline.table]))
    reach = ", ".join(
        f"{middle - extent / 2:g} to {middle + extent / 2:g}"
        for middle, extent in zip(box.centre_mm, box.extent_mm, strict=True)
    )
    raise OutlineError(
        f"{outline.path}: {100 * share:.0f} % of the outline lies in the network's box; {100 * INSIDE_SHARE:.0f} % is "
        f"needed. Its middle is at {', '.join(f'{mm:.1f}' for mm in centre)} mm of AC-PC space, the box reaches "
        f"{reach} mm: it may be another structure, an outline of another scan, or a scan whose pose was not found"
    )
