"""Which AUROC decides whether a round's own probe is used."""

import pytest

from ka2l_ray.active.reprobe import se_auroc


@pytest.mark.parametrize(
    ("truth", "incorrect", "right", "wrong", "expected"),
    [
        (0.9, 0.6, 100, 100, 0.9),
        (0.0, 0.6, 100, 100, 0.0),
        (None, 0.6, 10, 10, 0.6),
        (None, 1.0, 100, 9, None),
        (None, 1.0, 9, 100, None),
        (None, None, 0, 0, None),
    ],
)
def test_the_truth_goes_before_grades_and_few_grades_tell_nothing(truth, incorrect, right, wrong, expected):
    label = {"entropy_auroc_vs_truth": truth, "entropy_auroc_vs_incorrect": incorrect, "right": right, "wrong": wrong}
    assert se_auroc(label, 10) == expected
