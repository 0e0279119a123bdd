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


@pytest.mark.parametrize(
    ("added", "template", "says"),
    [
        ({"pad_token": "[PAD]"}, "{question}", None),
        ({"eos_token": "[END]"}, "{question}", r"contain '\[END\]' \(\d+\), but the model has"),
        ({"additional_special_tokens": ["[BOT]"]}, "{question}[BOT]", r"contain '\[BOT\]' \(\d+\), but the model has"),
        ({"additional_special_tokens": ["[BOT]"]}, "{question}", None),
    ],
    ids=["padding", "end", "in the prompt", "unused"],
)
def test_tokens_that_are_used_must_have_an_embedding(tokenizer, tmp_path, added, template, says):
    tiny_model("llama", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    longer = type(tokenizer).from_pretrained(tmp_path)
    longer.add_special_tokens(added)
    longer.save_pretrained(tmp_path)
    prompt, section = PromptSection(template=template), ModelSection(name_or_path=str(tmp_path))
    if says is None:
        check_tokens(section, prompt)
        return
    with pytest.raises(ConfigError, match=says):
        check_tokens(section, prompt)
