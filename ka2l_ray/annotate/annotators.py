"""Annotators that answer at once (the knowledge world, the corpus' own gold answers), and the types that all share.

In: a question and its gold answers. Out: an `Annotated`. Refuses to know: tables, budgets, Ray, HTTP, files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ka2l_ray.chat.endpoint import Annotated
from ka2l_ray.config import Config
from ka2l_ray.world.facts import World

AnnotatorName = Literal["world", "reference", "endpoint", "file"]


@dataclass(frozen=True)
class Asked:
    """One question that a round bought. `answers` are the corpus' gold, empty for a decoded question; `group` may be
    None."""

    id: str
    question: str
    answers: Sequence[str]
    group: str | None


class Waiting(Exception):
    """People have not answered yet; `csv` is the file with their questions, empty where all of them are asked in other
    rounds' files. Not an error: the loop goes on with the rounds that do not wait."""

    def __init__(self, message: str, csv: str = "") -> None:
        super().__init__(message)
        self.csv = csv


Annotator = Callable[[str, Sequence[str]], Annotated]


def annotator_of(config: Config) -> AnnotatorName:
    """The annotator's name: `auto` is the world on the world, else the corpus' gold answers."""
    if config.annotate.source == "auto":
        return "world" if config.corpus.source == "world" else "reference"
    return config.annotate.source


def ask_world(world: World) -> Annotator:
    """An annotator who knows the world's truth, also for decoded questions; says when there is no such person."""

    def annotate(question: str, gold: Sequence[str]) -> Annotated:
        fact = world.ask(question)
        return Annotated(fact.value, "answered") if fact else Annotated(None, "no_such_thing")

    return annotate


def ask_reference(question: str, gold: Sequence[str]) -> Annotated:
    """The first gold answer of the corpus; decoded questions have none."""
    return Annotated(gold[0], "answered") if gold else Annotated(None, "no_reference")
