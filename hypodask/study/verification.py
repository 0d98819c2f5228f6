"""What is wrong with the files of an output: stores, logs, records of runs, and results that newer ones replaced.

:func:`hypodask.study.results.verify` puts these problems together with those of the journal and of the results.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from hypodask.core.errors import StoreError
from hypodask.core.row import Row
from hypodask.files.digests import SEAL, read_sealed
from hypodask.files.location import TEMPORARY, Location
from hypodask.storage.journal import flat_table
from hypodask.storage.manifest import old_results_problems, results_without_manifest
from hypodask.storage.store import read_done, verify_store
from hypodask.study.cohort import stores_in

_LEGACY_RECORD = re.compile(r"runs/\d{8}T\d{6}\.\d{6}Z\.json")
"""Records of runs of version 0.1.0, which have no digests."""

_OF_THE_RUN = ("attempts", "peak_memory_mib")
"""Fields that the worker adds to a row after it finished the store."""

_READERS = 16
"""Stores checked at a time; not tuned."""


def store_problems(place: Location, journal: pd.DataFrame, *, digests: bool) -> list[str]:
    """Stores that are not as they were written, stores that differ from their rows, and stores without a row.

    Parameters
    ----------
    journal
        Latest row of each scan.
    digests
        Read every byte of every store; without it sizes are compared.
    """
    kept = journal[(journal["status"] == "done") & (journal["store"] != "")] if len(journal) else journal
    rows = {str(scan): row for scan, row in kept.iterrows()}

    def found(scan: str) -> list[str]:
        store = place.child(str(rows[scan]["store"]))
        return verify_store(store, digests=digests) or _row_problems(store, rows[scan])

    with ThreadPoolExecutor(_READERS) as pool:
        per_scan = list(pool.map(found, rows))
    problems = [f"{scan}: {one}" for scan, several in zip(rows, per_scan, strict=True) for one in several]
    known = set(journal["store"]) if len(journal) else set()
    strays = [store for store in stores_in(place.url) if store not in known]
    return problems + [f"{store}: a store without a row; delete it or process its scan again" for store in strays]


def _row_problems(store: Location, row: "pd.Series[Any]") -> list[str]:
    """Fields in which a row of the journal differs from the row in the done-mark of its store."""
    done = read_done(store) or {}
    if not isinstance(done.get("row"), dict):
        return []
    there = flat_table([Row.from_dict(done["row"]).as_dict()]).iloc[0]
    row = pd.concat([pd.Series({"scan": row.name}), row])
    differing = [name for name in there.index if name not in _OF_THE_RUN and not _same(there[name], row.get(name))]
    if not differing:
        return []
    what = f"its row in the journal is not that of its store ({', '.join(differing[:3])})"
    return [f"{what}; delete the store and run the scan again"]


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a table are equal; not-a-number, empty text and None all mean that a value is missing."""
    missing = [value is None or value == "" or (isinstance(value, float) and np.isnan(value)) for value in (one, other)]
    return all(missing) or (not any(missing) and bool(one == other))


def loose_problems(place: Location) -> list[str]:
    """Old results, logs, records of runs and a report that are not as they were written."""
    problems = old_results_problems(place)
    for name in results_without_manifest(place):
        problems.append(f"{name}: results without a list of digests; delete them, they are not in force")
    # A file with a digest beside it, or such a digest without its file, is read once, under the name of the file.
    sealed = {name.removesuffix(SEAL) for name in place.names()} & {"report.html"}
    for folder in ("logs", "runs"):
        sealed |= {f"{folder}/{name.removesuffix(SEAL)}" for name in place.child(folder).names()}
    for name in sorted(sealed):
        if TEMPORARY.fullmatch(name.rpartition("/")[2]) or _LEGACY_RECORD.fullmatch(name):
            continue
        try:
            read_sealed(place.child(name), "delete it; it holds no result")
        except StoreError as err:
            problems.append(f"{name}: {err}")
        except FileNotFoundError:
            continue
    return problems
