"""The architectures that a model card can name."""

from flax import nnx

from hypodask.network.efficientnet import EfficientUNet, EfficientUNetConfig
from hypodask.network.profiles import ProfileNet, ProfileNetConfig
from hypodask.network.unet import UNet, UNetConfig
from hypodask.network.volume_unet import VolumeUNet, VolumeUNetConfig

SliceArchitecture = UNetConfig | EfficientUNetConfig
"""Shape of a network that answers slice by slice."""

VoxelArchitecture = SliceArchitecture | VolumeUNetConfig
"""Shape of a network that answers voxel by voxel."""

Architecture = VoxelArchitecture | ProfileNetConfig
"""Shape of a network."""

AnyNetwork = UNet | EfficientUNet | VolumeUNet | ProfileNet
"""Slices or volumes in, one logit per class and voxel out; or profiles in, one logit per place out."""

KINDS: dict[str, type[Architecture]] = {
    "unet": UNetConfig,
    "efficient_unet": EfficientUNetConfig,
    "volume_unet": VolumeUNetConfig,
    "profiles": ProfileNetConfig,
}
"""By the name that a model card gives."""


def build(config: Architecture, *, rngs: nnx.Rngs) -> AnyNetwork:
    """A network of an architecture with random weights.

    Examples
    --------
    >>> type(build(UNetConfig(in_channels=1, out_channels=2, widths=(4, 8)), rngs=nnx.Rngs(0))).__name__
    'UNet'
    """
    match config:
        case UNetConfig():
            return UNet(config, rngs=rngs)
        case EfficientUNetConfig():
            return EfficientUNet(config, rngs=rngs)
        case VolumeUNetConfig():
            return VolumeUNet(config, rngs=rngs)
        case ProfileNetConfig():
            return ProfileNet(config, rngs=rngs)


def kind_of(config: Architecture) -> str:
    """Name of an architecture.

    >>> kind_of(EfficientUNetConfig())
    'efficient_unet'
    """
    return next(name for name, kind in KINDS.items() if isinstance(config, kind))
