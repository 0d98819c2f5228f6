"""Convolutions in the form that a CPU is faster at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hypodask.networks.convolutions import JoinedConv, RunConv, run_length


def convolution(inputs: int, outputs: int) -> nnx.Conv:
    conv = nnx.Conv(inputs, outputs, (3, 3), rngs=nnx.Rngs(0))
    conv.bias.set_value(jnp.linspace(-1, 1, outputs))
    return conv


@pytest.mark.parametrize("run", [1, 2, 3, 4, 6])
def test_a_convolution_in_runs_is_the_convolution(run):
    features = jax.random.normal(jax.random.key(0), (2, 5, 12, 3))
    conv = convolution(3, 4)
    np.testing.assert_allclose(RunConv(conv, run)(features), conv(features), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (4, 2)])
def test_a_convolution_that_doubles_is_that_of_doubled_features_beside_others(shape):
    conv = convolution(6, 4)
    own = jax.random.normal(jax.random.key(0), (2, 2 * shape[0], 2 * shape[1], 3))
    below = jax.random.normal(jax.random.key(1), (2, *shape, 3))
    doubled = below.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(JoinedConv(conv)(own, below), conv(jnp.concatenate([own, doubled], -1)), atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs", "run"), [(5, 16, 4), (16, 16, 2), (32, 16, 1), (16, 32, 1)])
def test_runs_are_as_long_as_pays(inputs, outputs, run):
    assert run_length(convolution(inputs, outputs)) == run
