"""Which rows go through the model together, and what is tried when memory runs out.

In: the rows' lengths in tokens, limits. Out: batches of row indices; after the work, the rows that failed.
Refuses to know: models, tokens, Ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ka2l_ray.config import Pool


@dataclass(frozen=True)
class Limits:
    """What one batch may hold: `rows`, and `tokens` with padding (where answers are written: of every copy, with room for its answer)."""

    rows: int = 128
    tokens: int = 32_768

    @classmethod
    def of(cls, pool: Pool) -> "Limits":
        return cls(pool.batch_rows, pool.batch_tokens)


def plan(lengths: Sequence[int], limits: Limits, copies: int = 1, room: int = 0) -> list[list[int]]:
    """Batches of row indices, longest rows first, so that rows of like length share a batch and too large a batch shows at once.

    A row of L tokens counts `copies` × (L + `room`). A row larger than the limit is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        most = limits.tokens // (copies * (lengths[batches[-1][0]] + room)) if batches else 0
        if batches and len(batches[-1]) < min(limits.rows, most):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def run(batches: Sequence[list[int]], work: Callable[[list[int]], None]) -> dict[int, Exception]:
    """Do the work of every batch; returns the error of each row that failed.

    A batch that runs out of memory is halved once, then done row by row; any other failure goes row by row at once, so that a
    poisonous row costs itself alone.
    """
    failed: dict[int, Exception] = {}
    waiting = [(batch, len(batch)) for batch in reversed(batches)]
    while waiting:
        batch, planned = waiting.pop()
        try:
            work(batch)
            continue
        except Exception as error:  # the model's code and the data are the user's: any failure becomes a row's error
            if len(batch) == 1:
                failed[batch[0]] = error
                continue
            size = (len(batch) + 1) // 2 if is_out_of_memory(error) and len(batch) == planned else 1
        free_cache()  # outside the handler: the error's traceback holds the batch's tensors
        waiting += [(batch[i : i + size], planned) for i in reversed(range(0, len(batch), size))]
    return failed


def free_cache() -> None:
    """Give cached blocks of GPU memory back, so that a smaller batch finds room in one piece."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
