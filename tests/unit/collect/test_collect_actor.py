"""Actors that hold a model, called on a table as Ray would call them."""

import numpy as np
import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.artifacts import Folder
from ka2l_ray.collect.actor import CollectActor, collect_columns, fixed_size, matrix
from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.probe.model import LinearProbe, ProbeCard
from ka2l_ray.probe.score import ScoreActor

PROMPT = PromptSection()
COLLECT = CollectSection(positions=("last", "mean"), samples=3, max_new_tokens=4)


@pytest.fixture(scope="module")
def section(llama, tokenizer, tmp_path_factory):
    """A tiny model in a folder of its own."""
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSection(name_or_path=str(folder))


@pytest.fixture(scope="module")
def batch():
    return pa.table({"id": ["a", "b"], "question": ["Why?", "Where does she live?"]})


@pytest.fixture(scope="module")
def collected(section, batch):
    return CollectActor(section, PROMPT, COLLECT, [0, 2], seed=0)(batch)


def test_the_columns_are_those_declared(collected):
    declared = collect_columns(COLLECT, [0, 2], 32)
    assert set(collected) == set(declared.names)
    for field in declared:
        values = collected[field.name]
        column = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        assert (column.type, len(column)) == (field.type, 2)
    assert {len(row) for row in collected["samples"]} == {3}


def test_a_score_is_the_probe_of_the_state_collected(section, batch, collected, tmp_path):
    card = ProbeCard(section.name_or_path, PROMPT.template, 2, "mean", 32, 0.5, 1.0)
    probe = LinearProbe(np.linspace(-0.1, 0.1, 32), 0.1, card)
    probe.save(Folder.of(str(tmp_path)))
    scores = ScoreActor(section, PROMPT, Folder.of(str(tmp_path)))(batch)["p_unknown"]
    assert scores == pytest.approx(probe(matrix(collected["mean_002"])), abs=1e-5)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("change", [{"model": "other"}, {"prompt": "Q: {question}"}])
def test_a_probe_of_other_states_is_refused(section, tmp_path, change):
    card = {"model": section.name_or_path, "prompt": PROMPT.template} | change
    LinearProbe(np.zeros(32), 0.0, ProbeCard(card["model"], card["prompt"], 1, "last", 32, 0.5, 1.0)).save(Folder.of(str(tmp_path)))
    with pytest.raises(ValueError, match="the probe reads states of"):
        ScoreActor(section, PROMPT, Folder.of(str(tmp_path)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="NaN or infinity"):
        fixed_size(np.array([[0.0, value]], dtype=np.float32))


def test_states_survive_the_table():
    states = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = fixed_size(states)
    assert column.type == schema.states(["last"], [0], 3, half=False).field(0).type
    assert (matrix(column) == states).all()
    assert (matrix(pa.chunked_array([column, column]).slice(1, 5)) == np.concatenate([states, states])[1:6]).all()
