"""Convolutions in a form that is faster on a CPU: the same functions of their inputs, except for rounding.

On a CPU, XLA computes a convolution as the product of two matrices, the neighbourhoods of all pixels and the kernel,
and is near the speed of the machine where both are wide. Times and speeds are of one core and four or five slices.
"""

from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class RunConv(nnx.Module):
    """A 3 x 3 convolution that computes runs of neighbouring pixels of a row together.

    With few channels the matrices are narrow and the product slow: 16 to 16 channels run at 47 GFLOP/s where 32 to 32
    run at 85, and 5 to 16 run at 16, because most of the time goes into gathering pixels. Here one row of the first
    matrix holds a run of pixels and their neighbours, and one row of the product the results of the whole run: fewer
    and longer rows, at the cost of zeros in the kernel.
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
    """A 3 x 3 convolution of features beside those of the coarser level below, which it doubles itself.

    Nearest-neighbour doubling makes squares of 2 x 2 equal pixels, so that a 3 x 3 neighbourhood of them holds only
    2 x 2 pixels of the level below. The weights of equal pixels are added, which makes four 2 x 2 convolutions, one for
    each pixel of a square. They do less than half of the work.
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
            pixel.kernel.set_value(_weights_added(_weights_added(kernel[:, :, inputs:], 0, row), 1, column))
            pixels.append(pixel)
        self.of_pixels = nnx.List(pixels)

    def __call__(
        self, own: Float[Array, "n row column c"], below: Float[Array, "n h w b"]
    ) -> Float[Array, "n row column d"]:
        n, h, w, _ = below.shape
        squares = jnp.stack([of_pixel(below) for of_pixel in self.of_pixels], axis=3).reshape(n, h, w, 2, 2, -1)
        return self.own(own) + jnp.swapaxes(squares, 2, 3).reshape(n, 2 * h, 2 * w, -1)


def _weights_added(kernel: Array, axis: int, second: int) -> Array:
    """Three weights along an axis as two, for the first or second pixel of a pair of equal ones."""
    before, here, after = (jnp.take(kernel, number, axis=axis) for number in range(3))
    return jnp.stack([before + here, after] if second else [before, here + after], axis=axis)


def _bias(conv: nnx.Conv) -> Array:
    return cast(nnx.Param[Array], conv.bias)[...]


def run_length(conv: nnx.Conv) -> int:
    """Fastest number of pixels per run; 1 to 8 were measured, for 5, 16 and 32 channels in, 16 and 32 out."""
    if conv.out_features > 16 or conv.in_features > 16:
        return 1
    return 4 if conv.in_features <= 8 else 2
