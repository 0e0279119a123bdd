"""What the first paragraph of the report says about each strategy.

In: `rounds` and `saving` of results.json. Out: one small record per strategy, None where a number does not apply.
Refuses to know: figures, HTML, files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ka2l_ray.report.curves import curves


@dataclass(frozen=True)
class Saving:
    """Mean over the seeds that reached random's accuracy; `reached` of `seeds` did."""

    strategy: str
    saving: float | None
    of_oracle: float | None
    reached: int
    seeds: int


@dataclass(frozen=True)
class Change:
    """Mean known-set accuracy of the base model and after the last round."""

    strategy: str
    before: float
    after: float


def savings(entries: Sequence[Mapping[str, Any]]) -> list[Saving]:
    """One record per strategy, without `random`, which the others are compared with. Nulls are counted, never averaged in."""
    by_strategy: dict[str, list[Mapping[str, Any]]] = {}
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


def known_changes(rounds: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Known-set accuracy of every strategy that has it both before and after."""
    means = {curve.strategy: curve.mean for curve in curves(rounds, "known_accuracy") if len(curve.mean) > 1}
    return [Change(strategy, mean[0][1], mean[-1][1]) for strategy, mean in means.items()]


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
