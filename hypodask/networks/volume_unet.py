"""A U-Net for whole volumes, made of two-dimensional convolutions.

XLA runs three-dimensional convolutions on a CPU at a tenth of the speed of the machine. A convolution over 3 x 3 x 3
voxels equals one over 3 x 3 pixels of a slice with its two neighbours as further channels, which runs near full speed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hypodask.networks.unet import ConvNorm, check_counts, conv_norm, fold_batch_norm, mean_of_both


@dataclass(frozen=True)
class VolumeUNetConfig:
    """Configuration of a U-Net for volumes.

    Raises
    ------
    ValueError
        If a count is below one, or there are fewer than two levels.

    Examples
    --------
    >>> VolumeUNetConfig(out_channels=2, widths=(4, 8, 16)).size_multiple
    8
    """

    kind: Literal["volume_unet"] = field(default="volume_unet", kw_only=True)
    """Name in model cards."""

    out_channels: int
    """Classes, background first."""
    widths: tuple[int, ...] = (24, 48, 96, 160)
    """Channels at each level, from full resolution down."""
    in_channels: int = 1
    """Images of the same volume."""
    backgrounds: int = 1
    """Classes that are learnt separately, one at least, and given as one background."""
    space_to_depth: int = 2
    """Voxels along each side of a cube that become channels of one before the first level, and voxels again after the
    last."""
    batch_norm: bool = True
    """Whether each convolution is followed by batch normalisation; False once it is folded in."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        check_counts(self, self.in_channels, self.out_channels, self.backgrounds, self.space_to_depth)

    @property
    def size_multiple(self) -> int:
        """Every side of a volume must be a multiple of this, so that every level halves evenly."""
        return self.space_to_depth << (len(self.widths) - 1)

    @property
    def description(self) -> str:
        """For model cards."""
        return f"U-Net for volumes, widths {list(self.widths)}, space to depth {self.space_to_depth}"


class VolumeUNet(nnx.Module):
    """A U-Net for volumes: voxels in, one logit per class and voxel out.

    Each level has two convolutions, each with batch normalisation and a ReLU: over 3 x 3 x 3 voxels, but over 3 x 3 of
    a slice where they would cost most, which is the second one on the way down and the first on the way up at the first
    level. Levels are joined as those of :class:`hypodask.networks.unet.UNet`.

    Parameters
    ----------
    config : VolumeUNetConfig
    rngs : nnx.Rngs
        Stream of random numbers for the initial weights.

    Examples
    --------
    >>> model = VolumeUNet(VolumeUNetConfig(out_channels=2, widths=(4, 8)), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 8, 4, 12, 1))).shape
    (1, 8, 4, 12, 2)
    """

    def __init__(self, config: VolumeUNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths, cube = config.widths, config.space_to_depth**3
        level = partial(_Level, batch_norm=config.batch_norm, rngs=rngs)
        inputs = (config.in_channels * cube, *widths[:-1])
        self.down = nnx.List(
            [level(i, o, deep=(True, number > 0)) for number, (i, o) in enumerate(zip(inputs, widths, strict=True))]
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.narrow = nnx.List([nnx.Conv(below, here, (1, 1), rngs=rngs) for below, here in steps])
        self.up = nnx.List(
            [level(2 * here, here, deep=(number < len(steps), True)) for number, (_, here) in enumerate(steps, start=1)]
        )
        classes = config.out_channels + config.backgrounds - 1
        self.classify = nnx.Conv(widths[0], classes * cube, (1, 1), rngs=rngs)

    def __call__(
        self, volumes: Float[Array, "n y x z channel"], *, train: bool = False
    ) -> Float[Array, "n y x z class_"]:
        """Logits of each class at each voxel, computed in the type of the weights.

        Parameters
        ----------
        volumes : float array, (n, y, x, z, in_channels)
            Slices are those across the first axis.
        train : bool
            Normalise by the batch's own statistics and update the running ones, and give the classes that make up the
            background one by one.

        Raises
        ------
        ValueError
            If the channels are not ``in_channels`` or a side is no multiple of ``size_multiple``.
        """
        logits = self.of_cubes(volumes, train=train)
        return _depth_to_cubes(logits.reshape(*logits.shape[:4], -1), self.config.space_to_depth)

    def of_cubes(
        self, volumes: Float[Array, "n y x z channel"], *, train: bool = False
    ) -> Float[Array, "n i j k voxel class_"]:
        """The same logits, still with the voxels of each cube as channels."""
        _check_volumes(volumes, self.config)
        side = self.config.space_to_depth
        features, skips = _cubes_to_depth(volumes.astype(self.classify.kernel[...].dtype), side), []
        for number, level in enumerate(self.down):
            features = level(_halve(features) if number else features, train=train)
            skips.append(features)
        for narrow, level, skip in zip(self.narrow, self.up, skips[-2::-1], strict=True):
            doubled = _double(_by_slice(narrow, features))
            features = level(jnp.concatenate([skip, doubled], axis=-1), train=train)
        logits = _by_slice(self.classify, features)
        logits = logits.reshape(*logits.shape[:4], side**3, -1)
        if train:
            return logits
        # One background, with the summed probability of its classes.
        backgrounds = self.config.backgrounds
        together = jax.nn.logsumexp(logits[..., :backgrounds], axis=-1, keepdims=True)
        return jnp.concatenate([together, logits[..., backgrounds:]], axis=-1)


class _Level(nnx.Module):
    """Two convolutions at one resolution."""

    def __init__(self, inputs: int, outputs: int, *, deep: tuple[bool, bool], batch_norm: bool, rngs: nnx.Rngs) -> None:
        first, second = (3 if slices else 1 for slices in deep)
        self.deep = deep
        self.first = conv_norm(first * inputs, outputs, batch_norm=batch_norm, rngs=rngs)
        self.second = conv_norm(second * outputs, outputs, batch_norm=batch_norm, rngs=rngs)

    def __call__(self, features: Float[Array, "n y x z c"], *, train: bool) -> Float[Array, "n y x z d"]:
        convolutions: tuple[ConvNorm, ConvNorm] = (self.first, self.second)
        one_by_one = not train and jax.default_backend() == "cpu"
        for convolution, slices in zip(convolutions, self.deep, strict=True):
            layer = partial(convolution, train=train)
            if slices and one_by_one:
                features = _slice_after_slice(layer, features)
            else:
                features = _by_slice(layer, _beside(features) if slices else features)
        return features


def volume_predictor(
    model: VolumeUNet, *, exchanged: tuple[int, ...] | None = None
) -> Callable[[Float[Array, "y x z channel"]], Float[Array, "y x z class_"]]:
    """Compile a function from a volume to class probabilities, as :func:`hypodask.networks.unet.predictor` from slices.

    Examples
    --------
    >>> model = VolumeUNet(VolumeUNetConfig(out_channels=2, widths=(4, 8)), rngs=nnx.Rngs(0))
    >>> volume_predictor(model)(jnp.zeros((8, 4, 12, 1))).shape
    (8, 4, 12, 2)
    """
    predict = partial(_probabilities, *nnx.split(fold_batch_norm(model)))
    if exchanged is None:
        return predict
    return lambda volume: mean_of_both(predict(volume), predict(volume[:, ::-1]), exchanged)


@partial(jax.jit, static_argnames="graph")
def _probabilities(graph: Any, state: Any, volume: Float[Array, "y x z channel"]) -> Float[Array, "y x z class_"]:
    network = nnx.merge(graph, state)
    # Here, where classes lie side by side, a softmax costs a third.
    probabilities = jax.nn.softmax(network.of_cubes(volume[None]), axis=-1)
    cubes = probabilities.reshape(*probabilities.shape[:4], -1)
    return _depth_to_cubes(cubes, network.config.space_to_depth)[0]


def _check_volumes(volumes: Float[Array, "n y x z channel"], config: VolumeUNetConfig) -> None:
    """Refuse volumes that a network cannot take.

    Raises
    ------
    ValueError
        If there are not ``in_channels`` channels or a side is no multiple of ``size_multiple``.
    """
    if volumes.ndim != 5 or volumes.shape[-1] != config.in_channels:
        raise ValueError(f"the network takes volumes (n, y, x, z, {config.in_channels}), got {volumes.shape}")
    if any(size % config.size_multiple for size in volumes.shape[1:4]):
        raise ValueError(
            f"volumes of {volumes.shape[1:4]} voxels do not halve evenly at every level; pad every side to a multiple "
            f"of {config.size_multiple}"
        )


def _by_slice(layer: Callable[[Array], Array], features: Float[Array, "n y x z c"]) -> Float[Array, "n y x z d"]:
    n, y, x, z, c = features.shape
    return layer(features.reshape(n * y, x, z, c)).reshape(n, y, x, z, -1)


def _beside(features: Float[Array, "n y x z c"]) -> Float[Array, "n y x z 3*c"]:
    """Every slice with the one before and the one behind it as channels; zeros beyond the ends."""
    padded = _with_ends(features)
    return jnp.concatenate([padded[:, :-2], features, padded[:, 2:]], axis=-1)


def _with_ends(features: Float[Array, "n y x z c"]) -> Float[Array, "n y+2 x z c"]:
    return jnp.pad(features, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))


def _slice_after_slice(layer: Callable[[Array], Array], features: Float[Array, "n y x z c"]) -> Array:
    """A layer over every slice and its two neighbours, one slice at a time, so that they stay in the cache."""
    padded = _with_ends(features)

    def of_slice(number: Array) -> Array:
        before, here, behind = (padded[:, number + step] for step in range(3))
        return layer(jnp.concatenate([before, here, behind], axis=-1))

    return jnp.moveaxis(jax.lax.map(of_slice, jnp.arange(features.shape[1])), 0, 1)


def _halve(features: Float[Array, "n y x z c"]) -> Float[Array, "n y//2 x//2 z//2 c"]:
    n, y, x, z, c = features.shape
    return features.reshape(n, y // 2, 2, x // 2, 2, z // 2, 2, c).max(axis=(2, 4, 6))


def _double(features: Float[Array, "n y x z c"]) -> Float[Array, "n 2*y 2*x 2*z c"]:
    n, y, x, z, c = features.shape
    cubes = jnp.broadcast_to(features[:, :, None, :, None, :, None], (n, y, 2, x, 2, z, 2, c))
    return cubes.reshape(n, 2 * y, 2 * x, 2 * z, c)


def _cubes_to_depth(
    features: Float[Array, "n y x z c"], side: int
) -> Float[Array, "n y//{side} x//{side} z//{side} {side}**3*c"]:
    """Cubes of ``side`` voxels along each side as the channels of one.

    >>> _cubes_to_depth(jnp.arange(8.0).reshape(1, 2, 2, 2, 1), 2).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    n, y, x, z, c = features.shape
    cubes = features.reshape(n, y // side, side, x // side, side, z // side, side, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return cubes.reshape(n, y // side, x // side, z // side, side**3 * c)


def _depth_to_cubes(
    features: Float[Array, "n y x z channel"], side: int
) -> Float[Array, "n {side}*y {side}*x {side}*z channel//{side}**3"]:
    """The inverse of :func:`_cubes_to_depth`."""
    n, y, x, z, channels = features.shape
    cubes = features.reshape(n, y, x, z, side, side, side, channels // side**3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return cubes.reshape(n, y * side, x * side, z * side, channels // side**3)
