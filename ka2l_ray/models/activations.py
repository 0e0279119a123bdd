"""Hidden states from forward hooks on a causal LM's blocks.

In: token ids, layers, positions. Out: states (B, D) per (position, layer), by the convention of `schema`, in
float32 whatever the model's own precision.
Refuses to know: text, sampling, Ray. Hooks see the raw residual stream, so `last_L` is taken before the final norm.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ka2l_ray.errors import ConfigError
from ka2l_ray.text.prompts import Prompt


@dataclass(frozen=True)
class Encoded:
    """A left-padded batch of prompts: `ids`, `mask` and `own`, each (B, T); `own` marks the question's own tokens.

    `before` tokens that all rows share come first and are left out of the three.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    own: torch.Tensor
    before: int = 0

    def to(self, device: torch.device) -> "Encoded":
        return Encoded(self.ids.to(device), self.mask.to(device), self.own.to(device), self.before)

    @property
    def positions(self) -> torch.Tensor:
        """Positions (B, T) in the whole prompt."""
        return position_ids(self.mask) + self.before

    @property
    def end(self) -> int:
        """Tokens of the longest whole prompt: none has a position at or beyond it."""
        return self.before + self.ids.shape[1]

    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of a Hugging Face forward pass."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}


def pad(prompts: Sequence[Prompt], fill: int, before: int = 0) -> Encoded:
    """One batch, padded on the left with the token `fill`; the first `before` tokens of every prompt are left out."""
    width = max(len(p.ids) for p in prompts) - before
    ids = torch.full((len(prompts), width), fill)
    mask, own = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        first = width + before - len(prompt.ids)  # the column of the prompt's token `before`
        ids[row, first:] = torch.tensor(prompt.ids[before:])
        mask[row, first:] = 1
        own[row, first + prompt.own_start - before : first + prompt.own_end - before] = 1
    return Encoded(ids, mask, own, before)


def blocks(model: nn.Module, depth: int) -> nn.ModuleList:
    """The list of transformer blocks: the one `ModuleList` with `depth` members outside the blocks themselves, within the text decoder
    of a model that has other parts too, such as a vision tower.

    Raises `ConfigError` where the model has none, for instance because it is not a decoder-only transformer.
    """
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ConfigError(f"{type(model).__name__} has no list of {depth} blocks, so its hidden states cannot be read")


Pooling = Callable[[torch.Tensor], torch.Tensor]


class _Stop(Exception):
    """Ends a forward pass once the last wanted layer has been seen."""


class Capture:
    """Collects what is wanted of the residual stream (B, T, D) at chosen layers while a forward pass runs."""

    def __init__(self, model: nn.Module, depth: int, layers: Sequence[int], stop_early: bool = False) -> None:
        self._blocks = blocks(model, depth)
        if wrong := [layer for layer in layers if not 0 <= layer <= depth]:
            raise ValueError(f"layer(s) {wrong} out of range: the model has 0 … {depth}")
        self._layers, self._last, self._stop = set(layers), max(layers, default=0), stop_early
        self._pool: Pooling = torch.Tensor.detach
        self.states: dict[int, torch.Tensor] = {}

    @contextmanager
    def __call__(self, pool: Pooling = torch.Tensor.detach) -> Iterator["Capture"]:
        """Within this context the model's passes fill `states` with `pool(stream)`, taken at once, so that no whole stream is kept;
        with `stop_early` they end after the last wanted layer."""
        self.states, self._pool = {}, pool
        handles = (
            [self._blocks[0].register_forward_pre_hook(self._input, with_kwargs=True)] if 0 in self._layers else []
        )
        handles += [self._blocks[i - 1].register_forward_hook(self._output(i)) for i in self._layers if i > 0]
        try:
            yield self
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(0, args[0] if args else kwargs["hidden_states"])

    def _output(self, layer: int) -> Any:
        return lambda module, args, output: self._keep(layer, output[0] if isinstance(output, tuple) else output)

    def _keep(self, layer: int, stream: torch.Tensor) -> None:
        if layer not in self.states:
            self.states[layer] = self._pool(stream)
        if self._stop and layer == self._last:
            raise _Stop


def pool_states(stream: torch.Tensor, position: str, own: torch.Tensor) -> torch.Tensor:
    """States (B, D) at a position of a left-padded stream (B, T, D); `own` (B, T) marks the question's own tokens, for `mean`."""
    if position == "last":
        return stream[:, -1].float()
    weights = own.to(stream.device, torch.float32).unsqueeze(-1)
    return (stream.float() * weights).sum(1) / weights.sum(1)


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) that count from each row's first real token, so that padding changes no state."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.inference_mode()
def prompt_states(
    model: nn.Module, depth: int, encoded: Encoded, position: str, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """States (B, D) at some layers of a model (or of its first blocks) from one pass that ends after the last of them."""
    capture = Capture(model, depth, layers, stop_early=True)
    with capture(lambda stream: pool_states(stream, position, encoded.own)):
        model(**encoded.inputs(), use_cache=False)
    return capture.states
