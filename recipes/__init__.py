"""How the shipped weights are made, from the data to the model card.

::

    python -m recipes hypothalamus DATA WORK [--steps N] [--leave-out NAME ...] [--scheduler ADDRESS]
    python -m recipes icv DATA WORK [--steps N] [--leave-out NAME ...] [--initial WEIGHTS]
    python -m recipes border DATA WORK [--steps N] [--leave-out NAME ...]
    python -m recipes commissures DATA WORK [--steps N] [--leave-out NAME ...]
    python -m recipes template DATA WORK

``DATA`` holds ``scans/``, ``scans_stripped/`` and ``scans_thick/`` (T1-weighted scans), ``models/`` (the published
network's weights) and ``label_maps/`` (label maps of whole heads in FreeSurfer's numbering). ``WORK`` receives what is
computed on the way, one file per scan, checkpoints, and the weights with their card. The same call goes on where it
stopped. Dask workers run the published network on each scan, on this machine or on a cluster that shares ``DATA`` and
``WORK``.
"""
