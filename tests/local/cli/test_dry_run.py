"""A dry run's lines about the model: what the engine may do with it, found out on a tiny form of it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from ka2l_ray.cli.terminal import print_plan
from ka2l_ray.config import Config


@pytest.mark.parametrize(
    ("family", "fields", "row", "says"),
    [
        ("llama", {}, "engine", "every saving of the engine is right for it"),
        ("gpt_neo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}, "engine", "no shared prefix"),
        ("mamba", {}, "model", " 0 B of cache per token"),
    ],
)
def test_a_dry_run_says_what_the_engine_may_do_with_a_model(
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    family: str,
    fields: dict[str, object],
    row: str,
    says: str,
) -> None:
    small = {
        "hidden_size": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
    } | fields
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    print_plan(
        Config.model_validate(
            {
                "model": {"name_or_path": str(tmp_path)},
                "corpus": {"world": {"pool_questions": 60, "probe_questions": 300}},
                "active": {"budget": 20},
                "finetune": {"mode": "full"},
            }
        )
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == [row]]
    assert says in line
