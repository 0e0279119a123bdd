"""What the report says about each strategy as a whole: savings, forgetting, the cost ledger.

In: `rounds` and `saving` of results.json. Out: a record per strategy (and seed); None where a number does not apply.
Refuses to know: figures, HTML, files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ka2l_ray.report.curves import curves
from ka2l_ray.results_schema import Portion, RoundResult, SavingResult
from ka2l_ray.schema import ANNOTATION_STATUSES


@dataclass(frozen=True)
class Saving:
    """Means over the `reached` of `seeds` seeds in which random's final accuracy was reached; None where in none."""

    strategy: str
    saving: float | None
    of_oracle: float | None
    reached: int
    seeds: int


@dataclass(frozen=True)
class Change:
    """Mean accuracy on the known set, of the base model and after the last round."""

    strategy: str
    before: float
    after: float


@dataclass(frozen=True)
class Changed:
    """What one strategy and seed has lost and gained after its last round."""

    strategy: str
    seed: int
    lost: Portion
    gained: Portion


@dataclass(frozen=True)
class Spent:
    """What one strategy and seed asked and paid for in all its rounds."""

    strategy: str
    seed: int
    ledger: Mapping[str, float]
    """As `annotate.ledger` makes it, after the last round."""

    @property
    def why(self) -> dict[str, float]:
        """Rejected answers by status, of those that occur."""
        rejections = (status for status in ANNOTATION_STATUSES if status != "answered")
        return {status: self.ledger[status] for status in rejections if self.ledger[status]}


def savings(entries: Sequence[SavingResult]) -> list[Saving]:
    """One record per strategy except `random`, the baseline. Means are over the seeds that have the number."""
    by_strategy: dict[str, list[SavingResult]] = {}
    for entry in entries:
        if entry["strategy"] != "random":
            by_strategy.setdefault(entry["strategy"], []).append(entry)
    return [
        Saving(
            strategy=strategy,
            saving=_mean(e["saving"] for e in found),
            of_oracle=_mean(e["of_oracle"] for e in found),
            reached=sum(e["saving"] is not None for e in found),
            seeds=len(found),
        )
        for strategy, found in by_strategy.items()
    ]


def known_changes(rounds: Sequence[RoundResult]) -> list[Change]:
    """Accuracy on the known set, of every strategy that has it both before and after."""
    means = {curve.strategy: curve.mean for curve in curves(rounds, "known_accuracy") if len(curve.mean) > 1}
    return [Change(strategy, mean[0][1], mean[-1][1]) for strategy, mean in means.items()]


def last_changes(rounds: Sequence[RoundResult]) -> list[Changed]:
    """What was lost and gained, of every strategy and seed, in order of appearance; without those that have played no
    round."""
    last = {(r["strategy"], r["seed"]): r for r in sorted(rounds, key=lambda r: r["round"])}
    curves_in_order = dict.fromkeys((r["strategy"], r["seed"]) for r in rounds)
    found = ((curve, last[curve].get("lost"), last[curve].get("gained")) for curve in curves_in_order)
    return [Changed(*curve, lost, gained) for curve, lost, gained in found if lost and gained]


def spendings(rounds: Sequence[RoundResult]) -> list[Spent]:
    """The ledger of every strategy and seed after its last round, in order of appearance; without empty ledgers."""
    last = {(r["strategy"], r["seed"]): r.get("ledger") for r in sorted(rounds, key=lambda r: r["round"])}
    curves_in_order = dict.fromkeys((r["strategy"], r["seed"]) for r in rounds)
    return [Spent(*curve, ledger) for curve in curves_in_order if (ledger := last[curve])]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
