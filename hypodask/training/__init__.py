"""Training on outlines of one's own: from scans and label maps to weights that run at once.

::

    config.py        what a run is asked for: TOML -> frozen dataclasses, and back
    protocol.py      the label table of an outline: BIDS dseg.tsv -> LabelTable
    pairs.py         which outline belongs to which scan: BIDS derivative or table
    outlines.py      a label map -> soft labels on the training grid, or the reason why not
    start.py         shape of the networks, the box they see, and their first weights
    preparation.py   one subject: read, align, resample; a file that training reads
    folds.py         which subjects a network does not see
    course.py        one network learns, watched on the subjects it does not see
    evaluation.py    overlap, distances and volumes of each subject left out
    figures.py       how it went, as pictures
    card.py          what is known of the new weights
    recipe.py        how a shipped network is made, asked for by the same command
    run.py           train: all of it, gone on from where it stopped
"""

from hypodask.training.config import Architecture, Data, Folds, TrainingConfig, read_config
from hypodask.training.run import Trained, train

__all__ = ["Architecture", "Data", "Folds", "Trained", "TrainingConfig", "read_config", "train"]
