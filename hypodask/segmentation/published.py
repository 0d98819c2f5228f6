"""The published hypothalamic subunit network (Billot et al., NeuroImage 2020), run in Flax.

Its Keras weights are read with h5py alone: no Keras, no pickle. The network is a 3D U-Net of three levels
with two 3 x 3 x 3 convolutions each. A level is convolution, ELU, convolution, ELU, batch normalisation;
the skip connection is taken before that normalisation; going up, features are doubled by repetition and
follow the skip's in the concatenation. The order is that of the published code.

Each 3D convolution runs as a sum of 2D ones, one output slice at a time. Measured on one core at
48 x 96 x 96 voxels: 88 to 146 GFLOP/s, where XLA's own 3D convolution reaches 15 to 54. Neither a
concatenation nor a doubled volume is ever in memory as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Float32, Int
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from hypodask.alignment.pose import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.grid import Grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS_SUBUNITS, MAIN, LabelTable
from hypodask.image.intensity import intensity_window, windowed
from hypodask.image.resampling import resample
from hypodask.scan.scan import Scan
from hypodask.segmentation.network import UNMEASURED, Elsewhere, VolumeError
from hypodask.segmentation.segmentation import Segmentation

_LEVELS = 3
_SIZE_MULTIPLE = 1 << (_LEVELS - 1)
"""Shapes are padded with zeros to multiples of this, so that the image can be halved at every level."""

_SPACING_MM = 1.0
"""Voxel size the network was trained at."""

_BLOCK_VOXELS = 96
"""Size of the cube that the network sees, in voxels. It holds the hypothalamus and, in any pose, the whole receptive
field of the network, so that the posteriors are those of the whole scan."""

_BLOCK_STEP = 4
"""The cube starts at a multiple of so many voxels, so that the same voxels are pooled as on the whole scan."""

_SPACING_TOLERANCE = 0.05
"""Voxels this near to 1 mm are not resampled; others are, as in the published code."""

_BLOCK_CENTRE_MM = (0.0, -5.0, -6.0)
"""Middle of the hypothalamus in AC-PC space."""

_OWN_DATA = "give a file that contains the weights itself"

_Node: TypeAlias = h5py.Group | h5py.Dataset
"""What stands in a file; a damaged one may have a dataset where a group should be."""

_BATCH_NORM_EPSILON = 1e-3  # Keras's default, which the published code leaves in place


class _Source(NamedTuple):
    """Feature maps that a convolution reads, at its own resolution or at half of it."""

    features: Float[Array, "i j k c"]
    halved: bool = False


class _Conv3d(nnx.Module):
    """A 3 x 3 x 3 convolution with ELU, as 2D convolutions over neighbouring slices."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.kernel = nnx.Param(jnp.zeros((3, 3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, *sources: _Source) -> Float[Array, "i j k d"]:
        kernel, bias = self.kernel[...], self.bias[...]
        first = sources[0].features
        total = jnp.broadcast_to(bias, (*first.shape[1:3], len(bias)))
        # The parts of the kernel that apply to each source, in the order of their concatenation.
        ends = np.cumsum([source.features.shape[-1] for source in sources])
        parts = jnp.split(kernel, ends[:-1], axis=3)

        def convolve_slice(i: Int[Array, ""]) -> Float[Array, "j k d"]:
            slice_ = total
            for source, part in zip(sources, parts, strict=True):
                for step in range(3):
                    slice_ += _convolve_2d(_slice_at(source, i + step - 1), part[step])
            return jax.nn.elu(slice_)

        return jnp.asarray(lax.map(convolve_slice, jnp.arange(len(first))))


class _Normalise(nnx.Module):
    """Batch normalisation by fixed statistics."""

    def __init__(self, channels: int) -> None:
        self.gamma = nnx.Param(jnp.ones(channels))
        self.beta = nnx.Param(jnp.zeros(channels))
        self.moving_mean = nnx.BatchStat(jnp.zeros(channels))
        self.moving_variance = nnx.BatchStat(jnp.ones(channels))

    def __call__(self, features: Float[Array, "i j k c"]) -> Float[Array, "i j k c"]:
        gain = self.gamma[...] / jnp.sqrt(self.moving_variance[...] + _BATCH_NORM_EPSILON)
        shift = self.beta[...] - self.moving_mean[...] * gain
        return features * gain[None, None, None] + shift[None, None, None]


class _Level(nnx.Module):
    """Two convolutions and the normalisation that follows them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.first = _Conv3d(inputs, outputs)
        self.second = _Conv3d(outputs, outputs)
        self.norm = _Normalise(outputs)

    def __call__(self, *sources: _Source) -> tuple[Float[Array, "i j k d"], Float[Array, "i j k d"]]:
        features = self.second(_Source(self.first(*sources)))
        return features, self.norm(features)


class _SubunitNet(nnx.Module):
    """The published 3D U-Net; zero weights until ``import_hypothalamus_seg`` fills them.

    Parameters
    ----------
    features : int
        Channels at full resolution (24 as published), doubling at each of the two levels below.
    classes : int
        Labels with background (11 as published).
    """

    def __init__(self, features: int, classes: int) -> None:
        widths = [features << level for level in range(_LEVELS)]
        inputs = [1, *widths[:-1]]
        self.down = nnx.List([_Level(i, o) for i, o in zip(inputs, widths, strict=True)])
        self.up = nnx.List([_Level(widths[n] + widths[n + 1], widths[n]) for n in reversed(range(_LEVELS - 1))])
        self.kernel = nnx.Param(jnp.zeros((features, classes)))
        self.bias = nnx.Param(jnp.zeros(classes))

    def __call__(self, image: Float[Array, "i j k"]) -> Float[Array, "class_ i j k"]:
        """Posteriors of each class at each voxel; the shape must be multiples of ``_SIZE_MULTIPLE``."""
        features, skips = image[..., None].astype(jnp.float32), []
        for depth, level in enumerate(self.down):
            skip, features = level(_Source(_halve(features) if depth else features))
            skips.append(skip)
        for level, skip in zip(self.up, skips[-2::-1], strict=True):
            _, features = level(_Source(skip), _Source(features, halved=True))
        posteriors = lax.map(self._classify_slice, features)
        return jnp.moveaxis(posteriors, -1, 0)

    def _classify_slice(self, features: Float[Array, "j k c"]) -> Float[Array, "j k class_"]:
        return jax.nn.softmax(features @ self.kernel[...] + self.bias[...][None, None], axis=-1)


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """The published network with its weights, ready to run."""

    network: _SubunitNet
    labels: LabelTable = HYPOTHALAMUS_SUBUNITS
    """Its ten subunits; channel 0 of the posteriors is background."""
    spacing_mm: float = _SPACING_MM
    """Voxel size it expects along each axis."""

    @cached_property
    def _forward(self) -> Callable[[Float[ndarray, "i j k"]], Float[Array, "class_ i j k"]]:
        graphdef, state = nnx.split(self.network)
        return partial(jax.jit(lambda state, image: nnx.merge(graphdef, state)(image)), state)

    def posteriors(self, image: Float[ndarray, "..."]) -> Float32[ndarray, "class_ i j k"]:
        """Probability of background and of each subunit.

        Parameters
        ----------
        image : float array, (i, j, k)
            Voxels of 1 mm along right, anterior and superior, in [0, 1]: see
            :func:`hypodask.image.intensity.windowed`. Any shape: it is padded with zeros to multiples of 4, and the
            posteriors are cropped. Compiled once for each padded shape.

        Returns
        -------
        float32 array, (11, i, j, k)
            They sum to 1 over the first axis.

        Raises
        ------
        ValueError
            If the image is not a volume.
        """
        image = np.asarray(image, dtype=np.float32)
        if image.ndim != 3 or not image.size:
            raise ValueError(f"the published network takes one volume (i, j, k), got shape {image.shape}")
        padded = np.pad(image, [(0, -n % _SIZE_MULTIPLE) for n in image.shape])
        i, j, k = image.shape
        return np.asarray(self._forward(padded)[:, :i, :j, :k])


def import_hypothalamus_seg(path: str | PathLike[str]) -> ImportedModel:
    """Read the published Keras weights, or weights of the same network trained anew.

    Parameters
    ----------
    path : path of an ``.h5`` file
        As written by Keras ``save_weights`` or ``save``; layers that are no part of the U-Net (the published
        file holds those of the training graph) are ignored.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelError
        If there is no such file, it is not HDF5 or ends early, a layer is missing, or a weight has another
        shape, another type, or values that cannot be.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"no weights file at {path}; give the path of hypothalamus_seg's .h5 file")
    try:
        with h5py.File(path, "r") as file:
            return ImportedModel(_read_network(file))
    except (OSError, RuntimeError) as err:
        raise ModelError(
            f"{path} cannot be read as HDF5 ({err}); it may be damaged or cut short: fetch it again"
        ) from err
    except ModelError as err:
        err.add_note(f"while reading {path}")
        raise


def _slice_at(source: _Source, i: Int[Array, ""]) -> Float[Array, "j k c"]:
    """Slice ``i`` at full resolution, zeros outside; a padded copy of the volume would double the memory."""
    row = i // 2 if source.halved else i
    inside = (row >= 0) & (row < len(source.features))
    slice_ = jnp.where(inside, lax.dynamic_index_in_dim(source.features, row, 0, keepdims=False), 0.0)
    if not source.halved:
        return slice_
    j, k, c = slice_.shape
    return jnp.broadcast_to(slice_[:, None, :, None], (j, 2, k, 2, c)).reshape(2 * j, 2 * k, c)


def _convolve_2d(slice_: Float[Array, "j k c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "j k d"]:
    return lax.conv_general_dilated(slice_[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def _halve(features: Float[Array, "i j k c"]) -> Float[Array, "i/2 j/2 k/2 c"]:
    i, j, k, c = features.shape
    return features.reshape(i // 2, 2, j // 2, 2, k // 2, 2, c).max(axis=(1, 3, 5))


def _read_network(file: h5py.File) -> _SubunitNet:
    layers = _inside(file, "model_weights") if "model_weights" in file else file
    classes = len(HYPOTHALAMUS_SUBUNITS) + 1
    network = _SubunitNet(_count_features(layers), classes)
    for depth, level in enumerate(network.down):
        _fill_level(level, layers, f"downarm_{depth}", f"down_{depth}")
    for depth, level in enumerate(network.up):
        _fill_level(level, layers, f"uparm_{_LEVELS + depth}", f"up_{depth}")
    width = network.kernel.shape[0]
    network.kernel.set_value(_read(layers, "unet_likelihood", "kernel", (1, 1, 1, width, classes))[0, 0, 0])
    network.bias.set_value(_read(layers, "unet_likelihood", "bias", (classes,)))
    return network


def _count_features(layers: _Node) -> int:
    shape = _find(layers, "unet_conv_downarm_0_0", "kernel").shape
    if len(shape) != 5 or not 1 <= shape[-1] <= 256:
        raise ModelError(f"the first convolution needs a kernel (3, 3, 3, 1, features), it has {shape}")
    return int(shape[-1])


def _fill_level(level: _Level, layers: _Node, arm: str, norm: str) -> None:
    for number, conv in enumerate((level.first, level.second)):
        for name, parameter in (("kernel", conv.kernel), ("bias", conv.bias)):
            parameter.set_value(_read(layers, f"unet_conv_{arm}_{number}", name, parameter.shape))
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        statistic = getattr(level.norm, name)
        statistic.set_value(_read(layers, f"unet_bn_{norm}", name, statistic.shape))
    if level.norm.moving_variance[...].min() < 0:
        raise ModelError(f"layer unet_bn_{norm} has a negative variance; the file is damaged: fetch it again")


def _find(layers: _Node, layer: str, weight: str) -> h5py.Dataset:
    dataset: Any = layers
    for name in (layer, layer, f"{weight}:0"):
        dataset = _inside(dataset, name)
    if not isinstance(dataset, h5py.Dataset):
        raise ModelError(
            f"the file has no {weight} of layer {layer}, which the published hypothalamus_seg network has; "
            "give its .h5 file or one trained with the same architecture"
        )
    if dataset.external or dataset.is_virtual:
        raise ModelError(f"{weight} of layer {layer} lies in another file, which is not opened; {_OWN_DATA}")
    return dataset


def _inside(group: Any, name: str) -> Any:
    """A member of a group, only if it is stored in the file itself: a link may lead to any file of this machine."""
    link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
    if link is not None and not isinstance(link, h5py.HardLink):
        raise ModelError(f"{name} is a link ({type(link).__name__}), which is not followed; {_OWN_DATA}")
    return None if link is None else group[name]


def _read(layers: _Node, layer: str, weight: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
    dataset = _find(layers, layer, weight)
    if dataset.shape != shape or dataset.dtype.kind != "f":
        raise ModelError(
            f"{weight} of layer {layer} is {dataset.dtype} of shape {dataset.shape}, it must be floating-point "
            f"of shape {shape}; is this hypothalamus_seg's network with {_LEVELS} levels?"
        )
    values = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"{weight} of layer {layer} has NaN or infinite values; fetch the file again")
    return jnp.asarray(values)


@dataclass(frozen=True, eq=False)
class ImportedNetwork:
    """The published subunit network, run as published: on voxels of about 1 mm, along the scan's own axes."""

    model: ImportedModel
    digest: str
    task: str = MAIN.name
    volume_error: VolumeError = UNMEASURED
    """Not measured by hypodask."""
    elsewhere: Elsewhere | None = None
    """Where the network runs, if not here."""

    def on(self, elsewhere: Elsewhere) -> "ImportedNetwork":
        """The same network, run elsewhere."""
        return replace(self, elsewhere=elsewhere)

    @property
    def name(self) -> str:
        return f"hypothalamus_seg:{self.digest[:12]}"

    @property
    def protocol(self) -> str:
        return self.model.labels.protocol

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors in a block around the hypothalamus, in scanner space."""
        centre = transform_points(np.linalg.inv(alignment.acpc_from_scanner), np.array(_BLOCK_CENTRE_MM))
        grid = _block_grid(scan.grid, centre)
        image = windowed(resample(scan.data, scan.grid, grid), *intensity_window(scan.data))
        run = self.model.posteriors if self.elsewhere is None else partial(self.elsewhere, "model.posteriors")
        return Segmentation(run(image), grid, self.model.labels, whole_first=False)


def _block_grid(grid: Grid, centre_mm: Float[ndarray, "3"]) -> Grid:
    """A block around a point, 1 mm or as near to it as stored, axes right, anterior, superior."""
    ras = _closest_ras(grid)
    for axis, spacing in enumerate(ras.spacing_mm):
        if abs(spacing - 1) > _SPACING_TOLERANCE:
            ras = _respaced(ras, axis, 1 / spacing)
    middle = transform_points(np.linalg.inv(ras.space_from_vox), centre_mm)
    start = _BLOCK_STEP * np.round((middle - _BLOCK_VOXELS / 2) / _BLOCK_STEP)
    return ras.block(start, (_BLOCK_VOXELS,) * 3)


def _closest_ras(grid: Grid) -> Grid:
    """The same voxels with their axes permuted and flipped to point right, anterior and superior."""
    cosines = grid.space_from_vox[:3, :3] / np.linalg.norm(grid.space_from_vox[:3, :3], axis=0)
    world, array = linear_sum_assignment(-np.abs(cosines))
    matrix = np.eye(4)
    matrix[:3, 3] = grid.space_from_vox[:3, 3]
    for to, axis in zip(world, array, strict=True):
        sign = np.sign(cosines[to, axis])
        matrix[:3, to] = sign * grid.space_from_vox[:3, axis]
        if sign < 0:
            matrix[:3, 3] += grid.space_from_vox[:3, axis] * (grid.shape[axis] - 1)
    i, j, k = (grid.shape[axis] for axis in array)
    return Grid((i, j, k), matrix, grid.space)


def _respaced(grid: Grid, axis: int, factor: float) -> Grid:
    """Voxels ``factor`` times as large along one axis, over the same field of view."""
    matrix = np.array(grid.space_from_vox)
    matrix[:3, 3] += matrix[:3, axis] * (factor - 1) / 2
    matrix[:3, axis] *= factor
    shape = list(grid.shape)
    shape[axis] = int(np.ceil(shape[axis] / factor))
    return Grid((shape[0], shape[1], shape[2]), matrix, grid.space)
