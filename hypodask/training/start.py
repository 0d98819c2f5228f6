"""What a run begins with: the architecture of its networks, the box they see, and their first weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from hypodask.core.errors import ModelError, TrainingError
from hypodask.core.structures import LabelTable, structure
from hypodask.learning.training_box import training_geometry
from hypodask.networks.architectures import AnyNetwork, SliceArchitecture
from hypodask.networks.cards import InputGeometry
from hypodask.networks.efficientnet import EfficientUNetConfig
from hypodask.networks.unet import UNetConfig
from hypodask.networks.weights import load_weights, resolve_model
from hypodask.training.config import SCRATCH, TrainingConfig


@dataclass(frozen=True)
class Start:
    """What the networks of a run begin with."""

    architecture: SliceArchitecture
    geometry: InputGeometry
    """What the networks see."""
    models: Sequence[AnyNetwork] = ()
    """Weights to go on from; none from scratch."""
    name: str = ""
    """Name and version of these weights."""

    def of_fold(self, number: int) -> AnyNetwork | None:
        """The network that a fold begins with; the members of an ensemble are given to one fold each, in turn."""
        return self.models[number % len(self.models)] if self.models else None


def start_of(config: TrainingConfig, labels: LabelTable) -> Start:
    """What a run begins with.

    Raises
    ------
    TrainingError
        If the weights to start from cannot be loaded, are of another kind, or see other input than this network.
    """
    what = structure(labels.whole)
    outputs, sees = 1 + len(labels), training_geometry(what)
    wanted: SliceArchitecture = (
        UNetConfig(sees.slices, outputs, config.network.widths)
        if config.network.kind == "unet"
        else EfficientUNetConfig(sees.slices, outputs)
    )
    named = f"[network] start = {config.network.start!r}"
    if config.network.start == SCRATCH:
        return Start(wanted, training_geometry(what, multiple=wanted.size_multiple))
    try:
        models, card = load_weights(resolve_model(config.network.start))
    except ModelError as err:
        raise TrainingError(f"{named}: {err}") from err
    # A network is the same at every place of its box, so that another box makes no difference to its weights.
    if replace(card.geometry, shape=sees.shape, centre_mm=sees.centre_mm) != sees:
        raise TrainingError(
            f"{named} sees {card.geometry}; a network of {what.name} sees {sees}: start from a network of {what.name}, "
            "or from scratch"
        )
    if type(card.architecture) is not type(wanted):
        raise TrainingError(
            f"{named} is a {card.architecture.description}, and kind = {config.network.kind!r}; give its kind, or "
            "start from scratch"
        )
    architecture = replace(card.architecture, out_channels=outputs)
    if card.task != what.name and card.architecture == architecture:
        # As many classes, but of another structure: they start anew, as classes of another number do.
        models = tuple(map(_with_new_classes, models))
    geometry = training_geometry(what, multiple=architecture.size_multiple)
    return Start(architecture, geometry, models, f"{card.name} {card.version}")


def _with_new_classes(model: AnyNetwork) -> AnyNetwork:
    """A copy whose last layer is zero, so that every class is equally probable."""
    copy = nnx.clone(model)
    nnx.update(copy.classify, jax.tree.map(jnp.zeros_like, nnx.state(copy.classify)))
    return copy
