"""Training on manual label maps of one's own: from scans and label maps to weights that ``hypodask run`` takes.

::

    config.py         the configuration of a run: TOML -> frozen dataclasses, and back
    protocol.py       the label table of a protocol: BIDS dseg.tsv -> LabelTable
    pairs.py          which label map belongs to which scan: BIDS derivative or table
    manual_labels.py  a manual label map -> soft labels on the training grid, or the reason why not
    start.py          architecture of the networks, the box they see, and their first weights
    preparation.py    one subject: read, align, resample, write a file that training reads
    folds.py          which subjects each network does not learn from
    course.py         one network learns, monitored on the held-out subjects
    evaluation.py     overlap, distances and volumes of each held-out subject
    figures.py        pictures of the losses and of the volumes
    card.py           the model card of the new weights
    run.py            train: all of it; the same call goes on where it stopped
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
