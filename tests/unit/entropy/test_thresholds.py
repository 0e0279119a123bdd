"""γ: the Otsu split against brute force, and which thresholds are tried."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.entropy.thresholds import candidates, otsu

ENTROPIES = st.lists(st.sampled_from([0.0, 0.325, 0.5, 0.611, 0.8, 1.089, 1.6, 2.303]), min_size=2, max_size=40).filter(
    lambda v: len(set(v)) > 1
)


def scatter(rows):
    return float(((rows - rows.mean()) ** 2).sum())


@given(ENTROPIES)
def test_otsu_finds_what_brute_force_over_the_rows_finds(values):
    rows = np.array(values)
    costs = {gamma: scatter(rows[rows < gamma]) + scatter(rows[rows >= gamma]) for gamma in sorted(set(values))[1:]}
    gamma = otsu(Counter(values))
    assert gamma in costs
    assert costs[gamma] == pytest.approx(min(costs.values()), abs=1e-9)


@pytest.mark.parametrize(
    ("histogram", "gamma"),
    [
        ({0.0: 5, 1.0: 5}, 1.0),
        ({0.0: 100, 0.1: 100, 2.0: 10, 2.3: 10}, 2.0),
        ({2.0: 1, 0.0: 50, 0.3: 1}, 2.0),
        ({0.0: 1, 1.0: 1, 1.1: 1000}, 1.0),
    ],
)
def test_otsu_on_clear_cases(histogram, gamma):
    assert otsu(histogram) == gamma


def test_the_threshold_belongs_to_the_unknown_side():
    """γ is a value that occurs, so SE >= γ puts all equal values on one side and leaves none of the sides empty."""
    values = [0.0] * 3 + [0.5] * 4 + [2.0] * 4
    gamma = otsu(Counter(values))
    unknown = [v >= gamma for v in values]
    assert {v for v, u in zip(values, unknown, strict=True) if u}.isdisjoint(
        v for v, u in zip(values, unknown, strict=True) if not u
    )
    assert 0 < sum(unknown) < len(values)


@pytest.mark.parametrize("histogram", [{}, {0.7: 12}])
def test_one_value_cannot_be_split(histogram):
    with pytest.raises(ValueError, match=r"same semantic entropy.*label\.threshold"):
        otsu(histogram)


@pytest.mark.parametrize(
    ("share", "found"),
    [(0.0, [0.0, 0.5, 1.0, 2.0]), (0.05, [0.5, 1.0, 2.0]), (0.1, [0.5, 1.0, 2.0]), (0.2, [0.5, 1.0]), (0.6, [])],
)
def test_candidates_leave_enough_rows_on_both_sides(share, found):
    histogram = {2.0: 10, 0.0: 40, 1.0: 20, 0.5: 30}  # below: 0 %, 40 %, 70 %, 90 %
    assert candidates(histogram, share) == found


@given(ENTROPIES, st.floats(0.01, 0.49))
def test_no_candidate_is_missed_and_none_is_too_one_sided(values, share):
    below = {v: np.mean(np.array(values) < v) for v in set(values)}
    assert candidates(Counter(values), share) == sorted(v for v, b in below.items() if share <= b <= 1 - share)
