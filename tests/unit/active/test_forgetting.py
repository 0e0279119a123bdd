"""What counts as known, and what was lost and gained since."""

from typing import Any

import pytest

from ka2l_ray.active.forgetting import class_of, lost_and_gained


@pytest.mark.parametrize(
    ("right", "samples_right", "wanted"),
    [
        ((True, True), 0.6, "known"),
        ((True, True), 0.5, "shaky"),  # a tie is not most
        ((True, False), None, "shaky"),
        ((True, None), None, None),  # its own words could not be asked
        ((True, True), None, None),  # its samples could not be drawn
        ((False, True), None, "wrong"),
        ((False, None), None, "wrong"),
        ((None, True), None, None),
        ((True, True, True), 0.6, "known"),  # eval asks its own words too
        ((True, False, None), None, "shaky"),  # so it was not asked again
    ],
)
def test_a_fact_is_known_only_where_all_wordings_and_most_samples_are_right(
    right: tuple[bool | None, ...], samples_right: float | None, wanted: str | None
) -> None:
    assert class_of(right, samples_right) == wanted


CLASSES = {"k1": "known", "k2": "known", "k3": "known", "s": "shaky", "w1": "wrong", "w2": "wrong", "w3": "wrong"}


def answers(*right: str, failed: str = "") -> list[dict[str, Any]]:
    """Later answers to all questions, and to one that has no class: these are right, `failed` has no grade."""
    rows = [{"id": i, "fact_id": f"f-{i}", "correct": i in right} for i in [*CLASSES, "replayed pool question"]]
    return [r | ({"correct": None} if r["id"] == failed else {}) for r in rows]


def test_losses_are_over_known_facts_and_gains_over_wrong_ones() -> None:
    found = lost_and_gained(CLASSES, answers("k1", "k2", "w3", "replayed pool question"))
    assert found == {
        "lost": {"share": pytest.approx(1 / 3), "count": 1, "of": 3},
        "gained": {"share": pytest.approx(1 / 3), "count": 1, "of": 3},
    }


def test_facts_that_were_bought_or_replayed_are_neither_lost_nor_gained() -> None:
    found = lost_and_gained(CLASSES, answers("k1", "w1", "w2"), {"f-k2", "f-w1"})
    assert found["lost"] == {"share": 0.5, "count": 1, "of": 2}
    assert found["gained"] == {"share": 0.5, "count": 1, "of": 2}
    none_left = lost_and_gained(CLASSES, answers("k1"), {"f-k1", "f-k2", "f-k3"})
    assert none_left["lost"] == {"share": None, "count": 0, "of": 0}


def test_corpora_whose_facts_have_no_names_lose_and_gain_all_the_same() -> None:
    rows = [r | {"fact_id": None} for r in answers("k1", "k2", "k3", failed="w1")]
    found = lost_and_gained(CLASSES, rows, {"bought"})
    assert (found["lost"]["count"], found["gained"]["count"], found["gained"]["of"]) == (0, 0, 3)


def test_an_answer_that_failed_later_is_lost() -> None:
    assert lost_and_gained(CLASSES, answers("k1", "k2", "k3", failed="k2"))["lost"]["count"] == 1
