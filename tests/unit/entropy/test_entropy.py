"""Semantic entropy against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.entropy.semantic import semantic_entropy

CLUSTERS = st.lists(st.integers(0, 9), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("clusters", "nats"),
    [
        ([0] * 10, 0.0),
        ([0], 0.0),
        ([0, 1], 0.6931471805599453),  # ln 2
        ([0, 0, 0, 1], 0.5623351446188083),  # 2 ln 2 - 3/4 ln 3
        ([0, 0, 1, 2], 1.0397207708399179),  # 3/2 ln 2
        (list(range(10)), 2.302585092994046),  # ln 10
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 0.3250829733914482),  # ln 10 - 9/10 ln 9
    ],
)
def test_values_worked_out_by_hand(clusters, nats):
    assert semantic_entropy(clusters) == pytest.approx(nats, abs=1e-12)


def test_entropy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one answer"):
        semantic_entropy([])


@given(CLUSTERS)
def test_entropy_lies_between_zero_and_ln_k(clusters):
    assert 0.0 <= semantic_entropy(clusters) <= math.log(len(clusters)) + 1e-12


@given(CLUSTERS, st.permutations(range(10)), st.randoms(use_true_random=False))
def test_names_and_order_of_clusters_do_not_change_a_single_bit(clusters, names, rng):
    renamed = [names[c] for c in clusters]
    rng.shuffle(renamed)
    assert semantic_entropy(renamed) == semantic_entropy(clusters)


def partitions(total, largest):
    if total == 0:
        yield []
    for first in range(min(total, largest), 0, -1):
        yield from ([first, *rest] for rest in partitions(total - first, first))


def test_partitions_of_ten_have_one_value_exactly_where_their_entropies_are_equal():
    """ln 10 - Σ n ln n / 10 is equal where Π n^n is, which whole numbers decide; in either order of the clusters."""
    values = {}
    for sizes in partitions(10, 10):
        for order in (sizes, sizes[::-1]):
            entropy = semantic_entropy([c for c, n in enumerate(order) for _ in range(n)])
            values.setdefault(math.prod(n**n for n in sizes), set()).add(entropy)
    assert len(list(partitions(10, 10))) == 42
    assert len(values) == len({e for found in values.values() for e in found}) == 39
    assert {len(found) for found in values.values()} == {1}
