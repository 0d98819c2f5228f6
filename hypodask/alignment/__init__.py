"""Where is the head, and how is it turned? From a scan to ``acpc_from_scanner``.

::

    acpc.py         align: the whole way, and how far the pose can be trusted
    search.py       every pose, roughly
    register.py     affine registration of two images
    brain.py        search and registration of the template's brain
    commissures.py  AC and PC in the midsagittal plane, by a network
    manual.py       the pose of commissures that a person placed
    pose.py         Alignment, acpc_frame
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
