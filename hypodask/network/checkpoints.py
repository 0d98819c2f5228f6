"""Checkpoints of a run of training, by Orbax: each is there whole or not at all, and the newest is kept."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax

from hypodask.errors import ModelError

_handlers = logging.root.handlers[:]
import orbax.checkpoint as ocp  # noqa: E402

# Orbax says something as it is imported, for which absl gives the root logger a handler: after that everything that
# Dask says would be shown, from every worker.
logging.root.handlers[:] = _handlers

State = TypeVar("State")


def keep(folder: Path, step: int, state: object) -> None:
    """Write the state of a run after ``step`` steps; the one before goes once this one is complete."""
    with _manager(folder) as manager:
        # A run that was interrupted right after this comes here again, with the same state.
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(_leaves(state)))


def restored(folder: Path, state: State) -> State:
    """The newest state in a folder, or ``state`` itself where there is none.

    Raises
    ------
    ModelError
        If what is there has other arrays than ``state``.
    """
    if not folder.exists():
        return state
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return state
        wanted = _leaves(state)
        # Compared before anything is read: Orbax reports a misfit from tasks that it then leaves behind.
        if _shapes(manager.item_metadata(step)) != _shapes(wanted):
            raise ModelError(f"{folder} belongs to another network; delete it, or train the network it was made for")
        kept = manager.restore(step, args=ocp.args.StandardRestore(wanted))
    return cast(State, jax.tree.unflatten(jax.tree.structure(state), [kept[name] for name in sorted(kept)]))


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler())


def _leaves(state: object) -> dict[str, jax.Array]:
    """The arrays of a state, named so that they sort in its order: whatever holds them may change its name."""
    return {f"{number:04d}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(arrays[name].shape) for name in arrays}
