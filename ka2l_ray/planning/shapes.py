"""How large a model is, without reading its weights.

In: a `ModelSection`. Out: a `Shape`: parameters, bytes, what a token costs in cache.
A configuration at hand (a folder, or the hub's cache) is laid out on torch's `meta` device, which holds no numbers, so the count is exact
for every architecture. Where neither it nor a network is at hand, a few models' published shapes stand in, and the plan says so.
Refuses to know: corpora, stages, Ray.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ka2l_ray.config import LoraSection, ModelSection
from ka2l_ray.errors import ConfigError, UserError, library_message
from ka2l_ray.models.activations import blocks
from ka2l_ray.models.loading import ASSETS, model_path

_LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "Qwen/Qwen2.5-7B": _QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_7B,
}
"""Fields of these models' `config.json`, as their authors published them."""
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5}
"""Bytes of a quantized weight; norms, embeddings and the head stay in the model's own precision."""


class UnknownShape(UserError, ValueError):
    """Neither the model's configuration nor a network is at hand."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: counts of parameters, in all blocks together and outside of them, and bytes of each."""

    source: str
    """Where the numbers come from, in words."""
    layers: int
    width: int
    vocabulary: int
    context: int | None
    block_parameters: int
    embedding_parameters: int
    head_parameters: int
    """Final norm and head; 0 for a head that is the embedding itself."""
    cache_values: int
    """Keys and values that one token leaves in all blocks together."""
    bytes_per_value: int
    quantization: str

    @property
    def parameters(self) -> int:
        return self.block_parameters + self.embedding_parameters + self.head_parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of the loaded model."""
        return self.first_blocks_bytes(self.layers) + self.head_parameters * self.bytes_per_value

    def first_blocks_bytes(self, layers: int) -> int:
        """Bytes of embeddings and blocks 1 … `layers`: what scoring loads."""
        per_value = QUANTIZED_BYTES.get(self.quantization, self.bytes_per_value)
        return (
            int(self.block_parameters * layers / self.layers * per_value)
            + self.embedding_parameters * self.bytes_per_value
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of one token."""
        return self.cache_values * self.bytes_per_value


def shape_of(model: ModelSection) -> Shape:
    """Raises `UnknownShape` where the model's configuration cannot be had here."""
    config, source = _configuration(model)
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    text: Any = config.get_text_config()
    block = sum(p.numel() for b in blocks(whole.base_model, text.num_hidden_layers) for p in b.parameters())
    embedding = sum(p.numel() for p in whole.get_input_embeddings().parameters())
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    stored = model.dtype if model.dtype != "auto" else str(text.dtype or "float32").removeprefix("torch.")
    limited = "max_position_embeddings" in {*text.to_dict(), *text.attribute_map}
    return Shape(
        source=source,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings if limited else None,
        block_parameters=block,
        embedding_parameters=embedding,
        head_parameters=sum(p.numel() for p in whole.parameters()) - block - embedding,
        cache_values=2 * text.num_hidden_layers * _cached_heads(text) * head_width,
        bytes_per_value=getattr(torch, stored).itemsize,
        quantization=model.quantization,
    )


def _cached_heads(text: PreTrainedConfig) -> int:
    """Heads whose keys and values transformers keeps. Falcon and GPT-BigCode say `multi_query` where all heads share one; of Falcon's newer
    models, whose heads share theirs in groups, each head's copy is kept."""
    fields = text.to_dict()
    if fields.get("multi_query") and not fields.get("new_decoder_architecture"):
        return 1
    return fields.get("num_key_value_heads") or text.num_attention_heads


def adapter_parameters(model: ModelSection, lora: LoraSection) -> int:
    """Trainable parameters of LoRA adapters on this model, counted by PEFT itself on the `meta` device.

    Raises `ConfigError` for targets that the model lacks.
    """
    from peft import LoraConfig, get_peft_model

    config, _ = _configuration(model)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
        try:
            adapted = get_peft_model(whole, LoraConfig(r=lora.rank, target_modules=targets, task_type="CAUSAL_LM"))
        except ValueError as error:
            raise ConfigError(f"finetune.lora.targets = {lora.targets!r}: {library_message(error)}") from error
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def _configuration(model: ModelSection) -> tuple[PreTrainedConfig, str]:
    path, options = (
        model_path(model, weights=False),
        {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code},
    )
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, **options), "shipped" if str(
            ASSETS
        ) in path else "its config.json"
    except (OSError, ValueError):
        pass
    if fields := PUBLISHED.get(model.name_or_path):
        return AutoConfig.for_model(**fields), "its published shape; its files are not at hand"
    try:
        return AutoConfig.from_pretrained(path, **options), "its config.json on the hub"
    except (OSError, ValueError) as error:
        raise UnknownShape(f"model.name_or_path = {model.name_or_path!r}: {library_message(error)}") from error
