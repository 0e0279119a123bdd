"""How large a model is, without reading its weights.

In: a `ModelSection`. Out: a `Shape`: parameters, bytes, and what a token costs in cache.
If the model's `config.json` is at hand (in a folder or the hub's cache), the model is built on torch's `meta` device,
which stores no numbers, so the count is exact for every architecture. If neither it nor a network is at hand, the
published shapes of a few models are used instead, and the plan says so.
Refuses to know: corpora, stages, Ray.
"""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ka2l_ray.config import LoraSection, ModelSection
from ka2l_ray.dataflow.paths import is_gguf
from ka2l_ray.errors import ConfigError, library_message
from ka2l_ray.finetune.model import with_new_adapters
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.activations import blocks
from ka2l_ray.models.examine import abilities_of, abilities_of_configuration
from ka2l_ray.models.hub import hub_cache
from ka2l_ray.models.loading import ASSETS, model_path
from ka2l_ray.models.tiny_form import NoTinyFormError
from ka2l_ray.planning.published import published_model

QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5}
"""Bytes of a quantized weight; norms, embeddings and the head keep the model's own precision."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: parameters inside and outside its blocks, the bytes of each, and what a token leaves in
    cache."""

    source: str
    """Where the numbers come from, in words."""
    layers: int
    width: int
    vocabulary: int
    context: int | None
    """Tokens of prompt and answer at most; None where the model sets no limit."""
    block_parameters: int
    """Of all blocks together."""
    embedding_parameters: int
    head_parameters: int
    """Final norm and head; a head that shares the embedding's weights counts 0."""
    cache_values: int
    """Keys and values that one token leaves in all blocks together; 0 where the model has no attention heads."""
    bytes_per_value: int
    quantization: str

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.block_parameters + self.embedding_parameters + self.head_parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of the loaded model."""
        return self.first_blocks_bytes(self.layers) + self.head_parameters * self.bytes_per_value

    def first_blocks_bytes(self, layers: int) -> int:
        """Bytes of embeddings and blocks 1 … `layers`: what scoring loads."""
        per_weight = QUANTIZED_BYTES.get(self.quantization, self.bytes_per_value)
        in_blocks = int(self.block_parameters * layers / self.layers * per_weight)
        return in_blocks + self.embedding_parameters * self.bytes_per_value

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of one token."""
        return self.cache_values * self.bytes_per_value


def shape_of(model: ModelSection) -> Shape:
    """The shape of a model. Raises `ConfigError` if its configuration is neither at hand nor published nor on the
    hub."""
    config, source = _configuration(model)
    whole = _without_weights(config, model)
    text = config.get_text_config()
    block = sum(p.numel() for b in blocks(whole.base_model, text.num_hidden_layers) for p in b.parameters())
    embedding = sum(p.numel() for p in whole.get_input_embeddings().parameters())
    dtype = model.dtype if model.dtype != "auto" else str(text.dtype or "float32").removeprefix("torch.")
    has_limit = "max_position_embeddings" in {*text.to_dict(), *text.attribute_map}
    return Shape(
        source=source,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings if has_limit else None,
        block_parameters=block,
        embedding_parameters=embedding,
        head_parameters=sum(p.numel() for p in whole.parameters()) - block - embedding,
        cache_values=2 * text.num_hidden_layers * _cached_width(text),
        bytes_per_value=getattr(torch, dtype).itemsize,
        quantization=model.quantization,
    )


def _without_weights(config: PreTrainedConfig, model: ModelSection) -> PreTrainedModel:
    """The model on the `meta` device, where its tensors have shapes but no numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)


def _cached_width(text: PreTrainedConfig) -> int:
    """Numbers in the keys of one token in one block, and in its values, as transformers caches them; 0 without
    attention heads, as in state space models, whose state is as large after any number of tokens. In Falcon and
    GPT-BigCode, `multi_query` says that all heads share one; in Falcon's newer models, whose heads share theirs in
    groups, each head's copy is cached."""
    heads: int = getattr(text, "num_attention_heads", 0)
    if not heads:
        return 0
    fields = text.to_dict()
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    if fields.get("multi_query") and not fields.get("new_decoder_architecture"):
        return width
    return width * (fields.get("num_key_value_heads") or heads)


def adapter_parameters(model: ModelSection, lora: LoraSection) -> int:
    """Trainable parameters of LoRA adapters on this model, counted by PEFT itself on the `meta` device.

    Raises `Refusal` for targets that the model lacks.
    """
    whole = _without_weights(_configuration(model)[0], model)
    with torch.device("meta"):
        adapted = with_new_adapters(whole, lora)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def _file_of(model: ModelSection) -> str:
    return "its GGUF file" if is_gguf(model.name_or_path) else "its config.json"


def abilities_of_shape(model: ModelSection) -> Abilities:
    """What the engine may do with a model, also where only its published shape is at hand. Raises `ConfigError` as
    `examine.abilities_of` does."""
    try:
        return abilities_of_configuration(_configuration(model)[0], model.trust_remote_code)
    except NoTinyFormError:
        return abilities_of(model)  # of its weights


def _configuration(model: ModelSection) -> tuple[PreTrainedConfig, str]:
    """(the model's configuration, where it comes from in words), from the nearest place that has it."""
    path = model_path(model, weights=False)
    options = {
        "revision": model.revision or "main",
        "trust_remote_code": model.trust_remote_code,
        "cache_dir": hub_cache(model),
    }
    try:
        found = AutoConfig.from_pretrained(path, local_files_only=True, **options)
        return found, "shipped" if str(ASSETS) in path else _file_of(model)
    except (OSError, ValueError):
        pass  # not at hand: published or on the hub, below
    if entry := published_model(model.name_or_path):
        found = AutoConfig.for_model(entry["model_type"], **entry["config"])
        return found, "its published shape; its files are not at hand"
    try:
        return AutoConfig.from_pretrained(path, **options), "its config.json on the hub"
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.name_or_path = {model.name_or_path!r}: {library_message(error)}") from error
