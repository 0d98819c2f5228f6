"""How far the result of one scan can be trusted, from that scan alone.

::

    segmentation.py   measures of segmentations: certainty, agreement, symmetry, shape, place, what is cut off
    image.py          measures of the image: noise, resolution, contrast, air, the two halves of the head
    reference.py      the range that each measure has on good-quality scans
    score.py          all measures of a scan, and the quality score that they give
    intervals.py      95 % intervals of the volumes
    warnings.py       sentences for the column ``warnings``

No measure knows a diagnosis. The size of the hypothalamus is judged within very wide limits only, so that atrophy does
not lower the quality: what is far too small for its head lacks a part.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
