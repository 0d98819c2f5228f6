"""The row of one scan in the results. It is all that a worker returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Status = Literal["done", "failed", "skipped"]
Stage = Literal["plan", "read", "store", "align", "segment", "measure", "cluster"]


@dataclass(frozen=True)
class Row:
    """Outcome of one scan; every scan has one row, failed ones too.

    ``row["status"]`` reads a field, ``row["icv"]`` the volume of a structure in mm3.

    Examples
    --------
    >>> row = Row("sub-01", "done", volume_mm3={"icv": 1.5e6})
    >>> row["icv"], row["status"]
    (1500000.0, 'done')
    """

    scan: str
    """Identifier, unique in the cohort: ``sub-01[_ses-1][_run-1]``."""
    status: Status
    """``done``, ``failed`` (see ``stage`` and ``reason``) or ``skipped`` (it was not asked for)."""
    stage: Stage | Literal[""] = ""
    """Stage at which it failed; empty when done."""
    error: str = ""
    """Class of the error, such as ``TruncatedScanError``; empty when done."""
    reason: str = ""
    """What was found, what was needed, what to do; empty when done."""
    warnings: str = ""
    """Reasons to be careful with the volumes, sentences joined by a space."""
    flagged: bool = False
    """Whether the pose could not be trusted, or a part of the hypothalamus is missing; ``warnings`` says which. Volumes
    that are flagged have no interval."""

    volume_mm3: dict[str, float] = field(default_factory=dict)
    """The volume to publish, by structure: ``soft_volume_mm3`` or, for a model whose posteriors are not
    calibrated, ``label_volume_mm3``. Not-a-number where the boundary was not imaged, as that of the ICV of a stripped
    skull; ``warnings`` then say so."""
    soft_volume_mm3: dict[str, float] = field(default_factory=dict)
    """Sum of posteriors times the volume of a voxel: partial volumes count in part."""
    label_volume_mm3: dict[str, float] = field(default_factory=dict)
    """Number of voxels that carry the label times the volume of a voxel."""
    volume_low_mm3: dict[str, float] = field(default_factory=dict)
    """Lower end of the 95 % interval (:mod:`hypodask.quality.intervals`); missing where the model card has no measured
    error for the structure."""
    volume_high_mm3: dict[str, float] = field(default_factory=dict)
    """Upper end of the 95 % interval."""

    quality: float = float("nan")
    """How far the result can be trusted, 0 (worthless) to 1 (nothing unusual), see :mod:`hypodask.quality`. It depends
    neither on the group nor, within very wide limits, on the size of the hypothalamus."""
    alignment_score: float = float("nan")
    """Correlation of the aligned brain with the template, -1 to 1."""
    alignment_error_mm: float = float("nan")
    """Expected error of a commissure, mm; not-a-number where they were placed by hand."""
    alignment_source: str = ""
    """Source of the commissures: ``automatic`` or ``landmarks`` (by hand)."""
    acpc_distance_mm: float = float("nan")
    """Distance between the commissures, mm; 26.6 +- 1.4 in adults."""

    protocol: str = ""
    """Label protocol of the hypothalamic volumes."""
    model: str = ""
    """Name and first 12 hex digits of the sha256 of each network's weights."""
    version: str = ""
    """Version of hypodask that made the row."""
    store: str = ""
    """Path of the scan's own store, relative to the output."""
    sha256: str = ""
    """Digest of the input file."""
    seconds: float = float("nan")
    """Wall-clock time spent on this scan."""
    peak_memory_mib: float = float("nan")
    """Largest resident memory of the worker while it processed this scan, MiB; not-a-number outside a cluster."""
    attempts: float = float("nan")
    """Number of tries in this run, also those that ended with the death of the worker; not-a-number outside a
    cluster."""
    host: str = ""
    """Machine that processed it."""

    def __getitem__(self, name: str) -> Any:
        """A field by its name, or the volume of a structure in mm3."""
        if name in self.volume_mm3:
            return self.volume_mm3[name]
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(f"{name!r} is neither a field of a row nor a structure it measured") from None

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for the journal."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """The row of the values of :meth:`as_dict`; None, which JSON has for not-a-number, becomes not-a-number.

        Examples
        --------
        >>> Row.from_dict({"scan": "sub-01", "status": "done", "quality": None}).quality
        nan

        Raises
        ------
        TypeError
            If they are not the values of a row.
        """

        def known(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: known(item) for key, item in value.items()}
            return float("nan") if value is None else value

        return cls(**{name: known(value) for name, value in values.items()})


class MadeBy(NamedTuple):
    """What a row depends on besides its input: where one of these has changed, the scan is processed again."""

    method: str
    """Version of the method (:data:`hypodask.pipeline.METHOD_VERSION`)."""
    networks: str
    """Digest of the weights and of the options."""
    reference: str
    """Digest of the reference ranges that quality and intervals are computed from."""
    template: str
    """Digest of the template that scans are aligned to."""
