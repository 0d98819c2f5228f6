"""Checkpoints of a run of training, by Orbax: each is there whole or not at all, and the newest is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from safetensors.numpy import load_file

from hypodask.errors import ModelError

State = TypeVar("State")


def keep(folder: Path, step: int, state: object) -> None:
    """Write the state of a run after ``step`` steps; the one before goes once this one is complete."""
    if folder.is_file():
        folder.rename(folder.with_suffix(".before"))
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
    if folder.is_file():
        return _read_file(folder, state)
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


def _read_file(path: Path, state: State) -> State:
    """A checkpoint as they were before Orbax: one file, without the sum of losses."""
    kept = load_file(path)
    leaves, tree = jax.tree.flatten(state)
    known = [jnp.asarray(kept[name]) for name in sorted(kept, key=int)] + leaves[len(kept) :]
    if [leaf.shape for leaf in known] != [leaf.shape for leaf in leaves]:
        raise ModelError(f"{path} belongs to another network; delete it, or train the network it was made for")
    return cast(State, jax.tree.unflatten(tree, known))


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler())


def _leaves(state: object) -> dict[str, jax.Array]:
    """The arrays of a state, named so that they sort in its order: whatever holds them may change its name."""
    return {f"{number:04d}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(arrays[name].shape) for name in arrays}
