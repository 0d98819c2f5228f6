"""Wider U-Nets that begin as what a narrower one has learnt.

New channels have random weights of their own, and what they are given to so far takes nothing from them: the answer
is that of the narrower network until learning goes on. After Chen, Goodfellow & Shlens, "Net2Net: accelerating
learning via knowledge transfer", ICLR 2016, with new channels in place of copies.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Int
from numpy import ndarray

from hypodask.errors import ModelError
from hypodask.network.unet import UNet, UNetConfig


def widened(model: UNet, config: UNetConfig, *, rngs: nnx.Rngs) -> UNet:
    """A network with the weights of ``model`` and more channels, whose answers are the same.

    Parameters
    ----------
    model
        The narrower network.
    config
        Of the wider one: that of ``model`` but for ``widths``, of as many levels, none narrower.
    rngs
        Of the weights of new channels.

    Raises
    ------
    ModelError
        If ``config`` differs in more than wider levels.

    Examples
    --------
    >>> narrow = UNet(UNetConfig(in_channels=1, out_channels=2, widths=(4, 8)), rngs=nnx.Rngs(0))
    >>> wide = widened(narrow, replace(narrow.config, widths=(6, 8)), rngs=nnx.Rngs(1))
    >>> slices = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    >>> bool(np.allclose(wide(slices), narrow(slices), atol=1e-5))
    True
    """
    known, wanted = model.config.widths, config.widths
    same_shape = replace(config, widths=known) == model.config and len(wanted) == len(known)
    if not same_shape or np.any(np.less(wanted, known)):
        raise ModelError(
            f"{model.config} can be widened to a network of the same shape with as many levels, none narrower, "
            f"but {config} was wanted"
        )
    wide = UNet(config, rngs=rngs)
    sources: dict[Any, Any] = dict(nnx.iter_modules(model))
    for place, target in nnx.iter_modules(wide):
        if isinstance(target, nnx.Conv):
            joined = 2 if place[0] == "up" and "first" in place else 1
            _widen_conv(target, sources[place], joined)
        elif isinstance(target, nnx.BatchNorm):
            for name in ("scale", "bias", "mean", "var"):
                _put_first(getattr(target, name), getattr(sources[place], name))
    return wide


def _widen_conv(target: Any, source: Any, joined: int) -> None:
    """Its input is ``joined`` groups of channels side by side, each of which has grown at its end."""
    kernel, known = np.array(target.kernel[...]), np.asarray(source.kernel[...])
    kernel[..., : known.shape[-1]] = 0
    kernel[:, :, _places(known.shape[2], kernel.shape[2], joined), : known.shape[-1]] = known
    target.kernel.set_value(kernel)
    if target.bias is not None:
        _put_first(target.bias, source.bias)


def _put_first(target: Any, source: Any) -> None:
    values = np.array(target[...])
    values[: source.shape[0]] = source[...]
    target.set_value(values)


def _places(old: int, new: int, groups: int) -> Int[ndarray, " old"]:
    """Where old channels are among the new.

    >>> _places(4, 6, 2).tolist()
    [0, 1, 3, 4]
    """
    starts = np.arange(groups) * (new // groups)
    return (starts[:, None] + np.arange(old // groups)).ravel()
