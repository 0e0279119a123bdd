"""Which rows go through the model together, and what is tried when memory runs out.

In: the rows' lengths in tokens, limits. Out: batches of row indices; after the work, the rows that failed.
What an actor learns of its memory holds for all that it plans afterwards: see `Allowance`.
Refuses to know: models, tokens, Ray.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ka2l_ray.config import Pool
from ka2l_ray.dataflow.failures import ActorBroken, Verdict, is_out_of_memory, named, on_error

log = logging.getLogger("ka2l")


@dataclass(frozen=True)
class Limits:
    """What one batch may hold: `rows`, and `tokens` with padding (where answers are written: of every copy, with room for its answer)."""

    rows: int = 128
    tokens: int = 32_768

    @classmethod
    def of(cls, pool: Pool) -> "Limits":
        return cls(pool.batch_rows, pool.batch_tokens)


@dataclass
class Allowance:
    """The limits that hold now: as given, and lower once memory ran out, so that it does not run out at every later batch too."""

    limits: Limits
    out_of_memory: int = 0
    """How often memory ran out."""

    def exceeded_by(self, tokens: int) -> None:
        """A batch of so many tokens did not fit: plan half of it at most from now on."""
        self.out_of_memory += 1
        if (fewer := max(1, tokens // 2)) < self.limits.tokens:
            self.limits = replace(self.limits, tokens=fewer)
            log.warning(
                "memory ran out at a batch of %d tokens: batches of this actor hold at most %d from now on",
                tokens,
                fewer,
            )


@dataclass(frozen=True)
class Load:
    """What rows weigh: `lengths` in tokens; a row of L counts `copies` × (L + `room`)."""

    lengths: Sequence[int]
    copies: int = 1
    room: int = 0

    def tokens(self, batch: Sequence[int]) -> int:
        """Of a batch, padding counted."""
        return len(batch) * self.copies * (max(self.lengths[i] for i in batch) + self.room)

    def longest_first(self) -> list[int]:
        return sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])

    def first_batch(self, rows: Sequence[int], limits: Limits) -> list[int]:
        """As many of `rows`, longest first, as the limits allow; at least one."""
        return list(rows[: max(1, min(limits.rows, limits.tokens // self.tokens(rows[:1])))])


def plan(load: Load, limits: Limits) -> list[list[int]]:
    """Batches of row indices, longest rows first, so that rows of like length share a batch and too large a batch shows at once.

    A row larger than the limit is a batch of its own.
    """
    batches: list[list[int]] = []
    rows = load.longest_first()
    while rows:
        batches.append(load.first_batch(rows, limits))
        rows = rows[len(batches[-1]) :]
    return batches


def run(load: Load, allowance: Allowance, work: Callable[[list[int]], None]) -> dict[int, Exception]:
    """Do the work of every row, in batches as `plan` makes them; returns the error of each row that failed.

    A batch that runs out of memory is halved once, then done row by row, and later batches are planned smaller; any other failure goes
    row by row at once, so that a poisonous row costs itself alone. Raises `ActorBroken` for an error that every later batch would meet
    too, such as a CUDA error.
    """
    failed: dict[int, Exception] = {}
    rows = load.longest_first()
    while rows:
        batch = load.first_batch(rows, allowance.limits)
        rows = rows[len(batch) :]
        failed |= _attempt(batch, load, allowance, work)
    return failed


def _attempt(
    batch: list[int], load: Load, allowance: Allowance, work: Callable[[list[int]], None]
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
                failed[part[0]] = _alone(error)
        free_cache()  # outside the handler: the error's traceback holds the batch's tensors
        if memory:
            allowance.exceeded_by(load.tokens(part))
        if len(part) > 1:
            size = (len(part) + 1) // 2 if memory and len(part) == len(batch) else 1
            waiting += [part[i : i + size] for i in reversed(range(0, len(part), size))]
    return failed


def _alone(error: Exception) -> Exception:
    """The error without the frames and errors that it came through: they hold the batch's tensors, its whole cache of keys and values."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def free_cache() -> None:
    """Give cached blocks of GPU memory back, so that a smaller batch finds room in one piece; nothing in a process that has used no GPU."""
    torch.cuda.empty_cache()
