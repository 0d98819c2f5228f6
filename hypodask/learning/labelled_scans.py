"""Examples from scans with soft labels of one structure, such as those that people segmented by hand.

Each scan is shown as it is and as scanners with thicker slices would give it; the structure grows and shrinks.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy import ndarray

from hypodask.core.structures import LabelTable, structure
from hypodask.learning.augmentation import Variation
from hypodask.learning.growth import growth_fields, growth_sd
from hypodask.learning.loop import Batch
from hypodask.learning.scanner_versions import SCANNERS, versions_of
from hypodask.learning.slices import Growth, Head, Task
from hypodask.learning.training_box import (
    SEEN,
    scaled_image,
    seen_image,
    seen_labels,
    training_grid,
    with_background,
)
from hypodask.networks.cards import InputGeometry
from hypodask.segmentation.network import mirrored_channels, neighbours


def labelled_task(
    scans: Sequence[dict[str, ndarray]], labels: LabelTable, variation: Variation, geometry: InputGeometry
) -> Task:
    """What a network learns from labelled scans.

    Parameters
    ----------
    scans
        Each on the training grid of ``geometry``: ``image``, and as ``truth`` the soft labels without background.
    labels
        What the labels are; ``labels.whole`` names the structure, which says what grows.
    variation
        How far examples are varied.
    geometry
        What the network sees.
    """
    grid = training_grid(geometry)
    sds = growth_sd(structure(labels.whole))
    versions = [versions_of(scan["image"], tuple(SCANNERS), geometry, SEEN) for scan in scans]
    images = jnp.asarray(np.stack(versions))
    truths = jnp.asarray(np.stack([np.moveaxis(scan["truth"], 0, -1) for scan in scans]))
    fields = [growth_fields(scaled_image(scan["image"]), scan["truth"], labels, grid, tuple(sds)) for scan in scans]
    growths = jnp.asarray(np.stack(fields))
    log_sd, shares = jnp.array(list(sds.values())), jnp.array(list(SCANNERS.values()))
    exchanged = np.array(mirrored_channels(labels))[1:] - 1

    def make(key: PRNGKeyArray) -> Head:
        of_scan, of_scanner = jax.random.split(key)
        scan = jax.random.randint(of_scan, (), 0, len(images))
        scanner = jax.random.choice(of_scanner, len(shares), p=shares)
        return Head(images[scan, scanner], truths[scan], Growth(growths[scan], log_sd))

    return Task(jax.jit(make), grid, geometry.grid, geometry, variation, mirror=lambda truth: truth[..., exchanged])


def unvaried(scan: dict[str, ndarray], geometry: InputGeometry) -> Batch:
    """All slices of a labelled scan as it is, as the network sees them, and their truth, background first."""
    slices = neighbours(jnp.asarray(seen_image(scan["image"])), geometry)
    truth = with_background(seen_labels(scan["truth"]))
    return slices, jnp.moveaxis(jnp.asarray(truth), (2, 1, 3, 0), (0, 1, 2, 3))
