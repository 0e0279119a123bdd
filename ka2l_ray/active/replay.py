"""Replay: unbought pool questions with the base model's own answers, mixed into training against forgetting.

In: pool rows with P(unknown), and the base model's samples. Out: which questions are replayed, and with which answers.
Refuses to know: tables, Ray, training. It costs no annotation: the labels are the base model's own (self-distillation).
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from typing import Any

from ka2l_ray.active.policies import PoolRow
from ka2l_ray.config import ReplaySection
from ka2l_ray.hashing import uniform
from ka2l_ray.text.answers import abstains
from ka2l_ray.text.grading import EXACT, Grading, are_equal, grade


def replay_counts(replay: ReplaySection, budget: int) -> tuple[int, int]:
    """Numbers of questions to replay in each round: (predicted known, predicted unknown); `budget` is the run's."""
    count = round(replay.ratio * budget)
    unknown = round(count * replay.unknown_share)
    return count - unknown, unknown


def select_replay(rows: Iterable[PoolRow], bought: Set[str], known: int, unknown: int, seed: int) -> list[str]:
    """Ids of so many unbought questions predicted known and unknown (p >= 0.5), sorted; what one side lacks the other
    gives.

    The order is a hash of (seed, id), so that rounds replay the same questions as long as they stay unbought.
    """
    count = known + unknown
    sides: tuple[list[tuple[float, str]], list[tuple[float, str]]] = ([], [])
    for row in rows:
        if row.id not in bought and row.p_unknown is not None:
            side = sides[row.p_unknown >= 0.5]
            heapq.heappush(side, (-uniform(f"replay-{seed}", row.id), row.id))
            if len(side) > count:
                heapq.heappop(side)
    of_known, of_unknown = (sorted((-u, i) for u, i in side) for side in sides)
    taken = min(max(known, count - len(of_unknown)), len(of_known))
    return sorted(i for _, i in chain(of_known[:taken], of_unknown[: count - taken]))


def replayed_answers(
    samples: Sequence[str], greedy: str, gold: Sequence[str], replay: ReplaySection, grading: Grading = EXACT
) -> list[str]:
    """The answers that a replayed question is trained on; epochs take them in turn.

    With `gold_is_free` only right ones, if the model gave any: what it answers wrong is then not taught again.
    """
    own = list(samples) if replay.source == "samples" else [greedy]
    right = [a for a in own if grade(a, gold, grading)] if replay.gold_is_free else []
    return right or own


def knew(samples: Sequence[str], greedy: str, gold: Sequence[str], grading: Grading = EXACT) -> bool:
    """Whether the base model knew the answer: greedy answer and at least half of its samples correct, not a lucky
    guess."""
    right = [bool(grade(a, gold, grading)) for a in samples]
    return bool(grade(greedy, gold, grading)) and 2 * sum(right) >= len(right)


def is_misconception(
    answers: Sequence[str], gold: Sequence[str], grading: Grading = EXACT, refusals: Sequence[str] = ()
) -> bool:
    """Whether a model is sure of a wrong answer: all its answers are the same, and wrong. No answer is none."""
    if not gold or abstains(answers[0], refusals):
        return False
    return all(are_equal(answers[0], a) for a in answers) and not any(grade(a, gold, grading) for a in answers)


def misconceptions(
    replayed: Sequence[Mapping[str, Any]], grading: Grading = EXACT, refusals: Sequence[str] = ()
) -> int | None:
    """How many replayed questions the base model answers wrong and is sure of, so that replay teaches it again; None
    without gold.

    Rows have `samples`, `greedy` and gold `answers`. Which of its own answers is taught does not matter: they are all
    the same.
    """
    rows = [r for r in replayed if r["answers"]]
    graded = [is_misconception([*r["samples"], r["greedy"]], r["answers"], grading, refusals) for r in rows]
    return sum(graded) if graded else None
