"""Convolutions in another form, which a CPU is faster at: the same functions of their inputs, but for rounding.

XLA makes a convolution on a CPU a product of two matrices, of what each pixel sees and the kernel, and runs it near the
speed of the machine where both are wide. Times and speeds are those of one core and four or five slices.
"""

from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class RunConv(nnx.Module):
    """A 3 x 3 convolution that makes runs of neighbouring pixels of a row at once.

    A kernel of few channels leaves the product half idle: 16 to 16 channels run at 47 GFLOP/s where 32 to 32 run at 85,
    and 5 to 16 at 16, which spend their time on gathering. Here one row of the product sees a run of pixels and their
    neighbours, and makes all of them: fewer and longer rows, at the cost of zeros in the kernel.
    """

    def __init__(self, conv: nnx.Conv, run: int) -> None:
        inputs, outputs = conv.in_features, conv.out_features
        kernel = jnp.zeros((3, 2 + run, inputs, run, outputs), conv.kernel[...].dtype)
        for pixel in range(run):
            kernel = kernel.at[:, pixel : pixel + 3, :, pixel].set(conv.kernel[...])
        self.runs = nnx.Conv(
            inputs, run * outputs, (3, 2 + run), strides=(1, run), padding=((1, 1), (1, 1)), rngs=nnx.Rngs(0)
        )
        self.runs.kernel.set_value(kernel.reshape(3, 2 + run, inputs, run * outputs))
        cast(nnx.Param[Array], self.runs.bias).set_value(jnp.tile(_bias(conv), run))

    def __call__(self, features: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        return self.runs(features).reshape(*features.shape[:3], -1)


class JoinedConv(nnx.Module):
    """A 3 x 3 convolution of features beside doubled ones from below, which it doubles.

    Doubled pixels are alike two by two, so that 3 x 3 of them are 2 x 2 from below with other weights, those of
    neighbours that are alike added: four convolutions, for each pixel of a square its own, do less than half of the
    work.
    """

    def __init__(self, conv: nnx.Conv) -> None:
        kernel, outputs = conv.kernel[...], conv.out_features
        inputs = conv.in_features // 2
        self.own = nnx.Conv(inputs, outputs, (3, 3), rngs=nnx.Rngs(0))
        self.own.kernel.set_value(kernel[:, :, :inputs])
        cast(nnx.Param[Array], self.own.bias).set_value(_bias(conv))
        pixels = []
        for row, column in np.ndindex(2, 2):
            padding = ((1 - row, row), (1 - column, column))
            pixel = nnx.Conv(inputs, outputs, (2, 2), padding=padding, use_bias=False, rngs=nnx.Rngs(0))
            pixel.kernel.set_value(_alike_added(_alike_added(kernel[:, :, inputs:], 0, row), 1, column))
            pixels.append(pixel)
        self.of_pixels = nnx.List(pixels)

    def __call__(self, own: Float[Array, "n 2*h 2*w c"], below: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w d"]:
        n, h, w, _ = below.shape
        squares = jnp.stack([of_pixel(below) for of_pixel in self.of_pixels], axis=3).reshape(n, h, w, 2, 2, -1)
        return self.own(own) + jnp.swapaxes(squares, 2, 3).reshape(n, 2 * h, 2 * w, -1)


def _alike_added(kernel: Array, axis: int, second: int) -> Array:
    """Three weights along an axis as two, of a first or second pixel of a pair."""
    before, here, after = (jnp.take(kernel, number, axis=axis) for number in range(3))
    return jnp.stack([before + here, after] if second else [before, here + after], axis=axis)


def _bias(conv: nnx.Conv) -> Array:
    return cast(nnx.Param[Array], conv.bias)[...]


def run_length(conv: nnx.Conv) -> int:
    """How many pixels are best made at once; 1 to 8 were measured, for 5, 16 and 32 channels in, 16 and 32 out."""
    if conv.out_features > 16 or conv.in_features > 16:
        return 1
    return 4 if conv.in_features <= 8 else 2
