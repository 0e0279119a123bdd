"""The base model's logits that KL is taken to, computed once for rows that every epoch shows again.

In: passes of the base model, replayed rows. Out: logits (A, V) at `losses.kl_positions`.
Refuses to know: how the base model is had (a frozen copy, or the trained one without its adapters).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from ka2l_ray.finetune.examples import TokenizedRow
from ka2l_ray.finetune.losses import kl_positions
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
        self._passes, self._left_bytes, self._unchanged = passes, kept_bytes, unchanged
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        """Logits (A, V) of the answer tokens of rows, without end tokens, row after row; (0, V) for no rows."""
        if not rows:
            return self._pass([])[0][0, :0]
        keys = [tuple(r.ids) for r in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
        made = dict(zip(new, self._made(list(new.values())), strict=True)) if new else {}
        found = torch.cat([made[key] if key in made else self._kept[key] for key in keys])
        for key, logits in made.items():
            if logits.nbytes <= self._left_bytes:
                self._kept[key] = logits.clone()
                self._left_bytes -= logits.nbytes
        return found

    def _made(self, rows: list[TokenizedRow]) -> Sequence[torch.Tensor]:
        """Per row its logits (a, V), for answers of a tokens before their end token."""
        logits, labels = self._pass(rows)
        at = kl_positions(labels, torch.ones(len(rows), dtype=torch.bool, device=labels.device))
        return logits[at].split([r.answer_length - 1 for r in rows])

    def _pass(self, rows: Sequence[TokenizedRow]) -> tuple[torch.Tensor, torch.Tensor]:
        with self._unchanged():
            return self._passes(rows)
