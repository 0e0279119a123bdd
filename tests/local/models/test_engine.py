"""The engine: states and answers are the full model's, for every family, whatever is shared, padded, batched or left
out."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import BLOCKS, FAMILIES, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ka2l_ray.collect.actor import CollectActor, CollectSetup
from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.dataflow.failures import ActorBroken, BlockLost
from ka2l_ray.models.activations import Encoded, blocks, capture, pad
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import load_blocks, load_model
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.schema import state_column
from ka2l_ray.tables import matrix
from ka2l_ray.text.prompts import Prompt, Prompter

FEW_SHOT = PromptSection(template="Answer.\n\nQuestion: Who?\nAnswer: no\n\nQuestion: {question}\nAnswer:")
CHAT = PromptSection(template="<user>{question}</user>\n<bot>")
QUESTIONS = ["Why?", "Where does she live?", "é 4", "Who?", "What is it?"]
LAYERS = tuple(range(BLOCKS + 1))
POSITIONS = ("last", "mean")
DECODING = Decoding(seed=3, samples=3, temperature=1.0, greedy_temperature=0.0, max_new_tokens=5, stop=("\n",))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tokenizer):
    """A tiny model as Hugging Face runs it; one with a soft cap by the eager attention, because SDPA leaves the cap
    out."""
    model = tiny_model(request.param, tokenizer)
    if request.param == "gemma2":
        model.set_attn_implementation("eager")
    return model


@pytest.fixture
def ours(family):
    """The same weights for an engine, which may change how attention is computed."""
    model = type(family)(family.config.__class__.from_dict(family.config.to_dict())).eval()
    model.load_state_dict(family.state_dict())
    return model


@torch.inference_mode()
def reference(model, prompts, side=None):
    """States by (row, position, layer) from whole prompts, alone or padded on a side; the last layer from the last
    block itself."""
    raw = {}
    hook = blocks(model, BLOCKS)[-1].register_forward_hook(
        lambda _, __, out: raw.update(last=out[0] if isinstance(out, tuple) else out)
    )
    width = max(len(p.ids) for p in prompts)
    ids, mask = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width, dtype=torch.long)
    starts = [0 if side == "right" else width - len(p.ids) for p in prompts]
    for row, (p, at) in enumerate(zip(prompts, starts, strict=True)):
        ids[row, at : at + len(p.ids)], mask[row, at : at + len(p.ids)] = torch.tensor(p.ids), 1
    hidden = list(
        model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            output_hidden_states=True,
        ).hidden_states
    )
    hook.remove()
    hidden[-1] = raw["last"]
    found = {}
    for row, (p, at) in enumerate(zip(prompts, starts, strict=True)):
        for layer in LAYERS:
            found[row, "last", layer] = hidden[layer][row, at + len(p.ids) - 1]
            found[row, "mean", layer] = hidden[layer][row, at + p.own_start : at + p.own_end].mean(0)
    return found


def close(states, expected):
    for (row, position, layer), value in expected.items():
        assert states[position, layer][row] == pytest.approx(value.numpy(), abs=2e-4, rel=1e-3), (row, position, layer)


@pytest.mark.parametrize("prompt", [PromptSection(), FEW_SHOT, CHAT], ids=["bare", "few-shot", "chat"])
def test_states_are_the_full_models_single_and_padded_on_either_side(family, ours, tokenizer, prompt):
    prompts = Prompter(tokenizer, prompt)
    rows = prompts(QUESTIONS)
    engine = Engine(ours, tokenizer.pad_token_id, prompts.shared, Limits(rows=3))
    states, failed = engine.states(rows, LAYERS, POSITIONS)
    assert failed == {}
    for side in ("left", "right"):
        close(states, reference(family, rows, side))
    for n, row in enumerate(rows):
        single = {(n, p, layer): v for (_, p, layer), v in reference(family, [row]).items()}
        close(states, single)
    assert engine.tally.prefix_tokens_saved == len(prompts.shared) * len(rows)
    assert len(prompts.shared) > (20 if prompt is FEW_SHOT else 0)


def test_answers_do_not_depend_on_the_shared_prefix(family, ours, tokenizer):
    """Against a generator that shares nothing, whose answers `test_generation` checks against a simple loop."""
    prompts = Prompter(tokenizer, FEW_SHOT)
    rows, ids = prompts(QUESTIONS), [f"q{i}" for i in range(len(QUESTIONS))]
    alone, shared = (
        Generator(Engine(m, tokenizer.pad_token_id, s), tokenizer, DECODING)(ids, rows, LAYERS, POSITIONS)
        for m, s in ((family, ()), (ours, prompts.shared))
    )
    for mine, theirs in zip(shared.answers, alone.answers, strict=True):
        assert [(a.text, a.tokens) for a in mine] == [(a.text, a.tokens) for a in theirs]
        assert [a.logprob for a in mine] == pytest.approx([a.logprob for a in theirs], abs=1e-3)
    for column, values in alone.states.items():
        assert shared.states[column] == pytest.approx(values, abs=2e-4, rel=1e-3)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_first_blocks_alone_have_the_same_states(family, tokenizer, tmp_path, layer):
    family.save_pretrained(tmp_path)
    part = load_blocks(ModelSection(name_or_path=str(tmp_path)), layer)
    prompts = Prompter(tokenizer, FEW_SHOT)
    rows = prompts(QUESTIONS)
    states, _ = Engine(part, tokenizer.pad_token_id, prompts.shared).states(rows, [layer], POSITIONS)
    close(states, {k: v for k, v in reference(family, rows, "left").items() if k[2] == layer})


TOKENS = st.lists(st.integers(5, 400), min_size=1, max_size=8)


@given(
    st.lists(st.integers(5, 400), max_size=20),
    st.lists(TOKENS, min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(8, 200),
)
def test_sharing_changes_no_state_on_random_prompts(llama_pair, shared, rows, batch_rows, batch_tokens):
    """Whatever is shared, however long the rows and however they are batched."""
    reference_model, model = llama_pair
    prompts = [Prompt((*shared, *row), len(shared), len(shared) + len(row)) for row in rows]
    engine = Engine(model, 0, tuple(shared), Limits(batch_rows, batch_tokens))
    states, failed = engine.states(prompts, LAYERS, POSITIONS)
    assert failed == {}
    close(states, reference(reference_model, prompts, "left"))


ROWS = st.lists(st.tuples(TOKENS, st.integers(0, 6)), min_size=1, max_size=5)


@given(ROWS, st.sets(st.integers(0, BLOCKS), min_size=1), st.integers(0, 6))
def test_early_exit_changes_no_state_on_random_prompts(llama_folder, rows, layers, extra):
    """Blocks 1 … l loaded alone, and the whole model left after l, at any layers, for prompts of any length behind any
    padding."""
    whole, section = llama_folder
    prompts = [Prompt((*range(5, 5 + before), *own), before, before + len(own)) for own, before in rows]
    encoded = pad(prompts, 0)
    ids, mask, own = (
        torch.cat([t.new_zeros(len(rows), extra), t], -1) for t in (encoded.ids, encoded.mask, encoded.question_mask)
    )
    padded = Encoded(ids, mask, own)
    expected = {k: v for k, v in reference(whole, prompts, "right").items() if k[2] in layers}
    first = load_blocks(section, max(layers))
    assert len(blocks(first, max(1, *layers))) == max(1, *layers)
    for model, depth in ((whole, BLOCKS), (first, first.config.num_hidden_layers)):
        captured = capture(model, depth, padded, sorted(layers), POSITIONS, stop=True)
        with torch.inference_mode(), captured as states_of_pass:
            model(**padded.inputs(), use_cache=False)
        states = {column: values.numpy() for column, values in states_of_pass.items()}
        assert {n for _, n in states} == layers
        close(states, expected)


@pytest.fixture(scope="module")
def llama_folder(tokenizer, tmp_path_factory):
    """A model and the section that loads it."""
    folder, model = tmp_path_factory.mktemp("llama"), tiny_model("llama", tokenizer)
    model.save_pretrained(folder)
    return model, ModelSection(name_or_path=str(folder))


@pytest.fixture(scope="module")
def merging():
    """A byte-level BPE that has learned to merge across the border of a prompt: "go" is a token, and so is "goal"."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["goal"] * 9 + ["go"] * 9 + ["say: go"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", padding_side="left")


def test_a_question_that_a_real_tokenizer_merges_with_the_prompt_shares_no_prefix(merging):
    """The border falls within a token of one question, and not of the others."""
    prompts = Prompter(merging, PromptSection(template="say: go{question}?"))
    rows = prompts(["al", " on", "7", "al in"])
    merged = [row.ids[: len(prompts.shared)] != prompts.shared for row in rows]
    assert len(prompts.shared) > 0
    assert merged == [True, False, False, True]
    assert [merging.decode(list(row.ids)) for row in rows] == [
        "say: goal?",
        "say: go on?",
        "say: go7?",
        "say: goal in?",
    ]
    ours, theirs = (tiny_model("llama", merging) for _ in range(2))
    engine = Engine(ours, merging.pad_token_id, prompts.shared)
    states, failed = engine.states(rows, LAYERS, POSITIONS)
    assert failed == {}
    close(states, reference(theirs, rows, "left"))
    assert engine.tally.prefix_tokens_saved == 2 * len(prompts.shared)
    alone, shared = (
        Generator(Engine(m, merging.pad_token_id, s), merging, DECODING)("abcd", rows).answers
        for m, s in ((theirs, ()), (ours, prompts.shared))
    )
    assert [[a.text for a in row] for row in shared] == [[a.text for a in row] for row in alone]


def test_a_model_in_bfloat16_stores_its_own_states_and_gives_complete_answers(tokenizer, tmp_path):
    """Seven bits of mantissa: states are the full model's to a few percent of their size, and samples are exact samples
    of its logits."""
    made: Any = tiny_model("llama", tokenizer)
    made.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path))
    collect = CollectSection(positions=POSITIONS, samples=4, max_new_tokens=5)
    setup = CollectSetup(model=section, prompt=FEW_SHOT, collect=collect, layers=LAYERS, seed=0, limits=Limits(rows=3))
    actor = CollectActor(setup)
    columns = actor(
        Tokenize(section, FEW_SHOT).add(
            pa.table({"id": [f"q{n}" for n in range(len(QUESTIONS))], "question": QUESTIONS})
        )
    )
    whole = load_model(section)
    assert whole.dtype == torch.bfloat16
    rows = Prompter(tokenizer, FEW_SHOT)(QUESTIONS)
    for (row, position, layer), value in reference(whole, rows, "left").items():
        column = columns[state_column(position, layer)]
        assert column.type.value_type == pa.float16()
        difference = matrix(column)[row] - value.float().numpy()
        assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(value.float().numpy()), (row, position, layer)
    assert "error" not in columns
    assert {len(s) for s in columns["samples"]} == {4}
    assert all(0 < n <= 5 for row in columns["sample_tokens"] for n in row)
    assert all(np.isfinite(p) and p < 0 for row in columns["sample_logprobs"] for p in row)


@pytest.fixture(scope="module")
def llama_pair(tokenizer):
    return tiny_model("llama", tokenizer), tiny_model("llama", tokenizer)


def test_a_question_that_merges_with_the_text_before_it_shares_no_prefix_and_loses_no_token(llama_pair):
    """Its prompt starts differently, or ends within the shared part."""
    family, ours = llama_pair
    shared = (10, 11, 12, 13)
    prompts = [
        Prompt((*shared, 20, 21), 4, 6),
        Prompt((10, 11, 12, 99, 21), 3, 5),
        Prompt((10, 11, 30), 2, 3),
        Prompt((*shared, 20), 3, 5),
    ]
    engine = Engine(ours, 0, shared)
    states, failed = engine.states(prompts, LAYERS, POSITIONS)
    assert failed == {}
    assert engine.tally.prefix_tokens_saved == len(shared)
    close(states, reference(family, prompts, "left"))


BAD_ROWS = {
    "out of range": (Prompt((5, 10**6, 7), 1, 2), "token id 1000000 is out of range: the model has 0 … "),
    "negative": (Prompt((5, -1, 7), 1, 2), "token id -1 is out of range"),
    "empty": (Prompt((), 0, 0), "empty question"),
    "no own token": (Prompt((5, 6), 0, 0), "empty question"),
    "too long": (Prompt((5,) * 65, 1, 65), "prompt of 65 tokens + 0 new ones exceed the model's context of 64"),
}


@given(st.permutations([*BAD_ROWS, "good", "good", "good"]))
def test_bad_rows_fail_only_themselves_and_are_named(llama_pair, order):
    family, ours = llama_pair
    good = [Prompt((5, 6 + n, 7), 1, 2) for n in range(len(order))]
    prompts = [good[n] if kind == "good" else BAD_ROWS[kind][0] for n, kind in enumerate(order)]
    states, failed = Engine(ours, 0).states(prompts, [BLOCKS])
    assert {order[i] for i in failed} == set(BAD_ROWS)
    assert all(BAD_ROWS[order[i]][1] in str(error) for i, error in failed.items())
    kept = [i for i in range(len(order)) if i not in failed]
    expected = reference(family, [prompts[i] for i in kept], "left")
    for n, i in enumerate(kept):
        assert states["last", BLOCKS][i] == pytest.approx(expected[n, "last", BLOCKS].numpy(), abs=1e-4)
    assert not np.any([states["last", BLOCKS][i] for i in failed])


def test_the_tally_counts_tokens_by_what_they_were_used_for(llama_pair, tokenizer):
    engine = Engine(llama_pair[1], 0, (8, 9))
    prompts = [Prompt((8, 9, *[10] * n), 2, 2 + n) for n in (1, 3)]
    engine.states(prompts, [1])
    tally = engine.tally
    assert (tally.questions, tally.prompt_tokens, tally.padding_tokens, tally.prefix_tokens_saved) == (2, 4, 2, 4)
    assert tally.generated_tokens == 0
    assert tally.model_s > 0
    reading = Generator(engine, tokenizer, DECODING)(["a", "b"], prompts)
    written = sum(a.tokens for row in reading.answers for a in row)
    assert engine.tally.generated_tokens >= written > 0


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError, BlockLost), (torch.AcceleratorError, ActorBroken), (ValueError, None)]
)
def test_an_engine_in_which_every_row_fails_is_lost_unless_the_data_are_bad(llama_pair, monkeypatch, error, raised):
    """Two rows that can be read and one that cannot: that one says nothing about the engine."""
    ours, _ = llama_pair
    engine = Engine(ours, 0)
    prompts = [Prompt((5, 6, 7), 1, 2), Prompt((5, 6), 1, 2), Prompt((5,), 1, 1)]

    def work(rows, encoded):
        raise error("CUDA error: no such kernel" if error is torch.AcceleratorError else "no such kernel")

    if raised is None:
        _, failed = engine.for_each_batch(prompts, work, (), ())
        assert {n: str(e) for n, e in failed.items() if n < 2} == dict.fromkeys((0, 1), "no such kernel")
        return
    with pytest.raises(raised) as ended:
        engine.for_each_batch(prompts, work, (), ())
    assert type(ended.value) is raised
    if isinstance(ended.value, BlockLost):
        assert sorted(ended.value.errors) == [0, 1, 2]
