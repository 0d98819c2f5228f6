"""Weights on disk: one safetensors file that carries its model card, and the card again to read beside it.

A weights file is data and nothing else: no pickle, no code. What the network is, what it takes, what it
was trained on and how good it was on what, travel inside the file, so that they cannot be lost from it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
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
from hypodask.network.unet import UNet, UNetConfig, parameter_count

Task = Literal["hypothalamus", "icv", "commissures"]

SUFFIX = ".safetensors"
KERAS_SUFFIXES = (".h5", ".hdf5")
_CARD_KEY = "hypodask_model_card"


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
    """Voxels from one of these slices to the next."""
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Middle of the grid in AC-PC space."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in self.spacing_mm))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.spacing_mm) != 3 or len(self.shape) != 3 or min(*self.spacing_mm, *self.shape) <= 0:
            raise ModelError(f"an input needs three positive voxel sizes and three positive counts, got {self}")
        if self.slices < 1 or self.slices % 2 == 0 or self.slice_axis not in (0, 1, 2):
            raise ModelError(f"an input needs an odd number of slices across axis 0, 1 or 2, got {self}")


@dataclass(frozen=True)
class ModelCard:
    """What a weights file is, and what is known of it.

    Raises
    ------
    ModelError
        If the task is unknown, the channels do not match the slices, metrics do not say what they were
        measured on, or the standard deviation of the volume is not positive.
    """

    name: str
    task: Task
    protocol: str
    """Whose outlines it learnt; volumes of two protocols are never pooled silently."""
    architecture: UNetConfig
    geometry: InputGeometry
    training_data: str
    """Which scans, whose labels, and how they were varied."""
    licence: str
    version: str = "0"
    metrics: Mapping[str, float | str] = field(default_factory=dict)
    """Figures by name; ``measured_on`` among them says which heads, and that they were held out."""
    relative_volume_sd: float | None = None
    """Standard deviation of predicted over true volume on held-out heads; None where nobody measured it."""
    changelog: tuple[str, ...] = ()
    """One line for each version, newest first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "changelog", tuple(self.changelog))
        if self.task not in get_args(Task):
            raise ModelError(f"a model card's task is one of {get_args(Task)}, got {self.task!r}")
        if self.architecture.in_channels != self.geometry.slices:
            raise ModelError(
                f"the network takes {self.architecture.in_channels} channels and the geometry gives "
                f"{self.geometry.slices} slices; they must be equal"
            )
        if self.metrics and "measured_on" not in self.metrics:
            raise ModelError("metrics need a 'measured_on' that says which heads they come from")
        if self.relative_volume_sd is not None and not 0 < self.relative_volume_sd < np.inf:
            raise ModelError(f"relative_volume_sd must be positive or None, got {self.relative_volume_sd}")

    def to_json(self) -> str:
        """Write the card as JSON, keys in the order of the fields."""
        return json.dumps(asdict(self) | {"metrics": dict(self.metrics)}, indent=2, ensure_ascii=False)

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
            card["architecture"] = _build(UNetConfig, card["architecture"])
            card["geometry"] = _build(InputGeometry, card["geometry"])
            return cast(ModelCard, _build(cls, card))
        except ModelError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            raise ModelError(
                f"the model card cannot be read ({err!r}); the file may be damaged, or written by another "
                "version of hypodask: fetch it again or update"
            ) from err

    def to_markdown(self, *, parameters: int, digest: str) -> str:
        """Write the card for people.

        Parameters
        ----------
        parameters : int
            Trained numbers in the network.
        digest : str
            SHA-256 of the weights file.
        """
        geometry, network = self.geometry, self.architecture
        rows = {
            "Task": self.task,
            "Protocol": self.protocol,
            "Version": self.version,
            "Licence": self.licence,
            "Network": f"2D U-Net, widths {list(network.widths)}, {parameters} parameters",
            "Input": f"{' x '.join(map(str, geometry.shape))} voxels of "
            f"{' x '.join(f'{s:g}' for s in geometry.spacing_mm)} mm, {geometry.slices} slices at a time "
            f"across axis {geometry.slice_axis}, intensities `{geometry.intensity}`",
            "SHA-256": f"`{digest}`",
        }
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        figures = "\n".join(f"- {key}: {value}" for key, value in self.metrics.items()) or "None measured."
        spread = "not measured" if self.relative_volume_sd is None else f"{100 * self.relative_volume_sd:.1f} %"
        changes = "\n".join(f"- {line}" for line in self.changelog) or "- first version"
        return (
            f"# {self.name}\n\nResearch software; not a medical device.\n\n| | |\n|---|---|\n{table}\n\n"
            f"## Trained on\n\n{self.training_data}\n\n## Figures\n\n{figures}\n\n"
            f"Standard deviation of predicted over true volume: {spread}.\n\n## Changes\n\n{changes}\n"
        )


def save_weights(path: str | PathLike[str], model: UNet, card: ModelCard) -> Path:
    """Write a model and its card: ``path``, and beside it ``.json`` and ``.md``.

    The weights file appears whole or not at all. The JSON beside it also holds the SHA-256 of the weights.

    Parameters
    ----------
    path : path ending in ``.safetensors``
    model : UNet
    card : ModelCard
        Its ``architecture`` must be the model's own.

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
    if card.architecture != model.config:
        raise ModelError(f"the card describes {card.architecture}, the model is {model.config}")
    tensors = {name: np.asarray(variable[...], np.float32) for name, variable in _variables(model).items()}
    _check_finite(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={_CARD_KEY: card.to_json()})
    digest = sha256(partial)
    partial.replace(path)
    beside = json.loads(card.to_json()) | {"sha256": digest, "parameters": parameter_count(model)}
    path.with_suffix(".json").write_text(json.dumps(beside, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = card.to_markdown(parameters=parameter_count(model), digest=digest)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return path


def load_weights(path: str | PathLike[str]) -> tuple[UNet, ModelCard]:
    """Read a model and its card back.

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
            return _fill(card.architecture, file), card
    except (SafetensorError, OSError) as err:
        raise ModelError(
            f"{path} cannot be read as safetensors ({err}); it may be damaged or cut short: fetch it again"
        ) from err
    except ModelError as err:
        err.add_note(f"while reading {path}")
        raise


def resolve_model(name_or_path: str | PathLike[str]) -> Path:
    """Find a weights file from the name of a shipped model or a path.

    Parameters
    ----------
    name_or_path : str or path
        ``"hypothalamus"``, ``"icv"`` or ``"commissures"`` for those shipped with hypodask; otherwise the path of a
        ``.safetensors`` file, or of the published Keras weights (``.h5``, ``.hdf5``).

    Raises
    ------
    ModelError
        If it is neither, or there is no file.

    Examples
    --------
    >>> resolve_model("amygdala")
    Traceback (most recent call last):
        ...
    hypodask.errors.ModelError: no model is called 'amygdala'; give one of ['hypothalamus', 'icv', 'commissures'] or \
the path of a .safetensors, .h5 or .hdf5 file
    """
    name = os.fspath(name_or_path)
    if name in get_args(Task):
        path = Path(str(files("hypodask").joinpath("weights", f"{name}{SUFFIX}")))
        if not path.is_file():
            raise ModelError(f"this installation lacks its own {name!r} weights ({path}); install hypodask anew")
        return path
    path = Path(name)
    if path.suffix.lower() not in (SUFFIX, *KERAS_SUFFIXES):
        raise ModelError(
            f"no model is called {name!r}; give one of {list(get_args(Task))} or the path of a "
            f"{SUFFIX}, {' or '.join(KERAS_SUFFIXES)} file"
        )
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; check the path, which is taken from {Path.cwd()}")
    return path


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


def _variables(model: UNet) -> dict[str, nnx.Variable[Any]]:
    """Weights and running statistics by dotted name, such as ``down.0.first.conv.kernel``."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, place)): cast(nnx.Variable[Any], variable) for place, variable in flat}


def _fill(config: UNetConfig, file: Any) -> UNet:
    """Build a network from the tensors of an open file, whose shapes are checked before any is read."""
    # Shapes alone: drawing random weights only to overwrite them would cost every worker seconds.
    model = nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0)))
    wanted = {name: tuple(variable.shape) for name, variable in _variables(model).items()}
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ModelError(
            f"the tensors are not those of {config}: {len(wrong)} differ, the first is {wrong[0]} of shape "
            f"{found.get(wrong[0])} instead of {wanted.get(wrong[0])}; fetch the file again"
        )
    tensors = {name: np.asarray(file.get_tensor(name)) for name in wanted}
    _check_finite(tensors)
    for name, variable in _variables(model).items():
        variable.set_value(jnp.asarray(tensors[name], jnp.float32))
    return model


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
