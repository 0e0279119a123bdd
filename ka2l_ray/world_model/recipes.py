"""Which recipe an asset was made from.

In: recipes, or a built folder. Out: the hash that both must share. Refuses to know: Ray, training.
"""

import json
from pathlib import Path

from ka2l_ray.decode.train import DecoderRecipe
from ka2l_ray.world.facts import WorldRecipe, recipe_hash
from ka2l_ray.world_model.pretrain import PROMPT, ModelRecipe


def model_hash(world: WorldRecipe, model: ModelRecipe) -> str:
    return recipe_hash(world, model, PROMPT.template)


def decoder_hash(world: WorldRecipe, model: ModelRecipe, decoder: DecoderRecipe) -> str:
    return recipe_hash(world, model, decoder, PROMPT.template)


def built_hash(folder: Path) -> str | None:
    """Recipe hash of a built folder, None where nothing whole is there."""
    recipe = folder / "recipe.json"
    return json.loads(recipe.read_text())["hash"] if recipe.exists() else None
