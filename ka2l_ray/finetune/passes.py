"""Passes over parts of a batch that read no token twice and make no logits that no loss looks at.

In: tokenised rows, and what runs the model. Out: logits of the answer tokens, and the tokens.
Two things make a step on short answers to few-shot prompts cheap, and change neither losses nor gradients: the tokens
that all rows begin with are read once per pass, their gradient being the sum over the rows (`attention`), and the head
sees only the states from which an answer's tokens are predicted.
Refuses to know: losses, ranks, optimisers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from ka2l_ray.finetune.examples import TokenizedRow, collate
from ka2l_ray.finetune.losses import IGNORED
from ka2l_ray.finetune.trunk import Trunk, own_positions
from ka2l_ray.models import attention
from ka2l_ray.models.heads import logits_at, predicting

WORTH_SHARING = 16
"""Tokens that all rows must begin with before a pass of their own over them saves time."""


def drops_out(model: nn.Module) -> bool:
    """Whether training drops out anything: rows that share a prefix would share what is dropped of it, and attention
    over it drops nothing."""
    modules = list(model.modules())
    in_layers = any(isinstance(m, nn.Dropout) and m.p > 0 for m in modules)
    return in_layers or any(getattr(m, "attention_dropout", 0) or 0 for m in modules if not isinstance(m, nn.Dropout))


def shared_tokens(rows: Iterable[TokenizedRow]) -> tuple[int, ...]:
    """What all rows begin with, short of the last token of each prompt; empty where that is too little to be worth a
    pass."""
    shared: Sequence[int] | None = None
    for row in rows:
        most = row.ids[: row.prompt_length - 1]
        same = most if shared is None else shared[: _equal(shared, most)]
        if len(same) < WORTH_SHARING:
            return ()
        shared = same
    return tuple(shared or ())


def _equal(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


class Passes:
    """Runs `model`, rows by `call` where something around it does more (DeepSpeed's engine).

    `shared` are tokens that all rows begin with, none for a model whose attention is not `attention.attention_forward`.
    `trunk` are first blocks that are run once per row, for a model that they hand nothing else.
    `pad_token` may be any token that the model has.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        pad_token: int,
        shared: tuple[int, ...] = (),
        call: Callable[..., Any] | None = None,
        trunk: Trunk | None = None,
    ) -> None:
        self._model: Any = model
        self._trunk = trunk
        self._call, self._device, self._pad_token, self._shared = call or model, device, pad_token, shared

    def __call__(self, rows: Sequence[TokenizedRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (A, V) that predict the answer tokens of rows, row after row, and those tokens (A,). No rows are one
        of padding without an answer, so that every rank joins the collectives of a step."""
        shared = self._shared if rows else ()
        inputs = {k: v.to(self._device) for k, v in collate(rows, self._pad_token, len(shared)).items()}
        answers = inputs.pop("labels")[:, 1:]
        at = pad(answers != IGNORED, (0, 1)).flatten().nonzero().squeeze(-1)
        states = self._trunk(rows) if self._trunk is not None and rows else None
        with self._after(shared, inputs), self._skipping(states), predicting(self._model, at):
            logits = self._call(**inputs).logits
        return logits_at(logits, at), answers[answers != IGNORED]

    @contextmanager
    def _after(self, shared: tuple[int, ...], inputs: dict[str, torch.Tensor]) -> Iterator[None]:
        """Within this context a pass of `inputs`, which get their positions, sees the shared tokens before its own."""
        if not shared:
            yield
            return
        positions = inputs["position_ids"] = own_positions(inputs["attention_mask"], len(shared))
        recorded: attention.KeysValues = {}
        ids, states = torch.tensor([shared], device=self._device), self._trunk.of_shared if self._trunk else None
        with attention.passes_with(recorded=recorded), self._skipping(states), predicting(self._model, ids[0, :0]):
            self._model(input_ids=ids)
        last = len(shared) + positions.shape[1] - 1
        with attention.passes_with(attention.PrefixStates(recorded, positions, last)):
            yield

    def _skipping(self, states: torch.Tensor | None) -> AbstractContextManager[None]:
        return self._trunk.skipped(states) if self._trunk is not None and states is not None else nullcontext()
