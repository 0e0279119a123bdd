"""A guess by topic alone."""

import pytest

from ka2l_ray.active.prior import priors
from ka2l_ray.text.grading import EXACT, Grading


def row(scope: str, group: str | None, *answers: str) -> dict[str, object]:
    return {"scope": scope, "group": group, "answers": list(answers)}


PLACES = [row("pool", "place", "USA", "United States"), row("pool", "place", "usa"), row("pool", "place", "France")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], {}),
        (PLACES, {"pool": 2 / 3}),
        ([*PLACES, row("pool", "maker", "USA")], {"pool": 3 / 4}),
        ([*PLACES, row("pool", "maker", "A"), row("pool", "maker", "B")], {"pool": 3 / 5}),
        ([*PLACES, row("pool", "place")], {"pool": 2 / 3}),
        ([*PLACES, row("domain", "place", "Peru")], {"pool": 2 / 3, "domain": 1.0}),
        ([row("other", None, "a"), row("other", None, "b")], {"other": 0.5}),
    ],
)
def test_the_most_common_answer_of_each_topic(rows: list[dict[str, object]], expected: dict[str, float]) -> None:
    assert priors(rows, EXACT) == pytest.approx(expected)


CITIES = [row("pool", "city", city) for city in ("New York City", "New York City", "New York", "Rome")]
BONES = [
    row("pool", "bone", f"{letter}. {bone}", bone)
    for letter, bone in zip("CBCC", "Femur Ulna Tibia Talus".split(), strict=True)
]


@pytest.mark.parametrize(
    ("rows", "grading", "expected"),
    [
        (CITIES, EXACT, 2 / 4),
        (CITIES, Grading("contains"), 3 / 4),
        (CITIES, Grading("f1", f1=0.9), 2 / 4),
        (BONES, EXACT, 3 / 4),
    ],
    ids=["exact", "contains", "f1", "the letter of an option"],
)
def test_a_guess_is_graded_as_the_run_grades(rows: list[dict[str, object]], grading: Grading, expected: float) -> None:
    assert priors(rows, grading) == {"pool": expected}
