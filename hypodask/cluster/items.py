"""Any function of any items on a cluster; keeps no journal."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

from distributed import Client, KilledWorker

from hypodask.cluster.connection import reached_cluster
from hypodask.cluster.networks import Networks, registered
from hypodask.cluster.window import KILLED, Landed, Window, landing
from hypodask.cluster.work import persistent
from hypodask.errors import ClusterError

Item = TypeVar("Item")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """What became of one item: a value, or the error that took its place."""

    item: Item
    value: Value | None = None
    error: Exception | None = None

    def get(self) -> Value:
        """The value; raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return cast(Value, self.value)


def each(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    *,
    client: Client | str | None = None,
    workers: int | None = None,
    window: int | None = None,
) -> Iterator[Outcome[Item, Value]]:
    """Call a function with every item, anywhere that Dask runs.

    Parameters
    ----------
    function
        Importable by the workers. An ``OSError`` is tried again, any other error is not. It writes what is large and
        returns what is small: values pass through this process.
    items
        Small descriptions, such as paths.
    client, workers, window
        As for :func:`process`; nothing is started where there are no items.

    Yields
    ------
    Outcome
        One for every item, in the order in which they come in. An item that failed, or killed its worker each time it
        was tried, is an outcome with an error, and stops no other.

    Raises
    ------
    ClusterError
        If the cluster is lost.

    Examples
    --------
    >>> list(each(len, []))
    []
    """
    numbered = [_Numbered(number, item) for number, item in enumerate(items)]
    if not numbered:
        return
    nothing = Networks(None, None, {})
    with (
        reached_cluster(client, workers, len(numbered)) as (connected, ours),
        registered(connected, nothing.sharing(ours)),
    ):
        task = partial(_answer, function)
        for landed in landing(connected, numbered, task, Window(connected, window)):
            if landed is not None:
                yield _outcome(landed)


@dataclass(frozen=True)
class _Numbered:
    """An item, named by its number."""

    number: int
    item: Any

    def __str__(self) -> str:
        return str(self.number)


def _answer(function: Callable[[Any], Any], numbered: _Numbered) -> Outcome[Any, Any]:
    """Run in a worker; no error leaves it."""

    def outcome() -> Outcome[Any, Any]:
        try:
            return Outcome(None, function(numbered.item))
        except OSError:
            raise
        except Exception as err:
            return Outcome(None, error=err)

    answer, _ = persistent(outcome)
    return Outcome(None, error=answer) if isinstance(answer, OSError) else answer


def _outcome(landed: Landed) -> Outcome[Any, Any]:
    item, error = landed.job.item, landed.error
    if error is None:
        return Outcome(item, landed.value.value, landed.value.error)
    return Outcome(item, error=ClusterError(KILLED) if isinstance(error, KilledWorker) else error)
