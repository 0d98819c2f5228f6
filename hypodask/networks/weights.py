"""Weights on disk: one safetensors file that carries its model card, and the card again to read beside it.

A weights file is data and nothing else: no pickle, no code. The model card travels inside the file, so that it cannot
be lost. A file may hold an ensemble: several networks of one architecture, such as those of the folds of a
cross-validation. Then the names of its tensors begin with the number of the network.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hypodask.core.documents import to_document
from hypodask.core.errors import ModelError
from hypodask.core.structures import SHIPPED_MODELS
from hypodask.files.digests import sha256_of, sha256_of_file
from hypodask.files.location import Location, absolute
from hypodask.networks.architectures import AnyNetwork, build
from hypodask.networks.cards import ModelCard
from hypodask.networks.unet import parameter_count

SUFFIX = ".safetensors"
KERAS_SUFFIXES = (".h5", ".hdf5")
_CARD_KEY = "hypodask_model_card"


def save_weights(
    path: str | PathLike[str], models: AnyNetwork | Sequence[AnyNetwork], card: ModelCard, *, half: bool = False
) -> Path:
    """Write a network or an ensemble and its card: ``path``, and beside it ``.json`` and ``.md``.

    The weights file appears whole or not at all. The JSON beside it also has the SHA-256 of the weights.

    Parameters
    ----------
    path : path ending in ``.safetensors``
    models : one network, or the networks of an ensemble
    card : ModelCard
        Its ``architecture`` must be that of every network, its ``members`` their number.
    half : bool
        Whether to write numbers of 16 bits: half the size, and weights rounded to 1 part in 2000.

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
    if len(members) != card.members:
        raise ModelError(f"the card describes {card.members} members, {len(members)} were given; give so many")
    for model in members:
        if card.architecture != model.config:
            raise ModelError(f"the card describes {card.architecture}, the model is {model.config}; give its own card")
    kind = np.float16 if half else np.float32
    tensors = {name: np.asarray(variable[...], kind) for name, variable in _variables(members).items()}
    _check_finite(tensors)
    content = save(tensors, metadata={_CARD_KEY: card.to_json()})
    Location(path).write(content)
    digest = sha256_of(content)
    parameters = parameter_count(members[0])
    beside = to_document(card) | {"sha256": digest, "parameters": parameters}
    Location(path.with_suffix(".json")).write((json.dumps(beside, indent=2, ensure_ascii=False) + "\n").encode())
    text = card.to_markdown(parameters=parameters, digest=digest)
    Location(path.with_suffix(".md")).write(text.encode())
    return path


def load_weights(path: str | PathLike[str]) -> tuple[tuple[AnyNetwork, ...], ModelCard]:
    """Read the network of a weights file, or the networks of an ensemble, and the card.

    Parameters
    ----------
    path : path of a ``.safetensors`` file
        Written by ``save_weights``.

    Raises
    ------
    ModelError
        If there is no such file, it is damaged or cut short, it has no card, or its tensors are not those of the
        network that the card describes.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; give the path of a {SUFFIX} file")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_CARD_KEY)
            if text is None:
                raise ModelError("the file has no hypodask model card; give a file written by hypodask's save_weights")
            card = ModelCard.from_json(text)
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
        Names of models without a file that the caller knows; the message for an unknown name lists them too.

    Raises
    ------
    ModelError
        If it is neither, there is no such file, or a shipped file is not the one that its card describes.

    Examples
    --------
    >>> resolve_model("amygdala")
    Traceback (most recent call last):
        ...
    hypodask.core.errors.ModelError: no model is called 'amygdala'; give one of ['hypothalamus', 'icv', 'icv-border', \
'commissures'] or the path of a .safetensors, .h5 or .hdf5 file
    """
    name = os.fspath(name_or_path)
    if name in SHIPPED_MODELS:
        path = Path(str(files("hypodask").joinpath("weights", f"{name}{SUFFIX}")))
        if not path.is_file():
            raise ModelError(f"this installation lacks its own {name!r} weights ({path}); install hypodask anew")
        _check_shipped(path)
        return path
    path = Path(absolute(name))
    if path.suffix.lower() not in (SUFFIX, *KERAS_SUFFIXES):
        raise ModelError(
            f"no model is called {name!r}; give one of {[*SHIPPED_MODELS, *others]} or the path of a "
            f"{SUFFIX}, {' or '.join(KERAS_SUFFIXES)} file"
        )
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; check the path, which is taken from {Path.cwd()}")
    return path


def _check_shipped(path: Path) -> None:
    """Compare shipped weights with the digest in their card."""
    try:
        known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise ModelError(f"the card of {path} cannot be read ({err!r}); install hypodask anew") from err
    if sha256(path) != known:
        raise ModelError(f"{path} is not the file that its card describes: its sha256 differs; install hypodask anew")


def sha256(path: str | PathLike[str]) -> str:
    """SHA-256 of a weights file, as 64 hexadecimal digits.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    try:
        return sha256_of_file(path)
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
    """The networks with the tensors of an open file, whose shapes are checked before any tensor is read."""
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if card.members > max(1, len(found)):
        raise ModelError(
            f"the card describes {card.members} members, the file has {len(found)} tensors; fetch it again"
        )
    # Shapes alone: random weights, which are overwritten at once, would cost every worker seconds.
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
            raise ModelError(
                f"tensor {name} ({tensor.dtype}) is not all finite floating-point numbers; train anew or fetch it again"
            )
