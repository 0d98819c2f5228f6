"""Networks: their architectures, their model cards and their weights on disk.

=================  =====================================================================
architectures.py   every architecture that a model card can name, and how it is built
unet.py            2D U-Net, which segments slice by slice, and its fast form for inference
efficientnet.py    2D U-Net with an EfficientNet encoder, the network of the paper
volume_unet.py     U-Net for whole volumes, made of two-dimensional convolutions
profiles.py        network that finds a place along a line
convolutions.py    convolutions in a form that is faster on a CPU
cards.py           model card: what a network is, takes, learnt from, and how good it is
weights.py         weights with their model card in one safetensors file
=================  =====================================================================

Which images a network is given, and what its output means, is decided in :mod:`hypodask.alignment` and
:mod:`hypodask.segmentation`. How networks learn is in :mod:`hypodask.learning`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
