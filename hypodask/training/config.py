"""The configuration of a run of training: a TOML file, read into frozen dataclasses and written back whole.

An unknown name, a value of another type and a path that leads nowhere are errors before anything runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from hypodask.core.documents import from_document, read_table
from hypodask.core.errors import TrainingError
from hypodask.core.structures import MAIN, STRUCTURES
from hypodask.files.location import absolute, join
from hypodask.learning.augmentation import Variation
from hypodask.learning.loop import Schedule
from hypodask.networks.weights import KERAS_SUFFIXES, SUFFIX

Config = TypeVar("Config")

SCRATCH = "scratch"
"""What ``network.start`` says for random weights."""


@dataclass(frozen=True)
class Data:
    """Scans and manual label maps of one structure: a BIDS dataset with a derivative, or a table."""

    protocol: str
    """Name of the rules of the manual segmentation, such as ``ulm-2024``. It stands in the card and in every row of
    results that the weights will give: volumes of two protocols cannot be compared."""
    bids: str = ""
    """BIDS dataset of the scans."""
    outlines: str = ""
    """BIDS derivative with the label maps, ``sub-*/[ses-*/]anat/*_dseg.nii.gz``."""
    entities: Mapping[str, str] = field(default_factory=dict)
    """Only label maps whose names have these entities, such as ``{ desc = "manual" }``."""
    table: str = ""
    """Instead of both: TSV or CSV with columns ``scan`` and ``labels``, and optionally ``participant_id``, ``session``,
    ``space`` (``orig``, ``ACPC``) and ``transform``."""
    labels: str = ""
    """The label table, ``dseg.tsv``; by default the one at the root of the derivative."""
    description: str = ""
    """Who segmented which scans, and how: goes into the card."""
    licence: str = "not stated"
    """Licence of the weights."""
    structure: str = MAIN.name
    """What all labels together make up; one of :data:`hypodask.core.structures.STRUCTURES`."""


@dataclass(frozen=True)
class Architecture:
    """The network, where its weights start and what its training minimises."""

    kind: Literal["unet", "efficientnet-b0"] = "unet"
    """``efficientnet-b0`` is the paper's own: that encoder, and the decoder of a U-Net. Larger and slower."""
    start: str = SCRATCH
    """``scratch``, or the name of a shipped network or the path of weights to go on from."""
    widths: tuple[int, ...] = (16, 32, 64, 96)
    """Channels at each level of a ``unet``; weights to start from have their own."""
    loss: Literal["cross_entropy_dice", "cross_entropy_jaccard"] = "cross_entropy_dice"
    """``cross_entropy_jaccard`` is the paper's own. See :mod:`hypodask.learning.losses`."""


@dataclass(frozen=True)
class Folds:
    """How the network is measured on subjects that it has not learnt from."""

    count: int = 5
    """Number of networks, each of which learns from all subjects but its share; 0 learns from all and measures
    nothing."""
    at_once: int = 1
    """Networks that learn at the same time, each in a worker of its own."""
    patience: int = 0
    """Checkpoints without improvement on the held-out subjects after which a network stops; its best one is kept. 0
    learns to the end and keeps the last, so that the held-out subjects have no influence."""
    watch: Literal["loss", "dice"] = "loss"
    """What must improve."""
    final: Literal["ensemble", "single"] = "ensemble"
    """An ensemble of the folds' networks, or one more network that learns from all subjects."""


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
    """Folder of the run; where it exists, the run goes on."""
    data: Data
    network: Architecture = field(default_factory=Architecture)
    schedule: Schedule = field(default_factory=Schedule)
    folds: Folds = field(default_factory=Folds)
    variation: Variation = field(default_factory=Variation)
    """How far training examples are varied."""
    on_bad: Literal["skip", "stop"] = "skip"
    """Leave out a subject whose scan or label map cannot be used, or stop."""

    def __post_init__(self) -> None:
        for problem in _contradictions(self):
            raise TrainingError(problem)


def read_config(path: str | PathLike[str]) -> TrainingConfig:
    """Read a run from a TOML file; relative paths in it start from its folder.

    Raises
    ------
    TrainingError
        If there is no such file, it is not TOML, a name is unknown, a value is missing or of another type, or values
        contradict each other.
    """
    path = Path(absolute(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise TrainingError(f"{path} cannot be read ({err.strerror}); give the path of a TOML file") from err
    except UnicodeDecodeError as err:
        raise TrainingError(f"{path} is not TOML: {err}; save it as UTF-8") from err
    what, cure = str(path), "correct the file"
    values = read_table(text, "TOML", what=what, error=TrainingError, cure=cure)
    config = from_document(TrainingConfig, values, what=what, error=TrainingError, cure=cure)
    return resolved(config, path.absolute().parent)


_PATHS = frozenset({"out", "bids", "outlines", "table", "labels"})
"""Values that are paths; ``start`` is one too where it has the suffix of weights."""


def resolved(config: Config, folder: Path) -> Config:
    """The same run with its relative paths made absolute."""
    values = {item.name: getattr(config, item.name) for item in fields(cast(Any, config))}
    changed = {
        name: resolved(value, folder) if is_dataclass(value) else join(str(folder), value)
        for name, value in values.items()
        if is_dataclass(value) or _is_relative(name, value)
    }
    return cast(Config, replace(cast(Any, config), **changed))


def _is_relative(name: str, value: Any) -> bool:
    is_path = name in _PATHS or (name == "start" and value.endswith((SUFFIX, *KERAS_SUFFIXES)))
    return is_path and bool(value)


def _contradictions(config: TrainingConfig) -> Iterator[str]:
    data, folds, schedule = config.data, config.folds, config.schedule
    if data.structure not in STRUCTURES:
        yield (
            f"[data] structure is {data.structure!r}, which is no structure that hypodask measures; give one of "
            f"{', '.join(STRUCTURES)}, or add a record to hypodask/core/structures.py"
        )
    if not data.protocol.strip():
        yield "[data] protocol is empty; name the rules of the manual segmentation, such as 'ulm-2024'"
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
        yield "[folds] patience needs held-out subjects, and count = 0 holds none out; change one of them"
    if min(folds.at_once, schedule.steps, schedule.heads, schedule.slices, schedule.checkpoint_every) < 1:
        yield "[folds] at_once and [schedule] steps, heads, slices and checkpoint_every must be at least 1"
    if folds.patience < 0 or not schedule.learning_rate > 0:
        yield "[folds] patience must not be negative, and [schedule] learning_rate must be positive"
