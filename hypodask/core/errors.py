"""Every error hypodask raises on purpose, in one tree.

::

    HypodaskError
    ├── ScanError (ValueError)             this scan cannot be trusted; the cohort goes on
    │   ├── UnreadableScanError            not an image, a folder, an empty or a damaged file
    │   │   ├── MissingScanError           no such file
    │   │   └── TruncatedScanError         the file ends before its voxels do
    │   ├── OversizeScanError              the header asks for more memory than a head needs
    │   ├── NotScalarError                 RGB, complex, or a real fourth dimension
    │   ├── GeometryError                  the voxels cannot be placed in the scanner
    │   │   ├── NoTransformError           neither sform nor qform says where the voxels are
    │   │   ├── BadTransformError          singular, sheared or non-finite affine
    │   │   ├── VoxelSizeError             zero, negative or absurd voxel size
    │   │   └── FieldOfViewError           too small or too large to hold a head
    │   ├── IntensityError                 the voxels themselves are wrong
    │   │   ├── NonFiniteError             NaN or infinity
    │   │   ├── ConstantImageError         one value everywhere
    │   │   └── BackgroundError            the background cannot be told from tissue
    │   ├── AlignmentError                 no head was found, or its pose is unclear
    │   ├── LandmarkError                  commissures given by hand cannot be read, or cannot be those of the scan
    │   └── SegmentationError              a network found nothing where there should be something
    ├── CohortError (ValueError)           the table of scans cannot be used; nothing was run
    ├── TrainingError (ValueError)         a run of training cannot begin: its configuration, or all of its data
    ├── OutlineError (ValueError)          a manual label map cannot be learnt from; training goes on with others
    ├── ModelError (ValueError)            a weights file is missing, damaged or of another kind
    ├── TransformError (ValueError)        a file of a transform cannot be read or written
    ├── LocationError (ValueError)         a path or URL that must not be opened, written or deleted
    ├── OutputError (OSError)              the output cannot be written
    ├── StoreError (OSError)               a file of the output is missing, damaged or not hypodask's
    ├── ResultsError (ValueError)          the results dataset lacks what an analysis needs
    └── ClusterError (RuntimeError)        the cluster, not a scan, went wrong
        └── ScanTimeoutError               a scan took longer than its time limit

Each class takes one message, so that an error survives pickling between workers. A message says what was found, what
was needed and what to do; callers add context with ``err.add_note(...)``.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class HypodaskError(Exception):
    """Root of every error that hypodask raises on purpose."""


class ScanError(HypodaskError, ValueError):
    """This scan cannot be trusted; the cohort goes on without it."""

    stage: str = "read"
    """Stage of the method at which the scan was refused, as in the ``stage`` of its row."""

    @property
    def reason(self) -> str:
        """The message and the notes that callers added, as in the ``reason`` of the scan's row."""
        return " ".join([str(self), *getattr(self, "__notes__", ())])


@contextmanager
def at_stage(stage: str) -> Iterator[None]:
    """Note on a ScanError at which stage of the method it was raised.

    >>> try:
    ...     with at_stage("align"):
    ...         raise ScanError("no human head was found")
    ... except ScanError as err:
    ...     err.stage
    'align'
    """
    try:
        yield
    except ScanError as err:
        err.stage = stage
        raise


class UnreadableScanError(ScanError):
    """The path does not hold an image that can be read."""


class MissingScanError(UnreadableScanError):
    """There is no file at the path."""


class TruncatedScanError(UnreadableScanError):
    """The file ends before its voxels do."""


class OversizeScanError(ScanError):
    """The header promises more voxels than a head scan has."""


class NotScalarError(ScanError):
    """The image is not one number per voxel of one volume."""


class GeometryError(ScanError):
    """The voxels cannot be placed in the scanner."""


class NoTransformError(GeometryError):
    """Neither sform nor qform is set."""


class BadTransformError(GeometryError):
    """The affine is singular, sheared or not finite."""


class VoxelSizeError(GeometryError):
    """The voxel size is zero, negative or absurd."""


class FieldOfViewError(GeometryError):
    """The field of view is too small or too large to hold a head."""


class IntensityError(ScanError):
    """The voxel values cannot be those of a head scan."""


class NonFiniteError(IntensityError):
    """NaN or infinite voxels."""


class ConstantImageError(IntensityError):
    """All voxels have one value."""


class BackgroundError(IntensityError):
    """The background cannot be told from tissue, so that the intensity of air is not known."""


class AlignmentError(ScanError):
    """No head was found, or its pose is unclear."""


class LandmarkError(ScanError):
    """Commissures given by hand cannot be read, or cannot be those of the scan."""


class SegmentationError(ScanError):
    """A network found nothing where there should be something."""


class CohortError(HypodaskError, ValueError):
    """The table of scans cannot be used; nothing was run."""


class TrainingError(HypodaskError, ValueError):
    """A run of training cannot begin."""


class OutlineError(HypodaskError, ValueError):
    """A manual label map cannot be learnt from; the run goes on without it."""


class ModelError(HypodaskError, ValueError):
    """A weights file is missing, damaged or of another kind."""


class TransformError(HypodaskError, ValueError):
    """A file of a transform cannot be read or written."""


class LocationError(HypodaskError, ValueError):
    """A path or URL that must not be opened, written or deleted."""


class OutputError(HypodaskError, OSError):
    """The output cannot be written."""


class StoreError(HypodaskError, OSError):
    """A file of the output is missing, damaged or not hypodask's."""


class ResultsError(HypodaskError, ValueError):
    """The results dataset lacks what an analysis needs."""


class ClusterError(HypodaskError, RuntimeError):
    """The cluster, not a scan, went wrong."""


class ScanTimeoutError(ClusterError):
    """A scan took longer than its time limit."""
