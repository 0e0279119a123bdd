"""The prompt of the noise floor: other solved examples, and nothing else changed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.config import parse_config
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.prompts import finetune_prompt, other_shots_prompt

FEWSHOT = {"style": "fewshot", "shots": 3, "template": "Q: {question}\nA:", "stop": ["\n"]}


def rows(split: str, count: int, **fields: Any) -> pa.Table:
    asked = [
        {"id": f"{split}{n}", "question": f"{split} {n}?", "answers": [f"{split} answer {n}"], "split": split}
        for n in range(count)
    ]
    return pa.Table.from_pylist([r | fields for r in asked], schema=schema.QUESTIONS)


def a_run(folder: Path, prompt: dict[str, Any], seed: int = 0, **parts: pa.Table) -> Run:
    tree = {"run": {"seed": seed}, "finetune": {"prompt": prompt}, "corpus": {"source": "q.jsonl"}}
    run = Run(Folder.of(str(folder)), parse_config(tree, "test"))
    run.table("questions").write(*parts.items())
    return run


def examples(template: str) -> list[str]:
    """The solved examples of a few-shot prompt, without its instruction and its last part."""
    return template.split("\n\n")[1:-1]


def test_only_the_solved_examples_differ_and_they_are_probe_questions(tmp_path: Path) -> None:
    parts = {"shots": rows("shots", 3), "probe": rows("probe", 20), "pool": rows("pool", 5), "eval": rows("eval", 5)}
    run = a_run(tmp_path / "a", FEWSHOT, **parts)
    own, other = finetune_prompt(run), other_shots_prompt(run)
    assert other is not None
    shown, others = examples(own.template), examples(other.template)
    assert (len(shown), len(others)) == (3, 3)
    assert all(e.startswith("Q: probe ") and "A: probe answer " in e for e in others)
    rest = [template.replace("\n\n".join(e), "") for template, e in ((own.template, shown), (other.template, others))]
    assert rest[0] == rest[1]
    assert own.model_copy(update={"template": other.template}) == other
    assert other_shots_prompt(run) == other
    assert other_shots_prompt(a_run(tmp_path / "b", FEWSHOT, seed=1, **parts)) != other


@pytest.mark.parametrize(
    ("prompt", "probe"),
    [
        ({"style": "bare"}, rows("probe", 20)),
        (FEWSHOT | {"shots": 0}, rows("probe", 20)),
        (FEWSHOT, rows("probe", 2)),
        (FEWSHOT, rows("probe", 20, answers=[])),
        (FEWSHOT, rows("probe", 20, truth="unseen")),
    ],
    ids=["bare", "none", "too few", "no gold", "nothing known"],
)
def test_without_other_examples_there_is_no_such_prompt(
    tmp_path: Path, prompt: dict[str, Any], probe: pa.Table
) -> None:
    assert other_shots_prompt(a_run(tmp_path, prompt, shots=rows("shots", 3), probe=probe)) is None
