"""What every policy promises, and the order that each one buys in, against brute force."""

import dataclasses
import math
from collections.abc import Set
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ka2l_ray.active.policies import PoolRow, Ranking, at_random, by_entropy, by_likelihood, by_probe
from ka2l_ray.active.strategies import STRATEGIES, Need, needs, policy
from ka2l_ray.config import AcquireSection, Strategy
from ka2l_ray.hashing import uniform

QUADRANTS = ("known", "misconception", "shaky", "unknown")
POOL = [PoolRow(f"q{i}", i / 10, "unseen" if i % 2 else "known") for i in range(10)]
ENTROPIES = [0.0, 0.325, 0.5, 1.0, math.log(10), math.log(100)]


def chosen(policy, rows, bought: Set[str] = frozenset(), count=10) -> list[str]:
    return [c.id for c in policy.choose(rows, bought, count)]


def pools(smallest=0, largest=25):
    """Pools of full rows with few different values, so that ties and like states are common."""
    row = st.builds(
        PoolRow,
        id=st.integers(0, 99).map("q{}".format),
        p_unknown=st.integers(0, 8).map(lambda n: n / 8),
        truth=st.sampled_from(["known", "unseen", "rare"]),
        group=st.sampled_from([None, "a", "b", "c"]),
        entropy_nats=st.sampled_from(ENTROPIES),
        likelihood=st.integers(0, 5).map(float),
        quadrant=st.sampled_from(QUADRANTS),
        state=st.lists(st.integers(-2, 2), min_size=2, max_size=2).map(lambda s: np.array(s, dtype=np.float32)),
    )
    return st.lists(row, min_size=smallest, max_size=largest, unique_by=lambda r: r.id)


def test_every_strategy_of_the_configuration_has_an_entry():
    assert tuple(STRATEGIES) == get_args(Strategy)


@pytest.mark.parametrize("balance", ["none", "group"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@given(rows=pools(), data=st.data())
def test_no_policy_buys_twice_or_more_than_asked_or_looks_at_the_order_of_the_pool(strategy, balance, rows, data):
    bought = set(data.draw(st.lists(st.sampled_from([r.id for r in rows] or ["elsewhere"]))))
    count = data.draw(st.integers(0, 30))
    buys = policy(strategy, AcquireSection(balance=balance), seed=3)
    left = {r.id for r in rows} - bought
    assume(left or not needs(strategy, Need.STATES))
    ids = chosen(buys, rows, bought, count)
    assert len(ids) == len(set(ids)) == min(count, len(left))
    assert set(ids) <= left
    assert chosen(buys, iter(rows[::-1]), bought, count) == ids


@given(pools(), st.integers(0, 30), st.sampled_from([by_probe, by_entropy, by_likelihood, at_random(5)]))
def test_a_streamed_ranking_is_the_start_of_all_rows_sorted(rows, count, priority):
    by_hand = sorted(rows, key=lambda r: (-priority(r)[0], r.id))
    assert chosen(Ranking(priority), rows, count=count) == [r.id for r in by_hand[:count]]


@given(pools(), st.integers(0, 12))
def test_with_groups_every_groups_best_comes_before_any_second_best(rows, count):
    turns = []
    for group in {r.group for r in rows}:
        members = sorted((r for r in rows if r.group == group), key=lambda r: (-by_probe(r)[0], r.id))
        turns += [(turn, -by_probe(r)[0], r.id) for turn, r in enumerate(members)]
    assert chosen(Ranking(by_probe, by_group=True), rows, count=count) == [i for _, _, i in sorted(turns)[:count]]


def test_ka2l_buys_the_most_probably_unknown_first_and_says_why():
    choices = policy("ka2l", AcquireSection(), 0).choose(POOL, {"q9"}, 3)
    assert [c.id for c in choices] == ["q8", "q7", "q6"]
    assert choices[0].reason == "p_unknown 0.800"
    assert (
        "number 1 of its group" in policy("ka2l", AcquireSection(balance="group"), 0).choose(POOL, set(), 1)[0].reason
    )


def test_decoded_chooses_its_pool_questions_as_ka2l_does():
    assert chosen(policy("decoded", AcquireSection(), 0), POOL) == chosen(policy("ka2l", AcquireSection(), 0), POOL)


def test_equal_scores_are_bought_in_the_order_of_their_ids():
    rows = [PoolRow(i, 0.5) for i in ("c", "a", "b")]
    assert chosen(Ranking(by_probe), rows, count=2) == ["a", "b"]


def test_equal_entropies_are_not_bought_by_the_alphabet_and_no_tie_break_outweighs_an_entropy():
    """Neighbouring entropies of K = 20 samples are at least 1.4e-4 nats apart."""
    rows = [PoolRow(f"q{i:02}", entropy_nats=1.0 + 1.4e-4 * (i >= 25)) for i in range(50)]
    ids = chosen(Ranking(by_entropy), rows, count=50)
    assert set(ids[:25]) == {r.id for r in rows[25:]}
    assert ids[:25] != sorted(ids[:25])


def test_likelihood_buys_the_least_likely_answer_first():
    rows = [PoolRow("sure", likelihood=0.1), PoolRow("doubtful", likelihood=7.0)]
    first = policy("likelihood", AcquireSection(), 0).choose(rows, set(), 1)[0]
    assert (first.id, first.reason) == ("doubtful", "greedy answer at -7.000 nats")


@pytest.mark.parametrize("strategy", ["entropy", "likelihood", "quadrant"])
def test_what_the_model_abstains_from_is_bought_before_what_it_knows(strategy):
    """The same refusal ten times has no entropy, and is as likely as can be."""
    silent = PoolRow("q0", entropy_nats=0.0, likelihood=0.1, quadrant="abstains", abstains=True)
    known = PoolRow("q1", entropy_nats=0.0, likelihood=0.2, quadrant="known", abstains=False)
    no_gold = PoolRow("q2", entropy_nats=0.0, likelihood=0.1, abstains=True)
    choices = policy(strategy, AcquireSection(), 0).choose([known, silent, no_gold], set(), 3)
    assert choices[-1].id == "q1"
    assert choices[0].reason.startswith("abstains, ")


@given(pools(), st.permutations(QUADRANTS), st.integers(1, 4))
def test_quadrants_are_bought_in_the_order_wanted_then_by_entropy_and_the_rest_last(rows, order, wanted):
    wanted = tuple(order[:wanted])
    ids = chosen(policy("quadrant", AcquireSection(quadrants=wanted), 0), rows, count=99)
    by_id = {r.id: r for r in rows}
    keys = [
        (wanted.index(q) if (q := by_id[i].quadrant) in wanted else len(wanted), -by_id[i].entropy_nats) for i in ids
    ]
    assert keys == sorted(keys)
    assert len(ids) == len(rows)


def test_a_pool_question_without_gold_comes_last_and_ends_nothing():
    rows = [PoolRow("ungraded", entropy_nats=2.3), PoolRow("known", entropy_nats=0.0, quadrant="known")]
    rows += [PoolRow("unknown", entropy_nats=1.0, quadrant="unknown"), PoolRow("bare", entropy_nats=1.0)]
    choices = policy("quadrant", AcquireSection(), 0).choose(rows, set(), 4)
    assert [c.id for c in choices] == ["unknown", "known", "ungraded", "bare"]
    assert choices[2].reason == "no quadrant without gold, entropy 2.300 nats"


def test_the_oracle_of_answers_buys_what_is_wrong_then_what_nobody_asked():
    answered = {0: False, 1: True, 2: None, 3: True, 4: False}
    pool = [PoolRow(f"q{n}", wrong=wrong) for n, wrong in answered.items()]
    ranked = policy("oracle_wrong", AcquireSection(), 0).choose(pool, set(), 5)
    assert [{c.id for c in part} for part in (ranked[:2], ranked[2:3], ranked[3:])] == [
        {"q1", "q3"},
        {"q2"},
        {"q0", "q4"},
    ]
    assert ranked[0].reason == "answered wrong"


def test_the_oracle_buys_unseen_facts_only_while_there_are_any():
    oracle = policy("oracle", AcquireSection(), 0)
    assert set(chosen(oracle, POOL, count=5)) == {"q1", "q3", "q5", "q7", "q9"}
    assert len(chosen(oracle, POOL, count=7)) == 7


@pytest.mark.parametrize(
    ("strategy", "missing", "says"),
    [
        ("ka2l", "p_unknown", r"pool question q0 has no P\(unknown\)"),
        ("decoded", "p_unknown", r"pool question q0 has no P\(unknown\)"),
        ("ka2l_diverse", "p_unknown", r"pool question q0 has no P\(unknown\)"),
        ("ka2l_diverse", "state", "pool question q0 has no hidden state"),
        ("coreset", "state", "pool question q0 has no hidden state"),
        ("entropy", "entropy_nats", "pool question q0 has no entropy"),
        ("likelihood", "likelihood", "pool question q0 has no likelihood"),
        ("quadrant", "entropy_nats", "pool question q0 has no entropy"),
        ("oracle", "truth", r"oracle.*corpus\.source = world"),
    ],
)
def test_a_row_without_what_a_strategy_ranks_by_is_named(strategy, missing, says):
    whole = PoolRow("q0", 0.5, "unseen", None, 1.0, 1.0, "unknown", np.ones(2))
    buys = policy(strategy, AcquireSection(), 0)
    assert chosen(buys, [whole]) == ["q0"]
    with pytest.raises(ValueError, match=says):
        chosen(buys, [dataclasses.replace(whole, **{missing: None})])


def test_random_draws_depend_on_the_seed_alone():
    many = [PoolRow(f"q{i}") for i in range(100)]
    draws = [set(chosen(policy("random", AcquireSection(), seed), many, count=20)) for seed in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]


def test_random_is_uniform():
    hits = sum("q0" in chosen(Ranking(at_random(seed)), POOL, count=3) for seed in range(2000))
    assert 0.26 < hits / 2000 < 0.34


@given(st.text(), st.text())
def test_unit_is_a_share_and_always_the_same(salt, name):
    assert 0 <= uniform(salt, name) < 1
    assert uniform(salt, name) == uniform(salt, name)
