"""Hidden states, read by forward hooks on the blocks of a causal LM.

In: token ids, layers, positions. Out: float32 states (B, D) per (position, layer), whatever the model's own precision;
layers are numbered as in `schema`. Refuses to know: text, sampling, Ray.
Hooks see the raw residual stream, so `last_L` is taken before the final norm.
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
        """Positions (B, T) in the whole prompt."""
        return position_ids(self.mask) + self.prefix_length

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


Pooling = Callable[[torch.Tensor], torch.Tensor]


class _StopForward(Exception):
    """Ends a forward pass once the last wanted layer has been seen."""


class Capture:
    """Keeps a pooled copy of the residual stream (B, T, D) at some layers while a forward pass runs.

    Raises `ValueError` for layers outside 0 … `depth`.
    """

    def __init__(self, model: nn.Module, depth: int, layers: Sequence[int], stop_early: bool = False) -> None:
        self._blocks = blocks(model, depth)
        if wrong := [layer for layer in layers if not 0 <= layer <= depth]:
            raise ValueError(f"layer(s) {wrong} out of range: the model has 0 … {depth}")
        self._layers, self._last, self._stop = set(layers), max(layers, default=0), stop_early
        self._pool: Pooling = torch.Tensor.detach
        self.states: dict[int, torch.Tensor] = {}

    @contextmanager
    def __call__(self, pool: Pooling = torch.Tensor.detach) -> Iterator["Capture"]:
        """Within this context the model's passes fill `states` with `pool(stream)` per layer, so that no whole stream
        is kept; with `stop_early` a pass ends after the last wanted layer."""
        self.states, self._pool = {}, pool
        handles = (
            [self._blocks[0].register_forward_pre_hook(self._input, with_kwargs=True)] if 0 in self._layers else []
        )
        handles += [self._blocks[i - 1].register_forward_hook(self._output(i)) for i in self._layers if i > 0]
        try:
            yield self
        except _StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(0, args[0] if args else kwargs["hidden_states"])

    def _output(self, layer: int) -> Callable[..., None]:
        return lambda module, args, output: self._keep(layer, output[0] if isinstance(output, tuple) else output)

    def _keep(self, layer: int, stream: torch.Tensor) -> None:
        if layer not in self.states:
            self.states[layer] = self._pool(stream)
        if self._stop and layer == self._last:
            raise _StopForward


def pool_states(stream: torch.Tensor, position: str, question_mask: torch.Tensor) -> torch.Tensor:
    """Float32 states (B, D) of a left-padded stream (B, T, D): at its last token, or the mean over the question's own
    tokens, which `question_mask` (B, T) marks."""
    if position == "last":
        return stream[:, -1].float()
    weights = question_mask.to(stream.device, torch.float32).unsqueeze(-1)
    return (stream.float() * weights).sum(1) / weights.sum(1)


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) counted from each row's first real token, so that padding changes no state."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.inference_mode()
def prompt_states(
    model: nn.Module, depth: int, encoded: Encoded, position: str, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """States (B, D) per layer of a model (or of its first `depth` blocks), from one pass that ends after the last of
    the layers.

    Raises `ValueError` for layers that do not exist, `ConfigError` for a model whose blocks are not found.
    """
    capture = Capture(model, depth, layers, stop_early=True)
    with capture(lambda stream: pool_states(stream, position, encoded.question_mask)):
        model(**encoded.inputs(), use_cache=False)
    return capture.states
