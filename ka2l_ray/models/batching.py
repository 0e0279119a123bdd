"""Which rows go through the model together, and what is tried when memory runs out.

In: the rows' lengths in tokens, limits. Out: batches of row numbers; after the work, the rows that failed.
Once memory runs out, all later batches of the actor are smaller: see `AdaptiveLimits`.
Refuses to know: models, tokens, Ray.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ka2l_ray.config import Pool
from ka2l_ray.dataflow.failures import ActorBroken, Verdict, is_out_of_memory, named, on_error

log = logging.getLogger("ka2l")


@dataclass(frozen=True)
class Limits:
    """The most that one batch may contain: `rows`, and `tokens` with padding; where answers are generated, the tokens
    of every copy of a prompt and of its answer count."""

    rows: int = 128
    tokens: int = 32_768

    @classmethod
    def of(cls, pool: Pool) -> "Limits":
        """The limits that a pool's configuration sets."""
        return cls(pool.batch_rows, pool.batch_tokens)


@dataclass
class AdaptiveLimits:
    """The limits in force: those given, lowered each time that memory runs out, so that not every later batch runs out
    again."""

    limits: Limits
    out_of_memory: int = 0
    """How often memory ran out."""

    def shrink(self, tokens: int) -> None:
        """A batch of `tokens` did not fit: from now on batches contain at most half of that."""
        self.out_of_memory += 1
        if (fewer := max(1, tokens // 2)) < self.limits.tokens:
            self.limits = replace(self.limits, tokens=fewer)
            log.warning(
                "out of memory in a batch of %d tokens: from now on, batches of this actor contain at most %d tokens",
                tokens,
                fewer,
            )


@dataclass(frozen=True)
class Load:
    """The size of rows by row number: a row of `lengths[i]` tokens counts `copies` × (`lengths[i]` + `new_tokens`)."""

    lengths: Mapping[int, int]
    copies: int = 1
    new_tokens: int = 0

    def tokens(self, batch: Sequence[int]) -> int:
        """Tokens of a batch of row numbers, padding included."""
        return len(batch) * self.copies * (max(self.lengths[i] for i in batch) + self.new_tokens)


def run_batches(load: Load, limits: AdaptiveLimits, work: Callable[[list[int]], None]) -> dict[int, Exception]:
    """Do the work of every row, batch by batch; returns the error of each row that failed.

    A batch takes as many rows as the limits allow, at least one, longest first: rows of similar length share a batch,
    and a batch that is too large fails early. A batch that runs out of memory is halved once, then done row by row, and
    later batches are smaller; after any other failure a batch is done row by row, so that a bad row fails only itself.
    Raises `ActorBroken` for an error that every later batch would meet too, such as a CUDA error.
    """
    failed: dict[int, Exception] = {}
    rows = sorted(load.lengths, key=lambda i: -load.lengths[i])
    while rows:
        size = max(1, min(limits.limits.rows, limits.limits.tokens // load.tokens(rows[:1])))
        batch, rows = rows[:size], rows[size:]
        failed |= _run_batch(batch, load, limits, work)
    return failed


def _run_batch(
    batch: list[int], load: Load, limits: AdaptiveLimits, work: Callable[[list[int]], None]
) -> dict[int, Exception]:
    failed: dict[int, Exception] = {}
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        try:
            work(part)
            continue
        except Exception as error:  # the model's code and the data are the user's
            if on_error(error, len(part)) == Verdict.REPLACE_ACTOR:
                raise ActorBroken(named(error)) from error
            memory = is_out_of_memory(error)
            if len(part) == 1:
                failed[part[0]] = _without_frames(error)
        # Outside the handler, because the error's traceback keeps the batch's tensors alive. Frees cached blocks, so
        # that a smaller batch finds contiguous memory; does nothing in a process that has used no GPU.
        torch.cuda.empty_cache()
        if memory:
            limits.shrink(load.tokens(part))
        if len(part) > 1:
            size = (len(part) + 1) // 2 if memory and len(part) == len(batch) else 1
            waiting += [part[i : i + size] for i in reversed(range(0, len(part), size))]
    return failed


def _without_frames(error: Exception) -> Exception:
    """The error without its traceback, cause and context: their frames keep the batch's tensors alive, its whole KV
    cache included."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
