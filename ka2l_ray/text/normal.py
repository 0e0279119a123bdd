"""One form for all spellings of a text: what answers and questions are compared by.

In: text. Out: words in lower case, single spaces between them. Two texts with one form say the same.
Removed: case, accents of alphabets in which they are optional, punctuation, articles, invisible characters, spaces in
scripts that write none, `%`, `°` and `$`. Written one way: numbers (`1,776`, `five million`, `21st`, `World War II`),
minus signs and dashes, dates (day, month, year), initials (`J. R. R.`, `U.S.`), units behind a number, `&`.
Kept, because they change what is said: a sign before a number, decimals, `C++`, `C#`, `A+`, `.NET`.
Refuses to know: which text is an answer, models, tables.
Source of the idea: SQuAD (Rajpurkar et al., 2016), which removes case, punctuation and articles.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from ka2l_ray.text.numbers import in_digits, is_number

_PLUS, _HASH, _POINT, _MINUS, _POWER, _LESS, _MORE = "\ue000\ue001\ue002\ue003\ue004\ue005\ue006"
_KEPT = str.maketrans(dict(zip((_PLUS, _HASH, _POINT, _MINUS, _POWER, _LESS, _MORE), "+#.-^<>", strict=True)))
"""Signs that mean something where they stand go through the removal of punctuation as private characters."""
_LETTER = r"[^\W\d_]"
_NAMES = "january february march april may june july august september october november december".split()
_MONTH = {name[:n]: name for name in _NAMES for n in (3, len(name))} | {"sept": "september"}
MONTHS = frozenset(_NAMES)
_UNITS = {
    "km": "kilometer kilometre", "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "mi": "mile", "ft": "foot feet", "in": "inch inche", "yd": "yard", "kg": "kilogram kilogramme kilo",
    "g": "gram gramme", "mg": "milligram milligramme", "lb": "pound", "oz": "ounce", "l": "liter litre",
    "ml": "milliliter millilitre", "h": "hour hr", "min": "minute", "s": "second sec", "d": "day", "wk": "week",
    "mo": "month", "yr": "year", "c": "celsius centigrade", "f": "fahrenheit", "k": "kelvin", "hz": "hertz",
    "mph": "", "kmh": "", "mb": "megabyte", "gb": "gigabyte", "tb": "terabyte", "kb": "kilobyte", "bc": "bce",
    "ad": "ce", "€": "euro eur", "£": "gbp", "¥": "yen",
}  # fmt: skip
_UNIT = {word: unit for unit, words in _UNITS.items() for word in (unit, *words.split())}
_UNSAID = {"%", "percent", "degree", "dollar", "usd"}
"""Units that are left out behind a number, as their signs `%`, `°` and `$` are."""
_SIGN_OF = {"$": "$", "dollar": "$", "usd": "$", "%": "%", "percent": "%", "per cent": "%", "°": "°", "degree": "°"}
_SAID = re.compile(r"[$%°]|\b(?:dollar|usd|percent|per cent|degree)")
_GLUED = "|".join(
    sorted((u for u in _UNIT if u.isalpha() and u not in ("d", "s", "h", "k", "f", "c")), key=len, reverse=True)
)
_LONG = {
    "st": "saint", "mt": "mount", "dr": "doctor", "mr": "mister", "jr": "junior", "sr": "senior", "vs": "versus",
}  # fmt: skip
_ARTICLES = frozenset(("a", "an", "the"))
_LATIN = str.maketrans(dict(zip("øłđðþıæœ", ("o", "l", "d", "d", "th", "i", "ae", "oe"), strict=True)))
_OPTIONAL_MARKS = ("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC")
_BREVE = "\u0306"
"""й is a letter of its own, not an и with an accent."""
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
"""A character of a script that writes no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese,
Chinese."""

_Into = str | Callable[[re.Match[str]], str]
_BEFORE: tuple[tuple[re.Pattern[str], _Into], ...] = (
    (re.compile(r"(?<=\d)([⁰¹²³⁴-⁹]+)"), rf"{_POWER}\1"),
    (re.compile(rf"(?<={_LETTER}{{3}})[⁰¹²³⁴-⁹]+"), " "),  # the number of a footnote
    (re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])"), " "),
    (re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))"), ""),
)
"""Replaced before Unicode's compatible characters are made one."""
_DIGIT = "0123456789"
_AFTER: tuple[tuple[str, re.Pattern[str], _Into], ...] = (
    ("_", re.compile(r"_"), " "),
    ("[", re.compile(r"(?<=\w)\[\d{1,3}\]"), " "),  # the number of a footnote
    ("&", re.compile(r"&"), " and "),
    ("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", re.compile(r"[\u2010-\u2015\u2212]"), "-"),
    ("<", re.compile(r"</?[a-z][^<>]*>"), " "),  # a mark of HTML
    ("<", re.compile(r"<(?!-)"), f" {_LESS} "),
    (">", re.compile(r"(?<![-=])>(?=\s*[\d.])|(?<=\w)\s*>(?=\s*\w)"), f" {_MORE} "),
    ("+", re.compile(r"\+ve(?=s?\b)"), " positive "),
    ("-", re.compile(r"(?<![a-z]{3})-ve(?=s?\b)"), " negative "),
    (_DIGIT, re.compile(r"\bper cent\b"), "percent"),
    ("'’", re.compile(r"(?<=\d)['’](?=\d{3}(?!\d))"), ""),
    (",", re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?!,?\d)"), lambda m: m[1] + m[2].replace(",", "")),
    (".", re.compile(r"(?<![\d.,])(\d{1,3})((?:\.\d{3}){2,})(?!\.?\d)"), lambda m: m[1] + m[2].replace(".", "")),
    (",", re.compile(r"(?<![\d.,])(\d+),(\d{1,2})(?![\d]|[.,]\d)"), r"\1.\2"),
    (".", re.compile(r"(?<!\d)(?<!\d\.)(\d+)\.0+(?!\.?\d)"), r"\1"),
    (".", re.compile(r"(?<![\w.])\.(?=\d)"), "0."),
    (
        "-",
        re.compile(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?:t[\d:]+| 00:00(?::00)?)?(?![\d-])"),
        lambda m: _day(*m.groups()),
    ),
    ("/.", re.compile(r"(?<!\d)(\d{1,2})[/.](\d{1,2})[/.](\d{4})(?!\d)"), lambda m: _numeric_date(m)),
    (":", re.compile(r"(?<!\d)(\d{1,2}):00(?=\s*[ap]\.?m\b)"), r"\1"),
    ("-", re.compile(r"(?<=\d)\s*-\s*(?=[\d.$])"), " "),
    ("-", re.compile(r"(?:^|(?<=[\s(\[{=:,;\"'«“]))\$?-{1,2}\$?(?=\.?\d)"), _MINUS),
    (".", re.compile(r"(?<=\d)\.(?=\d)"), _POINT),
    ("^", re.compile(r"(?<=\d)\^(?=\d)"), _POWER),
    (".*", re.compile(rf"(?<!\w)(?:{_LETTER}[.*]\s?)+{_LETTER}?(?!\w)[.*]?"), lambda m: _initials(m[0])),
    (".", re.compile(rf"(?<![\w.])\.(?={_LETTER})"), _POINT),
    ("+", re.compile(rf"(?<={_LETTER})(?:\+\+|\+(?!\w))"), lambda m: _PLUS * len(m[0])),
    ("#", re.compile(rf"(?<={_LETTER})#(?!\w)"), _HASH),
    ("-", re.compile(rf"(?<!\w)({_LETTER}|ab)-(?=\s|$|[.,;)!?])"), rf"\1{_MINUS}"),
    (_DIGIT, re.compile(rf"(?<![\w\ue002])(\d[\d\ue002]*)({_GLUED})(?![^\W_])"), r"\1 \2"),
)
"""Replaced in lower case, in this order, in texts that have one of the characters named first."""
_MARKS = frozenset("".join(needed for needed, _, _ in _AFTER))


class _Words(dict[int, str | int | None]):
    """What `str.translate` makes of each character: punctuation and symbols become spaces, invisible ones nothing."""

    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cf":
            self[code] = None
        elif category == "Sc" and character != "$":
            self[code] = f" {character} "
        else:
            kept = character in "♭♮" or (category == "Sm" and code > 127)
            self[code] = code if kept or (category[0] not in "PSZ" and category != "Cc") else " "
        return self[code]


_WORDS = _Words()


@lru_cache(2**14)
def normalize(text: str) -> str:
    """The one form of a text, which is its own form. A text of only articles or punctuation keeps them, so that `A` or
    `%` never equals an empty answer; an article at the end is none (`Plan A`).

    >>> normalize("On the 4th of July, 1,776 J.R.R. Tolkiens paid −$5.50 for C++ in World War II.")
    'on 4 july 1776 jrr tolkiens paid -5.50 for c++ in world war 2'
    """
    folded = _folded(text)
    marks = _MARKS.intersection(folded)
    for needed, pattern, into in _AFTER if marks else ():
        if not marks.isdisjoint(needed):
            folded = pattern.sub(into, folded)
            marks = _MARKS.intersection(folded)
    words = folded.translate(_WORDS).translate(_KEPT).split()
    said = in_digits([_LONG.get(w, w) for n, w in enumerate(words) if w not in _ARTICLES or n == len(words) - 1])
    said = _units(said) if any(map(is_number, said)) else said
    form = " ".join(said if _MONTH.keys().isdisjoint(said) else _dates(said))
    return _UNSPACED_GAP.sub("", form) or " ".join(_folded(text).split())


def left_out(text: str) -> frozenset[str]:
    """The units that a text says and its form leaves out: `$`, `%`, `°`, or none."""
    return frozenset(_SIGN_OF[word] for word in _SAID.findall(text.casefold()))


def said_unit(form: str, other: str) -> bool:
    """Whether one form is a number and the other the same number with a unit."""
    number, _, unit = other.partition(" ")
    return is_number(form) and form == number and unit in _UNITS


def words_of(text: str) -> list[str]:
    """The words of a text's form; a character of a script without spaces is a word of its own."""
    return _UNSPACED.sub(r" \g<0> ", normalize(text)).split()


def _folded(text: str) -> str:
    """Lower case, compatible characters as one, ASCII digits, no optional accents."""
    if text.isascii():
        return text.casefold()
    for pattern, into in _BEFORE:
        text = pattern.sub(into, text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).replace("\u2044", "/")
    return unicodedata.normalize("NFC", "".join(_without_marks(unicodedata.normalize("NFD", text)))).translate(_LATIN)


def _without_marks(text: str) -> list[str]:
    kept: list[str] = []
    base = ""
    for character in text:
        if unicodedata.category(character) == "Cf":
            continue
        if not unicodedata.combining(character):
            base = unicodedata.name(character, "")
            kept.append(str(unicodedata.decimal(character, character)))
        elif not base.startswith(_OPTIONAL_MARKS) or (character == _BREVE and base.startswith("CYRILLIC")):
            kept.append(character)
    return kept


def _initials(found: str) -> str:
    return "".join(c for c in found if c.isalpha()) + " "


def _day(year: str, month: str, day: str) -> str:
    """A date in digits as day, name of the month, year; unchanged where there is no such month."""
    if not 1 <= int(month) <= 12:
        return f"{year}-{month}-{day}"
    return f"{int(day)} {_NAMES[int(month) - 1]} {year}"


def _numeric_date(found: re.Match[str]) -> str:
    """A date such as 31/12/1999 or 12/31/1999; unchanged where day and month could be either."""
    first, second, year = found.groups()
    day, month = (second, first) if int(second) > 12 else (first, second)
    return found[0] if int(day) <= 12 or int(month) > 12 else _day(year, month, day)


def _units(words: Sequence[str]) -> list[str]:
    """Units behind a number, written one way or left out; a currency's sign before a number goes behind it."""
    found: list[str] = []
    for word in words:
        single = word[:-1] if word.endswith("s") and len(word) > 2 else word
        before, sign = ["", "", *found[-2:]][-2:]
        if is_number(word) and _is_currency(_UNIT.get(sign, sign)) and not (is_number(before) or _is_currency(before)):
            found[-1:] = [word, _UNIT.get(sign, sign)]
        elif not is_number(sign):
            found.append(word)
        elif single not in _UNSAID:
            found.append(_UNIT.get(word) or _UNIT.get(single, word))
    return found


def _is_currency(word: str) -> bool:
    return len(word) == 1 and unicodedata.category(word) == "Sc"


def _dates(words: Sequence[str]) -> list[str]:
    """Dates as day, name of the month, year, as far as they are said: `may 18th 2018`, `18th of may`, `sept 2018`."""
    found: list[str] = []
    at = 0
    while at < len(words):
        rest = words[at : at + 4]
        of = len(rest) > 2 and rest[1] == "of"
        if (day := _day_of_month(rest[0])) and len(rest) > 1 + of and (month := _MONTH.get(rest[1 + of])):
            found += [day, month]
            at += 2 + of
        elif (month := _MONTH.get(rest[0])) and len(rest) > 1 and (day := _day_of_month(rest[1])):
            found += [day, month]
            at += 2
        elif month and len(rest) > 1 + of and _YEAR.fullmatch(rest[1 + of]):
            found.append(month)
            at += 1
        else:
            found.append(rest[0])
            at += 1
            continue
        at += at + 1 < len(words) and words[at] == "of" and bool(_YEAR.fullmatch(words[at + 1]))
    return found


def is_day(word: str) -> bool:
    """Whether a word may be a day of a month."""
    return _day_of_month(word) is not None


def is_year(word: str) -> bool:
    """Whether a word may be a year."""
    return bool(_YEAR.fullmatch(word))


def _day_of_month(word: str) -> str | None:
    found = _DAY.fullmatch(word)
    return str(int(found[1])) if found and 1 <= int(found[1]) <= 31 else None


_DAY, _YEAR = re.compile(r"(\d{1,2})(?:st|nd|rd|th)?"), re.compile(r"[12]\d{3}")
_UNSPACED_GAP = re.compile(rf"(?<={_UNSPACED.pattern})\s+(?={_UNSPACED.pattern})")
