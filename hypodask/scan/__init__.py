"""Read one scan from a path or a URL, and refuse a scan that cannot be trusted.

=============  ======================================================================
module         what it does
=============  ======================================================================
``read``       ``read_scan`` and ``read_label_map``: from a path to a ``Scan``
``scan``       ``Scan``: voxels, affine, scale, digest
``source``     the bytes of a file: hashed and decompressed while they are read
``layout``     what any header says: shape, type, affine, scale
``nifti``      the header of a NIfTI-1 or -2 file as a ``Layout``
``mgh``        the header of an MGH file as a ``Layout``
``dicom``      a DICOM series, converted to NIfTI by dcm2niix
``checks``     limits of what a head scan can be
``air``        ``above_air``: takes an offset out of the intensities
``landmarks``  commissures that a person placed
``template``   the MNI152 brain that scans are aligned to
=============  ======================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
