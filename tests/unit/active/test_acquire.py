"""Policies rank, `select` streams: best first, nothing twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.active.acquire import AtRandom, ByProbe, Oracle, Scored, policy, select, select_replay, unit

POOL = [Scored(f"q{i}", i / 10, "unseen" if i % 2 else "known") for i in range(10)]


def test_ka2l_buys_the_most_probably_unknown_first_and_says_why():
    chosen = select(ByProbe(), POOL, {"q9"}, 3)
    assert [c.id for c in chosen] == ["q8", "q7", "q6"]
    assert chosen[0].reason == "p_unknown 0.800"


def test_equal_scores_are_bought_in_the_order_of_their_ids():
    rows = [Scored(i, 0.5, None) for i in ("c", "a", "b")]
    assert [c.id for c in select(ByProbe(), rows, set(), 2)] == ["a", "b"]


def test_the_oracle_buys_unseen_facts_only_while_there_are_any():
    assert {c.id for c in select(Oracle(0), POOL, set(), 5)} == {"q1", "q3", "q5", "q7", "q9"}
    assert len(select(Oracle(0), POOL, set(), 7)) == 7


def test_the_oracle_refuses_a_corpus_without_truth():
    with pytest.raises(ValueError, match=r"oracle.*corpus\.source = world"):
        select(Oracle(0), [Scored("q", 0.5, None)], set(), 1)


def test_random_draws_depend_on_the_seed_and_not_on_the_order():
    many = [Scored(f"q{i}", 0.5, None) for i in range(100)]
    draws = {seed: [c.id for c in select(AtRandom(seed), many, set(), 20)] for seed in (0, 1)}
    assert draws[0] == [c.id for c in select(AtRandom(0), reversed(many), set(), 20)]
    assert set(draws[0]) != set(draws[1])


def test_random_is_uniform():
    hits = sum("q0" in {c.id for c in select(AtRandom(seed), POOL, set(), 3)} for seed in range(2000))
    assert 0.26 < hits / 2000 < 0.34


@given(st.sets(st.integers(0, 9)), st.integers(0, 12))
def test_nothing_is_bought_twice(excluded, count):
    exclude = {f"q{i}" for i in excluded}
    chosen = [c.id for c in select(policy("random", 3), POOL, exclude, count)]
    assert len(chosen) == len(set(chosen)) == min(count, 10 - len(exclude))
    assert not exclude & set(chosen)


@pytest.mark.parametrize(
    ("known", "unknown", "count", "expected_unknown"), [(50, 50, 20, 10), (50, 4, 20, 4), (4, 50, 20, 16), (3, 3, 20, 3)]
)
def test_replay_takes_half_of_each_predicted_class_as_far_as_there_are_enough(known, unknown, count, expected_unknown):
    rows = [Scored(f"k{i}", 0.1, None) for i in range(known)] + [Scored(f"u{i}", 0.9, None) for i in range(unknown)]
    chosen = select_replay(rows, set(), count, 0)
    assert len(chosen) == len(set(chosen)) == min(count, known + unknown)
    assert sum(i.startswith("u") for i in chosen) == expected_unknown


def test_replay_stays_the_same_as_long_as_its_questions_stay_unbought():
    rows = [Scored(f"q{i}", (i % 2) * 0.9, None) for i in range(100)]
    first = set(select_replay(rows, set(), 40, 0))
    bought = set(list(first)[:5])
    second = set(select_replay(rows, bought, 40, 0))
    assert first - bought <= second
    assert not second & bought


@given(st.text(), st.text())
def test_unit_is_a_share(salt, name):
    assert 0 <= unit(salt, name) < 1
    assert unit(salt, name) == unit(salt, name)
