"""JSON as this package writes it into files, and reads it back."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from hypodask.core.errors import StoreError


def to_json(content: Mapping[str, Any]) -> bytes:
    """An object as the text of a JSON file: UTF-8, indented by one, with a newline at the end.

    Arrays become lists. A number that is NaN or infinite becomes ``null``, because JSON has no such numbers.

    >>> to_json({"score": np.float32(0.5), "error_mm": float("nan"), "ac_mm": np.zeros(2)}).decode().split()
    ['{', '"score":', '0.5,', '"error_mm":', 'null,', '"ac_mm":', '[', '0.0,', '0.0', ']', '}']
    """
    return (json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(content: bytes, name: str, cure: str) -> dict[str, Any]:
    """The object in a JSON file that hypodask wrote.

    Parameters
    ----------
    content
        The bytes of the file.
    name
        What the file is called in an error message.
    cure
        What the user should do if the file is damaged.

    Raises
    ------
    StoreError
        If this is not JSON, not an object, or nested too deeply to be a file of hypodask.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise StoreError(f"{name} is damaged ({type(err).__name__}: it is not JSON of hypodask); {cure}") from err
    if not isinstance(found, dict):
        raise StoreError(f"{name} is damaged: it must hold a JSON object, but holds a {type(found).__name__}; {cure}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
