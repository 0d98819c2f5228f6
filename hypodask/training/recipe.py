"""How a shipped network is made, asked for by a file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hypodask.recipes.commissures import train_commissures
from hypodask.recipes.hypothalamus import train_hypothalamus
from hypodask.recipes.icv import train_icv
from hypodask.training.config import Recipe

if TYPE_CHECKING:
    from distributed import Client

RECIPES: dict[str, Callable[..., None]] = {
    "hypothalamus": train_hypothalamus,
    "icv": train_icv,
    "commissures": train_commissures,
}


def run_recipe(recipe: Recipe, *, client: "Client | str | None" = None, workers: int | None = None) -> None:
    """Run a recipe, or go on with it; its weights come to lie in its folder ``work``.

    The published network's runs on the heads of the hypothalamus are work for Dask; the others have none.
    """
    on_dask = {"client": client, "workers": workers} if recipe.name == "hypothalamus" else {}
    learnt = RECIPES[recipe.name]
    learnt(Path(recipe.data), Path(recipe.work), steps=recipe.steps, leave_out=recipe.leave_out, **on_dask)
