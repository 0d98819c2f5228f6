"""Any function of any items on a cluster; it keeps no journal."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

from distributed import KilledWorker

from hypodask.cluster.connection import AnyCluster, reached_cluster
from hypodask.cluster.networks import NetworksPlugin, registered
from hypodask.cluster.window import KILLED, Window, completed_jobs
from hypodask.cluster.work import with_retries
from hypodask.core.errors import ClusterError

_Item = TypeVar("_Item")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Outcome(Generic[_Item, _Value]):
    """The result of one item: a value, or the error that took its place."""

    item: _Item
    value: _Value | None = None
    error: Exception | None = None

    def get(self) -> _Value:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return cast(_Value, self.value)


def each(
    function: Callable[[_Item], _Value],
    items: Iterable[_Item],
    *,
    client: AnyCluster = None,
    workers: int | None = None,
    window: int | None = None,
) -> Iterator[Outcome[_Item, _Value]]:
    """Call a function with every item, anywhere that Dask runs.

    Parameters
    ----------
    function
        The workers must be able to import it. After an ``OSError`` it is called again, after any other error not. It
        should write large results and return small ones, because values pass through this process.
    items
        Small descriptions, such as paths.
    client, workers, window
        As for :func:`process`; nothing is started if there are no items.

    Yields
    ------
    Outcome
        One for every item, in the order in which they are completed. An item that failed, or that killed its worker
        each time it was tried, is an outcome with an error, and stops no other item.

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
    no_networks = NetworksPlugin(None, None, {})
    with (
        reached_cluster(client, workers, len(numbered)) as (connected, started),
        registered(connected, no_networks.sharing(started)),
    ):
        for completed in completed_jobs(connected, numbered, partial(_answer, function), Window(connected, window)):
            if completed is None:
                continue
            item, error = completed.job.item, completed.error
            if error is None:
                yield Outcome(item, completed.value.value, completed.value.error)
            else:
                yield Outcome(item, error=ClusterError(KILLED) if isinstance(error, KilledWorker) else error)


@dataclass(frozen=True)
class _Numbered:
    """An item with its number, which names its task."""

    number: int
    item: Any

    def __str__(self) -> str:
        return str(self.number)


def _answer(function: Callable[[Any], Any], numbered: _Numbered) -> Outcome[Any, Any]:
    """Run in a worker: the outcome of an item, which holds any error."""

    def outcome() -> Outcome[Any, Any]:
        try:
            return Outcome(None, function(numbered.item))
        except OSError:
            raise
        except Exception as err:
            return Outcome(None, error=err)

    answer, _ = with_retries(outcome)
    return Outcome(None, error=answer) if isinstance(answer, OSError) else answer
