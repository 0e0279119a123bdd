"""Questions that ask the same in almost the same letters, so that no split contains the answer to another's.

In: normalised texts. Out: MinHash signatures; from all signatures and texts, the group of each row.
Similarity is the Jaccard index of the texts' character n-grams. Candidates share a band of their signatures
(locality-sensitive hashing: Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, ch. 3) and agree in most of
the signature; for these the index itself is computed.
`datasketch` makes the signatures. The join over bands is our own because its index keeps Python objects, some
kilobytes per row, where arrays take 256 bytes.
Refuses to know: files, splits.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
from datasketch import MinHash

Texts = Sequence[str] | pa.ChunkedArray

PERMUTATIONS, BAND = 64, 4
"""Values in a signature, and in a band, where all must be equal for two rows to become candidates. At a similarity
of 0.8 a pair misses all 16 bands with probability 2e-4."""
DOUBT = 2.0
"""A pair is still compared where the estimate from its signatures is this many standard errors below the
threshold. The estimate alone misses a pair exactly at the threshold with probability 0.02, one 0.05 above it with
probability 1e-3; no pair below it is taken."""
NGRAM = 4
COMPARED = 2048
"""Rows of one bucket that a row is compared with at most. A larger bucket is one template rather than one
question: there a row is compared with the first row of each group only."""


def ngrams(text: str) -> set[bytes]:
    """The character n-grams of a normalised text; a text shorter than `NGRAM` is one of its own."""
    padded = f" {text} "
    return {padded[i : i + NGRAM].encode() for i in range(max(1, len(padded) - NGRAM + 1))}


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures (N, PERMUTATIONS) uint32 of normalised texts, one text's n-grams in memory at a time."""
    made = MinHash.generator(map(ngrams, texts), num_perm=PERMUTATIONS, seed=1)
    return np.fromiter((m.hashvalues for m in made), np.dtype((np.uint32, PERMUTATIONS)), len(texts))


def least_agreement(threshold: float) -> float:
    """The least share of equal values in two signatures whose texts may be this similar."""
    return threshold - DOUBT * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5


def are_alike(a: set[bytes], b: set[bytes], threshold: float) -> bool:
    """Whether the Jaccard index of two texts' n-grams is at least this."""
    return len(a & b) >= threshold * len(a | b)


class _Groups:
    """Disjoint sets of rows, each named by its lowest row: two rows are joined where their signatures (N, P) suggest
    that they are alike and their texts confirm it."""

    def __init__(self, signed: np.ndarray, texts: Texts, threshold: float) -> None:
        self._signed, self._threshold, self._least = signed, threshold, least_agreement(threshold)
        self._ngrams = lru_cache(2 * COMPARED)(lambda row: ngrams(str(texts[row])))
        self._parent = np.arange(len(signed))

    def root(self, row: int) -> int:
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def roots(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.root(int(row)) for row in rows], np.int64)

    def join_alike(self, bucket: np.ndarray) -> None:
        """Join the rows of one bucket (n,) that are alike; rows of one group are not compared again."""
        roots = self.roots(bucket)
        if len(bucket) > COMPARED:
            first = np.sort(np.unique(roots, return_index=True)[1])
            bucket, roots = bucket[first], roots[first]
        for n in range(1, len(bucket)):
            before, row = slice(max(0, n - COMPARED), n), int(bucket[n])
            others = bucket[before][roots[before] != roots[n]]
            likely = others[(self._signed[others] == self._signed[row]).mean(1) >= self._least]
            joined = False
            for other in likely.tolist():
                joined |= self._join_if_alike(row, other)
            if joined:
                roots = self.roots(bucket)

    def _join_if_alike(self, row: int, other: int) -> bool:
        """Whether the rows are alike and were in two groups, which are one now."""
        low, high = sorted((self.root(row), self.root(other)))
        joins = low != high and are_alike(self._ngrams(row), self._ngrams(other), self._threshold)
        if joins:
            self._parent[high] = low
        return joins


def bands(signed: np.ndarray) -> Iterator[np.ndarray]:
    """The bands of signatures (N, P), one after another: a value per row (N,), equal where all numbers of the band
    are."""
    parts = (signed[:, start : start + BAND] for start in range(0, signed.shape[1], BAND))
    return (np.ascontiguousarray(part).view(f"V{4 * BAND}").ravel() for part in parts)


def groups(signed: np.ndarray, texts: Texts, threshold: float) -> np.ndarray:
    """The group of each text (N,), named by its lowest row, from signatures (N, P) and texts; texts at or above
    `threshold` share a group, chains included."""
    found = _Groups(signed, texts, threshold)
    for band in bands(signed):
        order = np.argsort(band, kind="stable")
        borders = np.flatnonzero(band[order][1:] != band[order][:-1]) + 1
        for first, end in zip([0, *borders], [*borders, len(order)], strict=True):
            if end - first > 1:
                found.join_alike(order[first:end])
    return found.roots(np.arange(len(signed)))
