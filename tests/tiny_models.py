"""Stand-ins for language models: tiny random models of real families, and one that generates a given text.

Refuses to know: pytest, Ray.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
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


def tiny_encoder(folder: Path) -> Path:
    """A random BERT in a folder, and the same folder."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz?"
    known = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"which pet does keep where was born bob ann the".split(),
        *letters,
        *(f"##{c}" for c in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(known))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=len(known), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


def tiny_writer(family: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A random encoder-decoder, T5 or BART, with a tokenizer in a folder, and the same folder."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "d_model": 64, "decoder_start_token_id": 0}
    sizes |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "t5":
        config = T5Config(**sizes, d_kv=16, num_heads=4, d_ff=128, num_layers=2, dropout_rate=0.0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    else:
        sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "bos_token_id": None}
        sizes |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
        config = BartConfig(**sizes, dropout=0.0, max_position_embeddings=64, forced_eos_token_id=None)
        BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
