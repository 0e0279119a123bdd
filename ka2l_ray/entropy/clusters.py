"""Greedy clustering of a question's answers by meaning.

In: K answers and a test of equivalence. Out: K cluster numbers. Refuses to know: models, tables.
Source: KA2L, stage 1: an answer without a cluster opens one, which every later unassigned equivalent answer joins.
"""

from collections.abc import Callable, Sequence

from ka2l_ray.text.grading import are_equal


def cluster(answers: Sequence[str], equivalent: Callable[[str, str], bool] = are_equal) -> list[int]:
    """Cluster numbers (K,) of K answers, counted from 0 in order of first appearance."""
    numbers = [-1] * len(answers)
    for i, answer in enumerate(answers):
        if numbers[i] < 0:
            new = max(numbers) + 1
            for j in range(i, len(answers)):
                if numbers[j] < 0 and (j == i or equivalent(answer, answers[j])):
                    numbers[j] = new
    return numbers
