"""Where is the hypothalamus, where is the intracranial volume? From an aligned scan to posteriors and volumes.

::

    load.py          networks by name (``hypothalamus``, ``icv``, ``hypothalamus-seed``) or by the path of their weights
    network.py       what every network is; ensembles of U-Nets
    icv_border.py    the network of the intracranial volume: finds its boundary on lines across it
    seed_protocol.py the hypothalamus in a second label protocol, by rules
    published.py     the published subunit network, from its Keras weights
    segmentation.py  posteriors on a grid, and the label map they give
    volumes.py       cleaned posteriors and their volumes
    label_maps.py    label maps on other grids: the slab of the paper, the scan's own voxels
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
