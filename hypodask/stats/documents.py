"""What is written for other sites to read: JSON that says which kind of document it is, and of which version."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy import ndarray

from hypodask.errors import ResultsError
from hypodask.stats.covariates import Covariate


def write_document(content: Mapping[str, object], schema: str, version: int) -> str:
    """Text that :func:`read_document` reads; readable, so that who sends it can see what leaves.

    >>> read_document(write_document({"sites": ("Bonn", "Ulm")}, "example", 1), "example", 1)
    {'sites': ['Bonn', 'Ulm']}
    """
    plain = {name: _plain(value) for name, value in content.items()}
    return json.dumps({"schema": schema, "version": version, **plain}, indent=1, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, ndarray):
        # JSON has no NaN.
        return np.where(np.isfinite(value), value, None).tolist()  # type: ignore[call-overload]
    if isinstance(value, tuple):
        return [asdict(each) if isinstance(each, Covariate) else each for each in value]
    return dict(value) if isinstance(value, Mapping) else value


def read_document(text: str, schema: str, version: int) -> dict[str, Any]:
    """Content of a document, without its schema and version.

    Raises
    ------
    ResultsError
        If it is another one.
    """
    try:
        content = json.loads(text)
        found = content.pop("schema"), content.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError) as err:
        raise ResultsError(f"this is no document of the kind {schema!r}: {err}") from err
    if found != (schema, version):
        raise ResultsError(f"found a document {found}, needed {(schema, version)}: make it anew with this hypodask")
    return dict(content)


def read_covariates(content: Sequence[Mapping[str, Any]]) -> tuple[Covariate, ...]:
    """Covariates of a document; a damaged one is a KeyError, TypeError or ValueError.

    >>> read_covariates([{"name": "sex", "levels": ["female", "male"]}])
    (Covariate(name='sex', levels=('female', 'male')),)
    """
    return tuple(Covariate(str(each["name"]), tuple(map(str, each["levels"]))) for each in content)
