"""What every other package needs.

=============  ====================================================================
errors.py      every error that hypodask raises on purpose
grid.py        a block of voxels in a named space; the slab and the head box
structures.py  everything about each structure, and the label tables of its protocols
row.py         the row of one scan in the results
variables.py   the variables of the results dataset
documents.py   dataclasses as JSON and TOML, read strictly
progress.py    progress of a run on the terminal
=============  ====================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
