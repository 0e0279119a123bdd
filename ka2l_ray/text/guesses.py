"""Answers that list several guesses instead of giving one.

In: an answer. Out: its guesses, one where it is no list.
Refuses to know: which guess is right.
"""

import re

_APART = re.compile(
    r"\n+|;|(?<![\d\s])/(?!\d)|(?<=\s)[/|]\s|(?:^|(?<=\s))\(?\d{1,2}[.)]\s|(?:^|(?<=\n))\s*[-*•]\s|"
    r",?\s*\b(?:or|maybe|perhaps|possibly)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\b(?:or|maybe|perhaps|possibly)\b", re.IGNORECASE)
_EITHER = re.compile(
    r"\A(?:.{0,80}\b(?:is|are|was|were|be|it's|by|in)\s+)?(?:either|probably|possibly|perhaps|maybe)\s+",
    re.IGNORECASE | re.DOTALL,
)
_VERB = re.compile(r"\b(?:is|are|was|were|be|been|by)\b", re.IGNORECASE)
LONGEST_GUESS = 6
"""Words; longer parts, or parts with a verb, are sentences, which may mention other things beside what they answer."""
COMMAS, LONGEST_BETWEEN_COMMAS = 4, 3
"""Parts between commas that make a list without `or`, and their words at most: fewer are a place and its country."""


def guesses(answer: str) -> list[str]:
    """The guesses that an answer lists: lines, numbered items, parts between `;`, `/`, `or`, or many commas; the whole
    answer where it is a sentence.

    >>> guesses("Paris, Lyon or Nice"), guesses("Lowell, Massachusetts, USA")
    (['Paris', 'Lyon', 'Nice'], ['Lowell, Massachusetts, USA'])
    """
    spaced = re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", answer)  # long runs would take long below
    listed = _EITHER.sub("", spaced.rpartition(": ")[2], count=1)
    parts = _said(_APART.split(listed))
    if len(parts) > 1 and _CHOICE.search(listed):
        parts = _said([one for part in parts for one in part.split(",")])
    if len(parts) < 2:
        commas = _said(re.split(r",(?!\d)", listed))
        long = max((len(c.split()) for c in commas), default=0)
        parts = commas if len(commas) >= COMMAS and long <= LONGEST_BETWEEN_COMMAS else parts
    return parts if len(parts) > 1 and all(_is_guess(p) for p in parts) else [answer]


def _is_guess(part: str) -> bool:
    return len(part.split()) <= LONGEST_GUESS and not _VERB.search(part)


def _said(parts: list[str]) -> list[str]:
    return [part.strip(" .,\t\n") for part in parts if any(c.isalnum() for c in part)]
