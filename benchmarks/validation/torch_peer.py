"""The peer of inference: the shipped U-Nets in PyTorch, with the same weights.

``pip install torch``; it is imported when it is first used. Batch normalisation is folded in as for ours, and a U-Net
for volumes has the three-dimensional convolutions that its two-dimensional ones stand for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx
from numpy import ndarray

from hypodask.networks.unet import UNet, fold_batch_norm
from hypodask.networks.volume_unet import VolumeUNet

AT_ONCE = 25
"""Slices that go through together: a member takes 0.22 s of one core for 50 slices, with 1 at once 0.28, with 4 0.23,
with 50 0.25 s."""


def one_thread() -> None:
    """Keep PyTorch to one core."""
    import torch

    torch.set_num_threads(1)


def slice_predictor(model: UNet) -> Callable[[ndarray], ndarray]:
    """From slices (n, h, w, channel) to class probabilities, as :func:`hypodask.networks.unet.predictor`."""
    import torch
    from torch.nn import functional

    folded = fold_batch_norm(model)
    weights = _weights(folded)

    def convolved(features: Any, conv: nnx.Conv) -> Any:
        kernel, bias = weights[id(conv)]
        return functional.conv2d(features, kernel, bias, padding=kernel.shape[-1] // 2)

    def predict(slices: ndarray) -> ndarray:
        with torch.inference_mode():
            batches = _channels_second(slices).to(memory_format=torch.channels_last).split(AT_ONCE)
            answers = [_logits(folded, batch, convolved, functional.max_pool2d).softmax(dim=1) for batch in batches]
            return torch.cat(answers).permute(0, 2, 3, 1).numpy()

    return predict


def volume_predictor(model: VolumeUNet) -> Callable[[ndarray], ndarray]:
    """From a volume (y, x, z, channel) to class probabilities."""
    import torch
    from torch.nn import functional

    folded = fold_batch_norm(model)
    side, backgrounds = folded.config.space_to_depth, folded.config.backgrounds
    weights = _weights(folded)

    def convolved(features: Any, conv: nnx.Conv) -> Any:
        kernel, bias = weights[id(conv)]
        # Slices before, here and behind are joined as channels: they are the planes of a kernel over 3 x 3 x 3.
        planes = torch.stack(kernel.split(features.shape[1], dim=1), dim=2)
        return functional.conv3d(features, planes, bias, padding=tuple(size // 2 for size in planes.shape[2:]))

    def predict(volume: ndarray) -> ndarray:
        with torch.inference_mode():
            cubes = _cubes(_channels_second(volume[None]), side)
            logits = _logits(folded, cubes, convolved, functional.max_pool3d)
            classes = logits.unflatten(1, (side**3, -1)).softmax(dim=2)
            together = classes[:, :, :backgrounds].sum(dim=2, keepdim=True)
            return _voxels(torch.cat([together, classes[:, :, backgrounds:]], dim=2), side)

    return predict


def _logits(
    folded: UNet | VolumeUNet, features: Any, convolved: Callable[[Any, Any], Any], pool: Callable[[Any, int], Any]
) -> Any:
    """The way down and up, which is the same in two and three dimensions."""
    import torch
    from torch.nn import functional

    def level(features: Any, two: Any) -> Any:
        for one in (two.first, two.second):
            features = functional.relu(convolved(features, one.conv), inplace=True)
        return features

    skips: list[Any] = []
    for depth, down in enumerate(folded.down):
        features = level(pool(features, 2) if depth else features, down)
        skips.append(features)
    for narrow, up, skip in zip(folded.narrow, folded.up, skips[-2::-1], strict=True):
        doubled = functional.interpolate(convolved(features, narrow), scale_factor=2)
        features = level(torch.cat([skip, doubled], dim=1), up)
    return convolved(features, folded.classify)


def _weights(model: nnx.Module) -> dict[int, tuple[Any, Any]]:
    """Kernel (out, in, h, w) and bias of every convolution, by its identity."""
    return {id(conv): _of_conv(conv) for _, conv in nnx.iter_modules(model) if isinstance(conv, nnx.Conv)}


def _of_conv(conv: nnx.Conv) -> tuple[Any, Any]:
    import torch

    assert conv.bias is not None
    kernel = np.transpose(np.asarray(conv.kernel[...]), (3, 2, 0, 1))
    return torch.tensor(kernel), torch.tensor(np.asarray(conv.bias[...]))


def _channels_second(values: ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1)))


def _cubes(volumes: Any, side: int) -> Any:
    """Cubes of voxels as channels of one, in the order of ``_cubes_to_depth`` (one channel a voxel)."""
    n, _, y, x, z = volumes.shape
    split = volumes.reshape(n, y // side, side, x // side, side, z // side, side)
    return split.permute(0, 2, 4, 6, 1, 3, 5).reshape(n, side**3, y // side, x // side, z // side).contiguous()


def _voxels(cubes: Any, side: int) -> ndarray:
    """Classes of every voxel (y, x, z, class) from those of the voxels of each cube."""
    n, _, classes, y, x, z = cubes.shape
    apart = cubes.reshape(n, side, side, side, classes, y, x, z).permute(0, 5, 1, 6, 2, 7, 3, 4)
    return apart.reshape(n, y * side, x * side, z * side, classes)[0].numpy()
