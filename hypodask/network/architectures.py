"""The architectures that a model card can name."""

from flax import nnx

from hypodask.network.efficientnet import EfficientUNet, EfficientUNetConfig
from hypodask.network.unet import UNet, UNetConfig

Architecture = UNetConfig | EfficientUNetConfig
"""Shape of a network that answers slice by slice."""

SliceNetwork = UNet | EfficientUNet
"""Slices in, one logit per class and pixel out."""

KINDS: dict[str, type[Architecture]] = {"unet": UNetConfig, "efficient_unet": EfficientUNetConfig}
"""By the name that a model card gives."""


def build(config: Architecture, *, rngs: nnx.Rngs) -> SliceNetwork:
    """A network of an architecture with random weights.

    Examples
    --------
    >>> type(build(UNetConfig(in_channels=1, out_channels=2, widths=(4, 8)), rngs=nnx.Rngs(0))).__name__
    'UNet'
    """
    return UNet(config, rngs=rngs) if isinstance(config, UNetConfig) else EfficientUNet(config, rngs=rngs)


def kind_of(config: Architecture) -> str:
    """Name of an architecture.

    >>> kind_of(EfficientUNetConfig())
    'efficient_unet'
    """
    return next(name for name, kind in KINDS.items() if isinstance(config, kind))
