"""Which questions are replayed, with which answers, and what counts as known or as a misconception."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.active.policies import PoolRow
from ka2l_ray.active.replay import (
    is_misconception,
    knew,
    misconceptions,
    replay_counts,
    replayed_answers,
    select_replay,
)
from ka2l_ray.config import ReplaySection
from ka2l_ray.hashing import uniform
from ka2l_ray.text.grading import Grading


def pool(known: int, unknown: int) -> list[PoolRow]:
    return [PoolRow(f"k{i}", 0.49) for i in range(known)] + [PoolRow(f"u{i}", 0.5) for i in range(unknown)]


@pytest.mark.parametrize(
    ("ratio", "share", "budget", "expected"),
    [
        (2.0, 0.5, 150, (150, 150)),
        (0.5, 0.2, 150, (60, 15)),
        (1.0, 0.0, 10, (10, 0)),
        (1.0, 1.0, 10, (0, 10)),
        (0.0, 0.5, 10, (0, 0)),
    ],
)
def test_replay_is_counted_for_the_whole_budget(ratio, share, budget, expected):
    assert replay_counts(ReplaySection(ratio=ratio, unknown_share=share), budget) == expected


small = st.integers(0, 6)


@given(small, small, small, small, st.sets(st.integers(0, 5)), st.integers(0, 3))
def test_what_one_side_lacks_the_other_gives_as_far_as_there_are_enough(
    have_known, have_unknown, known, unknown, bought, seed
):
    bought = {f"{side}{n}" for n in bought for side in "ku"}
    rows = pool(have_known, have_unknown)
    left = {
        side: sorted((r.id for r in rows if r.id[0] == side and r.id not in bought), key=by_hash(seed)) for side in "ku"
    }
    wanted = {"k": known, "u": unknown}
    expected = [i for side in "ku" for i in left[side][: wanted[side]]]
    spare = [i for side in "ku" for i in left[side][wanted[side] :]]
    expected += spare[
        : known + unknown - len(expected)
    ]  # only one side can have any to spare where the other lacks some
    assert select_replay(iter(rows), bought, known, unknown, seed) == sorted(expected)


def by_hash(seed: int):
    return lambda name: uniform(f"replay-{seed}", name)


@given(st.permutations(pool(6, 5)), st.integers(0, 8))
def test_the_order_of_the_pool_changes_nothing(rows, known):
    assert select_replay(rows, set(), known, 2, 0) == select_replay(pool(6, 5), set(), known, 2, 0)


def test_rows_without_a_score_are_not_replayed():
    assert select_replay([PoolRow("failed"), PoolRow("k", 0.1)], set(), 5, 5, 0) == ["k"]


def test_replay_stays_the_same_as_long_as_its_questions_stay_unbought():
    rows = pool(50, 50)
    first = set(select_replay(rows, set(), 20, 20, 0))
    bought = set(sorted(first)[:5])
    second = set(select_replay(rows, bought, 20, 20, 0))
    assert first - bought <= second
    assert not second & bought
    assert first != set(select_replay(rows, set(), 20, 20, 1))


@pytest.mark.parametrize(
    ("samples", "greedy", "gold", "replay", "expected"),
    [
        (["a", "b"], "c", ["a"], {}, ["a", "b"]),
        (["a", "b"], "c", ["a"], {"source": "greedy"}, ["c"]),
        (["a", "b", "A."], "c", ["a"], {"gold_is_free": True}, ["a", "A."]),
        (["a", "b"], "c", ["c"], {"gold_is_free": True}, ["a", "b"]),
        (["a", "b"], "c", [], {"gold_is_free": True}, ["a", "b"]),
        (["a", "b"], "c", ["a"], {"gold_is_free": True, "source": "greedy"}, ["c"]),
    ],
)
def test_replay_teaches_a_models_own_answers_and_only_the_right_ones_where_gold_is_free(
    samples, greedy, gold, replay, expected
):
    assert replayed_answers(samples, greedy, gold, ReplaySection(**replay)) == expected


@pytest.mark.parametrize(
    ("samples", "greedy", "known"),
    [
        (["Ada", "Ada"], "Ada", True),
        (["Ada", "Bo"], "the ada.", True),
        (["Bo", "Cy", "Ada"], "Ada", False),
        (["Ada", "Ada"], "Bo", False),
        ([], "Ada", True),
    ],
)
def test_a_model_knew_what_it_answers_right_greedily_and_in_half_of_its_samples(samples, greedy, known):
    assert knew(samples, greedy, ["Ada"]) is known


def test_nothing_is_known_without_gold():
    assert not knew(["Ada"], "Ada", [])


@pytest.mark.parametrize(
    ("answers", "gold", "expected"),
    [
        (["Bo", "bo.", "the Bo"], ["Ada"], True),
        (["Bo", "Cy"], ["Ada"], False),
        (["Ada", "Ada"], ["Ada"], False),
        (["Bo"], ["Ada", "Bo"], False),
        (["Bo", "Bo"], [], False),
    ],
)
def test_a_misconception_is_one_answer_always_and_wrong(answers, gold, expected):
    assert is_misconception(answers, gold) is expected


def test_the_same_refusal_again_and_again_is_no_misconception():
    rows = [
        {"samples": [text] * 3, "greedy": text, "answers": ["Rome"]} for text in ("Oslo", "", "I don't know.", "Rome")
    ]
    assert misconceptions(rows, refusals=("i don't know",)) == 1


def test_misconceptions_are_counted_where_there_is_gold():
    sure_and_wrong = {"samples": ["Bo", "bo."], "greedy": "the Bo", "answers": ["Ada"]}
    rows = [
        sure_and_wrong,
        sure_and_wrong | {"answers": []},
        sure_and_wrong | {"greedy": "Cy"},
        sure_and_wrong | {"answers": ["Bo"]},
    ]
    assert misconceptions(rows) == 1
    assert misconceptions(rows[1:2]) is None
    assert misconceptions([]) is None


def test_replay_grades_as_the_run_does():
    """Otherwise a model that answers in sentences would have known nothing, and its right answers would not be
    replayed."""
    samples, gold, contains = ["It was Ada.", "Bo", "Ada, I think"], ["Ada"], Grading("contains")
    replay = ReplaySection(source="samples", gold_is_free=True)
    assert replayed_answers(samples, "", gold, replay, contains) == ["It was Ada.", "Ada, I think"]
    assert replayed_answers(samples, "", gold, replay) == samples
    assert knew(samples, "Ada did.", gold, contains)
    assert not knew(samples, "Ada did.", gold)
    assert is_misconception(["It was Ada."], gold)
    assert not is_misconception(["It was Ada."], gold, contains)
    rows = [{"samples": ["It was Ada."], "greedy": "it was Ada", "answers": gold}]
    assert [misconceptions(rows), misconceptions(rows, contains)] == [1, 0]
