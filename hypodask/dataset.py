"""The results of a study as one dataset: the journal and the cohort's table, put together.

In an output folder they are kept as::

    cohort.parquet              the table of scans as the run was given it; its digest is in cohort.parquet.sha256
    journal/                    what each scan became, see :mod:`hypodask.journal`
    results.json                names the results in force, and the digest of their manifest
    results-<time>.zarr         the dataset, written once and never changed
    results-<time>.json         its manifest: a digest of every file in it, and of the tables
    volumes.tsv, volumes.json   one row per scan, and what each column means
    volumes.parquet             tidy: one row per scan and structure
    scans/                      a store per scan, see :mod:`hypodask.store`

Every reader takes the files whole, compares them with their digests and decodes what it compared. Of the results that
newer ones replaced, the last stay for readers who are in the middle of them; their manifest is then called
``results-<time>.old.json``, so that a pointer to them is known to be an old one.
"""

import re
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy import ndarray
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from hypodask.digests import SEAL, decoded, encoded, read_sealed, sha256_of, write_sealed
from hypodask.errors import CohortError, ResultsError, StoreError
from hypodask.journal import flat_table, journal_problems, latest, parsed_parquet, read_journal, to_parquet
from hypodask.labels import STRUCTURES
from hypodask.location import TEMPORARY, Location
from hypodask.row import Row
from hypodask.store import read_done, verify_store
from hypodask.variables import RESULTS, VARIABLES, Variable

ALWAYS = ("hypothalamus", "icv")
"""Structures of every results dataset, measured or not."""

LONG_TEXT = ("reason", "warnings", "sha256", "store", "path", "landmarks")
"""Left out of the tidy table, which would repeat them for every structure."""

RESULTS_NAME = re.compile(r"results-\d{8}T\d{6}-[0-9a-f]{6}\.zarr")
"""Names of results within an output."""

LEGACY_RECORD = re.compile(r"runs/\d{8}T\d{6}\.\d{6}Z\.json")
"""Records of calls of version 0.1.0, which have no digests."""

OLD_RESULTS = re.compile(r"(results-\d{8}T\d{6}-[0-9a-f]{6})\.old\.json")

TABLES = ("volumes.tsv", "volumes.json", "volumes.parquet")

AGAIN = "process the cohort again to remake it"

OF_THE_RUN = ("attempts", "peak_memory_mib")
"""Fields of a row that its worker adds after the store was finished."""

LOOKS = 20
"""How often results are read anew because newer ones came meanwhile; then the older ones are taken, which are whole."""

READERS = 16
"""Files read and stores checked at a time; not tuned."""


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
    place, content = Location(url).child("cohort.parquet"), to_parquet(typed)
    with suppress(FileNotFoundError, StoreError):
        if read_sealed(place, AGAIN) == content:
            return
    write_sealed(place, content)


def read_cohort(url: str) -> pd.DataFrame:
    """The table of scans that an output was made from.

    Raises
    ------
    ResultsError
        If no run was started there.
    StoreError
        If the table is not as it was written.
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

    The dataset goes under a new name, with a manifest of its digests, and a pointer is swapped: a reader sees the old
    results or the new ones, never a mixture. The results that were in force until then stay, for readers who are in the
    middle of them; those before are removed.

    Parameters
    ----------
    check
        Called right before the tables are written and before the pointer is swapped, to make sure that this process may
        still do so.
    """
    place = Location(url)
    stem = f"results-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    files, tables = _zarr_files(dataset), _tables(dataset)
    manifest = encoded(
        {
            "files": {name: sha256_of(content) for name, content in files.items()},
            "tables": {name: sha256_of(content) for name, content in tables.items()},
        }
    )
    place.child(f"{stem}.zarr").write_objects(files)
    place.child(f"{stem}.json").write(manifest)
    check()
    for name, content in tables.items():
        place.child(name).write(content)
    check()
    place.child("results.json").write(encoded({"results": f"{stem}.zarr", "manifest_sha256": sha256_of(manifest)}))
    _retire(place, stem)


def _retire(place: Location, current: str) -> None:
    """Mark the results that were in force as old, and remove those that were old already."""
    names = place.names()
    for name in names:
        if old := OLD_RESULTS.fullmatch(name):
            place.child(f"{old[1]}.zarr").delete()
            place.child(name).delete()
    for name in names:
        stem = name.removesuffix(".json")
        if name.endswith(".json") and RESULTS_NAME.fullmatch(f"{stem}.zarr") and stem != current:
            place.child(f"{stem}.old.json").write(place.child(name).read())
            place.child(name).delete()
    left = {name.removesuffix(".old.json").removesuffix(".json") for name in place.names() if name.endswith(".json")}
    for name in place.names():
        if RESULTS_NAME.fullmatch(name) and name.removesuffix(".zarr") not in left:
            place.child(name).delete()


def drop_results(url: str, *, but_those_in_force: bool) -> None:
    """Remove results, all of them or all but those in force; for a participant who leaves."""
    place = Location(url)
    kept = ""
    if but_those_in_force:
        kept = _pointer(place)[0].removesuffix(".zarr")
    for name in place.names():
        stem = name.removesuffix(".json").removesuffix(".old").removesuffix(".zarr")
        if (RESULTS_NAME.fullmatch(f"{stem}.zarr") and (stem != kept or name.endswith(".old.json"))) or (
            not kept and name in ("results.json", *TABLES)
        ):
            place.child(name).delete()


def _zarr_files(dataset: xr.Dataset) -> dict[str, bytes]:
    """The files of a Zarr store, made in memory.

    They are digested before they are written; and an object store, which Zarr asks 400 times for the results of two
    scans, is asked once for each file.
    """
    files: dict[str, Buffer] = {}
    with warnings.catch_warnings():
        # Zarr v3 has yet to adopt consolidated metadata; without it opening reads every array's own.
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        _writable(dataset).to_zarr(MemoryStore(files), mode="w", consolidated=True, zarr_format=3)
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
    place = Location(url)
    looks = 0
    while True:
        pointer, looks = _pointer(place), looks + 1
        try:
            results = _read_results(place, *pointer)
        except ResultsError:
            if looks >= LOOKS or _pointer(place) == pointer:
                raise
            continue
        if looks >= LOOKS or _pointer(place) == pointer:
            return results


def tables_are_whole(url: str) -> bool:
    """Whether the tables beside the results in force are those that were written with them."""
    place = Location(url)
    try:
        known = _manifest(place, *_pointer(place))["tables"]
        return all(sha256_of(place.child(name).read()) == digest for name, digest in known.items())
    except (ResultsError, FileNotFoundError):
        return False


def scans_in_old_results(url: str, names: set[str]) -> set[str]:
    """Scans of a person, by scan or ``participant_id``, in any results that can be read, old ones included."""
    place, found = Location(url), set()
    for name in place.names():
        if RESULTS_NAME.fullmatch(name):
            with suppress(Exception):  # whatever is wrong with them, they are removed whole
                stored = xr.open_zarr(place.child(name).zarr_store(read_only=True), chunks=None, zarr_format=3).load()
                scans = [str(scan) for scan in stored["scan"].to_numpy().tolist()]
                people = stored["participant_id"].to_numpy().tolist() if "participant_id" in stored else scans
                found |= {
                    scan for scan, person in zip(scans, people, strict=True) if scan and {scan, str(person)} & names
                }
    return found


def _pointer(place: Location) -> tuple[str, str]:
    """The name of the results in force, and the digest of their manifest."""
    here = place.child("results.json")
    try:
        known = decoded(here.read(), here.url, AGAIN)
    except FileNotFoundError:
        raise ResultsError(
            f"there are no results in {place.url}: process a cohort into it, to the end, first"
        ) from None
    except StoreError as err:
        raise ResultsError(str(err)) from err
    if known.keys() == {"results"}:
        raise ResultsError(
            f"{place.url} was written by hypodask 0.1.0, whose results have no digests; process the cohort again: "
            "volumes are made anew"
        )
    name, digest = known.get("results"), known.get("manifest_sha256")
    if known.keys() != {"results", "manifest_sha256"} or not isinstance(digest, str):
        raise ResultsError(f"{here.url} is damaged: it names no results of ours; {AGAIN}")
    if not isinstance(name, str) or not RESULTS_NAME.fullmatch(name):
        raise ResultsError(f"{here.url} names {name!r}, no results of ours; {AGAIN}")
    return name, digest


def _read_results(place: Location, name: str, digest: str) -> xr.Dataset:
    files = _verified_results(place, name, _manifest(place, name, digest)["files"])
    store = MemoryStore({file: cpu.Buffer.from_bytes(content) for file, content in files.items()}, read_only=True)
    try:
        # Of the older format of Zarr we write nothing, and it knows codecs that are pickles, which can run code.
        stored = xr.open_zarr(store, chunks=None, consolidated=True, zarr_format=3).load()
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as err:
        raise ResultsError(f"{place.url}/{name} cannot be decoded ({err!r}); {AGAIN}") from err
    return _text_as(stored, np.str_)


def _manifest(place: Location, name: str, digest: str) -> dict[str, dict[str, str]]:
    """Digests of the files of results, and of the tables."""
    here = place.child(f"{name.removesuffix('.zarr')}.json")
    try:
        content = here.read()
    except FileNotFoundError:
        if place.child(f"{name.removesuffix('.zarr')}.old.json").exists():
            raise ResultsError(
                f"{place.url}/results.json names {name}, which newer results have replaced: it is an old one; {AGAIN}"
            ) from None
        raise ResultsError(f"{here.url} is missing: the manifest of the results; {AGAIN}") from None
    if sha256_of(content) != digest:
        raise ResultsError(f"{here.url} or results.json is damaged: they do not match; {AGAIN}")
    try:
        known = decoded(content, here.url, AGAIN)
        return {part: {str(name): str(one) for name, one in known[part].items()} for part in ("files", "tables")}
    except (StoreError, AttributeError, KeyError) as err:
        raise ResultsError(f"{here.url} is no manifest of ours ({err!r}); {AGAIN}") from err


def _verified_results(place: Location, name: str, digests: Mapping[str, str]) -> dict[str, bytes]:
    def read(file: str) -> bytes:
        here = place.child(name, file)
        try:
            content = here.read()
        except FileNotFoundError:
            raise ResultsError(f"{here.url} is missing; {AGAIN}") from None
        if sha256_of(content) != digests[file]:
            raise ResultsError(f"{here.url} is damaged: it is not what was written; {AGAIN}")
        return content

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(digests, pool.map(read, digests), strict=True))


def _tables(dataset: xr.Dataset) -> dict[str, bytes]:
    """``volumes.tsv`` with its data dictionary ``volumes.json``, and the tidy ``volumes.parquet``."""
    wide = wide_table(dataset)
    lines = wide.replace(r"\s+", " ", regex=True)
    text = lines.mask(lines == "").to_csv(sep="\t", index=False, na_rep="n/a")
    meanings = {name: _column_meaning(dataset, name) for name in wide.columns}
    return dict(zip(TABLES, (text.encode(), encoded(meanings), to_parquet(tidy_table(dataset))), strict=True))


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
    """Check an output: every scan accounted for, every file as it was written, all of them in agreement.

    Every file is compared with its digest; the results with the journal, and the journal with the stores. Stores that
    no row names, and files in the journal that are none of its parts, are named too.

    Parameters
    ----------
    digests
        Read every byte of every store; without it sizes are compared.

    Returns
    -------
    list of str
        Problems as ``scan: what is wrong and what to do`` or ``file: ...``; empty when all is well. A failed scan is
        accounted for and no problem here.

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
    with suppress(StoreError):  # what is wrong with it was said above
        journal = read_journal(url)
    if cohort is not None and journal is not None:
        waiting = [scan for scan in cohort["scan"] if scan not in journal.index]
        problems = [*(f"{scan}: was not run; process the cohort again" for scan in waiting), *problems]
    if journal is not None:
        problems += _store_problems(place, journal, digests=digests)
    return problems + _results_problems(url, cohort, journal) + _loose_problems(place)


def stores_in(url: str) -> Iterator[str]:
    """The stores that an output holds, finished or not, by their paths in it."""
    scans = Location(url).child("scans")
    for name in scans.names():
        inside = [name] if name.endswith(".zarr") else [f"{name}/{store}" for store in scans.child(name).names()]
        yield from (f"scans/{store}" for store in inside)


def _store_problems(place: Location, journal: pd.DataFrame, *, digests: bool) -> list[str]:
    """Stores that are not as they were written or do not say what their rows say, and stores without a row."""
    kept = journal[(journal["status"] == "done") & (journal["store"] != "")] if len(journal) else journal

    rows = {str(scan): row for scan, row in kept.iterrows()}

    def found(scan: str) -> list[str]:
        store = place.child(str(rows[scan]["store"]))
        return verify_store(store, digests=digests) or _row_problems(store, rows[scan])

    with ThreadPoolExecutor(READERS) as pool:
        per_scan = list(pool.map(found, rows))
    problems = [f"{scan}: {one}" for scan, several in zip(rows, per_scan, strict=True) for one in several]
    known = set(journal["store"]) if len(journal) else set()
    strays = [store for store in stores_in(place.url) if store not in known]
    return problems + [f"{store}: a store without a row; delete it or process its scan again" for store in strays]


def _row_problems(store: Location, row: "pd.Series[Any]") -> list[str]:
    """Fields of a row of the journal that are other ones in the done-mark of its store."""
    done = read_done(store) or {}
    if not isinstance(done.get("row"), dict):
        return []
    there = flat_table([Row.from_dict(done["row"]).as_dict()]).iloc[0]
    row = pd.concat([pd.Series({"scan": row.name}), row])
    differing = [name for name in there.index if name not in OF_THE_RUN and not _same(there[name], row.get(name))]
    if not differing:
        return []
    what = f"its row in the journal is not that of its store ({', '.join(differing[:3])})"
    return [f"{what}; delete the store and run the scan again"]


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a table are equal, not-a-number and what is missing being alike."""
    missing = [value is None or value == "" or (isinstance(value, float) and np.isnan(value)) for value in (one, other)]
    return all(missing) or (not any(missing) and bool(one == other))


def _results_problems(url: str, cohort: pd.DataFrame | None, journal: pd.DataFrame | None) -> list[str]:
    place = Location(url)
    problems = []
    try:
        results = open_results(url)
        name, digest = _pointer(place)
        tables = _manifest(place, name, digest)["tables"]
    except (ResultsError, StoreError, KeyError) as err:
        return [str(err)]
    for table, known in tables.items():
        try:
            if sha256_of(place.child(table).read()) != known:
                problems.append(f"{table}: it was altered: its sha256 differs; {AGAIN}")
        except FileNotFoundError:
            problems.append(f"{table}: it is missing; {AGAIN}")
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


def _loose_problems(place: Location) -> list[str]:
    """Files of old results, logs, records of runs and the report that are not as they were written."""
    problems = []
    names = place.names()
    for name in names:
        if old := OLD_RESULTS.fullmatch(name):
            problems += _old_results_problems(place, old[1])
        stem = name.removesuffix(".zarr")
        if RESULTS_NAME.fullmatch(name) and not {f"{stem}.json", f"{stem}.old.json"} & set(names):
            problems.append(f"{name}: results without a list of digests; delete them, they are not in force")
    sealed = [name for name in place.names() if name == "report.html" or name == f"report.html{SEAL}"]
    sealed += [f"{folder}/{name}" for folder in ("logs", "runs") for name in place.child(folder).names()]
    for name in sorted({name.removesuffix(SEAL) for name in sealed}):
        if TEMPORARY.fullmatch(name.rpartition("/")[2]) or LEGACY_RECORD.fullmatch(name):
            continue
        try:
            read_sealed(place.child(name), "delete it; it holds no result")
        except StoreError as err:
            problems.append(f"{name}: {err}")
        except FileNotFoundError:
            continue
    return problems


def _old_results_problems(place: Location, stem: str) -> list[str]:
    cure = f"delete {stem}.zarr and {stem}.old.json; they are of no use any more"
    try:
        digests = decoded(place.child(f"{stem}.old.json").read(), f"{stem}.old.json", cure)["files"]
        _verified_results(place, f"{stem}.zarr", digests)
    except (ResultsError, StoreError, KeyError, TypeError, AttributeError) as err:
        return [f"{stem}: old results are not as they were written ({err}); {cure}"]
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
