"""Checks of types and array shapes at every call, by ``pytest --jaxtyping-packages=hypodask,array_types.checked``.

The checker is beartype, told that a whole number may stand where a float is asked for, as PEP 484 and mypy have it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from beartype import BeartypeConf, beartype
from jaxtyping import config

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


@contextmanager
def unchecked() -> Iterator[None]:
    """For calls that are wrong on purpose, whose own error is tested: types are not checked within."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
