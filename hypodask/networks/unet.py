"""The 2D U-Net, which segments slice by slice, and its fast form for inference.

Slices are convolved in two dimensions; the neighbours of a slice are further channels ("2.5D"). XLA runs
two-dimensional convolutions near the speed of the machine, and three-dimensional ones on a CPU at a tenth of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hypodask.networks.convolutions import JoinedConv, RunConv, run_length

_Network = TypeVar("_Network", bound=nnx.Module)

_SLICES_AT_ONCE, _SLICES_AT_ONCE_ON_GPU = 4, 64
"""Slices that go through the network together. On a CPU few are a little faster, since their feature maps stay near the
cache; measured on a busy machine: 11.4 ms for each 128 x 128 slice with 4 at once and 12.5 with 50; at 512 x 512 8 at
once are 10 to 13 % slower than 4. A GPU needs many to be busy."""

_BATCH_NORM_EPSILON = 1e-5
"""Added to the running variance."""


@dataclass(frozen=True)
class UNetConfig:
    """Configuration of a U-Net.

    Raises
    ------
    ValueError
        If a count is below one, or there are fewer than two levels.

    Examples
    --------
    >>> UNetConfig(in_channels=5, out_channels=3).size_multiple
    8
    """

    kind: Literal["unet"] = field(default="unet", kw_only=True)
    """Name in model cards."""

    in_channels: int
    """Channels of the input: the slice and its neighbours."""
    out_channels: int
    """Classes, background first."""
    widths: tuple[int, ...] = (12, 24, 48, 96)
    """Channels at each level, from full resolution down."""
    batch_norm: bool = True
    """Whether each 3 x 3 convolution is followed by batch normalisation; False once it is folded in."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        check_counts(self, self.in_channels, self.out_channels)

    @property
    def size_multiple(self) -> int:
        """Height and width of an input must be multiples of this, so that every level halves evenly."""
        return 1 << (len(self.widths) - 1)

    @property
    def description(self) -> str:
        """For model cards."""
        return f"2D U-Net, widths {list(self.widths)}"


class UNet(nnx.Module):
    """A 2D U-Net: slices in, one logit per class and pixel out.

    Each level has two 3 x 3 convolutions, each with batch normalisation and a ReLU. Going down, levels are joined by
    2 x 2 max-pooling; going up, by a 1 x 1 convolution to the width of the level above, nearest-neighbour doubling, and
    concatenation with that level's own features. The 1 x 1 convolution commutes with the doubling, and comes first
    because it then costs a quarter.

    Parameters
    ----------
    config : UNetConfig
    rngs : nnx.Rngs
        Stream of random numbers for the initial weights.

    Examples
    --------
    >>> model = UNet(UNetConfig(in_channels=3, out_channels=2, widths=(4, 8)), rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 8, 8, 3))).shape
    (1, 8, 8, 2)
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths = config.widths
        inputs = (config.in_channels, *widths[:-1])
        self.down = nnx.List([_level(i, o, config, rngs=rngs) for i, o in zip(inputs, widths, strict=True)])
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.narrow = nnx.List([nnx.Conv(below, here, (1, 1), rngs=rngs) for below, here in steps])
        self.up = nnx.List([_level(2 * here, here, config, rngs=rngs) for _, here in steps])
        self.classify = nnx.Conv(widths[0], config.out_channels, (1, 1), rngs=rngs)

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
        features, skips = slices.astype(_array(self.classify.kernel).dtype), []
        for depth, level in enumerate(self.down):
            features = level(_halve(features) if depth else features, train=train)
            skips.append(features)
        for narrow, level, skip in zip(self.narrow, self.up, skips[-2::-1], strict=True):
            features = level.joined(skip, narrow(features), train=train)
        return self.classify(features)


class Level(nnx.Module):
    """Two 3 x 3 convolutions at one resolution."""

    def __init__(self, first: "ConvNorm", second: "ConvNorm") -> None:
        self.first = first
        self.second = second

    def __call__(self, features: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w d"]:
        return self.second(self.first(features, train=train), train=train)

    def joined(
        self, own: Float[Array, "n row column c"], below: Float[Array, "n h w b"], *, train: bool
    ) -> Float[Array, "n row column d"]:
        """The convolutions of this level's own features beside the doubled ones of the level below."""
        if isinstance(self.first.conv, JoinedConv):
            return self.second(self.first.activation(self.first.conv(own, below)), train=train)
        return self(jnp.concatenate([own, double_nearest(below)], axis=-1), train=train)


class ConvNorm(nnx.Module):
    """A convolution, batch normalisation unless it is folded in, and the activation."""

    def __init__(self, conv: nnx.Conv, norm: nnx.BatchNorm | None, activation: Callable[[Array], Array]) -> None:
        self.conv = conv
        self.norm = nnx.data(norm)
        self.activation = activation

    def __call__(self, features: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n i j d"]:
        features = self.conv(features)
        if self.norm is not None:
            features = self.norm(features, use_running_average=not train)
        return self.activation(features)


def _for_cpu(folded: UNet) -> UNet:
    """The same network with convolutions that are faster on a CPU.

    At full resolution, convolutions of few channels make runs of pixels at once. At coarser levels one convolution
    doubles the features from below and convolves them: 1.8 instead of 2.4 ms at 32 channels; at full resolution, with
    16, that takes longer.
    """
    network = nnx.clone(folded)
    for level in (network.down[0], network.up[-1]):
        for part in (level.first, level.second):
            # Rows of pixels halve evenly at every level; these have not been halved yet.
            run = math.gcd(run_length(part.conv), 2 ** len(network.narrow))
            if run > 1:
                cast(Any, part).conv = RunConv(part.conv, run)
    for level in network.up[:-1]:
        cast(Any, level.first).conv = JoinedConv(level.first.conv)
    return network


def _level(inputs: int, outputs: int, config: UNetConfig, *, rngs: nnx.Rngs) -> Level:
    made = partial(conv_norm, batch_norm=config.batch_norm, rngs=rngs)
    return Level(made(inputs, outputs), made(outputs, outputs))


def conv_norm(inputs: int, outputs: int, *, batch_norm: bool, rngs: nnx.Rngs) -> ConvNorm:
    """A 3 x 3 convolution with random weights and a ReLU, with or without batch normalisation."""
    he_normal = nnx.initializers.he_normal()
    conv = nnx.Conv(inputs, outputs, (3, 3), use_bias=not batch_norm, kernel_init=he_normal, rngs=rngs)
    norm = nnx.BatchNorm(outputs, epsilon=_BATCH_NORM_EPSILON, momentum=0.9, rngs=rngs) if batch_norm else None
    return ConvNorm(conv, norm, jax.nn.relu)


def _class_probabilities(logits: Float[Array, "h w class_"]) -> Float[Array, "h w class_"]:
    """Probability of each class at each pixel."""
    # Over whole planes of pixels: a handful of classes side by side are too few for vector instructions.
    return jnp.moveaxis(jax.nn.softmax(jnp.moveaxis(logits, -1, 0), axis=0), 0, -1)


def predictor(
    model: nnx.Module,
    *,
    slices_at_once: int | None = None,
    answer: Callable[[Float[Array, "h w class_"]], Float[Array, "..."]] = _class_probabilities,
    exchanged: tuple[int, ...] | None = None,
) -> Callable[[Float[Array, "n h w channel"]], Float[Array, "n ..."]]:
    """Compile a function from slices to class probabilities, or to another answer.

    Batch normalisation is folded into the convolutions once, here, so that a call costs no more than the arithmetic.
    Predictors of models of one architecture share the compiled program.

    Parameters
    ----------
    model : UNet or another network that answers slice by slice
        Its weights are copied as they are now; later training does not change the predictor.
    slices_at_once : int, optional
        Slices that go through the network together; by default few on a CPU and many on a GPU.
    answer : callable
        Function of the logits of one slice, whose value is returned for that slice.
    exchanged : tuple of int, optional
        For each class, its counterpart on the other side of the brain. If given, answers, one for each pixel and class,
        are averaged over every slice and its mirror image along the first axis.

    Returns
    -------
    callable
        From (n, h, w, in_channels) to (n, h, w, out_channels), probabilities in [0, 1] that sum to 1, or to the answers
        (n, ...).
        Compiled once for each shape; raises ``ValueError`` where ``UNet`` does.

    Examples
    --------
    >>> model = UNet(UNetConfig(in_channels=1, out_channels=3, widths=(4, 8)), rngs=nnx.Rngs(0))
    >>> predictor(model)(jnp.ones((6, 8, 8, 1))).shape
    (6, 8, 8, 3)
    """
    config, on_cpu = cast(Any, model).config, jax.default_backend() == "cpu"
    folded = fold_batch_norm(model)
    graph, state = nnx.split(_for_cpu(folded) if on_cpu and isinstance(folded, UNet) else folded)
    together = slices_at_once or (_SLICES_AT_ONCE if on_cpu else _SLICES_AT_ONCE_ON_GPU) // (2 if exchanged else 1)

    def predict(slices: Float[Array, "n h w channel"]) -> Float[Array, "n ..."]:
        check_slices(slices, config.in_channels, config.size_multiple)
        return jnp.asarray(_answers(graph, answer, exchanged, min(together, len(slices)), state, slices))

    return predict


@partial(jax.jit, static_argnames=("graph", "answer", "exchanged", "slices_at_once"))
def _answers(
    graph: Any,
    answer: Callable[[Float[Array, "h w class_"]], Float[Array, "..."]],
    exchanged: tuple[int, ...] | None,
    slices_at_once: int,
    state: Any,
    slices: Float[Array, "n h w channel"],
) -> Float[Array, "n ..."]:
    # The weights are an argument, not constants, so that one program serves every model of an architecture.
    network = nnx.merge(graph, state)

    def of_slice(one: Float[Array, "h w channel"]) -> Float[Array, "..."]:
        return answer(network(one[None])[0])

    def of_both(one: Float[Array, "h w channel"]) -> Float[Array, "h w class_"]:
        here, there = network(jnp.stack([one, one[::-1]]))
        return mean_of_both(answer(here), answer(there), exchanged or ())

    return jnp.asarray(jax.lax.map(of_both if exchanged else of_slice, slices, batch_size=slices_at_once))


def mean_of_both(
    here: Float[Array, "*n h w class_"], there: Float[Array, "*n h w class_"], exchanged: tuple[int, ...]
) -> Float[Array, "*n h w class_"]:
    """Mean of the answers for an image and for its mirror image, in which left and right classes are exchanged.

    >>> mean_of_both(jnp.zeros((2, 1, 3)), jnp.arange(6.0).reshape(2, 1, 3), (0, 2, 1)).tolist()
    [[[1.5, 2.5, 2.0]], [[0.0, 1.0, 0.5]]]
    """
    return (here + jnp.flip(there, axis=-3)[..., jnp.array(exchanged)]) / 2


def fold_batch_norm(model: _Network) -> _Network:
    """Multiply batch normalisation into the convolutions; the result is the same function of its input.

    Uses the running statistics, so the result is for inference only. A model that is folded already is
    returned as it is.

    Examples
    --------
    >>> model = UNet(UNetConfig(in_channels=1, out_channels=2, widths=(4, 8)), rngs=nnx.Rngs(0))
    >>> fold_batch_norm(model).config.batch_norm
    False
    """
    network: Any = type(model)
    config = cast(Any, model).config
    if not config.batch_norm:
        return model
    folded = nnx.eval_shape(lambda: network(replace(config, batch_norm=False), rngs=nnx.Rngs(0)))
    sources = dict(nnx.iter_modules(model))
    targets = dict(nnx.iter_modules(folded))
    for place, target in targets.items():
        if isinstance(target, nnx.Conv):
            nnx.update(target, nnx.state(sources[place]))
    for place, target in targets.items():
        if isinstance(target, ConvNorm):
            _fold_conv(target, cast(ConvNorm, sources[place]))
    return cast(_Network, folded)


def _fold_conv(target: ConvNorm, source: ConvNorm) -> None:
    norm = cast(nnx.BatchNorm, source.norm)
    scale, shift, mean, variance = (_array(v) for v in (norm.scale, norm.bias, norm.mean, norm.var))
    gain = scale / jnp.sqrt(variance + norm.epsilon)
    target.conv.kernel.set_value(_array(source.conv.kernel) * gain[None, None, None])
    cast(nnx.Param[Array], target.conv.bias).set_value(shift - mean * gain)


def _array(variable: nnx.Variable[Any] | None) -> Array:
    return jnp.asarray(cast(nnx.Variable[Any], variable)[...])


def parameter_count(model: nnx.Module) -> int:
    """Count the trained numbers of a model; running statistics are not among them.

    Examples
    --------
    >>> parameter_count(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    8
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def check_counts(config: Any, *counts: int) -> None:
    """Refuse the configuration of a U-Net with impossible counts.

    Raises
    ------
    ValueError
        If a width or another of its counts is below one, or there are fewer than two levels.
    """
    if min(*counts, *config.widths) < 1 or len(config.widths) < 2:
        raise ValueError(f"a U-Net needs at least one channel everywhere and two levels, got {config}")


def check_slices(slices: Float[Array, "n h w channel"], channels: int, size_multiple: int) -> None:
    """Refuse slices that a network cannot take.

    Raises
    ------
    ValueError
        If there are no slices, they do not have ``channels`` channels, or the size is no multiple of ``size_multiple``.
    """
    if slices.ndim != 4 or slices.shape[-1] != channels or not len(slices):
        raise ValueError(f"the network takes slices (n, h, w, {channels}) with n at least 1, got {slices.shape}")
    if slices.shape[1] % size_multiple or slices.shape[2] % size_multiple:
        raise ValueError(
            f"slices of {slices.shape[1]} x {slices.shape[2]} pixels do not halve evenly at every level; pad "
            f"height and width to multiples of {size_multiple}"
        )


def _halve(features: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """2 x 2 max-pooling; as a reshape it fuses, where a window reduction does not on a CPU."""
    n, h, w, c = features.shape
    return features.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def double_nearest(features: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c"]:
    n, h, w, c = features.shape
    return jnp.broadcast_to(features[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)
