"""Documents that other sites read: JSON that says which kind of document it is, and of which version."""

import json
from typing import Any, TypeVar

from hypodask.core.documents import from_document, read_table, to_document
from hypodask.core.errors import ResultsError

Document = TypeVar("Document")


def write_document(document: Any, schema: str, version: int) -> str:
    """A dataclass as text that :func:`read_document` reads; indented, so that the sender can see what leaves the site.

    >>> from hypodask.stats.covariates import Covariate
    >>> text = write_document(Covariate("sex", ("female", "male")), "example", 1)
    >>> read_document(Covariate, text, "example", 1, what="the example")
    Covariate(name='sex', levels=('female', 'male'))
    """
    content = {"schema": schema, "version": version} | to_document(document)
    return json.dumps(content, indent=1, allow_nan=False)


def read_document(cls: type[Document], text: str, schema: str, version: int, *, what: str) -> Document:
    """The dataclass that a document holds.

    Raises
    ------
    ResultsError
        If it is another kind of document, one of another version, or damaged.
    """
    cure = "have it made again"
    content = read_table(text, "JSON", what=what, error=ResultsError, cure=cure)
    found = content.pop("schema", None), content.pop("version", None)
    if found != (schema, version):
        raise ResultsError(f"{what} is a document {found}, needed {(schema, version)}: make it anew with this hypodask")
    return from_document(cls, content, what=what, error=ResultsError, cure=cure)
