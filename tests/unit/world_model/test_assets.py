"""The shipped assets are those of the recipe in the code."""

import json

from ka2l_ray.config import ModelSection
from ka2l_ray.decode.train import DecoderRecipe
from ka2l_ray.models.loading import ASSETS, WORLD_MODEL, load_tokenizer
from ka2l_ray.world.facts import WorldRecipe, build_world
from ka2l_ray.world_model.pretrain import ModelRecipe
from ka2l_ray.world_model.recipes import asset_hash, built_hash
from ka2l_ray.world_model.tokenizer import build_tokenizer

LIMIT_BYTES = 16 * 1024**2


def test_assets_have_the_hash_of_the_recipe_in_the_code() -> None:
    assert built_hash(WORLD_MODEL) == asset_hash(WorldRecipe(), ModelRecipe())
    assert built_hash(ASSETS / "decoder") == asset_hash(WorldRecipe(), ModelRecipe(), DecoderRecipe())


def test_assets_are_small_and_contain_no_pickle() -> None:
    files = [f for f in ASSETS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= LIMIT_BYTES
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md"}


def test_the_shipped_tokenizer_is_the_one_the_code_builds() -> None:
    shipped, built = load_tokenizer(ModelSection()), build_tokenizer(build_world())
    assert shipped.get_vocab() == built.get_vocab()
    assert json.loads((ASSETS / "decoder/decoder.json").read_text())["vocabulary"] == len(built)
