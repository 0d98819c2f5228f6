"""Figures and the report of a study: one self-contained HTML page, made without JAX or a cluster.

====================  =====================================================================
module                what it makes
====================  =====================================================================
``figures``           groups as boxes and points with significance brackets
``forest``            the effect of each site and of all together
``slices``            coronal slices with the outlines of labels; planes with the outline of the ICV mask
``pictures``          the arrays that ``slices`` draws, read from the store of a scan
``tables``            tables of the statistics as text for readers
``page``              the HTML page, and the choice of scans that it shows
====================  =====================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
