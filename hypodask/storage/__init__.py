"""Files of a study: one Zarr store for each scan, the journal of rows, and AC-PC poses for other tools.

==============  ========================================================================
module          what it does
==============  ========================================================================
``store``       the store of one scan: its files, records and done-mark
``images``      an image or a label map in a store: voxels, NIfTI header, label table
``journal``     rows of scans, appended while runs go on
``transforms``  AC-PC poses and aligned scans in the formats of other tools
==============  ========================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
