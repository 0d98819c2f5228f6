"""Reading one scan, from any place, and refusing what cannot be trusted.

::

    read.py      read_scan, read_label_map: the path of one file from bytes to Scan
    source.py    bytes of a path or URL: hashed as they pass, inflated no further than asked
    nifti.py     NIfTI-1 and -2 header -> Layout
    mgh.py       MGH header -> Layout
    layout.py    what a header promises: shape, dtype, place, scale
    checks.py    limits of what a head scan can be
    dicom.py     DICOM series -> NIfTI by dcm2niix
    scan.py      Scan
"""

from hypodask.scan.read import read_label_map, read_scan
from hypodask.scan.scan import Scan

__all__ = ["Scan", "read_label_map", "read_scan"]
