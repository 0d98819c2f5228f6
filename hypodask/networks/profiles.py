"""A network for profiles, which finds a place along a line."""

from dataclasses import dataclass, field
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float


@dataclass(frozen=True)
class ProfileNetConfig:
    """Configuration of a network for profiles.

    Raises
    ------
    ValueError
        If a count or a dilation is below one, or there is no dilation.

    Examples
    --------
    >>> ProfileNetConfig(in_channels=19, out_channels=33).description
    'network of profiles of 33 places, width 48, dilations [1, 2, 4, 1]'
    """

    kind: Literal["profiles"] = field(default="profiles", kw_only=True)
    """Name in model cards."""

    in_channels: int
    """Channels of the input: the lines that are looked at together, and features of their position."""
    out_channels: int
    """Samples of a line; each is a place that may be the answer."""
    width: int = 48
    dilations: tuple[int, ...] = (1, 2, 4, 1)
    """Steps between the places that each residual convolution looks at."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dilations", tuple(self.dilations))
        if not self.dilations or min(self.in_channels, self.out_channels, self.width, *self.dilations) < 1:
            raise ValueError(f"a network of profiles needs at least one channel, place and dilation, got {self}")

    @property
    def description(self) -> str:
        """For model cards."""
        return (
            f"network of profiles of {self.out_channels} places, width {self.width}, dilations {list(self.dilations)}"
        )


class ProfileNet(nnx.Module):
    """Profiles in, one logit per place out.

    A convolution over five places, then residual ones over three places ``dilations`` apart, each after a GELU. The
    zeros beyond the ends of a line tell the network where on the line a place is.

    Examples
    --------
    >>> model = ProfileNet(ProfileNetConfig(in_channels=2, out_channels=9, width=4), rngs=nnx.Rngs(0))
    >>> model(jax.numpy.zeros((3, 9, 2))).shape
    (3, 9)
    """

    def __init__(self, config: ProfileNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.width
        self.first = nnx.Conv(config.in_channels, width, (5,), rngs=rngs)
        self.residual = nnx.List(
            [nnx.Conv(width, width, (3,), kernel_dilation=(step,), rngs=rngs) for step in config.dilations]
        )
        self.classify = nnx.Conv(width, 1, (3,), rngs=rngs)

    def __call__(self, profiles: Float[Array, "n place channel"], *, train: bool = False) -> Float[Array, "n place"]:
        """Logits of the places of each profile; ``train`` changes nothing."""
        features = self.first(profiles)
        for convolution in self.residual:
            features = features + convolution(jax.nn.gelu(features))
        return self.classify(jax.nn.gelu(features))[..., 0]
