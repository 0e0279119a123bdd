"""Loading a causal LM and its tokenizer: the shipped world model, a folder, a URI, or a hub id.

In: a `ModelSection`, a `Placement`. Out: a model in evaluation mode where it is placed, and a left-padding tokenizer.
Refuses to know: prompts, questions, Ray. Weights are read from safetensors only; no pickle is ever opened.
"""

import importlib.util
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
from ka2l_ray.dataflow.paths import is_gguf
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import is_from, library_message
from ka2l_ray.models import hub
from ka2l_ray.models.activations import blocks
from ka2l_ray.models.copies import local_copy
from ka2l_ray.models.gguf_files import commit_on_hub, converted
from ka2l_ray.models.weights import check_files, check_weights

ASSETS = Path(__file__).parent.parent / "world" / "assets"
WORLD_MODEL = ASSETS / "model"
PEFT_CONFIG = "adapter_config.json"
"""A folder with this file is a PEFT adapter, not a full model."""


def model_path(model: ModelSection, weights: bool = True) -> str:
    """What to pass to Hugging Face: the folder of the shipped model for `world`, that of a GGUF file (`smollm2` too), a
    local copy of a URI, any other name unchanged.

    Without `weights` the copy of a URI contains configuration and tokenizer only. Raises `ConfigError` where there is
    nothing at a URI or an absolute path, which Hugging Face would take for a malformed hub id.
    """
    if model.name_or_path == "world":
        return str(WORLD_MODEL)
    if is_gguf(model.name_or_path):
        return str(converted(model, weights))
    if "://" not in model.name_or_path:
        if Path(model.name_or_path).is_absolute() and not Path(model.name_or_path).is_dir():
            raise ConfigError(f"model.name_or_path = {model.name_or_path!r}: no such folder")
        return model.name_or_path
    try:
        return str(local_copy(model.name_or_path, weights, model.cache))
    except ConfigError as error:
        raise ConfigError(f"model.name_or_path = {error}") from error


def local_folder(model: ModelSection, weights: bool = True) -> str:
    """As `model_path`, but for a hub id the folder of this node's cache into which its files have been fetched.

    Raises `ConfigError` as `hub.fetched` does, and what the hub's client raises where it cannot be reached.
    """
    return str(hub.fetched(model, weights)) if hub.is_on_hub(model) else model_path(model, weights)


def _hub_options(model: ModelSection) -> dict[str, str | bool]:
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """Tokenizer that pads on the left; a missing pad token becomes the end token (padding is masked everywhere)."""
    tokenizer = AutoTokenizer.from_pretrained(
        local_folder(model, weights=False), padding_side="left", **_hub_options(model)
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: ModelSection, adapter: str | None = None, placement: Placement = CPU) -> PreTrainedModel:
    """The whole model with its LM head.

    `adapter` is a local folder with weights tuned from the model. A PEFT adapter is merged on top of `model.adapter`,
    because it was trained there; a full model replaces everything. On quantized weights, also those that are stored so,
    an adapter is not merged: merging would round it away, or PEFT cannot do it. Raises `ConfigError` where this process
    cannot use the GPUs of its `placement`, or an adapter has no safetensors.
    """
    placement.check()
    if adapter is not None and (Path(adapter) / PEFT_CONFIG).exists():
        adapted = with_adapter(load_model(model, placement=placement), adapter)
        base = adapted.get_base_model()
        return (base if getattr(base, "is_quantized", False) else adapted.merge_and_unload()).eval()
    if adapter is None and model.adapter is not None:
        folder = str(local_copy(model.adapter, cache=model.cache))
        return load_model(model.model_copy(update={"adapter": None}), folder, placement)
    options = _load_options(model, placement) | _hub_options(model)
    path = local_folder(model) if adapter is None else adapter  # both are folders, which have no revisions
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
        backbone = _text_decoder(load_model(model, placement=placement).base_model)
        model_blocks = blocks(backbone, backbone.config.num_hidden_layers)
        _set_depth(backbone.config, layers)
        del model_blocks[max(1, layers) :]  # frees their weights
        return backbone
    config = configuration(model)
    _set_depth(config.get_text_config(), layers)
    options = _load_options(model, placement) | _hub_options(model)
    return _text_decoder(_placed(AutoModel.from_pretrained(local_folder(model), config=config, **options), placement))


def load_cut(model: ModelSection, cut: PreTrainedConfig) -> PreTrainedModel:
    """A model's own weights in float32 on the CPU, as far as a configuration with fewer blocks has a place for them, LM
    head included; its adapter is left out. Raises `ConfigError` as `load_model` does."""
    plain = model.model_copy(update={"dtype": "float32", "adapter": None})
    options = _load_options(plain, CPU) | _hub_options(plain)
    return AutoModelForCausalLM.from_pretrained(local_folder(plain), config=cut, **options).eval()


def _set_depth(text: PreTrainedConfig, layers: int) -> None:
    """Change a text decoder's configuration to its first `layers` blocks, at least one, because Hugging Face refuses a
    model without blocks; for layer 0 a pass stops before block 1."""
    if not 0 <= layers <= (depth := text.num_hidden_layers):
        raise ValueError(f"layer {layers} is out of range: the model has blocks 1 … {depth} and input 0")
    text.num_hidden_layers = max(1, layers)


def _text_decoder(backbone: Any) -> PreTrainedModel:
    """The text decoder of a backbone; other parts, such as a vision tower, are freed."""
    return backbone if backbone.config.get_text_config() is backbone.config else backbone.get_decoder()


def _load_options(model: ModelSection, placement: Placement) -> dict[str, object]:
    """How Hugging Face reads the weights: from safetensors, in which precision, to which devices."""
    options = {
        "dtype": "auto" if model.dtype == "auto" else getattr(torch, model.dtype),
        "use_safetensors": True,
        "quantization_config": _quantization(model),
        "device_map": placement.device_map(model.quantization != "none"),
    }
    # A null would replace the settings that a checkpoint of quantized weights contains.
    return {name: value for name, value in options.items() if value is not None}


def _quantization(model: ModelSection) -> BitsAndBytesConfig | None:
    """bitsandbytes' 8-bit integers, or its 4-bit normal floats computed in bfloat16 (QLoRA, Dettmers et al., 2023);
    None without quantization."""
    if model.quantization == "none":
        return None
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
    except hub.UNREACHABLE as error:
        raise hub.silent(model, error) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError) or is_from(error):
            raise
        raise ConfigError(f"model.name_or_path = {model.name_or_path!r}: {library_message(error)}") from error


@contextmanager
def named_by(field: str, model: ModelSection) -> Iterator[None]:
    """As `as_config_errors`, for a model that another field than `model.name_or_path` names; errors name that one."""
    own = f"model.name_or_path = {model.name_or_path!r}"
    try:
        with as_config_errors(model):
            yield
    except ConfigError as error:
        raise ConfigError(str(error).replace(own, f"{field} = {model.name_or_path!r}", 1)) from error


def check_model(model: ModelSection) -> None:
    """Check what can be seen without reading weights.

    Raises `ConfigError` for a model that the hub does not have or give, one that is not a causal one, a folder whose
    weights are missing, cut short or of another kind, a tokenizer with more tokens than the model knows, and one that
    does not give the character offsets of its tokens.
    """
    field, is_on_hub = f"model.name_or_path = {model.name_or_path!r}", hub.is_on_hub(model)
    if is_on_hub:
        hub.check_on_hub(model)
    elif (source := _source(model)) is not None:
        check_files(source, field)
    config = configuration(model)
    auto_map = getattr(config, "auto_map", None) or {}
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModelForCausalLM" not in auto_map:
        raise ConfigError(f"{field}: model type {config.model_type!r} is not a causal language model")
    if not is_on_hub and source is not None:
        check_weights(source, field)
    if model.adapter is not None and (adapter := Folder.of(model.adapter)).exists():
        check_weights(adapter, f"model.adapter = {model.adapter!r}")
    tokenizer = load_tokenizer(model)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{field}: its tokenizer {type(tokenizer).__name__} gives no character offsets; "
            "a fast tokenizer (tokenizer.json) is needed"
        )
    vocabulary, tokens = config.get_text_config().vocab_size, tokenizer.vocab_size  # added tokens may go unused
    if tokens > vocabulary:
        raise ConfigError(
            f"{field}: its tokenizer has {tokens:,} tokens, the model {vocabulary:,}; is it another model's tokenizer?"
        )


def _source(model: ModelSection) -> Folder | None:
    """The folder or URI that a model is read from; None where there is no such folder, which Hugging Face then says,
    and for a GGUF file, which is checked where it is converted."""
    if is_gguf(model.name_or_path):
        return None
    path = model.name_or_path if "://" in model.name_or_path else model_path(model, weights=False)
    return Folder.of(path) if "://" in path or Path(path).is_dir() else None


def commit(model: ModelSection) -> str | None:
    """The commit that a hub id, or a GGUF file of a hub, stands for now; None for what is on a disk or at a URI."""
    if is_gguf(model.name_or_path):
        return commit_on_hub(model)
    return hub.fetched(model, weights=False).name if hub.is_on_hub(model) else None


def at_commit(model: ModelSection) -> ModelSection:
    """The model with the commit that its `revision` stands for now, of which a hub is asked no more."""
    found = commit(model)
    return model if found is None else model.model_copy(update={"revision": found})


def configuration(model: ModelSection) -> PreTrainedConfig:
    """The model's own configuration; no weights are read. Raises `ConfigError` where there is nothing at a URI."""
    return AutoConfig.from_pretrained(local_folder(model, weights=False), **_hub_options(model))


def depth_and_width(model: ModelSection) -> tuple[int, int]:
    """(L, D) of the model."""
    text = configuration(model).get_text_config()
    return text.num_hidden_layers, text.hidden_size
