"""The network of the paper: a 2D U-Net whose encoder is an EfficientNet-B0.

The encoder is that of Tan & Le (EfficientNet, ICML 2019), without its classifier. The decoder and its skip connections
follow the ``segmentation_models`` package for Keras, with which the network of the paper was made
(Vernikouskaya et al., Sci. Rep. 2023): 512 x 512 pixels, intensities from 0 to 1.

One thing is left out: EfficientNet drops whole branches at random during training (stochastic depth).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hypodask.networks.unet import ConvNorm, Level, check_slices, double_nearest

_BATCH_NORM_EPSILON = 1e-3
"""Added to the running variance, as Keras does."""

_SQUEEZED = 4
"""The squeeze layer of a block has the channels that enter the block over this number."""


class Stage(NamedTuple):
    """Consecutive blocks of one kind; only the first may halve the resolution."""

    size: int
    """Side of the depthwise kernels."""
    blocks: int
    width: int
    """Channels that leave each block."""
    expansion: int
    """Channels inside a block over those that enter it."""
    stride: int
    """Of the first block."""


_B0_STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 24, 6, 2),
    Stage(5, 2, 40, 6, 2),
    Stage(3, 3, 80, 6, 2),
    Stage(5, 3, 112, 6, 1),
    Stage(5, 4, 192, 6, 2),
    Stage(3, 1, 320, 6, 1),
)
"""Table 1 of Tan & Le, whose strides are those of the reference implementation."""


@dataclass(frozen=True)
class EfficientUNetConfig:
    """Configuration of a U-Net with an EfficientNet as encoder; the defaults are those of the paper.

    Raises
    ------
    ValueError
        If a count is below one, or the levels of the decoder are not as many as the encoder halves the resolution.

    Examples
    --------
    >>> EfficientUNetConfig().size_multiple
    32
    """

    kind: Literal["efficient_unet"] = field(default="efficient_unet", kw_only=True)
    """Name in model cards."""

    in_channels: int = 3
    """Channels of the input: the slice and its neighbours, or the same slice three times as in the paper."""
    out_channels: int = 2
    """Classes, background first."""
    stem: int = 32
    """Channels of the first convolution, which halves the resolution."""
    stages: tuple[Stage, ...] = _B0_STAGES
    top: int = 1280
    """Channels at the lowest resolution."""
    decoder_widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    """Channels at each level on the way up, to full resolution."""
    batch_norm: bool = True
    """Whether convolutions are followed by batch normalisation; False once it is folded in."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(Stage(*stage) for stage in self.stages))
        object.__setattr__(self, "decoder_widths", tuple(self.decoder_widths))
        counts = (self.in_channels, self.out_channels, self.stem, self.top, *self.decoder_widths)
        if min(counts + tuple(number for stage in self.stages for number in stage)) < 1:
            raise ValueError(f"an EfficientNet U-Net needs at least one channel everywhere, got {self}")
        halvings = 1 + sum(stage.stride == 2 for stage in self.stages)
        if len(self.decoder_widths) != halvings or max(stage.stride for stage in self.stages) > 2:
            raise ValueError(
                f"the encoder halves the resolution {halvings} times, by strides of 2, and needs as many widths on the "
                f"way up, got {self.decoder_widths}"
            )

    @property
    def size_multiple(self) -> int:
        """Height and width of an input must be multiples of this, so that every level halves evenly."""
        return 1 << len(self.decoder_widths)

    @property
    def description(self) -> str:
        """For model cards."""
        blocks = sum(stage.blocks for stage in self.stages)
        return f"2D U-Net with EfficientNet encoder of {blocks} blocks, decoder widths {list(self.decoder_widths)}"


class EfficientUNet(nnx.Module):
    """A 2D U-Net with an EfficientNet as encoder: slices in, one logit per class and pixel out.

    Each level on the way up doubles the features by repetition, concatenates them with those of the encoder from just
    before it halved that resolution (the expanded channels of a block), and applies two 3 x 3 convolutions; at full
    resolution there is nothing to concatenate. A 3 x 3 convolution makes the logits.

    Checked against ``segmentation_models`` 1.0.1 with random weights: see ``docs/networks.md``.

    Parameters
    ----------
    config : EfficientUNetConfig
    rngs : nnx.Rngs
        Stream of random numbers for the initial weights.

    Examples
    --------
    >>> small = EfficientUNetConfig(stem=4, stages=(Stage(3, 1, 4, 2, 2),), top=8, decoder_widths=(8, 4))
    >>> EfficientUNet(small, rngs=nnx.Rngs(0))(jnp.zeros((1, 8, 8, 3))).shape
    (1, 8, 8, 2)
    """

    def __init__(self, config: EfficientUNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        shapes = list(_block_shapes(config))
        skips = [shape.inputs * shape.expansion for shape in shapes if shape.stride == 2]
        self.stem = _stem(config, rngs=rngs)
        self.blocks = nnx.List([_Block(config, shape, rngs=rngs) for shape in shapes])
        self.top = _pointwise(config, shapes[-1].outputs, config.top, rngs=rngs)
        below = (config.top, *config.decoder_widths[:-1])
        beside = (*reversed(skips), 0)
        inputs = map(sum, zip(below, beside, strict=True))
        self.up = nnx.List(
            [_level(config, i, o, rngs=rngs) for i, o in zip(inputs, config.decoder_widths, strict=True)]
        )
        self.classify = nnx.Conv(config.decoder_widths[-1], config.out_channels, (3, 3), rngs=rngs)

    def __call__(self, slices: Float[Array, "n h w channel"], *, train: bool = False) -> Float[Array, "n h w class_"]:
        """Logits of each class at each pixel, computed in the type of the weights.

        Parameters
        ----------
        slices : float array, (n, h, w, in_channels)
        train : bool
            Normalise by the batch's own statistics and update the running ones.

        Raises
        ------
        ValueError
            If the channels are not ``in_channels`` or the size is no multiple of ``size_multiple``.
        """
        check_slices(slices, self.config.in_channels, self.config.size_multiple)
        features, skips = self.stem(slices.astype(self.classify.kernel[...].dtype), train=train), []
        for block in self.blocks:
            expanded = block.expanded(features, train=train)
            if block.shape.stride == 2:
                skips.append(expanded)
            features = block.finished(features, expanded, train=train)
        features = self.top(features, train=train)
        for level in self.up:
            features = double_nearest(features)
            if skips:
                features = jnp.concatenate([features, skips.pop()], axis=-1)
            features = level(features, train=train)
        return self.classify(features)


class _BlockShape(NamedTuple):
    size: int
    inputs: int
    outputs: int
    expansion: int
    stride: int


def _block_shapes(config: EfficientUNetConfig) -> Iterator[_BlockShape]:
    inputs = config.stem
    for stage in config.stages:
        for number in range(stage.blocks):
            yield _BlockShape(stage.size, inputs, stage.width, stage.expansion, 1 if number else stage.stride)
            inputs = stage.width


class _Block(nnx.Module):
    """Expand, convolve each channel by itself, weight the channels (squeeze and excitation), and project back."""

    def __init__(self, config: EfficientUNetConfig, shape: _BlockShape, *, rngs: nnx.Rngs) -> None:
        self.shape = shape
        width, squeezed = shape.inputs * shape.expansion, max(1, shape.inputs // _SQUEEZED)
        # A block that does not expand has no such convolution.
        self.expand = nnx.data(_pointwise(config, shape.inputs, width, rngs=rngs) if shape.expansion > 1 else None)
        self.depthwise = _depthwise(config, shape, rngs=rngs)
        self.squeeze = nnx.Conv(width, squeezed, (1, 1), kernel_init=_fan_out_normal, rngs=rngs)
        self.excite = nnx.Conv(squeezed, width, (1, 1), kernel_init=_fan_out_normal, rngs=rngs)
        self.project = _pointwise(config, width, shape.outputs, activation=_identity, rngs=rngs)

    def expanded(self, features: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w e"]:
        return features if self.expand is None else self.expand(features, train=train)

    def finished(
        self, features: Float[Array, "n h w c"], expanded: Float[Array, "n h w e"], *, train: bool
    ) -> Float[Array, "n i j d"]:
        inner = self.depthwise(expanded, train=train)
        attention = self.excite(jax.nn.silu(self.squeeze(inner.mean(axis=(1, 2), keepdims=True))))
        outcome = self.project(inner * jax.nn.sigmoid(attention), train=train)
        return outcome + features if outcome.shape == features.shape else outcome


def _identity(features: Array) -> Array:
    return features


_fan_out_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def _pointwise(
    config: EfficientUNetConfig,
    inputs: int,
    outputs: int,
    *,
    activation: Callable[[Array], Array] = jax.nn.silu,
    rngs: nnx.Rngs,
) -> ConvNorm:
    bias = not config.batch_norm
    conv = nnx.Conv(inputs, outputs, (1, 1), use_bias=bias, kernel_init=_fan_out_normal, rngs=rngs)
    return ConvNorm(conv, _norm(config, outputs, rngs=rngs), activation)


def _depthwise(config: EfficientUNetConfig, shape: _BlockShape, *, rngs: nnx.Rngs) -> ConvNorm:
    width = shape.inputs * shape.expansion
    conv = _DepthwiseConv(
        width,
        width,
        (shape.size, shape.size),
        strides=shape.stride,
        feature_group_count=width,
        use_bias=not config.batch_norm,
        kernel_init=_fan_out_normal,
        rngs=rngs,
    )
    return ConvNorm(conv, _norm(config, width, rngs=rngs), jax.nn.silu)


class _DepthwiseConv(nnx.Conv):
    """A convolution of each channel by itself, as a sum of shifted images.

    On one core the whole network takes 0.17 s for 256 x 256 pixels so, and 0.34 s with XLA's grouped convolutions.
    """

    def __call__(self, inputs: Float[Array, "n h w c"], out_sharding: Any = None) -> Float[Array, "n i j c"]:
        kernel, stride = self.kernel[...], cast(int, self.strides)
        size, shape = kernel.shape[0], inputs.shape[1:3]
        pads = jax.lax.padtype_to_pads(shape, (size, size), (stride, stride), "SAME")
        padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
        # The last pixel that a shift reads, and one more.
        rows, columns = (stride * ((length - 1) // stride) + 1 for length in shape)
        total = sum(
            padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[None, None, i, j]
            for i in range(size)
            for j in range(size)
        )
        return jnp.asarray(total if self.bias is None else total + self.bias[...][None, None, None])


def _stem(config: EfficientUNetConfig, *, rngs: nnx.Rngs) -> ConvNorm:
    conv = nnx.Conv(
        config.in_channels,
        config.stem,
        (3, 3),
        strides=2,
        use_bias=not config.batch_norm,
        kernel_init=_fan_out_normal,
        rngs=rngs,
    )
    return ConvNorm(conv, _norm(config, config.stem, rngs=rngs), jax.nn.silu)


def _level(config: EfficientUNetConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> Level:
    """Two 3 x 3 convolutions of the decoder."""
    first = _decoding(config, inputs, outputs, rngs=rngs)
    return Level(first, _decoding(config, outputs, outputs, rngs=rngs))


def _decoding(config: EfficientUNetConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> ConvNorm:
    he_uniform = nnx.initializers.he_uniform()
    conv = nnx.Conv(inputs, outputs, (3, 3), use_bias=not config.batch_norm, kernel_init=he_uniform, rngs=rngs)
    return ConvNorm(conv, _norm(config, outputs, rngs=rngs), jax.nn.relu)


def _norm(config: EfficientUNetConfig, channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm | None:
    return nnx.BatchNorm(channels, epsilon=_BATCH_NORM_EPSILON, momentum=0.99, rngs=rngs) if config.batch_norm else None
