"""What the engine may do with each family that users have, from the family's own default sizes: states and answers are
checked against the model's own by `examine`, which finds the way that is right."""

import pytest
from transformers import AutoConfig

from ka2l_ray.errors import ConfigError
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.examine import abilities_of_configuration

ALL, COPIED, NO_PREFIX = Abilities(), Abilities(prefix="copied"), Abilities(prefix="none")
FAMILIES: dict[str, tuple[dict[str, object], Abilities]] = {
    "apertus": ({}, ALL),
    "biogpt": ({}, COPIED),
    "bloom": ({}, COPIED),
    "codegen": ({}, COPIED),
    "cohere2": ({}, ALL),
    "ernie4_5": ({}, ALL),
    "exaone4": ({}, ALL),
    "falcon_h1": ({}, NO_PREFIX),
    "falcon_mamba": ({}, Abilities(prefix="none", step_mask=False)),
    "gemma4_text": ({}, Abilities(first_blocks=False)),
    "gemma4_text, the last blocks share caches": ({"num_kv_shared_layers": 10}, Abilities(first_blocks=False)),
    "glm4": ({}, ALL),
    "gpt_neo": ({}, NO_PREFIX),
    "gpt_oss": ({}, NO_PREFIX),
    "granite": ({}, ALL),
    "granitemoehybrid": ({"layer_types": ["mamba", "mamba", "attention", "mamba"] * 8}, NO_PREFIX),
    "jamba": ({}, NO_PREFIX),
    "lfm2": ({"layer_types": ["conv", "conv", "full_attention", "conv"] * 8}, NO_PREFIX),
    "mamba": ({}, Abilities(prefix="none", step_mask=False)),
    "minicpm3": ({}, Abilities(first_blocks=False)),
    "mpt": ({}, NO_PREFIX),
    "olmo2": ({}, ALL),
    "olmo3": ({}, ALL),
    "phi": ({}, ALL),
    "qwen2_moe": ({}, ALL),
    "qwen3_5_text": ({}, NO_PREFIX),
    "qwen3_moe": ({}, ALL),
    "recurrent_gemma": ({}, Abilities(prefix="none", padding=False, answers="no cache")),
    "rwkv": ({}, Abilities(prefix="none", padding=False, answers="no cache", first_blocks=False)),
    "smollm3": ({}, ALL),
    "starcoder2": ({}, ALL),
}
"""By model type, and what is special: what differs from its defaults, and what the engine may do."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_finds_the_way_that_is_right(family):
    changes, expected = FAMILIES[family]
    assert abilities_of_configuration(AutoConfig.for_model(family.partition(",")[0], **changes)) == expected


@pytest.mark.parametrize(
    ("family", "says"), [("gemma3n_text", "no residual stream"), ("blenderbot", "has no list of 2 blocks")]
)
def test_a_family_without_a_stream_to_read_is_refused(family, says):
    with pytest.raises(ConfigError, match=says):
        abilities_of_configuration(AutoConfig.for_model(family))
