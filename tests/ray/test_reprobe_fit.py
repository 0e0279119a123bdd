"""Which AUROC decides whether a round's own probe is used, and under which prompts its model is asked."""

from pathlib import Path
from typing import Any, cast

import pytest

from ka2l_ray.active.reprobe import own_run, se_auroc
from ka2l_ray.active.round import Round
from ka2l_ray.config import parse_config
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.models.prompts import PROMPTS


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
    assert se_auroc(cast(Any, label), 10) == expected


def test_a_rounds_own_model_is_asked_under_the_prompts_that_the_run_keeps(tmp_path: Path) -> None:
    run = Run.open(parse_config({"run": {"name": "r", "storage": str(tmp_path)}}, "test"))
    run.table("questions").close([], rows_in=0)
    (run.folder / PROMPTS / "abc.json").write_json({"template": "At noon: {question}"})
    own = own_run(Round(run, "ka2l", 0, 1))
    assert (own.folder / PROMPTS / "abc.json").read_json() == {"template": "At noon: {question}"}
