"""Simulated heads and cohorts whose commissures and volumes are known.

A head is the MNI152 brain with a generated cranial cavity, skull, scalp, face and neck, deformed to a random
person in a random pose. It shares its brain with the template that alignment registers to, so it is easier
than a real scan: use it to learn the tools, to test whole runs and to impose a known effect, and real scans
to judge accuracy.

::

    fields.py         nodes, and sampling between them
    cavity.py         the brain and the cranial cavity, in template space
    hypothalamus.py   the hypothalamus, and the warp that shrinks it
    anatomy.py        skull, scalp, face and neck; contrast
    deformation.py    scanner -> template and back
    truth.py          landmarks and volumes of a deformed head
    imaging.py        what a scanner makes of it
    head.py           simulate_head
    outlines.py       its true outline as a label map, to train on
    cohort.py         simulate_cohort
"""

from hypodask.phantom.cohort import simulate_cohort
from hypodask.phantom.head import HeadOptions, simulate_head
from hypodask.phantom.hypothalamus import template_hypothalamus
from hypodask.phantom.truth import Truth

__all__ = ["HeadOptions", "Truth", "simulate_cohort", "simulate_head", "template_hypothalamus"]
