"""Which decoded questions are kept.

In: question texts, scores, the texts that exist already. Out: one of `schema.DECODE_STATUSES` per question.
Refuses to know: models, tables. Texts are compared after normalisation, as 8-byte hashes, so a large corpus stays small in memory.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from ka2l_ray.label.grading import normalize

_WELL_FORMED = re.compile(r"[^\W\d_]\w*(?: [^\s?]+){2,}\?")


def is_well_formed(question: str) -> bool:
    """A capitalised or plain word, at least two more, one question mark at the end, and no character that decoding could not fill."""
    return bool(_WELL_FORMED.fullmatch(question)) and "\ufffd" not in question


def text_hash(text: str) -> int:
    """64-bit hash of the normalised text."""
    return int.from_bytes(hashlib.blake2b(normalize(text).encode(), digest_size=8).digest(), "big")


def hashes(texts: Iterable[str]) -> np.ndarray:
    """Sorted hashes (N,) of many texts."""
    return np.unique(np.fromiter((text_hash(t) for t in texts), dtype=np.uint64))


def statuses(
    questions: Sequence[str], p_unknown: Sequence[float], existing: np.ndarray, evaluation: np.ndarray, min_p_unknown: float
) -> list[str]:
    """Status of each question in order: the first of equal texts may be kept, the later ones are duplicates.

    `eval` marks a leak (the text is in the eval split); `known` one that the probe scores below `min_p_unknown`.
    """
    seen: set[int] = set()
    found = []
    for question, p in zip(questions, p_unknown, strict=True):
        key = text_hash(question)
        if not is_well_formed(question):
            found.append("malformed")
            continue
        if _holds(evaluation, key):
            found.append("eval")
        elif key in seen or _holds(existing, key):
            found.append("duplicate")
        else:
            found.append("kept" if p >= min_p_unknown else "known")
        seen.add(key)
    return found


def _holds(table: np.ndarray, key: int) -> bool:
    at = int(np.searchsorted(table, np.uint64(key)))
    return at < len(table) and int(table[at]) == key
