"""From the prompts of a batch to the next tokens of their answers, by what the model keeps of earlier tokens.

In: the prompt pass of a batch. Out: a `Continuation` of some of its rows, each repeated once per answer: token by token
the logits of the next one. Which one a model needs is its `abilities.Abilities`.
Refuses to know: sampling, where answers end.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from ka2l_ray.models.prefix import repeat_rows, select_rows

Forward = Callable[..., Any]
"""A pass of a model: keyword arguments as Hugging Face names them → its output."""
NOT_KEPT = {"logits", "loss", "aux_loss", "router_logits", "hidden_states", "attentions"}
"""What an output says about its own tokens only; all else is handed to the next pass."""


class Continuation(Protocol):
    """R answers of a batch that have not ended."""

    def select(self, indices: torch.Tensor) -> None:
        """Go on with the answers `indices` of the R alone."""

    def step(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits (R, V) after tokens (R,) at positions (R, 1); `mask` covers prompt and answer (R, T), or the tokens
        alone (R, 1)."""
        ...


class RepeatedCache:
    """Answers that start from copies of their prompts' cache. Without `reuse` the prompt pass keeps its own."""

    def __init__(self, forward: Forward, output: Any, rows: torch.Tensor, copies: int, reuse: bool) -> None:
        # Most families call it past_key_values, state space models cache_params.
        self._name = next(name for name, value in output.items() if isinstance(value, Cache))
        self._cache: Any = output[self._name] if reuse else copy.deepcopy(output[self._name])
        self._forward = forward
        if len(rows) < len(output.logits):
            select_rows(self._cache, rows)
        repeat_rows(self._cache, len(rows), copies)

    def select(self, indices: torch.Tensor) -> None:
        """Drop the rows of answers that have ended."""
        select_rows(self._cache, indices)

    def step(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One pass over the new tokens."""
        inputs = {"input_ids": tokens[:, None], "attention_mask": mask, "position_ids": positions}
        return self._forward(**inputs, **{self._name: self._cache}, use_cache=True).logits[:, -1]


class PromptsReadAgain:
    """Answers whose prompts are read once more each, for a model whose memory of them cannot be repeated. Rows of
    answers that have ended stay in the batch, because they cannot be left out either."""

    def __init__(self, forward: Forward, inputs: Mapping[str, Any], rows: torch.Tensor, copies: int) -> None:
        self._forward, self._inputs = forward, repeated(inputs, rows, copies)
        self._kept = self._what_is_kept(forward(**self._inputs, use_cache=True))
        self._mask, self._positions = self._inputs["attention_mask"], self._inputs["position_ids"][:, -1:]
        self._active = torch.arange(len(self._mask), device=rows.device)

    @staticmethod
    def _what_is_kept(output: Any) -> dict[str, Any]:
        return {name: value for name, value in output.items() if name not in NOT_KEPT and value is not None}

    def select(self, indices: torch.Tensor) -> None:
        """Remember which rows are still wanted."""
        self._active = self._active[indices]

    def step(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One pass over a new token of every row; those of ended answers get a token that nobody reads."""
        ids = tokens.new_zeros(len(self._mask), 1)
        ids[self._active, 0] = tokens
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], -1)
        self._positions = self._positions + 1
        inputs = {"input_ids": ids, "attention_mask": self._mask, "position_ids": self._positions}
        output = self._forward(**inputs, **self._kept, use_cache=True)
        self._kept = self._what_is_kept(output)
        return output.logits[self._active, -1]


class TextsReadAgain:
    """Answers for which prompt and answer so far are read again with every token."""

    def __init__(self, forward: Forward, inputs: Mapping[str, Any], rows: torch.Tensor, copies: int) -> None:
        again = repeated(inputs, rows, copies)
        self._forward, self._ids, self._positions = forward, again["input_ids"], again["position_ids"]

    def select(self, indices: torch.Tensor) -> None:
        """Drop the texts of answers that have ended."""
        self._ids, self._positions = self._ids[indices], self._positions[indices]

    def step(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One pass over the whole texts."""
        self._ids = torch.cat([self._ids, tokens[:, None]], -1)
        self._positions = torch.cat([self._positions, positions], -1)
        inputs = {"input_ids": self._ids, "attention_mask": mask, "position_ids": self._positions}
        return self._forward(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


def repeated(inputs: Mapping[str, Any], rows: torch.Tensor, copies: int) -> dict[str, Any]:
    """Some rows of a first pass' token ids, mask and positions, each `copies` times."""
    index = rows.repeat_interleave(copies)
    return {name: inputs[name][index] for name in ("input_ids", "attention_mask", "position_ids")}
