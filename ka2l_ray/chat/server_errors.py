"""What a server says is wrong with a request: in which words, for how long, and with which part of it.

In: the status, headers and body of a response, the request. Out: a `Complaint`, a wait, the name of a part.
Refuses to know: HTTP connections, what is done about it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

from pydantic import JsonValue

EXCERPT_CHARACTERS = 300
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|milli|s|m|h|d)[a-z]*", re.IGNORECASE)
_WAIT = re.compile(
    rf"(?:again|retry|wait|retrydelay)\D{{0,40}}?((?:{_AMOUNT.pattern}(?![a-z])[\s,]*(?:and\s+)?)+)", re.IGNORECASE
)
"""`Please try again in 1m2.5s`, `Please retry in 36 seconds`, `"retryDelay": "36s"`."""
_REFUSES = re.compile(
    r"unsupported|not (?:be )?support|n['’]t support|unrecogni[sz]ed|unknown|unexpected|deprecated|removed|may only"
    r"|cannot (?:be|both)|not (?:permitted|allowed|available|accepted)|extra[_ ](?:forbidden|inputs|fields)"
    r"|only the default",
    re.IGNORECASE,
)
_WRONG_REQUEST = re.compile(
    r"(?:invalid|bad|unprocessable)[_ ]?(?:request|argument|parameter|value|entity)|validation[_ ]?error"
    r"|(?:unsupported|unknown)[_ ]?(?:parameter|value)",
    re.IGNORECASE,
)
"""How the type of an error says that the request is wrong, in place of a status."""
_SYSTEM = re.compile(
    r"system['\"`]? (?:role|message|prompt|instruction)|role.{0,40}system|roles (?:must|are)|not support.{0,10}system",
    re.IGNORECASE | re.DOTALL,
)
SYSTEM = "system"
"""The name of a system message among the parts of a request."""


@dataclass(frozen=True)
class Complaint:
    """What a server says is wrong: a status, which may be in the body alone, and its own words, whole. `status` is a
    guess where a server sends none of its own."""

    status: int
    words: str
    document: JsonValue = None
    is_guess: bool = False

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.words[:EXCERPT_CHARACTERS]}"


def complaint(status: int, body: bytes) -> Complaint | None:
    """What a response says is wrong; None where nothing is. Some servers and gateways send errors with status 200; such
    an error without a status of its own counts as 400 where its type says so, and else as 500, because it may pass."""
    document: JsonValue = None
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    found = _error_in(document) if isinstance(document, dict) else None
    if 200 <= status < 300 and found is None:
        return None
    words = found[1] if found else body.decode(errors="replace")
    own = status if status >= 300 or status < 200 else found and found[0]
    return Complaint(own or 500, " ".join(words.split()), document, is_guess=not own)


def _error_in(document: dict[str, JsonValue]) -> tuple[int | None, str] | None:
    """(status, words) of the error that a JSON object tells of."""
    choices = document.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (document, first):
        if isinstance(holder, dict) and (error := holder.get("error")):
            return _status_in(error, document), _words_in(error)
    if not choices and any(document.get(name) for name in ("message", "detail", "msg")):
        return _status_in(document), _words_in(document)
    return None


def _status_in(*holders: JsonValue) -> int | None:
    """The first number among codes that is an HTTP status of an error, else 400 where a type says that the request is
    wrong."""
    names = ("code", "status", "type")
    codes = [str(holder.get(name)) for holder in holders if isinstance(holder, dict) for name in names]
    numbers = (int(c) for c in codes if c.isdecimal() and len(c) == 3)
    wrong = any(map(_WRONG_REQUEST.search, codes))
    return next((n for n in numbers if 400 <= n < 600), 400 if wrong else None)


def _words_in(error: JsonValue) -> str:
    """The message of an error, with the provider's own where a gateway passes it on."""
    if not isinstance(error, dict):
        return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
    said = next((v for name in ("message", "detail", "msg") if (v := error.get(name))), error)
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    passed_on = error.get("metadata")
    raw = passed_on.get("raw") if isinstance(passed_on, dict) else None
    return f"{text}: {raw}" if isinstance(raw, str) else text


def refused_part(complained: Complaint, sent: Mapping[str, JsonValue]) -> str | None:
    """The optional part of a request that a server does not take from anybody: the name of a field, or `SYSTEM` for the
    system message. None where something else is wrong, also where only a value is out of bounds."""
    told = complained.document
    if isinstance(told, dict):  # an answer that was cut off is not the server's own words
        told = {name: value for name, value in told.items() if name != "choices"}
    text = f"{complained.words} {json.dumps(told, ensure_ascii=False)}"
    if (complained.status not in (400, 422) and not complained.is_guess) or not _REFUSES.search(text):
        return None
    optional = [name for name in sent if name not in ("model", "messages")]
    for named in _named(complained.document):
        if named in optional:
            return named
    messages = sent.get("messages")
    roles = [m.get("role") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    if SYSTEM in roles and _SYSTEM.search(text):
        return SYSTEM
    places = {n: found.start() for n in optional if (found := re.search(rf"(?<![\w.]){re.escape(n)}(?!\w)", text))}
    return min(places, key=lambda n: places[n], default=None)


def _named(document: JsonValue) -> Iterator[str]:
    """Fields that an error names: OpenAI's `param`, the last part of a validator's `loc`."""
    if isinstance(document, dict):
        if isinstance(param := document.get("param"), str):
            yield param
        if isinstance(loc := document.get("loc"), list) and loc and isinstance(last := loc[-1], str):
            yield last
        for value in document.values():
            yield from _named(value)
    elif isinstance(document, list):
        for value in document:
            yield from _named(value)


def wait_asked_s(headers: Mapping[str, str], complained: Complaint, now: datetime) -> float | None:
    """Seconds that a server asks to wait, by its headers, else by its words; None where it names no time."""
    if (milliseconds := headers.get("retry-after-ms", "").strip()).isdecimal():
        return int(milliseconds) / 1000
    header = retry_after_s(headers.get("Retry-After"), now)
    if header is not None:
        return header
    text = f"{complained.words} {json.dumps(complained.document, ensure_ascii=False)}"
    found = _WAIT.search(text)
    if found is None:
        return None
    amounts = _AMOUNT.findall(found[1])
    return sum(float(n) * SECONDS["ms" if unit.lower() == "milli" else unit.lower()] for n, unit in amounts)


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a `Retry-After` header, which contains seconds or a date; None where it contains neither."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(?:\.\d+)?\s*", header):
        return float(header)
    try:
        return max((parsedate_to_datetime(header) - now).total_seconds(), 0.0)
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return None
