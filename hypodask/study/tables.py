"""Tables from text files, with types inferred from the values."""

import re
import warnings
from typing import Any

import pandas as pd

from hypodask.core.errors import CohortError, LocationError
from hypodask.files.location import Location

_MISSING = ("n/a", "N/A", "NA", "NaN", "nan", "")
"""Cells that mean missing: ``n/a`` in BIDS; the others are written by R, pandas and spreadsheets."""
_TEXT_COLUMNS = frozenset({"participant_id", "session", "session_id", "run", "site", "path", "file", "landmarks"})
"""Columns that stay text, also if all values are numbers."""
_LEADING_ZERO = re.compile(r"[+-]?0\d")


def read_table(path: str) -> pd.DataFrame:
    """A CSV or TSV file with types inferred from the values, or a Parquet file with its own types."""
    table = read_text(path)
    return table if path.lower().endswith("parquet") else infer_types(table)


def read_text(path: str, *, missing: tuple[str, ...] = _MISSING) -> pd.DataFrame:
    """A CSV or TSV file with every cell as text, or a Parquet file with its own types.

    Raises
    ------
    CohortError
        If the file is missing, of another kind, or no table.
    """
    suffix = path.lower().rsplit(".", 1)[-1]
    try:
        # Opened here, since pandas takes some paths for URLs.
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
        # Of rows longer than the header pandas drops the last cells with a warning; such a table is refused.
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


def infer_types(table: pd.DataFrame, *, text: frozenset[str] = _TEXT_COLUMNS) -> pd.DataFrame:
    """The same table, with text columns as numbers where every value is a number.

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
