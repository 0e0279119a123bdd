"""The question sets of the data folder: `ka2l corpus` accounts for every row, and finds gold where the set has it."""

import re
from pathlib import Path

import pytest

from ka2l_ray.config import load_config
from ka2l_ray.corpus.preview import preview

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"
SPLIT_BY_ENTITY = {"popqa_merged.jsonl": (1_880, 3_378, 31), "entityquestions_dev.jsonl": (21_821, 21_661, 24)}
"""Entities, groups that stay in one split, questions of the largest, as `corpus/together.py` and the docs say."""
SETS = {
    "nq_open_dev.jsonl": ("nq_open", 3_610),
    "medmcqa_dev.jsonl": ("medmcqa", 4_183),
    "triviaqa_sm_sub_llmfoundry.jsonl": ("trivia_qa", 3_000),
    "popqa_merged.jsonl": ("popqa", 3_557),
    "entityquestions_dev.jsonl": ("entity_questions", 22_068),
    "simpleqa_test.csv": ("simpleqa", 4_326),
}


@pytest.mark.parametrize("name", SETS)
def test_every_row_of_a_known_question_set_is_accounted_for(name: str) -> None:
    kind, rows = SETS[name]
    if not (DATA / name).exists():
        pytest.skip(f"no {DATA / name} on this machine")
    overrides = [f"corpus.source={DATA / name}", f"corpus.format={kind}"]
    found = preview(load_config(ROOT / "jobs/configs/smoke.yaml", overrides), with_tokens=False)
    assert found.rows == rows
    assert found.questions + found.merged + found.lost == rows
    assert sum(found.splits.values()) + found.set_aside == found.questions
    assert re.fullmatch(r"\S.*", found.answers[0], re.DOTALL)
    assert found.with_gold == found.questions
    assert found.lost == 0
    if name in SPLIT_BY_ENTITY:
        assert (found.entities, found.split_groups, found.largest_group) == SPLIT_BY_ENTITY[name]
