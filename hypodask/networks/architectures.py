"""The architectures that a model card can name, and how a network of one is built."""

from flax import nnx

from hypodask.networks.efficientnet import EfficientUNet, EfficientUNetConfig
from hypodask.networks.profiles import ProfileNet, ProfileNetConfig
from hypodask.networks.unet import UNet, UNetConfig
from hypodask.networks.volume_unet import VolumeUNet, VolumeUNetConfig

SliceArchitecture = UNetConfig | EfficientUNetConfig
"""Configuration of a network that segments slice by slice."""

VoxelArchitecture = SliceArchitecture | VolumeUNetConfig
"""Configuration of a network that segments voxels."""

Architecture = VoxelArchitecture | ProfileNetConfig
"""Configuration of a network; its ``kind`` is the name in model cards."""

AnyNetwork = UNet | EfficientUNet | VolumeUNet | ProfileNet
"""Slices or volumes in, one logit per class and voxel out; or profiles in, one logit per place out."""


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
