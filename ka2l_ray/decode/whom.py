"""Which tokens of a question say of whom or what it asks.

In: questions, their entities and groups. Out: a span of characters for each, and the tokens of its prompt in it.
The entity where the question contains it; where it does not, what sets the question apart from the others of its group:
from its first to its last word that few of them share; without a group, the run of words that are rarest among all
questions; where there are too few to tell, the whole question.
Refuses to know: models, states, Ray.
"""

import math
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
RARE, FEWEST_IN_ALL = 0.01, 200
"""In a question without a group a word counts for the span as far as it is in fewer than this share of all questions,
and against it as far as it is in more; for which there must be so many."""
MOST_FOR, MOST_AGAINST = 3.0, 1.2
"""What a word counts at most, in nats: so little against it that names with small words in them stay whole."""
MOST_TOKENS = 32
"""Tokens of a span at most; of longer ones the first count."""
_WORD = re.compile(r"\w+(?:[’'\-.]\w+)*")


@dataclass(frozen=True)
class CommonWords:
    """`of_group` are by group the words, in lower case, that are common in its questions; `shares` of all words the
    share of all questions that contain them, empty where there are too few questions."""

    of_group: Mapping[str, frozenset[str]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, questions: Iterable[tuple[str, str | None]]) -> "CommonWords":
        """From (question, group) pairs."""
        asked, seen, everywhere, count = dict[str, Counter[str]](), Counter[str](), Counter[str](), 0
        for question, group in questions:
            words = {w.lower() for w in _WORD.findall(question)}
            everywhere.update(words)
            count += 1
            if group:
                seen[group] += 1
                asked.setdefault(group, Counter()).update(words)
        common = {
            group: frozenset(w for w, n in words.items() if n >= COMMON * seen[group])
            for group, words in asked.items()
            if seen[group] >= FEWEST
        }
        # a word of one question alone is rare enough not to be stored
        shares = {w: n / count for w, n in everywhere.items() if n > 1} if count >= FEWEST_IN_ALL else {}
        return cls(common, shares | {"": 1 / count} if shares else {})

    def whom(self, question: str, entity: str | None, group: str | None) -> tuple[int, int]:
        """The characters [start, end) of a question that say of whom it asks."""
        if entity and (named := list(re.finditer(re.escape(entity), question, re.IGNORECASE))):
            return named[-1].span()
        words = [(m[0].lower(), m.span()) for m in _WORD.finditer(question)]
        common = self.of_group.get(group or "")
        if common is not None:
            words = [(word, span) for word, span in words if word not in common]
        else:
            words = self._rarest_run(words) if self.shares else []
        return (words[0][1][0], words[-1][1][1]) if words else (0, len(question.rstrip()))

    def _rarest_run(self, words: list[tuple[str, tuple[int, int]]]) -> list[tuple[str, tuple[int, int]]]:
        """The consecutive words with the greatest sum of weights; none where no word is rare."""
        rare = max(RARE, 1.5 * self.shares[""])
        best, total, start, found = 0.0, 0.0, 0, (0, 0)
        for n, (word, _) in enumerate(words):
            weight = math.log(rare / self.shares.get(word, self.shares[""]))
            weight = max(-MOST_AGAINST, min(MOST_FOR, weight))
            if total < 0:
                total, start = 0.0, n
            total += weight
            if total >= best:
                best, found = total, (start, n + 1)
        return words[found[0] : found[1]]


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
