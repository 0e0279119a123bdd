"""Who answers: the knowledge world, or the corpus' own gold answers.

In: a question and its gold answers. Out: an `Annotated`. Refuses to know: tables, budgets, Ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ka2l_ray.world.facts import World

Status = Literal["answered", "no_such_thing", "no_reference"]


@dataclass(frozen=True)
class Annotated:
    """`answer` is None unless `status` is `answered`; an unanswered question is paid for and never trained on."""

    answer: str | None
    status: Status


Annotator = Callable[[str, Sequence[str]], Annotated]


def ask_world(world: World) -> Annotator:
    """An annotator who knows the world's truth, also for decoded questions; says when there is no such person."""

    def annotate(question: str, gold: Sequence[str]) -> Annotated:
        reply = world.ask(question)
        return Annotated(reply.answer, "answered") if reply.fact else Annotated(None, "no_such_thing")

    return annotate


def ask_reference(question: str, gold: Sequence[str]) -> Annotated:
    """The first gold answer of the corpus; decoded questions have none."""
    return Annotated(gold[0], "answered") if gold else Annotated(None, "no_reference")
