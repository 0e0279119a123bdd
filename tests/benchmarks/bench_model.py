"""What the engine's benchmarks run on: a random-weight Llama of 45 M parameters, real questions, five-shot prompts.

Throughput does not depend on weights. The tokenizer is a byte-level BPE of 8,192 tokens trained on the questions
themselves, so that token counts are those of real text (five-shot prompts of about 130 tokens).
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ka2l_ray.config import PromptSection

HERE = Path(__file__).parent
SHAPE = HERE / "shapes" / "llama_45m"
SHOTS = 5
QUESTIONS_FILE = HERE / "data" / "nq_open.jsonl"


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in QUESTIONS_FILE.read_text().splitlines()]


def prompt() -> PromptSection:
    """The paper's prompt: an instruction, five solved examples, the question."""
    solved = "".join(f"Question: {r['question']}\nAnswer: {r['answer'][0]}\n\n" for r in rows()[:SHOTS])
    return PromptSection(
        template=f"Answer the question as briefly as you can.\n\n{solved}Question: {{question}}\nAnswer:", stop=("\n",)
    )


def questions(count: int) -> list[str]:
    """Questions that are no solved examples."""
    return [r["question"] for r in rows()[SHOTS : SHOTS + count]]


def build(folder: Path) -> str:
    """Write model and tokenizer to a folder; returns its name."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"Question: {r['question']}\nAnswer: {r['answer'][0]}\n" for r in rows()], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SHAPE)).save_pretrained(folder)
    return str(folder)
