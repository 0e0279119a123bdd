"""Greedy clustering of answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.corpus.formats import Question
from ka2l_ray.entropy.clusters import cluster
from ka2l_ray.text.grading import are_equal


@pytest.mark.parametrize(
    ("answers", "numbers"),
    [
        (["Paris", "Rome", "paris.", "Oslo", "ROME"], [0, 1, 0, 2, 1]),
        (["a cat", "The cat", "cats"], [0, 0, 1]),
        (["x"], [0]),
        ([], []),
    ],
)
def test_clusters_are_numbered_in_order_of_first_appearance(answers, numbers):
    assert cluster(answers) == numbers


ALIKE = {
    "1,776": "1776",
    "$5,000": "5000",
    "1939–1945": "1939-1945",
    "U.S.": "US",
    "J.R.R. Tolkien": "JRR Tolkien",
    "«Liberté»": "Liberté",
    "東京。": "東京",
    "−40": "-40",
}


@pytest.mark.parametrize(("one", "other"), [*ALIKE.items(), ("-40", "40"), ("C++", "C"), ("C#", "C")])
def test_spellings_share_a_cluster_and_a_question(one, other):
    """Samples are clustered, and questions found to be the same, by one rule."""
    alike = ALIKE.get(one) == other
    assert (len(set(cluster([one, other]))) == 1) == alike
    assert (Question(f"What is {one}?", ()).id == Question(f"What is {other}?", ()).id) == alike


def test_an_equivalence_that_is_not_transitive_is_followed_greedily():
    """1 is near 2 and 2 near 3, but 1 not near 3: the first answer takes 2, so 3 opens a cluster of its own, which 4
    joins."""

    def near(a, b):
        return abs(int(a) - int(b)) <= 1

    assert cluster(["1", "2", "3", "4"], near) == [0, 0, 1, 1]
    assert cluster(["2", "1", "3", "4"], near) == [0, 0, 0, 1]


def test_an_answer_is_in_its_own_cluster_even_where_it_is_not_equivalent_to_itself():
    assert cluster(["x", "x", "x"], lambda a, b: False) == [0, 1, 2]


def test_an_answer_with_a_cluster_is_never_compared_again():
    """Each comparison may be two passes of a large model."""
    compared = []

    def equal(a, b):
        compared.append((a, b))
        return a == b

    cluster(["x", "y", "x", "y"], equal)
    assert compared == [("x", "y"), ("x", "x"), ("x", "y"), ("y", "y")]


@given(st.lists(st.sampled_from(["Rome", "rome!", "the Rome", "Oslo", "oslo", "Bern"]), max_size=12))
def test_exact_clusters_are_the_classes_of_equal_answers(answers):
    numbers = cluster(answers)
    for i, a in enumerate(answers):
        for j, b in enumerate(answers):
            assert (numbers[i] == numbers[j]) == are_equal(a, b)
    assert list(dict.fromkeys(numbers)) == list(range(len(set(numbers))))
