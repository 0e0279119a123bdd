"""Stand-ins for language models: tiny random models of real families, and one that generates a given text.

Refuses to know: pytest, Ray.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

BLOCKS, WIDTH, CONTEXT, WINDOW = 3, 32, 64, 12


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": WINDOW},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "gemma3": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "phi3": {"num_key_value_heads": 2, "sliding_window": WINDOW},
    "gpt2": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "opt": {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": True},
    "falcon": {"alibi": False},
    "deepseek_v3": {
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": WIDTH,
        "num_nextn_predict_layers": 0,
    },
}
"""What a tiny model of each family gets besides the sizes: few key heads, windows shorter than a prompt, soft caps
that bite, values narrower than keys and a cache of latents (DeepSeek), a vision tower of as many blocks (Gemma 3, whose
text model is `gemma3_text`)."""


def tiny_model(family: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random model of `BLOCKS` blocks and width `WIDTH`, with weights large enough that its answers differ from
    question to question."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        **{"init_std" if family == "opt" else "initializer_range": 0.3},
        **FAMILIES[family],
    )
    if family == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 2}
        vision |= {"image_size": 16, "patch_size": 8}
        sizes = {
            "text_config": sizes,
            "vision_config": vision,
            "image_token_index": len(tokenizer) - 1,
            "mm_tokens_per_image": 4,
        }
    config = AutoConfig.for_model(family, **sizes)
    return AutoModelForCausalLM.from_config(config).eval()


class ScriptCache(Cache):
    """How many tokens were generated; all rows of a batch are at the same place, so rows may come and go."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.generated = 0


class ScriptedModel(nn.Module):
    """Generates the tokens of one text and then the end token, whatever the prompt: the generated token has logit
    `logit`, every other one 0."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, logit: float) -> None:
        super().__init__()
        self.script = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        self.layers = nn.ModuleList([nn.Identity()])
        self.config = PreTrainedConfig.from_dict(
            {"num_hidden_layers": 1, "hidden_size": 1, "max_position_embeddings": CONTEXT, "layer_types": ["conv"]}
        )
        self._supports_attention_backend = False
        self.generation_config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        self.device = torch.device("cpu")
        self._vocabulary, self._logit = len(tokenizer), logit

    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(self._vocabulary, 1)

    def forward(
        self, input_ids: torch.Tensor, past_key_values: ScriptCache | None = None, **_: object
    ) -> CausalLMOutputWithPast:
        cache = ScriptCache() if past_key_values is None else past_key_values
        logits: Any = torch.zeros(*input_ids.shape, self._vocabulary)
        logits[:, -1, self.script[min(cache.generated, len(self.script) - 1)]] = self._logit
        cache.generated += 1
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)
