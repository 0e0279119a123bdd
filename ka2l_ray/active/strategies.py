"""The acquisition strategies: what each one reads, and the policy by which it chooses.

In: a strategy's name. Out: its entry. Everything else that depends on the strategy (checks, costs, what is sampled or
stored) derives from it.
Refuses to know: tables, Ray, models.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from ka2l_ray.active.policies import (
    FarthestFirst,
    Policy,
    Ranking,
    as_candidate,
    at_random,
    by_entropy,
    by_likelihood,
    by_probe,
    by_quadrant,
    by_truth,
    by_wrong,
)
from ka2l_ray.config import AcquireSection, ActiveSection, Strategy


class Need(StrEnum):
    """What a strategy reads of the pool."""

    SCORES = "scores"
    """P(unknown) of every question."""
    STATES = "states"
    """The hidden states that the probe reads."""
    THRESHOLD = "threshold"
    """γ, from the samples of the probe split."""
    SAMPLES = "samples"
    """K samples of every question, booked at `acquire.sampling_cost`."""
    TRUTH = "truth"
    """Which facts the model was shown; known only on the world."""
    GREEDY = "greedy"
    """Which pool facts the base model answers wrong at eval; every run evaluates the base model."""


STEPS_FOR = {
    Need.SCORES: ("collect", "label", "search", "score"),
    Need.STATES: ("collect", "label", "search", "score"),
    Need.THRESHOLD: ("collect", "label"),
    Need.SAMPLES: ("sample_pool",),
    Need.TRUTH: (),
    Need.GREEDY: (),
}
"""Steps on the base model that provide what is needed, needs and steps in the order of the run."""


@dataclass(frozen=True)
class StrategySpec:
    """One strategy: `policy` makes its policy from the section `acquire` and a seed. With `decodes` it has questions
    generated from the hidden states of its choice, where `decode.enabled`."""

    needs: tuple[Need, ...]
    policy: Callable[[AcquireSection, int], Policy]
    decodes: bool = False

    @property
    def steps(self) -> tuple[str, ...]:
        """Steps on the base model that the strategy cannot choose without. `replay`, which every strategy trains with,
        is none of them; its two predicted classes come from the probe, whose cost is not booked to `random`: so
        compute savings are on the careful side."""
        return tuple(dict.fromkeys(step for need in Need if need in self.needs for step in STEPS_FOR[need]))


def _by_group(acquire: AcquireSection) -> bool:
    return acquire.balance == "group"


STRATEGIES: dict[Strategy, StrategySpec] = {
    "ka2l": StrategySpec((Need.SCORES,), lambda a, _: Ranking(by_probe, _by_group(a)), decodes=True),
    "ka2l_diverse": StrategySpec(
        (Need.SCORES, Need.STATES), lambda a, _: FarthestFirst(by_probe, a.candidates, a.diversity)
    ),
    "decoded": StrategySpec((Need.SCORES,), lambda a, _: Ranking(by_probe, _by_group(a)), decodes=True),
    "entropy": StrategySpec((Need.SAMPLES, Need.THRESHOLD), lambda a, _: Ranking(by_entropy, _by_group(a))),
    "likelihood": StrategySpec((Need.SAMPLES,), lambda a, _: Ranking(by_likelihood, _by_group(a))),
    "coreset": StrategySpec(
        (Need.STATES,), lambda a, seed: FarthestFirst(as_candidate(seed), a.candidates, weighted=False)
    ),
    "quadrant": StrategySpec(
        (Need.SAMPLES, Need.THRESHOLD), lambda a, _: Ranking(by_quadrant(a.quadrants), _by_group(a))
    ),
    "random": StrategySpec((), lambda a, seed: Ranking(at_random(seed), _by_group(a))),
    "oracle": StrategySpec((Need.TRUTH,), lambda a, seed: Ranking(by_truth(seed), _by_group(a))),
    "oracle_wrong": StrategySpec((Need.GREEDY,), lambda a, seed: Ranking(by_wrong(seed), _by_group(a))),
}
CEILINGS: tuple[Strategy, ...] = ("oracle", "oracle_wrong")
"""What savings are a share of: the first of these that a run has."""


def ceiling_of(strategies: Iterable[str]) -> Strategy | None:
    """The ceiling among some strategies."""
    given = set(strategies)
    return next((c for c in CEILINGS if c in given), None)


def policy(strategy: Strategy, acquire: AcquireSection, seed: int) -> Policy:
    """The policy of a strategy; `decoded` chooses its pool questions as `ka2l` does."""
    return STRATEGIES[strategy].policy(acquire, seed)


def needs(strategy: Strategy, need: Need) -> bool:
    return need in STRATEGIES[strategy].needs


def that_need(need: Need, strategies: Iterable[Strategy]) -> list[Strategy]:
    """Those of the strategies that need it, in their order."""
    return [s for s in strategies if needs(s, need)]


def draws(active: ActiveSection) -> list[tuple[Strategy, int]]:
    """Every strategy with the numbers of its independent draws: `random` has `random_draws` of them, the others one."""
    return [(s, d) for s in active.strategies for d in range(active.random_draws if s == "random" else 1)]
