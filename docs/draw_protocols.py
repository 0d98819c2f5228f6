"""Draw docs/images/protocols.png, both protocols on one template head: python docs/draw_protocols.py.

The head is the MNI152 2009a brain; the first segmentation is that of the shipped network.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hypodask.alignment import Alignment, align
from hypodask.core.grid import Grid
from hypodask.image.intensity import box_bright
from hypodask.image.resampling import resample
from hypodask.scan import Scan
from hypodask.scan.template import MNI152
from hypodask.segmentation import Segmentation, load_network
from hypodask.segmentation.seed_protocol import in_seed_protocol

PICTURE = Path(__file__).with_name("images") / "protocols.png"

SLICES_MM = (-1.0, -3.0, -5.0, -7.0, -9.0, -11.0)
"""Distances from the AC, from front to back."""

FIRST, SEED = "#ffd54a", "#2ec4b6"


def drawn(image: np.ndarray, first: Segmentation, seed: Segmentation) -> Figure:
    """A row of coronal slices with the contours of both segmentations."""
    figure = Figure(figsize=(2.2 * len(SLICES_MM), 2.5), layout="constrained", facecolor="black")
    x, y, z = (
        first.grid.space_from_vox[a, 3] + np.arange(first.grid.shape[a]) * first.grid.spacing_mm[a] for a in range(3)
    )
    for axes, at in zip(figure.subplots(1, len(SLICES_MM)), SLICES_MM, strict=True):
        row = np.abs(y - at).argmin()
        axes.imshow(image[:, row].T, cmap="gray", origin="lower", extent=(x[0], x[-1], z[0], z[-1]), vmin=0, vmax=1.2)
        for segmentation, colour in ((first, FIRST), (seed, SEED)):
            axes.contour(x, z, 1 - segmentation.posteriors[0, :, row].T, levels=[0.5], colors=[colour], linewidths=1.2)
        axes.set(xlim=(-12, 12), ylim=(-18, 6), xticks=[], yticks=[])
        axes.set_title(f"y {at:+.0f} mm", color="white", fontsize=8)
    return figure


def main() -> None:
    """Segment the template in both protocols, and draw the segmentations."""
    brain = MNI152.brain
    scan = Scan(brain.data, Grid(brain.grid.shape, brain.grid.space_from_vox, "scanner"), source=brain.source)
    pose: Alignment = align(scan)
    first = load_network("hypothalamus").segment(scan, pose)
    image = box_bright(resample(scan.data, scan.grid, first.grid, onto_from_grid=pose.acpc_from_scanner, order=3))
    seed = in_seed_protocol(first, image)
    for segmentation in (first, seed):
        print(
            f"{segmentation.labels.protocol}: {segmentation.posteriors[1:].sum() * first.grid.voxel_volume_mm3:.0f} mm3"
        )
    PICTURE.parent.mkdir(exist_ok=True)
    drawn(image, first, seed).savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
