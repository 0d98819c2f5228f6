"""How the shipped weights are made, from the data to the model card.

::

    python -m hypodask.recipes hypothalamus DATA WORK [--steps N] [--leave-out NAME ...] [--scheduler ADDRESS]
    python -m hypodask.recipes icv DATA WORK [--steps N] [--leave-out NAME ...] [--initial WEIGHTS]
    python -m hypodask.recipes border DATA WORK [--steps N] [--leave-out NAME ...]
    python -m hypodask.recipes commissures DATA WORK [--steps N] [--leave-out NAME ...]
    python -m hypodask.recipes template DATA WORK

``DATA`` holds ``scans/``, ``scans_stripped/`` and ``scans_thick/`` (T1-weighted heads), ``models/`` (the published
network's weights) and ``label_maps/`` (whole-head label maps in FreeSurfer's numbering). ``WORK`` receives what is
computed on the way, one file a head, checkpoints, and the weights with their card. Run again, it goes on. The published
network's runs on each head are work for Dask: for a cluster on this machine, or one that shares ``DATA`` and ``WORK``.
"""
