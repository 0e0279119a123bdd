"""Texts alike to any of a stream are those that the exact index finds, batch by batch."""

import numpy as np
import pytest
from alike_questions import real, templated
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.text import likeness
from ka2l_ray.text.duplicates import ngrams
from ka2l_ray.text.likeness import alike_to_any

TEXTS = st.lists(st.text("abcde ", min_size=8, max_size=40), max_size=8)


def index(texts: list[str], others: list[str]) -> np.ndarray:
    """The Jaccard index of each pair (N, M)."""
    a, b = [ngrams(t) for t in texts], [ngrams(t) for t in others]
    return np.array([[len(x & y) / len(x | y) for y in b] for x in a]).reshape(len(a), len(b))


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("size", [7, 1000])
def test_they_are_those_of_the_exact_index(threshold: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for pairs within 0.02 above the threshold, which signatures may miss, and never one below it."""
    monkeypatch.setattr(likeness, "PAIRS", 64)
    everything = [*templated(), *real(300)]
    texts, others = everything[::3], [t for n, t in enumerate(everything) if n % 3]
    exact = index(texts, others).max(1)
    found = alike_to_any(texts, [others[n : n + size] for n in range(0, len(others), size)], threshold)
    assert (exact >= threshold + 0.02).sum() > 10, "too few alike pairs to tell anything"
    assert found[exact >= threshold + 0.02].all()
    assert not found[exact < threshold].any()


@given(TEXTS, TEXTS)
def test_a_text_that_stands_among_the_others_is_always_found(texts: list[str], others: list[str]) -> None:
    found = alike_to_any([*texts, *others], [others, []], 0.99)
    assert found[len(texts) :].all()
    assert found[: len(texts)].tolist() == [bool(len(others)) and bool(index([t], others).max() >= 0.99) for t in texts]


def test_others_are_read_once_and_a_batch_at_a_time() -> None:
    read: list[int] = []

    def batches():
        for n in range(5):
            read.append(n)
            yield [f"what is the name of number {n}"]

    assert alike_to_any(["what is the name of number 4", "who else"], batches(), 0.8).tolist() == [True, False]
    assert read == [0, 1, 2, 3, 4]
