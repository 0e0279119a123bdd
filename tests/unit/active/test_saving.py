"""The saving as the design defines it, by hand-made curves."""

from typing import Any

import pytest

from ka2l_ray.active.saving import annotations_to_reach, curves, mean_curve, savings


def rounds(strategy, seed, *points) -> list[Any]:
    """Of each round only what a learning curve is made of."""
    return [{"strategy": strategy, "seed": seed, "annotations": n, "accuracy": a} for n, a in points]


def test_reaching_is_interpolated_and_the_first_time_counts():
    curve = [(0, 0.5), (100, 0.7), (200, 0.6), (300, 0.9)]
    assert annotations_to_reach(curve, 0.5) == 0
    assert annotations_to_reach(curve, 0.6) == pytest.approx(50)
    assert annotations_to_reach(curve, 0.75) == pytest.approx(250)
    assert annotations_to_reach(curve, 0.95) is None


def test_the_ceiling_is_what_the_base_model_answers_wrong_where_no_truth_is_known():
    table = (
        rounds("random", 0, (0, 0.5), (100, 0.6))
        + rounds("ka2l", 0, (0, 0.5), (100, 0.7))
        + rounds("oracle_wrong", 0, (0, 0.5), (100, 0.75))
    )
    found = {s["strategy"]: s for s in savings(table)}
    assert found["ka2l"]["of_oracle"] == pytest.approx(0.5 / 0.6)
    with_truth = {s["strategy"]: s for s in savings(table + rounds("oracle", 0, (0, 0.5), (100, 1.0)))}
    assert with_truth["ka2l"]["of_oracle"] == pytest.approx(0.5 / 0.8)


def test_half_the_annotations_are_a_saving_of_one_half_and_of_the_oracle_in_proportion():
    table = (
        rounds("random", 0, (0, 0.5), (100, 0.6))
        + rounds("ka2l", 0, (0, 0.5), (100, 0.7))
        + rounds("oracle", 0, (0, 0.5), (100, 0.75))
    )
    found = {s["strategy"]: s for s in savings(table)}
    assert found["ka2l"]["saving"] == pytest.approx(0.5)
    assert found["oracle"]["saving"] == pytest.approx(0.6)
    assert found["ka2l"]["of_oracle"] == pytest.approx(0.5 / 0.6)


def test_random_is_the_mean_of_its_draws():
    table = (
        rounds("random", 0, (0, 0.5), (100, 0.56))
        + rounds("random", 1000, (0, 0.5), (100, 0.64))
        + rounds("ka2l", 0, (0, 0.5), (100, 0.7))
    )
    assert mean_curve(list(curves(table, "random").values())) == [(0, 0.5), (100, pytest.approx(0.6))]
    assert savings(table) == [{"strategy": "ka2l", "seed": 0, "saving": pytest.approx(0.5), "of_oracle": None}]


def test_a_target_never_reached_is_null_and_a_worse_strategy_saves_nothing():
    table = rounds("random", 0, (0, 0.5), (100, 0.6)) + rounds("ka2l", 0, (0, 0.5), (100, 0.55))
    assert savings(table)[0]["saving"] is None


def test_without_a_random_curve_there_is_no_saving():
    assert savings(rounds("ka2l", 0, (0, 0.5), (100, 0.7))) == []
    assert savings(rounds("random", 0, (0, 0.5)) + rounds("ka2l", 0, (0, 0.5))) == []


@pytest.mark.parametrize("ends", [0.5, 0.45])
def test_where_random_ends_no_higher_than_it_began_nothing_is_saved(ends):
    table = rounds("random", 0, (0, 0.5), (100, ends)) + rounds("ka2l", 0, (0, 0.5), (100, 0.7))
    assert savings(table) == [{"strategy": "ka2l", "seed": 0, "saving": None, "of_oracle": None}]
