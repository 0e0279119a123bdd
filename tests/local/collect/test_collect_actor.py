"""Actors that hold a model, called on a table as Ray would call them."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from ka2l_ray import schema
from ka2l_ray.collect.actor import CollectActor, CollectSetup, _still_thinking, adaptive
from ka2l_ray.config import AdaptiveSection, CollectSection, ConfigError, ModelSection, PromptSection, parse_config
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.entropy.adaptive import first_decision
from ka2l_ray.errors import StageError
from ka2l_ray.label.actor import ClusterActor, ClusterSetup, KnowledgeActor, KnowledgeSetup
from ka2l_ray.models.answers import Answer, Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.probe import LinearProbe, ProbeCard, score_states
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.probe.score import ScoreActor, ScoreSetup
from ka2l_ray.tables import error_column, fixed_size, matrix, not_finite

PROMPT = PromptSection()
COLLECT = CollectSection(positions=("last", "mean"), samples=3, max_new_tokens=4)


def collector(section, collect=COLLECT, layers=(0, 2), **changes):
    return CollectActor(CollectSetup(model=section, prompt=PROMPT, collect=collect, layers=layers, seed=0, **changes))


@pytest.fixture(scope="module")
def section(llama, tokenizer, tmp_path_factory):
    """A tiny model in a folder of its own."""
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSection(name_or_path=str(folder))


@pytest.fixture(scope="module")
def batch(section):
    return asked(section, ["a", "b"], ["Why?", "Where does she live?"])


def asked(section, ids, questions):
    """Questions as an actor is given them."""
    return Tokenize(section, PROMPT).add(pa.table({"id": ids, "question": questions}))


@pytest.fixture(scope="module")
def collected(section, batch):
    return collector(section)(batch)


def test_the_columns_are_those_declared(collected):
    declared = schema.TABLES["activations"].added_fields(schema.states(COLLECT.positions, [0, 2], 32, half=False))
    assert set(collected) == set(declared.names)
    for field in declared:
        values = collected[field.name]
        column = values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type)
        assert (column.type, len(column)) == (field.type, 2)
    assert {len(row) for row in collected["samples"]} == {3}


def test_a_score_is_the_probe_of_the_state_collected(section, batch, collected, tmp_path):
    card = ProbeCard(section.name_or_path, PROMPT.template, 2, "mean", 32, 0.5, 1.0)
    probe = LinearProbe(np.linspace(-0.1, 0.1, 32), 0.1, card)
    probe.save(Folder.of(str(tmp_path)))
    scores = ScoreActor(ScoreSetup(model=section, prompt=PROMPT, probe=Folder.of(str(tmp_path))))(batch)["p_unknown"]
    assert scores == pytest.approx(
        score_states(matrix(collected["mean_002"]), probe), abs=1e-3
    )  # the table holds float16
    assert scores.dtype == np.float32


def test_questions_whose_answers_end_inside_a_thought_fail_and_say_so():
    thought, said = Answer("", -1.0, 4, in_thought=True), Answer("Rome", -1.0, 2)
    failed = _still_thinking([[thought, thought, said], [thought, said, said], [thought, said], []])
    assert {row: str(error) for row, error in failed.items()} == {
        0: "2 of 3 answers end inside a thought: raise collect.max_new_tokens, or set "
        "corpus.prompt.enable_thinking: false"
    }


@pytest.mark.parametrize(
    ("texts", "enough"),
    [
        (["Rome"] * 4, False),  # six refusals may come
        (["Rome"] * 5, True),
        ([""] * 5, False),  # one more, or five others
        ([""] * 6, True),
        (["Rome"] * 3 + ["I don't know."] * 2, False),
        (["a", "b", "c", "d", ""], True),  # unknown by its entropy, whatever comes
    ],
)
def test_sampling_goes_on_until_no_outcome_can_change_whether_the_model_abstains(texts, enough):
    """γ lies so high that four or five like answers keep the entropy below it, and four different ones reach it."""
    gamma = {True: 0.9, False: 2.0}[len(set(texts)) > 3]
    decoding = Decoding(0, 10, 1.0, 0.0, 8, ())
    decided = adaptive(decoding, gamma, 1, ("I don't know",)).enough
    assert decided([Answer(text, -1.0, 1) for text in texts]) is enough


@pytest.mark.parametrize("change", [{"model": "other"}, {"prompt": "Q: {question}"}])
def test_a_probe_of_other_states_is_refused(section, tmp_path, change):
    card = {"model": section.name_or_path, "prompt": PROMPT.template} | change
    LinearProbe(np.zeros(32), 0.0, ProbeCard(card["model"], card["prompt"], 1, "last", 32, 0.5, 1.0)).save(
        Folder.of(str(tmp_path))
    )
    with pytest.raises(StageError, match="the probe reads states of"):
        ScoreActor(ScoreSetup(model=section, prompt=PROMPT, probe=Folder.of(str(tmp_path))))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_with_states_that_are_not_finite_are_reported_and_become_null(value):
    states = {"a": np.ones((3, 2), np.float32), "b": np.array([[0, 1], [0, value], [2, 3]], np.float32)}
    failed = not_finite(states)
    assert {i: str(e) for i, e in failed.items()} == {1: "hidden state contains NaN or infinity"}
    assert error_column(failed, 3) == {"error": [None, "ValueError: hidden state contains NaN or infinity", None]}
    assert error_column({}, 3) == {}
    assert fixed_size(states["b"], failed).to_pylist() == [[0, 1], None, [2, 3]]


@pytest.mark.parametrize(("largest", "half"), [(65504.0, True), (-65504.0, True), (65520.0, False), (-1e6, False)])
def test_states_survive_the_table_as_float16_where_all_fit(largest, half):
    states = np.arange(12, dtype=np.float32).reshape(4, 3)
    states[3, 2] = largest
    column = fixed_size(states)
    assert column.type == schema.states(["last"], [0], 3, half=half).field(0).type
    assert (matrix(column) == states).all()
    assert (matrix(pa.chunked_array([column, column]).slice(1, 5)) == np.concatenate([states, states])[1:6]).all()


def test_files_of_either_width_are_read_as_one_table(tmp_path):
    table = Table(Folder.of(str(tmp_path)))
    halves, floats = (
        pa.table({"id": [i], "last_000": fixed_size(np.full((1, 2), v, np.float32))})
        for i, v in (("a", 1.5), ("b", 1e6))
    )
    table.write(("x", halves), ("y", floats))
    assert matrix(table.read()["last_000"]).tolist() == [[1.5, 1.5], [1e6, 1e6]]


@pytest.mark.parametrize("gamma", [0.3, 0.7, 1.1])
@pytest.mark.parametrize("wave", [1, 2, 9])
def test_adaptive_sampling_draws_the_first_samples_of_each_question_and_keeps_every_label(section, gamma, wave):
    """The same samples in the same order, fewer of them, and the label that all of them give."""
    section_of = COLLECT.model_copy(
        update={"samples": 6, "temperature": 0.4, "adaptive": AdaptiveSection(threshold=gamma, wave=wave)}
    )
    questions = asked(section, [f"q{i}" for i in range(40)], [f"Who is {'no' * (i % 3)}{i}?" for i in range(40)])
    full = collector(section, section_of, [2], limits=Limits(rows=7))(questions)
    fewer = collector(section, section_of, [2], limits=Limits(rows=7), threshold_nats=gamma)(questions)
    assert fewer["greedy"] == full["greedy"]
    assert all(all_[: len(some)] == some for some, all_ in zip(fewer["samples"], full["samples"], strict=True))
    drawn = [len(s) for s in fewer["samples"]]
    assert min(drawn) >= first_decision(6, gamma)
    assert wave > 2 or sum(drawn) < 6 * len(drawn)

    def labels(columns):
        table = pa.table(
            {k: columns[k] for k in ("greedy", "greedy_logprob", "samples", "sample_logprobs")}
            | {"answers": [["x"]] * 40}
        )
        clusters = ClusterActor(ClusterSetup(wanted=6))(table)
        return KnowledgeActor(KnowledgeSetup(threshold_nats=gamma))(pa.table(clusters))["unknown"]

    assert labels(fewer) == labels(full)
    assert {0, 1} >= set(labels(full))


def test_a_bad_question_fails_only_its_own_row(section, collected):
    batch = asked(section, ["a", "x", "b", "y"], ["Why?", " ", "Where does she live?", "long " * 60])
    mixed = collector(section)(batch)
    assert [e and e.partition(":")[2].strip()[:20] for e in mixed["error"]] == [
        None,
        "empty question: it h",
        None,
        "prompt of 306 tokens",
    ]
    assert [mixed["samples"][i] for i in (0, 2)] == collected["samples"]
    assert [mixed["mean_002"][i].as_py() for i in (0, 2)] == collected["mean_002"].to_pylist()
    assert [mixed["mean_002"][i].as_py() for i in (1, 3)] == [None, None]


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_vllm_is_refused_with_weights_that_are_quantized_while_loading(quantization):
    tree = {
        "collect": {"engine": "vllm"},
        "model": {"quantization": quantization},
        "finetune": {"mode": "lora", "zero_stage": 2},
    }
    with pytest.raises(
        ConfigError, match=f"collect.engine: vllm .* needs model.quantization: none, not {quantization}"
    ):
        parse_config(tree, "a file")
    tree["collect"]["engine"] = "own"
    assert parse_config(tree, "a file").model.quantization == quantization


def test_samples_are_drawn_as_the_model_states_and_greedy_answers_are_not(section, batch, tmp_path):
    """A model whose authors state `top_k: 1`: every sample is the greedy answer, with the model's own probability."""
    shutil.copytree(section.name_or_path, tmp_path / "stated")
    (tmp_path / "stated" / "generation_config.json").write_text('{"top_k": 1, "temperature": 5.0}')
    stated = collector(ModelSection(name_or_path=str(tmp_path / "stated")))(batch)
    free = collector(section, COLLECT.model_copy(update={"temperature": 5.0}))(batch)
    assert stated["greedy"] == free["greedy"]
    assert all(set(samples) == {greedy} for greedy, samples in zip(stated["greedy"], stated["samples"], strict=True))
    assert any(set(samples) != {greedy} for greedy, samples in zip(free["greedy"], free["samples"], strict=True))
    for logprob, sampled in zip(stated["greedy_logprob"], stated["sample_logprobs"], strict=True):
        assert sampled == pytest.approx([logprob] * 3, abs=1e-4)
