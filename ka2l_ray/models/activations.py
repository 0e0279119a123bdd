"""Hidden states, read by forward hooks on the blocks of a causal LM.

In: token ids, layers, positions. Out: float32 states (B, D) per (position, layer), whatever the model's own precision;
layers are numbered as in `schema`. Refuses to know: text, sampling, Ray.
Hooks see the raw residual stream, so `last_L` is taken before the final norm.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ka2l_ray.errors import ConfigError
from ka2l_ray.text.prompts import Prompt


@dataclass(frozen=True)
class Encoded:
    """A left-padded batch of prompts: `ids`, `mask` and `question_mask` (1 at the question's own tokens), each (B, T).

    The three leave out the first `prefix_length` tokens of the prompts, which are the same in every row.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    question_mask: torch.Tensor
    prefix_length: int = 0

    def to(self, device: torch.device) -> "Encoded":
        """The same batch on a device."""
        return Encoded(self.ids.to(device), self.mask.to(device), self.question_mask.to(device), self.prefix_length)

    @property
    def positions(self) -> torch.Tensor:
        """Positions (B, T) in the whole prompt, counted from each row's first real token, so that padding changes no
        state."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0) + self.prefix_length

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest whole prompt."""
        return self.prefix_length + self.ids.shape[1]

    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of a Hugging Face forward pass."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}


def pad(prompts: Sequence[Prompt], pad_token: int, prefix_length: int = 0) -> Encoded:
    """One batch, padded on the left, without the first `prefix_length` tokens of each prompt."""
    width = max(len(p.ids) for p in prompts) - prefix_length
    ids = torch.full((len(prompts), width), pad_token)
    mask, question_mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        offset = width - len(prompt.ids)  # from a token's place in the prompt to its column
        ids[row, offset + prefix_length :] = torch.tensor(prompt.ids[prefix_length:])
        mask[row, offset + prefix_length :] = 1
        question_mask[row, offset + prompt.own_start : offset + prompt.own_end] = 1
    return Encoded(ids, mask, question_mask, prefix_length)


def blocks(model: nn.Module, depth: int) -> nn.ModuleList:
    """The model's list of `depth` transformer blocks, found within the text decoder where the model has other parts,
    such as a vision tower.

    Raises `ConfigError` where there is none, for instance because the model is not a decoder-only transformer.
    """
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ConfigError(f"{type(model).__name__} has no list of {depth} blocks, so its hidden states cannot be read")


EVERY = "every"
"""The position of all tokens, whose states are (B, T, D)."""


class _StopForward(Exception):
    """Ends a forward pass once the last wanted layer has been seen."""


@contextmanager
def capture(
    model: nn.Module,
    depth: int,
    encoded: Encoded,
    layers: Sequence[int],
    positions: Sequence[str],
    stop: bool = False,
    whole: Sequence[int] = (),
) -> Iterator[dict[tuple[str, int], torch.Tensor]]:
    """Within this context a pass over the batch fills the dictionary with states (B, D) by position and layer, so that
    no whole residual stream (B, T, D) is kept but those of the layers `whole`, at the position `EVERY`; with `stop` the
    pass ends after the last of the layers.

    Raises `ValueError` for layers outside 0 … `depth`, `ConfigError` for a model whose blocks are not found.
    """
    model_blocks = blocks(model, depth)
    if wrong := [layer for layer in (*layers, *whole) if not 0 <= layer <= depth]:
        raise ValueError(f"layer(s) {wrong} out of range: the model has 0 … {depth}")
    states: dict[tuple[str, int], torch.Tensor] = {}

    all_layers = {*layers, *whole}

    def keep(layer: int, stream: torch.Tensor) -> None:
        if layer in layers:
            states.update({(p, layer): pool_states(stream, p, encoded.question_mask) for p in positions})
        if layer in whole:
            states[EVERY, layer] = stream.to(torch.float32, copy=True)
        if stop and layer == max(all_layers):
            raise _StopForward

    def read_input(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    def read_output(layer: int) -> Callable[..., None]:
        return lambda module, args, output: keep(layer, output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks, suppress(_StopForward):
        if 0 in all_layers:
            hooks.enter_context(model_blocks[0].register_forward_pre_hook(read_input, with_kwargs=True))
        for layer in all_layers - {0}:
            hooks.enter_context(model_blocks[layer - 1].register_forward_hook(read_output(layer)))
        yield states


def pool_states(stream: torch.Tensor, position: str, question_mask: torch.Tensor) -> torch.Tensor:
    """Float32 states (B, D) of a left-padded stream (B, T, D): at its last token, or the mean over the question's own
    tokens, which `question_mask` (B, T) marks."""
    if position == "last":
        return stream[:, -1].to(torch.float32, copy=True)  # a view would keep the whole stream
    weights = question_mask.to(stream.device, torch.float32).unsqueeze(-1)
    return (stream.float() * weights).sum(1) / weights.sum(1)


@torch.inference_mode()
def prompt_states(
    model: nn.Module, depth: int, encoded: Encoded, position: str, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """States (B, D) per layer of a model (or of its first `depth` blocks), from one pass that ends after the last of
    the layers.

    Raises `ValueError` for layers that do not exist, `ConfigError` for a model whose blocks are not found.
    """
    with capture(model, depth, encoded, layers, [position], stop=True) as states:
        model(**encoded.inputs(), use_cache=False)
    return {layer: states[position, layer] for layer in layers}
