"""Annotators that answer at once (the knowledge world, the corpus' own gold answers), and the types that all share.

In: a question and its gold answers. Out: an `Annotated`. Refuses to know: tables, budgets, Ray, HTTP, files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ka2l_ray.config import Config
from ka2l_ray.world.facts import World

Status = Literal["answered", "no_such_thing", "no_reference", "refused", "truncated", "blank", "failed"]
AnnotatorName = Literal["world", "reference", "endpoint", "file"]


@dataclass(frozen=True)
class Asked:
    """One question that a round bought. `answers` are the corpus' gold, empty for a decoded question; `group` may be
    None."""

    id: str
    question: str
    answers: Sequence[str]
    group: str | None


@dataclass(frozen=True)
class Annotated:
    """`answer` is None unless `status` is `answered`; an unanswered question is paid for and never trained on."""

    answer: str | None
    status: Status


class Waiting(Exception):
    """People have not answered yet; names the files with their questions. Not an error: the loop goes on with the
    rounds that do not wait."""

    def __init__(self, jsonl: str, csv: str, questions: int) -> None:
        super().__init__(f"{questions:,} questions wait for answers in {csv} (the same as JSONL: {jsonl})")
        self.jsonl, self.csv, self.questions = jsonl, csv, questions


class WaitingForOthers(Waiting):
    """All questions of a round that have no answer yet are asked in another round's file already."""

    def __init__(self, questions: int) -> None:
        super().__init__("", "", questions)
        self.args = (f"{questions:,} questions wait for answers in the files of other rounds, which ask the same",)


Annotator = Callable[[str, Sequence[str]], Annotated]


def annotator_of(config: Config) -> AnnotatorName:
    """The annotator's name: `auto` is the world on the world, else the corpus' gold answers."""
    if config.annotate.source == "auto":
        return "world" if config.corpus.source == "world" else "reference"
    return config.annotate.source


def ask_world(world: World) -> Annotator:
    """An annotator who knows the world's truth, also for decoded questions; says when there is no such person."""

    def annotate(question: str, gold: Sequence[str]) -> Annotated:
        reply = world.ask(question)
        return Annotated(reply.answer, "answered") if reply.fact else Annotated(None, "no_such_thing")

    return annotate


def ask_reference(question: str, gold: Sequence[str]) -> Annotated:
    """The first gold answer of the corpus; decoded questions have none."""
    return Annotated(gold[0], "answered") if gold else Annotated(None, "no_reference")
