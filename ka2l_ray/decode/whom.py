"""Which tokens of a question say of whom or what it asks.

In: questions, their entities and groups. Out: a span of characters for each, and the tokens of its prompt in it.
The entity where the question contains it; where it does not, what sets the question apart from the others of its group:
from its first to its last word that few of them share; else the whole question.
Refuses to know: models, states, Ray.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ka2l_ray.text.prompts import Prompter

COMMON = 0.2
"""A word that at least this share of a group's questions contain says what is asked, not of whom."""
FEWEST = 20
"""Questions that a group must have for that."""
MOST_TOKENS = 32
"""Tokens of a span at most; of longer ones the first count."""
_WORD = re.compile(r"\w+(?:[’'\-.]\w+)*")


@dataclass(frozen=True)
class CommonWords:
    """By group the words, in lower case, that are common in its questions; the key None stands for questions without a
    group."""

    of_group: Mapping[str | None, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, questions: Iterable[tuple[str, str | None]]) -> "CommonWords":
        """From (question, group) pairs. A question without a group has no common words, because it may ask anything."""
        asked, seen = dict[str, Counter[str]](), Counter[str]()
        for question, group in questions:
            if group:
                seen[group] += 1
                asked.setdefault(group, Counter()).update({w.lower() for w in _WORD.findall(question)})
        return cls(
            {
                group: frozenset(w for w, n in words.items() if n >= COMMON * seen[group])
                for group, words in asked.items()
                if seen[group] >= FEWEST
            }
        )

    def whom(self, question: str, entity: str | None, group: str | None) -> tuple[int, int]:
        """The characters [start, end) of a question that say of whom it asks."""
        if entity and (at := question.lower().rfind(entity.lower())) >= 0:
            return at, at + len(entity)
        common = self.of_group.get(group)
        if common is not None:
            rare = [m.span() for m in _WORD.finditer(question) if m[0].lower() not in common]
            if rare:
                return rare[0][0], rare[-1][1]
        return 0, len(question.rstrip())


NO_GROUPS = CommonWords()
"""Nothing is known to be common."""


WHOM = ["question", "entity", "group"]
"""Columns that tell."""


def whom_tokens(
    prompter: Prompter, questions: Sequence[Mapping[str, Any]], common: CommonWords = NO_GROUPS
) -> list[tuple[int, int]]:
    """Of the prompt of each question, with the columns `WHOM`, the tokens [first, after the last) that say of whom it
    asks, at most `MOST_TOKENS`."""
    spans = [common.whom(q["question"], q["entity"], q["group"]) for q in questions]
    at = prompter.tokens_at([q["question"] for q in questions], spans)
    return [(first, min(last, first + MOST_TOKENS)) for first, last in at]
