"""The results of a study as one dataset: the journal and the cohort's table, put together.

In an output folder they are kept as::

    cohort.parquet              the table of scans as the run was given it
    journal/                    what each scan became, see :mod:`hypodask.journal`
    results.json                names the results in force
    results-<time>.zarr         the dataset, written once and never changed
    volumes.tsv, volumes.json   one row per scan, and what each column means
    volumes.parquet             tidy: one row per scan and structure
    scans/                      a store per scan, see :mod:`hypodask.store`
"""

import json
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy import ndarray
from zarr.abc.buffer import Buffer
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from hypodask.errors import CohortError, ResultsError
from hypodask.journal import flat_table, latest, read_journal, read_parquet, to_parquet
from hypodask.labels import STRUCTURES
from hypodask.location import Location
from hypodask.store import verify_store
from hypodask.variables import RESULTS, VARIABLES, Variable

ALWAYS = ("hypothalamus", "icv")
"""Structures of every results dataset, measured or not."""

LONG_TEXT = ("reason", "warnings", "sha256", "store", "path", "landmarks")
"""Left out of the tidy table, which would repeat them for every structure."""

RESULTS_NAME = re.compile(r"results-[\w-]+\.zarr")
"""Names of results within an output."""

READERS = 16
"""Stores checked at a time; not tuned."""


def assemble(cohort_table: pd.DataFrame, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> xr.Dataset:
    """One dataset of a cohort and what its scans became: N scans in, N rows out.

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
        :data:`hypodask.variables.RESULTS`. A scan without a row has the status ``skipped``.

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
    structures = _structures(flat.columns)
    data = {variable.name: _values(flat, variable, structures) for variable in RESULTS}
    data["status"] = np.where(data["status"] == "", "skipped", data["status"])
    coordinates = {name: ("scan", _typed(cohort_table[name])) for name in cohort_table.columns}
    return xr.Dataset(
        {name: (VARIABLES[name].dims, values, _attributes(VARIABLES[name])) for name, values in data.items()},
        {**coordinates, "structure": np.array(structures)},
        {"description": "Hypothalamic and intracranial volumes by hypodask, research software."},
    )


def check_columns(cohort_table: pd.DataFrame) -> None:
    """Refuse columns of a cohort that a dataset could not hold beside the results.

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
    """Keep the table of scans in the output."""
    typed = pd.DataFrame({name: _typed(cohort_table[name]) for name in cohort_table.columns})
    Location(url).child("cohort.parquet").write(to_parquet(typed))


def read_cohort(url: str) -> pd.DataFrame:
    """The table of scans that an output was made from.

    Raises
    ------
    ResultsError
        If no run was started there.
    """
    place = Location(url).child("cohort.parquet")
    if not place.exists():
        raise ResultsError(f"no run was started in {url}: it has no cohort.parquet; process a cohort into it first")
    return read_parquet(place)


def finalise(url: str, dataset: xr.Dataset) -> None:
    """Write the results of a study and make them the ones in force; older ones are removed.

    The dataset goes under a new name, in bulk, and a pointer is swapped: a reader sees the old results
    or the new ones, never a mixture.
    """
    place = Location(url)
    name = f"results-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.zarr"
    _write_zarr(place.child(name), dataset)
    write_tables(url, dataset)
    place.child("results.json").write(_json({"results": name}))
    for older in place.names():
        if RESULTS_NAME.fullmatch(older) and older != name:
            place.child(older).delete()


def _write_zarr(place: Location, dataset: xr.Dataset) -> None:
    # Zarr asks an object store 400 times for the results of two scans, and waits each time: so it writes to memory,
    # and the finished files go there at once.
    files: dict[str, Buffer] = {}
    store = MemoryStore(files) if place.folder is None else place.zarr_store()
    with warnings.catch_warnings():
        # Zarr v3 has yet to adopt consolidated metadata; without it opening reads every array's own.
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        _writable(dataset).to_zarr(store, mode="w", consolidated=True, zarr_format=3)
    place.write_objects({name: file.to_bytes() for name, file in files.items()})


def open_results(url: str) -> xr.Dataset:
    """The results of a study, in memory.

    Parameters
    ----------
    url
        Output folder or URL that the cohort was processed into.

    Raises
    ------
    ResultsError
        If there are none.
    """
    place = Location(url)
    try:
        name = json.loads(place.child("results.json").read())["results"]
    except FileNotFoundError:
        raise ResultsError(f"there are no results in {url}: process a cohort into it, to the end, first") from None
    except (ValueError, KeyError) as err:
        raise ResultsError(f"{url}/results.json is damaged; process the cohort again to remake it") from err
    if not RESULTS_NAME.fullmatch(str(name)):
        raise ResultsError(
            f"{url}/results.json names {name!r}, no results of ours; process the cohort again to remake it"
        )
    try:
        # Of the older format of Zarr we write nothing, and it knows codecs that are pickles, which can run code.
        place = place.child(name)
        stored = xr.open_zarr(place.zarr_store(read_only=True), chunks=None, consolidated=True, zarr_format=3).load()
    except (FileNotFoundError, ValueError, KeyError) as err:
        raise ResultsError(f"{url}/{name} is missing or damaged; process the cohort again to remake it") from err
    return _text_as(stored, np.str_)


def write_tables(url: str, dataset: xr.Dataset) -> None:
    """Write ``volumes.tsv`` with its data dictionary ``volumes.json``, and the tidy ``volumes.parquet``."""
    place, wide = Location(url), wide_table(dataset)
    text = wide.replace(r"\s+", " ", regex=True).replace("", np.nan).to_csv(sep="\t", index=False, na_rep="n/a")
    place.child("volumes.tsv").write(text.encode())
    place.child("volumes.json").write(_json({name: _column_meaning(dataset, name) for name in wide.columns}))
    place.child("volumes.parquet").write(to_parquet(tidy_table(dataset)))


def wide_table(dataset: xr.Dataset) -> pd.DataFrame:
    """One row per scan; the volume of a structure is a column such as ``hypothalamus_volume_mm3``."""
    columns = {str(name): dataset[name].to_numpy() for name in ["scan", *_covariates(dataset)]}
    single = {str(name): dataset[name].to_numpy() for name in dataset.data_vars if dataset[name].dims == ("scan",)}
    volumes = {column: dataset[name].sel(structure=structure).to_numpy() for column, name, structure in _wide(dataset)}
    return pd.DataFrame({**columns, "status": single.pop("status"), **volumes, **single})


def tidy_table(dataset: xr.Dataset) -> pd.DataFrame:
    """One row per scan and structure, without the long texts."""
    short = dataset.drop_vars([name for name in LONG_TEXT if name in dataset.variables])
    table = short.to_dataframe(dim_order=["scan", "structure"]).reset_index()
    volumes = [str(name) for name in short.data_vars if "structure" in short[name].dims]
    first = ["scan", "structure", *_covariates(short), "status", *volumes]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def verify(url: str, *, digests: bool = True) -> list[str]:
    """Check an output: every scan of the cohort accounted for, every store as it was written.

    Parameters
    ----------
    digests
        Read every byte of every store; without it sizes are compared.

    Returns
    -------
    list of str
        Problems as ``scan: what is wrong and what to do``; empty when all is sound. A failed scan is
        accounted for and no problem here.

    Raises
    ------
    ResultsError
        If no run was started there.
    """
    scans = read_cohort(url)["scan"]
    journal = read_journal(url)
    place = Location(url)
    problems = [f"{scan}: was not run; process the cohort again" for scan in scans if scan not in journal.index]
    kept = journal[(journal["status"] == "done") & (journal["store"] != "")] if len(journal) else journal
    with ThreadPoolExecutor(READERS) as pool:
        stores = [place.child(store).url for store in kept.get("store", [])]
        found = pool.map(lambda store: verify_store(store, digests=digests), stores)
    problems += [
        f"{scan}: {problem}" for scan, per_store in zip(kept.index, found, strict=True) for problem in per_store
    ]
    problems += [
        f"{name}: a store without a row; delete it or process its scan again" for name in _strays(url, journal)
    ]
    return problems + _results_problems(url, list(scans))


def stores_in(url: str) -> Iterator[str]:
    """The stores that an output holds, finished or not, by their paths in it."""
    scans = Location(url).child("scans")
    for name in scans.names():
        inside = [name] if name.endswith(".zarr") else [f"{name}/{store}" for store in scans.child(name).names()]
        yield from (f"scans/{store}" for store in inside)


def _strays(url: str, journal: pd.DataFrame) -> Iterator[str]:
    known = set(journal["store"]) if len(journal) else set()
    return (store for store in stores_in(url) if store not in known)


def _results_problems(url: str, scans: list[str]) -> list[str]:
    try:
        results = open_results(url)
    except ResultsError as err:
        return [str(err)]
    if results["scan"].to_numpy().tolist() != scans:
        return [f"the results in {url} are not those of its cohort; process the cohort again"]
    return []


def _structures(columns: Iterable[str]) -> list[str]:
    measured = {name.partition(".")[2] for name in columns if "." in name}
    return [name for name in STRUCTURES if name in measured or name in ALWAYS] + sorted(measured - set(STRUCTURES))


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


def _writable(dataset: xr.Dataset) -> xr.Dataset:
    # Zarr v3 has a specified type for text of any length, but none for numpy's fixed width.
    return _text_as(dataset, object)


def _text_as(dataset: xr.Dataset, dtype: type) -> xr.Dataset:
    text = {name: array for name, array in dataset.variables.items() if array.dtype.kind in "UTO"}
    # By way of a list, for numpy casts none of its kinds of text into another without being told a width.
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


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
