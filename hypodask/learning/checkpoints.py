"""Checkpoints of a run of training, by Orbax: each is written whole or not at all, and the newest is kept."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax

from hypodask.core.errors import ModelError

_root = logging.getLogger()
_handlers = _root.handlers[:]
import orbax.checkpoint as ocp  # noqa: E402

# Orbax logs while it is imported, and absl gives the root logger a handler for it, which would then show everything
# that Dask logs, from every worker.
_root.handlers[:] = _handlers

_State = TypeVar("_State")


def keep(folder: Path, step: int, state: object) -> None:
    """Write the state of a run after ``step`` steps; the previous one is deleted once this one is complete."""
    with _manager(folder) as manager:
        # A run that was interrupted right after this call makes it again, with the same state.
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(_leaves(state)))


def restored(folder: Path, state: _State) -> _State:
    """The newest state in a folder, or ``state`` itself where there is none.

    Raises
    ------
    ModelError
        If the state in the folder has other arrays than ``state``.
    """
    if not folder.exists():
        return state
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return state
        wanted = _leaves(state)
        # Compared before anything is read: where shapes differ, Orbax leaves failed background tasks behind.
        if _shapes(manager.item_metadata(step).tree) != _shapes(wanted):
            raise ModelError(f"{folder} belongs to another network; delete it, or train the network it was made for")
        kept = manager.restore(step, args=ocp.args.StandardRestore(wanted))
    return cast(_State, jax.tree.unflatten(jax.tree.structure(state), [kept[name] for name in sorted(kept)]))


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler())


def _leaves(state: object) -> dict[str, jax.Array]:
    """The arrays of a state, named by number, so that the names do not depend on what holds the arrays."""
    return {f"{number:04d}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(arrays[name].shape) for name in arrays}
