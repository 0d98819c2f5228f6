"""The results of a study as one dataset, made of the cohort's table and the journal.

An output folder holds::

    cohort.parquet              the table of scans as the run was given it; its digest is in cohort.parquet.sha256
    journal/                    rows of the scans, see :mod:`hypodask.storage.journal`
    results-<time>.zarr         the dataset; which one is in force, see :mod:`hypodask.storage.manifest`
    volumes.tsv, volumes.json   one row per scan, and the meaning of each column
    volumes.parquet             tidy: one row per scan and structure
    scans/                      a store per scan, see :mod:`hypodask.storage.store`

Every reader takes a file whole, compares it with its digest, and decodes the bytes that it compared.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy import ndarray
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from hypodask.core.errors import CohortError, ResultsError, StoreError
from hypodask.core.structures import SHIPPED, in_order
from hypodask.core.variables import RESULTS, VARIABLES, Variable
from hypodask.files.digests import read_sealed, write_sealed
from hypodask.files.encoding import to_json
from hypodask.files.location import Location
from hypodask.storage.journal import flat_table, journal_problems, latest, parsed_parquet, read_journal, to_parquet
from hypodask.storage.manifest import AGAIN, TABLES, read_results, table_problems, write_results
from hypodask.study.verification import loose_problems, store_problems

_LONG_TEXT = ("reason", "warnings", "sha256", "store", "path", "landmarks")
"""Columns that the tidy table lacks, since it would repeat them for every structure."""


def assemble(cohort_table: pd.DataFrame, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> xr.Dataset:
    """One dataset of a cohort and the rows of its scans: N scans in, N scans out.

    Parameters
    ----------
    cohort_table
        One row per scan; ``scan`` is unique. The other columns become coordinates on ``scan``.
    rows
        ``Row.as_dict()`` of the scans, the latest of one scan last, or :func:`read_journal`'s table.

    Returns
    -------
    xr.Dataset
        Dims ``scan`` (in the cohort's order) and ``structure``; variables of
        :data:`hypodask.core.variables.RESULTS`. A scan without a row has the status ``skipped``.

    Raises
    ------
    CohortError
        If a column has the name of a result.

    Examples
    --------
    >>> cohort = pd.DataFrame({"scan": ["sub-01", "sub-02"], "group": ["control", "PLS"]})
    >>> results = assemble(cohort, [{"scan": "sub-02", "status": "done", "volume_mm3": {"icv": 1.5e6}}])
    >>> results.status.values.tolist()
    ['skipped', 'done']
    >>> results.volume_mm3.sel(scan="sub-02", structure="icv").item()
    1500000.0
    """
    check_columns(cohort_table)
    flat = rows if isinstance(rows, pd.DataFrame) else latest(flat_table(rows))
    flat = flat.reindex(cohort_table["scan"].to_numpy())
    measured = {name.partition(".")[2] for name in flat.columns if "." in name}
    structures = in_order({*measured, *SHIPPED})
    data = {variable.name: _values(flat, variable, structures) for variable in RESULTS}
    data["status"] = np.where(data["status"] == "", "skipped", data["status"])
    coordinates = {name: ("scan", _typed(cohort_table[name])) for name in cohort_table.columns}
    return xr.Dataset(
        {name: (VARIABLES[name].dims, values, _attributes(VARIABLES[name])) for name, values in data.items()},
        {**coordinates, "structure": np.array(structures)},
        {"description": "Hypothalamic and intracranial volumes by hypodask, research software."},
    )


def check_columns(cohort_table: pd.DataFrame) -> None:
    """Refuse columns of a cohort that a results dataset cannot have.

    Raises
    ------
    CohortError
        Naming the columns.
    """
    taken = {*VARIABLES, "structure"}
    clashing = [str(name) for name in cohort_table.columns if name in taken or "/" in str(name)]
    if clashing:
        raise CohortError(
            f"the columns {', '.join(clashing)} have the name of a result or a '/' in it; "
            "rename them in the table of participants"
        )


def save_cohort(url: str, cohort_table: pd.DataFrame) -> None:
    """Write the table of scans into the output, unless it is there already."""
    typed = pd.DataFrame({name: _typed(cohort_table[name]) for name in cohort_table.columns})
    place, content = Location(url).child("cohort.parquet"), to_parquet(typed)
    with suppress(FileNotFoundError, StoreError):
        if read_sealed(place, AGAIN) == content:
            return
    write_sealed(place, content)


def read_cohort(url: str) -> pd.DataFrame:
    """The table of scans of an output, as the last run was given it.

    Raises
    ------
    ResultsError
        If no run was started there.
    StoreError
        If the table is missing beside its digest, or not as it was written.
    """
    place = Location(url).child("cohort.parquet")
    try:
        return parsed_parquet(read_sealed(place, AGAIN), place.url, AGAIN)
    except FileNotFoundError:
        raise ResultsError(
            f"no run was started in {url}: it has no cohort.parquet; process a cohort into it first"
        ) from None


def finalise(url: str, dataset: xr.Dataset, *, check: Callable[[], None] = lambda: None) -> None:
    """Write the results of a study and make them the ones in force.

    A reader sees the old results or the new ones, never a mixture. The results that were in force until then stay for
    readers who are in the middle of them; older ones are removed.

    Parameters
    ----------
    check
        Called right before the tables are written and before the new results come into force; it raises where this
        process may not write any more.
    """
    write_results(Location(url), _zarr_files(dataset), _tables(dataset), check=check)


def _zarr_files(dataset: xr.Dataset) -> dict[str, bytes]:
    """The files of a Zarr store, made in memory.

    So each file gets its digest before it is written, and an object store gets one request a file; Zarr itself makes
    400 requests for the results of two scans.
    """
    files: dict[str, Buffer] = {}
    with warnings.catch_warnings():
        # The specification of Zarr v3 has no consolidated metadata yet; without it each array is asked for its own.
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        # Zarr v3 specifies text of any length, but not the fixed width of numpy's text.
        _text_as(dataset, object).to_zarr(MemoryStore(files), mode="w", consolidated=True, zarr_format=3)
    return {name: file.to_bytes() for name, file in files.items()}


def open_results(url: str) -> xr.Dataset:
    """The results of a study, in memory.

    Every file is compared with its digest. Where newer results come while they are read, the newer ones are read.

    Parameters
    ----------
    url
        Output folder or URL that the cohort was processed into.

    Raises
    ------
    ResultsError
        If there are none, a file of them is missing or not as it was written, or they are of version 0.1.0, which kept
        no digests.
    """
    files = read_results(Location(url))
    store = MemoryStore({file: cpu.Buffer.from_bytes(content) for file, content in files.items()}, read_only=True)
    try:
        # Only format 3 of Zarr is accepted: format 2 has codecs that are pickles, which can run code.
        stored = xr.open_zarr(store, chunks=None, consolidated=True, zarr_format=3).load()
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as err:
        raise ResultsError(f"the results in {url} cannot be decoded ({err!r}); {AGAIN}") from err
    return _text_as(stored, np.str_)


def _tables(dataset: xr.Dataset) -> dict[str, bytes]:
    """``volumes.tsv`` with its data dictionary ``volumes.json``, and the tidy ``volumes.parquet``."""
    wide = wide_table(dataset)
    lines = wide.replace(r"\s+", " ", regex=True)
    text = lines.mask(lines == "").to_csv(sep="\t", index=False, na_rep="n/a")
    meanings = {name: _column_meaning(dataset, name) for name in wide.columns}
    return dict(zip(TABLES, (text.encode(), to_json(meanings), to_parquet(tidy_table(dataset))), strict=True))


def wide_table(dataset: xr.Dataset) -> pd.DataFrame:
    """One row per scan; the volume of a structure is a column such as ``hypothalamus_volume_mm3``."""
    columns = {str(name): dataset[name].to_numpy() for name in ["scan", *_covariates(dataset)]}
    single = {str(name): dataset[name].to_numpy() for name in dataset.data_vars if dataset[name].dims == ("scan",)}
    volumes = {column: dataset[name].sel(structure=structure).to_numpy() for column, name, structure in _wide(dataset)}
    return pd.DataFrame({**columns, "status": single.pop("status"), **volumes, **single})


def tidy_table(dataset: xr.Dataset) -> pd.DataFrame:
    """One row per scan and structure, without the long texts."""
    short = dataset.drop_vars([name for name in _LONG_TEXT if name in dataset.variables])
    table = short.to_dataframe(dim_order=["scan", "structure"]).reset_index()
    volumes = [str(name) for name in short.data_vars if "structure" in short[name].dims]
    first = ["scan", "structure", *_covariates(short), "status", *volumes]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def verify(url: str, *, digests: bool = True) -> list[str]:
    """Check that every scan has a row, that every file is as it was written, and that all of them agree.

    Every file is compared with its digest, the results with the journal, and the journal with the stores. Stores that
    no row names are problems too, and so are foreign files in the journal.

    Parameters
    ----------
    url
        Output folder or URL of a run.
    digests
        Read every byte of every store; without it sizes are compared.

    Returns
    -------
    list of str
        Problems as ``scan: what is wrong and what to do`` or ``file: ...``; empty when all is well. A failed scan has a
        row, and is no problem here.

    Raises
    ------
    ResultsError
        If no run was started there.
    """
    place, problems = Location(url), journal_problems(url)
    cohort = journal = None
    try:
        cohort = read_cohort(url)
    except StoreError as err:
        problems.append(f"cohort.parquet: {err}")
    with suppress(StoreError):  # journal_problems named it
        journal = read_journal(url)
    if cohort is not None and journal is not None:
        waiting = [scan for scan in cohort["scan"] if scan not in journal.index]
        problems = [*(f"{scan}: was not run; process the cohort again" for scan in waiting), *problems]
    if journal is not None:
        problems += store_problems(place, journal, digests=digests)
    return problems + _results_problems(url, cohort, journal) + loose_problems(place)


def _results_problems(url: str, cohort: pd.DataFrame | None, journal: pd.DataFrame | None) -> list[str]:
    """Whether results and tables are as they were written, and are those of the cohort and the journal."""
    try:
        results = open_results(url)
        problems = table_problems(Location(url))
    except (ResultsError, StoreError, KeyError) as err:
        return [str(err)]
    if cohort is not None and results["scan"].to_numpy().tolist() != cohort["scan"].tolist():
        problems.append(f"the results in {url} are not those of its cohort; process the cohort again")
    elif cohort is not None and journal is not None and not results.identical(expected := assemble(cohort, journal)):
        differing = [
            str(name)
            for name in expected.variables
            if name not in results or not expected[name].identical(results[name])
        ]
        problems.append(
            f"the results in {url} are not what its journal says ({', '.join(differing[:3]) or 'their structures'}); "
            "process the cohort again"
        )
    return problems


def _values(flat: pd.DataFrame, variable: Variable, structures: list[str]) -> ndarray:
    if "structure" in variable.dims:
        columns = [f"{variable.name}.{structure}" for structure in structures]
        return flat.reindex(columns=columns).to_numpy(dtype=np.float64, na_value=np.nan)
    if variable.name not in flat:
        flat = flat.assign(**{variable.name: np.nan})
    column = flat[variable.name]
    if variable.dtype == "bool":
        return column.isin([True]).to_numpy()
    return _text(column) if variable.dtype == "str" else column.to_numpy(dtype=np.float64, na_value=np.nan)


def _typed(column: "pd.Series[Any]") -> ndarray:
    """A covariate as an array of one type, no objects: missing text is ``""``, a missing number NaN."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column.dt.tz_localize(None).to_numpy() if column.dt.tz is not None else column.to_numpy()
    if pd.api.types.is_bool_dtype(column.dtype) and not column.isna().any():
        return column.to_numpy(dtype=bool)
    if pd.api.types.is_integer_dtype(column.dtype) and not column.isna().any():
        return column.to_numpy(dtype=np.int64)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return _text(column)


def _text(column: "pd.Series[Any]") -> ndarray:
    return np.array(
        ["" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)], np.str_
    )


def _attributes(variable: Variable) -> dict[str, str]:
    return {"description": variable.description, **({"units": variable.units} if variable.units else {})}


def _text_as(dataset: xr.Dataset, dtype: type) -> xr.Dataset:
    text = {name: array for name, array in dataset.variables.items() if array.dtype.kind in "UTO"}
    # Through a list, since numpy does not cast one kind of text into another without a width.
    return dataset.assign(
        {name: (array.dims, np.array(array.to_numpy().tolist(), dtype), array.attrs) for name, array in text.items()}
    )


def _covariates(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset.coords if name not in ("scan", "structure")]


def _wide(dataset: xr.Dataset) -> Iterator[tuple[str, str, str]]:
    """Column, variable and structure of everything that is measured per structure."""
    for name in dataset.data_vars:
        if "structure" in dataset[name].dims:
            yield from ((f"{structure}_{name}", str(name), structure) for structure in dataset["structure"].to_numpy())


def _column_meaning(dataset: xr.Dataset, column: str) -> dict[str, str]:
    per_structure = {name: (variable, structure) for name, variable, structure in _wide(dataset)}
    if column in per_structure:
        variable, structure = per_structure[column]
        return {"Description": f"{structure}: {VARIABLES[variable].description}", "Units": VARIABLES[variable].units}
    if column in VARIABLES:
        units = VARIABLES[column].units
        return {"Description": VARIABLES[column].description, **({"Units": units} if units else {})}
    return {"Description": "Identifier of the scan." if column == "scan" else "As given in the table of participants."}
