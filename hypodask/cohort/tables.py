"""Tables of text, with types told from the values."""

import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from hypodask.errors import CohortError, LocationError
from hypodask.location import Location, absolute, is_url

MISSING = ("n/a", "N/A", "NA", "NaN", "nan", "")
"""Cells that mean missing. ``n/a`` is BIDS; the rest is what R, pandas and spreadsheets write."""
TEXT_COLUMNS = frozenset({"participant_id", "session", "session_id", "run", "site", "path", "file", "landmarks"})
"""Columns that stay text whatever their values look like."""
_LEADING_ZERO = re.compile(r"[+-]?0\d")


def read_table(path: str) -> pd.DataFrame:
    """A CSV or TSV file with types told from the values, or a Parquet file with its own."""
    table = read_text(path)
    return table if path.lower().endswith("parquet") else infer_types(table)


def read_text(path: str, *, missing: tuple[str, ...] = MISSING) -> pd.DataFrame:
    """A CSV or TSV file with every cell as text, or a Parquet file with its own types.

    Raises
    ------
    CohortError
        If the file is missing, of another kind, or no table.
    """
    suffix = path.lower().rsplit(".", 1)[-1]
    try:
        # Not pandas' own way to open paths: a path is never taken for a URL.
        with Location(path).open() as file:
            if suffix == "parquet":
                return pd.read_parquet(file)
            if suffix in ("csv", "tsv", "txt"):
                return _read_delimited(file, "," if suffix == "csv" else "\t", missing)
    except FileNotFoundError as err:
        raise CohortError(f"there is no table {path}; correct the path") from err
    except IsADirectoryError as err:
        raise CohortError(f"{path} is a folder; a table is needed, or Cohort.from_bids for a BIDS folder") from err
    except LocationError:
        raise
    except (ValueError, pd.errors.ParserWarning) as err:
        raise CohortError(f"{path} cannot be read as a table ({err}); save it as UTF-8 text or Parquet") from err
    raise CohortError(f"{path} is no .csv, .tsv, .txt or .parquet; save the table as one of these")


def _read_delimited(file: Any, separator: str, missing: tuple[str, ...]) -> pd.DataFrame:
    with warnings.catch_warnings():
        # pandas warns of rows longer than the header and drops what is beyond; better not to read them at all.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            file,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            na_values=list(missing),
            encoding="utf-8-sig",
            skipinitialspace=True,
            index_col=False,
        )


def infer_types(table: pd.DataFrame, *, text: frozenset[str] = TEXT_COLUMNS) -> pd.DataFrame:
    """The same table, its text columns made numbers where every value is one.

    A column with a value such as ``007`` stays text, since it is a code. Columns of ``text`` do too.

    >>> infer_types(pd.DataFrame({"age": ["61", None], "code": ["007", "8"]})).dtypes.astype(str)["age"]
    'float64'
    """
    return table.assign(**{str(name): _inferred(table[name]) for name in table if name not in text})


def _inferred(column: "pd.Series[Any]") -> "pd.Series[Any]":
    values = column.dropna()
    if not pd.api.types.is_string_dtype(values) or values.empty or values.str.match(_LEADING_ZERO).any():
        return column
    numbers = pd.to_numeric(values, errors="coerce")
    return column if numbers.isna().any() else pd.to_numeric(column)


def as_text(column: "pd.Series[Any]") -> list[str]:
    """Values of an id column as text: empty where missing, ``1`` and not ``1.0`` for whole numbers.

    >>> as_text(pd.Series([1.0, None, 2.0])), as_text(pd.Series(["001", None]))
    (['1', '', '2'], ['001', ''])
    """
    return [_text(value) for value in column]


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def join(folder: str, path: str) -> str:
    """A path relative to a folder, either of which may be a URL; an absolute path stays as it is, ``~`` expanded.

    >>> join("s3://study/raw", "sub-01.nii"), join("/raw", "/other/sub-01.nii")
    ('s3://study/raw/sub-01.nii', '/other/sub-01.nii')
    """
    if not path or is_url(path) or Path(path).is_absolute() or path.startswith("~"):
        return absolute(path)
    return f"{folder.rstrip('/')}/{path}" if is_url(folder) else str(Path(folder, path))
