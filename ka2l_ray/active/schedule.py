"""Which rounds a run has, which of them may be played now, and when a strategy stops.

In: a run. Out: its rounds, in the order in which they are played. Refuses to know: what the steps of a round do.
"""

from collections.abc import Sequence

from ka2l_ray.active.outcome import base_record
from ka2l_ray.active.pool import scored_pool
from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.steps import play
from ka2l_ray.active.stop import Stop, decide
from ka2l_ray.active.strategies import draws
from ka2l_ray.annotate.annotators import Waiting
from ka2l_ray.config import Strategy
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.results_schema import Measure, RoundResult


def play_rounds(run: Run) -> None:
    """Play every round that may be played; a round that waits for people delays only its own strategy and draw."""
    planned = planned_rounds(run)
    for n, a_round in enumerate(planned, 1):
        if may_be_played(a_round):
            try:
                if record := play(a_round):
                    log.info("%s", describe(record, n, len(planned)), extra={"stage": "round"})
            except Waiting as waiting:
                log.info("%d/%d %s: %s", n, len(planned), a_round, waiting, extra={"stage": "round"})


def play_curve(run: Run, strategy: Strategy, draw: int) -> str:
    """Play the rounds of one strategy and draw, in order; returns the figures of the last one as a line of text."""
    own = curve(run, strategy, draw)
    for a_round in filter(may_be_played, own):  # each is asked about after those before it were played
        play(a_round)
    done = [r for r in own if r.state == RoundState.DONE]
    return describe(done[-1].record(), len(done), len(own)) if done else "stopped before its first round"


def may_be_played(a_round: Round) -> bool:
    """Whether a round is the next one of its strategy and draw: it is not done, every earlier one is, and the strategy
    has not stopped."""
    return (
        a_round.state != RoundState.DONE
        and all(r.state == RoundState.DONE for r in a_round.earlier)
        and stopped(a_round) is None
    )


def stopped(a_round: Round) -> Stop | None:
    """Why a strategy stops before this round, by `active.stop`; None if it goes on. Earlier rounds must be done.

    `random` never stops early: savings are measured against its full budget.
    """
    if a_round.strategy == "random":
        return None
    stop, base = a_round.run.config.active.stop, base_record(a_round.run, a_round.strategy, a_round.seed)
    unknown_left = True
    if stop.p_unknown is not None:
        bought = a_round.bought_before
        unknown_left = any(
            (row.p_unknown or 0.0) >= stop.p_unknown and row.id not in bought for row in scored_pool(a_round.run)
        )
    return decide(stop, [base["accuracy"], *(r.record()["accuracy"] for r in a_round.earlier)], unknown_left)


def next_rounds(run: Run) -> list[Round]:
    """For every strategy and draw, the first round that is not done, if it may be played."""
    return [r for r in planned_rounds(run) if may_be_played(r)]


def waiting_rounds(run: Run) -> list[Round]:
    """Rounds that wait for people's answers."""
    return [r for r in planned_rounds(run) if r.state == RoundState.WAITING]


def planned_rounds(run: Run) -> Sequence[Round]:
    """Every round of every strategy and draw in the order of play: the strategies take turns, round by round."""
    active = run.config.active
    return [Round(run, s, d, n) for n in range(1, active.rounds + 1) for s, d in draws(active)]


def curve(run: Run, strategy: Strategy, draw: int) -> list[Round]:
    """The rounds of one strategy and draw, in order."""
    return [Round(run, strategy, draw, n) for n in range(1, run.config.active.rounds + 1)]


def describe(record: RoundResult, number: int, total: int) -> str:
    """A finished round in one line, with its place among all rounds."""
    shown: tuple[Measure, ...] = ("accuracy", "domain_accuracy", "known_accuracy", "replayed_accuracy")
    figures = "  ".join(f"{k} {'–' if (v := record[k]) is None else f'{v:.3f}'}" for k in shown)
    who = f"{record['strategy']} seed {record['seed']} round {record['round']}"
    return f"{number}/{total} {who}: {record['annotations']} annotations  {figures}"
