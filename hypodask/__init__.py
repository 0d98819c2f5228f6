"""Hypothalamic and intracranial volumes of a whole study of T1-weighted head scans.

The names below are all that a script needs. Each is loaded when it is first used, so ``import hypodask`` costs next to
nothing, and scripts that only use the statistics never load JAX::

    cohort = hypodask.Cohort.from_bids("study")
    results = hypodask.process(cohort, "study/derivatives/hypodask")
    hypodask.stats.compare_groups(results, "volume_mm3", structure="hypothalamus")

The list itself is in ``__init__.pyi``, for people, type checkers and editors alike.
"""

from importlib.metadata import version

import lazy_loader

from hypodask import _moved

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
__version__ = version("hypodask")

_moved.install()
