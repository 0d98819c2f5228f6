"""What a run of training is asked for: a TOML file, read into frozen dataclasses and written back whole.

A name that is not known, a value of another type and a path that leads nowhere are errors before anything runs.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from hypodask.errors import TrainingError
from hypodask.location import absolute, is_url
from hypodask.network.augment import Variation
from hypodask.network.learn import Schedule
from hypodask.network.weights import KERAS_SUFFIXES, SUFFIX

Config = TypeVar("Config")

SCRATCH = "scratch"
"""What ``network.start`` says for random weights."""


@dataclass(frozen=True)
class Data:
    """Scans and the outlines that people drew on them: a BIDS dataset with a derivative, or a table."""

    protocol: str
    """Name of the rules by which the outlines were drawn, such as ``ulm-2024``; in the card and in every row of results
    that the weights will give. Volumes of two protocols do not compare."""
    bids: str = ""
    """BIDS dataset of the scans."""
    outlines: str = ""
    """BIDS derivative with the label maps, ``sub-*/[ses-*/]anat/*_dseg.nii.gz``."""
    entities: Mapping[str, str] = field(default_factory=dict)
    """Only label maps whose names have these, such as ``{ desc = "manual" }``."""
    table: str = ""
    """Instead of both: TSV or CSV with columns ``scan`` and ``labels``, and perhaps ``participant_id``, ``session``,
    ``space`` (``orig``, ``ACPC``) and ``transform``."""
    labels: str = ""
    """The label table, ``dseg.tsv``; by default the one at the root of the derivative."""
    description: str = ""
    """Who drew what on which scans: goes into the card."""
    licence: str = "not stated"
    """Of the weights."""


@dataclass(frozen=True)
class Architecture:
    """The network, and where its weights start."""

    kind: Literal["unet", "efficientnet-b0"] = "unet"
    """``efficientnet-b0`` is the paper's own: that encoder, and a U-Net's way up. Larger and slower."""
    start: str = SCRATCH
    """``scratch``, ``hypothalamus`` (the shipped network) or the path of weights to go on from."""
    widths: tuple[int, ...] = (16, 32, 64, 96)
    """Channels at each level of a ``unet``; weights to start from have their own."""


@dataclass(frozen=True)
class Folds:
    """How the network is measured on subjects that it did not see."""

    count: int = 5
    """Networks, each learning from all subjects but its share; 0 learns from all and measures nothing."""
    at_once: int = 1
    """Networks that learn side by side, each in a worker of its own."""
    patience: int = 0
    """Checkpoints without a better one on the held-out subjects before a network stops, and its best one is taken;
    0 learns to the end and takes the last, so that the held-out subjects had no say in it."""
    watch: Literal["loss", "dice"] = "loss"
    """What patience waits for."""
    final: Literal["ensemble", "single"] = "ensemble"
    """The folds' networks together, or one more that learns from all subjects."""


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run of training.

    Raises
    ------
    TrainingError
        If values contradict each other.

    Examples
    --------
    >>> config = TrainingConfig("trained", Data("ulm-2024", bids="study", outlines="study/derivatives/manual"))
    >>> config.schedule.steps, config.folds.count
    (1200, 5)
    """

    out: str
    """Folder of the run; gone on from where it exists."""
    data: Data
    network: Architecture = field(default_factory=Architecture)
    schedule: Schedule = field(default_factory=Schedule)
    folds: Folds = field(default_factory=Folds)
    variation: Variation = field(default_factory=Variation)
    """How far training examples are varied."""
    on_bad: Literal["skip", "stop"] = "skip"
    """Leave out a subject whose scan or outline cannot be used, or stop."""

    def __post_init__(self) -> None:
        for problem in _contradictions(self):
            raise TrainingError(problem)


@dataclass(frozen=True)
class Recipe:
    """How a shipped network is made, instead of a training on data of one's own."""

    name: Literal["hypothalamus", "icv", "commissures"]
    data: str
    """Folder of the recipe's data (``hypodask/recipes``)."""
    work: str
    """Folder for what is computed on the way, and the weights."""
    steps: int = 1200
    leave_out: tuple[str, ...] = ()
    """Heads to measure on."""


@dataclass(frozen=True)
class RecipeConfig:
    """A file that names a recipe."""

    recipe: Recipe


def read_config(path: str | PathLike[str]) -> TrainingConfig | RecipeConfig:
    """Read a run from a TOML file; relative paths in it start from its folder.

    Raises
    ------
    TrainingError
        If there is no such file, it is no TOML, a name is unknown, a value is missing or of another type, or values
        contradict each other.
    """
    path = Path(absolute(path))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise TrainingError(f"{path} cannot be read ({err.strerror}); give the path of a TOML file") from err
    except ValueError as err:
        raise TrainingError(f"{path} is no TOML: {err}; correct that line") from err
    kind = RecipeConfig if "recipe" in values else TrainingConfig
    try:
        return resolved(cast("TrainingConfig | RecipeConfig", _build(kind, values, "")), path.absolute().parent)
    except TrainingError as err:
        raise TrainingError(f"{path}: {err}") from err


PATHS = frozenset({"out", "bids", "outlines", "table", "labels", "data", "work"})
"""Values that are paths; ``start`` is one too where it ends like one."""


def resolved(config: Config, folder: Path) -> Config:
    """The same run with its relative paths made absolute."""
    values = {item.name: getattr(config, item.name) for item in fields(cast(Any, config))}
    changed = {
        name: resolved(value, folder) if is_dataclass(value) else str(folder / os.path.expanduser(value))  # noqa: PTH111 - never raises
        for name, value in values.items()
        if is_dataclass(value) or _is_relative(name, value)
    }
    return cast(Config, replace(cast(Any, config), **changed))


def _is_relative(name: str, value: Any) -> bool:
    is_path = name in PATHS or (name == "start" and value.endswith((SUFFIX, *KERAS_SUFFIXES)))
    return is_path and bool(value) and not is_url(value)


def to_toml(config: object) -> str:
    """A run as a TOML file that gives it again, defaults written out.

    >>> print(to_toml(Folds(count=3)))
    count = 3
    at_once = 1
    patience = 0
    watch = "loss"
    final = "ensemble"
    <BLANKLINE>
    """
    return "\n".join(_toml_lines(asdict(cast(Any, config)), "")) + "\n"


def _toml_lines(values: Mapping[str, Any], place: str) -> Iterator[str]:
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    for name, value in values.items():
        if name not in tables:
            yield f"{name} = {_toml_value(value)}"
    for name, value in tables.items():
        yield f"\n[{place}{name}]"
        yield from _toml_lines(value, f"{place}{name}.")


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers, lists and booleans are TOML's too, but for the letters that JSON may escape in pairs.
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _contradictions(config: TrainingConfig) -> Iterator[str]:
    data, folds, schedule = config.data, config.folds, config.schedule
    if not data.protocol.strip():
        yield "[data] protocol is empty; name the rules by which the outlines were drawn, such as 'ulm-2024'"
    if bool(data.table) == bool(data.bids or data.outlines) or bool(data.bids) != bool(data.outlines):
        yield (
            f"[data] has bids = {data.bids!r}, outlines = {data.outlines!r} and table = {data.table!r}; either bids "
            "and outlines are needed, or table alone"
        )
    if data.table and not data.labels:
        yield "[data] has a table of scans, but no label table; set labels to the path of a dseg.tsv"
    if folds.count < 0 or folds.count == 1:
        yield f"[folds] count is {folds.count}; 0 to measure nothing, or at least 2, is needed"
    if folds.count == 0 and folds.patience:
        yield "[folds] patience waits for held-out subjects, and count = 0 holds none out; set one of them"
    if min(folds.at_once, schedule.steps, schedule.heads, schedule.slices, schedule.checkpoint_every) < 1:
        yield "[folds] at_once and [schedule] steps, heads, slices and checkpoint_every must be at least 1"
    if folds.patience < 0 or not schedule.learning_rate > 0:
        yield "[folds] patience must not be negative, and [schedule] learning_rate must be positive"


def _build(kind: type[Config], values: Mapping[str, Any], place: str) -> Config:
    """Make a dataclass from a decoded table."""
    hints, known = get_type_hints(kind), {item.name: item for item in fields(cast(Any, kind))}
    for name in values.keys() - known.keys():
        raise TrainingError(_unknown(name, list(known), place))
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise TrainingError(f"{_where(place)} lacks {name!r}; add it ({_type_name(hints[name])})")
    made = {name: _value(hints[name], value, name, place) for name, value in values.items()}
    try:
        return kind(**made)
    except TrainingError:
        raise
    except ValueError as err:
        raise TrainingError(f"{_where(place)}: {err}") from err


def _unknown(name: str, known: list[str], place: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; is {close[0]!r} meant?" if close else ""
    return f"{_where(place)} has {name!r}, which is not known; it may have {', '.join(known)}{hint}"


def _where(place: str) -> str:
    return f"[{place}]" if place else "the top of the file"


def _value(hint: Any, value: Any, name: str, place: str) -> Any:
    if is_dataclass(hint) and isinstance(value, dict):
        return _build(cast(type[Any], hint), value, f"{place}.{name}".lstrip("."))
    if not _fits(hint, value):
        raise TrainingError(f"{_where(place)} has {name} = {value!r}; {_type_name(hint)} is needed")
    if get_origin(hint) is tuple:
        return tuple(value)
    return float(value) if hint is float else value


def _fits(hint: Any, value: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_fits(arguments[0], item) for item in value)
    if origin is not None and origin not in (Union, UnionType):
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    # To Python true is a whole number, and to nobody else.
    if isinstance(value, bool) or hint is bool:
        return hint is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if hint is float else hint) if isinstance(hint, type) else False


def _type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        return f"a list, each {_type_name(arguments[0])}"
    if origin is not None or is_dataclass(hint):
        return "a table"
    names = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, str(hint))
