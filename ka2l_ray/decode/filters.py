"""Which decoded questions are kept.

In: question texts, scores, the texts that exist already. Out: one of `schema.DECODE_STATUSES` per question.
Refuses to know: models, tables. Texts are compared after normalisation: with the probe's and the pool's by 8-byte hashes, so that a large
corpus stays small in memory; with those of eval also by their likeness, for an eval question reworded a little is a leak all the same.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from ka2l_ray.text.grading import normalize
from ka2l_ray.text.likeness import alike_to_any

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


def leaks(questions: Sequence[str], evaluation: Iterable[Sequence[str]], threshold: float) -> np.ndarray:
    """Which of N questions are at least `threshold` alike to an eval question (`corpus.near_duplicates`), or, at 1, equal to one (N,) bool.
    `evaluation` are batches of eval's texts, streamed once."""
    batches = ([normalize(text) for text in batch] for batch in evaluation)
    keys = [normalize(question) for question in questions]
    if threshold < 1:
        return alike_to_any(keys, batches, threshold)
    wanted = set(keys)
    equal = wanted.intersection(key for batch in batches for key in batch)
    return np.array([key in equal for key in keys], bool)


def statuses(
    questions: Sequence[str],
    p_unknown: Sequence[float],
    existing: np.ndarray,
    leaked: Sequence[bool] | np.ndarray,
    min_p_unknown: float,
) -> list[str]:
    """Status of each question in order: the first of equal texts may be kept, the later ones are duplicates.

    `eval` marks a leak (`leaked`); `known` one that the probe scores below `min_p_unknown`.
    """
    seen: set[int] = set()
    found = []
    for question, p, leak in zip(questions, p_unknown, leaked, strict=True):
        key = text_hash(question)
        if not is_well_formed(question):
            found.append("malformed")
            continue
        if leak:
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
