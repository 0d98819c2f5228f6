"""How networks learn: examples that are made while training runs, losses, and the training loop.

::

    loop.py              learn: AdamW, an average of the weights, checkpoints, one step after the other
    losses.py            what training minimises
    checkpoints.py       the state of a run on disk, by Orbax
    training_box.py      the box that a network of a structure sees, and the training grid around it
    labelled_scans.py    scans with soft labels of a structure -> a task to learn
    slices.py            a task -> batches of slices of varied heads
    growth.py            growth and shrinkage of a structure by a known amount
    augmentation.py      random variation of pose, shape and contrast
    scanner.py           random faults of scanners
    scanner_versions.py  a scan as other scanners would give it: wider point spread, thick slices
    synthetic_heads.py   whole heads of any contrast from label maps, for the ICV
    commissures.py       midsagittal planes of scans with marked commissures
    teacher.py           consensus of many runs of the published network
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
