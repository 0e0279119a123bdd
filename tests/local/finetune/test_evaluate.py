"""The actors of evaluation, called on the world's model: it knows some facts and not others."""

from typing import Any

import pyarrow as pa
import pytest

from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.finetune.evaluate import EvaluateActor, EvaluateSetup, SamplingActor
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.world.facts import build_world, phrase_question

WORLD, PROMPT = ModelSection(), PromptSection()
SETUP = EvaluateSetup(
    model=WORLD, prompt=PROMPT, collect=CollectSection(samples=4, max_new_tokens=12), seed=0, tuned=None
)


@pytest.fixture(scope="module")
def batch() -> pa.Table:
    """Four known and four unseen facts, one of the known without gold, and a question of blanks."""
    facts = [f for f in build_world().facts if not f.person.tutor]
    some = [f for truth in ("known", "unseen") for f in [f for f in facts if f.truth == truth][:4]]
    rows: list[dict[str, Any]] = [
        {"id": f.fact_id, "question": phrase_question(f.attribute, 0, f.person.name), "answers": [f.value]}
        for f in some
    ]
    rows[3]["answers"] = []
    rows.append({"id": "blank", "question": " ", "answers": ["x"]})
    columns = pa.schema([("id", pa.string()), ("question", pa.string()), ("answers", pa.list_(pa.string()))])
    return Tokenize(WORLD, PROMPT).add(pa.Table.from_pylist(rows, schema=columns))


def test_samples_are_drawn_of_right_answers_alone_and_graded_as_they_are(batch: pa.Table) -> None:
    evaluated, found = EvaluateActor(SETUP)(batch), SamplingActor(SETUP)(batch)
    assert (found["answer"], found["correct"]) == (evaluated["answer"], evaluated["correct"])
    assert found["correct"][:4] == [True, True, True, None]
    right = [correct is True for correct in found["correct"]]
    assert [len(s) for s in found["samples"]] == [4 * r for r in right]
    gold = batch["answers"].to_pylist()
    shares = [sum(a == g[0] for a in s) / 4 if s else None for s, g in zip(found["samples"], gold, strict=True)]
    assert found["samples_right"] == shares
    assert [e is not None for e in found["error"]] == [False] * 8 + [True]


def test_where_nothing_is_right_nothing_is_drawn(batch: pa.Table) -> None:
    found = SamplingActor(SETUP)(batch.slice(3, 1))
    assert (found["samples"], found["samples_right"]) == ([[]], [None])
