"""The arrays that the figures of one scan draw, read from its store and resampled."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from numpy import ndarray
from scipy import ndimage

from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import HEAD_SIZE, MAIN, STRUCTURES, LabelTable
from hypodask.files.location import Location
from hypodask.report.slices import Plane, PlaneName, Slices
from hypodask.storage.store import read_done, read_label_map, read_label_table, read_record, read_stored_scan

_SLICES = 6
"""Coronal slices of a scan. The hypothalamus is 10 to 15 mm long: these show its front, middle and back."""

_FIELD_MM = (-32.0, 32.0)
"""The slab of the paper is 64 mm wide and high."""

_HEAD_MM = ((-88.0, 88.0), (-120.0, 88.0), (-80.0, 96.0))
"""Part of the head that the planes show, along x, y and z."""

_PLANE_CUTS: tuple[tuple[PlaneName, int, float], ...] = (
    ("axial", 2, 10.0),
    ("coronal", 1, -20.0),
    ("sagittal", 0, 3.0),
)
"""Planes of the overview: name, axis that is cut, and where (mm). The sagittal one lies beside the falx; the others cut
both lateral ventricles."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Slices and planes of one scan."""

    slices: Slices | None = None
    """None where no label map of the slab was stored."""
    planes: tuple[Plane, ...] = ()


def read_pictures(url: str | Location) -> Pictures:
    """Read the slices and planes of one scan from its store.

    Parameters
    ----------
    url
        Store of the scan, with its voxels, the record ``alignment``, the ICV mask in the scan's own space, and label
        maps on the slab such as ``hypothalamus_slab``.

    Raises
    ------
    StoreError
        If one of them is missing or damaged.
    """
    scan = read_stored_scan(url)
    acpc_from_scanner = np.array(read_record(url, "alignment")["acpc_from_scanner"], dtype=np.float64)
    head = scan.grid.moved(acpc_from_scanner, "acpc")
    icv_mask, icv_grid = read_label_map(url, f"{HEAD_SIZE.name}_scan")
    on_slab = _labels_on_slab(url)
    return Pictures(
        slices=cut_slices(scan.stored, head, *on_slab) if on_slab else None,
        planes=cut_planes(scan.stored, head, icv_mask, icv_grid.moved(acpc_from_scanner, "acpc")),
    )


def _labels_on_slab(url: str | Location) -> tuple[UInt8[ndarray, "x y z"], Grid, LabelTable] | None:
    """The label maps that were stored on the slab as one, with one table of labels.

    Labels of a second structure are numbered on from those of the first. Where two structures overlap, the voxel keeps
    the label of the first, in the order of :data:`~hypodask.core.structures.STRUCTURES`.
    """
    files = (read_done(url) or {}).get("files", {})
    names = [f"{one.name}_slab" for one in STRUCTURES.values() if one.on_slab]
    stored = [name for name in names if f"labels/{name}/zarr.json" in files]
    if not stored:
        return None
    label_map, slab = read_label_map(url, stored[0])
    table = read_label_table(url, stored[0])
    for name in stored[1:]:
        shift = max(label.index for label in table)
        further, _ = read_label_map(url, name)
        label_map = np.where((label_map == 0) & (further > 0), further + np.uint8(shift), label_map)
        renumbered = (replace(label, index=label.index + shift) for label in read_label_table(url, name))
        table = replace(table, labels=(*table.labels, *renumbered))
    return label_map, slab, table


def cut_slices(
    image: Shaped[ndarray, "i j k"],
    head: Grid,
    label_map: UInt8[ndarray, "x y z"],
    slab: Grid,
    labels: LabelTable = MAIN.label_tables[0],
    n: int = _SLICES,
) -> Slices:
    """Take coronal slices through the labelled part of a slab, and the image at the same places.

    Parameters
    ----------
    image
        Voxels of the scan on ``head``.
    head
        Grid of the scan, in AC-PC space.
    label_map
        On ``slab``, whose axes are those of AC-PC space.
    slab
        Grid of the label map.
    labels
        Names and colours of the numbers in the label map.
    n
        Number of slices, evenly from front to back.
    """
    occupied = np.flatnonzero(label_map.any(axis=(0, 2)))
    first, last = (occupied[0], occupied[-1]) if len(occupied) else (0, label_map.shape[1] - 1)
    # The very first and last labelled slices are slivers; the ends are taken a little inside.
    chosen = np.round(np.linspace(last, first, n + 2)[1:-1]).astype(int)
    y_mm = transform_points(slab.space_from_vox, np.stack([0 * chosen, chosen, 0 * chosen], axis=1))[:, 1]
    pixels = _pixel_centres(_FIELD_MM, 0.25)
    image_slices = [_sample(image, head, (pixels, np.array([y]), pixels))[:, 0] for y in y_mm]
    # The extent is that of whole voxels, whose centres are at whole numbers.
    corner = transform_points(slab.space_from_vox, np.array([-0.5, -0.5, -0.5]))
    opposite = transform_points(slab.space_from_vox, np.array(slab.shape) - 0.5)
    return Slices(
        image=np.stack(image_slices),
        label_map=label_map[:, chosen].transpose(1, 0, 2),
        y_mm=y_mm,
        image_extent_mm=(*_FIELD_MM, *_FIELD_MM),
        label_extent_mm=(float(corner[0]), float(opposite[0]), float(corner[2]), float(opposite[2])),
        labels=labels,
    )


def cut_planes(
    image: Shaped[ndarray, "i j k"], head: Grid, icv_mask: UInt8[ndarray, "a b c"], icv_grid: Grid
) -> tuple[Plane, ...]:
    """Cut an axial, a coronal and a sagittal plane through a scan and its ICV mask.

    Parameters
    ----------
    image
        Voxels of the scan on ``head``.
    head
        Grid of the scan, in AC-PC space.
    icv_mask
        1 inside the intracranial volume, on ``icv_grid``.
    icv_grid
        Grid of the mask, in AC-PC space.
    """
    planes = []
    for name, axis, at_mm in _PLANE_CUTS:
        places = [_pixel_centres(edges, 1.0) for edges in _HEAD_MM]
        places[axis] = np.array([at_mm])
        cut = (places[0], places[1], places[2])
        across, up = (edges for other, edges in enumerate(_HEAD_MM) if other != axis)
        planes.append(
            Plane(
                name=name,
                at_mm=at_mm,
                image=_sample(image, head, cut).squeeze(axis),
                mask=_sample(icv_mask, icv_grid, cut, order=0).squeeze(axis),
                extent_mm=(*across, *up),
            )
        )
    return tuple(planes)


def _pixel_centres(edges: tuple[float, float], pixel_mm: float) -> Float[ndarray, " n"]:
    return np.arange(edges[0] + pixel_mm / 2, edges[1], pixel_mm)


def _sample(
    volume: Shaped[ndarray, "i j k"],
    grid: Grid,
    places_mm: tuple[Float[ndarray, " x"], Float[ndarray, " y"], Float[ndarray, " z"]],
    order: Literal[0, 1] = 1,
) -> Shaped[ndarray, "x y z"]:
    """Values at every (x, y, z) of three lists of coordinates in the space of the grid; 0 outside of the image."""
    points = np.stack(np.meshgrid(*places_mm, indexing="ij"), axis=-1)
    index = transform_points(np.linalg.inv(grid.space_from_vox), points)
    output = np.dtype(np.float32) if order else volume.dtype
    sampled: ndarray = ndimage.map_coordinates(volume, np.moveaxis(index, -1, 0), output=output, order=order)
    return sampled
