"""The U-Net that every stage of ours shares: its layers, its weights on disk, and how it learns.

::

    unet.py      the network, and its fast form for inference
    weights.py   weights and model card in one file
    augment.py   random variation of training examples
    learn.py     AdamW on batches made on the fly
    checkpoints.py   the state of a run, to go on from

What a network is asked, and what its answer means, belongs to the stages: ``alignment`` and ``segmentation``.
"""
