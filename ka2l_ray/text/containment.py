"""Whether the words of one text are within those of another, as a person reads them.

In: words of answers. Out: booleans.
Alike are: singular and plural; a name with and without its middle names or with initials; words with other little
words between them; a day's date and its month, where the answer says no day. Not alike: what is denied (`not Paris`),
another date of the year that was asked for.
Refuses to know: alternatives, letters of options, whether an answer is right.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from ka2l_ray.text.normal import MONTHS, is_day, is_year, words_of
from ka2l_ray.text.numbers import is_number

LITTLE = frozenset(
    "a an the of in on at to for by with and or as is was be are were from his her its their about around "
    "approximately circa until till during between since into up s".split()
)
"""Words that do not tell answers apart, and what an apostrophe leaves of a possessive."""
BETWEEN = 2
"""Little words, or middle names, between two words of a gold answer at most."""
_RUN_ON = re.compile(
    r"(?<!\w)[a-z]{2,}(?=[A-Z])|(?<=[^\W\d_]{3})(?=\d)|(?<=\d)(?=[A-Z][^\W\d_]{2})|(?<=[\dhtd],\s)[12]\d{3}(?=\d{1,2}\b)"
)
"""Ends of words that lost the space behind them, as where marks of bold type or footnotes were cut out; a name such as
`JavaScript` begins with a capital and is one word."""
_NAME = re.compile(r"[A-Z\u00c0-\u00de][\w.’']*(?:[\s-]+[A-Z\u00c0-\u00de][\w.’']*)+")


@dataclass(frozen=True)
class Words:
    """A text's words in the singular (`single`), and the same with words apart that ran into one another or into a
    footnote's number (`apart`). `name`: it looks like a name."""

    single: tuple[str, ...]
    apart: tuple[str, ...]
    name: bool

    @classmethod
    def of(cls, text: str, most: int | None = None) -> Self:
        """The words of a text, or its first ones."""
        single = _single(words_of(text)[:most])
        apart = _single(words_of(_RUN_ON.sub(r"\g<0> ", text))[:most]) if _RUN_ON.search(text) else single
        return cls(single, apart, bool(_NAME.fullmatch(text.strip())))

    @cached_property
    def content(self) -> tuple[str, ...]:
        """Its words without the little ones, in the singular; all where there are no others."""
        return tuple(w for w in self.single if w not in LITTLE) or self.single


def _single(words: Sequence[str]) -> tuple[str, ...]:
    """Words without the ending of a plural."""
    return tuple(
        (w[:-2] if w.endswith(("ses", "xes", "zes", "ches", "shes")) else w[:-1])
        if len(w) > 3 and w.endswith("s") and not w.endswith("ss") and w.isalpha()
        else w
        for w in words
    )


def holds(said: Words, golds: Sequence[Words]) -> bool:
    """Whether an answer's words contain one of the gold answers."""
    return any(
        not _is_denied(words, start) and not _is_other_date(words, start, gold, golds)
        for gold in golds
        for words, start in _places(said, gold)
    )


def _places(said: Words, gold: Words) -> Iterator[tuple[Sequence[str], int]]:
    """Where the words of a gold answer begin, and in which reading."""
    whole, content = gold.single, gold.content
    for words in dict.fromkeys((said.single, said.apart)):
        for at, word in enumerate(words):
            if (
                tuple(words[at : at + len(whole)]) == whole
                or (word in content and MONTHS.isdisjoint(content) and _are_near(words, at, content))
                or (gold.name and _same_name(words, at, whole))
                or (word in MONTHS and _is_month_of(words, at, whole))
            ):
                yield words, at


def _are_near(words: Sequence[str], at: int, wanted: Sequence[str]) -> bool:
    """Whether the wanted words are among those from here on: with little words between them only, or, of three and
    more, `BETWEEN` others too. Three and more may be in any order in a text much longer than they are, where it is
    the sentence that decides it; two only side by side."""
    if len(wanted) > 2 and len(words) <= 2 * len(wanted):
        return _are_in_order(words[at:], wanted)
    if len(wanted) == 2 and words[at] != wanted[0]:
        return tuple(words[at : at + 2]) == tuple(reversed(wanted))
    near, others = set[str](), BETWEEN if len(wanted) > 2 else 0
    for word in words[at : at + 3 * (len(wanted) + BETWEEN)]:
        if word in wanted:
            near.add(word)
        elif word not in LITTLE:
            others -= 1
        if others < 0 or len(near) == len(set(wanted)):
            break
    return len(near) == len(set(wanted))


def _are_in_order(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether words begin with the wanted ones, apart from little words."""
    return tuple(w for w in words if w not in LITTLE or w in wanted)[: len(wanted)] == tuple(wanted)


def _same_name(words: Sequence[str], at: int, name: Sequence[str]) -> bool:
    """Whether a name stands here whose first and last words are those of `name`. Where both have middle names, one's
    are the other's or their initials; first names may be initials, written together too."""
    if len(name) < 2:
        return False
    for last in range(at + 1, min(at + 2 + BETWEEN, len(words))):
        middle = words[at + 1 : last]
        if words[last] != name[-1] or not LITTLE.isdisjoint(middle):
            continue
        if words[at] == name[0] and (not middle or len(name) == 2 or all(_is_initial(m, name[1:-1]) for m in middle)):
            return True
        if not middle and len(words[at]) == len(name) - 1 and words[at] == "".join(n[0] for n in name[:-1]):
            return True
        if len(name) == 2 and len(name[0]) == last - at and name[0] == "".join(w[0] for w in words[at:last]):
            return True
    return False


def _is_initial(word: str, names: Sequence[str]) -> bool:
    return any(word == n or (word[0] == n[0] and 1 in (len(word), len(n))) for n in names)


def _is_month_of(words: Sequence[str], at: int, date: Sequence[str]) -> bool:
    """Whether month and year without a day stand here and are those of `date`."""
    said = words[at : at + 2]
    return (
        len(date) == 3
        and is_day(date[0])
        and tuple(said) == tuple(date[1:])
        and is_year(said[1])
        and not (at and is_day(words[at - 1]))
    )


def _is_denied(words: Sequence[str], at: int) -> bool:
    """Whether `not`, or what its apostrophe left of it, stands directly before."""
    before = ("", "", *words[:at])[-2:]
    return before[1] in ("not", "non") or (before[1] == "t" and before[0].endswith("n"))


def _is_other_date(words: Sequence[str], at: int, gold: Words, golds: Sequence[Words]) -> bool:
    """Whether a year, or month and year, belongs to a date here that contradicts every fuller gold date of it."""
    fuller = [g.single for g in golds if len(g.single) > len(gold.single) and _is_date(g.single)]
    fuller = [g for g in fuller if g[-len(gold.single) :] == gold.single]
    start = at
    while start and (words[start - 1] in MONTHS or (is_day(words[start - 1]) and words[start] in MONTHS)):
        start -= 1
    date = tuple(words[start:at]) + gold.single
    return start < at and bool(fuller) and not any(a == b[-len(a) :] for g in fuller for a, b in ((g, date), (date, g)))


def _is_date(words: Sequence[str]) -> bool:
    return bool(words) and all(w in MONTHS or is_day(w) or is_year(w) for w in words)


def is_most_of(said: Words, gold: Words) -> bool:
    """Whether a short answer is at least half of a gold answer: two or more of its words in a row, all of its numbers
    among them."""
    mine, whole = said.content, gold.content
    if not (2 <= len(mine) < len(whole) <= 2 * len(mine)) or _is_date(whole):
        return False
    if {w for w in whole if is_number(w)}.difference(mine):
        return False
    return any(whole[n : n + len(mine)] == mine for n in range(len(whole) - len(mine) + 1))
