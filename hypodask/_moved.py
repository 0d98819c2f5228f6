"""Names of modules as of version 0.1.0: they can still be imported until version 0.3, with a DeprecationWarning.

Scripts that import only what ``hypodask.__all__`` lists never meet them.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "agreement": "image.agreement",
    "accounts": "study.runs",
    "cohort": "study",
    "cohort.bids": "study.bids",
    "cohort.cohort": "study.cohort",
    "cohort.ids": "study.ids",
    "cohort.tables": "study.tables",
    "dataset": "study.results",
    "digests": "files.digests",
    "errors": "core.errors",
    "grid": "core.grid",
    "intensity": "image.intensity",
    "journal": "storage.journal",
    "labels": "core.structures",
    "landmarks": "scan.landmarks",
    "leases": "files.leases",
    "location": "files.location",
    "network": "networks",
    "network.architectures": "networks.architectures",
    "network.augment": "learning.augmentation",
    "network.checkpoints": "learning.checkpoints",
    "network.efficientnet": "networks.efficientnet",
    "network.learn": "learning.loop",
    "network.profiles": "networks.profiles",
    "network.unet": "networks.unet",
    "network.volume_unet": "networks.volume_unet",
    "network.weights": "networks.weights",
    "other_tools": "study.other_tools",
    "pieces": "image.masks",
    "planning": "study.planning",
    "progress": "core.progress",
    "reference": "quality.reference",
    "resample": "image.resampling",
    "row": "core.row",
    "segmentation.border": "segmentation.icv_border",
    "segmentation.keras_import": "segmentation.published",
    "segmentation.losses": "learning.losses",
    "segmentation.predict": "segmentation.network",
    "segmentation.protocols": "segmentation.seed_protocol",
    "segmentation.restore": "segmentation.label_maps",
    "segmentation.teacher": "learning.teacher",
    "segmentation.train": "learning.slices",
    "store": "storage.store",
    "template": "scan.template",
    "transforms": "storage.transforms",
    "uncertainty": "quality.intervals",
    "variables": "core.variables",
    "volumes": "segmentation.volumes",
}
"""New names of moved modules by their old ones, both within hypodask."""


class _MovedModules(MetaPathFinder, Loader):
    """Finds a moved module under its old name; the module that is loaded is the one of the new name."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, inner = name.partition(".")
        return ModuleSpec(name, self) if package == "hypodask" and inner in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"hypodask.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}; change the import", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just given the module the specification of its old name.
        old = module.__spec__
        if old is not None:
            module.__spec__ = self._specs.pop(old.name)


def install() -> None:
    """Let the old names be found."""
    sys.meta_path.insert(0, _MovedModules())
