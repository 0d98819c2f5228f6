"""Networks by name or path: the only module that knows every kind of network."""

from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import cast

from hypodask.alignment.pose import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.structures import BOUNDARY_TASK, HEAD_SIZE, MAIN
from hypodask.image.intensity import SCALINGS
from hypodask.networks.cards import InputGeometry
from hypodask.networks.weights import KERAS_SUFFIXES, load_weights, resolve_model, sha256
from hypodask.scan.scan import Scan
from hypodask.segmentation.icv_border import BoundaryNetwork
from hypodask.segmentation.network import Ensemble, Network, mirrored_channels
from hypodask.segmentation.published import ImportedNetwork, import_hypothalamus_seg
from hypodask.segmentation.seed_protocol import SEED_MODEL, SeedNetwork
from hypodask.segmentation.segmentation import Segmentation


def load_network(name_or_path: str | PathLike[str]) -> Network:
    """Load a network by the name of a shipped one, or by the path of its weights.

    It is loaded once per process: workers process many scans with one copy.

    Parameters
    ----------
    name_or_path
        ``"hypothalamus"``; ``"hypothalamus-seed"``, the same network with its segmentations extended to the protocol
        ``seed``; ``"icv"``, a coarse network and the one that finds the boundary; or the path of weights, which gives
        the network of this file alone.

    Raises
    ------
    ModelError
        If there is no such network, its file is damaged, or it segments nothing.
    """
    if name_or_path == SEED_MODEL:
        return SeedNetwork(load_network(MAIN.network))
    if name_or_path == HEAD_SIZE.network:
        names = (HEAD_SIZE.network, BOUNDARY_TASK)
        coarse, boundary = (cast(Ensemble, _loaded_from(resolve_model(name))) for name in names)
        return BoundaryNetwork(coarse, boundary)
    path = resolve_model(name_or_path, others=(SEED_MODEL,))
    network = _loaded_from(path)
    if isinstance(network, Ensemble):
        mirrored_channels(network.labels)
        _check_geometry(path, network.card.geometry)
    return network


def _loaded_from(path: Path) -> Ensemble | ImportedNetwork:
    return _loaded(path, sha256(path))


@lru_cache(maxsize=4)
def _loaded(path: Path, digest: str) -> Ensemble | ImportedNetwork:
    if path.suffix.lower() in KERAS_SUFFIXES:
        return ImportedNetwork(import_hypothalamus_seg(path), digest)
    members, card = load_weights(path)
    return Ensemble(members, card, digest)


def _check_geometry(path: Path, geometry: InputGeometry) -> None:
    if geometry.intensity not in SCALINGS:
        raise ModelError(
            f"{path} needs intensities scaled by {geometry.intensity!r}; known are {list(SCALINGS)}: update hypodask"
        )
    if geometry.slice_axis != 1 or geometry.centre_mm[0]:
        raise ModelError(
            f"{path} needs slices across axis {geometry.slice_axis} around x = {geometry.centre_mm[0]:g} mm; hypodask "
            "has coronal ones (axis 1) around the midline, where an image can be mirrored: train it on these"
        )


def segment(scan: Scan, alignment: Alignment, model: str | PathLike[str] = MAIN.network) -> Segmentation:
    """Posteriors of one network on one scan.

    Parameters
    ----------
    scan
        As :func:`hypodask.read_scan` gives it.
    alignment
        As :func:`hypodask.align` gives it.
    model
        ``"hypothalamus"`` or ``"icv"``, shipped with hypodask; or the path of weights: ``.safetensors`` of
        hypodask, or ``.h5`` of the published hypothalamic subunit network.

    Returns
    -------
    Segmentation
        Posteriors and their grid: AC-PC space for ours, scanner space for the published network.

    Raises
    ------
    ModelError
        If there is no such model or its file is damaged.
    """
    return load_network(model).segment(scan, alignment)
