"""The model as its own decoder: what it reads and writes, how it is trained, and that a killed training goes on."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from decoder_jobs import CARD, FACTS, QUESTIONS, WORLD, InFolder, batches, job, read

from ka2l_ray.dataflow.placement import CPU
from ka2l_ray.decode.decoders import load_decoder
from ka2l_ray.decode.fitting import fit_rank
from ka2l_ray.decode.question_states import QuestionStates, states_of, token_column
from ka2l_ray.decode.self_decoder import SelfCard, SelfDecoder
from ka2l_ray.errors import ConfigError
from ka2l_ray.finetune.job import Refusal
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.tables import fixed_size, matrix, matrix_or_nan
from ka2l_ray.text.tokens import text_of
from ka2l_ray.world.facts import phrase_question


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """`decoder_states` of some questions."""
    found = read(QUESTIONS)
    tokenizer = load_tokenizer(WORLD)
    names = [text_of(tokenizer, ids) for ids in found["whom_ids"]]
    assert names == [f.person.name for f in FACTS]
    return pa.table({"question": QUESTIONS} | found)


def test_what_a_name_is_does_not_depend_on_what_is_asked_about_it() -> None:
    others = [phrase_question((f.attribute + 1) % 5, n % 2, f.person.name) for n, f in enumerate(FACTS)]
    of = frozenset(str(n) for n in range(len(FACTS)))
    one, other = (read(asked, kinds=of) for asked in (QUESTIONS, others))
    kinds, same = matrix(one["kind_state"]), matrix(other["kind_state"])
    assert np.allclose(kinds, same, atol=1e-4)
    assert not np.allclose(matrix(one["state"]), matrix(other["state"]), atol=0.1)
    assert len({f.person.name for f in FACTS}) == len(np.unique(kinds.round(2), axis=0)), "each name has its own"
    assert "kind_state" not in read(QUESTIONS)
    some = matrix_or_nan(pa.chunked_array([read(QUESTIONS, kinds=frozenset({"1", "4"}))["kind_state"]]))
    assert np.flatnonzero(~np.isnan(some).any(1)).tolist() == [1, 4]
    assert np.allclose(some[[1, 4]], kinds[[1, 4]], atol=1e-4)


def decoder(card: SelfCard = CARD) -> SelfDecoder:
    return SelfDecoder(card, load_model(WORLD), load_tokenizer(WORLD))


def test_it_is_the_studied_model_without_its_adapters_and_learns_with_them(rows: pa.Table):
    mine, states = decoder(), states_of(rows.slice(0, 8))
    mine.begin(states_of(rows), QUESTIONS, rows["whom_ids"].to_pylist())
    inputs = torch.tensor([[5, 6, 7, 8]])
    expected = load_model(WORLD)(inputs).logits
    optimizer = torch.optim.Adam([p for p in mine.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(12):
        logits, tokens = mine(states, QUESTIONS[:8])
        loss = torch.nn.functional.cross_entropy(logits, tokens)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad(), mine.as_studied():
        torch.testing.assert_close(mine.base(inputs).logits, expected)
    assert not torch.allclose(mine.base(inputs).logits, expected)


def test_a_name_is_in_its_token_states_from_the_first_step_on(rows: pa.Table):
    """What the ridge regression makes of a token's state is nearest to that token's own embedding."""
    mine = decoder()
    mine.begin(states_of(rows), QUESTIONS, rows["whom_ids"].to_pylist())
    embeddings: Any = mine.base.get_input_embeddings()
    embedding = embeddings.weight
    tokens = torch.from_numpy(np.concatenate(states_of(rows).tokens))
    near = (torch.nn.functional.normalize(mine.of_tokens(tokens).squeeze(1)) @ embedding.T).argmax(-1)
    true = [i for ids in rows["whom_ids"].to_pylist() for i in ids]
    assert np.mean(near.numpy() == true) > 0.9


def test_the_loss_is_that_of_each_question_alone(rows: pa.Table):
    mine, states = decoder().eval(), states_of(rows.slice(0, 5))
    together, tokens = mine(states, QUESTIONS[:5])
    apart = [mine(states[[n]], [QUESTIONS[n]]) for n in range(5)]
    torch.testing.assert_close(together, torch.cat([logits for logits, _ in apart]), atol=1e-4, rtol=1e-4)
    assert tokens.tolist() == [t for _, ids in apart for t in ids.tolist()]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_question_does_not_depend_on_the_rows_beside_it(rows: pa.Table, temperature: float):
    mine, ids = decoder().eval(), [f"q{n}" for n in range(5)]
    mine.begin(states_of(rows), QUESTIONS, rows["whom_ids"].to_pylist())
    states = states_of(rows.slice(0, 5))
    together = mine.write(states, ids, 0, temperature)
    assert [mine.write(states[[n]], [ids[n]], 0, temperature)[0] for n in range(5)] == together
    drawn = [mine.write(states, ids, seed, 1.0) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_greedy_writing_follows_the_logits_of_whole_passes(rows: pa.Table):
    mine, states = decoder().eval(), states_of(rows.slice(0, 3))
    tokenizer = load_tokenizer(WORLD)
    for n, text in enumerate(mine.write(states, ["a", "b", "c"], 0, 0.0)):
        ids = list[int]()
        with torch.no_grad():
            while len(ids) < CARD.max_tokens:
                given = torch.cat(
                    [mine.read(states[[n]])[0], mine.base.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))]
                )
                ids.append(int(mine.adapted(inputs_embeds=given[None]).logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
        assert text == text_of(tokenizer, ids)


def test_standardised_states_are_the_training_states_without_mean_and_scale(rows: pa.Table):
    mine, states = decoder(), states_of(rows)
    mine.begin(states, QUESTIONS, rows["whom_ids"].to_pylist())
    standard = mine.standardised(states)
    np.testing.assert_allclose(standard.pooled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(standard.tokens).std(0), 1, atol=1e-3)
    again = mine.raw(standard)
    np.testing.assert_allclose(again.pooled, states.pooled, atol=1e-3)
    np.testing.assert_allclose(again.tokens[3], states.tokens[3], atol=1e-3)


def test_a_stored_decoder_writes_the_same(rows: pa.Table, tmp_path: Path):
    mine = decoder().eval()
    mine.begin(states_of(rows), QUESTIONS, rows["whom_ids"].to_pylist())
    mine.load_state_dict({k: v.half().float() for k, v in mine.stored().items()}, strict=False)
    mine.save(tmp_path / "d")
    weights = sum(f.stat().st_size for f in (tmp_path / "d").iterdir())
    trained = sum(p.numel() for p in mine.parameters() if p.requires_grad)
    assert weights < 2.1 * trained + 40_000, "half precision, each number once, no copy of the model"
    again = load_decoder(tmp_path / "d", WORLD, load_tokenizer(WORLD), 0, Abilities(), CPU)
    states = states_of(rows.slice(0, 6))
    ids = [str(n) for n in range(6)]
    assert again.write(again.standardised(states), ids, 0, 0.0) == mine.write(states, ids, 0, 0.0)
    assert again.card == CARD


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": 8}, r"does not match decoder\.json"),
        ({"width": 64}, r"does not match decoder\.json"),
        ("weights", r"is not a safetensors file"),
    ],
)
def test_a_folder_that_is_no_decoder_of_this_model_is_refused(tmp_path: Path, change: Any, says: str):
    decoder().save(tmp_path)
    if change == "weights":
        (tmp_path / "decoder.safetensors").write_bytes(b"not at all")
    else:
        card = json.loads((tmp_path / "decoder.json").read_text())
        (tmp_path / "decoder.json").write_text(json.dumps(card | change))
    with pytest.raises(ConfigError, match=says):
        SelfDecoder.load(tmp_path, load_model(WORLD), load_tokenizer(WORLD))


def test_a_killed_training_ends_as_one_that_was_not(rows: pa.Table, tmp_path: Path):
    calm = fit_rank(job(rows, tmp_path / "calm"), batches(rows), 0, 1, InFolder(tmp_path / "calm"))
    with pytest.raises(KeyboardInterrupt):
        fit_rank(job(rows, tmp_path / "k"), batches(rows), 0, 1, InFolder(tmp_path / "k", dies_at=10))
    assert not (tmp_path / "k/decoder").exists()
    killed = fit_rank(job(rows, tmp_path / "k"), batches(rows), 0, 1, InFolder(tmp_path / "k"))
    assert killed["resumed_at_steps"] == [5]
    assert calm["steps"] == killed["steps"] == 12
    assert killed["losses"] == pytest.approx(calm["losses"], rel=1e-4)
    assert [s for s, _ in calm["held_out"]] == [4, 8, 12]
    assert calm["losses"][-1] < calm["losses"][0]
    for name in ("decoder.json", "decoder.safetensors"):
        assert (tmp_path / "k/decoder" / name).exists()


def test_training_ends_early_and_keeps_the_best(rows: pa.Table, tmp_path: Path):
    wild = job(rows, tmp_path, examples=800, learning_rate=0.3, patience=2, warmup_steps=0)
    found = fit_rank(wild, batches(rows), 0, 1, InFolder(tmp_path))
    least = min(loss for _, loss in found["held_out"])
    assert found["steps"] < 100
    assert [loss for _, loss in found["held_out"]].index(least) == len(found["held_out"]) - 3
    again = SelfDecoder.load(tmp_path / "decoder", load_model(WORLD), load_tokenizer(WORLD))
    held = rows.slice(48)
    with torch.no_grad():
        logits, tokens = again(states_of(held), held["question"].to_pylist())
    assert torch.nn.functional.cross_entropy(logits, tokens).item() == pytest.approx(least, rel=0.01)


def test_what_cannot_be_trained_is_refused(rows: pa.Table, tmp_path: Path):
    with pytest.raises(Refusal, match="fewer questions to train a decoder on"):
        fit_rank(job(rows, tmp_path / "a"), lambda epoch: iter(()), 0, 1, InFolder(tmp_path / "a"))
    broken = rows.set_column(
        rows.column_names.index("state"), "state", fixed_size(np.full((len(rows), 128), np.nan, np.float32))
    )
    with pytest.raises(Refusal, match="the loss at step 1 is nan"):
        fit_rank(job(rows, tmp_path / "b"), batches(broken), 0, 1, InFolder(tmp_path / "b"))
    fit_rank(job(rows, tmp_path / "c", examples=48), batches(rows), 0, 1, InFolder(tmp_path / "c"))
    with pytest.raises(Refusal, match=r"decode\.training was changed"):
        fit_rank(job(rows, tmp_path / "c", rank=4, learning_rate=0.01), batches(rows), 0, 1, InFolder(tmp_path / "c"))


def test_questions_without_token_states_are_written_from_the_pooled_one(rows: pa.Table):
    mine = decoder(replace(CARD, token_layer=None)).eval()
    states = QuestionStates.pooled_alone(states_of(rows).pooled[:3])
    assert len(mine.write(states, ["a", "b", "c"], 0, 0.0)) == 3
    assert token_column(states.tokens, 128).to_pylist() == [[], [], []]


def test_adapters_leave_the_given_model_object_usable_for_nothing_else_but_reading(rows: pa.Table):
    model = load_model(WORLD)
    before = copy.deepcopy(model)
    mine = SelfDecoder(CARD, model, load_tokenizer(WORLD))
    with mine.as_studied(), torch.no_grad():
        ids = torch.tensor([[1, 2, 3]])
        torch.testing.assert_close(model(ids).logits, before(ids).logits)
