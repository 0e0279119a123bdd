"""Greedy clustering of a question's answers by meaning.

In: K answers and a test of equivalence. Out: K cluster numbers. Refuses to know: models, tables.
Source: KA2L, stage 1: an answer without a cluster opens one, which every later unassigned equivalent answer joins.
"""

from collections.abc import Callable, Sequence

from ka2l_ray.text.grading import normalize


def exact(a: str, b: str) -> bool:
    """Whether two answers are equal after normalisation."""
    return normalize(a) == normalize(b)


def cluster(answers: Sequence[str], equivalent: Callable[[str, str], bool] = exact) -> list[int]:
    """Cluster numbers (K,) of K answers, counted from 0 in order of first appearance."""
    numbers: list[int | None] = [None] * len(answers)
    count = 0
    for i, answer in enumerate(answers):
        if numbers[i] is None:
            for j in range(i, len(answers)):
                if numbers[j] is None and (j == i or equivalent(answer, answers[j])):
                    numbers[j] = count
            count += 1
    return [n for n in numbers if n is not None]
