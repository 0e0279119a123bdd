"""Tensors that are the same whenever a row is shown, made once and kept.

In: rows, and what makes one tensor for each. Out: their tensors. Refuses to know: what the tensors are.
"""

from collections.abc import Callable, Sequence

import torch

from ka2l_ray.finetune.examples import TokenizedRow


class KeptByRow:
    """At most `most_bytes` are kept, on the device on which they were made; what is beyond is made each time."""

    def __init__(self, most_bytes: int) -> None:
        self._left_bytes = most_bytes
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}

    def __call__(
        self, rows: Sequence[TokenizedRow], make: Callable[[list[TokenizedRow]], Sequence[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """A tensor for each row; `make` is called at most once, for distinct rows that are not kept."""
        keys = [tuple(r.ids) for r in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._kept}
        made = dict(zip(new, make(list(new.values())), strict=True)) if new else {}
        found = [made[key] if key in made else self._kept[key] for key in keys]
        for key, tensor in made.items():
            if tensor.nbytes <= self._left_bytes:
                self._kept[key] = tensor.clone()
                self._left_bytes -= tensor.nbytes
        return found
