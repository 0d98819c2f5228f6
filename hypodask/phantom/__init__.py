"""Simulated heads and studies whose commissures and volumes are known.

A head is the MNI152 brain with a generated skull, scalp, face and neck around its intracranial volume (ICV), deformed
to a random person in a random pose. It shares its brain with the template that alignment registers to, so it is easier
than a real scan. Use it to learn the tools, to test whole runs and to impose a known effect; judge accuracy on real
scans.

::

    fields.py         values on regular nodes, and between them
    intracranial.py   the brain and the ICV around it, in template space
    hypothalamus.py   the hypothalamus, and the warp that shrinks it
    anatomy.py        skull, scalp, face and neck; contrast
    deformation.py    scanner -> template and back
    truth.py          landmarks and volumes of a deformed head
    imaging.py        its image; what a scanner does to it is in hypodask.image.acquisition
    head.py           simulate_head
    label_maps.py     the true segmentation as a label map, to train on
    cohort.py         simulate_cohort
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
