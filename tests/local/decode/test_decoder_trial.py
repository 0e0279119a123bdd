"""One short training of the search over a decoder's states, on the world."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ka2l_ray.config import DecoderSearchSection, DecoderTrainingSection, ModelSection
from ka2l_ray.dataflow.placement import CPU
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.self_decoder import SelfCard
from ka2l_ray.decode.trial import RESULT, TrialSetup, cards_of, for_trials, run_trial
from ka2l_ray.decode.whom import NO_GROUPS
from ka2l_ray.errors import StageError
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.world.facts import build_world, phrase_question
from ka2l_ray.world_model.pretrain import PROMPT

WORLD = ModelSection(name_or_path="world")
SEARCH = DecoderSearchSection(layers=(2, 3), token_layers=(1, "none"), examples=96, held_out_rows=8)
TRAINING = DecoderTrainingSection(search=SEARCH, batch_rows=8, rank=2, workers=2)
STATES: dict[str, Any] = {"layer": 1, "position": "mean", "token_layer": 1, "width": 128}
CARD = SelfCard(model="world", prompt=PROMPT.template, rank=2, held_out=0.2, **STATES)


def setup(rows: int) -> TrialSetup:
    facts = build_world().facts[:rows]
    questions = [
        {"id": f.fact_id, "question": phrase_question(f.attribute, 0, f.person.name), "group": None}
        | {"entity": f.person.name, "held_out": n % 6 == 0}
        for n, f in enumerate(facts)
    ]
    return TrialSetup(
        model=WORLD,
        prompt=PROMPT,
        training=for_trials(TRAINING),
        questions=pa.Table.from_pylist(questions),
        common=NO_GROUPS,
        placement=CPU,
        abilities=abilities_of(WORLD),
        seed=0,
    )


def test_every_combination_is_tried_by_one_worker_on_fewer_questions() -> None:
    cards = cards_of(CARD, TRAINING)
    tried = {(c.layer, c.position, c.token_layer) for c in cards.values()}
    assert tried == {(n, "mean", at) for n in (2, 3) for at in (1, None)}
    assert len(cards) == 4
    assert all(replace(c, layer=1, token_layer=1) == CARD for c in cards.values()), "all else is as it will be"
    short = for_trials(TRAINING)
    assert (short.examples, short.workers, short.held_out_rows) == (96, 1, 8)
    assert short.model_copy(update={"examples": 1}).rank == TRAINING.rank


def test_a_trial_reads_trains_and_measures(tmp_path: Path) -> None:
    card = cards_of(CARD, TRAINING)["mean_003_tokens_001"]
    found = run_trial(setup(60), card, Folder.of(str(tmp_path)))
    assert json.loads((tmp_path / RESULT).read_text()) == found
    assert (found["layer"], found["position"], found["token_layer"], found["steps"]) == (3, "mean", 1, 12)
    assert 0 < found["loss"] < 20
    assert {"exact_match", "bleu", "entity_kept", "relation_right"} <= found.keys()
    again = run_trial(setup(60), card, Folder.of(str(tmp_path / "again")))
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-4)


def test_too_few_questions_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"decode\.training\.search: 5 questions to train on and 1 held out"):
        run_trial(setup(6), CARD, Folder.of(str(tmp_path)))
    assert not (tmp_path / RESULT).exists()
