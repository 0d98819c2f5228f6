"""What a run begins with: the shape of its networks, the box they see, and their first weights."""

from dataclasses import dataclass, replace

from hypodask.errors import ModelError, TrainingError
from hypodask.labels import LabelTable
from hypodask.network.architectures import AnyNetwork, SliceArchitecture
from hypodask.network.efficientnet import EfficientUNetConfig
from hypodask.network.unet import UNetConfig
from hypodask.network.weights import InputGeometry, load_weights, resolve_model
from hypodask.recipes.hypothalamus import HYPOTHALAMUS_GEOMETRY
from hypodask.training.config import SCRATCH, TrainingConfig


@dataclass(frozen=True)
class Start:
    """What the networks of a run begin with."""

    architecture: SliceArchitecture
    models: tuple[AnyNetwork, ...] = ()
    """Weights to go on from; empty from scratch."""
    name: str = ""
    """Of these weights."""

    @property
    def geometry(self) -> InputGeometry:
        """What the networks see: the box of the shipped one, as much larger as evenly halving it needs."""
        multiple = self.architecture.size_multiple
        i, j, k = HYPOTHALAMUS_GEOMETRY.shape
        wide, high = (multiple * -(-n // multiple) for n in (i, k))
        return replace(HYPOTHALAMUS_GEOMETRY, shape=(wide, j, high))

    def of_fold(self, number: int) -> AnyNetwork | None:
        """What the network of a fold begins with: of an ensemble, each its own member as far as there are any."""
        return self.models[number % len(self.models)] if self.models else None


def start_of(config: TrainingConfig, labels: LabelTable) -> Start:
    """What a run begins with.

    Raises
    ------
    TrainingError
        If the weights to start from are none, are of another kind, or see other input than this network.
    """
    inputs, outputs = HYPOTHALAMUS_GEOMETRY.slices, 1 + len(labels)
    wanted: SliceArchitecture = (
        UNetConfig(inputs, outputs, config.network.widths)
        if config.network.kind == "unet"
        else EfficientUNetConfig(inputs, outputs)
    )
    if config.network.start == SCRATCH:
        return Start(wanted)
    try:
        models, card = load_weights(resolve_model(config.network.start))
    except ModelError as err:
        raise TrainingError(f"[network] start = {config.network.start!r}: {err}") from err
    seen = replace(card.geometry, shape=HYPOTHALAMUS_GEOMETRY.shape, centre_mm=HYPOTHALAMUS_GEOMETRY.centre_mm)
    if seen != HYPOTHALAMUS_GEOMETRY:
        raise TrainingError(
            f"[network] start = {config.network.start!r} sees {card.geometry}; what is trained here sees "
            f"{HYPOTHALAMUS_GEOMETRY}: start from a hypothalamus network, or from scratch"
        )
    if type(card.architecture) is not type(wanted):
        raise TrainingError(
            f"[network] start = {config.network.start!r} is a {card.architecture.description}, and kind = "
            f"{config.network.kind!r}; give its kind, or start from scratch"
        )
    return Start(replace(card.architecture, out_channels=outputs), models, f"{card.name} {card.version}")
