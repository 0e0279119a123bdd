"""Loading a causal LM and its tokenizer: the shipped world model, a folder, a URI, or a hub id.

In: a `ModelSection`, a `Placement`. Out: a model in evaluation mode where it is placed, and a left-padding tokenizer.
Refuses to know: prompts, questions, Ray. Weights are read from safetensors only; no pickle is ever opened.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ka2l_ray.config import ConfigError, ModelSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import is_from, library_message
from ka2l_ray.models.activations import blocks
from ka2l_ray.models.copies import local_copy

ASSETS = Path(__file__).parent.parent / "world" / "assets"
WORLD_MODEL = ASSETS / "model"
PEFT_CONFIG = "adapter_config.json"
"""A folder with this file is a PEFT adapter, not a full model."""


def model_path(model: ModelSection, weights: bool = True) -> str:
    """What to pass to Hugging Face: the folder of the shipped model for `world`, a local copy of a URI, any other name
    unchanged.

    Without `weights` the copy of a URI contains configuration and tokenizer only. Raises `ConfigError` where there is
    nothing at a URI or an absolute path, which Hugging Face would take for a malformed hub id.
    """
    if model.name_or_path == "world":
        return str(WORLD_MODEL)
    if "://" not in model.name_or_path:
        if Path(model.name_or_path).is_absolute() and not Path(model.name_or_path).is_dir():
            raise ConfigError(f"model.name_or_path = {model.name_or_path!r}: no such folder")
        return model.name_or_path
    try:
        return str(local_copy(model.name_or_path, weights))
    except ConfigError as error:
        raise ConfigError(f"model.name_or_path = {error}") from error


def _hub_options(model: ModelSection) -> dict[str, Any]:
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """Tokenizer that pads on the left; a missing pad token becomes the end token (padding is masked everywhere)."""
    path = model_path(model, weights=False)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **_hub_options(model))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: ModelSection, adapter: str | None = None, placement: Placement = CPU) -> PreTrainedModel:
    """The whole model with its LM head.

    `adapter` is a local folder with weights tuned from the model. A PEFT adapter is merged on top of `model.adapter`,
    because it was trained there; a full model replaces everything. On quantized weights an adapter is not merged,
    because merging would round it away. Raises `ConfigError` where this process cannot use the GPUs of its `placement`,
    or an adapter has no safetensors.
    """
    placement.check()
    if adapter is not None and (Path(adapter) / PEFT_CONFIG).exists():
        adapted = with_adapter(load_model(model, placement=placement), adapter)
        return (adapted.merge_and_unload() if model.quantization == "none" else adapted.get_base_model()).eval()
    if adapter is None and model.adapter is not None:
        with Folder.of(model.adapter).local() as folder:
            return load_model(model.model_copy(update={"adapter": None}), folder, placement)
    path, hub_options = (model_path(model), _hub_options(model)) if adapter is None else (adapter, {})
    options = _load_options(model, placement) | hub_options
    return _placed(AutoModelForCausalLM.from_pretrained(path, **options), placement)


def with_adapter(model: PreTrainedModel, folder: str) -> Any:
    """A loaded model as a `PeftModel` with the adapter in `folder`, not merged. Raises `ConfigError` for pickled
    weights."""
    from peft import PeftModel

    if not (Path(folder) / "adapter_model.safetensors").exists():
        raise ConfigError(f"{folder}: contains no adapter_model.safetensors; pickle files are not read")
    # Without torch_device PEFT would read the weights through any GPU that is visible.
    return PeftModel.from_pretrained(model, folder, torch_device="cpu")


def load_blocks(model: ModelSection, layers: int, placement: Placement = CPU) -> PreTrainedModel:
    """Embedding and blocks 1 … `layers` only, without an LM head: later weights are never read.

    The exception is a model with a `model.adapter`: it is loaded and merged whole, then cut. Raises `ValueError` for a
    layer that the model does not have, `ConfigError` as `load_model` does.
    """
    placement.check()
    if model.adapter is not None:
        return _cut(load_model(model, placement=placement), layers)
    config = configuration(model)
    _set_depth(config.get_text_config(), layers)
    options = _load_options(model, placement) | _hub_options(model)
    return _text_decoder(_placed(AutoModel.from_pretrained(model_path(model), config=config, **options), placement))


def _set_depth(text: Any, layers: int) -> None:
    """Change a text decoder's configuration to its first `layers` blocks, at least one, because Hugging Face refuses a
    model without blocks; for layer 0 a pass stops before block 1."""
    if not 0 <= layers <= (depth := text.num_hidden_layers):
        raise ValueError(f"layer {layers} is out of range: the model has blocks 1 … {depth} and input 0")
    text.num_hidden_layers = max(1, layers)


def _text_decoder(backbone: Any) -> PreTrainedModel:
    """The text decoder of a backbone; other parts, such as a vision tower, are freed."""
    return backbone if backbone.config.get_text_config() is backbone.config else backbone.get_decoder()


def _cut(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The backbone of a loaded model without the blocks after `layers`, whose weights are freed."""
    backbone = _text_decoder(model.base_model)
    model_blocks = blocks(backbone, backbone.config.num_hidden_layers)
    _set_depth(backbone.config, layers)
    del model_blocks[max(1, layers) :]
    return backbone


def _load_options(model: ModelSection, placement: Placement) -> dict[str, Any]:
    """How Hugging Face reads the weights: from safetensors, in which precision, to which devices."""
    dtype = "auto" if model.dtype == "auto" else getattr(torch, model.dtype)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if model.quantization != "none":
        options["quantization_config"] = _quantization(model)
    if (device_map := placement.device_map(model.quantization != "none")) is not None:
        options["device_map"] = device_map
    return options


def _quantization(model: ModelSection) -> BitsAndBytesConfig:
    """bitsandbytes' 8-bit integers, or its 4-bit normal floats computed in bfloat16 (QLoRA, Dettmers et al., 2023)."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization = {model.quantization}: needs bitsandbytes: pip install 'ka2l-ray[quantization]'"
        )
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _placed(model: Any, placement: Placement) -> PreTrainedModel:
    """The model in evaluation mode, moved to its device unless loading has placed it already."""
    return (model if getattr(model, "hf_device_map", None) else model.to(placement.device)).eval()


@contextmanager
def as_config_errors(model: ModelSection) -> Iterator[None]:
    """Within this context an error of a library that cannot open the model becomes a `ConfigError` that names the model
    and the library.

    Errors of this package pass unchanged: they say themselves what is wrong, or they are not the user's mistake.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError) or is_from(error):
            raise
        raise ConfigError(f"model.name_or_path = {model.name_or_path!r}: {library_message(error)}") from error


def check_model(model: ModelSection) -> None:
    """Check what can be seen without weights.

    Raises `ConfigError` for a model that is not a causal one, a folder that lacks a weights file, a tokenizer with more
    tokens than the model knows, and one that does not give the character offsets of its tokens.
    """
    config, field = configuration(model), f"model.name_or_path = {model.name_or_path!r}"
    auto_map = getattr(config, "auto_map", None) or {}
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModelForCausalLM" not in auto_map:
        raise ConfigError(f"{field}: model type {config.model_type!r} is not a causal language model")
    if missing := _missing_weights(model):
        raise ConfigError(f"{field}: the folder lacks {', '.join(missing)}; weights are read from safetensors only")
    tokenizer = load_tokenizer(model)
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise ConfigError(
            f"{field}: its tokenizer {kind} gives no character offsets; a fast tokenizer (tokenizer.json) is needed"
        )
    vocabulary, tokens = config.get_text_config().vocab_size, tokenizer.vocab_size  # added tokens may go unused
    if tokens > vocabulary:
        raise ConfigError(
            f"{field}: its tokenizer has {tokens:,} tokens, the model {vocabulary:,}; is it another model's tokenizer?"
        )


def _missing_weights(model: ModelSection) -> list[str]:
    """Names of weights files that are missing from a model's folder or URI; none for a hub id, which is not listed."""
    path = model_path(model, weights=False)
    if not Path(path).is_dir():
        return []
    index = Path(path, "model.safetensors.index.json")
    wanted = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    folder = Folder.of(model.name_or_path if "://" in model.name_or_path else path)
    return sorted(n for n in wanted if not (folder / n).exists())


def commit(model: ModelSection) -> str | None:
    """The commit that a hub id stands for now; None for a folder."""
    return getattr(configuration(model), "_commit_hash", None)


def configuration(model: ModelSection) -> PreTrainedConfig:
    """The model's own configuration; no weights are read. Raises `ConfigError` where there is nothing at a URI."""
    return AutoConfig.from_pretrained(model_path(model, weights=False), **_hub_options(model))


def depth_and_width(model: ModelSection) -> tuple[int, int]:
    """(L, D) of the model."""
    text: Any = configuration(model).get_text_config()
    return text.num_hidden_layers, text.hidden_size
