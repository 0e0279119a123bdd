"""A model's head, shown some states alone.

In: a model, places in a batch. Out: a context in which its passes make logits for those places and no others.
Refuses to know: what the logits are for.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def predicting(model: PreTrainedModel, at: torch.Tensor) -> Iterator[None]:
    """Within this context the head sees of states (B, T, D) only those `at` (A,) among the B * T, as (1, A, D), and so
    a pass returns logits (1, A, V); a model that has no head of its own returns all of them."""

    def gathered(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].flatten(0, 1)[at].unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    with head.register_forward_pre_hook(gathered) if head is not None else nullcontext():
        yield


def logits_at(logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Logits (A, V) of a pass within `predicting`, from what the model returned."""
    flat = logits.flatten(0, 1)
    return flat if len(flat) == len(at) else flat[at]
