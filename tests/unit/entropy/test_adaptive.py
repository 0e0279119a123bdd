"""Adaptive sampling: the bounds are those of all outcomes, found by trying them all."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.entropy.adaptive import entropy_bounds, first_decision, is_decided
from ka2l_ray.entropy.semantic import semantic_entropy

DRAWN = st.lists(st.integers(0, 3), min_size=1, max_size=5)


def outcomes(drawn, remaining):
    """Entropy after every way in which the remaining samples may fall into clusters, old and new."""
    fresh = range(max(drawn) + 1, max(drawn) + 1 + remaining)
    return [semantic_entropy([*drawn, *more]) for more in itertools.product([*set(drawn), *fresh], repeat=remaining)]


@given(DRAWN, st.integers(0, 4))
def test_the_bounds_are_the_extremes_of_every_outcome(drawn, remaining):
    found = outcomes(drawn, remaining)
    assert entropy_bounds(drawn, remaining) == (min(found), max(found))


@given(DRAWN, st.integers(0, 4), st.floats(0, 2.5))
def test_a_decided_label_is_that_of_every_outcome_and_an_open_one_has_both(drawn, remaining, gamma):
    labels = {e >= gamma for e in outcomes(drawn, remaining)}
    assert is_decided(drawn, remaining, gamma) == (len(labels) == 1)


def test_a_threshold_that_is_a_value_itself_belongs_to_unknown():
    half = semantic_entropy([0, 0, 1, 1])
    assert is_decided([0, 0, 1, 1], 0, half)
    assert entropy_bounds([0, 0, 1, 1], 0) == (half, half) == pytest.approx((math.log(2), math.log(2)))
    assert not is_decided([0, 0, 1], 1, half)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 1.5, 2.2])
@pytest.mark.parametrize("samples", [2, 5, 6])
def test_no_label_is_decided_before_the_first_decision(samples, gamma):
    first = first_decision(samples, gamma)
    for drawn in range(1, samples):
        possible = any(is_decided(row, samples - drawn, gamma) for row in itertools.product(range(drawn), repeat=drawn))
        assert possible == (drawn >= first)


def test_nothing_drawn_is_refused():
    with pytest.raises(ValueError, match="at least one answer"):
        entropy_bounds([], 3)
