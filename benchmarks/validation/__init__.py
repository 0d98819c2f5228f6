"""Programs that measure how accurate and how fast hypodask is.

Each is run as ``python -m benchmarks.validation.NAME``; ``--help`` lists its arguments. DATA is the folder of
validation scans: ``scans/``, ``scans_stripped/``, ``scans_thick/``, ``scans_2mm/``, ``template/``, ``landmarks/``,
``label_maps/`` and ``models/``. With ``--record`` a program writes its figures to ``docs/results/``, and
``python docs/write_figures.py`` puts them into the pages.

========================== ======================================================================
program                    measures
========================== ======================================================================
``alignment_accuracy``     AC-PC alignment: accuracy, repeatability, hard cases, speed, pictures
``hypothalamus_accuracy``  the hypothalamus: overlap, repeatability, imposed shrinkage, bad images
``icv_accuracy``           the intracranial volume (ICV) on label maps and on real scans
``icv_peers``              the ICV by hypodask, SAMSEG and deepbet
``quality_runs``           nothing: it runs hypodask on good and on spoilt scans, for the next two
``quality``                how well the quality score catches spoilt scans
``intervals``              how often the 95 % intervals of volumes hold the true volume
``chain``                  CPU time beside antspyx, SimpleITK and PyTorch
``scale``                  time and memory of 100,000 scans whose work takes no time
``plan_simulation``        scans an hour with up to thousands of workers, simulated
``workers_efficiency``     scans an hour with one worker and with two
``gpu_throughput``         scans an hour with and without a GPU
``sites``                  ComBat on large studies: time, memory, false positives
========================== ======================================================================

Modules that several programs share:

========================== ======================================================================
``posing``                 scans with known commissures, put into any pose and scanned again
``scoring``                the alignment of a scan, compared with the truth
``planting``               failures planted into a scan
``hypothalamus_heads``     real scans with their consensus and the network that had not seen them
``hypothalamus_*``         the parts of ``hypothalamus_accuracy``
``alignment_*``            the parts of ``alignment_accuracy``
``ants_peer``              affine registration by ANTs
``torch_peer``             the shipped networks in PyTorch
``standins``               a pipeline whose work takes no time, and a cluster of processes
``results``                writes the figures of a program to ``docs/results/``
========================== ======================================================================
"""
