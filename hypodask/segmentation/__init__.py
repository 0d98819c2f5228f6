"""Where is the hypothalamus, where the cranial cavity? From an aligned scan to posteriors.

Networks are loaded by name (``hypothalamus``, ``icv``: shipped) or by the path of their weights.
"""

from os import PathLike

from hypodask.alignment import Alignment
from hypodask.scan import Scan
from hypodask.segmentation.keras_import import ImportedModel, import_hypothalamus_seg
from hypodask.segmentation.predict import Network, load_network
from hypodask.segmentation.segmentation import Segmentation

__all__ = [
    "ImportedModel",
    "Network",
    "Segmentation",
    "import_hypothalamus_seg",
    "load_network",
    "segment",
]


def segment(scan: Scan, alignment: Alignment, model: str | PathLike[str] = "hypothalamus") -> Segmentation:
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
