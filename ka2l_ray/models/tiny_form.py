"""A tiny form of a model, made from its configuration alone: every kind of block, few blocks, narrow, few tokens.

In: a configuration. Out: a random model in float32 that computes as the real one does, in milliseconds. No weights are
read. What is a width, a window or a number of experts is told from the names of the configuration's fields.
Refuses to know: what it is built for, families by name.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ka2l_ray.errors import ConfigError, library_message
from ka2l_ray.models.activations import blocks

VOCABULARY, OWN_TOKENS = 256, 200
"""Tokens of a tiny form; ids from `OWN_TOKENS` on are left to special tokens."""
WINDOW = 12
"""Tokens that a sliding window covers, or a chunk of attention or of a scan."""
HEAD_WIDTH, EXPERTS, LEAST_BLOCKS = 8, 16, 2
GAIN = 2.0
"""Attention sharp enough that every token counts."""
MOST_PARAMETERS = 800_000_000
"""Of a form that is built: 3 GB."""
WIDTHS = re.compile(r"size|dim|rank|width|channels|d_model|d_head|d_inner|d_state|d_ssm|d_rel|n_embd|n_inner|dff")
NO_WIDTHS = re.compile(r"vocab|window|chunk|kernel|image|patch|batch|block|group|conv|gram|multiple|divisib|axial|mel")
WINDOWS = re.compile(r"sliding_window$|window_size|chunk_size$|local_attention|index_topk$")
EXPERT_COUNTS = re.compile(r"num_(local_)?experts$|n_routed_experts")
EXPERTS_PER_TOKEN = re.compile(r"experts_per_tok|topk$|moe_k$")


class NoTinyFormError(ConfigError):
    """A model's own code builds no model with fewer tokens and blocks, or only one that is too large."""


def tiny_form(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model in evaluation mode with the shape of this configuration's, as narrow as it can be built and run.

    The same configuration gives the same weights; torch's random state is left as it was. Raises `NoTinyFormError`
    where not even first blocks in their own widths can be built with few tokens, what the model's own code raises where
    the configuration itself cannot be built, and `ConfigError` for a model without a list of blocks.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        depth = blocks_with_every_kind(config, trust_remote_code)
        failures: list[Exception] = []
        for divisor in _divisors(config.get_text_config()):
            try:
                return _built(tiny_config(config, depth, divisor), trust_remote_code)
            except Exception as error:  # any code of any family: the next form is closer to the real one
                if str(error) in map(str, failures):
                    break  # not because of the widths
                failures.append(error)
    raise NoTinyFormError(
        f"model type {config.model_type!r}: no tiny form of it can be built: {type(failures[0]).__name__}: "
        f"{library_message(failures[0])}"
    ) from failures[0]


def _built(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model of a configuration, once it has been seen to run."""
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if (parameters := sum(p.numel() for p in shape.parameters())) > MOST_PARAMETERS:
        raise ConfigError(
            f"model type {config.model_type!r}: its smallest form that runs has {parameters:,} parameters, too many to "
            "find out what the engine may do with it"
        )
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32).eval()
    _fill(model)
    with torch.no_grad():
        model(input_ids=torch.arange(1, WINDOW)[None])
    return model


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Weights that keep a state's size from block to block, so that a wrong mask is seen in every later state; biases
    and scales, which many families begin at 0 or 1, a little off them."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, GAIN * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))


def _divisors(text: PreTrainedConfig) -> list[int]:
    """What all widths may be divided by, largest first: powers of 2 that leave a head `HEAD_WIDTH` numbers."""
    heads = text.num_attention_heads if "num_attention_heads" in {*text.to_dict(), *text.attribute_map} else 1
    width = text.to_dict().get("head_dim") or text.hidden_size // (heads or 1)
    largest = max(0, (width // HEAD_WIDTH).bit_length() - 1)
    return [2**n for n in range(largest, -1, -1)]


def tiny_config(config: PreTrainedConfig, depth: int, divisor: int) -> PreTrainedConfig:
    """The configuration cut to `depth` blocks and few tokens, with every width divided by `divisor` and windows of
    `WINDOW` tokens. Encoders of other media keep one block. How a checkpoint's weights are quantized is left out: the
    tiny form's are not, and a library would ask for a GPU or a package to load them."""
    tiny = copy.deepcopy(config)
    text = tiny.get_text_config()
    for part in _parts(tiny):
        vars(part).pop("quantization_config", None)
        _shrink(part, divisor)
        if part is text:
            cut_depth(part, depth)
        elif "num_hidden_layers" in part.to_dict() and part is not tiny:
            cut_depth(part, 1)
    tiny.dtype = text.dtype = torch.float32
    return tiny


def cut_depth(text: PreTrainedConfig, depth: int) -> None:
    """Change a configuration to its first `depth` blocks, lists with an entry per block included."""
    whole = text.num_hidden_layers
    for name, value in text.to_dict().items():
        if isinstance(value, list | tuple) and len(value) == whole and name not in text.attribute_map:
            setattr(text, name, type(value)(value[:depth]))
    text.num_hidden_layers = depth


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration and those inside it."""
    inner = [v for v in vars(config).values() if isinstance(v, PreTrainedConfig)]
    return [config, *chain.from_iterable(_parts(c) for c in inner)]


def _shrink(part: PreTrainedConfig, divisor: int) -> None:
    fields = {k: v for k, v in vars(part).items() if not isinstance(v, bool)}
    chosen = max([v for k, v in fields.items() if EXPERTS_PER_TOKEN.search(k) and isinstance(v, int)], default=1)
    special = iter(range(VOCABULARY - 1, OWN_TOKENS, -1))
    for name, value in fields.items():
        if name.endswith(("_token_id", "_token_index")):
            setattr(part, name, _special(value, special))
        elif isinstance(value, int) and value > 0:
            setattr(part, name, _smaller(name, value, divisor, chosen))
        elif isinstance(value, list) and WIDTHS.search(name) and not NO_WIDTHS.search(name):
            setattr(part, name, [_divided(v, divisor) for v in value])


def _special(value: object, free: Iterator[int]) -> object:
    """A special token's id, below `VOCABULARY`; of several ids one."""
    ids = value if isinstance(value, list | tuple) else [value]
    return next(free) if isinstance(next(iter(ids), None), int) else value


def _smaller(name: str, value: int, divisor: int, experts_per_token: int) -> int:
    if "vocab" in name:
        return min(value, VOCABULARY)
    if WINDOWS.search(name):
        return min(value, WINDOW)
    if EXPERT_COUNTS.search(name):
        return min(value, max(EXPERTS, 2 * experts_per_token))
    return _divided(value, divisor) if WIDTHS.search(name) and not NO_WIDTHS.search(name) else value


def _divided(value: Any, divisor: int) -> Any:
    return value // divisor if isinstance(value, int) and value % divisor == 0 else value


def blocks_with_every_kind(config: PreTrainedConfig, trust_remote_code: bool = False) -> int:
    """How many of the first blocks contain one of every kind, at least `LEAST_BLOCKS`. Kinds differ in their modules,
    in the shapes of their weights, in plain attributes of their modules, or in the configuration's entry for them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    depth = text.num_hidden_layers
    looks = [_look(block) for block in blocks(model.base_model, depth)]
    telling = [k for k in set().union(*looks) if not _counts_blocks([look[k] for look in looks if k in look])]
    lists = [v for v in text.to_dict().values() if isinstance(v, list | tuple) and len(v) == depth]
    lists = [v for v in lists if not _counts_blocks([repr(entry) for entry in v])]
    kinds = [tuple(look.get(k) for k in telling) + tuple(repr(v[n]) for v in lists) for n, look in enumerate(looks)]
    last_first = max(kinds.index(kind) for kind in kinds)
    return min(depth, max(LEAST_BLOCKS, last_first + 1))


def _counts_blocks(values: Sequence[str]) -> bool:
    """Whether an attribute differs in every block that has it, such as a block's own number."""
    return len(values) > 1 and len(set(values)) == len(values)


def _look(block: nn.Module) -> Mapping[tuple[str, str], str]:
    """The types, plain attributes and weights of a block's modules, by module and name."""
    look = {(name, "type"): type(module).__name__ for name, module in block.named_modules()}
    for name, module in block.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str) and k != "training"}
        look |= {(name, k): repr(v) for k, v in plain.items()}
    return look | {(name, "shape"): str(tuple(p.shape)) for name, p in block.named_parameters()}
