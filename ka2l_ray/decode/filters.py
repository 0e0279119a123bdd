"""Which decoded questions are kept.

In: question texts, scores, which of them exist already. Out: one of `schema.DECODE_STATUSES` per question.
Refuses to know: models, tables.
"""

import hashlib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ka2l_ray.config import DecodeSection
from ka2l_ray.decode.steering import Steering
from ka2l_ray.text.duplicates import groups, signatures
from ka2l_ray.text.normal import normalize

Values = Sequence[bool] | Sequence[float] | np.ndarray
_WELL_FORMED = re.compile(r"[^\W\d_]\w*(?: [^\s?]+){2,}\?")
_UNMARKED = re.compile(_WELL_FORMED.pattern + "?")


def is_well_formed(question: str, marked: bool = True) -> bool:
    """Whether a question is a word, at least two more, and one question mark at the end, which may be lacking where the
    corpus's questions are not `marked`; without replacement characters (U+FFFD)."""
    pattern = _WELL_FORMED if marked else _UNMARKED
    return bool(pattern.fullmatch(question)) and "\ufffd" not in question


def are_marked(questions: Iterable[str]) -> bool:
    """Whether most questions end with a question mark: search queries, such as those of NQ-Open, do not."""
    marked = [question.rstrip().endswith("?") for question in questions]
    return 2 * sum(marked) >= len(marked)


def text_hash(text: str) -> int:
    """64-bit hash of the normalised text."""
    return int.from_bytes(hashlib.blake2b(normalize(text).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of N decoded questions, each array (N,); None where nothing was checked.

    `exhausted`: nothing was left to ask, so nothing was written. `leaked`: alike to an eval question; `repeated`: alike
    to one of probe, pool or an earlier round; `reworded`: it asks of its entity what one of those asks, in other words.
    `explained`: share of the wanted state's variance that its own explains. `grounded`: it contains a name that exists.
    `facts`: what it asks of whom, None where that is not known.
    """

    questions: Sequence[str]
    p_unknown: Values
    exhausted: Values | None = None
    leaked: Values | None = None
    repeated: Values | None = None
    reworded: Values | None = None
    explained: Values | None = None
    grounded: Values | None = None
    facts: Sequence[Hashable | None] | None = None


def statuses(found: Found, decode: DecodeSection, near_duplicates: float = 1.0, marked: bool = True) -> list[str]:
    """Status of each question in order, by the first rule that applies: `exhausted`, `malformed`, `eval`, `duplicate`,
    `reworded` (see `Found`), `far` below `decode.min_explained`, `ungrounded`, `known` below `decode.min_p_unknown`.
    Of those that are left each is `kept` but for a `duplicate` of an earlier one, equal or at least `near_duplicates`
    alike, and for one about the same fact, which is `reworded`.
    """
    count = len(found.questions)
    none = np.zeros(count, bool)
    least = decode.min_explained
    rules = {
        "exhausted": none if found.exhausted is None else found.exhausted,
        "malformed": np.array([not is_well_formed(q, marked) for q in found.questions], bool),
        "eval": none if found.leaked is None else found.leaked,
        "duplicate": none if found.repeated is None else found.repeated,
        "reworded": none if found.reworded is None else found.reworded,
        "far": none if found.explained is None or least is None else np.asarray(found.explained) < least,
        "ungrounded": none if found.grounded is None else ~np.asarray(found.grounded, bool),
        "known": np.asarray(found.p_unknown, float) < decode.min_p_unknown,
    }
    status = np.select([np.asarray(rule, bool) for rule in rules.values()], list(rules), "kept").tolist()
    kept = [n for n, s in enumerate(status) if s == "kept"]
    alike, asked = first_alike([normalize(found.questions[n]) for n in kept], near_duplicates), set[Hashable]()
    for n, first in zip(kept, alike, strict=True):
        fact = found.facts[n] if found.facts else None
        if not first:
            status[n] = "duplicate"
        elif fact is not None and fact in asked:
            status[n] = "reworded"
        asked.add(fact)
    return status


def statuses_of(
    rows: Sequence[Mapping[str, Any]],
    decode: DecodeSection,
    leaked: np.ndarray,
    repeated: np.ndarray,
    near_duplicates: float,
    steering: Steering | None = None,
    marked: bool = True,
) -> list[str]:
    """The status of rows of `written`, by which of them are `alike` to a question of eval and to any other, (N,) each;
    `steering` says which groups ask the same, `marked` whether questions end with a question mark."""
    texts = [r["decoded_question"] for r in rows]
    aspect = dict(zip(steering.names, steering.aspects, strict=True)) if steering else {}
    found = Found(
        questions=texts,
        p_unknown=[r["p_unknown"] for r in rows],
        exhausted=[r["exhausted"] for r in rows],
        leaked=leaked,
        repeated=repeated,
        reworded=[r["reworded"] for r in rows],
        explained=[r["explained"] for r in rows],
        grounded=[r["name"] is not None for r in rows] if decode.grounding else None,
        facts=[(r["name"], aspect[r["asks"]]) if r["name"] and r["asks"] in aspect else None for r in rows],
    )
    return statuses(found, decode, near_duplicates, marked)


def first_alike(keys: Sequence[str], threshold: float) -> list[bool]:
    """Of normalised texts, whether each is the first of those that are at least this alike, or equal, to it."""
    if threshold < 1 and keys:
        group = groups(signatures(keys), keys, threshold)
        return [int(g) == n for n, g in enumerate(group)]
    seen = set[str]()
    return [not (key in seen or seen.add(key)) for key in keys]
