"""The table of a study: one row per scan, checked before anything runs."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hypodask.core.errors import CohortError, StoreError
from hypodask.files.location import Location, absolute, join
from hypodask.scan.landmarks import Landmarks
from hypodask.study.bids import (
    find_scans,
    merge_covariates,
    read_dictionary,
    read_participants,
    read_sessions,
    strip_label,
)
from hypodask.study.ids import entities, id_danger, scan_id, scan_stem
from hypodask.study.landmark_columns import landmark_problems, landmarks_of, with_landmark_paths
from hypodask.study.problems import (
    COLUMNS,
    SHOWN_PROBLEMS,
    covariate_problems,
    id_problems,
    missing_files,
    path_problems,
    refuse,
    refuse_repeated_columns,
    repeated_ids,
    shared_files,
)
from hypodask.study.tables import as_text, read_table


@dataclass(frozen=True)
class Entry:
    """One scan of a cohort, for the worker that processes it."""

    scan: str
    """Unique id, ``sub-01[_ses-1][_run-1]``."""
    path: str
    """Absolute path or URL."""
    site: str = ""
    participant_id: str = ""
    session: str = ""
    """Without ``ses-``."""
    run: str = ""
    """Without ``run-``."""
    landmarks: Landmarks | str | None = None
    """Commissures placed by hand, or the file of them."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans of a study, and covariates of their participants.

    It is made by :meth:`from_bids`, :meth:`from_table` or :meth:`from_files`. Ids are unique and can name folders, and
    no covariate has the name of a result.

    Raises
    ------
    CohortError
        If the table cannot be used. The message names the first ten problems and the number of the others.

    Examples
    --------
    >>> cohort = Cohort(pd.DataFrame({"scan": ["sub-01"], "path": ["/study/a.nii"], "age": [61.5]}))
    >>> len(cohort), next(cohort.entries()).scan
    (1, 'sub-01')
    """

    table: pd.DataFrame
    """One row per scan: ``scan``, ``path``, ``participant_id``, ``session``, ``run``, ``site``, then every
    covariate as it was given. Commissures placed by hand are columns too: ``ac_x_mm`` to ``pc_z_mm`` with, if there
    is a third point of the midline, ``ih_x_mm`` to ``ih_z_mm``, all in scanner RAS+ mm; or ``landmarks``, the path
    of a file. A row without them is aligned automatically."""
    notes: tuple[str, ...] = ()
    """What the user should know although the study can run, such as participants without a scan."""
    dictionary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """Meaning of covariates as participants.json gives it: ``Description``, ``Levels``, ``Units`` by column."""

    def __post_init__(self) -> None:
        table = _with_columns(self.table.rename(columns=str))
        names = id_problems(table) + path_problems(table["path"])
        refuse(names + covariate_problems(table) + landmark_problems(table), "this cohort")
        object.__setattr__(self, "table", table)

    def __len__(self) -> int:
        return len(self.table)

    def entries(self) -> Iterator[Entry]:
        """One entry per scan, in the order of the table."""
        rows = self.table[list(COLUMNS)].itertuples(index=False)
        for (scan, path, participant, session, run, site), landmarks in zip(
            rows, landmarks_of(self.table), strict=True
        ):
            yield Entry(scan, path, site, participant, session, run, landmarks)

    @classmethod
    def from_bids(
        cls, root: str | os.PathLike[str], *, participant_labels: str | Iterable[str] | None = None
    ) -> "Cohort":
        """The T1w scans of a BIDS dataset, with participants.tsv and sessions.tsv.

        Every participant, session and run counts; ``derivatives/``, ``sourcedata/`` and other images do not.
        ``n/a`` becomes missing, a column of numbers becomes numeric unless participants.json gives it levels
        or its values have leading zeros; ids stay text.

        Parameters
        ----------
        root
            Folder or fsspec URL of the dataset.
        participant_labels
            Only these participants, each with or without ``sub-``.

        Raises
        ------
        CohortError
            If there is no T1w scan, a label is unknown, two files claim one id, a link leads nowhere, or an id
            is not safe.
        """
        folder = absolute(root)
        participants = read_participants(folder)
        scans, unknown = _only(find_scans(folder), participant_labels)
        problems = unknown + [problem for problem in scans.pop("problem") if problem]
        # Listed files exist, but for links that lead nowhere; a bucket has no links.
        local = [path for path in scans["path"] if Location(path).folder is not None]
        refuse(problems + repeated_ids(scans) + missing_files(local), folder)
        dictionary = read_dictionary(folder)
        coded = frozenset(name for name, entry in dictionary.items() if "Levels" in entry)
        table = with_landmark_paths(merge_covariates(scans, participants, read_sessions(folder), coded), folder)
        return cls(table, _notes(scans, participants, whole=participant_labels is None), dictionary)

    @classmethod
    def from_table(
        cls, table: str | os.PathLike[str] | pd.DataFrame, *, root: str | os.PathLike[str] | None = None
    ) -> "Cohort":
        """Scans listed in a table, one per row, with any covariates beside them.

        Parameters
        ----------
        table
            A CSV, TSV or Parquet file, or a DataFrame. Column ``path`` (or ``file``) is needed; of
            ``participant_id``, ``session`` and ``run``, those that are absent are read from the file's name.
        root
            Folder that relative paths start from: by default that of the table, or the working directory for
            a DataFrame.

        Raises
        ------
        CohortError
            If the column is absent, a file is missing, ids are repeated or unsafe, or a covariate has the name
            of a result.
        """
        given = table.copy() if isinstance(table, pd.DataFrame) else read_table(absolute(table))
        given = _with_paths(given.rename(columns=str).reset_index(drop=True))
        if root is not None:
            folder = absolute(root)
        else:
            folder = str(Path.cwd()) if isinstance(table, pd.DataFrame) else Location(table).parent.url
        paths = [join(folder, path) for path in as_text(given["path"])]
        # Checked before they become a column, since pandas cannot hold text that is not UTF-8.
        refuse(path_problems(paths), "this table")
        given["path"] = paths
        return _from_paths(with_landmark_paths(given, folder))

    @classmethod
    def from_files(cls, paths: Iterable[str | os.PathLike[str]]) -> "Cohort":
        """Scans from a list of files, their ids from BIDS names or else from the stem of the file.

        Examples
        --------
        >>> Cohort.from_files([])
        Traceback (most recent call last):
        hypodask.core.errors.CohortError: the list of files is empty; give at least one path
        """
        if isinstance(paths, (str, os.PathLike)):
            raise CohortError(f"one path was given, {os.fspath(paths)}; a list is needed: write [path]")
        found = [absolute(path) for path in paths]
        if not found:
            raise CohortError("the list of files is empty; give at least one path")
        refuse(path_problems(found), "this list")
        return _from_paths(pd.DataFrame({"path": found}))


def _with_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with COLUMNS first, as text, and a plain index."""
    refuse_repeated_columns(table)
    lacking = [name for name in ("scan", "path") if name not in table]
    if lacking or table.empty:
        raise CohortError(f"a cohort needs rows with columns scan and path; this has {len(table)} and {list(table)}")
    first = {name: as_text(table[name]) if name in table else [""] * len(table) for name in COLUMNS}
    rest = table.drop(columns=[name for name in COLUMNS if name in table]).reset_index(drop=True)
    return pd.concat([pd.DataFrame(first, dtype=object), rest], axis=1)


def _with_paths(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its column of paths called ``path``."""
    refuse_repeated_columns(table)
    found = [name for name in ("path", "file") if name in table]
    if len(found) != 1:
        raise CohortError(
            f"the table has columns {list(table)}; exactly one of path and file is needed, with the path of each scan"
        )
    if "scan" in table:
        raise CohortError("the table has a column scan, which hypodask makes itself; rename it to participant_id")
    return table.rename(columns={found[0]: "path"})


def _from_paths(table: pd.DataFrame) -> Cohort:
    """A cohort from a table with absolute paths, its absent ids read from the names."""
    unnamed = [f"row {row + 1}: no path; fill it in" for row, path in enumerate(table["path"]) if not path]
    refuse(unnamed, "this table")
    found = [entities(path) for path in table["path"]]
    stems = [f"sub-{keys['sub']}" if keys else scan_stem(path) for keys, path in zip(found, table["path"], strict=True)]
    own = "participant_id" in table
    ids = as_text(table["participant_id"]) if own else stems
    parts = {
        name: [strip_label(label, key) for label in as_text(table[name])]
        if name in table
        else [keys.get(key, "") for keys in found]
        for name, key in (("session", "ses"), ("run", "run"))
    }
    built = [scan_id(*row) for row in zip(ids, parts["session"], parts["run"], strict=True)]
    # Without columns for the ids the whole name is the id, so that acq- and other entities tell scans apart.
    whole = not own and "session" not in table and "run" not in table
    scans = [scan_stem(path) for path in table["path"]] if whole else built
    table = table.assign(participant_id=ids, **parts, scan=scans)
    refuse(repeated_ids(table) + shared_files(table) + missing_files(table["path"].unique()), "this table")
    return Cohort(table)


def _only(scans: pd.DataFrame, labels: str | Iterable[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """The scans of the participants asked for, and a problem for each that has none."""
    if labels is None:
        return scans, []
    wanted = [f"sub-{strip_label(label, 'sub')}" for label in ([labels] if isinstance(labels, str) else labels)]
    known = set(scans["participant_id"])
    unknown = [f"{name}: no T1w scan of this participant; correct the label" for name in wanted if name not in known]
    if not wanted:
        unknown = ["no participant label was given; leave participant_labels out to take all"]
    return scans[scans["participant_id"].isin(wanted)].reset_index(drop=True), unknown


def _notes(scans: pd.DataFrame, participants: pd.DataFrame, *, whole: bool) -> tuple[str, ...]:
    """Scans without a row in participants.tsv, and rows without a scan."""
    listed, scanned = set(participants["participant_id"]), set(scans["participant_id"])
    found = []
    if listed and scanned - listed:
        found.append(_note("participant{} with a scan not in participants.tsv, without covariates", scanned - listed))
    if whole and listed - scanned:
        found.append(_note("participant{} of participants.tsv without a T1w scan, not in the cohort", listed - scanned))
    return tuple(found)


def _note(text: str, names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN_PROBLEMS]) + (", ..." if len(names) > SHOWN_PROBLEMS else "")
    return f"{len(names)} {text.format('s' if len(names) > 1 else '')}: {shown}."


STORE_SUFFIX = ".nii.zarr"
"""Ending of the name of a scan's store, after the scan's identifier."""


def store_path(entry: Entry) -> str:
    """Where the store of a scan lies, relative to the output.

    >>> store_path(Entry(scan="sub-01", path="a.nii", site="Ulm", participant_id="sub-01", session="", run=""))
    'scans/Ulm/sub-01.nii.zarr'

    Raises
    ------
    StoreError
        If the identifier cannot be the name of a file.
    """
    if danger := id_danger(entry.scan):
        raise StoreError(f"scan {entry.scan!r} cannot name its store: {danger}; rename it")
    site = re.sub(r"[^\w+-]+", "-", entry.site).strip("-")
    return "/".join(part for part in ("scans", site, f"{entry.scan}{STORE_SUFFIX}") if part)


def stores_in(url: str) -> Iterator[str]:
    """The stores that an output holds, finished or not, by their paths in it."""
    scans = Location(url).child("scans")
    for name in scans.names():
        inside = [name] if name.endswith(".zarr") else [f"{name}/{store}" for store in scans.child(name).names()]
        yield from (f"scans/{store}" for store in inside)
