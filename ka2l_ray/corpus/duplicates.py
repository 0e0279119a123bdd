"""Questions that ask the same in almost the same letters, so that no split holds the answer to another's.

In: normalised texts. Out: MinHash signatures; from all signatures, the group of each row.
Similarity is the Jaccard index of the texts' character n-grams; candidates share a band of their signature (locality-sensitive hashing:
Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, ch. 3), and a pair counts where its signatures agree often enough.
Refuses to know: files, splits. `datasketch` makes the signatures; the join over bands is ours because its index holds Python objects,
some kilobytes a row, where arrays take 256 bytes.
"""

from collections.abc import Sequence

import numpy as np
from datasketch import MinHash

PERMUTATIONS, BAND = 64, 4
"""Values of a signature; values that must all be equal for two rows to become candidates. At a similarity of 0.8 a pair misses all of
the 16 bands with probability 2e-4."""
NGRAM = 4


def ngrams(text: str) -> set[bytes]:
    """Character n-grams of a normalised text; a shorter text is one of its own."""
    padded = f" {text} "
    return {padded[i : i + NGRAM].encode() for i in range(max(1, len(padded) - NGRAM + 1))}


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures (N, PERMUTATIONS) uint32 of normalised texts."""
    made = MinHash.bulk([ngrams(t) for t in texts], num_perm=PERMUTATIONS, seed=1)
    return np.array([m.hashvalues for m in made], np.uint32).reshape(len(texts), PERMUTATIONS)


def groups(signed: np.ndarray, threshold: float) -> np.ndarray:
    """For signatures (N, P) the group of each row (N,), named by its lowest row; rows at or above `threshold` share one, chains too."""
    parent = np.arange(len(signed))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for start in range(0, signed.shape[1], BAND):
        band = np.ascontiguousarray(signed[:, start : start + BAND]).view(f"V{4 * BAND}").ravel()
        order = np.argsort(band, kind="stable")
        same = np.flatnonzero(band[order][1:] == band[order][:-1])
        for left, right in zip(order[same], order[same + 1], strict=True):
            if np.mean(signed[left] == signed[right]) >= threshold:
                a, b = root(int(left)), root(int(right))
                parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(len(signed))], np.int64)
