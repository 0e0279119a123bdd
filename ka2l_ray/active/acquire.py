"""Acquisition policies: which pool questions are worth an answer.

In: a stream of scored pool rows. Out: the best n that were not bought yet, each with its reason.
Refuses to know: tables, Ray, models. A policy ranks; `select` streams, so memory grows with the budget, not with the pool.
"""

import hashlib
import heapq
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Protocol

from ka2l_ray.config import Strategy


@dataclass(frozen=True)
class Scored:
    """One pool question; `truth` is None outside the world."""

    id: str
    p_unknown: float
    truth: str | None


@dataclass(frozen=True)
class Choice:
    id: str
    reason: str


class Policy(Protocol):
    """A strategy as a ranking."""

    @property
    def decodes(self) -> bool:
        """Whether it also spends on questions generated from the states of those it chose."""
        ...

    def priority(self, row: Scored) -> tuple[float, str]:
        """(higher is bought first, why)."""
        ...


@dataclass(frozen=True)
class ByProbe:
    """`ka2l`: the questions that the probe holds most likely unknown."""

    decodes: bool = True

    def priority(self, row: Scored) -> tuple[float, str]:
        return row.p_unknown, f"p_unknown {row.p_unknown:.3f}"


@dataclass(frozen=True)
class AtRandom:
    """`random`: a uniform draw, a function of (seed, id) alone."""

    seed: int
    decodes: bool = False

    def priority(self, row: Scored) -> tuple[float, str]:
        return unit(f"random-{self.seed}", row.id), "drawn at random"


@dataclass(frozen=True)
class Oracle:
    """`oracle` (world only): truly unseen facts first; the ceiling of every strategy that buys what the model never saw."""

    seed: int
    decodes: bool = False

    def priority(self, row: Scored) -> tuple[float, str]:
        if row.truth is None:
            raise ValueError("active.strategies: `oracle` needs corpus.source = world, where the truth is known")
        return float(row.truth == "unseen") + unit(f"oracle-{self.seed}", row.id), f"truth: {row.truth}"


def policy(strategy: Strategy, seed: int) -> Policy:
    """The policy of a strategy's name."""
    return {"ka2l": ByProbe(), "random": AtRandom(seed), "oracle": Oracle(seed)}[strategy]


def select(chosen_by: Policy, rows: Iterable[Scored], exclude: Set[str], count: int) -> list[Choice]:
    """The `count` best rows outside `exclude`, best first; equal priorities in the order of their ids."""
    ranked = ((-priority, row.id, reason) for row in rows if row.id not in exclude for priority, reason in [chosen_by.priority(row)])
    return [Choice(i, reason) for _, i, reason in heapq.nsmallest(count, ranked)]


def select_replay(rows: Iterable[Scored], exclude: Set[str], count: int, seed: int) -> list[str]:
    """Ids of `count` unbought questions, half of them predicted unknown (p >= 0.5) as far as there are enough; sorted.

    The order is a hash of (seed, id), so that rounds replay the same questions as long as they stay unbought.
    """
    sides: tuple[list[tuple[float, str]], list[tuple[float, str]]] = ([], [])
    for row in rows:
        if row.id not in exclude:
            side = sides[row.p_unknown >= 0.5]
            heapq.heappush(side, (-unit(f"replay-{seed}", row.id), row.id))
            if len(side) > count:
                heapq.heappop(side)
    known, unknown = (sorted((-u, i) for u, i in side) for side in sides)
    half = min(count // 2, len(unknown))
    taken = known[: count - half]
    taken += unknown[: count - len(taken)]
    return sorted(i for _, i in taken)


def unit(salt: str, question_id: str) -> float:
    """A uniform number in [0, 1) that depends only on its arguments."""
    digest = hashlib.blake2b(f"{salt}\x1f{question_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
