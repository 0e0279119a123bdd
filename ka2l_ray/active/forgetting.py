"""What counts as known, and what was lost and gained since.

In: the base model's graded answers to a fact, and later answers to the same questions. Out: the fact's class; the
shares lost and gained.
Refuses to know: tables, models, Ray.
One right greedy answer may be luck: ask a weak model again, in other words or after other examples, and many answers
change in both directions. So a fact is known only where wordings and samples agree, and losses are read beside gains
and beside what the base model itself loses and gains under another prompt.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from ka2l_ray.results_schema import NoiseFloor, Portion

Graded = Mapping[str, Any]
"""A row of an evaluation."""


def class_of(right: Sequence[bool | None], samples_right: float | None) -> str | None:
    """The class of a fact, one of `schema.KNOWN_CLASSES`.

    `right` tells each time that it was asked, by eval first, whether the greedy answer is right; `samples_right` is the
    share of right samples. None where an answer that would decide is missing: its row failed.
    """
    if right[0] is not True:
        return None if right[0] is None else "wrong"
    if False in right or (samples_right is not None and samples_right <= 0.5):
        return "shaky"
    return None if None in right or samples_right is None else "known"


def lost_and_gained(
    classes: Mapping[str, str], answers: Iterable[Graded], touched: Set[str] = frozenset()
) -> NoiseFloor:
    """Known facts that are now wrong, and wrong ones that are now right.

    `classes` are those of the eval questions by id, `touched` the facts that are left out because they were bought or
    replayed. A failed row counts as wrong.
    """
    left = [r for r in answers if r["fact_id"] not in touched]
    known = [not r["correct"] for r in left if classes.get(r["id"]) == "known"]
    wrong = [bool(r["correct"]) for r in left if classes.get(r["id"]) == "wrong"]
    return {"lost": _portion(known), "gained": _portion(wrong)}


def _portion(facts: Sequence[bool]) -> Portion:
    count, of = sum(facts), len(facts)
    return {"share": count / of if of else None, "count": count, "of": of}
