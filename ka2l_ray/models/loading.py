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
"""The file that tells a PEFT adapter from a full model."""


def model_path(model: ModelSection, weights: bool = True) -> str:
    """What to hand to Hugging Face: the folder of the shipped model for `world`, a local copy of a URI, else the name as it stands.

    Without `weights` the copy of a URI holds configuration and tokenizer alone. Raises `ConfigError` where nothing lies at a URI.
    """
    if model.name_or_path == "world":
        return str(WORLD_MODEL)
    if "://" not in model.name_or_path:
        return model.name_or_path
    try:
        return str(local_copy(model.name_or_path, weights))
    except ConfigError as error:
        raise ConfigError(f"model.name_or_path = {error}") from error


def _source(model: ModelSection) -> dict[str, Any]:
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """Tokenizer that pads on the left; a missing pad token becomes the end token (padding is masked everywhere)."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(model, weights=False), padding_side="left", **_source(model))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: ModelSection, adapter: str | None = None, placement: Placement = CPU) -> PreTrainedModel:
    """The whole model with its LM head; `adapter` is a local folder with weights tuned from it: a PEFT adapter is merged on top of
    `model.adapter`, for it was trained there; a full model takes the place of everything. On quantized weights an adapter stays beside
    them, for merging would round it away. Raises `ConfigError` where this process cannot use the GPUs of its `placement`."""
    placement.check()
    if adapter is not None and (Path(adapter) / PEFT_CONFIG).exists():
        adapted = with_adapter(load_model(model, placement=placement), adapter)
        return (adapted.merge_and_unload() if model.quantization == "none" else adapted.get_base_model()).eval()
    if adapter is None and model.adapter is not None:
        with Folder.of(model.adapter).local() as folder:
            return load_model(model.model_copy(update={"adapter": None}), folder, placement)
    path, source = (model_path(model), _source(model)) if adapter is None else (adapter, {})
    return _placed(AutoModelForCausalLM.from_pretrained(path, **_options(model, placement), **source), placement)


def with_adapter(model: PreTrainedModel, folder: str) -> Any:
    """A PEFT adapter on a loaded model, beside the weights that it changes, not merged yet. Raises `ConfigError` for pickled weights."""
    from peft import PeftModel

    if not (Path(folder) / "adapter_model.safetensors").exists():
        raise ConfigError(f"{folder}: holds no adapter_model.safetensors; pickles are not read")
    return PeftModel.from_pretrained(
        model, folder, torch_device="cpu"
    )  # by itself PEFT reads them by way of any GPU that is visible


def load_blocks(model: ModelSection, layers: int, placement: Placement = CPU) -> PreTrainedModel:
    """Embedding and blocks 1 … `layers` only: later weights are never read, and there is no LM head.

    A `model.adapter` is the exception: it is merged into the whole model, which is cut afterwards. Raises `ValueError` for a layer that
    the model does not have, `ConfigError` as `load_model` does.
    """
    placement.check()
    if model.adapter is not None:
        return _cut(load_model(model, placement=placement), layers)
    config = configuration(model)
    text: Any = config.get_text_config()
    if not 0 <= layers <= text.num_hidden_layers:
        raise ValueError(
            f"layer {layers} is out of range: {model.name_or_path} has blocks 1 … {text.num_hidden_layers} and input 0"
        )
    text.num_hidden_layers = max(1, layers)  # Hugging Face refuses a model without blocks; layer 0 stops before block 1
    loaded = AutoModel.from_pretrained(model_path(model), config=config, **_options(model, placement), **_source(model))
    return _text_only(_placed(loaded, placement))


def _text_only(backbone: Any) -> PreTrainedModel:
    """The text decoder of a model that has other parts too, such as a vision tower; those are freed."""
    decoder: Any = backbone if backbone.config.get_text_config() is backbone.config else backbone.get_decoder()
    return decoder


def _cut(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The backbone of a loaded model without the blocks after `layers`; later weights are freed."""
    backbone: Any = _text_only(model.base_model)
    depth = backbone.config.num_hidden_layers
    if not 0 <= layers <= depth:
        raise ValueError(f"layer {layers} is out of range: the model has blocks 1 … {depth} and input 0")
    del blocks(backbone, depth)[max(1, layers) :]
    backbone.config.num_hidden_layers = max(1, layers)
    return backbone


def _options(model: ModelSection, placement: Placement) -> dict[str, Any]:
    """How weights are read: safetensors, in which precision, and where to."""
    options: dict[str, Any] = {"dtype": _dtype(model), "use_safetensors": True}
    if model.quantization != "none":
        options["quantization_config"] = _quantized(model)
    if (spread := placement.device_map(model.quantization != "none")) is not None:
        options["device_map"] = spread
    return options


def _quantized(model: ModelSection) -> BitsAndBytesConfig:
    """bitsandbytes' 8-bit integers, or its 4-bit normal floats computed in bfloat16 (QLoRA, Dettmers et al., 2023)."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization = {model.quantization}: needs bitsandbytes: pip install 'ka2l-ray[quantization]'"
        )
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _placed(model: Any, placement: Placement) -> PreTrainedModel:
    """The model in evaluation mode, on its device unless loading has placed it already."""
    return (model if getattr(model, "hf_device_map", None) else model.to(placement.device)).eval()


@contextmanager
def refused_by_name(model: ModelSection) -> Iterator[None]:
    """Turn what a library says of a model that cannot be opened into a `ConfigError` that names the model, and the words as the library's.
    An error of this package passes as it is: either it says so itself, or it is no user's mistake."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError) or is_from(error):
            raise
        raise ConfigError(f"model.name_or_path = {model.name_or_path!r}: {library_message(error)}") from error


def check_model(model: ModelSection) -> None:
    """Refuse what can be seen without weights. Raises `ConfigError` for a model that is no causal one, a folder that lacks a weights file,
    a tokenizer with more tokens than the model knows, and one that cannot say which token stands where in a text."""
    config, named = configuration(model), f"model.name_or_path = {model.name_or_path!r}"
    automatic = getattr(config, "auto_map", None) or {}
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModelForCausalLM" not in automatic:
        raise ConfigError(f"{named}: model type {config.model_type!r} is no causal language model")
    if lacks := _missing_weights(model):
        raise ConfigError(f"{named}: the folder lacks {', '.join(lacks)}; weights are read from safetensors only")
    tokenizer = load_tokenizer(model)
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise ConfigError(
            f"{named}: its tokenizer {kind} tells no offsets in a text; a fast one, of tokenizer.json, is needed"
        )
    vocabulary, tokens = (
        config.get_text_config().vocab_size,
        tokenizer.vocab_size,
    )  # without those added, which may go unused
    if tokens > vocabulary:
        raise ConfigError(
            f"{named}: its tokenizer has {tokens:,} tokens, the model {vocabulary:,}; is it another model's tokenizer?"
        )


def _missing_weights(model: ModelSection) -> list[str]:
    """Names of weights files that should be in a model's folder or at its URI and are not; none of a hub id, which is not listed."""
    address = model_path(model, weights=False)
    if not Path(address).is_dir():
        return []
    index = Path(address, "model.safetensors.index.json")
    wanted = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    folder = Folder.of(model.name_or_path if "://" in model.name_or_path else address)
    return sorted(n for n in wanted if not (folder / n).exists())


def commit(model: ModelSection) -> str | None:
    """The hub's commit that a hub id stands for now, None for a folder."""
    return getattr(configuration(model), "_commit_hash", None)


def configuration(model: ModelSection) -> PreTrainedConfig:
    """The model's own configuration, no weights read."""
    return AutoConfig.from_pretrained(model_path(model, weights=False), **_source(model))


def depth_and_width(model: ModelSection) -> tuple[int, int]:
    """(L, D) of the model."""
    text: Any = configuration(model).get_text_config()
    return text.num_hidden_layers, text.hidden_size


def _dtype(model: ModelSection) -> str | torch.dtype:
    return "auto" if model.dtype == "auto" else getattr(torch, model.dtype)
