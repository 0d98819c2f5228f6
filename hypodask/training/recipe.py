"""How a shipped network is made, asked for by a file."""

from pathlib import Path

from hypodask.recipes.commissures import train_commissures
from hypodask.recipes.hypothalamus import train_hypothalamus
from hypodask.recipes.icv import train_icv
from hypodask.training.config import Recipe

RECIPES = {"hypothalamus": train_hypothalamus, "icv": train_icv, "commissures": train_commissures}


def run_recipe(recipe: Recipe) -> None:
    """Run a recipe, or go on with it; its weights come to lie in its folder ``work``."""
    RECIPES[recipe.name](Path(recipe.data), Path(recipe.work), steps=recipe.steps, leave_out=recipe.leave_out)
