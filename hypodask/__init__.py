"""Hypothalamic and intracranial volumes of a whole study of T1-weighted head scans.

The names below are all that a script needs; each is loaded when it is first used, so that
``import hypodask`` costs next to nothing and the statistics run where JAX is not wanted::

    cohort = hypodask.Cohort.from_bids("study")
    results = hypodask.process(cohort, "study/derivatives/hypodask")
    hypodask.stats.compare_groups(results, "volume_mm3", structure="hypothalamus")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hypodask.errors import HypodaskError

if TYPE_CHECKING:
    from hypodask import demo, phantom, report, stats
    from hypodask.accounts import forget, status
    from hypodask.alignment import Alignment, align
    from hypodask.cluster import plan, process
    from hypodask.cohort import Cohort
    from hypodask.dataset import open_results, verify
    from hypodask.grid import Grid
    from hypodask.landmarks import Landmarks, read_landmarks
    from hypodask.leases import unlock
    from hypodask.pipeline import process_scan
    from hypodask.row import Row
    from hypodask.scan import Scan, read_scan
    from hypodask.segmentation import Segmentation, import_hypothalamus_seg, segment
    from hypodask.training import train
    from hypodask.transforms import angles_deg, load_transform, save_aligned, save_transform

__all__ = [
    "Alignment",
    "Cohort",
    "Grid",
    "HypodaskError",
    "Landmarks",
    "Row",
    "Scan",
    "Segmentation",
    "__version__",
    "align",
    "angles_deg",
    "demo",
    "forget",
    "import_hypothalamus_seg",
    "load_transform",
    "open_results",
    "phantom",
    "plan",
    "process",
    "process_scan",
    "read_landmarks",
    "read_scan",
    "report",
    "save_aligned",
    "save_transform",
    "segment",
    "stats",
    "status",
    "train",
    "unlock",
    "verify",
]

__version__ = version("hypodask")

_PARTS = frozenset({"demo", "phantom", "report", "stats"})
_HOME = {
    "Alignment": "alignment",
    "Cohort": "cohort",
    "Grid": "grid",
    "Landmarks": "landmarks",
    "Row": "row",
    "Scan": "scan",
    "Segmentation": "segmentation",
    "align": "alignment",
    "angles_deg": "transforms",
    "forget": "accounts",
    "import_hypothalamus_seg": "segmentation",
    "load_transform": "transforms",
    "open_results": "dataset",
    "plan": "cluster",
    "process": "cluster",
    "process_scan": "pipeline",
    "read_landmarks": "landmarks",
    "read_scan": "scan",
    "save_aligned": "transforms",
    "save_transform": "transforms",
    "segment": "segmentation",
    "status": "accounts",
    "train": "training",
    "unlock": "leases",
    "verify": "dataset",
}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"hypodask.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'hypodask' has no attribute {name!r}")
    found = getattr(import_module(f"hypodask.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
