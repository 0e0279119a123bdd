"""Adapters that cannot be merged, and tokens that the model does not have, are refused before anything is loaded."""

import json

import pytest
from tiny_models import tiny_model

from ka2l_ray.config import ConfigError, ModelSection, PromptSection
from ka2l_ray.models.adapters import check_adapter, check_tokens


@pytest.mark.parametrize(
    ("kind", "files", "says"),
    [
        ("LORA", ["adapter_model.safetensors"], None),
        ("LORA", [], "contains no adapter_model.safetensors"),
        ("PROMPT_TUNING", ["adapter_model.safetensors"], "an adapter of kind PROMPT_TUNING cannot be merged"),
        ("P_TUNING", ["adapter_model.safetensors"], "an adapter of kind P_TUNING cannot be merged"),
        (None, ["model.safetensors"], None),
    ],
    ids=["lora", "pickled", "prompt", "p-tuning", "full model"],
)
def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path, kind, files, says):
    if kind:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    for name in files:
        (tmp_path / name).touch()
    section = ModelSection(adapter=str(tmp_path))
    if says is None:
        check_adapter(section)
        return
    with pytest.raises(ConfigError, match=says):
        check_adapter(section)


BOT = {"additional_special_tokens": ["[BOT]"]}
NO_BOT = r"contain '\[BOT\]' \(\d+\), but the model has"
TURNS = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' and not loop.last %}[BOT]{% endif %} "
    "{% endfor %}"
)
"""A chat template that writes a token after earlier answers only."""


@pytest.mark.parametrize(
    ("added", "prompt", "says"),
    [
        ({"pad_token": "[PAD]"}, {}, None),
        ({"eos_token": "[END]"}, {}, r"contain '\[END\]' \(\d+\), but the model has"),
        (BOT, {"template": "{question}[BOT]"}, NO_BOT),
        (BOT, {}, None),
        (BOT, {"style": "fewshot", "template": "{question}[BOT]"}, NO_BOT),
        (BOT, {"style": "fewshot", "instruction": "[BOT]Answer."}, NO_BOT),
        (BOT, {"style": "fewshot"}, None),
        (BOT, {"style": "chat", "shots": 2}, NO_BOT),
        (BOT, {"style": "chat"}, None),
    ],
    ids=[
        *("padding", "end", "in the prompt", "unused", "around solved examples", "in the instruction"),
        *("unused by solved examples", "after earlier turns", "no earlier turns"),
    ],
)
def test_tokens_that_are_used_must_have_an_embedding(tokenizer, tmp_path, added, prompt, says):
    tiny_model("llama", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    longer = type(tokenizer).from_pretrained(tmp_path)
    longer.add_special_tokens(added)
    longer.chat_template = TURNS
    longer.save_pretrained(tmp_path)
    asked, section = PromptSection(**{"template": "{question}", **prompt}), ModelSection(name_or_path=str(tmp_path))
    if says is None:
        check_tokens(section, asked)
        return
    with pytest.raises(ConfigError, match=says):
        check_tokens(section, asked)
