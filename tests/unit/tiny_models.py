"""Stand-ins for language models: tiny random models of real families, and one that says what it is told.

Refuses to know: pytest, Ray.
"""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

BLOCKS, WIDTH, CONTEXT = 3, 32, 64


def tiny_model(family: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random model of `BLOCKS` blocks and width `WIDTH`, with weights large enough that its answers differ from question to question."""
    torch.manual_seed(0)
    shared = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.3,
    }
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_layer=BLOCKS, n_head=4, n_positions=CONTEXT, **shared)).eval()
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes, **shared)).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes, **shared)).eval()


class ScriptCache:
    """How many tokens were said; every row of a batch is at the same place, so rows may come and go."""

    def __init__(self) -> None:
        self.said = 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        pass

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        pass


class ScriptedModel(nn.Module):
    """Says the tokens of one text and then the end token, whatever it is asked: the token said has logit `sure`, every other one 0."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, sure: float) -> None:
        super().__init__()
        self.script = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        self.layers = nn.ModuleList([nn.Identity()])
        self.config = SimpleNamespace(num_hidden_layers=1, max_position_embeddings=CONTEXT)
        self.generation_config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        self.device = torch.device("cpu")
        self._vocabulary, self._sure = len(tokenizer), sure

    def forward(self, input_ids: torch.Tensor, past_key_values: ScriptCache | None = None, **_: object) -> SimpleNamespace:
        cache = past_key_values or ScriptCache()
        logits = torch.zeros(*input_ids.shape, self._vocabulary)
        logits[:, -1, self.script[min(cache.said, len(self.script) - 1)]] = self._sure
        cache.said += 1
        return SimpleNamespace(logits=logits, past_key_values=cache)
