"""What every network is (:class:`Network`), and the ensembles of U-Nets that hypodask trains."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray

from hypodask.alignment.pose import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.structures import Hemisphere, Label, LabelTable
from hypodask.image.intensity import SCALINGS
from hypodask.image.resampling import resample
from hypodask.networks.architectures import AnyNetwork
from hypodask.networks.cards import InputGeometry, ModelCard
from hypodask.networks.unet import predictor
from hypodask.networks.volume_unet import VolumeUNet, volume_predictor
from hypodask.scan.scan import Scan
from hypodask.segmentation.segmentation import Segmentation

FINE_MM = 1.0
"""A scan is resampled onto grids finer than this by cubic B-splines, onto coarser ones by a low-pass filter and linear
interpolation."""


@dataclass(frozen=True)
class VolumeError:
    """How wrong the volumes of a network were on participants whose scans it had not learnt from."""

    relative_sd: float | None = None
    """Standard deviation of predicted over true volume of the whole structure; None where it was not measured."""
    participants: int | None = None
    """How many participants it was measured on; None where that is not known."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The same standard deviation for sides and subunits, by structure, where measured."""


UNMEASURED = VolumeError()
"""The error of a network for which it was not measured; its volumes have no interval."""


@runtime_checkable
class Elsewhere(Protocol):
    """Runs a method of the same network in another process, such as a worker that has a GPU."""

    def __call__(self, method: str, image: Float[ndarray, "x y z"], **options: Any) -> Any:
        """What ``getattr(network, method)(image, **options)`` returns there; ``method`` may be dotted."""


def part_of(elsewhere: Elsewhere, name: str) -> Elsewhere:
    """The same process, for a network that is the attribute ``name`` of the one that runs there."""

    def run(method: str, image: Float[ndarray, "x y z"], **options: Any) -> Any:
        return elsewhere(f"{name}.{method}", image, **options)

    return run


@runtime_checkable
class Network(Protocol):
    """A network that is ready to run on any scan."""

    @property
    def task(self) -> str:
        """Name of the structure that it segments."""

    @property
    def name(self) -> str:
        """Name and the first 12 hex digits of the sha256 of the weights."""

    @property
    def protocol(self) -> str:
        """Label protocol of its segmentations; whether their posteriors may be summed to a volume follows from it."""

    @property
    def volume_error(self) -> VolumeError:
        """Its measured error; without one its volumes have no interval."""

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan."""

    def on(self, elsewhere: Elsewhere) -> "Network":
        """The same network, whose heavy step runs elsewhere; what reads a scan or needs little stays here."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One U-Net or several, with their model card.

    The posteriors of the members are averaged, so that the mean is still a probability.
    """

    members: tuple[AnyNetwork, ...]
    card: ModelCard
    digest: str
    """The sha256 of the weights, in hex digits."""
    elsewhere: Elsewhere | None = None
    """Where the U-Nets run, if not here."""

    @property
    def task(self) -> str:
        return self.card.task

    @property
    def name(self) -> str:
        return f"{self.card.name}:{self.digest[:12]}"

    @property
    def protocol(self) -> str:
        return self.card.protocol

    @property
    def volume_error(self) -> VolumeError:
        return VolumeError(self.card.relative_volume_sd, self.card.volume_heads, self.card.part_volume_sd)

    @property
    def labels(self) -> LabelTable:
        """What the channels after background are.

        Raises
        ------
        ModelError
            If the network segments nothing.
        """
        if self.card.labels is None:
            raise ModelError(f"{self.name} is a {self.task} network and segments nothing; give one that does")
        return self.card.labels

    @cached_property
    def _predictors(self) -> tuple[Callable[[Array], Array], ...]:
        # One compiled program, called once for each member: as fast as a map over stacked weights, which would need a
        # second copy of them.
        exchanged = tuple(mirrored_channels(self.labels))
        return tuple(_predictor(member, exchanged=exchanged) for member in self.members)

    @cached_property
    def _quick_predictor(self) -> Callable[[Array], Array]:
        return _predictor(self.members[0])

    def on(self, elsewhere: Elsewhere) -> "Ensemble":
        """The same ensemble, whose U-Nets run elsewhere."""
        return replace(self, elsewhere=elsewhere)

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        """Posteriors of one scan."""
        found = self.segment_image(self.network_image(scan, alignment))
        return replace(found, grid=self.card.geometry.grid_for(alignment.head_size))

    def network_image(self, scan: Scan, alignment: Alignment) -> Float[ndarray, "x y z"]:
        """What the network sees: the scan resampled once onto the network's grid, with its intensities scaled."""
        grid = self.card.geometry.grid_for(alignment.head_size)
        fine = max(grid.spacing_mm) < FINE_MM
        image = resample(scan.data, scan.grid, grid, onto_from_grid=alignment.acpc_from_scanner, order=3 if fine else 1)
        return SCALINGS[self.card.geometry.intensity](image)

    def segment_image(self, image: Float[ndarray, "x y z"], *, quick: bool = False) -> Segmentation:
        """Posteriors of an image that :meth:`network_image` made.

        Parameters
        ----------
        image
            On the network's grid, scaled.
        quick
            Use the first member only, and only on the image as it is. This takes half of the time or less. Otherwise
            the image and its mirror image (test-time augmentations) are seen by all members.
        """
        if self.elsewhere is not None:
            return cast(Segmentation, self.elsewhere("segment_image", image, quick=quick))
        if quick:
            posteriors = self._quick_predictor(neighbours(jnp.asarray(image), self.card.geometry))
            return Segmentation(_channels_first(posteriors), self.card.geometry.grid, self.labels)
        total, wholes = np.zeros((1 + len(self.labels), *image.shape), np.float32), []
        for of_member in self.member_posteriors(image):
            total += of_member
            wholes.append((1 - of_member[0]).astype(np.float16))
        member_wholes = np.stack(wholes) if len(wholes) > 1 else None
        return Segmentation(total / len(wholes), self.card.geometry.grid, self.labels, member_wholes)

    def posteriors(self, image: Float[ndarray, "x y z"]) -> Float[ndarray, "channel x y z"]:
        """Posteriors of a scaled image, averaged over it, its mirror image and all members."""
        return self.segment_image(image).posteriors

    def member_posteriors(self, image: Float[ndarray, "x y z"]) -> Iterator[Float[ndarray, "channel x y z"]]:
        """Posteriors of one member after the other, averaged over the image and its mirror image."""
        slices = neighbours(jnp.asarray(image), self.card.geometry)
        for predict in self._predictors:
            yield _channels_first(predict(slices))


def neighbours(image: Float[Array, "x y z"], geometry: InputGeometry) -> Float[Array, "y x z slice"]:
    """Each coronal slice with its neighbours as channels; beyond the ends of the image the last slice is repeated."""
    reach = geometry.slice_step * (geometry.slices // 2)
    padded = jnp.pad(image, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    starts = [geometry.slice_step * number for number in range(geometry.slices)]
    slices = [padded[:, start : start + image.shape[1]] for start in starts]
    return jnp.moveaxis(jnp.stack(slices, -1), 1, 0)


def _predictor(member: AnyNetwork, *, exchanged: tuple[int, ...] | None = None) -> Callable[[Array], Array]:
    """A function from slices to posteriors, by slices.

    With ``exchanged``, the channels of the other side, it gives the mean over the image and its mirror image.
    """
    if isinstance(member, VolumeUNet):
        return volume_predictor(member, exchanged=exchanged)
    return predictor(member, exchanged=exchanged)


def _channels_first(posteriors: Float[Array, "y x z class_"]) -> Float[ndarray, "class_ x y z"]:
    return np.asarray(jnp.moveaxis(posteriors, (3, 1, 0, 2), (0, 1, 2, 3)))


def mirrored_channels(table: LabelTable) -> list[int]:
    """For each channel, background first, the channel of the same structure on the other side.

    Raises
    ------
    ModelError
        If a label of one side has no counterpart on the other.
    """
    numbers = {(label.structure, label.hemisphere): number for number, label in enumerate(table, start=1)}
    pairs = {(label.structure, label.hemisphere): _counterpart(label) for label in table}
    if alone := [structure for (structure, _), other in pairs.items() if other not in numbers]:
        raise ModelError(
            f"an image cannot be mirrored if a label has no counterpart: {alone} of protocol {table.protocol!r}; name "
            "the two sides of a structure alike but for left and right, or give labels of both sides at once"
        )
    return [0, *(numbers[other] for other in pairs.values())]


def _counterpart(label: Label) -> tuple[str, Hemisphere]:
    """Name and hemisphere of the same structure on the other side."""
    if label.hemisphere == "left":
        return label.structure.replace("left", "right"), "right"
    if label.hemisphere == "right":
        return label.structure.replace("right", "left"), "left"
    return label.structure, "both"
