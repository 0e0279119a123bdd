"""The base model's logits that KL is taken to, computed once for rows that every epoch shows again.

In: passes of the base model, replayed rows. Out: logits (A, V) at `examples.held_to_base`.
Refuses to know: how the base model is had (a frozen copy, or the trained one without its adapters).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from ka2l_ray.finetune.examples import TokenizedRow
from ka2l_ray.finetune.kept import KeptByRow
from ka2l_ray.finetune.passes import Passes

MOST_BYTES = 2**28
"""Memory for logits that are kept, on the model's device; rows beyond it are computed each time."""


class BaseLogits:
    """Logits of a model that does not change, at least not within the context `unchanged`.

    `kept_bytes` bounds what is kept of them; with 0 every call makes one pass, as ranks need that gather weights
    together.
    """

    def __init__(
        self,
        passes: Passes,
        kept_bytes: int = MOST_BYTES,
        unchanged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._passes, self._kept, self._unchanged = passes, KeptByRow(kept_bytes), unchanged

    @torch.no_grad()
    def __call__(self, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        """Logits (A, V) of the answer tokens of rows, without end tokens, row after row; (0, V) for no rows."""
        if not rows:
            return self._pass([])
        return torch.cat(self._kept(rows, self._made))

    def _made(self, rows: list[TokenizedRow]) -> Sequence[torch.Tensor]:
        """Per row its logits (a, V), for answers of a tokens before their end token."""
        answers = self._pass(rows).split([r.answer_length for r in rows])
        return [logits[:-1] for logits in answers]

    def _pass(self, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        """Logits (A, V) of the rows' answer tokens."""
        with self._unchanged():
            return self._passes(rows)[0]
