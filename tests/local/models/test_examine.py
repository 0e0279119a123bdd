"""What the engine may do with a model, found out on a tiny form of it: one family for each fall-back. The full set is
`make families`."""

import json
import logging
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from ka2l_ray.config import ConfigError, ModelSection
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.examine import abilities_of, abilities_of_configuration, numbers_tokenizer
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import load_blocks
from ka2l_ray.models.tiny_form import WINDOW, blocks_with_every_kind, tiny_form
from ka2l_ray.text.prompts import Prompt

PROMPTS = [Prompt((*range(10, 30), *own), 20, 20 + len(own)) for own in ((31, 32, 33), tuple(range(40, 55)))]


@pytest.mark.parametrize(
    ("family", "expected"),
    {
        "llama": Abilities(),
        "bloom": Abilities(prefix="copied"),
        "gpt_neo": Abilities(prefix="none"),
        "mamba": Abilities(prefix="none", step_mask=False),
        "minicpm3": Abilities(first_blocks=False),
        "rwkv": Abilities(prefix="none", padding=False, answers="no cache", first_blocks=False),
    }.items(),
)
def test_what_a_family_does_not_allow_falls_back(family, expected):
    assert abilities_of_configuration(AutoConfig.for_model(family)) == expected


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors"])
def test_weights_that_are_stored_quantized_cost_no_ability(method):
    """The package or GPU that loads them need not be here."""
    stored = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True, "config_groups": {}}
    assert abilities_of_configuration(AutoConfig.for_model("llama", quantization_config=stored)) == Abilities()


def test_a_stream_of_another_shape_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"gemma3n_text.* shape \(4, 23, 64\).* no residual stream"):
        abilities_of_configuration(AutoConfig.for_model("gemma3n_text"))


def test_a_fall_back_is_logged_once_with_what_it_costs(tmp_path, caplog):
    AutoConfig.for_model("gpt_neo").save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path))
    with caplog.at_level(logging.INFO, "ka2l"):
        assert abilities_of(section) == abilities_of(section) == Abilities(prefix="none")
    assert [r.getMessage() for r in caplog.records if str(tmp_path) in r.getMessage()] == [
        f"{tmp_path}: no shared prefix: the part that all prompts begin with is read again with every question"
    ]


@pytest.mark.parametrize(
    ("family", "depth", "blocks"),
    [
        ("llama", 32, 2),
        ("gemma3_text", 26, 6),
        ("deepseek_v3", 61, 4),
        ("qwen3_5_text", 32, 4),
        ("gemma3n_text", 35, 25),
    ],
)
def test_a_tiny_form_has_every_kind_of_block(family, depth, blocks):
    """Five windowed ones before a full one; three dense ones before experts; the last that keep no cache of their
    own."""
    config = AutoConfig.for_model(family)
    assert config.num_hidden_layers == depth
    assert blocks_with_every_kind(config) == blocks


def test_a_tiny_form_is_narrow_and_leaves_random_state_and_configuration_as_they_were():
    config = AutoConfig.for_model("mistral", sliding_window=4096)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = tiny_form(config), tiny_form(config)
    assert torch.equal(torch.rand(1), expected)
    assert (config.hidden_size, config.num_hidden_layers, config.sliding_window) == (4096, 32, 4096)
    tiny: Any = first.config
    assert (tiny.hidden_size, tiny.num_hidden_layers, tiny.sliding_window) == (256, 2, WINDOW)
    assert sum(p.numel() for p in first.parameters()) < 2_000_000
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("answers", ["per copy", "no cache"])
def test_answers_are_the_same_whatever_their_prompts_cost(tokenizer, answers):
    """Some drawn, some end early, in two waves."""
    model = tiny_model("llama", tokenizer)
    decoding = Decoding(3, 3, 1.0, 0.0, 6, ("1", "2"), waves=(1, 2))
    found = []
    for abilities in (Abilities(prefix="none"), Abilities(prefix="none", answers=answers)):
        generator = Generator(Engine(model, 0, abilities=abilities), numbers_tokenizer(), decoding)
        found.append(generator("ab", PROMPTS).answers)
    assert [[(a.text, a.tokens) for a in row] for row in found[1]] == [
        [(a.text, a.tokens) for a in row] for row in found[0]
    ]
    assert len({a.tokens for row in found[0] for a in row}) > 1


def test_without_padding_only_prompts_of_one_length_share_a_batch(tokenizer):
    engine = Engine(tiny_model("llama", tokenizer), 0, abilities=Abilities(prefix="none", padding=False))
    states, failed = engine.states([*PROMPTS, PROMPTS[0]], [1])
    assert failed == {}
    assert engine.tally.padding_tokens == 0
    assert states["last", 1][0] == pytest.approx(states["last", 1][2])


def test_blocks_that_depend_on_later_ones_are_loaded_with_them(tokenizer, tmp_path):
    tiny_model("llama", tokenizer).save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path))
    depths = [load_up_to(1, section, Abilities(first_blocks=b)).config.num_hidden_layers for b in (True, False)]
    assert depths == [1, load_blocks(section, 3).config.num_hidden_layers] == [1, 3]


def test_a_padding_token_without_an_embedding_is_replaced(tokenizer):
    """`[PAD]` appended to a tokenizer gets the first id that the model does not have."""
    model = tiny_model("llama", tokenizer)
    expected, _ = Engine(model, 0).states(PROMPTS, [1])
    found, failed = Engine(model, len(tokenizer)).states(PROMPTS, [1])
    assert failed == {}
    assert (found["last", 1] == expected["last", 1]).all()


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class StrictConfig(LlamaConfig):
    model_type = "strict"


def check(config):
    if config.vocab_size != 300:
        raise ValueError("this code is for 300 tokens")


class StrictModel(LlamaModel):
    config_class = StrictConfig

    def __init__(self, config):
        check(config)
        super().__init__(config)


class StrictForCausalLM(LlamaForCausalLM):
    config_class = StrictConfig

    def __init__(self, config):
        check(config)
        super().__init__(config)
"""


def test_where_no_tiny_form_can_be_built_the_first_blocks_themselves_are_read(tmp_path, caplog):
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=4)
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    config |= {"model_type": "strict", "auto_map": {auto: f"own.Strict{own}" for auto, own in names.items()}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(OWN_CODE)
    with caplog.at_level(logging.INFO, "ka2l"):
        abilities = abilities_of(ModelSection(name_or_path=str(tmp_path), trust_remote_code=True))
    assert abilities == Abilities()
    assert "this code is for 300 tokens; its first 2 blocks are read instead" in caplog.text


def test_a_cache_that_cannot_be_repeated_costs_a_pass_per_answer(monkeypatch):
    def refuse(*_: object) -> None:
        raise NotImplementedError("this cache has one row per prompt")

    for way in ("batch_repeat_interleave", "reorder_cache"):
        monkeypatch.setattr(DynamicLayer, way, refuse)
    config = AutoConfig.for_model("gpt_neo", num_heads=8)  # no other test examines this one
    assert abilities_of_configuration(config) == Abilities(prefix="none", answers="per copy")
