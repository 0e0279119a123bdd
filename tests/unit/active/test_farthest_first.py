"""Policies that compare states: every greedy step against a naive search over all distances."""

import math
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ka2l_ray.active.policies import PoolRow, farthest_first
from ka2l_ray.active.strategies import policy
from ka2l_ray.config import AcquireSection

NO_CENTRES = np.zeros((0, 1))


def standardized(points: np.ndarray, states: np.ndarray) -> list[list[float]]:
    """Points in standard deviations of the states, dimension by dimension, so that a distance is a root mean square."""
    columns = list(zip(*states.tolist(), strict=True))
    scales = [(fmean(c), pstdev(c) or 1.0) for c in columns]
    return [
        [(x - mean) / spread / math.sqrt(len(scales)) for x, (mean, spread) in zip(p, scales, strict=True)]
        for p in points.tolist()
    ]


def check_greedy(states, centres, weights, exponent, picks):
    """Every pick is the best that was left, by distances computed anew from all that was chosen before it."""
    points, taken = standardized(states, states), standardized(centres, states)
    left = set(range(len(states)))
    for row, distance in picks:
        if taken:
            distances = {i: min(math.dist(points[i], c) for c in taken) for i in left}
            score = {i: weights[i] * distances[i] ** exponent for i in left}
            assert score[row] >= max(score.values()) - 1e-9
        else:
            distances = {i: math.hypot(*points[i]) for i in left}
            heaviest = [i for i in left if weights[i] == max(weights)]
            assert row in heaviest
            assert distances[row] >= max(distances[i] for i in heaviest) - 1e-9
        assert distance == pytest.approx(distances[row], abs=1e-9)
        left.remove(row)
        taken.append(points[row])


@st.composite
def problems(draw):
    """Few different values, so that equal rows, rows that are centres and dimensions without variance are common."""
    n, m, d = draw(st.integers(1, 10)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    states = draw(arrays(np.int8, (n, d), elements=st.integers(-2, 2)))
    centres = draw(arrays(np.int8, (m, d), elements=st.integers(-2, 2)))
    weights = draw(arrays(np.int8, n, elements=st.integers(0, 4))) / 4
    return (
        states.astype(float),
        centres.astype(float),
        weights,
        draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        draw(st.integers(0, 12)),
    )


@given(problems())
@example((np.zeros((4, 2)), np.zeros((0, 2)), np.ones(4), 1.0, 4))
@example((np.array([[1.0, 5.0], [1.0, 6.0]]), np.array([[1.0, 5.0]]), np.ones(2), 1.0, 2))
@example((np.array([[3.0]]), np.zeros((0, 1)), np.ones(1), 1.0, 2))
@example((np.array([[3.0]]), np.array([[4.0]]), np.zeros(1), 1.0, 2))
def test_every_pick_is_the_best_of_a_naive_search(problem):
    states, centres, weights, exponent, count = problem
    picks = list(farthest_first(states, centres, weights, exponent, count))
    assert len({row for row, _ in picks}) == len(picks) == min(count, len(states))
    check_greedy(states, centres, weights, exponent, picks)


def test_real_valued_states_agree_too():
    random = np.random.default_rng(0)
    states, centres, weights = random.normal(size=(60, 8)), random.normal(size=(5, 8)), random.random(60)
    states[:, 0] *= 100
    picks = list(farthest_first(states, centres, weights, 0.5, 60))
    assert {row for row, _ in picks} == set(range(60))
    check_greedy(states, centres, weights, 0.5, picks)


def test_without_rows_nothing_is_taken():
    assert list(farthest_first(np.zeros((0, 0)), NO_CENTRES, np.ones(0), 1.0, 3)) == []
    assert list(farthest_first(np.zeros((0, 0)), np.ones((2, 3)), np.ones(0), 1.0, 3)) == []


def test_three_clusters_are_covered_before_any_is_visited_twice():
    corners = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    states = np.concatenate([corner + 0.01 * np.arange(5)[:, None] for corner in corners])
    first = [row // 5 for row, _ in farthest_first(states, NO_CENTRES, np.ones(15), 1.0, 3)]
    assert sorted(first) == [0, 1, 2]
    (row, _), *_ = farthest_first(states, corners[[0, 2]], np.ones(15), 1.0, 1)
    assert row // 5 == 1


def test_copies_of_a_chosen_state_come_last():
    states = np.array([[5.0], [5.0], [5.0], [1.0], [2.0]])
    assert [row for row, _ in farthest_first(states, NO_CENTRES, np.ones(5), 1.0, 5)] == [3, 0, 4, 1, 2]


def row(name: str, p: float | None, *state: float) -> PoolRow:
    return PoolRow(name, p, state=np.array(state, dtype=np.float32))


def ids(strategy, rows, bought, count, **acquire) -> list[str]:
    return [c.id for c in policy(strategy, AcquireSection(**acquire), 0).choose(rows, bought, count)]


def test_what_was_bought_is_a_centre_and_needs_no_probability():
    rows = [row("far", 0.5, 9), row("near", 0.5, 1), row("bought", None, 9.5)]
    for strategy in ("coreset", "ka2l_diverse"):
        assert ids(strategy, rows, {"bought"}, 2) == ["near", "far"]


@given(
    st.dictionaries(st.integers(0, 1000), st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 30), st.data()
)
def test_without_diversity_ka2l_diverse_is_ka2l(drawn, count, data):
    *rows, left = [row(f"q{p}", p / 1000, x, p % 7) for p, x in drawn.items()]
    bought = set(data.draw(st.lists(st.sampled_from([r.id for r in rows] or ["elsewhere"]))))
    assert ids("ka2l_diverse", [*rows, left], bought, count, diversity=0) == ids("ka2l", [*rows, left], bought, count)


@pytest.mark.parametrize("strategy", ["coreset", "ka2l_diverse"])
def test_nothing_is_chosen_where_nothing_is_left(strategy):
    assert ids(strategy, [], set(), 3) == []
    assert ids(strategy, [row("q", 0.5, 1)], {"q"}, 3) == []


def test_more_diversity_leaves_a_likely_cluster_sooner():
    rows = [row(f"likely{i}", 0.9, i / 100) for i in range(5)] + [row("alone", 0.6, 5.0)]
    positions = [ids("ka2l_diverse", rows, set(), 6, diversity=d).index("alone") for d in (0, 1)]
    assert positions == [5, 1]


def test_only_the_candidates_are_compared():
    """The likeliest for `ka2l_diverse`, a draw by the seed for `coreset`, however much farther other states are."""
    rows = [row(f"q{i:02}", i / 40, (40 - i) ** 2) for i in range(40)]
    assert set(ids("ka2l_diverse", rows, set(), 10, candidates=10)) == {f"q{i}" for i in range(30, 40)}
    drawn = [
        {c.id for c in policy("coreset", AcquireSection(candidates=10), seed).choose(rows, set(), 10)}
        for seed in (0, 1, 0)
    ]
    assert drawn[0] == drawn[2] != drawn[1]


def test_the_reason_gives_the_distance_to_the_nearest_chosen_state():
    rows = [row("a", 0.9, 0.0), row("b", 0.5, 2.0)]
    first, second = policy("ka2l_diverse", AcquireSection(), 0).choose(rows, set(), 2)
    assert second.reason == "p_unknown 0.500, distance 2.000 to the nearest chosen state"
    assert first.reason.startswith("p_unknown 0.900")
