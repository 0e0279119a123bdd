"""The one place that decides whether two answers are equal and whether an answer is right.

In: strings, and how to grade. Out: booleans; None where there is no gold answer.
Refuses to know: models, tables, what the question was, how an answer was taken from a model's text.
Sources: exact match and F1 as in SQuAD (Rajpurkar et al., 2016); a gold answer within a longer one as judged by people
in EVOUNA (Wang et al., 2023), see `tests/benchmarks/bench_grading.py`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal, Self

from ka2l_ray.text.containment import Words, holds, is_most_of
from ka2l_ray.text.guesses import guesses
from ka2l_ray.text.normal import left_out, normalize, said_unit, words_of

if TYPE_CHECKING:  # `ka2l_ray.semantic_entropy` loads no library
    from ka2l_ray.config import Config

Kind = Literal["exact", "contains", "f1"]


@dataclass(frozen=True)
class Grading:
    """How answers are graded, the same in every stage of a run; the fields are those of `LabelSection`."""

    kind: Kind = "exact"
    words: int = 60
    f1: float = 0.6

    @classmethod
    def of(cls, config: "Config") -> Self:
        """How a run grades: `auto` is `contains` where one of its prompts is a chat, and otherwise `exact`."""
        label, prompts = config.label, (config.corpus.prompt, config.finetune.prompt)
        auto: Kind = "contains" if any(p.style == "chat" for p in prompts) else "exact"
        return cls(auto if label.grading == "auto" else label.grading, label.grading_words, label.grading_f1)


EXACT = Grading()
_LABELLED = re.compile(r"\s*\(?([A-Ha-h])(?:[.:]\s+|\)[.:]?\s*)(\S.*)", re.DOTALL)
_LETTER = re.compile(
    r"\W*(?:the\s+)?(?:(?:correct\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)*\(?([A-Ha-h])[\s.:)]*", re.IGNORECASE
)
_OR = re.compile(r",?\s+or\s+")
LONGEST_SIDE = 3
"""Words of one side of an `or` at most; longer ones are parts of a sentence."""
_YES, _NO = frozenset(("yes", "true", "yeah", "yep")), frozenset(("no", "false", "nope"))
_UNANSWERABLE = re.compile(
    r"\b(unanswerable|no answer|not answerable|not (?:enough|sufficient) information|insufficient information|"
    r"(?:cannot|can ?not|can t|could not|impossible to) (?:be )?(?:answer|determine|know|say|tell)\w*|"
    r"(?:is|are|was|were) (?:not known|unknown)|does not have (?:an )?answer)\b|^unknown$|^n a$|^not known$"
)


def are_equal(a: str, b: str) -> bool:
    """Whether two answers to one question are equal: one form, a unit that only one of them says, or the letter of an
    option before its text. Not transitive: `5` equals `5 km` and `5 miles`.

    >>> are_equal("$5,000", "5000"), are_equal("5 km", "5"), are_equal("C", "C. Femur"), are_equal("C++", "C")
    (True, True, True, False)
    """
    return a == b or _alike(a, b) or _without_label(a, b) or _without_label(b, a)


def _alike(a: str, b: str) -> bool:
    form, other = normalize(a), normalize(b)
    if form == other:
        mine, others = left_out(a), left_out(b)
        return mine == others or not (mine and others)
    return (said_unit(form, other) and not left_out(a)) or (said_unit(other, form) and not left_out(b))


def _without_label(labelled: str, other: str) -> bool:
    """Whether one answer is an option with its letter, and the other that letter alone or that option alone."""
    if not (found := _LABELLED.fullmatch(labelled)):
        return False
    letter = _LETTER.fullmatch(other)
    return letter[1].casefold() == found[1].casefold() if letter else _alike(found[2], other)


def grade(answer: str, gold: Sequence[str], grading: Grading = EXACT) -> bool | None:
    """Whether an answer is right given the gold answers, of which any will do; None where there are none.

    A gold answer `C. text` beside `text` is an option: its letter alone is right, another letter before it is wrong.

    >>> grade("It was painted by Leonardo, in 1503.", ["Leonardo"], Grading("contains"))
    True
    >>> grade("Leonardo or Raphael", ["Leonardo"], Grading("contains"))
    False
    """
    if not gold:
        return None
    if any(_alike(answer, g) for g in gold):
        return True
    if letters := option_letters(gold):
        alone = _LETTER.fullmatch(answer)
        if (given := alone or _LABELLED.fullmatch(answer)) and (alone or given[1].upper() not in letters):
            return given[1].upper() in letters
    gold = [*gold, *chain.from_iterable(map(_said_in, gold))]
    if any(are_equal(answer, g) for g in gold):
        return True
    forms = {normalize(g) for g in gold}
    if any(_UNANSWERABLE.search(form) for form in forms) and _UNANSWERABLE.search(normalize(answer)):
        return True
    if forms <= _YES | _NO and (grading.kind != "exact" or " " not in normalize(answer)):
        return _polarity(answer) in {form in _YES for form in forms}
    if grading.kind == "exact":
        return False
    return _holds(answer, gold, grading.words) if grading.kind == "contains" else _f1(answer, gold) >= grading.f1


def _said_in(gold: str) -> list[str]:
    """The answers within a gold answer: what stands before brackets, an abbreviation in them, both sides of an `or`;
    not the sides of `16 or older`, one of which is no answer."""
    outside, brackets, inside = gold.partition(" (")
    if brackets and outside and inside.endswith(")"):
        return [outside, *([inside[:-1]] if inside[:-1].isupper() else [])]
    sides = _OR.split(gold)
    is_said = len(sides) > 1 and all(len(s.split()) <= LONGEST_SIDE for s in sides)
    return sides if is_said and not any(c.isdigit() for c in gold) else []


def option_letters(gold: Sequence[str]) -> frozenset[str]:
    """Letters of the right options: those of gold answers `C. text` whose text alone is a gold answer too."""
    found = (_LABELLED.fullmatch(g) for g in gold)
    return frozenset(f[1].upper() for f in found if f and f[2] in gold)


def _polarity(answer: str) -> bool | None:
    """Whether an answer says yes or no, by the first word that does; None where none does."""
    return next((w in _YES for w in words_of(answer) if w in _YES or w in _NO), None)


def _holds(answer: str, gold: Sequence[str], words: int) -> bool:
    """Whether an answer contains a gold answer in its first words, or is most of one. Of several alternative guesses,
    two or more than half have to; what is said before a colon is no guess."""
    golds = [Words.of(g) for g in gold]

    def is_right(text: str) -> bool:
        said = Words.of(text, words)
        return holds(said, golds) or any(is_most_of(said, g) for g in golds)

    if not is_right(answer):
        return False
    listed = guesses(answer)
    right = sum(is_right(one) for one in listed)
    lists = [Words.of(g) for g in gold if len(guesses(g)) > 1]
    return (
        min(2, len(listed)) <= right
        or 2 * right > len(listed)
        or holds(Words.of(answer, words), lists)
        or is_right(answer.rpartition(": ")[0])
    )


def _f1(answer: str, gold: Sequence[str]) -> float:
    """The greatest F1 of an answer's words with a gold answer's."""
    said = Counter(words_of(answer))

    def f1(words: Counter[str]) -> float:
        return 2 * (said & words).total() / max(said.total() + words.total(), 1)

    return max(f1(Counter(words_of(g))) for g in gold)
