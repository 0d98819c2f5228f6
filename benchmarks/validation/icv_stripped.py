"""Whether the ICV of a head whose skull was stripped can be told from what is left, whatever the way of stripping.

    python -m benchmarks.validation.icv_stripped DATA OUT [--maps 1 2 3] [--record]

Label maps, whose ICV is known, are imaged and stripped in four ways: to the ICV, to 3 mm more around it, to the brain
(its tissue, with clefts of up to 6 mm closed), and to 1 mm less than that. Three volumes are measured on each: that of
the template's brain, carried over by the registration; that of the tissue in it; and that of what is shown. From them
the ICV is estimated by a straight line of logarithms that was fitted to all other people.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray
from scipy import ndimage

import hypodask
from benchmarks.validation.icv_accuracy import FLUID, image_of, intracranial
from benchmarks.validation.results import add_record_option, write_results
from hypodask.core.errors import AlignmentError
from hypodask.core.grid import head_grid
from hypodask.image.masks import largest_piece, without_holes
from hypodask.image.resampling import resample
from hypodask.scan import Scan
from hypodask.scan.template import MNI152
from recipes.icv import read_labels

MARGIN_MM, CLOSED_MM, TIGHT_MM = 3.0, 3.0, 1.0
TISSUE, SHOWN = 0.4, 0.02
"""Intensities above which a voxel is tissue and is shown at all, in units of white matter (the 85th percentile)."""

SEEN = ("template_mm3", "tissue_mm3", "shown_mm3")


def stripped(labels: ndarray, spacing_mm: tuple[float, float, float]) -> Iterator[tuple[str, Bool[ndarray, "i j k"]]]:
    """What each way of stripping leaves of a label map."""
    icv = without_holes(largest_piece(intracranial(labels)))
    tissue = largest_piece(intracranial(labels) & ~np.isin(labels, FLUID))

    def depth(mask: ndarray) -> ndarray:
        return ndimage.distance_transform_edt(mask, sampling=spacing_mm)

    closed = depth(depth(~tissue) <= CLOSED_MM) > CLOSED_MM
    brain = without_holes(largest_piece(closed | tissue, by_corners=False)) & icv
    yield "to the ICV", icv
    yield "with a margin", depth(~icv) <= MARGIN_MM
    yield "to the brain", brain
    yield "tightly", depth(brain) > TIGHT_MM


def seen_volumes(scan: Scan) -> dict[str, float]:
    """Volumes (mm3) that can be measured without the skull."""
    alignment, grid = hypodask.align(scan), head_grid(1.0)
    image = resample(scan.data, scan.grid, grid, onto_from_grid=alignment.acpc_from_scanner, order=1)
    acpc_from_mni = alignment.acpc_from_scanner @ np.linalg.inv(alignment.mni_from_scanner)
    brain = (MNI152.brain.data > 0).astype(np.float32)
    template = resample(brain, MNI152.brain.grid, grid, onto_from_grid=acpc_from_mni, order=1) > 0.5
    white = np.percentile(image[template & (image > 0)], 85)
    tissue = image > TISSUE * white
    core = largest_piece(ndimage.binary_erosion(tissue, iterations=2), by_corners=False)
    masks = (template, ndimage.binary_dilation(core, iterations=3) & tissue, image > SHOWN * white)
    return {name: float(mask.sum()) * grid.voxel_volume_mm3 for name, mask in zip(SEEN, masks, strict=True)}


def rows(data: Path, number: int) -> Iterator[dict[str, object]]:
    """One label map, stripped in four ways."""
    labels, grid = read_labels(data / "label_maps" / f"training_seg_{number:02d}.nii.gz")
    image = image_of(labels, grid, number)
    true_mm3 = intracranial(labels).sum() * grid.voxel_volume_mm3
    for way, left in stripped(labels, grid.spacing_mm):
        try:
            seen = seen_volumes(Scan(np.asfortranarray(image.data * left), grid))
        except AlignmentError as refusal:
            print(f"map {number}, {way}: {refusal}", flush=True)
            continue
        print(number, way, {name: round(volume / true_mm3, 3) for name, volume in seen.items()}, flush=True)
        yield {"map": number, "way": way, "true_mm3": true_mm3, **seen}


def left_out_errors(table: pd.DataFrame, columns: tuple[str, ...]) -> ndarray:
    """Error of the logarithm of the ICV of each row, estimated from these columns by a line fitted to other people."""
    design = np.column_stack([np.ones(len(table)), np.log(table[list(columns)])])
    wanted, errors = np.log(table["true_mm3"].to_numpy()), np.zeros(len(table))
    for number in table["map"].unique():
        own = (table["map"] == number).to_numpy()
        line, *_ = np.linalg.lstsq(design[~own], wanted[~own], rcond=None)
        errors[own] = design[own] @ line - wanted[own]
    return errors


def figures_of(table: pd.DataFrame) -> dict[str, float]:
    """Error of the best estimate, and how far each volume moves with the way of stripping."""
    chosen = [columns for size in (1, 2, 3) for columns in combinations(SEEN, size)]
    errors = min((left_out_errors(table, columns) for columns in chosen), key=lambda e: float(np.square(e).mean()))
    figures = {
        "best_error_percent_rms": 100 * float(np.sqrt(np.square(errors).mean())),
        "best_error_percent_largest": 100 * float(np.abs(errors).max()),
    }
    for name in SEEN:
        shares = table.assign(share=np.log(table[name] / table["true_mm3"])).groupby("map")["share"]
        figures[f"{name.removesuffix('_mm3')}_range_percent_mean"] = 100 * float((shares.max() - shares.min()).mean())
    tissue = table.loc[table["way"] == "to the ICV", "tissue_mm3"] / table.loc[table["way"] == "to the ICV", "true_mm3"]
    return figures | {"tissue_share_lowest": float(tissue.min()), "tissue_share_highest": float(tissue.max())}


def main() -> None:
    """Strip, measure and estimate."""
    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder of validation data")
    parser.add_argument("out", type=Path, help="folder of the table")
    parser.add_argument("--maps", type=int, nargs="*", default=list(range(1, 17)))
    add_record_option(parser)
    options = parser.parse_args()
    table = pd.DataFrame([row for number in options.maps for row in rows(options.data, number)])
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "icv_stripped.tsv", sep="\t", index=False, float_format="%.1f")
    figures = figures_of(table)
    print(figures)
    if options.record:
        data = f"{len(table)} images of {table['map'].nunique()} label maps, stripped in {table['way'].nunique()} ways"
        write_results("icv_stripped", figures, what="The ICV told from a brain without its skull", data=data)


if __name__ == "__main__":
    main()
