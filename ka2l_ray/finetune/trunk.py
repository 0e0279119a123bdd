"""What enters the first trained block, computed once for rows that every epoch shows again.

In: a model whose first blocks are frozen, rows. Out: hidden states (B, T, D), and passes that begin with them.
With adapters in the last blocks alone, the blocks before them give a row the same states in every epoch: they are run
once per row, every later step runs the last blocks only, and neither losses nor gradients change.
Refuses to know: losses, ranks, optimisers, adapters.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ka2l_ray.finetune.examples import TokenizedRow, collate
from ka2l_ray.finetune.kept import KeptByRow
from ka2l_ray.models import attention
from ka2l_ray.models.activations import blocks

MOST_BYTES = 2**30
"""Memory for states that are kept, on the model's device; what of rows is beyond it is computed each time."""
TOLERANCE = 1e-3
"""Largest difference in a last state, relative to its largest number, that rounding explains."""


class _AtFirstTrained(Exception):
    """Ends a pass where the trained blocks begin."""


def frozen_blocks(model: PreTrainedModel) -> int:
    """How many blocks come before the first in which anything is trained; 0 where something before the blocks is."""
    all_blocks = blocks(model, model.config.get_text_config().num_hidden_layers)
    trained = [any(p.requires_grad for p in block.parameters()) for block in all_blocks]
    after = model.get_output_embeddings()
    inside = {id(p) for module in (*all_blocks, *([after] if after is not None else [])) for p in module.parameters()}
    if any(p.requires_grad and id(p) not in inside for p in model.parameters()):
        return 0
    return trained.index(True) if True in trained else 0


class Trunk:
    """The first `depth` blocks of `model`, which must not change, drop anything out or hand later blocks more than the
    hidden states. `shared` are the tokens that all rows begin with (see `passes`), `kept_bytes` bounds what is kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        depth: int,
        device: torch.device,
        pad_token: int,
        shared: tuple[int, ...] = (),
        kept_bytes: int = MOST_BYTES,
    ) -> None:
        all_blocks = blocks(model, model.config.get_text_config().num_hidden_layers)
        self._model: Any = model
        self._below, self._above = list(all_blocks[:depth]), all_blocks[depth]
        self._device, self._pad_token, self._shared, self._kept = device, pad_token, shared, KeptByRow(kept_bytes)
        self._in_tuples = False
        self._keys_values: attention.KeysValues = {}
        self.of_shared = self._read_shared() if shared else None
        """States (1, P, D) of the shared tokens; None where there are none."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        rows: Sequence[TokenizedRow],
        device: torch.device,
        pad_token: int,
        shared: tuple[int, ...],
    ) -> "Trunk | None":
        """The blocks before the first that is trained; None where there are none, or where a try on `rows` shows that
        later blocks depend on more of them than their states."""
        depth = frozen_blocks(model)
        if not depth or not cls(model, depth, device, pad_token)._hands_on_states_alone(rows):
            return None
        return cls(model, depth, device, pad_token, shared)

    @torch.no_grad()
    def _hands_on_states_alone(self, rows: Sequence[TokenizedRow]) -> bool:
        inputs = {k: v.to(self._device) for k, v in collate(rows, self._pad_token).items() if k != "labels"}
        real, decoder = inputs["attention_mask"].bool(), self._model.get_decoder()
        whole = decoder(**inputs, use_cache=False).last_hidden_state
        try:
            with self.skipped(self(rows)):
                part = decoder(**inputs, use_cache=False).last_hidden_state
        except Exception:  # what a block says that misses what the skipped ones leave is the model's own affair
            return False
        whole, part = whole[real].float(), part[real].float()
        return bool((whole - part).abs().max() <= TOLERANCE * whole.abs().max())

    @torch.no_grad()
    def __call__(self, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        """States (B, T, D) of the rows' own tokens, padded with zeros on the right, as `examples.collate` pads."""
        return pad_sequence(self._kept(rows, self._read), batch_first=True)

    @contextmanager
    def skipped(self, states: torch.Tensor) -> Iterator[None]:
        """Within this context a pass runs none of these blocks, and `states` (B, T, D) enter the next."""

        def unchanged(*args: Any, **kwargs: Any) -> Any:
            stream = args[0] if args else kwargs["hidden_states"]
            return (stream,) if self._in_tuples else stream

        def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

        own = [vars(block).get("forward") for block in self._below]  # something around the model may have set one
        for block in self._below:
            block.forward = unchanged
        try:
            with self._above.register_forward_pre_hook(entering, with_kwargs=True):
                yield
        finally:
            for block, forward in zip(self._below, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def _read_shared(self) -> torch.Tensor:
        with attention.passes_with(recorded=self._keys_values):
            return self._stream(input_ids=torch.tensor([self._shared], device=self._device))

    def _read(self, rows: Sequence[TokenizedRow]) -> list[torch.Tensor]:
        """Per row the states (T, D) of its own tokens."""
        own = len(self._shared)
        inputs = {k: v.to(self._device) for k, v in collate(rows, self._pad_token, own).items() if k != "labels"}
        if not own:
            stream = self._stream(**inputs)
        else:
            positions = inputs["position_ids"] = own_positions(inputs["attention_mask"], own)
            last = own + positions.shape[1] - 1
            with attention.passes_with(attention.PrefixStates(self._keys_values, positions, last)):
                stream = self._stream(**inputs)
        return [stream[i, : len(row.ids) - own] for i, row in enumerate(rows)]

    @torch.no_grad()
    def _stream(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The states (B, T, D) that enter the block after these, of a pass that ends there."""
        found: list[torch.Tensor] = []

        def reached(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _AtFirstTrained

        def noted(module: nn.Module, args: Any, output: Any) -> None:
            self._in_tuples = isinstance(output, tuple)

        with ExitStack() as hooks, suppress(_AtFirstTrained):
            hooks.enter_context(self._below[-1].register_forward_hook(noted))
            hooks.enter_context(self._above.register_forward_pre_hook(reached, with_kwargs=True))
            self._model(**inputs, use_cache=False)
        return found[0]


def own_positions(mask: torch.Tensor, shared: int) -> torch.Tensor:
    """Positions (B, T) in whole rows of tokens that come after `shared` others, from a right-padded mask (B, T)."""
    return (mask.cumsum(-1) - 1).clamp(min=0) + shared
