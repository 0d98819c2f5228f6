"""Cohort: the table of scans and participants that a study is made of.

::

    cohort.py    Cohort and Entry; every cohort that exists has passed the checks
    problems.py  what is wrong with a table, told all at once
    landmarks.py commissures by hand, from columns of the table
    bids.py      the T1w scans of a BIDS folder, with participants.tsv and sessions.tsv
    tables.py    reading CSV, TSV and Parquet with types told from the values
    ids.py       ids from file names, and which ids are safe to make folders of
"""

from hypodask.cohort.cohort import Cohort, Entry

__all__ = ["Cohort", "Entry"]
