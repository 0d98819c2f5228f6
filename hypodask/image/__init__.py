"""Operations on arrays: no files and no networks.

::

    resampling.py  values of a volume on another grid
    intensity.py   scaling of intensities before a network sees them
    masks.py       connected components of masks, and their holes
    agreement.py   how far two segmentations, or two sets of volumes, agree
    acquisition.py what a scanner does to an image
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
