"""Weights on disk: one safetensors file that carries its model card, and the card again to read beside it.

A weights file is data and nothing else: no pickle, no code. What the network is, what it takes, what it
was trained on and how good it was on what, travel inside the file, so that they cannot be lost from it.

A file may hold several members of one architecture, such as the networks of the folds of a cross-validation, that
answer together. Then the names of its tensors begin with the member's number.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hypodask.errors import ModelError
from hypodask.grid import Grid, box_grid
from hypodask.labels import HYPOTHALAMUS, HYPOTHALAMUS_SIDES, ICV, Hemisphere, Label, LabelTable
from hypodask.location import absolute, is_url
from hypodask.network.architectures import KINDS, AnyNetwork, Architecture, VoxelArchitecture, build, kind_of
from hypodask.network.profiles import ProfileNetConfig
from hypodask.network.unet import parameter_count
from hypodask.network.volume_unet import VolumeUNetConfig

Task = Literal["hypothalamus", "icv", "icv-border", "commissures"]

OUTLINING: tuple[Task, ...] = ("hypothalamus", "icv")
"""Tasks whose networks have a channel for each label."""

SUFFIX = ".safetensors"
KERAS_SUFFIXES = (".h5", ".hdf5")
_CARD_KEY = "hypodask_model_card"

USUAL_LABELS: dict[tuple[Task, int], LabelTable] = {
    ("hypothalamus", 1 + len(HYPOTHALAMUS)): HYPOTHALAMUS,
    ("hypothalamus", 1 + len(HYPOTHALAMUS_SIDES)): HYPOTHALAMUS_SIDES,
    ("icv", 1 + len(ICV)): ICV,
}
"""What the channels are where a card does not say so, by task and number of channels."""


@dataclass(frozen=True)
class InputGeometry:
    """What a network takes.

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
    """Channels: the slice and its neighbours on either side; odd."""
    slice_axis: int
    """Axis that the slices are taken across: 1 for coronal."""
    intensity: str
    """Name of the scaling that the voxels go through first."""
    slice_step: int = 1
    """Voxels from one of these slices to the next; 0 shows the same slice in every channel."""
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Middle of the grid in AC-PC space."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in self.spacing_mm))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.spacing_mm) != 3 or len(self.shape) != 3 or min(*self.spacing_mm, *self.shape) <= 0:
            raise ModelError(f"an input needs three positive voxel sizes and three positive counts, got {self}")
        if self.slices < 1 or self.slices % 2 == 0 or self.slice_axis not in (0, 1, 2):
            raise ModelError(f"an input needs an odd number of slices across axis 0, 1 or 2, got {self}")

    @property
    def grid(self) -> Grid:
        """Where its voxels are, in AC-PC space."""
        return box_grid(self.shape, self.spacing_mm, self.centre_mm)


@dataclass(frozen=True)
class ModelCard:
    """What a weights file is, and what is known of it.

    Raises
    ------
    ModelError
        If the task is unknown, the channels do not match the slices or the labels, the labels are not told and not
        known, metrics do not say what they were measured on, or the standard deviation of the volume is not positive.
    """

    name: str
    task: Task
    protocol: str
    """Whose outlines it learnt; volumes of two protocols are never pooled silently."""
    architecture: Architecture
    geometry: InputGeometry
    training_data: str
    """Which scans, whose labels, and how they were varied."""
    licence: str
    version: str = "0"
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    """Figures by name; ``measured_on`` among them says which heads, and that they were held out."""
    relative_volume_sd: float | None = None
    """Standard deviation of predicted over true volume on held-out heads; None where nobody measured it."""
    volume_heads: int | None = None
    """How many heads that standard deviation was measured on."""
    part_volume_sd: Mapping[str, float] = field(default_factory=dict)
    """The same for sides and subunits, by structure."""
    changelog: tuple[str, ...] = ()
    """One line for each version, newest first."""
    members: int = 1
    """Networks in the file that answer together."""
    labels: LabelTable | None = None
    """What the channels after background are, in their order; None for a network that outlines nothing. Where it is
    left out, the usual labels of the task, in the card's protocol."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "changelog", tuple(self.changelog))
        if self.task not in get_args(Task):
            raise ModelError(f"a model card's task is one of {get_args(Task)}, got {self.task!r}")
        if isinstance(self.architecture, VoxelArchitecture) and self.architecture.in_channels != self.geometry.slices:
            raise ModelError(
                f"the network takes {self.architecture.in_channels} channels and the geometry gives "
                f"{self.geometry.slices} slices; they must be equal"
            )
        if self.metrics and "measured_on" not in self.metrics:
            raise ModelError("metrics need a 'measured_on' that says which heads they come from")
        if self.relative_volume_sd is not None and not 0 < self.relative_volume_sd < np.inf:
            raise ModelError(f"relative_volume_sd must be positive or None, got {self.relative_volume_sd}")
        if self.volume_heads is not None and self.volume_heads < 2:
            raise ModelError(f"a standard deviation needs at least 2 volume_heads, got {self.volume_heads}")
        if not all(0 < sd < np.inf for sd in self.part_volume_sd.values()):
            raise ModelError(f"every part_volume_sd must be positive, got {dict(self.part_volume_sd)}")
        if self.members < 1:
            raise ModelError(f"a weights file holds at least one member, got {self.members}")
        if self.task in OUTLINING:
            object.__setattr__(self, "labels", self.labels or self._usual_labels())
        if self.labels is not None:
            _check_labels(self.labels, self.architecture.out_channels, self.protocol)

    def _usual_labels(self) -> LabelTable:
        usual = USUAL_LABELS.get((self.task, self.architecture.out_channels))
        if usual is None:
            raise ModelError(
                f"the card does not say what the {self.architecture.out_channels} channels of its {self.task} network "
                "are, background first; give it labels"
            )
        return replace(usual, protocol=self.protocol)

    def to_json(self) -> str:
        """Write the card as JSON, keys in the order of the fields."""
        plain = {"metrics": dict(self.metrics), "part_volume_sd": dict(self.part_volume_sd)}
        architecture = {"kind": kind_of(self.architecture)} | asdict(self.architecture)
        return json.dumps(asdict(self) | plain | {"architecture": architecture}, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card from JSON.

        Raises
        ------
        ModelError
            If it is no JSON, or a field is missing, unknown, or holds what it cannot.
        """
        try:
            card = json.loads(text)
            card["architecture"] = _architecture(card["architecture"])
            card["geometry"] = _build(InputGeometry, card["geometry"])
            card["labels"] = _label_table(card.get("labels"))
            return cast(ModelCard, _build(cls, card))
        except ModelError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
            raise ModelError(
                f"the model card cannot be read ({err!r}); the file may be damaged, or written by another "
                "version of hypodask: fetch it again or update"
            ) from err

    def to_markdown(self, *, parameters: int, digest: str) -> str:
        """Write the card for people.

        Parameters
        ----------
        parameters : int
            Trained numbers in the network, or in one of its members.
        digest : str
            SHA-256 of the weights file.
        """
        geometry = self.geometry
        match self.architecture:
            case VolumeUNetConfig():
                seen = "all at a time"
            case ProfileNetConfig():
                seen = "along normals of an outline"
            case _:
                seen = f"{geometry.slices} slices at a time across axis {geometry.slice_axis}"
        ensemble = f"{self.members} members that answer together, each a " if self.members > 1 else ""
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
        heads = f" ({self.volume_heads} heads)" if self.volume_heads else ""
        changes = "\n".join(f"- {line}" for line in self.changelog) or "- first version"
        return (
            f"# {self.name}\n\nResearch software; not a medical device.\n\n| | |\n|---|---|\n{table}\n\n"
            f"## Trained on\n\n{self.training_data}\n\n## Figures\n\n{figures}\n\n"
            f"Standard deviation of predicted over true volume: {spread}{heads}.\n\n## Changes\n\n{changes}\n"
        )


def save_weights(
    path: str | PathLike[str], models: AnyNetwork | Sequence[AnyNetwork], card: ModelCard, *, half: bool = False
) -> Path:
    """Write a model, or the members of an ensemble, and their card: ``path``, and beside it ``.json`` and ``.md``.

    The weights file appears whole or not at all. The JSON beside it also holds the SHA-256 of the weights.

    Parameters
    ----------
    path : path ending in ``.safetensors``
    models : AnyNetwork or several
    card : ModelCard
        Its ``architecture`` must be that of every model, its ``members`` their number.
    half : bool
        Whether to write numbers of 16 bits: half the size, and weights right to 1 in 2000.

    Returns
    -------
    Path
        Of the weights file.

    Raises
    ------
    ModelError
        If the path ends otherwise, the card describes another network, or a weight is not finite.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ModelError(f"weights are written to a file ending in {SUFFIX}, got {path.name!r}")
    members = (models,) if isinstance(models, AnyNetwork) else tuple(models)
    _check_members(members, card)
    kind = np.float16 if half else np.float32
    tensors = {name: np.asarray(variable[...], kind) for name, variable in _variables(members).items()}
    _check_finite(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={_CARD_KEY: card.to_json()})
    digest = sha256(partial)
    partial.replace(path)
    parameters = parameter_count(members[0])
    beside = json.loads(card.to_json()) | {"sha256": digest, "parameters": parameters}
    path.with_suffix(".json").write_text(json.dumps(beside, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = card.to_markdown(parameters=parameters, digest=digest)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return path


def _check_members(members: Sequence[AnyNetwork], card: ModelCard) -> None:
    if len(members) != card.members:
        raise ModelError(f"the card describes {card.members} members, {len(members)} were given")
    for model in members:
        if card.architecture != model.config:
            raise ModelError(f"the card describes {card.architecture}, the model is {model.config}")


def load_weights(path: str | PathLike[str]) -> tuple[tuple[AnyNetwork, ...], ModelCard]:
    """Read the members of a weights file, one or several, and their card back.

    Parameters
    ----------
    path : path of a ``.safetensors`` file
        Written by ``save_weights``.

    Raises
    ------
    ModelError
        If there is no such file, it is damaged or cut short, has no card, or its tensors are not those of
        the network that the card describes.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; give the path of a {SUFFIX} file")
    try:
        with safe_open(path, framework="numpy") as file:
            card = ModelCard.from_json(_card_text(file.metadata()))
            return _filled(card, file), card
    except (SafetensorError, OSError) as err:
        raise ModelError(
            f"{path} cannot be read as safetensors ({err}); it may be damaged or cut short: fetch it again"
        ) from err
    except ModelError as err:
        err.add_note(f"while reading {path}")
        raise


def resolve_model(name_or_path: str | PathLike[str], *, others: Sequence[str] = ()) -> Path:
    """Find a weights file from the name of a shipped model or a path.

    Parameters
    ----------
    name_or_path : str or path
        ``"hypothalamus"``, ``"icv"`` or ``"commissures"`` for those shipped with hypodask; otherwise the path of a
        ``.safetensors`` file, or of the published Keras weights (``.h5``, ``.hdf5``).
    others
        Names of models without a file, which the caller knows by itself: told where a name is none.

    Raises
    ------
    ModelError
        If it is neither, or there is no file.

    Examples
    --------
    >>> resolve_model("amygdala")
    Traceback (most recent call last):
        ...
    hypodask.errors.ModelError: no model is called 'amygdala'; give one of ['hypothalamus', 'icv', 'icv-border', \
'commissures'] or the path of a .safetensors, .h5 or .hdf5 file
    """
    name = os.fspath(name_or_path)
    if name in get_args(Task):
        path = Path(str(files("hypodask").joinpath("weights", f"{name}{SUFFIX}")))
        if not path.is_file():
            raise ModelError(f"this installation lacks its own {name!r} weights ({path}); install hypodask anew")
        _check_shipped(path)
        return path
    path = Path(name if is_url(name) else absolute(name))
    if path.suffix.lower() not in (SUFFIX, *KERAS_SUFFIXES):
        raise ModelError(
            f"no model is called {name!r}; give one of {[*get_args(Task), *others]} or the path of a "
            f"{SUFFIX}, {' or '.join(KERAS_SUFFIXES)} file"
        )
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; check the path, which is taken from {Path.cwd()}")
    return path


def _check_shipped(path: Path) -> None:
    """Compare shipped weights with the digest in their card.

    Raises
    ------
    ModelError
        If they differ, or the card says none.
    """
    try:
        known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise ModelError(f"the card of {path} cannot be read ({err!r}); install hypodask anew") from err
    if sha256(path) != known:
        raise ModelError(f"{path} is not the file that its card describes: its sha256 differs; install hypodask anew")


def sha256(path: str | PathLike[str]) -> str:
    """Fingerprint of a file, as 64 hexadecimal digits.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ModelError(f"cannot read {path} to fingerprint it ({err.strerror}); check the path") from err


def _variables(members: Sequence[AnyNetwork]) -> dict[str, nnx.Variable[Any]]:
    """Weights and running statistics by dotted name, such as ``down.0.first.conv.kernel``, or ``4.down.0...``."""
    flat = {
        (member, *place): variable
        for member, model in enumerate(members)
        for place, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    }
    start = 0 if len(members) > 1 else 1
    return {".".join(map(str, place[start:])): cast(nnx.Variable[Any], variable) for place, variable in flat.items()}


def _filled(card: ModelCard, file: Any) -> tuple[AnyNetwork, ...]:
    """Build the members from the tensors of an open file, whose shapes are checked before any is read."""
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if card.members > max(1, len(found)):
        raise ModelError(f"the card describes {card.members} members, the file has {len(found)} tensors")
    # Shapes alone: drawing random weights only to overwrite them would cost every worker seconds.
    empty = lambda: build(card.architecture, rngs=nnx.Rngs(0))  # noqa: E731
    members = tuple(nnx.eval_shape(empty) for _ in range(card.members))
    variables = _variables(members)
    _check_shapes(found, {name: tuple(variable.shape) for name, variable in variables.items()}, card)
    tensors = {name: np.asarray(file.get_tensor(name)) for name in variables}
    _check_finite(tensors)
    for name, variable in variables.items():
        variable.set_value(jnp.asarray(tensors[name], jnp.float32))
    return members


def _check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], card: ModelCard) -> None:
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ModelError(
            f"the tensors are not those of {card.members} x {card.architecture}: {len(wrong)} differ, the first is "
            f"{wrong[0]} of shape {found.get(wrong[0])} instead of {wanted.get(wrong[0])}; fetch the file again"
        )


def _check_finite(tensors: Mapping[str, ndarray]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
            raise ModelError(f"tensor {name} ({tensor.dtype}) is not all finite floating-point numbers")


def _card_text(metadata: Mapping[str, str] | None) -> str:
    text = (metadata or {}).get(_CARD_KEY)
    if text is None:
        raise ModelError("the file has no hypodask model card; give a file written by hypodask's save_weights")
    return text


def _build(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Make a dataclass from decoded JSON, lists as tuples; extra names are an error, not a guess."""
    unknown = values.keys() - {f.name for f in fields(kind)}
    if unknown:
        raise ModelError(f"the model card has unknown fields {sorted(unknown)}; a newer hypodask may know them: update")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _architecture(values: Mapping[str, Any]) -> Architecture:
    """An architecture from decoded JSON; cards that say no kind are of before there were two."""
    values = dict(values)
    kind = values.pop("kind", "unet")
    if kind not in KINDS:
        raise ModelError(
            f"a network's kind is one of {list(KINDS)}, got {kind!r}; a newer hypodask may know it: update"
        )
    return cast(Architecture, _build(KINDS[kind], values))


def _label_table(table: Mapping[str, Any] | None) -> LabelTable | None:
    """Labels from decoded JSON."""
    if table is None:
        return None
    rows = tuple(_build(Label, row) for row in table["labels"])
    return cast(LabelTable, _build(LabelTable, {**table, "labels": rows}))


def _check_labels(table: LabelTable, channels: int, protocol: str) -> None:
    numbers = [label.index for label in table]
    if 1 + len(table) != channels or not len(table):
        raise ModelError(
            f"the network has {channels} channels, background first, and its card {len(table)} labels; there must be "
            "one channel more than labels, and at least one label"
        )
    if table.protocol != protocol:
        raise ModelError(f"the labels are of protocol {table.protocol!r} and the card of {protocol!r}; say one")
    if len(set(numbers)) + len(set(table.structures)) != 2 * len(table) or not 0 < min(numbers) <= max(numbers) < 256:
        raise ModelError(
            f"labels need names of their own and numbers of their own from 1 to 255, got {list(table.structures)} and "
            f"{numbers}"
        )
    if odd := {label.hemisphere for label in table} - set(get_args(Hemisphere)):
        raise ModelError(f"a label's hemisphere is one of {get_args(Hemisphere)}, got {sorted(odd)}")
