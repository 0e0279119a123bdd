"""Numbers in words, with scales, ordinals and Roman numerals, as digits.

In: words in lower case, without punctuation. Out: the same words, every number among them in digits.
Refuses to know: what is equal to what. English only; Roman numerals from II to XXXIX, whose letters spell few words.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

_SMALL = {
    word: n
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {w: 10 * n for n, w in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_CARDINALS = _SMALL | _TENS | _SCALES
_IRREGULAR = {1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth", 9: "ninth", 12: "twelfth"}
_ORDINALS = {
    _IRREGULAR.get(n) or (f"{word[:-1]}ieth" if word.endswith("y") else f"{word}th"): n
    for word, n in _CARDINALS.items()
    if word != "dozen"
}
_ROMAN = re.compile(r"(?=..)x{0,3}(?:ix|iv|v?i{0,3})")
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")
LONGEST = 15
"""Digits before a scale word, and words of one number, at most; longer ones are no amounts."""


def is_number(word: str) -> bool:
    """Whether a word is a number in digits, with or without sign and decimals."""
    return word[-1:].isdecimal() and bool(_DIGITS.fullmatch(word))


def in_digits(words: Sequence[str]) -> list[str]:
    """The words with numbers in digits.

    >>> in_digits("one hundred and five or the twenty first of 1.5 million in world war ii".split())
    ['105', 'or', 'the', '21st', 'of', '1500000', 'in', 'world', 'war', '2']
    """
    found: list[str] = []
    at = 0
    while at < len(words):
        length, number = _number_at(words, at)
        if length == 0:
            found.append(words[at])
        elif is_number(number) and number[0] != "-" and _is_sign(found):
            found[-1] = f"-{number}"
        else:
            found.append(number)
        at += length or 1
    return found


def _is_sign(words: Sequence[str]) -> bool:
    """Whether the last word is a sign before a number rather than what is done with the one before."""
    return bool(words) and words[-1] in ("minus", "negative") and not (len(words) > 1 and is_number(words[-2]))


def _number_at(words: Sequence[str], at: int) -> tuple[int, str]:
    """How many words from here on are one number, and that number; (0, "") where there is none."""
    word = words[at]
    if word in _CARDINALS:
        return _in_words(words, at)
    if is_number(word):
        return _scaled(words, at)
    if word == "second" and at and (is_number(words[at - 1]) or words[at - 1] in _SMALL):
        return 0, ""  # a unit of time
    if word in _ORDINALS:
        return 1, _ordinal(_ORDINALS[word])
    if _ROMAN.fullmatch(word):
        return 1, str(_roman(word))
    return 0, ""


def _scaled(words: Sequence[str], at: int) -> tuple[int, str]:
    """A number in digits with the scales behind it."""
    amount, length = Decimal(words[at]), 1
    while at + length < len(words) and words[at + length] in _SCALES and max(len(words[at]), length) <= LONGEST:
        amount *= _SCALES[words[at + length]]
        length += 1
    return (1, words[at]) if length == 1 else (length, plain(amount))


def plain(amount: Decimal) -> str:
    """Digits without exponent and without zeros after the last decimal."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _in_words(words: Sequence[str], start: int) -> tuple[int, str]:
    """A number that begins here in words: `two hundred and five`, `nineteen eighty four`, `twenty first`."""
    total, part, at, last = 0, 0, start, 10**18
    while at < min(len(words), start + LONGEST):
        word, ahead = words[at], words[at + 1 : at + 2]
        small = _SMALL.get(word) if word in _SMALL else _TENS.get(word)
        if small is not None and (at == start or small < last):
            part, last = part + small, 10 if small >= 20 else 1
        elif small is not None and small >= 10 and total == 0 and 10 <= part <= 20 and at > start:
            part, last = 100 * part + small, 10 if small >= 20 else 1  # a year
        elif word in _SCALES and not (at > start and part == 0 and total == 0):
            scale = _SCALES[word]
            if total and total < scale:
                total, part = 0, total + part
            part = max(part, 1) * scale
            if scale >= 1000:
                total, part = total + part, 0
            last = min(100, scale)
        elif (
            word == "and"
            and last == 100
            and ahead
            and min(_CARDINALS.get(ahead[0], 100), _ORDINALS.get(ahead[0], 100)) < 100
        ):
            pass
        elif at > start and 0 < _ORDINALS.get(word, 0) < last:
            return at + 1 - start, _ordinal(total + part + _ORDINALS[word])
        else:
            break
        at += 1
    return at - start, str(total + part)


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _roman(numeral: str) -> int:
    """The value of a Roman numeral of the letters i, v and x."""
    values = [{"i": 1, "v": 5, "x": 10}[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))
