"""Model cards: what a network is, what it takes, what it learnt from, and how good it is on what.

A card travels in the weights file, and lies beside it as JSON and Markdown (:mod:`hypodask.networks.weights`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np

from hypodask.core.documents import BY_KIND, AnyFloat, from_document, read_table, to_json
from hypodask.core.errors import ModelError
from hypodask.core.grid import Grid, box_grid
from hypodask.core.structures import STRUCTURES, TASKS, Hemisphere, LabelTable
from hypodask.networks.architectures import Architecture, VoxelArchitecture
from hypodask.networks.profiles import ProfileNetConfig
from hypodask.networks.unet import UNetConfig
from hypodask.networks.volume_unet import VolumeUNetConfig

_THE_CARD = "the model card"
_CURE = "fetch the weights file again, or update hypodask, which may know a newer card"

Frame = Literal["acpc", "head_size"]
"""What the millimetres of a network's input are."""

_RETIRED = {"activation": "relu", "upsampling": "nearest", "space_to_depth": 1}
"""Options of the 2D U-Net that older cards have, each with the value that still works."""


@dataclass(frozen=True)
class InputGeometry:
    """The images that a network takes.

    Raises
    ------
    ModelError
        If there are not three positive voxel sizes and counts, the number of slices is even, or the axis is not 0, 1 or
        2.

    Examples
    --------
    >>> InputGeometry((0.5, 0.5, 0.5), (128, 50, 128), slices=5, slice_axis=1, intensity="robust_unit").slices
    5
    """

    spacing_mm: tuple[float, float, float]
    """Voxel size along x, y, z of AC-PC space."""
    shape: tuple[int, int, int]
    """Voxels along x, y, z."""
    slices: int
    """Channels: the slice and its neighbours on either side; an odd number."""
    slice_axis: int
    """Axis that the slices lie across: 1 for coronal."""
    intensity: str
    """Name of the scaling of the intensities."""
    slice_step: int = 1
    """Voxels from one of these slices to the next; with 0 every channel is the same slice."""
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Middle of the grid in AC-PC space, mm."""
    frame: Frame = "acpc"
    """Whether lengths are mm of the head (``acpc``), or mm of the head after it was scaled about its anterior
    commissure to the size of an average adult's (``head_size``)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in self.spacing_mm))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.spacing_mm) != 3 or len(self.shape) != 3 or min(*self.spacing_mm, *self.shape) <= 0:
            raise ModelError(f"an input needs three positive voxel sizes and three positive counts, got {self}")
        if self.slices < 1 or self.slices % 2 == 0 or self.slice_axis not in (0, 1, 2):
            raise ModelError(f"an input needs an odd number of slices across axis 0, 1 or 2, got {self}")

    @property
    def grid(self) -> Grid:
        """The grid of its voxels in AC-PC space, for a head of average size."""
        return box_grid(self.shape, self.spacing_mm, self.centre_mm)

    def grid_for(self, head_size: float) -> Grid:
        """The grid of its voxels in the AC-PC space of one head, whose linear size relative to the average is given.

        >>> InputGeometry((1.0,) * 3, (9,) * 3, 1, 1, "box_bright", frame="head_size").grid_for(1.25).extent_mm
        (11.25, 11.25, 11.25)
        """
        if self.frame == "acpc":
            return self.grid
        return self.grid.moved(np.diag([head_size] * 3 + [1.0]), "acpc")


@dataclass(frozen=True)
class ModelCard:
    """Description of the network or the ensemble in a weights file.

    Raises
    ------
    ModelError
        If the task is unknown, the channels do not match the slices or the labels, there are no labels and no usual
        ones, metrics do not say what they were measured on, or the standard deviation of the volume is not positive.
    """

    name: str
    task: str
    """A structure that it segments, or one of the other tasks in :data:`~hypodask.core.structures.TASKS`."""
    protocol: str
    """Protocol of the label maps that it learnt from; volumes of two protocols are never pooled silently."""
    architecture: Annotated[Architecture, BY_KIND]
    geometry: InputGeometry
    training_data: str
    """Which scans, whose labels, and how they were augmented."""
    licence: str
    version: str = "0"
    metrics: Mapping[str, int | AnyFloat | str] = field(default_factory=dict)
    """Figures by name; ``measured_on`` among them says on which scans, and that they were held out."""
    relative_volume_sd: float | None = None
    """Standard deviation of predicted over true volume on held-out scans; None where nobody measured it."""
    volume_heads: int | None = None
    """Number of scans that this standard deviation was measured on."""
    part_volume_sd: Mapping[str, float] = field(default_factory=dict)
    """The same standard deviation for sides and subunits, by structure."""
    changelog: tuple[str, ...] = ()
    """One line for each version, newest first."""
    members: int = 1
    """Networks in the file; several are an ensemble."""
    labels: LabelTable | None = None
    """Labels of the channels after background, in their order; None for a network that segments nothing. If left out,
    the usual labels of the task, in the card's protocol."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "changelog", tuple(self.changelog))
        if self.task not in TASKS:
            raise ModelError(f"a model card's task is one of {', '.join(TASKS)}, got {self.task!r}")
        if isinstance(self.architecture, VoxelArchitecture) and self.architecture.in_channels != self.geometry.slices:
            raise ModelError(
                f"the network takes {self.architecture.in_channels} channels and the geometry gives "
                f"{self.geometry.slices} slices; they must be equal"
            )
        if self.metrics and "measured_on" not in self.metrics:
            raise ModelError("metrics need a 'measured_on' that says which scans they come from")
        if self.relative_volume_sd is not None and not 0 < self.relative_volume_sd < np.inf:
            raise ModelError(f"relative_volume_sd must be positive or None, got {self.relative_volume_sd}")
        if self.volume_heads is not None and self.volume_heads < 2:
            raise ModelError(f"a standard deviation needs at least 2 volume_heads, got {self.volume_heads}")
        if not all(0 < sd < np.inf for sd in self.part_volume_sd.values()):
            raise ModelError(f"every part_volume_sd must be positive, got {dict(self.part_volume_sd)}")
        if self.members < 1:
            raise ModelError(f"a weights file holds at least one member, got {self.members}")
        if self.task in STRUCTURES:
            object.__setattr__(self, "labels", self.labels or self._usual_labels())
        if self.labels is not None:
            _check_labels(self.labels, self.architecture.out_channels, self.protocol)

    def _usual_labels(self) -> LabelTable:
        usual = STRUCTURES[self.task].labels_for(self.architecture.out_channels, self.protocol)
        if usual is None:
            raise ModelError(
                f"the card does not say what the {self.architecture.out_channels} channels of its {self.task} network "
                "are, background first; give it labels"
            )
        return usual

    def to_json(self) -> str:
        """Write the card as JSON, keys in the order of the fields."""
        return to_json(self, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card from JSON.

        Raises
        ------
        ModelError
            If it is not JSON, a key is missing or unknown, or a value is one that the field cannot hold.
        """
        values = _in_todays_words(read_table(text, "JSON", what=_THE_CARD, error=ModelError, cure=_CURE))
        return from_document(cls, values, what=_THE_CARD, error=ModelError, cure=_CURE)

    def to_markdown(self, *, parameters: int, digest: str) -> str:
        """Write the card as Markdown, for people.

        Parameters
        ----------
        parameters : int
            Number of trained numbers in the network, or in each network of the ensemble.
        digest : str
            SHA-256 of the weights file.
        """
        geometry = self.geometry
        match self.architecture:
            case VolumeUNetConfig():
                seen = "all at a time"
            case ProfileNetConfig():
                seen = "along normals of a boundary"
            case _:
                seen = f"{geometry.slices} slices at a time across axis {geometry.slice_axis}"
        ensemble = f"ensemble of {self.members} networks, each a " if self.members > 1 else ""
        rows = {
            "Task": self.task,
            "Protocol": self.protocol,
            "Version": self.version,
            "Licence": self.licence,
            "Network": f"{ensemble}{self.architecture.description}, {parameters} parameters",
            "Input": f"{' x '.join(map(str, geometry.shape))} voxels of "
            f"{' x '.join(f'{s:g}' for s in geometry.spacing_mm)} mm, {seen}, "
            f"intensities `{geometry.intensity}`",
            "Labels": ", ".join(self.labels.structures) if self.labels else "none",
            "SHA-256": f"`{digest}`",
        }
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        figures = "\n".join(f"- {key}: {value}" for key, value in self.metrics.items()) or "None measured."
        spread = "not measured" if self.relative_volume_sd is None else f"{100 * self.relative_volume_sd:.1f} %"
        heads = f" ({self.volume_heads} scans)" if self.volume_heads else ""
        changes = "\n".join(f"- {line}" for line in self.changelog) or "- first version"
        return (
            f"# {self.name}\n\nResearch software; not a medical device.\n\n| | |\n|---|---|\n{table}\n\n"
            f"## Trained on\n\n{self.training_data}\n\n## Figures\n\n{figures}\n\n"
            f"Standard deviation of predicted over true volume: {spread}{heads}.\n\n## Changes\n\n{changes}\n"
        )


def _in_todays_words(card: dict[str, Any]) -> dict[str, Any]:
    """A card of an older hypodask as a card of this one.

    Raises
    ------
    ModelError
        If its network has an option that hypodask no longer has.
    """
    architecture = card.get("architecture")
    if not isinstance(architecture, dict):
        return card
    # Cards without a kind were written when the U-Net was the only one.
    architecture = {"kind": UNetConfig.kind} | architecture
    if architecture["kind"] == UNetConfig.kind:
        for name, only in _RETIRED.items():
            found = architecture.pop(name, only)
            if found != only:
                raise ModelError(
                    f"{_THE_CARD}: [architecture] has {name} = {found!r}, an option that hypodask no longer has; "
                    f"{only!r} is needed: run these weights with the version that wrote them, or train anew"
                )
    return card | {"architecture": architecture}


def _check_labels(table: LabelTable, channels: int, protocol: str) -> None:
    numbers = [label.index for label in table]
    if 1 + len(table) != channels or not len(table):
        raise ModelError(
            f"the network has {channels} channels, background first, and its card {len(table)} labels; one channel "
            "more than labels, and at least one label, is needed"
        )
    if table.protocol != protocol:
        raise ModelError(
            f"the labels are of protocol {table.protocol!r} and the card of {protocol!r}; give one for both"
        )
    if len(set(numbers)) + len(set(table.structures)) != 2 * len(table) or not 0 < min(numbers) <= max(numbers) < 256:
        raise ModelError(
            f"every label needs a name of its own and a number of its own from 1 to 255, got {list(table.structures)} "
            f"and {numbers}"
        )
    if odd := {label.hemisphere for label in table} - set(get_args(Hemisphere)):
        raise ModelError(f"a label's hemisphere is one of {get_args(Hemisphere)}, got {sorted(odd)}")
