"""Which recipe an asset was made from.

In: recipes, or a built folder. Out: a hash, which must be the same for both. Refuses to know: Ray, training.
"""

import json
from pathlib import Path

from ka2l_ray.decode.train import DecoderRecipe
from ka2l_ray.world.facts import WorldRecipe, recipe_hash
from ka2l_ray.world_model.pretrain import PROMPT, ModelRecipe


def asset_hash(*recipes: WorldRecipe | ModelRecipe | DecoderRecipe) -> str:
    """Hash of everything that determines an asset: the recipes of world and model, and for the decoder its own too."""
    return recipe_hash(*recipes, PROMPT.template)


def built_hash(folder: Path) -> str | None:
    """Recipe hash of a built folder; None where it is absent or incomplete."""
    recipe = folder / "recipe.json"
    return json.loads(recipe.read_text())["hash"] if recipe.exists() else None
