"""When a strategy stops, by hand-made accuracies that begin with the base model's."""

import pytest

from ka2l_ray.active.stop import Stop, decide, rounds_without_gain
from ka2l_ray.config import StopSection


@pytest.mark.parametrize(
    ("stop", "accuracies", "expected"),
    [
        ({}, [0.5, 0.4, 0.3, 0.2], None),
        ({"accuracy": 0.7}, [0.5, 0.7], Stop.ACCURACY),
        ({"accuracy": 0.7}, [0.8], Stop.ACCURACY),
        ({"accuracy": 0.7}, [0.8, 0.6], None),
        ({"accuracy": 0.7}, [0.5, 0.69], None),
        ({"accuracy": 0.0}, [None, None], None),
        ({"accuracy": 0.7}, [0.5, 0.75, None], Stop.ACCURACY),
        ({"patience": 1, "min_gain": 0.1}, [0.5], None),
        ({"patience": 1, "min_gain": 0.125}, [0.5, 0.5625], Stop.NO_GAIN),
        ({"patience": 1, "min_gain": 0.125}, [0.5, 0.625], None),
        ({"patience": 2, "min_gain": 0.1}, [0.5, 0.7, 0.6], None),
        ({"patience": 2, "min_gain": 0.1}, [0.5, 0.7, 0.6, 0.75], Stop.NO_GAIN),
        ({"patience": 2, "min_gain": 0.1}, [0.5, 0.7, 0.6, 0.9], None),
        ({"patience": 1}, [None, None, None], None),
        ({"patience": 1}, [], None),
        ({"patience": 1, "accuracy": 0.5}, [0.5, 0.5], Stop.ACCURACY),
    ],
)
def test_accuracy_and_patience_decide(stop, accuracies, expected):
    assert decide(StopSection(**stop), accuracies, unknown_left=True) == expected


def test_a_pool_without_unknown_questions_ends_it():
    assert decide(StopSection(), [0.5], unknown_left=False) == Stop.NOTHING_UNKNOWN
    assert decide(StopSection(), [None], unknown_left=False) == Stop.NOTHING_UNKNOWN
    assert decide(StopSection(accuracy=0.5), [0.5], unknown_left=False) == Stop.ACCURACY


def test_a_gain_counts_against_the_best_round_before_and_small_ones_raise_the_bar():
    assert rounds_without_gain([], 0.1) == 0
    assert rounds_without_gain([0.5, 0.56, 0.62, 0.68], 0.1) == 3
    assert rounds_without_gain([0.5, 0.3, 0.45, 0.7, 0.6], 0.1) == 1


def test_one_more_right_answer_of_two_hundred_is_a_gain_of_half_a_percent():
    assert [n for n in range(200) if rounds_without_gain([n / 200, (n + 1) / 200], 0.005)] == []


def test_standing_still_is_no_gain_however_small_a_gain_may_be():
    assert decide(StopSection(patience=2, min_gain=0), [0.5, 0.5, 0.5, 0.5], unknown_left=True) == Stop.NO_GAIN
