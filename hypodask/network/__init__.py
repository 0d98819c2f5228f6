"""The networks that every stage of ours shares: their layers, their weights on disk, and how they learn.

::

    unet.py      the network, and its fast form for inference
    efficientnet.py   the paper's own network
    architectures.py   what a model card can name
    weights.py   weights and model card in one file
    augment.py   random variation of training examples
    learn.py     AdamW on batches made on the fly
    checkpoints.py   the state of a run, to go on from

What a network is asked, and what its answer means, belongs to the stages: ``alignment`` and ``segmentation``.
"""
