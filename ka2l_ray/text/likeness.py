"""Which of a few texts are alike to any of very many others, which are read as a stream.

In: normalised texts. Out: a mask.
Similarity and its threshold are those of `duplicates`. The few are indexed and the many looked up, a batch at a time:
memory is that of the few and one batch, and time that of signing the many, one to two minutes for a million.
Refuses to know: files, splits, why it matters.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ka2l_ray.text.duplicates import are_alike, bands, least_agreement, ngrams, signatures

PAIRS = 2**16
"""Pairs of signatures that are compared at once: 4 MiB of each side."""


def alike_to_any(texts: Sequence[str], others: Iterable[Sequence[str]], threshold: float) -> np.ndarray:
    """Which of N texts are at least this alike to any of `others`, batches of normalised texts (N,) bool."""
    found = np.zeros(len(texts), bool)
    signed, pieces = signatures(texts), [ngrams(text) for text in texts]
    index = [(band, np.argsort(band, kind="stable")) for band in bands(signed)]
    for batch in others:
        against = signatures(batch)
        for row, other in _candidates(index, signed, against, ~found, least_agreement(threshold)):
            if not found[row] and are_alike(pieces[row], ngrams(batch[other]), threshold):
                found[row] = True
    return found


def _candidates(
    index: Sequence[tuple[np.ndarray, np.ndarray]],
    signed: np.ndarray,
    against: np.ndarray,
    wanted: np.ndarray,
    least: float,
) -> Iterable[tuple[int, int]]:
    """Pairs (text, other) that share a band and agree in at least this much of their signatures; some more than once.
    `index` contains each band of the texts with the order that sorts it."""
    for (mine, order), band in zip(index, bands(against), strict=True):
        first, end = (np.searchsorted(mine, band, side, sorter=order) for side in ("left", "right"))
        count = end - first
        other = np.repeat(np.arange(len(band)), count)
        place = np.arange(len(other)) - np.repeat(np.cumsum(count) - count, count)
        row = order[first[other] + place]
        row, other = row[wanted[row]], other[wanted[row]]
        for start in range(0, len(row), PAIRS):
            rows, others = row[start : start + PAIRS], other[start : start + PAIRS]
            near = (signed[rows] == against[others]).mean(1) >= least
            yield from zip(rows[near].tolist(), others[near].tolist(), strict=True)
