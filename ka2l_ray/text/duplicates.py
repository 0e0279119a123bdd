"""Questions that ask the same in almost the same letters, so that no split holds the answer to another's.

In: normalised texts. Out: MinHash signatures; from all signatures and texts, the group of each row. Similarity is the
Jaccard index of the texts' character n-grams. Candidates share a band of their signature (locality-sensitive hashing:
Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, ch. 3) and agree in most of it; of these the index
itself is taken.
Refuses to know: files, splits. `datasketch` makes the signatures; the join over bands is ours because its index holds
Python objects, some kilobytes a row, where arrays take 256 bytes.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
from datasketch import MinHash

Texts = Sequence[str] | pa.ChunkedArray

PERMUTATIONS, BAND = 64, 4
"""Values of a signature; values that must all be equal for two rows to become candidates. At a similarity of 0.8 a
pair misses all of the 16 bands with probability 2e-4."""
DOUBT = 2.0
"""Standard errors of a signature's estimate below the threshold at which a pair is still looked at. The estimate
alone misses a pair that lies exactly at the threshold with probability 0.02, one that lies 0.05 above it with
probability 1e-3; no pair below it is taken."""
NGRAM = 4
COMPARED = 2048
"""Rows of one bucket that a row is compared with at most. A larger bucket holds a question's template rather than
questions: there a row is compared with one row of each group, the first of them."""


def ngrams(text: str) -> set[bytes]:
    """Character n-grams of a normalised text; a shorter text is one of its own."""
    padded = f" {text} "
    return {padded[i : i + NGRAM].encode() for i in range(max(1, len(padded) - NGRAM + 1))}


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures (N, PERMUTATIONS) uint32 of normalised texts, one text's n-grams in memory at a time."""
    signed = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for row, made in enumerate(MinHash.generator(map(ngrams, texts), num_perm=PERMUTATIONS, seed=1)):
        signed[row] = made.hashvalues
    return signed


def least_agreement(threshold: float) -> float:
    """Share of equal values in two signatures from which their texts may be this alike."""
    return threshold - DOUBT * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5


def are_alike(a: set[bytes], b: set[bytes], threshold: float) -> bool:
    """Whether the Jaccard index of two texts' n-grams is at least this."""
    return len(a & b) >= threshold * len(a | b)


class _Groups:
    """Disjoint sets of rows, each named by its lowest row."""

    def __init__(self, rows: int) -> None:
        self._parent = np.arange(rows)

    def root(self, row: int) -> int:
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def roots(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.root(int(row)) for row in rows], np.int64)

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)


class _Pairs:
    """Which rows are alike: by signatures (N, P) as far as these can tell, then by the texts themselves."""

    def __init__(self, signed: np.ndarray, texts: Texts, threshold: float) -> None:
        self.signed, self._texts, self._threshold = signed, texts, threshold
        self._least = least_agreement(threshold)
        self._ngrams = lru_cache(2 * COMPARED)(self._ngrams_of)

    def candidates(self, row: int, others: np.ndarray) -> np.ndarray:
        """Those of `others` (n,) whose signatures agree with the row's about as often as alike texts' do."""
        return others[(self.signed[others] == self.signed[row]).mean(1) >= self._least]

    def are_alike(self, row: int, other: int) -> bool:
        return are_alike(self._ngrams(row), self._ngrams(other), self._threshold)

    def _ngrams_of(self, row: int) -> set[bytes]:
        return ngrams(str(self._texts[row]))


def groups(signed: np.ndarray, texts: Texts, threshold: float) -> np.ndarray:
    """For signatures (N, P) of N texts the group of each (N,), named by its lowest row; those at or above `threshold`
    share one, chains too."""
    found, pairs = _Groups(len(signed)), _Pairs(signed, texts, threshold)
    for start in range(0, signed.shape[1], BAND):
        band = np.ascontiguousarray(signed[:, start : start + BAND]).view(f"V{4 * BAND}").ravel()
        order = np.argsort(band, kind="stable")
        borders = np.flatnonzero(band[order][1:] != band[order][:-1]) + 1
        for first, end in zip([0, *borders], [*borders, len(order)], strict=True):
            if end - first > 1:
                _join_alike(found, pairs, order[first:end])
    return found.roots(np.arange(len(signed)))


def _join_alike(found: _Groups, pairs: _Pairs, bucket: np.ndarray) -> None:
    """Join the rows of one bucket (n,) that are alike; rows of one group are not compared again."""
    roots = found.roots(bucket)
    if len(bucket) > COMPARED:
        first = np.sort(np.unique(roots, return_index=True)[1])
        bucket, roots = bucket[first], roots[first]
    for n in range(1, len(bucket)):
        before, row = slice(max(0, n - COMPARED), n), int(bucket[n])
        joined = False
        for other in pairs.candidates(row, bucket[before][roots[before] != roots[n]]):
            if found.root(row) != found.root(int(other)) and pairs.are_alike(row, int(other)):
                found.join(row, int(other))
                joined = True
        if joined:
            roots = found.roots(bucket)
