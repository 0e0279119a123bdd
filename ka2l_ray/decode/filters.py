"""Which decoded questions are kept.

In: question texts, scores, the texts that exist already. Out: one of `schema.DECODE_STATUSES` per question.
Refuses to know: models, tables. Texts are compared after normalisation: with those of probe and pool by 8-byte hashes,
so that a large corpus needs little memory; with those of eval also by similarity, because a slightly reworded eval
question is a leak too.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from ka2l_ray.text.likeness import alike_to_any
from ka2l_ray.text.normal import normalize

_WELL_FORMED = re.compile(r"[^\W\d_]\w*(?: [^\s?]+){2,}\?")


def is_well_formed(question: str) -> bool:
    """Whether a question is a word, at least two more, and one question mark at the end, without replacement characters
    (U+FFFD)."""
    return bool(_WELL_FORMED.fullmatch(question)) and "\ufffd" not in question


def text_hash(text: str) -> int:
    """64-bit hash of the normalised text."""
    return int.from_bytes(hashlib.blake2b(normalize(text).encode(), digest_size=8).digest(), "big")


def hashes(texts: Iterable[str]) -> np.ndarray:
    """Sorted distinct hashes (N,) uint64 of texts."""
    return np.unique(np.fromiter((text_hash(t) for t in texts), dtype=np.uint64))


def leaks(questions: Sequence[str], evaluation: Iterable[Sequence[str]], threshold: float) -> np.ndarray:
    """Which of N questions (bool, (N,)) have a similarity of at least `threshold` to an eval question
    (`corpus.near_duplicates`); at 1, which are equal to one. `evaluation` yields eval's texts in batches, and is read
    once."""
    batches = ([normalize(text) for text in batch] for batch in evaluation)
    keys = [normalize(question) for question in questions]
    if threshold < 1:
        return alike_to_any(keys, batches, threshold)
    equal = set(keys).intersection(key for batch in batches for key in batch)
    return np.array([key in equal for key in keys], bool)


def is_among(keys: np.ndarray, existing: np.ndarray) -> np.ndarray:
    """Whether each of a few keys is among many sorted ones, by binary search: numpy's own test sorts all of them."""
    at = np.searchsorted(existing, keys)
    return np.append(existing, existing[-1:])[at] == keys if len(existing) else np.zeros(len(keys), bool)


def statuses(
    questions: Sequence[str],
    p_unknown: Sequence[float],
    existing: np.ndarray,
    leaked: Sequence[bool] | np.ndarray,
    min_p_unknown: float,
    explained: Sequence[float] = (),
    min_explained: float | None = None,
    grounded: Sequence[bool] | None = None,
) -> list[str]:
    """Status of each question in order, by the first rule that applies: of equal well-formed texts the first may be
    kept, later ones are duplicates.

    `existing` are the sorted hashes of earlier texts. `eval` marks a leak (`leaked`); `far` a question whose own state
    explains less than `min_explained` of the wanted one's variance; `ungrounded` one that contains no name that exists
    (`grounded`; None: nothing was checked); `known` one whose P(unknown) is below `min_p_unknown`.
    """
    formed = np.array([is_well_formed(q) for q in questions], bool)
    keys = np.array([text_hash(q) for q in questions], np.uint64)
    earlier = is_among(keys, existing)
    # Of equal texts only the first may be kept; a malformed one does not use up the question that it spoils.
    _, first = np.unique(keys[formed], return_index=True)
    earlier[np.delete(np.flatnonzero(formed), first)] = True
    rules = {
        "malformed": ~formed,
        "eval": np.asarray(leaked, bool),
        "duplicate": earlier,
        "far": np.zeros(len(keys), bool) if min_explained is None else np.asarray(explained) < min_explained,
        "ungrounded": np.zeros(len(keys), bool) if grounded is None else ~np.asarray(grounded, bool),
        "kept": np.asarray(p_unknown) >= min_p_unknown,
    }
    return np.select(list(rules.values()), list(rules), "known").tolist()
