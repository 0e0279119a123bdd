"""Greedy clustering of a question's answers by meaning.

In: K answers and a test of equivalence. Out: K cluster numbers. Refuses to know: models, tables.
Source: KA2L, stage 1: an answer without a cluster opens one and takes in every later unassigned equivalent answer.
"""

from collections.abc import Callable, Sequence

from ka2l_ray.text.grading import normalize


def exact(a: str, b: str) -> bool:
    """Equivalent when equal after normalisation."""
    return normalize(a) == normalize(b)


def cluster(answers: Sequence[str], equivalent: Callable[[str, str], bool] = exact) -> list[int]:
    """Cluster numbers (K,), counted from 0 in order of first appearance."""
    numbers: list[int | None] = [None] * len(answers)
    opened = 0
    for i, answer in enumerate(answers):
        if numbers[i] is not None:
            continue
        for j in range(i, len(answers)):
            if numbers[j] is None and (j == i or equivalent(answer, answers[j])):
                numbers[j] = opened
        opened += 1
    return [n for n in numbers if n is not None]
