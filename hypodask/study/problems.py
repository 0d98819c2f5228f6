"""What is wrong with a table: found before anything runs, and reported in one message."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from hypodask.core.errors import CohortError
from hypodask.core.variables import VARIABLES
from hypodask.files.location import Location
from hypodask.study.ids import id_danger, repeated

COLUMNS = ("scan", "path", "participant_id", "session", "run", "site")
"""First columns of every cohort: text, empty where missing."""
SHOWN_PROBLEMS = 10
_REMOTE_CHECKS = 32
_TAKEN = frozenset({*VARIABLES, "scan", "structure"})


def id_problems(table: pd.DataFrame) -> list[str]:
    """Ids of scans and names of sites that are repeated or unsafe as names of folders."""
    scans = repeated_ids(table)
    dangers = [f"scan id {name!r}: {why}; rename it" for name in table["scan"] if (why := id_danger(name))]
    sites = [f"site {name!r}: {why}; rename it" for name in table["site"].unique() if name and (why := id_danger(name))]
    alike = [
        f"sites {sorted(group)} differ only in case; write them alike" for group in repeated(table["site"].unique())
    ]
    return scans + dangers + sites + alike


def path_problems(paths: Iterable[str]) -> list[str]:
    """Paths that no table of text can hold, since the bytes of their names are not UTF-8."""
    odd = [path for path in paths if any("\ud800" <= character <= "\udfff" for character in path)]
    return [f"path {path!r}: its name is not UTF-8 text; rename the file or folder" for path in odd]


def covariate_problems(table: pd.DataFrame) -> list[str]:
    """Covariates with the name of a result or a name that no array can have, and names that differ only in case."""
    covariates = [name for name in table.columns if name not in COLUMNS]
    taken = [
        f"column {name!r}: it is the name of a result; rename it" for name in covariates if name.casefold() in _TAKEN
    ]
    # A covariate becomes an array of the results store.
    unsafe = [name for name in covariates if not name.strip() or "/" in name or name.startswith((".", "__"))]
    taken += [f"column {name!r}: no array can have this name; rename it" for name in unsafe]
    return taken + [
        f"columns {group}: they differ only in case or not at all; rename one" for group in repeated(covariates)
    ]


def repeated_ids(table: pd.DataFrame) -> list[str]:
    """Ids that several rows have, with their files."""
    paths: dict[str, list[str]] = {}
    for scan, path in zip(table["scan"], table["path"], strict=True):
        paths.setdefault(scan, []).append(path)
    return [
        f"scan id {' and '.join(sorted(set(group)))} belongs to {len(group)} files, "
        f"{', '.join(path for name in dict.fromkeys(group) for path in paths[name])}; keep one, or tell them apart "
        "by participant_id, session and run"
        for group in repeated(table["scan"])
    ]


def shared_files(table: pd.DataFrame) -> list[str]:
    """A problem for each file that is given as several scans."""
    shared = table[table["path"].duplicated(keep=False) & ~table["scan"].duplicated(keep=False)]
    return [
        f"{path}: it is listed as {' and '.join(group['scan'])}; correct the path of all but one"
        for path, group in shared.groupby("path")
    ]


def missing_files(paths: Iterable[str]) -> list[str]:
    """A problem for each path with nothing there.

    A path that cannot be looked at is no problem here: the worker makes a failed row of it.
    """
    paths = list(paths)
    with ThreadPoolExecutor(_REMOTE_CHECKS) as pool:
        there = list(pool.map(_may_exist, paths))
    return [
        f"{path}: there is no such file; correct the path, or fetch it (datalad get)"
        for path, exists in zip(paths, there, strict=True)
        if not exists
    ]


def _may_exist(path: str) -> bool:
    try:
        return "\0" in path or Location(path).exists()
    except Exception:
        # No credentials, protocol or network: one scan that cannot be read must not stop the study.
        return True


def refuse(problems: list[str], where: str) -> None:
    """Raise one error for all problems."""
    if not problems:
        return
    shown = "".join(f"\n- {problem}" for problem in problems[:SHOWN_PROBLEMS])
    more = f"\n- and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise CohortError(f"{count} in {where}, nothing was run:{shown}{more}")


def refuse_repeated_columns(table: pd.DataFrame) -> None:
    """Raise if two columns have one name."""
    repeats = sorted(set(table.columns[table.columns.duplicated()]))
    if repeats:
        raise CohortError(f"the table has columns {repeats} more than once; rename or drop all but one")
