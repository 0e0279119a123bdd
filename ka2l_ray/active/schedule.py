"""Which rounds a run has, which of them may be played now, and when a strategy stops.

In: a run. Out: its rounds, in the order in which they are played. Refuses to know: what the steps of a round do.
"""

from collections.abc import Sequence
from typing import Any

from ka2l_ray.active.outcome import base_record
from ka2l_ray.active.pool import scored_pool
from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.steps import play
from ka2l_ray.active.stop import Stop, decide
from ka2l_ray.active.strategies import draws
from ka2l_ray.annotate.annotators import Waiting
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.runs import Run


def play_rounds(run: Run) -> None:
    """Play every round that may be played; a round that waits for people delays only its own strategy and draw."""
    planned = planned_rounds(run)
    for n, a_round in enumerate(planned, 1):
        if a_round.state == RoundState.DONE or is_held_up(a_round):
            continue
        try:
            record = play(a_round)
        except Waiting as waiting:
            where = f"{a_round.strategy} seed {a_round.seed} round {a_round.number}"
            log.info("round      %d/%d %s: %s", n, len(planned), where, waiting)
            continue
        if record:
            log.info("round      %s", describe(record, n, len(planned)))


def play_curve(run: Run, strategy: str, draw: int) -> str:
    """Play the rounds of one strategy and draw, in order; returns the figures of the last one as a line of text."""
    own = [r for r in planned_rounds(run) if (r.strategy, r.draw) == (strategy, draw)]
    for a_round in own:
        if a_round.state != RoundState.DONE and not is_held_up(a_round):
            play(a_round)
    done = [r for r in own if r.state == RoundState.DONE]
    return describe(done[-1].record(), len(done), len(own)) if done else "stopped before its first round"


def is_held_up(a_round: Round) -> bool:
    """Whether a round may not be played now: its strategy has stopped, or an earlier round is not done."""
    return any(r.state != RoundState.DONE for r in a_round.earlier) or stopped(a_round) is not None


def stopped(a_round: Round) -> Stop | None:
    """Why a strategy stops before this round, by `active.stop`; None if it goes on. Earlier rounds must be done.

    `random` never stops early: savings are measured against its full budget.
    """
    if a_round.strategy == "random":
        return None
    stop = a_round.run.config.active.stop
    accuracies = [
        base_record(a_round.run, a_round.strategy, a_round.seed)["accuracy"],
        *(r.record()["accuracy"] for r in a_round.earlier),
    ]
    unknown_left = True
    if stop.p_unknown is not None:
        bought = {i for r in a_round.earlier for i in r.table("acquired").read(["id"])["id"].to_pylist()}
        unknown_left = any(
            (row.p_unknown or 0.0) >= stop.p_unknown and row.id not in bought for row in scored_pool(a_round.run)
        )
    return decide(stop, accuracies, unknown_left)


def next_rounds(run: Run) -> list[Round]:
    """For every strategy and draw, the first round that is not done, if it may be played."""
    return [r for r in planned_rounds(run) if r.state != RoundState.DONE and not is_held_up(r)]


def waiting_rounds(run: Run) -> list[Round]:
    """Rounds that wait for people's answers."""
    return [r for r in planned_rounds(run) if r.state == RoundState.WAITING]


def planned_rounds(run: Run) -> Sequence[Round]:
    """Every round of every strategy and draw in the order of play: the strategies take turns, round by round."""
    active = run.config.active
    return [Round(run, s, d, n) for n in range(1, active.rounds + 1) for s, d in draws(active)]


def describe(record: dict[str, Any], number: int, total: int) -> str:
    """A finished round in one line, with its place among all rounds."""
    shown = {k: record[k] for k in ("accuracy", "domain_accuracy", "known_accuracy", "replayed_accuracy")}
    figures = "  ".join(f"{k} {'–' if v is None else f'{v:.3f}'}" for k, v in shown.items())
    who = f"{record['strategy']} seed {record['seed']} round {record['round']}"
    return f"{number}/{total} {who}: {record['annotations']} annotations  {figures}"
