"""Dataclasses as documents: written as plain values, JSON or TOML, and read back strictly.

Pydantic does the work. This module sets its options, and gives all errors one form: the file and the table, what was
found, what is needed, and what to do. No value is converted, except whole numbers to floats and dates of TOML to text.
A field that holds no plain values needs a mark:

- ``Annotated[A | B, BY_KIND]`` is one of several dataclasses.
- ``Annotated[Float[ndarray, "row column"], ARRAY]`` is an array, written as a list of lists.
- :data:`AnyFloat` is a number that may be infinite or not-a-number, which a ``float`` may not.
"""

import json
import reprlib
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache, reduce
from operator import getitem
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import pydantic
import tomli_w
from numpy import ndarray
from pydantic_core import ErrorDetails, from_json

from hypodask.core.errors import HypodaskError

Document = TypeVar("Document")

AnyFloat = Annotated[float, pydantic.AllowInfNan(True)]
"""Type of a field that may hold a number that is infinite or not-a-number."""

_PLAIN = (
    (str, "text in quotes"),
    (int, "a whole number"),
    (float, "a finite number"),
    (AnyFloat, "a number"),
    (bool, "true or false"),
    (NoneType, "null"),
)

BY_KIND = pydantic.Field(discriminator="kind")
"""Marks a union of dataclasses, each of which has a field ``kind`` with a ``Literal`` of its own."""


def _array_schema(hint: Any, handler: Any) -> Any:
    def read(lists: list[Any]) -> ndarray:
        array = np.array(lists, np.float64)
        # Lists without a number lose their last axes.
        return array.reshape(array.shape + (0,) * (len(hint.dims) - array.ndim))

    def write(array: ndarray) -> Any:
        # JSON has no not-a-number.
        return np.where(np.isfinite(array), array, None).tolist()  # type: ignore[call-overload]

    lists: Any = AnyFloat | None
    for _ in hint.dims:
        lists = list[lists]
    return handler.generate_schema(Annotated[lists, pydantic.AfterValidator(read), pydantic.PlainSerializer(write)])


ARRAY = pydantic.GetPydanticSchema(_array_schema)
"""Marks an array of floats with a type of jaxtyping; not-a-number and infinity are written as null."""


@cache
def _adapter(cls: Any) -> Any:
    # Pydantic takes no options for a dataclass, but for a union, from which the dataclasses in it inherit them.
    options = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return pydantic.TypeAdapter(cls | None, config=options)


def to_document(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values, in their order; tuples stay tuples, which JSON writes as lists."""
    return cast(dict[str, Any], _adapter(value.__class__).dump_python(value))


def to_json(value: Any, *, ensure_ascii: bool = True, indent: int = 1) -> str:
    """A dataclass as the text of a JSON file."""
    return json.dumps(to_document(value), indent=indent, ensure_ascii=ensure_ascii)


def to_toml(value: Any) -> str:
    """A dataclass as the text of a TOML file, defaults written out."""
    return tomli_w.dumps(to_document(value))


def read_table(
    text: str | bytes, form: Literal["JSON", "TOML"], *, what: str, error: type[HypodaskError], cure: str
) -> dict[str, Any]:
    """The table that a JSON or TOML file holds; other parameters and the error are those of :func:`from_document`."""
    try:
        table = from_json(text) if form == "JSON" else tomllib.loads(cast(str, text))
    except (ValueError, RecursionError) as err:
        raise error(f"{what} cannot be read as {form} ({err}); {cure}") from err
    if not isinstance(table, dict):
        raise error(f"{what} cannot be read: it holds {reprlib.repr(table)}; a table is needed; {cure}")
    return table


def from_document(
    cls: type[Document], table: Mapping[str, Any], *, what: str, error: type[HypodaskError], cure: str
) -> Document:
    """A dataclass from the plain values of its fields.

    Parameters
    ----------
    cls
        The dataclass.
    table
        What :func:`read_table` returns, or :func:`to_document`.
    what
        How messages call the document: a path, or ``the model card``.
    error
        Class of the error that is raised.
    cure
        What a user can do where the document is wrong.

    Raises
    ------
    HypodaskError
        Of the class ``error``: if a key is unknown or missing, a value is of another type, or the dataclass refuses
        the values.

    Examples
    --------
    >>> from hypodask.core.errors import TrainingError
    >>> from hypodask.core.structures import Label
    >>> from_document(Label, {"indx": 1}, what="labels.json", error=TrainingError, cure="correct it")
    Traceback (most recent call last):
        ...
    hypodask.core.errors.TrainingError: labels.json has 'indx', which is not known; it may have index, structure, \
hemisphere, abbreviation, colour; perhaps 'index' is meant; correct it
    """
    try:
        # Strict pydantic takes lists as tuples, and tables as dataclasses, only where they come from JSON.
        return cast(Document, _adapter(cast(Any, cls)).validate_json(json.dumps(table, default=str)))
    except pydantic.ValidationError as err:
        raise error(f"{what}{_problem(cls, table, err)}; {cure}") from err


def _problem(cls: type, table: Any, err: pydantic.ValidationError) -> str:
    """What is wrong, and in which table; an unknown key first, as it is often the wrong spelling of a missing one."""
    problem = min(err.errors(), key=lambda each: each["type"] != "unexpected_keyword_argument")
    place, hint, owner = _followed(cls, problem)
    if problem["type"] in ("value_error", "json_invalid") and ARRAY not in get_args(hint):
        return f": [{_path(place)}] {problem['ctx']['error']}" if place else f": {problem['ctx']['error']}"
    start = max((number for number, step in enumerate(place) if isinstance(step, str)), default=0)
    where, name = f": [{_path(place[:start])}]" if start else "", _path(place[start:])
    if hint is None:
        known = [item.name for item in fields(owner)]
        meant = "".join(f"; perhaps {close!r} is meant" for close in get_close_matches(name, known, n=1))
        return f"{where} has {name!r}, which is not known; it may have {', '.join(known)}{meant}"
    try:
        found = reprlib.repr(reduce(getitem, place, table))
    except LookupError:
        return f"{where} lacks {name!r}; add it ({_needed(hint)})"
    return f"{where} has {name} = {found}; {_needed(hint)} is needed"


def _followed(hint: Any, problem: ErrorDetails) -> tuple[list[Any], Any, Any]:
    """Keys and indices down to what is wrong, its type (None for an unknown key), and the dataclass of its table."""
    place, owner = [], hint
    steps: list[Any] = [*problem["loc"], *["kind"] * problem["type"].startswith("union_tag")]
    for step in steps:
        if NoneType in get_args(hint):
            hint = get_args(hint)[0]
        inside = get_args(hint)
        if is_dataclass(hint):
            owner, hint = hint, get_type_hints(hint, include_extras=True).get(step)
        elif get_origin(hint) in (tuple, Mapping):
            hint = inside[0] if isinstance(step, int) else inside[1]
        elif BY_KIND in inside:
            kinds = {each.kind: each for each in get_args(inside[0])}
            if step != "kind":
                hint = kinds[step]
                continue
            hint = Literal[tuple(kinds)]
        else:
            # Pydantic goes on into arrays and named tuples, and to each type of a union.
            break
        place.append(step)
    return place, hint, owner


def _needed(hint: Any) -> str:
    """What a type is called in messages."""
    origin, inside = get_origin(hint), get_args(hint)
    if ARRAY in inside:
        return "a list" + " of lists" * (len(inside[0].dims) - 1) + " of numbers"
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inside))
    if origin in (Union, UnionType):
        return " or ".join(map(_needed, inside))
    if origin is tuple:
        number = "" if ... in inside else f" of {len(inside)}"
        return f"a list{number}, each {_needed(inside[0])}"
    if hasattr(hint, "_fields"):
        return "a list of " + ", ".join(f"{name} ({_needed(each)})" for name, each in get_type_hints(hint).items())
    return next((words for plain, words in _PLAIN if hint == plain), "a table")


def _path(place: list[Any]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
