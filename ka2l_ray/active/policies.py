"""Acquisition policies: which pool questions are worth an answer.

In: a stream of pool rows with what is known about them. Out: the best n that were not bought yet, each with its reason.
Refuses to know: tables, Ray, models. Rankings stream, so memory grows with the budget, not with the pool; policies that
compare states keep at most `acquire.candidates` of them.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from ka2l_ray.config import Quadrant
from ka2l_ray.errors import ConfigError
from ka2l_ray.hashing import uniform


@dataclass(frozen=True)
class PoolRow:
    """One pool question with what a policy may use; what was not collected is None.

    `state` (D,) is the hidden state that the probe reads, `likelihood` is -log p of the greedy answer in nats, `wrong`
    whether the base model's greedy answer at eval is.
    """

    id: str
    p_unknown: float | None = None
    truth: str | None = None
    group: str | None = None
    entropy_nats: float | None = None
    likelihood: float | None = None
    quadrant: str | None = None
    state: np.ndarray | None = None
    abstains: bool | None = None
    wrong: bool | None = None


@dataclass(frozen=True)
class Acquisition:
    """A question to buy, and why."""

    id: str
    reason: str


class Policy(Protocol):
    """Chooses what to buy; a round carries it out."""

    def choose(self, rows: Iterable[PoolRow], bought: Set[str], count: int) -> list[Acquisition]:
        """The `count` best rows that are not in `bought`, best first; fewer if the pool has fewer."""
        ...


ABSTAINS_NATS = 1e5
"""More than any entropy or -log p of an answer."""
T = TypeVar("T")
Priority = Callable[[PoolRow], tuple[float, str]]
"""Gives (priority, reason); the highest priority is bought first."""


@dataclass(frozen=True)
class Ranking:
    """Gives every question a priority of its own; equal priorities are ordered by id.

    With `by_group`, every group's best question comes before any group's second best.
    """

    priority: Priority
    by_group: bool = False

    def choose(self, rows: Iterable[PoolRow], bought: Set[str], count: int) -> list[Acquisition]:
        ranked = (
            (row.group, -priority, row.id, why)
            for row in rows
            if row.id not in bought
            for priority, why in [self.priority(row)]
        )
        if not self.by_group:
            return [Acquisition(i, why) for _, _, i, why in heapq.nsmallest(count, ranked, key=lambda r: r[1:3])]
        best: dict[str | None, list[tuple[float, str, str]]] = defaultdict(list)
        for group, priority, i, why in ranked:
            best[group].append((priority, i, why))
            if len(best[group]) > 2 * count:
                best[group] = heapq.nsmallest(count, best[group])
        turns = ((turn, *row) for members in best.values() for turn, row in enumerate(heapq.nsmallest(count, members)))
        return [
            Acquisition(i, f"{why}, number {turn + 1} of its group")
            for turn, _, i, why in heapq.nsmallest(count, turns)
        ]


@dataclass(frozen=True)
class FarthestFirst:
    """Takes the `candidates` rows of highest priority, and of these greedily the one with the largest priority ×
    (distance to the nearest chosen or bought state) ^ `diversity`.

    Not `weighted`, distances alone decide: with `diversity` 1, greedy k-centre (Sener and Savarese, 2018).
    """

    priority: Priority
    candidates: int
    diversity: float = 1.0
    weighted: bool = True

    def choose(self, rows: Iterable[PoolRow], bought: Set[str], count: int) -> list[Acquisition]:
        centres: list[np.ndarray] = []

        def unbought() -> Iterator[tuple[float, str, str, np.ndarray]]:
            for row in rows:
                state = _given(row.state, row, "hidden state")
                if row.id in bought:
                    centres.append(state)
                else:
                    priority, why = self.priority(row)
                    yield -priority, row.id, why, state

        kept = heapq.nsmallest(self.candidates, unbought(), key=lambda r: r[:2])
        states, bought_states = (np.array(s, np.float32) for s in ([s for *_, s in kept], centres))
        weights = np.array([-order if self.weighted else 1.0 for order, *_ in kept])
        picks = farthest_first(states, bought_states, weights, self.diversity, count)
        chosen = []
        for n, distance in picks:
            _, question, why, _ = kept[n]
            far = f"distance {distance:.3f} to the nearest chosen state"
            chosen.append(Acquisition(question, f"{why}, {far}" if why else far))
        return chosen


def farthest_first(
    states: np.ndarray, centres: np.ndarray, weights: np.ndarray, exponent: float, count: int
) -> Iterator[tuple[int, float]]:
    """Rows of `states` (N, D) taken one by one by the largest weight × distance ^ exponent, with their distances.

    Distances are Euclidean, to the nearest of `centres` (M, D) and of what was taken, after each dimension is
    standardised over `states`. Without centres the first row taken is the one of largest weight, at equal weights the
    one farthest from the mean.
    """
    if not len(states):
        return
    mean, spread = states.mean(0), states.std(0)
    scale = np.where(spread > 0, spread, 1.0) * np.sqrt(states.shape[1])
    points = (states - mean) / scale
    nearest, left = np.full(len(states), np.inf), np.ones(len(states), dtype=bool)
    for centre in (centres - mean) / scale if len(centres) else ():
        nearest = np.minimum(nearest, np.linalg.norm(points - centre, axis=1))
    for _ in range(min(count, len(states))):
        first = np.isinf(nearest).all()
        distance = np.linalg.norm(points, axis=1) if first else nearest
        score = weights * (1.0 + 1e-9 * distance) if first else weights * distance**exponent
        row = int(np.argmax(np.where(left, score, -np.inf)))
        yield row, float(distance[row])
        left[row] = False
        nearest = np.minimum(nearest, np.linalg.norm(points - points[row], axis=1))


def by_probe(row: PoolRow) -> tuple[float, str]:
    """`ka2l`: the questions that the probe holds most likely unknown."""
    p = _given(row.p_unknown, row, "P(unknown)")
    return p, f"p_unknown {p:.3f}"


def by_entropy(row: PoolRow) -> tuple[float, str]:
    """`entropy`: sampled semantic entropy, what the probe stands in for, after questions that the model abstains from,
    which it gives the same answer to, namely none. Ties are broken by a hash of the id, not by
    its alphabet, and far below the least gap of two entropies."""
    entropy = _given(row.entropy_nats, row, "entropy")
    return _first(row, entropy + 1e-9 * uniform("tie", row.id), f"entropy {entropy:.3f} nats")


def by_likelihood(row: PoolRow) -> tuple[float, str]:
    """`likelihood`: the questions that the model abstains from, then the least likely greedy answers."""
    nats = _given(row.likelihood, row, "likelihood")
    return _first(row, nats, f"greedy answer at {-nats:.3f} nats")


def _first(row: PoolRow, priority: float, why: str) -> tuple[float, str]:
    """The priority, above any other where the model abstains."""
    return (ABSTAINS_NATS + priority, f"abstains, {why}") if row.abstains else (priority, why)


def by_quadrant(wanted: tuple[Quadrant, ...]) -> Priority:
    """`quadrant`: by grade and consistency in the order of `wanted`, inside a quadrant by entropy; then the other
    quadrants, and last the questions that have none because they have no gold."""
    order: dict[str, int] = {name: len(wanted) - n for n, name in enumerate(wanted)}

    def priority(row: PoolRow) -> tuple[float, str]:
        entropy, why = by_entropy(replace(row, abstains=False))
        quadrant = "abstains" if row.abstains else row.quadrant
        place = -1 if quadrant is None else order.get(quadrant, 0)
        # An entropy is below ln K, and K at most 100: a hundredth of it never leaves its quadrant.
        return place + entropy / 100, f"{quadrant or 'no quadrant without gold'}, {why}"

    return priority


def at_random(seed: int) -> Priority:
    """`random`: a uniform draw, a function of (seed, id) alone."""
    return lambda row: (uniform(f"random-{seed}", row.id), "drawn at random")


def as_candidate(seed: int) -> Priority:
    """`coreset`: which questions are compared by their states, drawn like `random`'s."""
    return lambda row: (-uniform(f"coreset-{seed}", row.id), "")


def by_truth(seed: int) -> Priority:
    """`oracle` (world only): truly unseen facts first; the ceiling of every strategy that buys what the model never
    saw."""

    def priority(row: PoolRow) -> tuple[float, str]:
        if row.truth is None:
            raise ConfigError("active.strategies: `oracle` needs corpus.source = world, where the truth is known")
        return float(row.truth == "unseen") + uniform(f"oracle-{seed}", row.id), f"truth: {row.truth}"

    return priority


def by_wrong(seed: int) -> Priority:
    """`oracle_wrong`: facts that the base model answers wrong at eval, then those that eval does not ask, then what is
    right; the ceiling where no truth is known."""

    def priority(row: PoolRow) -> tuple[float, str]:
        if row.wrong is None:
            place, why = 1, "not asked by eval"
        else:
            place, why = (2, "answered wrong") if row.wrong else (0, "answered right")
        return place + uniform(f"oracle-{seed}", row.id), why

    return priority


def _given(value: T | None, row: PoolRow, name: str) -> T:
    if value is None:
        raise ConfigError(f"pool question {row.id} has no {name}, which this strategy ranks by")
    return value
